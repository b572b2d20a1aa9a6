"""The sweep notebook in a real browser: begun, left alone, found again, looked at closer."""

import re

import mischief
import numpy as np
import pytest
from serving import NOTEBOOKS, at_once, disabled, fill, opened, press, says, served
from small import region, run

from fractal_core import Store, duty
from fractal_core.bench.zoom import drag
from fractal_core.experiments import open_run

SWEEP = NOTEBOOKS / "sweep.py"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished map, `parent`, and one of which some units fail, `broken`."""
    root = tmp_path_factory.mktemp("prepared") / "runs"
    root.mkdir()
    run(root, "parent", region(rows=48, cols=48))
    mischief.make(root / "broken", 16, 16, block=4)
    return root


@pytest.fixture(scope="module")
def app(runs, laboratory):
    """An app that may start and stop runs, and whose workers know how to fail."""
    with served(SWEEP, runs) as server:
        yield server


def events(store: Store) -> list[dict]:
    return duty.read_events(store.path)


def restart_kernel(page) -> None:
    """By the editor's own menu."""
    page.get_by_test_id("notebook-menu-dropdown").click()
    page.get_by_role("menuitem", name="Restart kernel").click()
    page.get_by_role("button", name="Confirm Restart").click()


def test_a_sweep_outlives_its_kernel(runs, browser, tmp_path):
    """Begun in the editor, it goes on while the kernel restarts, and the page finds it again."""
    with served(SWEEP, runs, "edit") as server, opened(browser, tmp_path, server) as page:
        says(page, "cost", "^16,384 runs, (about|under) .* digits left to zoom")
        before = set(server.root.iterdir())
        for label, value in (("columns", 48), ("rows", 48), ("steps", 1200)):
            fill(page, label, value)
        fill(page, "x to", "1e-4")
        says(page, "cost", "cannot be done: axis lr_input: the lower end .* below the upper end")
        press(page, "start the sweep")
        page.get_by_text(re.compile("^axis lr_input: the lower end ")).wait_for()
        fill(page, "x to", "1e6")
        says(page, "cost", "^2,304 runs")
        assert set(server.root.iterdir()) == before
        page.get_by_placeholder("name (or leave it out)").fill("mine")
        page.get_by_placeholder("name (or leave it out)").press("Tab")
        press(page, "start the sweep")
        page.wait_for_url("**run=mine*")
        says(page, "state", "^running$")
        store = open_run(server.root / "mine")
        holder = duty.lock_holder(store.path)
        restart_kernel(page)
        says(page, "state", "^(running|complete)$")
        assert "run=mine" in page.url
        assert duty.lock_holder(store.path) in (holder, None)
        says(page, "state", "^complete$")
        says(page, "done", "^2,304 of 2,304 runs")
        committed = [event["unit"] for event in events(store) if event["event"] == "committed"]
        assert sorted(committed) == sorted(store.units)
        assert [event["event"] for event in events(store)].count("started") == 1


def test_what_is_typed_while_the_kernel_is_busy_counts(app, browser, tmp_path):
    """Several fields and the click after them, handed over as one."""
    with opened(browser, tmp_path, app) as page:
        says(page, "cost", "^16,384 runs")
        with at_once(page):
            for label, value in (("columns", 6), ("rows", 4), ("steps", 30), ("x to", "1e5")):
                fill(page, label, value)
        says(page, "cost", "^24 runs")
        with at_once(page):
            fill(page, "columns", 5)
            fill(page, "x from", "0.5")
            page.get_by_placeholder("name (or leave it out)").fill("quick")
            page.get_by_placeholder("name (or leave it out)").press("Tab")
            press(page, "start the sweep")
        page.wait_for_url("**run=quick*")
        sweep = open_run(app.root / "quick").sweep
        assert sweep.grid.shape == (4, 5)
        assert (sweep.region.x.low, sweep.region.x.high) == (0.5, 1e5)
        assert sweep.experiment.steps == 30
        says(page, "state", "^complete$")
        press(page, "plan a new sweep")  # the click that began it is over and done with
        says(page, "cost", "^20 runs")


def test_a_rectangle_is_swept_closer(app, browser, tmp_path):
    """Dragged, costed, begun on a grid of its own; the address leads to it and back."""
    with opened(browser, tmp_path, app, "?run=parent") as page:
        page.locator("[data-testid=map][data-frames]").wait_for()
        says(page, "state", "^complete$")
        disabled(page, "sweep the rectangle")
        dragged, pixel = drag(page, 0.3, 0.35, 0.7, 0.75)
        says(page, "selection", "^2,304 runs, (about|under) .* digits left to zoom")
        fill(page, "columns", 24)
        fill(page, "rows", 16)
        says(page, "selection", "^384 runs")
        press(page, "sweep the rectangle")
        page.wait_for_url(lambda url: "run=parent-" in url or not url.endswith("run=parent"))
        says(page, "state", "^complete$")
        says(page, "done", "^384 of 384 runs")
        child = open_run(app.root / page.url.partition("run=")[2])
        whole = open_run(app.root / "parent").sweep.region
        assert child.sweep.grid.shape == (16, 24)
        for axis, inner, places in (
            (whole.x, child.sweep.region.x, dragged[::2]),
            (whole.y, child.sweep.region.y, dragged[1::2]),
        ):
            found = axis.fraction(np.array([inner.low, inner.high]))
            assert found == pytest.approx(places, abs=pixel)
        page.get_by_role("link", name="parent", exact=True).click()
        page.wait_for_url("**run=parent")
        says(page, "done", "^2,304 of 2,304 runs")


def test_a_failure_shows_its_cause_and_what_was_said_last(app, browser, tmp_path):
    """Units that failed alike are one row; once the cause is gone the run is resumed to its end."""
    store = open_run(app.root / "broken")
    bad = [unit for unit in store.units.values() if unit.level == 0][:2]
    for number, unit in enumerate(bad):
        mischief.tell(store, f"fail the disk of room {17 + number} is gone", unit)
    with opened(browser, tmp_path, app, "?run=broken") as page:
        says(page, "state", "^not begun$")
        press(page, "resume")
        says(page, "failed", "^2 units failed")
        says(page, "state", "^stopped$")
        says(page, "failures", r"RuntimeError: the disk of room 1\d is gone")
        log = says(page, "log-tail", "Traceback")
        assert re.search(r"the disk of room 1\d is gone", log)
        assert page.get_by_test_id("log-tail").count() == 1
        mischief.forget(store)
        press(page, "resume")
        says(page, "state", "^complete$")
        says(page, "failed", "^0 units failed")
        page.get_by_test_id("failures").wait_for(state="detached")


def test_a_run_is_stopped_and_goes_on(app, browser, tmp_path):
    """Another tab sees the same; what was finished stays."""
    from playwright.sync_api import expect

    store = mischief.make(app.root / "slow", 16, 16, block=4)
    mischief.tell(store, "wait go")
    with opened(browser, tmp_path, app, "?run=slow") as page:
        # Not before the buttons beside it have been made anew for what the run is.
        expect(page.get_by_role("button", name="resume", exact=True)).to_be_enabled()
        fill(page, "workers on each", 2)
        press(page, "resume")
        says(page, "state", "^running$")
        says(page, "slots", r"L\d-\d")
        with opened(browser, tmp_path, app, "?run=slow") as other:
            says(other, "state", "^running$")
            press(other, "stop")
            says(other, "state", "^stopping$")
            mischief.go(store)
            says(other, "state", "^stopped$")
        says(page, "state", "^stopped$")
        assert 0 < len(store.missing()) < len(store.units)
        mischief.forget(store)
        press(page, "resume")
        says(page, "state", "^complete$")
        committed = [event["unit"] for event in events(store) if event["event"] == "committed"]
        assert sorted(committed) == sorted(store.units)


def test_an_app_without_leave_only_looks(runs, browser, tmp_path):
    """Costs are shown; nothing can be begun, stopped or resumed."""
    with served(SWEEP, runs, control=False) as server:
        with opened(browser, tmp_path, server) as page:
            says(page, "cost", "^16,384 runs")
            disabled(page, "start the sweep")
        with opened(browser, tmp_path, server, "?run=broken") as page:
            says(page, "state", "^(not begun|stopped)$")
            disabled(page, "resume", "stop")
