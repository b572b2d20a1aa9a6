"""Views of sweeps that fine-tune a language model."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tuning import plane

from fractal_core import Outcome, Refused, control, experiments, explore, finetune, portrait
from fractal_core.explore import address, from_address, open_view, zoomed

pytestmark = pytest.mark.usefixtures("storage")


@pytest.fixture(scope="module")
def made(tmp_path_factory, storage) -> Path:
    """A folder with a finished map of fine-tuning, `plane`, and one that is begun, `begun`."""
    folder = tmp_path_factory.mktemp("tuned")
    plane(folder / "model", folder / "runs" / "plane")
    plane(folder / "model", folder / "runs" / "begun", seed=1, units=3)
    return folder


@pytest.fixture
def root(made, tmp_path) -> Path:
    shutil.copytree(made / "runs", tmp_path / "runs")
    return tmp_path / "runs"


def trained_again(*_, **__):
    pytest.fail("something was trained again")


def test_curves_are_read_and_not_trained_again(root, monkeypatch):
    """Those of the point and its neighbours, as they were committed; no weights are needed."""
    view = open_view(root, "plane")
    monkeypatch.setattr(type(view.sweep.experiment), "run", trained_again)
    grid, image = view.sweep.grid, view.store.image()
    frame = portrait.curves(view, float(grid.x[1]), float(grid.y[2]))
    assert frame.run.nunique() == 9
    here = frame[frame.run == "here"]
    unit = next(u for u in view.store.units.values() if (2, 1) in zip(*u.cells(), strict=True))
    kept = view.store.read(unit)["curve"][0]
    np.testing.assert_array_equal(here.loss, kept)
    assert here.step.tolist() == list(range(6))
    assert here.outcome.unique().tolist() == [Outcome(image.outcome[2, 1]).name]


def test_a_point_that_is_not_trained_has_no_curve(root):
    """And those that are there are drawn without their missing neighbours."""
    view = open_view(root, "begun")
    grid, missing = view.sweep.grid, view.store.image().outcome.mask
    row, col = np.argwhere(missing)[0]
    assert portrait.curves(view, float(grid.x[col]), float(grid.y[row])).empty
    row, col = np.argwhere(~missing)[0]
    frame = portrait.curves(view, float(grid.x[col]), float(grid.y[row]))
    assert "here" in set(frame.run)
    assert frame.run.nunique() <= 3


def test_its_choices_are_those_of_its_kind(root):
    """The preset that moves the same axes, its own steps and precision; the window is no print."""
    assert explore.chosen(open_view(root, "plane")) == {
        "preset": "matrix-unembedding", "window": "overview", "grid": 4, "steps": 6,
        "dtype": "float32",
    }  # fmt: skip


def test_cost_comes_from_its_own_runs(root, monkeypatch):
    """Nothing is trained to find out; slots that train at the same time share the work."""
    view = open_view(root, "plane")
    monkeypatch.setattr(type(view.sweep.experiment), "run", trained_again)
    monkeypatch.setattr(explore, "_at_once", lambda view: 2)
    inner = zoomed(root, view, [1e-3, 1e-1, 1e-3, 1e-1])
    cost = explore.cost(inner, like=view)
    assert cost.runs == 16
    assert cost.seconds == pytest.approx(8 * view.store.image().seconds.mean())
    orphan = replace(inner, parent=None)
    assert explore.cost(orphan).seconds > 0  # by what lies beside it
    alone = replace(orphan, path=root / "elsewhere" / "alone")
    assert "16 runs of unknown length" in str(explore.cost(alone))


def test_a_zoom_is_a_run_of_its_own(root, monkeypatch):
    """Of the same recipe, and outlined in its parent."""
    monkeypatch.setattr(control, "start_detached", lambda path, options: 1)
    view = open_view(root, "plane")
    begun = explore.begin(zoomed(root, view, [1e-3, 1e-1, 1e-3, 1e-1]))
    assert begun.sweep.experiment == view.sweep.experiment
    assert experiments.open_run(begun.path).sweep.id == begun.sweep.id
    assert explore.children(root, view) == [(begun.name, begun.sweep.region)]
    assert from_address(root, address(begun)).parent == view.path


def test_without_weights_one_still_looks(root, made, monkeypatch):
    """A map opens and paints; what needs the weights says so in a sentence."""
    view = open_view(root, "plane")
    for name in ("_place", "_weights_digest", "_texts", "_tokenizer"):
        getattr(finetune, name).cache_clear()
    elsewhere = (made / "model").rename(made / "away")
    try:
        canvas = portrait.widget(root, view)
        portrait.keep_painted(canvas, root, view)
        assert canvas.status["text"] == "complete: 16 of 16 runs"
        assert str(explore.cost(view)).startswith("computed already")
        with pytest.raises(Refused, match="model"):
            zoomed(root, view, [1e-3, 1e-1, 1e-3, 1e-1])
    finally:
        elsewhere.rename(made / "model")


def test_a_preset_without_its_base_model_says_how_to_make_one(root):
    """One sentence, with the command."""
    with pytest.raises(Refused, match="`fractal base`"):
        explore.preset_view(root, "matrix-unembedding", steps=40)
