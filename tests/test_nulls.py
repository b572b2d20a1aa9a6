"""What is not fractal, and the verdict that tells it apart."""

import numpy as np
import pytest

from fractal_core import Axis, Grid, Refused, Region, boundary, nulls, pairs, straddle
from fractal_core.nulls import Reading, verdict
from fractal_core.outcome import is_trainable, judge_curves

REGION = Region(Axis("x", 1e-3, 1e6, 60), Axis("y", 1e-2, 1e3, 40))


def wave(rows: int = 40, cols: int = 60) -> np.ndarray:
    """A smooth curve from left to right, in a map with more columns than rows."""
    return np.arange(rows)[:, None] > rows / 2 + 6 * np.sin(np.arange(cols) / 8)


def grid_points(grid: Grid) -> np.ndarray:
    rows, cols = np.divmod(np.arange(np.prod(grid.shape)), grid.shape[1])
    return grid.points(rows, cols)


def test_smoothing_keeps_the_coarse_shape_and_drops_specks():
    """A speckled curve becomes the curve; the rate of each side stays."""
    labels = wave() ^ (np.random.default_rng(0).random((40, 60)) < 0.08)
    smooth = nulls.smooth(labels, sigma=2.0)
    assert np.mean(smooth != wave()) < 0.03
    edges = [boundary.edge_density(boundary.boundary_cells(m)) for m in (smooth, labels)]
    assert edges[0] < 0.5 * edges[1]
    assert np.mean(smooth) == pytest.approx(np.mean(labels), abs=0.05)


def test_smoothing_mirrors_at_the_rim():
    """An edge that meets the rim at a right angle stays where it is."""
    labels = np.tile(np.arange(60) < 20, (40, 1))
    assert np.array_equal(nulls.smooth(labels), labels)
    assert np.array_equal(nulls.smooth(labels.T), labels.T)


def test_coin_flips_have_the_local_rates_and_nothing_else():
    """Rates agree place by place over many draws, and neighbours are unrelated."""
    labels = wave()
    rng = np.random.default_rng(0)
    draws = np.stack([nulls.coin_flips(labels, 9, rng) for _ in range(400)])
    rate = nulls.local_rate(labels, 9)
    np.testing.assert_allclose(draws.mean(axis=0), rate, atol=0.12)
    assert 0 < rate[20, 30] < 1
    assert rate[0, 0] == 0
    residual = draws - rate
    assert abs(np.mean(residual[:, 1:] * residual[:, :-1])) < 2e-4
    assert abs(boundary.neighbour_correlation(nulls.coin_flips(labels, 40, rng))) < 0.1
    assert boundary.neighbour_correlation(labels) > 0.8


def test_a_field_takes_its_own_values_at_its_points():
    """On the grid it is the field, between it is linear in decades, beyond it is level."""
    grid = Grid.over(REGION)
    field = np.random.default_rng(0).random(grid.shape)
    np.testing.assert_allclose(
        nulls.between(field, grid, grid_points(grid)), field.ravel(), atol=1e-9
    )
    halfway = np.array([[np.sqrt(grid.x[3] * grid.x[4]), grid.y[7]], [1e-3, 1e-2]])
    expected = [(field[7, 3] + field[7, 4]) / 2, field[0, 0]]
    np.testing.assert_allclose(nulls.between(field, grid, halfway), expected, atol=1e-9)


def test_a_field_on_a_lattice_takes_its_own_values_at_its_points():
    """Every third point of the grid."""
    grid = Grid.over(REGION)
    field = np.random.default_rng(0).random((14, 20))
    rows, cols = np.meshgrid(np.arange(0, 40, 3), np.arange(0, 60, 3), indexing="ij")
    points = grid.points(rows.ravel(), cols.ravel())
    np.testing.assert_allclose(nulls.between(field, grid, points, 3), field.ravel(), atol=1e-9)


def descended(points: np.ndarray, region: Region, steps: int) -> np.ndarray:
    """Labels of the same descent, step by step."""
    centre = np.sqrt([region.x.low * region.x.high, region.y.low * region.y.high])
    curvature = 2 / 1.5 * np.array([[1.0, 0.5], [0.5, 1.0]])
    values, vectors = np.linalg.eigh(curvature)
    start = vectors / np.sqrt(values) @ vectors.T @ np.full(2, np.sqrt(0.5))
    curves = []
    for rates in points / centre:
        w, losses = start, []
        for _ in range(steps):
            losses.append(w @ curvature @ w / 2)
            w = w - rates * (curvature @ w)
        curves.append(losses)
    return is_trainable(judge_curves(np.array(curves)).outcome)


def test_the_quadratic_loss_is_gradient_descent_in_closed_form():
    """The closed form gives the labels of the descent itself, by the package's own rule."""
    region = Region(Axis("x", 1e-1, 1e1, 18), Axis("y", 1e-2, 1e2, 16))
    points = grid_points(Grid.over(region))
    with np.errstate(over="ignore"):
        expected = descended(points, region, 60)
    assert 0.2 < expected.mean() < 0.8
    assert np.array_equal(nulls.quadratic(points, region, 60), expected)


@pytest.mark.parametrize("width", [9.0, 1e-2, 1e-8])
def test_the_quadratic_border_crosses_any_region(width):
    """It goes through the middle of the overview and of a deep zoom, and is one oblique curve."""
    region = Region(
        Axis("x", 3.0, 3.0 * 10**width, 64, "log10"), Axis("y", 5.0, 5.0 * 10**width, 48, "log10")
    )
    labels = nulls.quadratic(grid_points(Grid.over(region)), region, 500).reshape(48, 64)
    assert labels[0, 0]
    assert not labels[-1, -1]
    # Once past the border along a row or a column, never back.
    assert not np.any(labels[:, 1:] & ~labels[:, :-1])
    assert not np.any(labels[1:] & ~labels[:-1])
    assert labels[20:24, 28:32].any()
    assert not labels[24:28, 32:36].all()


def test_the_quadratic_border_on_linear_axes():
    """Through the middle there as well, also where a linear axis holds values below zero."""
    region = Region(Axis("x", -1.0, 1.0, 64, "linear"), Axis("y", 0.0, 5.0, 48, "linear"))
    labels = nulls.quadratic(grid_points(Grid.over(region)), region, 500).reshape(48, 64)
    assert labels[20, 28]
    assert not labels[28, 36]


@pytest.mark.parametrize(("name", "truth"), [("smooth", 1.0), ("quadratic", 1.0), ("coins", 2.0)])
def test_nulls_go_through_pairs(name, truth):
    """The pairs estimator gives curves dimension 1 and coin flips dimension 2."""
    grid = Grid.over(REGION)
    labels = wave()
    rng = np.random.default_rng(1)
    fields = {
        "smooth": lambda p: nulls.between(nulls.smoothed(labels, 3.0), grid, p) >= 0.5,
        "quadratic": lambda p: nulls.quadratic(p, REGION, 500),
        "coins": lambda p: rng.random(len(p)) < nulls.between(nulls.local_rate(labels, 5), grid, p),
    }
    label = fields[name]
    coarse = label(grid_points(grid)).reshape(grid.shape)
    bases = straddle.focused(grid, coarse, 2000, seed=0)
    eps = pairs.distances(pairs.widest(grid) / 100, pairs.widest(grid), 8)
    others = pairs.partners(REGION, bases, eps, seed=0).points.reshape(-1, 2)
    estimate = pairs.estimate(label(bases)[:, None] != label(others).reshape(-1, 8), eps)
    assert abs(estimate.dimension - truth) < 3 * estimate.standard_error
    assert estimate.standard_error < 0.1


CURVES = {
    "the smoothed map": Reading(1.0, (0.97, 1.04)),
    "a quadratic loss": Reading(1.0, (0.99, 1.01)),
}
COINS = Reading(2.0, (1.99, 2.0))
DECADES = (1e-6, 1e-2)


@pytest.mark.parametrize(
    ("observed", "given", "kind"),
    [
        (Reading(1.93, (1.92, 1.94)), {}, "fractal"),
        (Reading(1.02, (0.99, 1.05)), {}, "smooth"),
        (Reading(0.8, (0.7, 0.9)), {}, "smooth"),
        (Reading(1.12, (1.0, 1.24)), {}, "unresolved"),
        (Reading(1.99, (1.98, 2.0)), {}, "noise"),
        (Reading(1.5, (1.2, 1.75)), {}, "unresolved"),
        (Reading(1.93, (1.92, 1.94)), {"scales": (5e-3, 1e-2)}, "unresolved"),
        (Reading(1.93, (1.92, 1.94)), {"rerun_share": 0.8}, "noise"),
        (Reading(float("nan"), (0.0, 2.0)), {"unresolved": "only 3 flips"}, "unresolved"),
    ],
)
def test_the_verdict_on_pairs(observed, given, kind):
    """Above all curves and below the coin flips, or else which of them it is."""
    found = verdict(observed, CURVES, COINS, **{"scales": DECADES, **given})
    assert found.kind == kind


def test_a_null_without_a_dimension_decides_nothing():
    """An interval of everything overlaps everything; that is no evidence of noise."""
    observed, nothing = Reading(1.93, (1.92, 1.94)), Reading(float("nan"), (0.0, 2.0))
    found = verdict(observed, CURVES, nothing, DECADES)
    assert found.kind == "unresolved"
    assert "coin flips gave no dimension" in found.evidence[-1]
    assert verdict(observed, {"a curve": nothing}, COINS, DECADES).kind == "unresolved"


@pytest.mark.parametrize(
    ("dimension", "correlation", "edges", "kind"),
    [
        ((1.55, 1.59), (-0.04, 0.01), 0.2, "noise"),
        ((1.55, 1.59), (0.30, 0.40), 0.2, "fractal"),
        ((1.40, 1.44), (0.30, 0.40), 0.2, "fractal"),
        ((1.40, 1.44), (-0.04, 0.01), 0.2, "unresolved"),
        ((1.40, 1.44), (0.30, 0.40), 0.4, "unresolved"),
        ((1.05, 1.15), (0.80, 0.90), 0.05, "smooth"),
    ],
)
def test_the_verdict_on_a_map(dimension, correlation, edges, kind):
    """A map must differ from coin flips in how much neighbours know of each other."""
    observed = Reading(float(np.mean(dimension)), dimension, correlation, edges)
    curves = {"the smoothed map": Reading(1.1, (1.05, 1.15))}
    coins = Reading(1.57, (1.56, 1.58), (-0.05, 0.02))
    assert verdict(observed, curves, coins, (1.0, 64.0), "cells").kind == kind


def test_the_verdict_gives_its_evidence():
    """Every reading, the scales and what decided are said; the words are those of the task."""
    found = verdict(Reading(1.93, (1.92, 1.94)), CURVES, COINS, DECADES)
    assert str(found) == "fractal over [1e-06, 0.01] decades"
    assert found.evidence[0] == "D is 1.930 (1.920 to 1.940) over 4.0 decades of scale"
    assert "the smoothed map gives 1.000 (0.970 to 1.040)" in found.evidence
    assert any("coin flips" in sentence for sentence in found.evidence)
    words = [
        str(nulls.Verdict(kind, DECADES, "", ())) for kind in ("smooth", "unresolved", "noise")
    ]
    assert words == ["smooth", "unresolved at this resolution", "indistinguishable from noise"]


def test_a_map_with_holes_is_refused():
    """A hole is no label."""
    holes = np.ma.masked_array(wave(), np.zeros((40, 60), bool))
    holes[3, 4] = np.ma.masked
    for null in (nulls.smooth, lambda m: nulls.coin_flips(m, 5, np.random.default_rng(0))):
        with pytest.raises(Refused, match="missing"):
            null(holes)
