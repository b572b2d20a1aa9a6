"""The zoom notebook on sweeps that fine-tune a language model, in a real browser."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from serving import disabled, opened, press, says, served
from tuning import plane

from fractal_core import sight
from fractal_core.bench import zoom
from fractal_core.bench.zoom import Server, drag, spot
from fractal_core.experiments import open_run, read_run
from fractal_core.sweep import canonical


@pytest.fixture(scope="module")
def made(tmp_path_factory, storage) -> Path:
    """Two maps of fine-tuning runs: a finished one, and one that is begun."""
    folder = tmp_path_factory.mktemp("tuned")
    plane(folder / "model", folder / "runs" / "plane")
    plane(folder / "model", folder / "runs" / "begun", seed=1, units=3)
    return folder


@pytest.fixture(scope="module")
def app(made) -> Iterator[Server]:
    with served(zoom.NOTEBOOK, made / "runs") as server:
        yield server


def settled(page) -> None:
    """Wait until the map stands where it will stand: what is above it grows as it appears."""
    says(page, "status", "^complete: 16 of 16 runs")
    says(page, "cost", "^this view: computed already")
    page.locator("[data-testid=map][data-frames]").wait_for()


def test_a_finished_sweep_is_looked_at_and_zoomed(app, browser, tmp_path):
    """Its curve is the committed one, its cost that of its own runs, and a zoom trains."""
    with opened(browser, tmp_path, app, "?run=plane") as page:
        settled(page)
        page.mouse.click(*spot(page, 0.3, 0.6))
        page.locator("marimo-vega canvas, marimo-vega svg").first.wait_for()
        drag(page, 0.02, 0.1, 0.3, 0.6)
        says(
            page,
            "cost",
            "^selection: 16 runs, (about|under) .* on this machine; .* digits left to zoom$",
        )
        press(page, "zoom in")
        page.wait_for_url(lambda url: not url.endswith("run=plane"))
        child = open_run(app.root / page.url.partition("run=")[2])
        assert json.loads((child.path / "origin.json").read_text()) == {"parent": "plane"}
        page.wait_for_function("seen.some((note) => note.map > 1)")  # the parent is complete, too
        says(page, "status", "^complete: 16 of 16")
        assert child.missing() == []


def test_a_sweep_that_is_begun_goes_on(app, browser, tmp_path):
    """It is chosen among the runs; a point that is not there has no curve until it is trained."""
    with opened(browser, tmp_path, app, "?run=plane") as page:
        settled(page)
        page.get_by_test_id("marimo-plugin-searchable-dropdown").click()
        page.get_by_role("option", name="begun").click()
        page.wait_for_url("**/?run=begun")
        store = read_run(app.root / "begun")
        grid = store.sweep.grid
        says(page, "status", "^stopped: 3 of 16 runs")
        says(page, "cost", "^this view: 13 runs, (about|under) ")
        row, col = np.argwhere(store.image().outcome.mask)[0]
        x, y = ((col + 0.5) / len(grid.x), (row + 0.5) / len(grid.y))
        page.mouse.click(*spot(page, x, y))
        page.get_by_text("That point is not trained yet.").wait_for()
        press(page, "compute")
        says(page, "status", "^complete: 16 of 16")


def test_what_seeing_found_is_asked_before_a_zoom(app, browser, tmp_path):
    """A zoom into rounding has a reason where the cost would be, and no button."""
    parent = read_run(app.root / "plane")
    seen = {"flips": 40, "pairs": 100}
    told = {"rerun": seen | {"flips": 0}, "ulp": seen, "dtype": None, "neighbours": seen}
    rest = {"pitch": 1e5, "values": (4, 4), "cells": (4, 4), "boundary": True}
    text = canonical({"sweep": parent.sweep.id, **told, **rest})
    parent.files.put_latest(sight.KEPT, text.encode())
    try:
        with opened(browser, tmp_path, app, "?run=plane") as page:
            settled(page)
            drag(page, 0.3, 0.3, 0.6, 0.6)
            says(page, "cost", "^cannot zoom there: one unit in the last place flips 40 of 100")
            disabled(page, "zoom in")
    finally:
        parent.files.drop(sight.KEPT)
