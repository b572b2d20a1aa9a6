"""The page of single runs in a real browser."""

import numpy as np
import pytest
from serving import NOTEBOOKS, at_once, disabled, fill, opened, press, says, served
from small import QUICK, region, run
from tuning import checkpoint

from fractal_core import Store, network
from fractal_core.experiments import open_run

SINGLE = NOTEBOOKS / "single_run.py"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A map to pick points from, and a single run that has not begun."""
    root = tmp_path_factory.mktemp("prepared") / "runs"
    root.mkdir()
    run(root, "plane", region(rows=16, cols=16))
    Store.create(root / "earlier", network.sweep_of(QUICK, (1.0, 2.0), 0))
    return root


@pytest.fixture(scope="module")
def app(runs):
    with served(SINGLE, runs) as server:
        yield server


def order(page, name: str) -> None:
    """Give the run a name, and press the button."""
    set_name = page.get_by_placeholder("name (or leave it out)")
    set_name.fill(name)
    set_name.press("Tab")
    press(page, "train it")


def begin(page, name: str) -> None:
    """Order a run, and wait until its page is shown."""
    order(page, name)
    page.wait_for_url(f"**run={name}")


def seen_until_the_end(page) -> set[int]:
    """The numbers of losses that the page showed while the run went on."""
    counts = set()
    while page.get_by_test_id("state").inner_text() == "training":
        counts.add(int(page.get_by_test_id("points").get_attribute("data-points") or 0))
        page.wait_for_timeout(200)
    return counts


def test_a_tiny_network_is_seen_to_learn(app, browser, tmp_path):
    """Its curve grows on the page; the outcome has its reason, and the run its command line."""
    with opened(browser, tmp_path, app) as page:
        fill(page, "lr_input", "0.5")
        fill(page, "steps", 60_000)
        begin(page, "long")
        says(page, "state", "training")
        counts = seen_until_the_end(page)
        assert counts - {0, 1000}
        says(page, "state", "^complete$")
        says(page, "reason", r"^TRAINABLE: the mean of the last 20 losses, .* and so below it\.$")
        says(page, "points", "^1,000 losses")
        says(
            page, "command", "^fractal point runs/long --preset tanh --at 0.5 1.0 --set steps=60000"
        )
        store = open_run(app.root / "long")
        assert store.missing() == []
        assert (store.path / "single" / "result.json").exists()


def test_a_point_of_a_map_is_trained_alone(app, browser, tmp_path):
    """An address names it; its numbers are the map's, to the bit, and it joins the comparison."""
    with opened(browser, tmp_path, app, "?run=plane&x=2e5&y=3e4") as page:
        page.get_by_text("from the map plane").wait_for()
        begin(page, "picked")
        says(page, "reason", r"^DIVERGED: the loss was not finite at step \d+ of 60\.$")
        image = open_run(app.root / "plane").image()
        cell = image.grid.cell(2e5, 3e4)
        alone = open_run(app.root / "picked").image()
        assert alone.measure[0, 0] == image.measure[cell]
        assert alone.grid.x[0] == image.grid.x[cell[1]]
        page.get_by_text("lr_output=").first.wait_for()
        press(page, "choose another point")  # the click that began it is over and done with
        page.get_by_label("lr_input", exact=True).first.wait_for()


def test_a_language_model_answers_before_and_after(app, browser, tmp_path):
    """Learning rates of each group, answers to questions, and why it counts as trained or not."""
    from playwright.sync_api import expect

    model = checkpoint(tmp_path)
    with opened(browser, tmp_path, app) as page:
        page.get_by_label("experiment").select_option("matrix-unembedding")
        page.get_by_label("matrix_lr", exact=True).first.wait_for()
        page.get_by_text("All settings").click()
        with at_once(page):
            for name, value in (
                ("checkpoint", model),
                ("batch_size", 2),
                ("sequence_length", 128),
                ("window", 4),
                ("num_steps", 24),
                ("questions answered before and after", 2),
            ):
                fill(page, name, value)
            order(page, "talk")
        page.wait_for_url("**run=talk")
        earlier = page.get_by_role("row", name="earlier").get_by_role("checkbox")
        earlier.check()
        says(page, "state", "^complete$")
        says(page, "reason", r"^(UN)?TRAINABLE: the mean of the last 4 losses, ")
        says(page, "points", "^24 losses")
        page.get_by_text("before and after").first.wait_for()
        says(page, "command", "^fractal finetune runs/talk --set checkpoint=")
        curve = open_run(app.root / "talk").read(
            next(iter(open_run(app.root / "talk").units.values()))
        )
        assert np.isfinite(curve["curve"]).sum() == 24
        expect(earlier).to_be_checked()  # in a table that was made anew


def test_an_app_without_leave_trains_nothing(runs, browser, tmp_path):
    """Nothing can be begun."""
    with (
        served(SINGLE, runs, control=False) as server,
        opened(browser, tmp_path, server) as page,
    ):
        page.get_by_label("lr_input", exact=True).first.wait_for()
        disabled(page, "train it")
