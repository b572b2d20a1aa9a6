"""From what a person chooses to a recipe, and its cost."""

from dataclasses import replace

import numpy as np
import pytest

from fractal_core import (
    Axis,
    Refused,
    Region,
    Store,
    Sweep,
    TinyNetworks,
    experiments,
    machine,
    planner,
)
from fractal_core.finetune import FineTune
from fractal_core.machine import Slot

HERE = [Slot(0, "cpu", 1)]


def test_a_preset_left_alone_is_itself():
    """Its own window, settings and seed."""
    sweep = planner.recipe("relu", published=True, grid=(8, 16))
    preset = experiments.preset("relu")
    assert sweep.region == preset.region(True, 8, 16)
    assert sweep.experiment == preset.experiment
    assert sweep.grid.shape == (8, 16)


def test_what_is_chosen_is_what_is_planned():
    """Axes, ends, scales, seed and settings, those as text."""
    sweep = planner.recipe(
        "tanh",
        x=(-1.0, 1.0),
        y=(1e-2, 1e2),
        scale=("linear", "log10"),
        grid=(4, 6),
        axes=("offset", "lr"),
        seed=7,
        settings={"steps": "50", "arrays": "seeded", "samples": "8"},
    )
    assert (sweep.region.x, sweep.region.y) == (
        Axis("offset", -1.0, 1.0, 6, "linear"),
        Axis("lr", 1e-2, 1e2, 4),
    )
    assert sweep.seed == 7
    assert (sweep.experiment.steps, sweep.experiment.samples) == (50, 8)


def test_other_axes_of_a_language_model_need_ends():
    """Nobody can know where; a published window belongs to its own axes."""
    axes = ("matrix_lr", "num_steps")
    with pytest.raises(Refused, match="say where"):
        planner.recipe("matrix-unembedding", axes=axes)
    assert planner.ends_of("matrix-unembedding", axes, False) is None
    assert planner.ends_as_text("matrix-unembedding", axes, "overview") == [("", "")] * 2
    with pytest.raises(Refused, match="published"):
        planner.recipe("tanh", published=True, axes=("lr_output", "lr_input"))
    (low, high), _ = planner.ends_of("lr-tokens", ("learning_rate", "num_tokens"), False)
    assert (low, high) == (1e-6, 3e-1)


def test_every_setting_can_be_chosen_and_read_back():
    """As text with all digits; only what was changed is a change."""
    for experiment in (TinyNetworks(offset=1 / 3), FineTune(learning_rate=1e-5, compiled=True)):
        texts = {choice.name: choice.value for choice in planner.choices(experiment)}
        assert planner.changed(experiment, texts) == {}
        again = experiments.configure(type(experiment)(), texts)
        assert replace(again, axes=experiment.axes) == experiment
    options = {choice.name: choice.options for choice in planner.choices(FineTune())}
    assert options["device"] == ("cpu", "cuda")
    assert options["compiled"] == ("false", "true")
    assert options["checkpoint"] == options["num_tokens"] == ()
    assert planner.changed(TinyNetworks(), {"steps": " 50 ", "width": "", "batch": "none"}) == {
        "steps": "50"
    }


@pytest.mark.parametrize("value", [1e6, 1e-3, 0.25, 1 / 3, 1e22, 5e-324, -2.5, 0.0])
def test_a_number_keeps_its_digits(value):
    """However short it is written."""
    text = planner.text_of(value)
    assert float(text) == value
    assert len(text) <= len(repr(value))
    assert planner.number("x", text) == value


def test_what_is_no_number_is_refused():
    """By the name of its field."""
    with pytest.raises(Refused, match=r"lr_input: 'a lot' is not a number"):
        planner.number("lr_input", "a lot")
    with pytest.raises(Refused, match="say where"):
        planner.ends("lr_input", "", "1")


def test_devices_become_options(monkeypatch):
    """Nothing chosen is all that suits; so many workers on each otherwise."""
    monkeypatch.setattr(machine, "gpus", lambda: [])
    tiny = planner.recipe("tanh", grid=(4, 4))
    assert planner.options([], 0) == []
    assert planner.options(["cuda:0", "cuda:1"], 2) == [
        "--slots", "2", "--devices", "cuda:0", "cuda:1",
    ]  # fmt: skip
    assert [slot.device for slot in planner.places(tiny, ["cpu"], 3)] == ["cpu"] * 3
    with pytest.raises(Refused, match="cuda:0 is not on this machine"):
        planner.places(tiny, ["cuda:0"], 0)
    assert planner.devices(tiny.experiment) == ["cpu"]


def test_the_cost_of_tiny_networks_is_measured(tmp_path):
    """Runs, time, and the digits that are left."""
    changes = {"steps": "200", "arrays": "seeded", "samples": "8"}
    sweep = planner.recipe("tanh", grid=(32, 64), settings=changes)
    cost = planner.cost(sweep, HERE, tmp_path)
    assert cost.runs == 32 * 64
    assert 0 < cost.seconds < 3600
    assert cost.digits == pytest.approx(np.log10(sweep.ulps / 4))
    assert cost.notes == ()
    close = planner.recipe("tanh", x=(1.0, 1.0 + 1e-15), grid=(64, 64), settings=changes)
    with pytest.raises(Refused, match="last place"):
        planner.cost(close, HERE, tmp_path)


@pytest.mark.parametrize(
    "asked", [{"window": "9999999", "steps": "10000000"}, {"samples": "200000"}]
)
def test_looking_at_a_cost_is_never_long_work(asked, monkeypatch):
    """Whatever is typed, before anybody has said that it may begin."""
    sweep = planner.recipe("tanh", grid=(4, 4), settings={"arrays": "seeded"} | asked)
    tried, run = [], TinyNetworks.run
    monkeypatch.setattr(
        TinyNetworks, "run", lambda self, *a, **k: tried.append(self) or run(self, *a, **k)
    )
    assert planner.timed(sweep) > 0
    assert max(short.steps * short.samples for short in tried) <= 500_000


def test_the_cost_of_fine_tuning_is_remembered(tmp_path, monkeypatch):
    """From the steps of runs with the same model, batch and device; else nobody knows."""
    monkeypatch.setattr(FineTune, "contract", lambda self, seed: {"arithmetic": "none"})
    region = Region(*(Axis(name, 1e-4, 1e-2, 2) for name in FineTune().axes))
    sweep = Sweep.over(FineTune(num_steps=40), region)
    assert planner.cost(sweep, HERE, tmp_path).seconds is None
    other = Store.create(tmp_path / "other", Sweep.over(FineTune(batch_size=2), region))
    like = Store.create(tmp_path / "like", Sweep.over(FineTune(num_steps=80), region))
    for store, seconds in ((other, 100.0), (like, 8.0)):
        for unit in store.units.values():
            outcomes = FineTune().judge(np.ones(80, np.float32), 80, seconds)
            store.commit(unit, outcomes, {})
    assert planner.cost(sweep, HERE, tmp_path).seconds == pytest.approx(4 * 4.0)
    assert planner.cost(sweep, 2 * HERE, tmp_path).seconds == pytest.approx(2 * 4.0)


def test_a_map_that_would_mean_nothing_is_refused(tmp_path):
    """Before it is begun, in the words of its experiment."""
    region = Region(*(Axis(name, 1e-4, 1e-2, 2) for name in FineTune().axes))
    with pytest.raises(Refused, match="too few to judge"):
        planner.cost(Sweep.over(FineTune(num_steps=20), region), HERE, tmp_path)
    short = planner.cost(Sweep.over(FineTune(num_steps=30), region), HERE, tmp_path)
    assert "more than half" in short.notes[0]
