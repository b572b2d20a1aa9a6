"""What the page of a sweep shows and does, without the page."""

import json
import os
import shutil

import mischief
import pytest
from small import QUICK, region, run

from fractal_core import (
    Refused,
    Sweep,
    control,
    duty,
    explore,
    planner,
    watching,
)
from fractal_core.engine import run_here
from fractal_core.machine import Slot

REGION = region()


@pytest.fixture
def begun(monkeypatch):
    """What would have been started."""
    asked = []
    monkeypatch.setattr(
        control, "start_detached", lambda path, options=(): asked.append((path.name, [*options]))
    )
    return asked


def finished(root, name="whole"):
    return run(root, name, REGION)


def test_a_sweep_is_begun_once_per_recipe(tmp_path, begun):
    """By its recipe, or by a name; its devices are passed on."""
    sweep = Sweep.over(QUICK, REGION)
    options = planner.options(["cpu"], 2)
    name = watching.begin(tmp_path, "", "tanh", sweep, options)
    assert name == f"tanh-{sweep.id[:8]}"
    assert watching.begin(tmp_path, "", "tanh", sweep, []) == name
    assert watching.begin(tmp_path, " mine ", "tanh", sweep, []) == "mine"
    assert begun == [(name, ["--slots", "2", "--devices", "cpu"]), (name, []), ("mine", [])]
    with pytest.raises(Refused, match="not the name of a run"):
        watching.begin(tmp_path, "../mine", "tanh", sweep, [])
    with pytest.raises(Refused, match="holds another recipe"):
        watching.begin(tmp_path, "mine", "tanh", Sweep.over(QUICK, REGION, 1), [])


def test_a_rectangle_becomes_a_sweep_that_knows_its_parent(tmp_path, begun):
    """On a grid of its own; where neighbours could not be told apart, it is refused."""
    finished(tmp_path)
    view = explore.open_view(tmp_path, "whole")
    inner = explore.inside(view, [0.1, 10.0, 1.0, 100.0], 4, 6)
    assert inner.grid.shape == (4, 6)
    name = watching.begin(tmp_path, "", explore.label_of("whole"), inner, [], "whole")
    assert explore.open_view(tmp_path, name).parent == tmp_path / "whole"
    assert name.startswith("whole-")
    with pytest.raises(Refused, match="last place"):
        explore.inside(view, [1.0, 1.0 + 1e-15, 1.0, 2.0], 16, 16)


def test_failures_are_grouped_by_cause(tmp_path):
    """Numbers aside; the largest group first, with the words of its last unit."""
    store = mischief.make(tmp_path / "run", 8, 8, block=2)
    units = list(store.units.values())
    store.fail(units[0], "RuntimeError: room 17", 1, "early")
    store.fail(units[2], "out of memory", 5, "no room")
    store.fail(units[1], "RuntimeError: room 18", 1, "late")
    first, second = control.failures(store)
    assert first.units == tuple(sorted(unit.key for unit in units[:2]))
    assert (first.log, first.exit_code) == ("late", 1)
    assert (second.cause, second.exit_code) == ("out of memory", 5)
    table = watching.failure_table((first, second))
    assert table["units"].tolist() == [2, 1]


def test_a_glance_says_how_far_and_who(tmp_path):
    """Not begun, running with what each slot does, stopping, stopped, complete."""
    store, meter = mischief.make(tmp_path / "run", 8, 8, block=4), watching.Meter()
    assert watching.glance(store, meter).state == "not begun"
    slot = {"index": 0, "device": "cpu", "process": os.getpid(), "unit": "L3-0", "since": 0.0}
    status = {"process": os.getpid(), "points_per_second": 0.5, "seconds_remaining": 90.0}
    status |= {"slots": [slot], "stopping": False}
    with duty.lock(store.path) as journal:
        journal.status(**status)
        now = watching.glance(store, meter)
        assert (now.state, now.rate, now.left) == ("running", "2 s per point", "about 90 s")
        assert now.slots["CPU"].tolist() == ["-"]
        now = watching.glance(store, meter)
        assert now.slots["CPU"].tolist()[0].endswith(" %")
        assert now.slots["unit"].tolist() == ["L3-0"]
        journal.status(**status | {"stopping": True})
        assert watching.glance(store, meter).state == "stopping"
        # What a process that is gone has said is not what the next one does.
        journal.status(**status | {"stopping": True, "process": 1})
        assert watching.glance(store, meter).state == "running"
    running = run_here(store)
    next(running)
    running.close()
    half = watching.glance(store, meter)
    assert half.state == "stopped"
    assert 0 < half.done < half.total == 64
    for _ in run_here(store):
        pass
    whole = watching.glance(store, meter)
    assert (whole.state, whole.done, len(whole.slots)) == ("complete", 64, 0)
    assert "64 of 64 runs" in watching.headline(whole)
    shutil.rmtree(store.path)
    assert watching.glance(store, meter).state == "gone"  # and not one that can be begun


def test_stopping_asks_whoever_works(tmp_path, monkeypatch):
    """Once, and by name; one on another machine cannot be asked."""
    store = mischief.make(tmp_path / "run", 8, 8)
    control.ask_to_stop(store.path)
    asked = []
    monkeypatch.setattr(control.os, "kill", lambda pid, how: asked.append(pid))
    with duty.lock(store.path):
        control.ask_to_stop(store.path)
        assert asked == [os.getpid()]
        (store.path / "state" / "lock").write_text(json.dumps({"pid": 1, "created": 0.0}))
        with pytest.raises(Refused, match="elsewhere"):
            control.ask_to_stop(store.path)


def test_a_heading_is_text(tmp_path):
    """The name of a folder is never markup, whoever chose it."""
    view = explore.View(Sweep.over(QUICK, REGION), tmp_path / "[a](b) <img src=x>", None)
    said = watching.heading(tmp_path, view)
    assert said.startswith("<div>")
    assert "<img" not in said


def test_words_for_costs_and_recipes(tmp_path):
    """What a person reads before and after pressing the button."""
    places = [Slot(0, "cuda:0", 1), Slot(1, "cuda:1", 1)]
    words = watching.cost_in_words(planner.Cost(64, None, float("inf"), float("inf"), ()), places)
    assert words.startswith("64 runs, no run like these was timed here yet with 2 workers")
    assert "1 on cuda:0 and 1 on cuda:1" in words
    assert watching.recipe_in_words(Sweep.over(QUICK, REGION)) == (
        "TinyNetworks (tanh), 16 x 24 points, 60 steps"
    )
    view = explore.View(Sweep.over(QUICK, REGION), tmp_path / "one", None)
    assert "?run=one&x=0.5&y=2.0" in watching.lone_point(view, 0.5, 2.0)


def test_a_form_is_answered_with_a_plan_or_a_reason(tmp_path):
    """Its cost on the devices that were chosen, or one sentence."""

    plane = {"x from": "0.1", "x to": "10", "x scale": "log10", "columns": 6, "seed": 1}
    plane |= {"y from": "-1", "y to": "1", "y scale": "linear", "rows": 4}
    settings = {"steps": "50", "samples": "8", "arrays": "seeded"}

    def chosen(plane: dict) -> Sweep:
        return planner.chosen("tanh", ("lr", "offset"), plane, settings)

    def price(plane: dict, device: str = "cpu") -> tuple[str, tuple[str, ...]]:
        return watching.price(tmp_path, lambda: chosen(plane), ([device], 0))

    sweep = chosen(plane)
    assert sweep.grid.shape == (4, 6)
    assert (sweep.seed, sweep.experiment.steps, sweep.region.y.scale) == (1, 50, "linear")
    words, notes = price(plane)
    assert words.startswith("24 runs, ")
    assert notes == ()
    for wrong, reason in (
        ({"x to": "much"}, "'much' is not a number"),
        ({"y scale": "log10"}, "positive lower end"),
        ({"rows": None}, "rows: write a whole number"),
    ):
        words, notes = price(plane | wrong)
        assert words.startswith("cannot be done: ")
        assert reason in words
        assert notes == ()
    assert "cuda:99 is not on this machine" in price(plane, "cuda:99")[0]


def test_a_selection_is_answered_with_a_sweep_or_words(tmp_path):
    """Nothing, a point, a rectangle, or one that is too small."""
    finished(tmp_path)
    view, crew = explore.open_view(tmp_path, "whole"), ([], 0)
    for box, point, words in (
        ([], [], "Drag a rectangle"),
        ([], [0.5, 2.0], "?run=whole&x=0.5&y=2.0"),
        ([1.0, 1.0 + 1e-15, 1.0, 2.0], [], "cannot be done: "),
        ([0.1, 10.0, 1.0, 100.0], [], "80 runs, "),
    ):
        said = watching.selected(
            tmp_path, view, box, point, lambda box=box: explore.inside(view, box, None, 5), crew
        )
        assert words in said[0]
