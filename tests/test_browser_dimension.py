"""The notebook of dimensions in a real browser."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import NOTEBOOKS, disabled, opened, press, says, served

from fractal_core import Axis, Region, Store, Sweep, TinyNetworks, engine, findings, measuring
from fractal_core.bench.zoom import Server
from fractal_core.experiments import open_run

PLANE = Region(Axis("lr_input", 0.1, 1e3, 48), Axis("lr_output", 0.1, 1e3, 48))
SIZE = (1400, 4400)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with a finished map and one that is not begun."""
    root = tmp_path_factory.mktemp("prepared") / "runs"
    root.mkdir()
    for name, samples in (("whole", 4), ("fresh", 3)):
        experiment = TinyNetworks(width=4, samples=samples, steps=100)
        store = Store.create(root / name, Sweep.over(experiment, PLANE))
        for _ in engine.run_here(store) if name == "whole" else ():
            pass
    return root


@pytest.fixture(scope="module")
def app(runs) -> Iterator[Server]:
    with served(NOTEBOOKS / "dimension.py", runs) as server:
        yield server


def test_known_sets_come_first_and_a_run_has_its_verdict(app, browser, tmp_path):
    """One trusts the estimators before one asks them; another set and another run are chosen."""
    with opened(browser, tmp_path, app, "?run=whole", SIZE) as page:
        says(page, "known", "^Koch snowflake: true D = 1.262; fractal over")
        page.get_by_label("known set").select_option("circle")
        says(page, "known", "^circle: true D = 1.000; smooth$")
        store = open_run(app.root / "whole")
        found = findings.so_far(store, "trainable").found
        told = says(page, "verdict", "; D from boxes ")
        assert told == f"{found.verdict}; D from boxes {findings.in_words(found.box)}"
        says(page, "pairs", "^No pairs have been measured")
        says(page, "seeing", "^Nobody has looked")
        # The sidebar is there twice, once for narrow windows.
        page.get_by_label("stable", exact=True).filter(visible=True).first.click()
        found = findings.so_far(store, "stable").found
        says(page, "verdict", f"{found.box.value:.3f}" if found.box.value else "none")
        page.locator("canvas.marks, svg.marks").nth(3).wait_for()
    with opened(browser, tmp_path, app, "?run=fresh", SIZE) as page:
        says(page, "verdict", "no dimension from boxes: no point of the map is measured")
    with opened(browser, tmp_path, app, "?run=nowhere", SIZE) as page:
        page.get_by_text("nowhere is not a run folder").wait_for()
        says(page, "known", "^Koch snowflake")


def test_a_measurement_is_started_and_appears(app, browser, tmp_path):
    """It is a process of its own, which a closed tab does not end; its answer appears by itself."""
    store = open_run(app.root / "whole")
    with opened(browser, tmp_path, app, "?run=whole", SIZE) as page:
        says(page, "price", r"^at most 8,000 runs \(0 of the map, 8,000 beside it\)")
        number = page.get_by_role("textbox", name="at most so many runs")
        number.fill("2500")
        number.press("Enter")
        says(page, "price", "^at most 2,500 runs")
        press(page, "measure pairs")
        says(page, "measuring", "^pairs is (being )?measured")
    process = measuring.last(store.path).process
    with opened(browser, tmp_path, app, "?run=whole", SIZE) as page:
        assert measuring.last(store.path).process in (process, None)
        says(page, "pairs", "; D from pairs ")
        says(page, "measuring", r"^pairs is measured: [\d,]+ runs trained$")
        found = findings.kept(store, "trainable")
        assert found.request.runs == 2500
        says(page, "pairs", f"^{found.verdict.kind}|^indistinguishable")
        press(page, "measure seeing")
        says(page, "seeing", "48 different values of x in 48 cells")


def test_without_leave_one_only_looks(runs, browser, tmp_path):
    """Everything that starts or stops is grey."""
    with (
        served(NOTEBOOKS / "dimension.py", runs, control=False) as server,
        opened(browser, tmp_path, server, "?run=whole", SIZE) as page,
    ):
        says(page, "price", "^at most 8,000 runs")
        disabled(page, "measure pairs", "measure seeing", "stop")
