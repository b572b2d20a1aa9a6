"""How far labels can be trusted: rates, last places, distinct values."""

import numpy as np
import pytest

from fractal_core import Axis, Grid, Region, seeing
from fractal_core.seeing import Rate, Seeing


def test_a_rate_holds_the_truth_at_least_as_often_as_it_says():
    """95% intervals, for rare flips too; no flips in m pairs still bound the rate."""
    rng = np.random.default_rng(0)
    for truth in (0.002, 0.1, 0.6):
        flips = rng.binomial(300, truth, 2000).astype(np.float64)
        low, high = seeing.rate_interval(flips, 300.0)
        assert np.mean((low <= truth) & (truth <= high)) >= 0.945
    assert Rate(0, 300).interval == pytest.approx((0.0, 3.69 / 300), rel=0.01)
    assert Rate(300, 300).interval[1] == 1


def test_flips_are_counted_between_two_arrays():
    """Positions whose labels differ, over all of them."""
    rate = Rate.between(np.array([True, True, False]), np.array([True, False, True]))
    assert (rate.flips, rate.pairs) == (2, 3)
    assert rate.value == pytest.approx(2 / 3)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_nudge_is_one_last_place_of_one_value(dtype):
    """One of both values becomes the next number of the dtype, up or down."""
    points = seeing.rounded(np.random.default_rng(0).lognormal(size=(400, 2)), dtype)
    moved = seeing.nudged(points, 0, dtype)
    assert np.all((moved != points).sum(axis=1) == 1)
    up = np.nextafter(points.astype(dtype), np.dtype(dtype).type(np.inf))
    down = np.nextafter(points.astype(dtype), np.dtype(dtype).type(-np.inf))
    assert np.all((moved == points) | (moved == up) | (moved == down))
    assert 0.4 < np.mean((moved > points).any(axis=1)) < 0.6
    assert 0.4 < np.mean(moved[:, 0] != points[:, 0]) < 0.6


def test_a_nudge_of_what_is_added_moves_the_sum():
    """An offset of 1e-9 on a weight of 3 moves by a last place of 3."""
    points = np.full((100, 2), [1e-9, 1.0])
    moved = seeing.nudged(points, 0, magnitudes=(3.0, 0.0))
    changed = moved[moved[:, 0] != 1e-9, 0]
    assert len(changed) > 20
    np.testing.assert_allclose(np.abs(changed - 1e-9), np.spacing(3.0))


def test_the_finest_distance_is_four_last_places():
    """In decades on a log axis; in lengths on a linear one; of the coarsest axis."""
    decades = Region(Axis("x", 1e-3, 1e6, 24), Axis("y", 1e-2, 1e3, 16))
    assert seeing.finest(decades) == pytest.approx(4 * 2**-52 / np.log(10))
    assert seeing.finest(decades, "float32") == pytest.approx(4 * 2**-23 / np.log(10))
    linear = Region(Axis("x", 99.0, 100.0, 8, "linear"), Axis("y", 1.0, 2.0, 8))
    assert seeing.finest(linear) == 4 * np.spacing(100.0)
    added = Region(Axis("x", 1e-6, 1e-3, 8), Axis("y", 1.0, 2.0, 8))
    assert seeing.finest(added, magnitudes=(3.0, 0.0)) > 1e-10


def test_values_that_coincide_are_counted_once():
    """Sixteen columns of a window 1e-6 wide are sixteen float64 but fewer float32."""
    grid = Grid.over(Region(Axis("x", 0.196061, 0.1960612, 16), Axis("y", 1.0, 2.0, 24)))
    assert seeing.distinct(grid) == (16, 24)
    assert seeing.distinct(grid, "float32")[0] < 16
    tiny = Grid.over(Region(Axis("x", 1e-18, 1e-17, 16), Axis("y", 1.0, 2.0, 24)))
    assert seeing.distinct(tiny, magnitudes=(1.0, 0.0)) == (1, 24)


def seen(ulp: int, neighbours: int, dtype: Rate | None = None) -> Seeing:
    """A map whose neighbours are 10^4 units apart."""
    return Seeing(
        rerun=Rate(0, 100),
        ulp=Rate(ulp, 100),
        dtype=dtype,
        neighbours=Rate(neighbours, 100),
        pitch=1e4,
        values=(16, 2),
        cells=(16, 20),
        boundary=True,
    )


def test_seeing_says_it_in_sentences():
    """Every answer has a sentence with its numbers."""
    said = seen(3, 40, Rate(27, 100)).sentences
    assert len(said) == 6
    assert said[1].startswith("one unit in the last place flips 3 of 100 labels (0.62% to 8.5")
    assert said[-1] == "2 different values of y in 20 cells"
    assert len(seen(3, 40).sentences) == 5


def test_rounding_takes_over_where_the_law_says():
    """Flips that fall as the root of the pitch: a fourth of them at 16 units, all at one unit."""
    map_ = seen(ulp=1, neighbours=100)
    assert map_.rounding(1e4) == pytest.approx(0.01)
    assert map_.rounding(16.0) == pytest.approx(0.25)
    assert map_.rounding(1.0) == map_.rounding(0.5) == 1


def test_rounding_at_its_ends():
    """No flips at one unit are no rounding; as many as between neighbours are nothing else."""
    assert seen(ulp=0, neighbours=0).rounding(4.0) == 0
    assert seen(ulp=50, neighbours=50).rounding(1e9) == 1
