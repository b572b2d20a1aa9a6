"""Base points on a boundary: in mixed cells, and along chords."""

import numpy as np
import pytest

from fractal_core import Axis, Grid, Refused, Region, straddle

REGION = Region(Axis("x", 1e-3, 1e6, 24), Axis("y", 1e-2, 1e3, 16))
PLAIN = Region(Axis("x", -1.0, 1.0, 24, "linear"), Axis("y", -1.0, 1.0, 16, "linear"))


def in_disc(points: np.ndarray) -> np.ndarray:
    return np.hypot(points[:, 0] - 0.2, points[:, 1]) < 0.6


def test_focused_points_lie_between_points_that_differ():
    """On a map with one True point they fill the four cells around it, evenly in decades."""
    grid = Grid.over(REGION)
    labels = np.zeros(grid.shape, bool)
    labels[5, 9] = True
    points = straddle.focused(grid, labels, 4000, seed=0)
    x, y = np.log10(points).T
    for values, axis, at in ((x, grid.x, 9), (y, grid.y, 5)):
        low, middle, high = np.log10(axis[[at - 1, at, at + 1]])
        assert low < values.min() < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < values.max() < high
        assert np.mean(values < middle) == pytest.approx(0.5, abs=0.03)
        assert np.mean(values < (low + middle) / 2) == pytest.approx(0.25, abs=0.03)


def test_focused_points_of_a_lattice_lie_between_its_points():
    """The one True point of every third row and column is at row 6 and column 12 of the grid."""
    grid = Grid.over(REGION)
    labels = np.zeros((6, 8), bool)
    labels[2, 4] = True
    points = straddle.focused(grid, labels, 4000, seed=0, stride=3)
    for values, axis, at in ((points[:, 0], grid.x, 12), (points[:, 1], grid.y, 6)):
        assert axis[at - 3] < values.min() < axis[at - 3] * 1.2
        assert axis[at + 3] / 1.2 < values.max() < axis[at + 3]
        assert np.mean(values < axis[at]) == pytest.approx(0.5, abs=0.03)


def test_focused_points_are_decided_by_their_seed():
    """Same seed, same points; another seed, others."""
    grid = Grid.over(REGION)
    labels = grid.x > grid.y[:, None]
    first = straddle.focused(grid, labels, 50, seed=3)
    assert np.array_equal(first, straddle.focused(grid, labels, 50, seed=3))
    assert not np.any(first == straddle.focused(grid, labels, 50, seed=4))
    single = straddle.focused(grid, labels, 50, seed=3, dtype="float32")
    assert np.array_equal(single, first.astype(np.float32))


def test_a_map_without_a_boundary_or_with_holes_is_refused():
    """There is nothing to stand on, or not yet."""
    grid = Grid.over(REGION)
    with pytest.raises(Refused, match="no boundary to stand"):
        straddle.focused(grid, np.ones(grid.shape, bool), 10, seed=0)
    holes = np.ma.masked_array(np.ones(grid.shape, bool), np.eye(*grid.shape, dtype=bool))
    with pytest.raises(Refused, match="missing"):
        straddle.focused(grid, holes, 10, seed=0)


def test_whole_numbers_have_no_small_distances():
    """An integer axis is refused by either plan."""
    region = Region(Axis("n", 1.0, 100.0, 50, integer=True), Axis("y", 1.0, 2.0, 16))
    grid = Grid.over(region)
    with pytest.raises(Refused, match="whole numbers"):
        straddle.focused(grid, np.eye(*grid.shape, dtype=bool), 10, seed=0)
    with pytest.raises(Refused, match="whole numbers"):
        straddle.draw_chords(region, 10, 0.1, seed=0)


def test_chords_cover_the_region_evenly():
    """Points of random lines are uniform over the plane, the corners included."""
    fractions = straddle.draw_chords(REGION, 3000, 0.2, seed=0).fractions
    counts, *_ = np.histogram2d(*fractions.T, bins=4, range=[[0, 1], [0, 1]])
    np.testing.assert_allclose(counts / counts.mean(), 1.0, atol=0.08)


def test_points_of_a_chord_are_evenly_spaced_in_decades():
    """Neighbours on a chord are one spacing apart; its points come in order on a straight line."""
    chords = straddle.draw_chords(REGION, 50, 0.2, seed=1)
    where = chords.fractions * [9, 5]
    same = chords.chord[1:] == chords.chord[:-1]
    steps = np.diff(where, axis=0)[same]
    np.testing.assert_allclose(np.hypot(*steps.T), 0.2, rtol=1e-6)
    following = chords.chord[2:] == chords.chord[:-2]
    assert np.abs(np.diff(where, n=2, axis=0)[following]).max() < 1e-9


def test_crossings_favour_no_part_of_a_curve():
    """Crossings of a circle are uniform over its circumference (Crofton)."""
    chords = straddle.draw_chords(PLAIN, 4000, 0.01, seed=0)
    values = straddle.values_at(PLAIN, chords.fractions)
    brackets = straddle.Brackets.along(chords, in_disc(values))
    x, y = straddle.values_at(PLAIN, brackets.middles).T
    sectors = np.histogram(np.arctan2(y, x - 0.2), bins=8, range=(-np.pi, np.pi))[0]
    np.testing.assert_allclose(sectors / sectors.mean(), 1.0, atol=0.12)


def test_a_bracket_lies_on_one_chord():
    """The last point of a chord and the first of the next are no neighbours."""
    chords = straddle.draw_chords(PLAIN, 200, 0.1, seed=0)
    brackets = straddle.Brackets.along(chords, np.arange(len(chords.chord)) % 2 == 0)
    assert len(brackets.ends) == len(chords.chord) - len(np.unique(chords.chord))
    lengths = np.hypot(*(brackets.ends[:, 1] - brackets.ends[:, 0]).T)
    np.testing.assert_allclose(lengths, 0.1)


def test_halving_closes_in_on_the_boundary():
    """Every round halves each bracket and keeps a boundary inside."""
    chords = straddle.draw_chords(PLAIN, 40, 0.05, seed=0)
    brackets = straddle.Brackets.along(chords, in_disc(straddle.values_at(PLAIN, chords.fractions)))
    for _ in range(30):
        labels = in_disc(straddle.values_at(PLAIN, brackets.middles))
        brackets = brackets.halved(labels)
    ends = [in_disc(straddle.values_at(PLAIN, brackets.ends[:, side])) for side in (0, 1)]
    assert np.array_equal(ends[0], brackets.first)
    assert np.array_equal(ends[1], ~brackets.first)
    bases, chord = brackets.bases(PLAIN, seed=0, each=3)
    assert len(bases) == len(chord) == 3 * len(brackets.first)
    np.testing.assert_allclose(np.hypot(bases[:, 0] - 0.2, bases[:, 1]), 0.6, atol=1e-9)


def test_a_sample_of_brackets_has_no_doubles():
    """As many as were asked for, or all there are."""
    chords = straddle.draw_chords(PLAIN, 40, 0.05, seed=0)
    brackets = straddle.Brackets.along(chords, in_disc(straddle.values_at(PLAIN, chords.fractions)))
    few = brackets.sample(10, seed=0)
    assert len(np.unique(few.ends.reshape(10, -1), axis=0)) == 10
    assert len(brackets.sample(10**6, seed=0).ends) == len(brackets.ends)


def test_chords_that_cross_nothing_are_refused():
    """No bracket, no base point; nor more points than memory holds."""
    chords = straddle.draw_chords(PLAIN, 5, 0.1, seed=0)
    with pytest.raises(Refused, match="no chord crosses"):
        straddle.Brackets.along(chords, np.ones(len(chords.chord), bool))
    with pytest.raises(Refused, match="wider"):
        straddle.draw_chords(PLAIN, 1000, 1e-6, seed=0)
