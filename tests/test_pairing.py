"""Pairs for a run folder: the whole way on boundaries that are known."""

import numpy as np
import pytest

from fractal_core import Axis, Refused, Region, Store, Sweep, TinyNetworks, pairing
from fractal_core.experiments import EXPERIMENTS, open_run
from fractal_core.pairing import Request
from fractal_core.seeing import Rate
from tests.closed import ClosedForm, Here, quiet, refuse

TOP = 1 / (1 - 2**-0.5)
PLANE = Region(Axis("u", 0.0, 1.0, 64, "linear"), Axis("v", -0.6 * TOP, 1.02 * TOP, 48, "linear"))


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Makes a run folder of the closed-form experiment."""
    monkeypatch.setitem(EXPERIMENTS, "ClosedForm", ClosedForm)

    def make(kind: str, region: Region = PLANE, **settings) -> Store:
        sweep = Sweep.over(ClosedForm(kind, **settings), region)
        return Store.create(tmp_path / kind, sweep)

    return make


def far(found, truth: float) -> float:
    """How many standard errors a dimension is off."""
    return abs(found.dimension - truth) / found.standard_error


@pytest.mark.parametrize("bases", ["focused", "chords"])
def test_a_boundary_of_known_dimension(made, bases):
    """The dimension is that of the graph, its nulls are theirs, and it is called fractal."""
    store = made("weierstrass")
    rough = pairing.measure(store, Request(bases=bases, runs=16_000), Here, quiet)
    assert far(rough.dimension, 1.5) < 2.5
    assert rough.dimension.standard_error < 0.05
    assert rough.verdict.kind == "fractal"
    assert rough.verdict.unit == "axis lengths"
    for name, truth in ((pairing.SMOOTHED, 1.0), (pairing.QUADRATIC, 1.0), (pairing.COINS, 2.0)):
        null = rough.nulls[name]
        assert null is not None
        assert far(null, truth) < 3
    assert rough.dimension.rerun == Rate(0, 200)
    assert rough.dimension.ulp is not None


def test_the_same_request_again_trains_nothing(made):
    """All surveys are found by their points, also by another process; another seed is another."""
    store = made("weierstrass")
    first = pairing.measure(store, Request(runs=3000), Here, quiet)
    again = pairing.measure(open_run(store.path), Request(runs=3000), refuse, quiet)
    assert np.array_equal(first.dimension.flips, again.dimension.flips)
    assert first.dimension.interval == again.dimension.interval
    assert first.verdict == again.verdict
    other = pairing.measure(store, Request(runs=3000, seed=1), Here, quiet)
    assert not np.array_equal(first.dimension.flips, other.dimension.flips)


@pytest.mark.parametrize("bases", ["focused", "chords"])
def test_no_more_is_trained_than_was_said(made, bases):
    """The cost is the most that is spent, and most of what is allowed is spent."""
    store = made("weierstrass")
    request = Request(bases=bases, runs=5000)
    cost = pairing.cost(store, request)
    assert cost.seconds is None
    pairing.measure(store, request, Here, quiet)
    units = [store.unit(key.partition("/")[2][:-4]) for key in store.files.list("units")]
    trained = sum(unit.size for unit in units)
    assert cost.map == 64 * 48
    assert 0.95 * 5000 < trained - cost.map <= 5000
    after = pairing.cost(store, request)
    assert after.map == 0
    assert after.seconds == pytest.approx(5000 * 1e-6)


def test_what_is_there_of_the_map_is_used(made):
    """A finished map is the coarse map; and it is not trained again."""
    store = made("weierstrass")
    pairing.survey.lattice(store, 0, Here, quiet)
    assert pairing.measure(store, Request(runs=3000), Here, quiet).coarse == (48, 64)


def test_ten_decades_when_asked(made):
    """Distances go from a coarse cell down to the last places of the values."""
    region = Region(Axis("u", 1e-3, 1e6, 64), Axis("v", 1e-3, 1e6, 64))
    rough = pairing.measure(
        made("noise", region), Request(runs=4000, low=1e-13, high=1e-2), Here, quiet
    )
    assert rough.dimension.eps[[0, -1]].tolist() == pytest.approx([1e-2, 1e-13])
    assert rough.verdict.kind == "noise"
    assert far(rough.dimension, 2.0) < 3


def test_chords_follow_a_smooth_boundary_down(made):
    """Halved stretches stand so close to a line that pairs of 1e-6 flip as often as large ones."""
    request = Request(bases="chords", runs=20_000, high=1e-6, low=1e-8)
    rough = pairing.measure(made("line"), request, Here, quiet)
    assert rough.dimension.flips[0] > 0.1
    assert far(rough.dimension, 1.0) < 3


def test_labels_that_change_when_run_again_are_noise(made):
    """Reruns are trained again, and explain the flips."""
    rough = pairing.measure(made("line", fickle=0.3), Request(runs=3000, low=1e-4), Here, quiet)
    assert rough.dimension.rerun.flips > 30
    assert rough.verdict.kind == "noise"


def test_either_boundary(made):
    """In this experiment what does not train diverges, so that both are one."""
    store = made("line")
    one = pairing.measure(store, Request(runs=2000), Here, quiet)
    two = pairing.measure(store, Request("stable", runs=2000), refuse, quiet)
    assert np.array_equal(one.dimension.flips, two.dimension.flips)


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (Request(runs=100), "too few; allow at least 1810"),
        (Request(bases="chords", runs=1900), "too few; allow at least"),
        (Request(high=0.5), "choose at most a quarter"),
        (Request(low=1e-20), "four units in the last place of float64"),
        (Request(low=0.9), "choose one from"),
    ],
)
def test_what_cannot_be_done_is_refused_before_training(made, request_, says):
    """One sentence with the remedy, and nothing is written."""
    store = made("weierstrass")
    with pytest.raises(Refused, match=says):
        pairing.measure(store, request_, refuse, quiet)
    assert not (store.path / "units").exists()


@pytest.mark.parametrize(
    ("region", "says"),
    [
        (
            Region(Axis("u", 1.0, 64.0, 64, integer=True), Axis("v", 0.0, 1.0, 64, "linear")),
            "whole numbers",
        ),
        (
            Region(Axis("u", 0.0, 1.0, 64, "linear"), Axis("v", 0.0, 1.0, 16, "linear")),
            "at least 24 x 24",
        ),
    ],
)
def test_maps_without_room_are_refused(made, region, says):
    """Neither whole numbers nor a handful of rows hold base points."""
    with pytest.raises(Refused, match=says):
        pairing.cost(made("line", region), Request())


def test_a_map_without_a_boundary_is_refused(made):
    """After the coarse map and before any pair."""
    store = made("plain")
    with pytest.raises(Refused, match="no boundary to stand on"):
        pairing.measure(store, Request(), Here, quiet)
    assert not store.files.list("surveys")
    with pytest.raises(Refused, match="no chord crosses"):
        pairing.measure(store, Request(bases="chords"), Here, quiet)


def test_real_networks(tmp_path):
    """Networks are deterministic, so that a rerun flips none of their labels."""
    region = Region(Axis("lr_input", 0.1, 1e3, 48), Axis("lr_output", 0.1, 1e3, 32))
    sweep = Sweep.over(TinyNetworks(width=4, samples=4, steps=30), region)
    store = Store.create(tmp_path / "run", sweep)
    request = Request(runs=2500, low=1e-4)
    rough = pairing.measure(store, request, Here, quiet)
    assert rough.dimension.rerun == Rate(0, 200)
    assert rough.dimension.ulp.pairs == 200
    assert rough.verdict.unit == "decades"
    pairing.measure(open_run(store.path), request, refuse, quiet)
    # A rerun is a training of its own.
    kinds = [key.partition("/")[2].split("-")[0] for key in store.files.list("surveys")]
    assert sorted(kinds) == ["pairs", "rerun", "ulp"]
