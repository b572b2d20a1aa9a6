"""The zoom notebook in a real browser: how long a hand waits for a picture.

A server, a warm process and a headless Chromium work in a temporary folder, and a mouse is moved
over the page. Times are taken inside the page, in the animation frame that paints what is waited
for, so that neither asking the page nor the test's own process blurs them.
"""

import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

import fractal_core
from fractal_core import control, engine, experiments, machine
from fractal_core.duty import lock_holder
from fractal_core.errors import Refused
from fractal_core.store import Store
from fractal_core.sweep import LEVELS, Sweep

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NOTEBOOK = Path(fractal_core.__file__).parent.parent / "notebooks" / "zoom.py"
GRID, STEPS = 128, 500
PATIENCE = 120_000
BOXES = ((0.55, 0.45, 0.70, 0.60), (0.42, 0.55, 0.57, 0.70), (0.68, 0.30, 0.83, 0.45))
"""Rectangles on the border of the tanh overview, as fractions x0, y0, x1, y1 of the map."""

INSETS = {"left": 92, "right": 14, "top": 10, "bottom": 46}
"""What the canvas of the map leaves for its labels, in CSS pixels."""

ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)

RECORDER = """
window.seen = [];
const maps = new WeakMap();
let count = 0;
const watcher = new MutationObserver((records) => {
  for (const { target, attributeName } of records) {
    const note = { what: attributeName.slice(5), value: target.getAttribute(attributeName) };
    if (note.what === "frames" && !maps.has(target)) maps.set(target, ++count);
    if (note.what === "frames") note.map = maps.get(target);
    if (note.what === "live") note.text = target.textContent;
    requestAnimationFrame(() => window.seen.push({ ...note, at: performance.now() }));
  }
});
const watch = (root) => watcher.observe(root, {
  subtree: true, attributeFilter: ["data-frames", "data-drawn", "data-live"],
});
watch(document);
const attach = Element.prototype.attachShadow;
Element.prototype.attachShadow = function (...options) {
  const root = attach.apply(this, options);
  watch(root);
  return root;
};
addEventListener("pointerup", (event) => {
  window.seen.push({ what: "up", at: event.timeStamp });
}, true);
addEventListener("click", (event) => {
  const button = event.composedPath().find((node) => node.tagName === "BUTTON");
  const value = button ? button.textContent.trim() : "";
  window.seen.push({ what: "click", value, at: event.timeStamp });
}, true);
"""
"""Runs in the page before anything else and fills `seen`, a list of what happened and when."""


ENOUGH = """
(points) => {
  const click = window.seen.findLastIndex((note) => note.what === "click");
  const words = window.seen.slice(click).findLast((note) => note.what === "live");
  return words && Number(/([\\d,]+) of/.exec(words.text)?.[1].replaceAll(",", "")) >= points;
}
"""
"""Whether the view that was clicked for has said that it holds so many points."""


@dataclass(frozen=True)
class Server:
    """A marimo server with the zoom notebook.

    Args:
        url: Its address, ending in a slash.
        folder: Where it works; runs are in `runs/` there.
        pid: Its process.
    """

    url: str
    folder: Path
    pid: int

    @property
    def root(self) -> Path:
        """The folder of the runs."""
        return self.folder / "runs"

    @property
    def log(self) -> str:
        """What it said."""
        return (self.folder / "server.log").read_text(errors="replace")


def environment(folder: Path, control: bool) -> dict[str, str]:
    """Of a server, in which whatever it leaves behind can be told from others' by its TMPDIR."""
    scratch = folder / "tmp"
    scratch.mkdir(exist_ok=True)
    return os.environ | {
        "TMPDIR": str(scratch),
        "FRACTAL_ALLOW_CONTROL": "1" if control else "0",
    }


def offspring(folder: Path) -> list[psutil.Process]:
    """All living processes that were started with the environment of a folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("TMPDIR") == str(folder / "tmp"):
                found.append(process)
    return found


def end(processes: list[psutil.Process]) -> None:
    """End processes, first politely."""
    for how in (psutil.Process.terminate, psutil.Process.kill):
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                how(process)
        _, processes = psutil.wait_procs(processes, timeout=10)


def end_all(folder: Path) -> None:
    """End what was started with the environment of a folder, and what that started meanwhile."""
    while found := offspring(folder):
        end(found)


def answers(url: str, process: subprocess.Popen, log: Path) -> None:
    """Wait until a server is healthy.

    Raises:
        Refused: It ended, or took longer than two minutes.
    """
    deadline = time.monotonic() + PATIENCE / 1e3
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(f"{url}health", timeout=5).close()
            return
        time.sleep(0.05)
    raise Refused(f"the server did not start; it said: {log.read_text(errors='replace')}")


@contextlib.contextmanager
def serve(
    folder: Path, mode: str = "run", control: bool = True, notebook: Path = NOTEBOOK
) -> Iterator[Server]:
    """A server that works in `folder`; at the end it goes, and so does all that it started."""
    url, log = f"http://127.0.0.1:{(port := machine.free_port())}/", folder / "server.log"
    command = [sys.executable, "-m", "marimo", "-q", mode, str(notebook), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--headless", "--no-token"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment(folder, control),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        answers(url, process, log)
        yield Server(url, folder, process.pid)
    finally:
        end([psutil.Process(process.pid)] if process.poll() is None else [])
        process.wait()
        end_all(folder)


@contextlib.contextmanager
def chromium() -> Iterator["Browser"]:
    """A headless Chromium that reaches nothing but this machine.

    Raises:
        Refused: Playwright or a Chromium is not installed.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise Refused("playwright is not installed; `uv sync` brings it") from None
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    with sync_playwright() as playwright:
        if not (found or Path(playwright.chromium.executable_path).exists()):
            raise Refused(
                "no Chromium is installed; run `playwright install chromium` or install your "
                "system's package"
            )
        browser = playwright.chromium.launch(executable_path=found, args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()


def drag(
    page: "Page", x0: float, y0: float, x1: float, y1: float
) -> tuple[tuple[float, float, float, float], float]:
    """Draw a rectangle with the mouse from one corner to the other, given as fractions of the map.

    Returns:
        The fractions after rounding to whole pixels, and the share of the map that a pixel is.
    """
    left, bottom, width, height = _area(page)
    pixels = [round(left + x * width) for x in (x0, x1)]
    pixels += [round(bottom - y * height) for y in (y0, y1)]
    page.mouse.move(pixels[0], pixels[2])
    page.mouse.down()
    page.mouse.move((pixels[0] + pixels[1]) / 2, (pixels[2] + pixels[3]) / 2, steps=4)
    page.mouse.move(pixels[1], pixels[3], steps=4)
    page.mouse.up()
    across = [(pixel - left) / width for pixel in pixels[:2]]
    up = [(bottom - pixel) / height for pixel in pixels[2:]]
    return (across[0], up[0], across[1], up[1]), 1 / min(width, height)


def spot(page: "Page", x: float, y: float) -> tuple[float, float]:
    """Where on the page a point of the map is, given as fractions."""
    left, bottom, width, height = _area(page)
    return left + x * width, bottom - y * height


def _area(page: "Page") -> tuple[float, float, float, float]:
    """Left and bottom edge, width and height of the map on the page."""
    canvas = page.get_by_test_id("map")
    canvas.scroll_into_view_if_needed()
    box, before = canvas.bounding_box(), None
    while box is None or box != before:  # a page that is still being laid out moves it
        page.wait_for_timeout(100)
        before, box = box, canvas.bounding_box()
    width = box["width"] - INSETS["left"] - INSETS["right"]
    height = box["height"] - INSETS["top"] - INSETS["bottom"]
    return box["x"] + INSETS["left"], box["y"] + INSETS["top"] + height, width, height


@dataclass(frozen=True)
class Round:
    """What one zoom took, in seconds.

    Args:
        preview: From letting go of the mouse to the magnified part of the map beside it.
        parent: From the click on "zoom in" to the parent's picture, scaled, in the new view.
        first: From that click to the coarsest level, every 8th point of both axes.
        levels: For each finer level, the time from the level before it to itself on the screen.
        trained: For each of these, the time its training took by the units' own account.
        warm: Whether the warm process forked the worker; if not, `first` holds a cold start.
    """

    preview: float
    parent: float
    first: float
    levels: dict[int, float]
    trained: dict[int, float]
    warm: bool

    def ratio(self, level: int) -> float:
        """Time on the screen over time of training."""
        return self.levels[level] / self.trained[level]


def prepare(root: Path) -> Store:
    """The finished overview of the paper's tanh network in `root`, from which every round zooms."""
    preset = experiments.preset("tanh")
    experiment = experiments.configure(preset.experiment, {"steps": STEPS})
    sweep = Sweep.over(experiment, preset.region(False, GRID, GRID))
    root.mkdir(exist_ok=True)
    store = Store.create(root / "overview", sweep)
    for _ in engine.run_here(store):
        pass
    return store


def measure(rounds: int) -> tuple[list[Round], dict[str, str]]:
    """Zoom `rounds` times into different rectangles of the overview.

    Returns:
        One result per round, and the versions of what draws the page.
    """
    results = []
    # Resolved and short: the name of a socket may only be about a hundred characters long.
    with tempfile.TemporaryDirectory(prefix="fractal-") as name, chromium() as browser:
        folder = Path(name).resolve()
        prepare(folder / "runs")
        with serve(folder) as server:
            _warm(folder)
            for turn in range(rounds):
                results.append(_zoom(browser, server, turn))
        versions = {"marimo": metadata.version("marimo"), "chromium": browser.version}
    return results, versions


def _warm(folder: Path) -> None:
    """Leave a warm process for the server and wait until it listens."""
    warm = subprocess.Popen(
        [sys.executable, "-m", "fractal_core.warm"],
        env=environment(folder, True),
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not list((folder / "tmp").glob("fractal-*/*.socket")):
        if warm.poll() is not None:
            raise Refused("the warm process ended at once")
        time.sleep(0.05)


def _zoom(browser: "Browser", server: Server, turn: int) -> Round:
    page = browser.new_page(viewport={"width": 1400, "height": 1250})
    page.set_default_timeout(PATIENCE)
    page.add_init_script(RECORDER)
    page.goto(f"{server.url}?run=overview")
    page.locator("[data-testid=map][data-frames]").wait_for()
    x0, y0, x1, y1 = BOXES[turn % len(BOXES)]
    nudge = 0.01 * (turn // len(BOXES))
    drag(page, x0 + nudge, y0 + nudge, x1 + nudge, y1 + nudge)
    page.wait_for_function("seen.some((note) => note.what === 'drawn')")
    page.get_by_role("button", name="zoom in", exact=True).click()
    page.wait_for_url(lambda url: not url.endswith("run=overview"))
    page.wait_for_function(ENOUGH, arg=GRID**2 // 4)
    page.wait_for_timeout(300)  # the picture that belongs to these words
    run = server.root / page.url.partition("run=")[2]
    holder = lock_holder(run)
    warm = holder is not None and "fractal_core.warm" in psutil.Process(holder).cmdline()
    control.stop(run, patience=0.0)
    notes = page.evaluate("seen")
    page.close()
    return read(notes, experiments.open_run(run), warm)


def read(notes: list[dict[str, Any]], store: Store, warm: bool) -> Round:
    """What the page noted, as times; the levels are those of `store` down to every 2nd point."""

    def after(start: float, what: str) -> list[dict[str, Any]]:
        return [note for note in notes if note["what"] == what and note["at"] >= start]

    up = min(note["at"] for note in after(0, "up"))
    click = min(note["at"] for note in after(0, "click") if note["value"] == "zoom in")
    new = max(note["map"] for note in after(click, "frames"))
    pictures = [note["at"] for note in after(click, "frames") if note["map"] == new]
    words = [(note["at"], _done(note["text"])) for note in after(click, "live")]

    def shown(points: int) -> float:
        # The browser is sent the picture and then the words, and decodes the picture meanwhile:
        # they come within milliseconds of each other and the next pair much later.
        said = next(at for at, done in words if points <= done < store.sweep.grid.x.size**2)
        return max(said, min(pictures, key=lambda at: abs(at - said)))

    points = {level: (GRID // 2**level) ** 2 for level in range(LEVELS)}
    first = shown(points[LEVELS - 1])
    finer = (2, 1)
    trained: dict[int, float] = dict.fromkeys(finer, 0.0)
    for unit in store.units.values():
        if unit.level in trained:
            trained[unit.level] += json.loads(store.read(unit)["meta"].tobytes())["seconds"]
    return Round(
        preview=(after(up, "drawn")[0]["at"] - up) / 1e3,
        parent=(pictures[0] - click) / 1e3,
        first=(first - click) / 1e3,
        levels={level: (shown(points[level]) - shown(points[level + 1])) / 1e3 for level in finer},
        trained=trained,
        warm=warm,
    )


def _done(text: str) -> int:
    found = re.search(r"([\d,]+) of", text)
    return int(found[1].replace(",", "")) if found else 0


def summary(results: list[Round]) -> dict[str, tuple[float, float]]:
    """Median and worst of every figure: seconds, and ratios for the finer levels."""
    figures = {
        "preview": [result.preview for result in results],
        "parent": [result.parent for result in results],
        "first": [result.first for result in results],
        **{f"level {n}": [result.ratio(n) for result in results] for n in (2, 1)},
    }
    return {name: (statistics.median(values), max(values)) for name, values in figures.items()}
