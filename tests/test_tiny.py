"""Tiny networks: the published measures, the plain reference, and the same bits everywhere."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fractal_core import Outcome, Refused, Region, Sweep, TinyNetworks
from fractal_core.experiments import PRESETS, configure
from fractal_core.kernels import reference
from fractal_core.outcome import judge_curves
from fractal_core.store import ARRAYS
from fractal_core.sweep import plan

DATA = Path(__file__).parent / "data"

# A small problem per way of training; the first two axes are the point's x and y.
SMALL = TinyNetworks(width=5, samples=7, steps=30)
WAYS = [
    replace(SMALL, activation=activation, batch=batch, axes=axes)
    for activation in ("tanh", "relu", "identity")
    for batch, axes in [
        (None, ("lr_input", "lr_output")),
        (3, ("lr_output", "lr_input")),
        (None, ("lr", "offset")),
        (3, ("drift", "lr")),
    ]
] + [replace(SMALL, samples=1), replace(SMALL, samples=1, batch=2, activation="relu")]


def same(one, other, *, rows=slice(None)) -> bool:
    """Bit for bit, all that an outcome says but how long it took."""
    return all(
        np.array_equal(getattr(one, name)[rows], getattr(other, name), equal_nan=True)
        for name in ARRAYS
        if name != "seconds"
    )


def random_points(n: int, *, low=-2.0, high=2.0) -> np.ndarray:
    return 10 ** np.random.default_rng(0).uniform(low, high, (n, 2))


@pytest.mark.parametrize(
    "way", WAYS, ids=lambda w: f"{w.activation}-{w.batch}-{w.axes}-{w.samples}"
)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_kernel_follows_autograd(way, dtype):
    """Loss curves equal those of the PyTorch page, to rounding, while training is tame."""
    way = replace(way, dtype=dtype)
    points = random_points(6, low=-2, high=-0.5)
    losses = way.run(points, seed=3, record=range(way.steps)).extras["losses"]
    expected = reference.losses(way.problem(3), way.hyperparameters(points))
    np.testing.assert_allclose(losses, expected, rtol=1e-12 if dtype == "float64" else 2e-4)
    assert np.ptp(losses, axis=1).min() > 1e-4


@pytest.mark.parametrize(
    ("name", "preset", "agreement", "median"),
    [
        ("tanh_overview_48", "tanh", 0.995, 1e-9),
        ("linear_overview_48", "linear", 0.995, 1e-9),
        ("tanh_tile_48", "tanh", 0.97, None),
        ("tanh_tile_48_1000", "tanh", 0.97, None),
        ("linear_tile_96", "linear", 0.97, None),
        ("single_tile_96", "single", 0.97, None),
    ],
)
def test_published_measures_come_back(name, preset, agreement, median):
    """Labels, first losses and measures at the points where the paper's own code was run."""
    golden = np.load(DATA / f"{name}.npz")
    experiment = configure(PRESETS[preset].experiment, {"steps": int(golden["steps"])})
    x, y = np.meshgrid(golden["x"], golden["y"])
    outcomes = experiment.run(np.stack([x.ravel(), y.ravel()], axis=1), seed=0)
    measure = outcomes.measure.reshape(x.shape)
    agree = (measure < 0) == (golden["measure"] < 0)
    assert agree.mean() >= agreement
    assert np.all((outcomes.outcome == Outcome.TRAINABLE) == (outcomes.measure < 0))
    np.testing.assert_allclose(outcomes.first_loss, float(golden["first_loss"]), rtol=1e-14)
    if median is not None:
        relative = np.abs(measure / golden["measure"] - 1)[agree]
        assert np.median(relative) < median


@pytest.mark.parametrize("way", [WAYS[0], WAYS[1], WAYS[6], SMALL, replace(SMALL, dtype="float32")])
def test_bits_do_not_depend_on_company(way):
    """Batches of 1, 7 and 333, another order: the same bits, for every way of training."""
    points = random_points(400)
    whole = way.run(points, seed=0)
    assert len(np.unique(whole.outcome)) > 1
    for start, stop in ((0, 1), (3, 10), (50, 383)):
        assert same(whole, way.run(points[start:stop], seed=0), rows=slice(start, stop))
    order = np.random.default_rng(1).permutation(len(points))
    assert same(whole, way.run(points[order], seed=0), rows=order)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_bits_do_not_depend_on_batch_or_threads(dtype, monkeypatch):
    """The paper's network at 4096 points: in one batch, in parts, on one thread and on two."""
    experiment = replace(PRESETS["tanh"].experiment, steps=25, dtype=dtype)
    points = random_points(4096, low=-3, high=6)
    whole = experiment.run(points, seed=0)
    for size in (1, 7, 333):
        assert same(whole, experiment.run(points[:size], seed=0), rows=slice(0, size))
    for threads in (1, 2):
        monkeypatch.setattr("fractal_core.machine.cpu_threads", lambda threads=threads: threads)
        assert same(whole, experiment.run(points, seed=0))


@pytest.mark.parametrize("block", [8, 16, 64])
def test_bits_do_not_depend_on_the_block(block):
    """A map put together from units of any size is the map computed at once."""
    region = PRESETS["tanh"].region(False, 24, 40)
    sweep = Sweep.over(replace(SMALL, steps=40), region)
    rows, cols = np.indices(sweep.grid.shape).reshape(2, -1)
    whole = sweep.experiment.run(sweep.grid.points(rows, cols), seed=0).measure.reshape(24, 40)
    pieced = np.full(whole.shape, np.nan)
    for unit in plan(sweep.grid.shape, block):
        points = sweep.grid.points(*unit.cells())
        pieced[unit.cells()] = sweep.experiment.run(points, seed=0).measure
    np.testing.assert_array_equal(pieced, whole)


@pytest.mark.parametrize("way", [SMALL, replace(SMALL, batch=3), replace(SMALL, dtype="float32")])
def test_a_loss_curve_is_that_of_the_sweep(way):
    """Asking for the whole curve changes no bit, and judging it gives the sweep's own measure."""
    points = random_points(50)
    plain = way.run(points, seed=0)
    curved = way.run(points, seed=0, record=range(way.steps))
    assert same(plain, curved)
    assert same(plain, judge_curves(curved.extras["losses"], way.window))
    chosen = way.run(points, seed=0, record=[0, 7, way.steps - 1]).extras["losses"]
    np.testing.assert_array_equal(chosen, curved.extras["losses"][:, [0, 7, way.steps - 1]])


def test_an_offset_is_added_once_and_a_drift_at_every_step():
    """With learning rates of zero an offset leaves the loss alone and a drift moves it on."""
    still = replace(SMALL, lr_output=0.0, axes=("offset", "lr_input"))
    points = np.array([[0.3, 0.0]])
    record = range(SMALL.steps)
    curve = still.run(points, seed=0, record=record).extras["losses"][0]
    assert np.ptp(curve) == 0
    drifting = replace(still, axes=("drift", "lr_input")).run(points, seed=0, record=record)
    moved = drifting.extras["losses"][0]
    assert moved[0] == curve[0]
    assert np.all(np.diff(moved) != 0)


def test_the_seed_decides_weights_and_data():
    """Another seed is another problem; the same one is the same."""
    one, again, other = (SMALL.problem(seed) for seed in (0, 0, 1))
    assert np.array_equal(one.w1, again.w1)
    assert not np.array_equal(one.w1, other.w1)
    assert SMALL.contract(0) != SMALL.contract(1)


def test_shorter_minibatch_runs_say_whose_batches_they_use():
    """The paper's stream belongs to 1000 steps; the recipe says what a run of another length takes."""
    preset = PRESETS["minibatch"].experiment
    said = {
        steps: configure(preset, {"steps": steps}).contract(0)["minibatches"]
        for steps in (100, 1000, 2000)
    }
    assert said[1000] == "the paper's, for 1000 steps"
    assert "first 100" in said[100]
    assert "seed" in said[2000]
    first = configure(preset, {"steps": 100}).problem(0).batch_index
    whole = preset.problem(0).batch_index
    assert np.array_equal(first, whole[:100])
    assert not np.array_equal(
        configure(preset, {"steps": 2000}).problem(0).batch_index[:1000], whole
    )


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"axes": ("lr_inpt", "lr_output")}, "did you mean lr_input"),
        ({"axes": ("lr", "lr_input")}, "do not overlap"),
        ({"axes": ("drift", "offset"), "drift": 0.1}, "moved by an axis"),
        ({"steps": 20}, "at least 21"),
        ({"width": 33}, "1 to 32"),
        ({"samples": 0}, "at least 1"),
        ({"batch": 0}, "at least 1"),
        ({"arrays": "full", "width": 8}, "width 16"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, says):
    """One sentence before any work."""
    with pytest.raises(Refused, match=says):
        TinyNetworks(**settings)


def test_every_preset_is_a_recipe():
    """All of them make a sweep, over the overview and over their published window."""
    for name, preset in PRESETS.items():
        for published in (False, True):
            region = preset.region(published, 128, 128)
            assert isinstance(region, Region)
            sweep = Sweep.over(preset.experiment, region)
            sweep.require_resolution()
            assert len(sweep.id) == 16, name
