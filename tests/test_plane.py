"""Laws of the plane: index, cell and value lead to each other; zooms nest."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fractal_core import Axis, Grid, Refused, Region

magnitudes = st.floats(1e-9, 1e9)


@st.composite
def axes(draw, name="lr", max_points=40):
    """Any axis that the package allows: wide, deep, log10, linear, integer."""
    scale = draw(st.sampled_from(["log10", "linear"]))
    if draw(st.booleans()):
        low = float(draw(st.integers(1, 10_000)))
        length = draw(st.integers(1, 10_000))
        points = draw(st.integers(1, min(length + 1, max_points)))
        return Axis(name, low, low + length, points, scale, integer=True)
    low = draw(magnitudes)
    high = low * (1 + 10 ** draw(st.floats(-10, 6)))
    return Axis(name, low, high, draw(st.integers(1, max_points)), scale)


@st.composite
def grids(draw):
    return Grid.over(Region(draw(axes("a")), draw(axes("b"))))


@given(grids())
def test_every_point_lies_in_its_own_cell(grid):
    """index -> value -> index gives back the index, on every grid, square or not."""
    for row in range(len(grid.y)):
        assert grid.cell(float(grid.x[0]), float(grid.y[row])) == (row, 0)
    for col in range(len(grid.x)):
        assert grid.cell(float(grid.x[col]), float(grid.y[0])) == (0, col)


@given(axes())
def test_values_increase_between_the_ends(axis):
    """Values are distinct, increasing and inside; edges enclose each of them."""
    values = axis.values()
    edges = axis.edges(values)
    assert np.all(np.diff(values) > 0)
    assert len(edges) == len(values) + 1
    assert np.all(edges[:-1] < values)
    assert np.all(values < edges[1:])


@given(axes(), st.floats(0, 1))
def test_value_and_fraction_are_inverse(axis, fraction):
    """fraction -> value -> fraction, to the rounding of the value."""
    value = axis.at(np.array([fraction]))
    low, high = axis.ends
    resolution = (
        np.spacing(high) / (high - low) * max(1.0, high / low if axis.scale == "log10" else 1)
    )
    assert abs(axis.fraction(value)[0] - fraction) <= 1e-9 + 8 * resolution


@given(axes(), st.floats(0.05, 0.45), st.floats(0.55, 0.95))
def test_zooms_nest(axis, a, b):
    """All values of a zoom lie inside the stretch that was asked for, and a zoom of it again."""
    assume(not axis.integer)
    low, high = axis.at(np.array([a, b])).tolist()
    assume(low < high)
    inner = axis.zoom(low, high)
    values = inner.values()
    assert low < values[0]
    assert values[-1] < high
    assert inner.zoom(float(values[0]), high).values()[0] > values[0] or len(values) == 1


def test_zooming_to_all_cells_gives_the_region_back():
    """Cells of a grid have exact ends, on a non-square grid and for both kinds of scale."""
    region = Region(Axis("a", 1e-3, 1e6, 24), Axis("b", -2.0, 5.0, 16, "linear"))
    assert Grid.over(region).zoom_cells((0, 16), (0, 24)) == region


def test_neighbouring_zooms_share_an_edge():
    """Two halves meet: what is right of one is left of the other, to the bit."""
    grid = Grid.over(Region(Axis("a", 1e-3, 1e6, 24), Axis("b", 1.0, 2.0, 16)))
    left, right = (grid.zoom_cells((0, 16), cols) for cols in ((0, 7), (7, 24)))
    assert left.x.high == right.x.low


def test_a_drag_may_begin_at_any_corner_and_leave_the_picture():
    """A hand drags from any corner, and past the rim; the region is the same, cut off there."""
    region = Region(Axis("a", 1e-2, 1e2, 24), Axis("b", 1.0, 2.0, 16))
    dragged = region.drag([0.1, 10.0, 1.2, 1.7])
    assert dragged == region.drag([10.0, 0.1, 1.7, 1.2])
    assert (dragged.x.low, dragged.x.high, dragged.y.low, dragged.y.high) == (0.1, 10.0, 1.2, 1.7)
    assert region.drag([0.1, 1e9, 0.5, 1.7]).x.high == 1e2


def test_a_deep_zoom_resolves_single_ulps():
    """Points of a window 64 ulps wide are the floats in it, though it is 1e-14 wide."""
    low = 0.1960618282403
    high = low + 64 * np.spacing(low)
    grid = Grid.over(Region(Axis("a", low, high, 16), Axis("b", 1.0, 2.0, 4)))
    assert grid.ulps() == 4
    assert np.all(np.diff(grid.x) >= 3.5 * np.spacing(low))


def test_pitch_is_counted_in_the_dtype_that_trains():
    """A window that is wide for float64 may hold a single float32."""
    grid = Grid.over(Region(Axis("a", 0.196061, 0.196062, 16), Axis("b", 1.0, 2.0, 4)))
    assert grid.ulps("float64") > 1e6
    assert grid.ulps("float32") < 10


def test_values_beyond_a_dtype_are_no_distance_apart():
    """A float32 cannot hold 1e39, however far from its neighbour it is."""
    grid = Grid.over(Region(Axis("a", 1e30, 1e40, 16), Axis("b", 1.0, 2.0, 4)))
    assert grid.ulps("float32") == 0
    assert grid.ulps("float64") > 1e6


def test_what_is_added_is_resolved_against_what_it_is_added_to():
    """An offset of 1e-20 on weights of size 1 changes nothing, though its floats are distinct."""
    grid = Grid.over(Region(Axis("offset", 1e-21, 1e-20, 16), Axis("b", 1.0, 2.0, 4)))
    assert grid.ulps() > 1e6
    assert grid.ulps(magnitudes=(1.0, 0.0)) < 1


def test_a_zoom_on_an_integer_axis_ends_at_single_numbers():
    """It holds no more points than numbers, down to one."""
    axis = Axis("n", 1.0, 100.0, 50, "linear", integer=True)
    assert axis.zoom(10.2, 14.9).values().tolist() == [11, 12, 13, 14]
    assert axis.zoom(11.5, 12.5, points=64).values().tolist() == [12]


def test_an_integer_axis_rounds_and_drops_duplicates():
    """Whole numbers only; a logarithmic one is denser than the numbers at its low end."""
    assert Axis("n", 1.0, 4.0, 4, "linear", integer=True).values().tolist() == [1, 2, 3, 4]
    values = Axis("n", 1.0, 1000.0, 60, "log10", integer=True).values()
    assert np.all(values == np.round(values))
    assert len(np.unique(values)) == len(values) < 60
    assert values[0] == 1
    assert 900 < values[-1] <= 1000


def test_digest_tells_values_apart_to_the_last_bit():
    """The hash of a grid changes with one bit of one value."""
    grid = Grid.over(Region(Axis("a", 1.0, 2.0, 16), Axis("b", 1.0, 2.0, 24)))
    nudged = Grid(grid.region, np.nextafter(grid.x, 3.0), grid.y)
    assert grid.digest != nudged.digest
    assert grid.digest == Grid.over(grid.region).digest


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: Axis("lr", 2.0, 1.0, 8), "must be below"),
        (lambda: Axis("lr", 1.0, 1.0, 8), "must be below"),
        (lambda: Axis("lr", 1.0, float("inf"), 8), "finite"),
        (lambda: Axis("lr", float("nan"), 1.0, 8), "finite"),
        (lambda: Axis("lr", 0.0, 1.0, 8), "positive"),
        (lambda: Axis("lr", 1.0, 2.0, 0), "between 1 and"),
        (lambda: Axis("n", 1.0, 4.0, 5, integer=True), "fewer points"),
        (lambda: Axis("n", 1.5, 4.0, 2, integer=True), "whole numbers"),
        (lambda: Region(Axis("a", 1.0, 2.0, 8), Axis("a", 1.0, 2.0, 8)), "different"),
        (lambda: Region(Axis("a", 1.0, 2.0, 2**15), Axis("b", 1.0, 2.0, 2**14)), "smaller"),
        (lambda: Axis("lr", 1e-200, 1e200, 8), "closer together"),
        (lambda: Axis("lr", -1.5e308, 1.5e308, 8, "linear"), "closer together"),
        (lambda: Axis("lr", 1.0, 2.0, 8).zoom(0.5, 1.5), "not inside"),
        (lambda: Axis("lr", 1.0, 2.0, 8).zoom(1.5, 1.2), "must be below"),
    ],
)
def test_what_cannot_be_drawn_is_refused(build, says):
    """One sentence that says what is wrong."""
    with pytest.raises(Refused, match=says):
        build()
