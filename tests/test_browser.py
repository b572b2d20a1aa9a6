"""The zoom notebook in a real browser, with a real mouse and a real server."""

import contextlib
import json
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from serving import PATIENCE, VALUES, disabled, fractal_open, opened, press, says, send, served
from waiting import until, until_gone

from fractal_core import (
    Axis,
    Region,
    Store,
    Sweep,
    TinyNetworks,
    control,
    engine,
    explore,
    figures,
    machine,
    portrait,
)
from fractal_core.bench import zoom
from fractal_core.bench.zoom import Server, drag, spot
from fractal_core.duty import lock_holder
from fractal_core.experiments import open_run

WIDE = (1e-3, 1e6)
QUICK = TinyNetworks(samples=8, steps=60)
VISIBLE = TinyNetworks(samples=64, steps=300)  # some seconds, so that one can watch it
TRAINS = (0.5, 20.0)  # no run ends early here


def make(
    root: Path, name: str, sweep: Sweep, whole: bool = True, block: int | None = None
) -> Store:
    store = Store.create(root / name, sweep, block=block)
    for _ in engine.run_here(store) if whole else ():
        pass
    return store


def sweep(experiment: TinyNetworks, ends: tuple[float, float], points: int) -> Sweep:
    names = experiment.axes
    return Sweep.over(experiment, Region(*(Axis(name, *ends, points) for name in names)))


def long(root: Path, name: str, samples: int) -> Store:
    """Minutes of work in steps of a second, not begun; one more sample makes another recipe."""
    recipe = sweep(TinyNetworks(samples=samples, steps=1000), TRAINS, 256)
    return make(root, name, recipe, whole=False, block=16)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Runs to start from; every server has a copy of its own."""
    root = tmp_path_factory.mktemp("prepared") / "runs"
    root.mkdir()
    parent = make(root, "parent", sweep(VISIBLE, WIDE, 128))
    make(root, "small", sweep(QUICK, WIDE, 64))
    deep = 16 * 6 * np.spacing(10.0)  # neighbours are 6 units in the last place apart
    make(root, "deep", sweep(QUICK, (10.0, 10.0 + deep), 16))
    for name, samples in (("closed", 200), ("cancelled", 201)):
        long(root, name, samples)
    make(root, "shared", sweep(VISIBLE, (0.5, 50.0), 128), whole=False)
    inner = parent.sweep.zoom(parent.sweep.region.drag([1.0, 1e3, 1.0, 1e3]))
    child = make(root, "child", inner, whole=False)
    child.files.put_once("origin.json", b'{"parent": "parent"}')
    return root


@pytest.fixture(scope="module")
def app(runs) -> Iterator[Server]:
    with served(zoom.NOTEBOOK, runs) as server:
        yield server


@pytest.fixture(scope="module")
def editor(runs) -> Iterator[Server]:
    with served(zoom.NOTEBOOK, runs, "edit") as server:
        yield server


@pytest.fixture(scope="module")
def onlooker(runs) -> Iterator[Server]:
    with served(zoom.NOTEBOOK, runs, control=False) as server:
        yield server


def shown_region(page) -> list[float]:
    """The four ends under the map: x, then y."""
    text = page.get_by_test_id("region").inner_text()
    return [float(number) for number in re.findall(r"[\d.]+(?:e[+-]?\d+)?(?= |$)", text)]


@pytest.fixture
def tab(browser, tmp_path):
    """Opens an address in a tab of its own, and waits for the map."""

    @contextlib.contextmanager
    def open_tab(server: Server, query: str):
        with opened(browser, tmp_path, server, query) as page:
            page.locator("[data-testid=map][data-frames]").wait_for()
            yield page

    return open_tab


def ends(region: Region) -> list[float]:
    return [region.x.low, region.x.high, region.y.low, region.y.high]


SAME = """
(canvas, [wanted, inset]) => {
  const ratio = canvas.width / canvas.getBoundingClientRect().width;
  if (!canvas.isConnected || !Number.isFinite(ratio)) return 0;
  const brush = canvas.getContext("2d");
  const width = canvas.width / ratio - inset.left - inset.right;
  const height = canvas.height / ratio - inset.top - inset.bottom;
  return wanted.filter(([x, y, ...colour]) => {
    const at = [inset.left + x * width, inset.top + (1 - y) * height];
    const data = brush.getImageData(...at.map((v) => Math.floor(v * ratio)), 1, 1).data;
    return colour.every((value, i) => value === data[i]);
  }).length;
}
"""
"""How many places of the map have the colour that is wanted there."""


def shows(page, colours: np.ndarray, share: float = 1.0) -> None:
    """Wait until every 9th cell of the map on the page has the colours of a picture.

    A `share` of them is enough where the outlines and names of further runs cover some.
    """
    rows, cols = colours.shape[:2]
    places = [(r, c) for r in range(4, rows, 9) for c in range(4, cols, 9)]
    wanted = [[(c + 0.5) / cols, (r + 0.5) / rows, *colours[r, c].tolist()] for r, c in places]

    def same() -> bool:
        page.wait_for_timeout(100)
        found = page.get_by_test_id("map").evaluate(SAME, [wanted, zoom.INSETS])
        return found >= share * len(wanted)

    until(same, "the picture on the map")


def picture(store: Store) -> np.ndarray:
    return figures.paint(store.image(), palette="split", quantity="measure")


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file, with the time of its last change."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def committed(store: Store) -> list[str]:
    """Units that were noted as committed; the last of them a moment after it is there."""
    until(lambda: lock_holder(store.path) is None, "the end of the process")
    lines = (store.path / "state" / "events.jsonl").read_text().splitlines()
    return [e["unit"] for e in map(json.loads, lines) if e["event"] == "committed"]


@pytest.mark.parametrize("mode", ["app", "editor"])
def test_drag_zoom_in_back_and_forward(mode, tab, request):
    """What is dragged is what is trained; it gets finer, and the way back is there."""
    server = request.getfixturevalue(mode)
    with tab(server, "?run=parent") as page:
        parent = open_run(server.root / "parent")
        says(page, "status", "^complete")
        shows(page, picture(parent), share=0.9)

        whole = ends(parent.sweep.region)
        says(page, "cost", "^this view: computed already")
        assert shown_region(page) == whole
        dragged, pixel = drag(page, 0.55, 0.45, 0.70, 0.60)
        says(page, "cost", r"^selection: 16,384 runs, (about|under) .* digits left to zoom$")
        chosen = shown_region(page)
        for value, place, axis in zip(
            [chosen[0], chosen[2], chosen[1], chosen[3]],
            dragged,
            [parent.sweep.region.x, parent.sweep.region.y] * 2,
            strict=True,
        ):
            assert axis.fraction(np.array([value])) == pytest.approx([place], abs=pixel)

        press(page, "zoom in")
        page.wait_for_url(lambda url: not url.endswith("run=parent"))
        child = open_run(server.root / page.url.partition("run=")[2])
        assert ends(child.sweep.region) == chosen
        page.wait_for_function("seen.some((note) => note.map > 1)")  # the parent is complete, too
        says(page, "status", "^complete: 16,384 of 16,384")
        shows(page, picture(child))
        assert child.missing() == []
        assert sorted(committed(child)) == sorted(child.units)
        notes = page.evaluate("seen")
        new = max(note.get("map", 0) for note in notes)
        pictures = [note for note in notes if note.get("map") == new]
        assert len(pictures) >= 2

        press(page, "← back")
        page.wait_for_url("**/?run=parent")
        says(page, "region", re.escape(repr(whole[0])))
        press(page, "forward →")
        page.wait_for_url(f"**/?run={child.path.name}")
        says(page, "region", re.escape(repr(chosen[0])))

        page.get_by_placeholder("name this view").fill("a corner")
        page.get_by_placeholder("name this view").press("Tab")
        press(page, "bookmark")
        places = page.locator("select").filter(has=page.locator("option", has_text="★ a corner"))
        places.wait_for()
        press(page, "← back")
        page.wait_for_url("**/?run=parent")
        says(page, "region", re.escape(repr(whole[0])))
        places.select_option(label="★ a corner")
        page.wait_for_url(f"**/?run={child.path.name}")
        shows(page, picture(child))


def test_the_browsers_own_way_back(app, tab):
    """One step back is what one did; the page shows what its address says."""
    with tab(app, "?run=parent") as page:
        region = page.get_by_test_id("region").inner_text()
        page.get_by_label("places").select_option(label="published: tanh")
        says(page, "region", r"13\.29")
        shown = page.url
        page.go_back()
        page.wait_for_url("**/?run=parent")
        says(page, "status", "^complete")
        says(page, "region", re.escape(region))
        page.go_forward()
        says(page, "region", r"13\.29")
        assert page.url == shown


def test_what_cannot_be_done_is_not_in_the_way(app, tab):
    """A second click on its way when the first led to the end; a run that cannot be opened."""
    damaged = app.root / "damaged"
    shutil.copytree(app.root / "small", damaged)
    recipe = json.loads((damaged / "sweep.json").read_text())
    (damaged / "sweep.json").write_text(json.dumps(recipe | {"id": "0" * 16}))
    try:
        with tab(app, "?run=small") as page:
            page.get_by_test_id("marimo-plugin-searchable-dropdown").click()
            page.get_by_role("option", name="damaged").click()
            page.get_by_text("was edited").wait_for()
            page.get_by_label("places").select_option(label="published: tanh")
            says(page, "region", r"13\.29")
            said = app.log
            for name, region in (("← back", r" 0\.001 "), ("forward →", r"13\.29")):
                with page.expect_request(VALUES) as click:
                    press(page, name)
                says(page, "region", region)
                send(page, click.value, click.value.post_data_json)
            press(page, "← back")
            says(page, "region", r" 0\.001 ")
            assert "Error" not in app.log.removeprefix(said)
    finally:
        shutil.rmtree(damaged)


def test_a_view_begins_with_the_picture_of_its_parent(onlooker, tab):
    """Before any point of its own is there, the parent's cells stand for them."""
    child = explore.open_view(onlooker.root, "child")
    parent = explore.open_view(onlooker.root, "parent")
    with tab(onlooker, "?run=child") as page:
        says(page, "status", "^stopped: 0 of 16,384 runs")
        shows(
            page,
            figures.paint(portrait.compose(child, parent), palette="split", quantity="measure"),
        )


def test_a_run_outlives_its_tab(app, tab):
    """A closed tab changes nothing, and the address leads back to the run."""
    store = open_run(app.root / "closed")
    with tab(app, "?run=closed") as page:
        says(page, "status", "^stopped: 0 of")
        press(page, "compute")
        says(page, "status", "^running: [1-9]")
    before = control.progress(store)
    with tab(app, "?run=closed") as page:
        says(page, "status", "^running: [1-9]")
        now = control.progress(store)
        assert now.process == before.process is not None
        page.wait_for_function(
            "before => seen.some((note) => note.text && !note.text.includes(before))",
            arg=f" {now.done:,} of",
        )
        press(page, "cancel")
        says(page, "status", "^stopped: [1-9]")


@pytest.fixture
def fresh_editor(runs) -> Iterator[Server]:
    """One that nobody has looked at: a tab in an editor joins the session that is there."""
    with served(zoom.NOTEBOOK, runs, "edit") as server:
        yield server


@pytest.mark.parametrize("times", [1, pytest.param(10, marks=pytest.mark.faults)])
def test_a_run_outlives_its_kernel(fresh_editor, tab, times):
    """Interrupted and restarted, the kernel takes nothing along; a new one finds the run."""
    editor = fresh_editor
    store = long(editor.root, f"kernel-{times}", 300 + times)
    wanted: dict[str, str] = {}

    def note(request) -> None:
        wanted.update(
            (name, value)
            for name, value in request.headers.items()
            if name in ("marimo-session-id", "marimo-server-token")
        )

    def kernels() -> set[int]:
        return {child.pid for child in psutil.Process(editor.pid).children()}

    first = None
    for _ in range(times):
        with tab(editor, f"?run={store.path.name}") as page:
            page.on("request", note)
            if first is None:
                says(page, "status", "^stopped: 0 of")
                press(page, "compute")
            says(page, "status", "^running: [1-9]")
            first = first or lock_holder(store.path)
            wanted.clear()
            while not wanted:  # the page asks for news every so often
                page.wait_for_timeout(50)
            before = kernels()
            for what in ("interrupt", "restart_session"):
                address = f"{editor.url}api/kernel/{what}"
                assert page.request.post(address, headers=wanted, data={}).ok, what
            while before <= kernels():
                page.wait_for_timeout(50)
        assert lock_holder(store.path) == first, "the run ended with the kernel"
        done = control.progress(store).done
        answer = subprocess.run(
            [sys.executable, "-m", "fractal_core", "status", str(store.path), "--json"],
            capture_output=True,
            text=True,
            check=True,
        )
        told = json.loads(answer.stdout)
        assert told["process"] == first
        assert told["done"] >= done > 0
    assert control.stop(store.path)


def test_cancel_stops_and_compute_goes_on(app, tab):
    """The process is gone at once, and what it had committed is not touched again."""
    store = open_run(app.root / "cancelled")
    with tab(app, "?run=cancelled") as page:
        disabled(page, "cancel")
        press(page, "compute")
        says(page, "status", "^running: [1-9]")
        disabled(page, "compute")
        worker = lock_holder(store.path)
        press(page, "cancel")
        says(page, "status", "^stopped: [1-9]")
        assert lock_holder(store.path) is None
        until_gone(worker)
        kept = contents(store.path / "units")
        done = len(store.missing())
        press(page, "compute")
        says(page, "status", "^running: ")
        until(lambda: len(store.missing()) < done, "another unit")
        press(page, "cancel")
        says(page, "status", "^stopped: ")
        assert contents(store.path / "units").items() >= kept.items()
        assert len(committed(store)) == len(set(committed(store)))


def test_two_tabs_that_compute_one_view_start_one_process(app, tab):
    """Every unit is trained and committed once."""
    from playwright.sync_api import expect

    store = open_run(app.root / "shared")
    with tab(app, "?run=shared") as one, tab(app, "?run=shared") as other:
        buttons = [page.get_by_role("button", name="compute", exact=True) for page in (one, other)]
        for button in buttons:
            expect(button).to_be_enabled()
            button.hover()  # as soon as the page has come to rest
        for page in (one, other):
            page.mouse.down()
            page.mouse.up()
        for page in (one, other):
            says(page, "status", "^complete")
            shows(page, picture(store))
            says(page, "cost", "^this view: computed already")
            disabled(page, "compute", "cancel")
    assert sorted(committed(store)) == sorted(store.units)
    events = (store.path / "state" / "events.jsonl").read_text()
    assert events.count('"started"') == 1


def test_an_app_without_leave_only_looks(onlooker, tab):
    """Its buttons are grey, and no address starts or writes anything."""
    before = contents(onlooker.root)
    addresses = [
        "",
        "?preset=relu&window=published&grid=64",
        "?run=child",
        "?run=../pyproject.toml",
    ]
    for query in addresses:
        with tab(onlooker, query) as page:
            says(page, "cost", "^this view: ")
            disabled(page, "compute", "cancel", "bookmark", "forget")
    with tab(onlooker, "?run=parent") as page:
        drag(page, 0.3, 0.3, 0.5, 0.5)
        says(page, "cost", "^selection: ")
        disabled(page, "zoom in")
    assert contents(onlooker.root) == before
    started = [process.pid for process in zoom.offspring(onlooker.folder)]
    assert started == [onlooker.pid]


def test_hover_click_and_escape(app, tab):
    """Hovering reads the run's own numbers, a click draws loss curves, Escape clears."""
    from playwright.sync_api import expect

    store = open_run(app.root / "small")
    image, region = store.image(), store.sweep.region
    rows, cols = store.sweep.grid.shape
    with tab(app, "?run=small") as page:
        shows(page, picture(store))
        for x, y in ((0.303, 0.703), (0.52, 0.48), (0.9, 0.1)):
            before = page.get_by_test_id("readout").inner_text()
            page.mouse.move(*spot(page, x, y))
            expect(page.get_by_test_id("readout")).not_to_have_text(before)
            text = says(page, "readout", "measure")
            read = re.match(r"x (\S+) +y (\S+) +row (\d+) column (\d+) +measure (\S+)", text)
            at = (float(read[1]), float(read[2]))
            assert store.sweep.grid.cell(*at) == (int(read[3]), int(read[4]))
            assert region.x.fraction(np.array([at[0]])) == pytest.approx([x], abs=1 / cols)
            assert region.y.fraction(np.array([at[1]])) == pytest.approx([y], abs=1 / rows)
            value = image.measure[int(read[3]), int(read[4])]
            assert float(read[5]) == pytest.approx(value, rel=1e-4)

        page.mouse.click(*spot(page, 0.5, 0.5))
        page.locator("marimo-vega canvas, marimo-vega svg").first.wait_for()

        drag(page, 0.4, 0.4, 0.6, 0.6)
        says(page, "cost", "^selection: ")
        expect(page.get_by_role("button", name="zoom in", exact=True)).to_be_enabled()
        page.keyboard.press("Escape")
        says(page, "cost", "^this view: ")
        assert shown_region(page) == ends(region)
        disabled(page, "zoom in")
        page.set_viewport_size({"width": 900, "height": 1250})
        assert page.get_by_placeholder("name this view").bounding_box()["width"] > 100


def test_a_zoom_beyond_the_arithmetic_is_refused(app, tab):
    """The reason is said where the cost would be, and there is nothing to press."""
    before = contents(app.root / "deep")
    with tab(app, "?run=deep") as page:
        says(page, "cost", "^this view: computed already; 0.2 digits left to zoom")
        drag(page, 0.3, 0.3, 0.6, 0.6)
        says(page, "cost", "^cannot zoom there: .* units in the last place of float64 apart")
        disabled(page, "zoom in")
    assert contents(app.root / "deep") == before


def status(url: str) -> int:
    """The number of the answer to a new visitor; being sent to log in counts as 401."""
    cookies = urllib.request.HTTPCookieProcessor()
    try:
        with urllib.request.build_opener(cookies).open(url, timeout=60) as answer:
            return 401 if "login" in answer.url else answer.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_fractal_open_listens_to_this_machine_and_asks_for_a_token(tmp_path, how):
    """Without the token nothing is shown, and whatever ends it leaves no process behind."""
    port = machine.free_port()
    url = f"http://127.0.0.1:{port}/"
    with fractal_open(tmp_path, "zoom", "--port", str(port)) as (process, log):
        zoom.answers(url, process, log)
        assert status(url) == 401
        assert status(f"{url}?access_token=wrong") == 401
        said = until(lambda: re.search(r"access_token=(\S+)\n", log.read_text()), "the token")
        token = said[1]
        assert status(f"{url}?access_token={token}") == 200
        listening = {
            connection.laddr
            for member in zoom.offspring(tmp_path)
            for connection in member.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        }
        assert {address.ip for address in listening} == {"127.0.0.1"}
        arguments = [word for member in zoom.offspring(tmp_path) for word in member.cmdline()]
        assert not any(token in word for word in arguments)
        process.send_signal(how)
        assert process.wait(PATIENCE / 1000) in (0, -how)
        until(lambda: not zoom.offspring(tmp_path), "the end of what it began")
