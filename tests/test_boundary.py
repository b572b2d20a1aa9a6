"""Boundary cells, box counts, and what surrounds a boundary."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fractal_core.boundary import (
    basin_entropy,
    boundary_cells,
    boundary_distance,
    dyadic_counts,
    edge_density,
    gliding_counts,
    gliding_hits,
    minkowski_counts,
    neighbour_correlation,
    safety_margin,
)
from fractal_core.errors import Refused
from tests import sets

maps = arrays(bool, st.tuples(st.integers(2, 24), st.integers(2, 24)))


def with_holes(labels: np.ndarray, *holes: tuple[int, int]) -> np.ma.MaskedArray:
    mask = np.zeros(labels.shape, bool)
    for hole in holes:
        mask[hole] = True
    return np.ma.masked_array(labels, mask)


@given(maps)
def test_a_boundary_cell_holds_both_labels(labels):
    """Neither all nor none of its four points."""
    corners = np.stack([labels[1:, 1:], labels[1:, :-1], labels[:-1, 1:], labels[:-1, :-1]])
    expected = corners.any(axis=0) & ~corners.all(axis=0)
    np.testing.assert_array_equal(boundary_cells(labels), expected)


@given(maps)
def test_neither_side_is_preferred(labels):
    """Swapping the labels, or turning the map over, moves no boundary."""
    cells = boundary_cells(labels)
    np.testing.assert_array_equal(boundary_cells(~labels), cells)
    np.testing.assert_array_equal(boundary_cells(labels.T), cells.T)
    np.testing.assert_array_equal(boundary_cells(labels[::-1]), cells[::-1])


def test_missing_points_are_refused_with_their_number_and_place():
    """A hole is no boundary, so the count of boxes around it would be wrong."""
    labels = with_holes(np.zeros((16, 24), bool), (3, 20), (5, 7))
    with pytest.raises(Refused, match=r"^2 of 384 .* rows 3 to 5 and columns 7 to 20.*row 3, co"):
        boundary_cells(labels)
    for needs_all in (neighbour_correlation, basin_entropy):
        with pytest.raises(Refused, match="2 of 384"):
            needs_all(labels)


def test_the_measured_part_leaves_out_cells_that_touch_a_hole():
    """They come back masked, and the others as they are."""
    whole = np.random.default_rng(0).random((16, 24)) < 0.5
    cells = boundary_cells(with_holes(whole, (3, 20)), measured_only=True)
    assert np.argwhere(cells.mask).tolist() == [[2, 19], [2, 20], [3, 19], [3, 20]]
    np.testing.assert_array_equal(cells.data[~cells.mask], boundary_cells(whole)[~cells.mask])
    assert edge_density(cells) == cells.data[~cells.mask].mean()


@given(maps)
def test_dyadic_counts_are_those_of_counting_boxes(labels):
    """At every level, on maps of any shape: boxes whose points, rim included, hold both labels."""
    found = dyadic_counts(boundary_cells(labels))
    for size, count, boxes in zip(found.sizes, found.counts, found.boxes, strict=True):
        parts = [
            labels[row : row + size + 1, col : col + size + 1]
            for row in range(0, labels.shape[0] - 1, size)
            for col in range(0, labels.shape[1] - 1, size)
        ]
        assert count == sum(part.any() and not part.all() for part in parts)
        assert boxes == len(parts)
    assert found.boxes[-1] == 1


def summed_area_counts(labels: np.ndarray, size: int) -> float:
    """Windows of (size+1)^2 points in which 0 < sum < all, from a summed-area table."""
    padded = np.pad(labels, size // 2, mode="reflect").astype(int)
    table = np.pad(padded.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    w = size + 1
    sums = table[w:, w:] - table[w:, :-w] - table[:-w, w:] + table[:-w, :-w]
    rows, cols = labels.shape
    sums = sums[: rows - 1, : cols - 1]
    return np.count_nonzero((sums > 0) & (sums < w**2)) / size**2


@pytest.mark.parametrize("shape", [(40, 61), (64, 64)])
def test_gliding_counts_are_those_of_a_summed_area_table(shape):
    """All offsets, both labels, labels mirrored at the frame."""
    labels = np.random.default_rng(0).random(shape) < 0.05
    sizes = np.array([1, 2, 3, 5, 8, 11, 29])
    found = gliding_counts(boundary_cells(labels), sizes)
    assert found.counts.tolist() == [summed_area_counts(labels, int(s)) for s in sizes]
    np.testing.assert_allclose(found.boxes * sizes**2, (shape[0] - 1) * (shape[1] - 1))


def test_gliding_counts_do_not_favour_an_offset():
    """They are the mean of the fixed lattice over its offsets, where no frame is near."""
    labels = np.zeros((129, 129), bool)
    labels[50:70, 55:80] = np.random.default_rng(0).random((20, 25)) < 0.5
    cells = boundary_cells(labels)
    fixed = [
        dyadic_counts(np.roll(cells, (down, right), axis=(0, 1))).counts[3]
        for down in range(8)
        for right in range(8)
    ]
    assert gliding_counts(cells, np.array([8])).counts[0] == pytest.approx(np.mean(fixed))


def test_blocks_share_out_all_windows():
    """What the bootstrap draws from adds up to the whole map."""
    cells = boundary_cells(sets.KOCH.labels(100))
    sizes = np.array([1, 3, 6])
    hits, windows = gliding_hits(cells, sizes, 8)
    whole, all_windows = gliding_hits(cells, sizes, 1)
    np.testing.assert_array_equal(hits.sum(axis=0), whole[0])
    np.testing.assert_array_equal(windows.sum(axis=0), all_windows[0])


def test_boxes_with_a_hole_are_left_out():
    """Out of the hits and out of the boxes, at every size and in every way of counting."""
    labels = sets.CIRCLE.labels(65)
    holed = boundary_cells(with_holes(labels, (32, 32)), measured_only=True)
    whole = boundary_cells(labels)
    sizes = np.array([1, 2, 4])
    before, after = gliding_counts(whole, sizes), gliding_counts(holed, sizes)
    assert after.counts.tolist() == before.counts.tolist()
    np.testing.assert_allclose((before.boxes - after.boxes) * sizes**2, (sizes + 1) ** 2)
    fixed = dyadic_counts(holed)
    assert (dyadic_counts(whole).boxes - fixed.boxes).tolist() == [4, 4, 4, 4, 4, 4, 1]
    assert fixed.counts[-1] == 0
    discs = minkowski_counts(holed)
    assert np.all(discs.boxes < minkowski_counts(whole).boxes)


def test_box_sizes_that_make_no_sense_are_refused():
    """Zero, falling, or longer than the map."""
    cells = boundary_cells(np.eye(10, dtype=bool))
    for sizes in ([0, 1], [2, 2], [3, 1], [4, 10]):
        with pytest.raises(Refused, match="box sizes"):
            gliding_counts(cells, np.array(sizes))


def test_minkowski_counts_are_areas_within_half_a_size():
    """Around one cell: the cells whose middle is nearer than half the size."""
    cells = np.zeros((80, 80), bool)
    cells[40, 40] = True
    found = minkowski_counts(cells)
    assert found.sizes.tolist() == [1, 3, 5]
    assert (found.counts * found.sizes**2).tolist() == [1, 9, 21]


def test_neighbour_correlation_tells_noise_from_curves():
    """High on smooth and fractal curves, nothing on coin flips, however large the plain areas."""
    assert neighbour_correlation(sets.LINE.labels(256, 0.3)) == pytest.approx(0.87, abs=0.02)
    assert neighbour_correlation(sets.KOCH.labels(256)) == pytest.approx(0.79, abs=0.02)
    for rate in (0.5, 0.1, 0.02):
        flips = np.random.default_rng(0).random((256, 256)) < rate
        assert abs(neighbour_correlation(flips)) < 0.02
    flips = np.zeros((512, 512), bool)
    flips[200:280, 200:280] = np.random.default_rng(0).random((80, 80)) < 0.5
    assert neighbour_correlation(flips) < 0.1
    assert np.isnan(neighbour_correlation(np.ones((20, 20), bool)))


def test_holes_do_not_count_as_neighbours():
    """Coin flips stay coin flips and a line stays a line with a tenth of the points missing."""
    rng = np.random.default_rng(0)
    holes = rng.random((256, 256)) < 0.1
    for labels in (rng.random((256, 256)) < 0.3, sets.LINE.labels(256, 0.3)):
        holed = neighbour_correlation(np.ma.masked_array(labels, holes), measured_only=True)
        assert holed == pytest.approx(neighbour_correlation(labels), abs=0.03)


def test_basin_entropy_of_a_half_split_box():
    """By hand: one box of four is split 2 to 2, which is ln 2; a quarter of that over all."""
    labels = np.zeros((4, 4), bool)
    labels[0, :2] = True
    entropy = basin_entropy(labels, size=2)
    assert entropy.basin == pytest.approx(np.log(2) / 4)
    assert entropy.boundary == pytest.approx(np.log(2))
    assert not entropy.fractal


def test_boundary_basin_entropy_proves_only_what_it_can():
    """A smooth boundary stays below ln 2, as do any two labels; three outcomes mixed exceed it."""
    assert 0.40 < basin_entropy(sets.LINE.labels(500, 0.3)).boundary < 0.52
    rng = np.random.default_rng(0)
    assert not basin_entropy(rng.random((100, 100)) < 0.5).fractal
    assert basin_entropy(rng.integers(1, 4, (100, 100)).astype(np.uint8)).fractal
    plain = basin_entropy(np.ones((20, 20), bool))
    assert plain.basin == 0
    assert np.isnan(plain.boundary)
    with pytest.raises(Refused, match="smaller than a box"):
        basin_entropy(np.ones((4, 20), bool))


def test_distance_is_in_decades_and_signed():
    """A vertical boundary: the pitch of x times the columns to the other side."""
    labels = np.zeros((3, 6), bool)
    labels[:, :2] = True
    distance = boundary_distance(labels, (0.1, 5.0))
    np.testing.assert_allclose(distance, [[0.2, 0.1, -0.1, -0.2, -0.3, -0.4]] * 3)
    assert boundary_distance(np.ones((3, 3), bool), (0.1, 0.1)).min() == np.inf
    assert boundary_distance(np.zeros((3, 3), bool), (0.1, 0.1)).max() == -np.inf


def test_safety_margin_against_a_vertical_boundary():
    """The whole jitter must fit before the boundary; with a chance, so much of it may stick out."""
    labels = np.zeros((41, 60), bool)
    labels[:, :40] = True
    pitch, decades = (0.01, 0.01), 0.05
    jitter = 10**decades - 1
    margin = safety_margin(labels, pitch, jitter, chance=0.0)
    assert margin.largest[20] == 34
    assert (
        boundary_distance(labels, pitch)[20, 34]
        >= decades
        > boundary_distance(labels, pitch)[20, 35] - pitch[0] / 2
    )
    assert safety_margin(labels, pitch, jitter, chance=0.1).largest[20] == 35
    assert margin.risk[20, 36] == pytest.approx(1.5 / 10)
    assert margin.risk[20, 55] == 1.0


def test_what_lies_outside_of_the_map_is_not_safe():
    """At the rim half of the jitter is unknown."""
    margin = safety_margin(np.ones((41, 60), bool), (0.01, 0.01), 10**0.05 - 1)
    assert margin.risk[20, 30] == 0
    assert margin.risk[20, 59] == pytest.approx(0.45)
    assert margin.largest[0] == -1


def test_risk_is_the_share_of_jittered_runs_that_fail():
    """Against drawing them one by one, with a different pitch in x and y."""
    labels = sets.KOCH.labels(200)
    pitch, jitter = (0.01, 0.02), 0.3
    risk = safety_margin(labels, pitch, jitter).risk
    rng = np.random.default_rng(0)
    for row, col in ((100, 30), (60, 60), (150, 120)):
        down, right = rng.uniform(-np.log10(1 + jitter), np.log10(1 + jitter), (2, 40_000))
        rows = np.rint(row + down / pitch[1]).astype(int)
        cols = np.rint(col + right / pitch[0]).astype(int)
        assert risk[row, col] == pytest.approx(1 - labels[rows, cols].mean(), abs=0.01)


def test_jitter_below_the_pitch_is_refused():
    """The map cannot say what happens between its points."""
    with pytest.raises(Refused, match="zoom in"):
        safety_margin(np.ones((20, 20), bool), (0.1, 0.1), 0.1)
