"""The notebook of the stages in a real browser."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect
from serving import NOTEBOOKS, at_once, disabled, fill, opened, press, says, served

from fractal_core import stages
from fractal_core.bench.zoom import Server

NOTEBOOK = NOTEBOOKS / "pipeline.py"


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A base folder in which three stages are complete."""
    root = tmp_path_factory.mktemp("prepared") / "runs"
    folder = root / "lm"
    (folder / "metrics").mkdir(parents=True)
    (folder / "report").mkdir()
    planned = {stage.name: stage for stage in stages.plan("smoke")}
    done = {
        name: {"flags": list(planned[name].flags), "seconds": 3.5}
        for name in ("texts", "tokenizer", "base")
    }
    (folder / "speedrun.json").write_text(json.dumps(done))
    lines = [json.dumps({"step": n, "train/loss": 6 / (n + 1)}) + "\n" for n in range(50)]
    (folder / "metrics" / "base.1.jsonl").write_text("".join(lines))
    (folder / "report" / "report.md").write_text("# Report of a run\n\n- kinds_acc: 0.5\n")
    return root


@pytest.fixture(scope="module")
def app(runs) -> Iterator[Server]:
    with served(NOTEBOOK, runs) as server:
        yield server


def test_the_stages_of_a_folder_are_watched_and_one_is_run(app, browser, tmp_path):
    """What is on disk is shown; the real first stage is begun from the page, and seen to end."""
    with opened(browser, tmp_path, app) as page:
        says(page, "stage-base", "done.*3.5 s.*49.*training loss 0.1200")
        says(page, "stage-mid", "not begun")
        page.locator("marimo-vega canvas, marimo-vega svg").first.wait_for()
        page.get_by_role("button", name="Report card").click()
        page.get_by_role("region", name="Report card").get_by_text("kinds_acc: 0.5").wait_for()
        disabled(page, "stop")
        page.get_by_label("or one stage again:").select_option("texts")
        press(page, "this one")
        says(page, "state", "running|done")
        says(page, "state", "done")
        says(page, "stage-texts", "done")
        says(page, "log", "--- texts")
    assert list((app.root / "lm").glob("base_data/*.parquet"))


def test_a_stage_begins_in_the_folder_that_was_just_named(app, browser, tmp_path):
    """And in no other, though the page has not turned to it when the click arrives."""
    with opened(browser, tmp_path, app, "?base=runs/first") as page:
        says(page, "state", "nothing was begun")
        page.get_by_label("or one stage again:").select_option("texts")
        with at_once(page):
            fill(page, "folder", "runs/second")
            press(page, "this one")
        page.wait_for_url("**base=runs*second")
        says(page, "state", "running|done")
    assert not (app.root / "first").exists()


def test_the_calculators_answer_at_once(app, browser, tmp_path):
    """Another depth is another size; another text is spelled in other tokens."""
    with opened(browser, tmp_path, app, "?base=runs/empty") as page:
        says(page, "state", "nothing was begun")
        first = says(page, "size", "560,988,160")
        depth = page.get_by_role("slider").first
        depth.focus()
        page.keyboard.press("ArrowRight")
        expect(page.get_by_test_id("size")).not_to_have_text(re.compile("560,988,160"))
        assert page.get_by_test_id("size").inner_text() != first
        before = page.get_by_test_id("tokens").inner_text()
        area = page.get_by_label("text", exact=True)
        area.fill("gulls gulls")
        area.blur()
        says(page, "packing", "11 characters, 11 bytes")
        assert page.get_by_test_id("tokens").inner_text() != before
    assert not (app.root / "empty").exists()


def test_who_may_only_look_starts_nothing(runs, browser, tmp_path):
    """The buttons are grey, and say why."""
    with (
        served(NOTEBOOK, runs, control=False) as server,
        opened(browser, tmp_path, server) as page,
    ):
        says(page, "stage-base", "done")
        disabled(page, "go on", "this one", "stop")
