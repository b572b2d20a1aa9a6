"""The box-counting dimension against sets whose dimension is known."""

from pathlib import Path

import numpy as np
import pytest

from fractal_core.bench import dim
from fractal_core.boundary import (
    Counts,
    boundary_cells,
    dyadic_counts,
    gliding_counts,
    minkowski_counts,
)
from fractal_core.dimension import (
    Dimension,
    dimension,
    dimension_in_time,
    fit,
    fitted_sizes,
    fractal_llm_dimension,
    paper_dimension,
    porespy_counts,
)
from fractal_core.errors import Refused
from tests import sets

PITCH = (0.01, 0.01)
GOLDEN = Path(__file__).parent / "data" / "fractal_llm_64x64_trainable.npz"

FRACTALS = {
    "Koch": sets.KOCH,
    "rabbit": sets.DOUADY_RABBIT,
    "Julia": sets.JULIA,
    "carpet": sets.CARPET,
}


def number(found: Dimension) -> float:
    assert found.verdict == "resolved", found.reason
    assert found.value is not None
    return found.value


@pytest.mark.parametrize("degrees", [0, 7, 15, 30, 45, 52, 60, 75, 90, 110, 160])
def test_straight_lines_have_dimension_one(degrees):
    """At any angle, within 0.01 from 256 x 256 points, off the corners of the map."""
    labels = sets.LINE.labels(256, np.deg2rad(degrees), 0.031 + 0.052j)
    assert number(dimension(labels, PITCH)) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("seed", range(4))
def test_circles_have_dimension_one(seed):
    """Wherever they lie, within 0.01 from 256 x 256 points."""
    assert number(dimension(sets.CIRCLE.placed(256, seed), PITCH)) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("name", FRACTALS)
def test_fractals_have_their_dimension(name):
    """Within 0.06 at 1024 x 1024, upright and at an odd angle, and inside of the interval."""
    known = FRACTALS[name]
    for labels in (known.labels(1024), known.placed(1024, seed=1)):
        found = dimension(labels, PITCH)
        assert number(found) == pytest.approx(known.dimension, abs=0.06)
        assert found.low <= known.dimension <= found.high


@pytest.mark.parametrize("name", FRACTALS)
def test_other_ways_of_counting_agree(name):
    """The fixed lattice and the distance transform, with the same fit."""
    known = FRACTALS[name]
    cells = boundary_cells(known.placed(1024, seed=2))
    for counts in (dyadic_counts(cells), minkowski_counts(cells)):
        assert fit(counts)[0] == pytest.approx(known.dimension, abs=0.06)


def test_only_sizes_with_enough_and_small_enough_boxes_are_fitted():
    """At least 30 boxes hold both labels, and a box is at most 1/16 of the shorter side."""
    sizes, found = np.array([1, 4, 8, 9, 16]), np.array([400.0, 29.9, 30.0, 300.0, 300.0])
    use = fitted_sizes(Counts(sizes, found, np.full(5, 1000.0), side=143))
    assert use.tolist() == [True, False, True, False, False]


def test_what_a_box_cannot_see_is_taken_into_account():
    """Without it a Koch curve would read low; a straight line needs none."""
    counts = gliding_counts(boundary_cells(sets.KOCH.labels(1024)))
    plain = 2 - np.polyfit(np.log(counts.sizes), np.log(counts.counts / counts.boxes), 1)[0]
    value, unseen = fit(counts)
    assert plain < sets.KOCH.dimension - 0.02
    assert value == pytest.approx(sets.KOCH.dimension, abs=0.01)
    assert unseen == pytest.approx(0.22, abs=0.05)
    line = gliding_counts(boundary_cells(sets.LINE.labels(512, 0.3)))
    assert fit(line)[1] == pytest.approx(0.0, abs=0.02)


@pytest.mark.parametrize(
    ("true", "bias"), [(1.2, -0.04), (1.5, -0.14), (1.8, -0.22)], ids=["1.2", "1.5", "1.8"]
)
def test_graphs_of_functions_read_low_by_a_known_amount(true, bias):
    """A Weierstrass graph is self-affine: no affordable map shows its dimension."""
    found = [number(dimension(sets.weierstrass(1024, true, seed), PITCH)) for seed in range(4)]
    assert np.mean(found) - true == pytest.approx(bias, abs=0.03)


@pytest.mark.parametrize("points", [64, 256, 1024])
@pytest.mark.parametrize("rate", [0.5, 0.1, 0.02])
def test_noise_gets_a_sentence_and_no_number(points, rate):
    """Coin flips would read 2 at every scale, which is no dimension of a boundary."""
    flips = np.random.default_rng(0).random((points, points)) < rate
    found = dimension(flips, PITCH)
    assert found.verdict == "unresolved"
    assert found.value is found.low is found.high is None
    assert "noise" in found.reason


@pytest.mark.parametrize("width", [0.02, 0.1])
def test_a_smooth_boundary_under_noise_is_unresolved(width):
    """It would read anything from 1.2 to 1.8, and more with a finer grid."""
    for points in (256, 1024):
        found = dimension(sets.blurred_line(points, width, seed=1), PITCH)
        assert found.verdict == "unresolved"


def test_a_boundary_that_fills_the_map_is_unresolved():
    """Islands of 3 x 3 points correlate, but nearly every other cell is a boundary cell."""
    islands = np.kron(np.random.default_rng(0).random((90, 90)) < 0.5, np.ones((3, 3), bool))
    found = dimension(islands.astype(bool), PITCH)
    assert found.edge_density > 0.3
    assert found.verdict == "unresolved"


@pytest.mark.parametrize("label", [True, False])
@pytest.mark.parametrize("shape", [(2, 2), (5, 9), (64, 64)])
def test_a_map_without_boundary_says_so(label, shape):
    """All trainable or none: a sentence, no number and no warning."""
    found = dimension(np.full(shape, label), PITCH)
    assert found.verdict == "no boundary"
    assert found.value is None
    assert found.decades is None
    assert "no boundary" in found.reason


def test_a_small_map_says_what_it_lacks():
    """Too few sizes to fit, and the remedy."""
    labels = sets.CIRCLE.labels(40)
    found = dimension(labels, PITCH)
    assert found.verdict == "unresolved"
    assert "at least 64 x 64" in found.reason
    with pytest.raises(Refused, match="box sizes"):
        fit(gliding_counts(boundary_cells(labels)))


def test_missing_points_are_refused_unless_the_measured_part_is_asked_for():
    """Then a few holes hardly move the dimension."""
    whole = sets.KOCH.labels(512)
    holes = np.zeros(whole.shape, bool)
    holes[tuple(np.random.default_rng(0).integers(0, 512, (2, 12)))] = True
    labels = np.ma.masked_array(whole, holes)
    with pytest.raises(Refused, match="12 of 262144 points are missing"):
        dimension(labels, PITCH)
    part = dimension(labels, PITCH, measured_only=True)
    assert number(part) == pytest.approx(number(dimension(whole, PITCH)), abs=0.02)
    nothing = np.ma.masked_array(whole, True)
    assert dimension(nothing, PITCH, measured_only=True).verdict == "no boundary"


def test_the_same_map_gives_the_same_answer():
    """The bootstrap is seeded; swapping the labels or the axes changes no more than rounding."""
    labels = sets.DOUADY_RABBIT.placed(256, 3)[:, 20:]
    found = dimension(labels, PITCH)
    for other in (labels, ~labels):
        again = dimension(other, PITCH)
        assert (again.value, again.low, again.high) == (found.value, found.low, found.high)
    assert number(dimension(labels.T, PITCH)) == pytest.approx(number(found), abs=1e-9)
    assert number(dimension(labels[::-1], PITCH)) == pytest.approx(number(found), abs=0.005)


def test_scales_are_decades_of_the_hyperparameters():
    """Size in points times the geometric mean of the pitches; the dimension does not see them."""
    labels = sets.KOCH.labels(256)
    one, other = dimension(labels, (0.01, 0.01)), dimension(labels, (0.04, 0.09))
    assert one.decades == pytest.approx((0.01, 0.16))
    assert other.decades == pytest.approx((0.06, 0.96))
    np.testing.assert_allclose(other.profile.eps, 6 * one.profile.eps)
    assert (other.value, other.low) == (one.value, one.low)


def test_local_slopes_come_with_intervals_and_climb_to_the_dimension():
    """Small boxes miss what is finer than a pitch; that is what `unseen` measures."""
    found = dimension(sets.KOCH.labels(1024), PITCH)
    profile = found.profile
    assert len(profile.dimension) == len(profile.eps) == len(profile.low) == len(profile.high)
    assert np.all((profile.low <= profile.dimension) & (profile.dimension <= profile.high))
    assert profile.dimension[0] < sets.KOCH.dimension - 0.08
    assert profile.dimension[-4:].mean() == pytest.approx(sets.KOCH.dimension, abs=0.02)
    assert np.abs(found.fitted - profile.dimension).max() < 0.02
    assert np.all(np.diff(found.fitted) > 0)
    assert found.fitted[-1] < found.value
    assert dimension(np.ones((64, 64), bool), PITCH).fitted is None


def test_boundary_in_time():
    """One dimension for each training length, in order."""
    lengths = np.stack([sets.CIRCLE.labels(256), sets.KOCH.labels(256), np.ones((256, 256), bool)])
    smooth, rough, gone = dimension_in_time(lengths, PITCH)
    assert number(smooth) == pytest.approx(1.0, abs=0.01)
    assert number(rough) > 1.2
    assert gone.verdict == "no boundary"


def test_the_earlier_projects_figure_comes_back_from_its_map():
    """1.21 exactly as published; with an interval it is no more than a smooth curve could be."""
    labels = np.load(GOLDEN)["trainable"]
    assert round(fractal_llm_dimension(labels), 2) == 1.21
    found = dimension(labels, (5 / 64, 5.48 / 64))
    assert found.low < 1.08 < found.high


@pytest.mark.parametrize("side", [64, 97])
def test_the_papers_counts_are_those_of_porespy(side):
    """Its sizes, and any minus all, to the last box."""
    porespy = pytest.importorskip("porespy")
    porespy.settings.tqdm["disable"] = True
    labels = np.random.default_rng(0).random((side, side + 30)) < 0.3
    labels[:40] = False
    cells = boundary_cells(labels)
    theirs, ours = porespy.metrics.boxcount(cells), porespy_counts(cells)
    assert ours.sizes.tolist() == list(theirs.size)
    assert ours.counts.tolist() == list(theirs.count)
    assert paper_dimension(labels) == pytest.approx(np.median(theirs.slope))


def test_recipes_of_others_refuse_what_they_cannot_do():
    """Maps without room for their boxes, and missing points."""
    small = np.eye(4, dtype=bool)
    for recipe in (paper_dimension, fractal_llm_dimension):
        with pytest.raises(Refused, match="at least"):
            recipe(small)
        with pytest.raises(Refused, match="missing"):
            recipe(np.ma.masked_array(np.eye(20, dtype=bool), np.eye(20, dtype=bool)))


def test_the_benchmark_counts_on_one_mask():
    """All three contenders, a ratio within the round, and what one needs to say if porespy lacks."""
    pytest.importorskip("porespy")
    result = dim.measure(rounds=1, side=256)
    assert set(result.rates.by_name) == {"dyadic", "gliding", "porespy"}
    assert 0 < result.edge_density < 0.1
    assert result.seconds("dyadic") > 0
    with pytest.raises(Refused, match="at least 240"):
        dim.measure(rounds=1, side=100)


def test_the_benchmark_refuses_without_porespy(monkeypatch):
    """It names the extra that brings it."""
    monkeypatch.setattr(dim.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Refused, match="--extra bench"):
        dim.measure(rounds=1, side=256)


def cover(truth: float, maps: list[np.ndarray]) -> tuple[int, float]:
    """How many intervals hold the truth, and their median half-width."""
    found = [dimension(labels, PITCH) for labels in maps]
    held = sum(d.low is not None and d.low <= truth <= d.high for d in found)
    widths = [np.inf if d.low is None else (d.high - d.low) / 2 for d in found]
    return held, float(np.median(widths))


SELF_SIMILAR = {
    "Koch": sets.KOCH,
    "rabbit": sets.DOUADY_RABBIT,
    "Julia": sets.JULIA,
    "twindragon": sets.TWINDRAGON,
}


@pytest.mark.coverage
@pytest.mark.parametrize("name", [*SELF_SIMILAR, "random Koch"])
def test_intervals_hold_the_truth(name):
    """At least 45 of 50 random angles and shifts, with a median half-width of at most 0.08."""
    known = SELF_SIMILAR.get(name) or sets.random_koch(0)
    draws = [SELF_SIMILAR.get(name) or sets.random_koch(seed) for seed in range(50)]
    held, half_width = cover(
        known.dimension, [drawn.placed(1024, seed) for seed, drawn in enumerate(draws)]
    )
    print(f"{name}: {held} of 50, median half-width {half_width:.3f}")
    assert held >= 45
    assert half_width <= 0.08


@pytest.mark.coverage
def test_a_gasket_down_to_the_last_point_is_unresolved():
    """Its finest triangles are 1.4 points wide, so there is no number rather than a wrong one."""
    for seed in range(50):
        assert dimension(sets.GASKET.placed(1024, seed), PITCH).verdict == "unresolved"
