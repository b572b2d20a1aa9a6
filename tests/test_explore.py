"""The zoom notebook without the notebook."""

import importlib
import io
import os
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from PIL import Image as Picture
from small import region
from waiting import until

from fractal_core import (
    Axis,
    Outcome,
    Refused,
    Region,
    Store,
    Sweep,
    TinyNetworks,
    control,
    explore,
    portrait,
    sight,
    warm,
)
from fractal_core.engine import run_here
from fractal_core.explore import View, address, from_address, open_view, zoomed
from fractal_core.figures import paint
from fractal_core.store import Image
from fractal_core.sweep import canonical

SMALL = TinyNetworks(samples=8, steps=40)
REGION = region()
NOTEBOOKS = Path(explore.__file__).parents[1] / "notebooks"


@pytest.fixture
def root(tmp_path) -> Path:
    """A folder with one finished run, `whole`."""
    store = Store.create(tmp_path / "whole", Sweep.over(SMALL, REGION), block=8)
    for _ in run_here(store):
        pass
    return tmp_path


def test_an_address_leads_back_to_its_view(root):
    """A run by its name, and a view that nobody has computed by its recipe."""
    whole = open_view(root, "whole")
    assert from_address(root, address(whole)).sweep.id == whole.sweep.id
    fresh = from_address(root, {"preset": "relu", "x": "0.1,10", "y": "1,100", "grid": "32"})
    assert fresh.store is None
    assert (fresh.sweep.region.x.low, fresh.sweep.region.x.high) == (0.1, 10.0)
    assert from_address(root, address(fresh, "relu")).sweep.id == fresh.sweep.id


def test_looking_writes_nothing(root):
    """Opening views, asking for costs and pictures leaves the folder as it was."""
    before = sorted(root.rglob("*"))
    view = from_address(root, {})
    explore.cost(zoomed(root, open_view(root, "whole"), [0.1, 10.0, 0.1, 10.0]))
    portrait.compose(view, None)
    portrait.widget(root, view)
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize(
    "query",
    [
        {"run": "../whole"},
        {"run": ".hidden"},
        {"run": "nowhere"},
        {"preset": "tnah"},
        {"preset": "tanh", "x": "1"},
        {"preset": "tanh", "x": "10,1"},
        {"preset": "tanh", "grid": "many"},
        {"preset": "tanh", "grid": "16384"},
        {"preset": "tanh", "grid": "0"},
        {"preset": "tanh", "steps": "1000000000"},
        {"preset": "tanh", "x": ["1,2", "3,4"]},
        {"preset": "tanh", "x": "1,1.0000000000000004"},
    ],
)
def test_an_address_that_names_nothing_is_refused(root, query):
    """No path out of the folder, no half-read numbers."""
    with pytest.raises(Refused):
        from_address(root, query)


@pytest.mark.parametrize(
    ("name", "says"),
    [("", "not the name"), ("  ", "not the name"), ("a\nb", "not the name"), ("é" * 101, "200")],
)
def test_what_names_no_folder_is_refused(name, says):
    """In a sentence, and not in the words of the disk; letters of any language are fine."""
    assert explore.require_name("Küste-1 ほ") == "Küste-1 ほ"
    with pytest.raises(Refused, match=says):
        explore.require_name(name)


def test_the_same_recipe_is_the_same_run(root):
    """However one comes to a rectangle, its folder is found again."""
    whole = open_view(root, "whole")
    box = [0.1, 10.0, 1.0, 100.0]
    one = zoomed(root, whole, box)
    assert one.store is None
    Store.create(one.path, one.sweep)
    again = zoomed(root, whole, [box[1], box[0], box[3], box[2]])
    assert again.path == one.path
    assert again.store is not None


def test_a_zoom_remembers_where_it_came_from(root, monkeypatch):
    """Back leads to the parent, and the parent outlines the child."""
    monkeypatch.setattr(control, "start_detached", lambda path, options: 1)
    whole = open_view(root, "whole")
    begun = explore.begin(zoomed(root, whole, [0.1, 10.0, 1.0, 100.0]))
    assert open_view(root, begun.name).parent == whole.path
    assert explore.children(root, whole) == [(begun.name, begun.sweep.region)]


@pytest.mark.parametrize("told", ['{"parent": "in/deep"}', '{"parent": 5}', '{"parent": ""}', "[]"])
def test_no_parent_lies_outside_of_the_folder(root, told):
    """Whatever a run folder that came from elsewhere says of where it came from."""
    (root / "in" / "deep").mkdir(parents=True)
    (root / "in" / "deep" / "sweep.json").write_text("{}")
    (root / "whole" / "origin.json").write_text(told)
    assert open_view(root, "whole").parent is None


def test_bookmarks_of_two_tabs_are_all_kept(root):
    """Those that both set at the same time."""
    tabs = [
        threading.Thread(
            target=lambda n=n: [explore.bookmark(root, f"{n}-{k}", "whole") for k in range(20)]
        )
        for n in range(4)
    ]
    for tab in tabs:
        tab.start()
    for tab in tabs:
        tab.join()
    assert len(explore.bookmarks(root)) == 80


def test_what_a_rectangle_takes_is_said_as_text(root):
    """The name of a folder is never markup, whoever chose it."""
    whole = open_view(root, "whole")

    def asked(view, box):
        inner, trouble = portrait.selected(root, view, box)
        return inner, portrait.price(view, inner, trouble)

    inner, words = asked(whole, [1e-2, 1e3, 1e-1, 1e4])
    assert inner.sweep.id == zoomed(root, whole, [1e-2, 1e3, 1e-1, 1e4]).sweep.id
    assert "selection: 384 runs" in words
    assert "this view: computed already" in asked(whole, [])[1]
    (root / "whole").rename(root / "<img src=x>")
    foreign = open_view(root, "<img src=x>")
    seen = {"flips": 60, "pairs": 100}
    told = {name: seen for name in ("rerun", "ulp", "neighbours")} | {"dtype": None}
    rest = {"pitch": 1e13, "values": (24, 16), "cells": (24, 16), "boundary": True}
    text = canonical({"sweep": foreign.sweep.id, **told, **rest})
    foreign.store.files.put_latest(sight.KEPT, text.encode())
    inner, words = asked(foreign, [1.0, 1.0 + 1e-9, 1.0, 1.0 + 1e-9])
    assert inner is None
    assert "cannot zoom there" in words
    assert "<img" not in words


def test_a_finished_view_is_not_started_again(root, monkeypatch):
    """Opening it again computes nothing."""
    monkeypatch.setattr(control, "start_detached", lambda path, options: pytest.fail("started"))
    explore.begin(open_view(root, "whole"))


def test_a_picture_takes_the_parent_until_its_own_points_come(root):
    """First the parent's cells, then each level over the coarser ones, then only its own."""
    whole = open_view(root, "whole")
    inner = zoomed(root, whole, [1e-2, 1e3, 1e-1, 1e4])
    scaled = portrait.compose(inner, whole)
    assert not scaled.measure.mask.any()
    rows, cols = inner.sweep.grid.shape
    for row, col in [(0, 0), (rows - 1, 0), (3, cols - 1)]:
        point = float(inner.sweep.grid.x[col]), float(inner.sweep.grid.y[row])
        there = whole.sweep.grid.cell(*point)
        assert scaled.measure[row, col] == whole.store.image().measure[there]
    store = Store.create(inner.path, inner.sweep, block=8)
    inner = replace(inner, store=store)
    running = run_here(store)
    while {unit.level for unit in store.missing()} & {3, 2}:
        next(running)
    middle, own = portrait.compose(inner, whole), store.image()
    assert own.measure.mask.any()
    assert not middle.measure.mask.any()
    assert middle.measure[5, 6] == own.measure[4, 4]
    assert np.all(middle.measure[~own.measure.mask] == own.measure[~own.measure.mask])
    for _ in running:
        pass
    assert np.array_equal(portrait.compose(inner, whole).measure, store.image().measure)


def test_without_a_parent_unknown_cells_stay_missing(root):
    """Grey, not guessed."""
    view = from_address(root, {})
    assert portrait.compose(view, None).outcome.mask.all()


def test_cost_counts_what_is_missing(root):
    """All of a fresh view, nothing of a finished one; digits shrink as one zooms."""
    whole = open_view(root, "whole")
    assert explore.cost(whole).runs == 0
    assert "computed already" in str(explore.cost(whole))
    inner = zoomed(root, whole, [1.0, 1.001, 1.0, 1.001])
    cost = explore.cost(inner, like=whole)
    assert cost.runs == 16 * 24
    assert cost.seconds == pytest.approx(16 * 24 * whole.store.image().seconds.mean())
    assert cost.digits == pytest.approx(explore.cost(whole).digits - 3, abs=1.2)
    assert explore.cost(inner).seconds > 0


def test_a_zoom_past_the_arithmetic_is_refused(root):
    """With the reason."""
    whole = open_view(root, "whole")
    with pytest.raises(Refused, match="last place"):
        zoomed(root, whole, [1.0, 1.0 + 20 * np.spacing(1.0), 1.0, 2.0])


def test_a_zoom_into_what_was_seen_to_be_rounding_is_refused(root):
    """As on the command line; before anybody looked, nothing is."""
    whole = open_view(root, "whole")
    box = [1.0, 1.0 + 2e5 * np.spacing(1.0), 1.0, 1.0 + 2e5 * np.spacing(1.0)]
    assert zoomed(root, whole, box).store is None
    seen = {"flips": 60, "pairs": 100}
    told = {"rerun": seen | {"flips": 0}, "ulp": seen, "dtype": None, "neighbours": seen}
    rest = {"pitch": 1e13, "values": (24, 16), "cells": (24, 16), "boundary": True}
    text = canonical({"sweep": whole.sweep.id, **told, **rest})
    whole.store.files.put_latest(sight.KEPT, text.encode())
    with pytest.raises(Refused, match="one unit in the last place flips 60 of 100"):
        zoomed(root, whole, box)


def test_a_single_run_is_no_map(root):
    """It lies beside the maps, and is told apart."""
    point = Region(*(Axis(name, 1.0, 1.0, 1, "linear", integer=True) for name in SMALL.axes))
    Store.create(root / "alone", Sweep.over(SMALL, point))
    with pytest.raises(Refused, match="alone is a single run"):
        open_view(root, "alone")
    (root / "torn").mkdir()
    (root / "torn" / "sweep.json").write_text("{")
    assert set(explore.runs(root)) == {"whole", "alone", "torn"}
    assert explore.maps(root) == ["whole"]


def test_curves_are_those_of_the_sweep(root):
    """The clicked point and its eight neighbours, fewer at a corner; the same outcomes."""
    whole = open_view(root, "whole")
    image = whole.store.image()
    x, y = float(whole.sweep.grid.x[5]), float(whole.sweep.grid.y[7])
    frame = portrait.curves(whole, x, y)
    assert set(frame.run) == {
        "here", "north", "north-east", "east", "south-east", "south", "south-west", "west",
        "north-west",
    }  # fmt: skip
    here = frame[frame.run == "here"]
    assert len(here) == SMALL.steps
    assert here.loss.iloc[0] == image.first_loss[7, 5]
    north = frame[frame.run == "north"].outcome.iloc[0]
    assert north == Outcome(image.outcome[8, 5]).name
    corner = portrait.curves(whole, 1e-3, 1e-3)
    assert set(corner.run) == {"here", "north", "north-east", "east"}


def test_the_widget_shows_the_run(root):
    """One PNG pixel per cell, row 0 at the bottom, values for hovering with nan for missing."""
    whole = open_view(root, "whole")
    canvas = portrait.widget(root, whole)
    portrait.keep_painted(canvas, root, whole)
    image = whole.store.image()
    shown = np.asarray(Picture.open(io.BytesIO(canvas.png)))
    np.testing.assert_array_equal(shown, paint(image)[::-1])
    values = np.frombuffer(canvas.values, "<f8").reshape(16, 24)
    np.testing.assert_array_equal(values, image.measure)
    assert canvas.status["text"].startswith("complete")
    assert (canvas.shape, canvas.xaxis["low"], canvas.yaxis["high"]) == ([16, 24], 1e-3, 1e6)


@pytest.mark.parametrize("quantity", ["measure", "outcome", "final_loss", "steps"])
def test_every_quantity_can_be_painted(root, quantity):
    """Also where nothing is there yet."""
    whole = open_view(root, "whole")
    assert paint(whole.store.image(), quantity=quantity).shape == (16, 24, 3)
    assert len(np.unique(paint(Image.empty(whole.sweep.grid), quantity=quantity))) == 1


def test_news_is_painted_when_the_browser_asks(root):
    """And only then, and only if there is any."""
    whole = open_view(root, "whole")
    inner = zoomed(root, whole, [1e-2, 1e3, 1e-1, 1e4])
    store = Store.create(inner.path, inner.sweep, block=8)
    inner = View(inner.sweep, inner.path, store, whole.path)
    canvas, told = portrait.widget(root, inner), []
    portrait.keep_painted(canvas, root, inner, tell=told.append)
    first = canvas.png
    canvas._handle_custom_msg("news?", [])
    assert canvas.png is first
    next(run_here(store))
    canvas._handle_custom_msg("news?", [])
    assert canvas.png != first
    assert "stopped" in canvas.status["text"]
    for _ in run_here(store):
        pass
    canvas._handle_custom_msg("news?", [])
    shutil.rmtree(store.path)
    canvas._handle_custom_msg("news?", [])
    assert canvas.status["text"] == "the folder of this run is gone"
    assert told == ["stopped", "stopped", "stopped", "complete", "gone"]


def test_only_the_last_painter_answers(root, monkeypatch):
    """Changing the palette replaces who paints; pictures of stale choices are not sent."""
    whole = open_view(root, "whole")
    canvas = portrait.widget(root, whole)
    asked: list[str] = []
    for name in ("one", "two"):
        canvas.answer(lambda name=name: asked.append(name))
    canvas._handle_custom_msg("news?", [])
    assert asked == ["two"]


def test_a_broken_neighbour_spoils_nothing(root):
    """Unreadable recipes, recipes of other code and broken links beside a run are passed over."""
    for name, text in {"torn": "{", "list": "[]", "old": '{"id": "x"}'}.items():
        (root / name).mkdir()
        (root / name / "sweep.json").write_text(text)
        (root / name / "origin.json").write_text('{"parent": "whole"}')
    (root / "whole" / "origin.json").write_text('{"parent": "torn"}')
    whole = open_view(root, "whole")
    assert explore.children(root, whole) == []
    assert from_address(root, {}).store is None
    canvas = portrait.widget(root, whole)
    portrait.keep_painted(canvas, root, whole)
    assert canvas.status["text"].startswith("complete")


def test_choices_follow_the_view(root):
    """What a person would have chosen to get there."""
    view = from_address(root, {"preset": "relu", "window": "published", "grid": "64"})
    assert explore.chosen(view) == {
        "preset": "relu", "window": "published", "grid": 64, "steps": 1000, "dtype": "float64",
    }  # fmt: skip


@pytest.mark.parametrize(("typed", "steps"), [(None, 1000), (77.0, 77)])
def test_an_emptied_field_is_the_length_of_the_preset(monkeypatch, typed, steps):
    """A field for numbers that nothing is written in has no value."""
    monkeypatch.syspath_prepend(NOTEBOOKS)
    chosen = {"preset": "tanh", "window": "overview", "grid": 32, "steps": typed}
    fields = {name: SimpleNamespace(value=value) for name, value in chosen.items()}
    shown = []
    importlib.import_module("zoom").choosing.run(
        attempt=lambda action: action(),
        choose=SimpleNamespace(value=True),
        dtype=SimpleNamespace(value="float64"),
        go=lambda view, preset: shown.append(explore.chosen(view)["steps"]),
        **fields,
    )
    assert shown == [steps]


def test_bookmarks_are_kept_and_forgotten(root):
    """A name for a run, beside the published windows."""
    explore.bookmark(root, "the coast", "whole")
    assert explore.places(root)["★ the coast"] == {"run": "whole"}
    assert explore.places(root)["published: tanh"] == {"preset": "tanh", "window": "published"}
    assert from_address(root, explore.places(root)["published: init"]).sweep.grid.shape == (
        128,
        128,
    )
    explore.forget(root, "whole")
    assert "★ the coast" not in explore.places(root)
    before = (root / "bookmarks.json").read_bytes()
    with pytest.raises(Refused, match="is gone"):
        explore.bookmark(root, "nothing", "nowhere")
    assert (root / "bookmarks.json").read_bytes() == before
    assert open_view(root, "whole").store is not None


def test_control_needs_leave(monkeypatch):
    """An app only looks unless it was opened to do more; a script never starts anything."""
    monkeypatch.delenv("FRACTAL_ALLOW_CONTROL", raising=False)
    assert [explore.may_control(mode) for mode in ("edit", "run", "script", None)] == [
        True, False, False, False,
    ]  # fmt: skip
    monkeypatch.setenv("FRACTAL_ALLOW_CONTROL", "1")
    assert explore.may_control("run")
    assert not explore.may_control("script")


def test_starting_twice_is_starting_once(root):
    """Cold or warm, from one thread or many: one process, every unit once; stopping ends it."""
    slow = TinyNetworks(samples=272, steps=4000)
    store = Store.create(root / "slow", Sweep.over(slow, REGION), block=8)
    pids: list[int] = []
    threads = [
        threading.Thread(target=lambda: pids.append(control.start_detached(store.path)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(pids)) == 1
    assert os.getsid(pids[0]) == pids[0] != os.getsid(0)
    events = store.path / "state" / "events.jsonl"
    # The lock is taken, and the file made, an instant before its first line is there.
    until(lambda: events.exists() and events.read_text(), "its first line")
    assert events.read_text().count('"started"') == 1
    assert control.stop(store.path)
    assert control.progress(store).process is None
    assert not control.stop(store.path)


@pytest.mark.parametrize("name", ["FRACTAL_STORAGE", "NANOCHAT_BASE_DIR", "HF_HOME"])
def test_a_warm_process_that_keeps_models_elsewhere_is_not_asked(name, monkeypatch):
    """A run finds its weights and texts where the one who starts it has them."""
    here = warm.address()
    monkeypatch.setenv(name, "/elsewhere")
    assert warm.address() != here


def test_a_warm_process_forks_runs(root, monkeypatch):
    """The second start goes through it, is a process of its own session, works where it was asked
    from, and survives its end.
    """
    store = Store.create(root / "quick", Sweep.over(TinyNetworks(samples=272), REGION), block=8)
    control.start_detached(store.path)
    until(lambda: warm.ask(store.path) is not None, "a warm process")
    slow = TinyNetworks(samples=272, steps=6000)
    other = Store.create(root / "slow", Sweep.over(slow, REGION), block=8)
    monkeypatch.chdir(root)
    pid = warm.start(other.path)
    until(lambda: control.progress(other).process == pid, "its work")
    server = psutil.Process(psutil.Process(pid).ppid())
    assert "fractal_core.warm" in server.cmdline()
    assert os.getsid(pid) == pid
    assert psutil.Process(pid).cwd() == str(root)
    server.send_signal(signal.SIGKILL)
    server.wait()
    assert control.progress(other).process == pid
    assert control.stop(other.path)
    control.stop(store.path)
