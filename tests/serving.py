"""Notebooks on a real server, in a real browser."""

import contextlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from fractal_core.bench import zoom
from fractal_core.bench.zoom import Server

NOTEBOOKS = zoom.NOTEBOOK.parent
PATIENCE = 240_000
"""Milliseconds that a busy machine may take for anything."""

VALUES = re.compile("/api/kernel/set_ui_element_value")
TWO_FRAMES = """
async () => {
  for (const _ of "12") await new Promise((go) => requestAnimationFrame(() => setTimeout(go)));
}
"""


@contextlib.contextmanager
def served(notebook: Path, runs: Path, mode: str = "run", control: bool = True) -> Iterator[Server]:
    """A notebook on a server that has its own copy of `runs`."""
    # Not pytest's own folder: the path of the warm process's socket must be short.
    with tempfile.TemporaryDirectory(prefix="fractal-test-", dir="/tmp") as name:
        folder = Path(name).resolve()
        shutil.copytree(runs, folder / "runs")
        # Editing may rewrite the notebook, so it is a copy, and its settings lie beside it.
        shutil.copy(notebook, folder)
        shutil.copy(NOTEBOOKS / "head.html", folder)
        shutil.copy(NOTEBOOKS.parent / "pyproject.toml", folder)
        with zoom.serve(folder, mode, control, folder / notebook.name) as server:
            yield server


@contextlib.contextmanager
def opened(browser, folder: Path, server: Server, query: str = "", size=(1400, 1250)):
    """An address in a tab of its own; a test that fails leaves a screenshot in `folder`."""
    from playwright.sync_api import expect

    expect.set_options(timeout=PATIENCE)
    context = browser.new_context(viewport={"width": size[0], "height": size[1]})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.add_init_script(zoom.RECORDER)
    try:
        page.goto(server.url + query)
        yield page
    except BaseException:
        page.screenshot(path=folder / "failed.png")
        print(f"{page.url}, see {folder / 'failed.png'}; the server said:\n{server.log}")
        raise
    finally:
        context.close()


@contextlib.contextmanager
def fractal_open(folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen, Path]]:
    """The command `fractal open` at work in a folder, and the file of what it says."""
    log = folder / "said"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "fractal_core", "open", *arguments],
            cwd=folder,
            env=zoom.environment(folder, control=False),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process, log
    finally:
        zoom.end([psutil.Process(process.pid)] if process.poll() is None else [])
        process.wait()
        zoom.end_all(folder)


@contextlib.contextmanager
def at_once(page) -> Iterator[None]:
    """What is typed and clicked meanwhile reaches the kernel in one go, as if it had been busy."""
    held = []

    def hold(route) -> None:
        if route.request.method == "POST":
            held.append(route.request)
        route.fulfill(json={"success": True})

    page.route(VALUES, hold)
    yield
    taken_in(page)
    page.evaluate("async () => { await fetch('api/kernel/set_ui_element_value?last') }")
    page.unroute(VALUES)
    said = [request.post_data_json for request in held]
    together = {key: [each for one in said for each in one[key]] for key in ("objectIds", "values")}
    send(page, held[-1], said[-1] | together)


def press(page, name: str) -> None:
    """Click the button with that name, as soon as it can be clicked."""
    page.get_by_role("button", name=name, exact=True).click()


def taken_in(page) -> None:
    """Wait until the page itself has taken in what was typed and clicked."""
    page.evaluate(TWO_FRAMES)


def send(page, like, changes: dict) -> None:
    """Hand changes over to the kernel, as a request did before."""
    answer = page.request.post(like.url, headers=like.headers, data=changes)
    assert answer.ok, answer.text()


def disabled(page, *names: str) -> None:
    """Wait until the buttons with these names cannot be clicked."""
    from playwright.sync_api import expect

    for name in names:
        expect(page.get_by_role("button", name=name, exact=True)).to_be_disabled()


def fill(page, label: str, value: object) -> None:
    """Type into the field with that label, and leave it."""
    # A field for numbers does not tell the browser that its label is one.
    numbers = page.locator("marimo-number").filter(has_text=label).locator("input")
    field = page.get_by_role("textbox", name=label, exact=True).or_(numbers).first
    field.fill(str(value))
    field.press("Tab")


def says(page, test_id: str, text: str) -> str:
    """Wait until an element says `text`, which is a regular expression, and return all it says."""
    from playwright.sync_api import expect

    found = page.get_by_test_id(test_id)
    expect(found).to_have_text(re.compile(text))
    return found.inner_text()
