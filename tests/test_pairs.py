"""Dimensions from pairs of runs: known sets, their intervals, and what they cost."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fractal_core import Axis, Grid, Refused, Region, pairs, seeing, straddle
from fractal_core.seeing import Rate

SQUARE = Region(Axis("x", -1.8, 1.8, 24, "linear"), Axis("y", -1.6, 1.6, 24, "linear"))
DECADES = Region(Axis("x", 1e-3, 1e6, 24), Axis("y", 1e-2, 1e3, 16))


def weierstrass(points: np.ndarray, dimension: float) -> np.ndarray:
    """Above the graph of the sum of 2^(-Hk) cos(2 pi 2^k x), whose dimension is 2 - H (Shen 2018).

    The phase 2^k x is exact in binary and so is its remainder by 1: all 52 terms are right to the
    last bits of a phase, and the shortest wave is 4e-16 long.
    """
    x, y = points.T
    height = np.zeros(len(x))
    for k in range(52):
        height += 2.0 ** ((dimension - 2) * k) * np.cos(2 * np.pi * np.mod(np.ldexp(x, k), 1.0))
    return y > height


def graph_region(dimension: float) -> Region:
    """Where the graph of `weierstrass` lies, within a few percent."""
    top = 1 / (1 - 2.0 ** (dimension - 2))
    return Region(
        Axis("x", 0.0, 1.0, 24, "linear"), Axis("y", -0.6 * top, 1.02 * top, 24, "linear")
    )


def filled_julia(points: np.ndarray, c: complex) -> np.ndarray:
    """Whether z^2 + c keeps a point near."""
    z = points[:, 0] + 1j * points[:, 1]
    near = np.ones(len(z), bool)
    for _ in range(300):
        z[near] = z[near] ** 2 + c
        near[near] = np.abs(z[near]) < 4
    return near


def circle(points: np.ndarray) -> np.ndarray:
    return np.hypot(points[:, 0] - 0.1, points[:, 1] + 0.07) < 1.1


def noise(points: np.ndarray) -> np.ndarray:
    """A label that is a hash of the bits of a point."""
    x, y = np.ascontiguousarray(points).view(np.uint64).T
    mixed = x * np.uint64(0x9E3779B97F4A7C15) ^ y * np.uint64(0xC2B2AE3D27D4EB4F)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    return (mixed >> np.uint64(40)) % np.uint64(2) == 1


def coarse_map(label, grid: Grid) -> np.ndarray:
    rows, cols = np.divmod(np.arange(np.prod(grid.shape)), grid.shape[1])
    return label(grid.points(rows, cols)).reshape(grid.shape)


def flips_of(label, bases: np.ndarray, region: Region, eps: np.ndarray, seed: int) -> np.ndarray:
    others = pairs.partners(region, bases, eps, seed).points.reshape(-1, 2)
    return label(bases)[:, None] != label(others).reshape(len(bases), len(eps))


def measure(label, region: Region, runs: int, seed: int) -> pairs.PairsDimension:
    """The whole way: coarse map, a pilot that finds the range of scales, and the estimate."""
    grid = Grid.over(region)
    coarse = coarse_map(label, grid)
    high, least = pairs.widest(grid), max(seeing.finest(region), 1e-13)

    def stage(budget: pairs.Budget, low: float, seed: int) -> pairs.PairsDimension:
        bases = straddle.focused(grid, coarse, budget.bases, seed)
        eps = pairs.distances(low, high, budget.scales)
        return pairs.estimate(flips_of(label, bases, region, eps, seed), eps, seed=seed)

    pilot = pairs.Budget(100, 8, grid.shape)
    low = pairs.reach(stage(pilot, high / 1e3, seed + 1000), high, least)
    left = runs - pilot.runs
    budget = pairs.afford(left, np.log10(high / low), coarse=(0, 0), floors=0)
    assert pilot.runs + budget.runs <= runs
    return stage(budget, low, seed)


def deviation(estimate: pairs.PairsDimension, truth: float) -> float:
    """How many standard errors an estimate is off."""
    return abs(estimate.dimension - truth) / estimate.standard_error


KNOWN = [
    pytest.param(circle, SQUARE, 1.0, id="circle"),
    pytest.param(functools.partial(filled_julia, c=-1), SQUARE, 1.268, id="basilica"),
    pytest.param(
        functools.partial(filled_julia, c=-0.122561 + 0.744862j), SQUARE, 1.393, id="rabbit"
    ),
    *(
        pytest.param(
            functools.partial(weierstrass, dimension=d), graph_region(d), d, id=f"weierstrass-{d}"
        )
        for d in (1.2, 1.5, 1.8)
    ),
]


@pytest.mark.parametrize(("label", "region", "truth"), KNOWN)
def test_known_sets(label, region, truth):
    """8,000 runs find the dimension of a known set, and say how well they did."""
    estimates = [measure(label, region, 8_000, seed) for seed in range(3)]
    assert np.mean([deviation(estimate, truth) < 2.5 for estimate in estimates]) > 0.5
    assert np.mean([e.dimension for e in estimates]) == pytest.approx(truth, abs=0.12)
    assert all(0.003 < estimate.standard_error < 0.15 for estimate in estimates)


@pytest.mark.coverage
@pytest.mark.parametrize(("label", "region", "truth"), KNOWN)
def test_known_sets_twenty_times(label, region, truth):
    """16,000 runs come within two standard errors of the truth for 17 of 20 seeds."""
    estimates = [measure(label, region, 16_000, seed) for seed in range(20)]
    close = sum(deviation(estimate, truth) <= 2 for estimate in estimates)
    found = np.array([estimate.dimension for estimate in estimates])
    errors = np.array([estimate.standard_error for estimate in estimates])
    print(
        f"true {truth}: mean {found.mean():.4f}, scatter {found.std(ddof=1):.4f}, "
        f"standard error {errors.mean():.4f}, within two of them {close} of 20"
    )
    assert close >= 17


def test_noise_has_dimension_two():
    """Labels that differ at any distance give alpha = 0, with an interval that reaches 2."""
    estimate = measure(noise, SQUARE, 8_000, seed=0)
    assert estimate.interval[1] == 2
    assert estimate.dimension > 1.98
    assert not estimate.unresolved


def test_chords_agree_with_a_coarse_map():
    """Base points that were straddled give the same dimension, also two halvings further down."""
    label, region = functools.partial(weierstrass, dimension=1.5), graph_region(1.5)
    spacing = 0.01
    chords = straddle.draw_chords(region, 80, spacing, seed=0)
    brackets = straddle.Brackets.along(
        chords, label(straddle.values_at(region, chords.fractions))
    ).sample(1500, seed=0)
    for width in (spacing, spacing / 4):
        bases, chord = brackets.bases(region, seed=1, each=2)
        eps = pairs.distances(width / 4e4, width / 4, 9)
        flips = flips_of(label, bases, region, eps, seed=2)
        assert deviation(pairs.estimate(flips, eps, groups=chord), 1.5) < 2.5
        for _ in range(2):
            brackets = brackets.halved(label(straddle.values_at(region, brackets.middles)))


def synthetic(alpha: float, top: float, bases: int, eps: np.ndarray, seed: int = 0) -> np.ndarray:
    """Flips that follow the law, independent between scales."""
    share = top * (eps / eps[0]) ** alpha
    return np.random.default_rng(seed).random((bases, len(eps))) < share


@settings(deadline=None, max_examples=40)
@given(
    alpha=st.floats(0.05, 1.0),
    top=st.floats(0.05, 0.5),
    bases=st.integers(400, 2000),
    scales=st.integers(3, 12),
)
def test_the_fit_is_the_maximum_of_the_likelihood(alpha, top, bases, scales):
    """At the fitted line the flips that the model expects are those that were seen."""
    eps = pairs.distances(1e-4, 1e-2, scales)
    flips = synthetic(alpha, top, bases, eps)
    fit = pairs.estimate(flips, eps, draws=20).fit
    pull = (flips.sum(axis=0) - bases * fit) / (1 - fit)
    assert abs(pull.sum()) < 0.05
    assert abs(pull @ np.log(eps / eps[0])) < 0.1
    assert fit.max() < 1


def test_scales_without_flips_count():
    """Zeros at small distances are evidence for a steep fall; leaving them out would flatten it."""
    eps = pairs.distances(1e-5, 1e-2, 7)
    flips = synthetic(1.0, 0.1, 1000, eps)
    assert (flips.sum(axis=0) == 0).any()
    assert deviation(pairs.estimate(flips, eps), 1.0) < 2
    some = flips.any(axis=0)
    assert (
        pairs.estimate(flips[:, some], eps[some]).dimension > pairs.estimate(flips, eps).dimension
    )


def test_every_base_flipping_at_the_top_keeps_the_share_below_one():
    """A maximum at f = 1 is where the fit ends, not where it fails."""
    eps = pairs.distances(1e-4, 1e-2, 5)
    flips = synthetic(0.5, 1.0, 300, eps)
    assert flips[:, 0].all()
    estimate = pairs.estimate(flips, eps)
    assert 0.98 < estimate.fit[0] < 1
    assert estimate.dimension == pytest.approx(1.5, abs=0.1)


@pytest.mark.parametrize("flipped", [0, 3])
def test_too_few_flips_say_nothing(flipped):
    """Without flips to speak of there is no dimension, and the interval is all of them."""
    eps = pairs.distances(1e-4, 1e-2, 5)
    flips = np.zeros((200, 5), bool)
    flips[:flipped, 0] = True
    estimate = pairs.estimate(flips, eps)
    assert np.isnan(estimate.dimension)
    assert estimate.interval == (0.0, 2.0)
    assert estimate.unresolved == f"only {flipped} flips at 5 distances"
    assert np.isnan(estimate.profile.dimension).all()
    assert estimate.flips_high[-1] == pytest.approx(3.7 / 200, rel=0.02)


def test_a_wide_interval_is_unresolved():
    """Thirty base points over a short range do not settle a dimension."""
    eps = pairs.distances(5e-3, 1e-2, 3)
    assert "wide" in pairs.estimate(synthetic(0.5, 0.5, 60, eps), eps).unresolved


def test_an_interval_needs_more_than_one_chord():
    """Drawing the only chord again and again shows no error, which is not the same as none."""
    eps = pairs.distances(1e-4, 1e-2, 7)
    estimate = pairs.estimate(synthetic(0.5, 0.3, 300, eps), eps, groups=np.zeros(300, np.int64))
    assert estimate.unresolved.startswith("only 1 base points")


def test_two_distances_are_too_few():
    """Any two counts lie on a line."""
    eps = np.array([1e-2, 1e-4])
    assert pairs.estimate(synthetic(0.5, 0.3, 900, eps), eps).unresolved == "only 2 distances"


def test_flips_at_one_scale_only():
    """All flips at the largest distance: a finite, steep slope, and no crash of a sample."""
    eps = pairs.distances(1e-4, 1e-2, 5)
    flips = np.zeros((500, 5), bool)
    flips[:40, 0] = True
    estimate = pairs.estimate(flips, eps)
    assert estimate.dimension < 0.5
    assert np.isfinite(estimate.standard_error)


def test_scales_that_reruns_explain_are_left_out():
    """Label noise flattens small distances; they are shown, but not fitted."""
    eps = pairs.distances(1e-8, 1e-2, 13)
    share = 0.3 * (eps / eps[0]) ** 0.5 + 0.01
    flips = np.random.default_rng(0).random((4000, 13)) < share
    blind = pairs.estimate(flips, eps)
    aware = pairs.estimate(flips, eps, rerun=Rate(10, 1000))
    assert deviation(blind, 1.5) > 5
    assert aware.dimension == pytest.approx(1.5, abs=0.1)
    assert aware.scales[0] > 1e-5
    assert len(aware.flips) == 13
    buried = pairs.estimate(flips, eps, rerun=Rate(300, 1000))
    assert "reruns explain" in buried.unresolved
    assert np.isnan(buried.dimension)


def test_the_profile_sees_where_the_law_changes():
    """Rough above a scale and smooth below it: one D would hide that."""
    eps = pairs.distances(1e-6, 1e-2, 13)
    share = np.where(eps > 1e-4, 0.4 * (eps / 1e-2) ** 0.2, 0.4 * 0.01**0.2 * (eps / 1e-4))
    flips = np.random.default_rng(0).random((20_000, 13)) < share
    profile = pairs.estimate(flips, eps).profile
    assert len(profile.eps) == 11
    assert profile.low[0] < 1.8 < profile.high[0]
    assert profile.dimension[-3] == pytest.approx(1.0, abs=0.2)


def test_what_was_drawn_together_is_drawn_again_together():
    """Copies of a base point add nothing: with groups, the error stays that of the originals."""
    eps = pairs.distances(1e-4, 1e-2, 7)
    flips = synthetic(0.5, 0.3, 300, eps)
    copied, groups = np.repeat(flips, 5, axis=0), np.repeat(np.arange(300), 5)
    alone = pairs.estimate(flips, eps).standard_error
    assert pairs.estimate(copied, eps).standard_error < 0.6 * alone
    together = pairs.estimate(copied, eps, groups=groups).standard_error
    assert together == pytest.approx(alone, rel=0.1)


def test_an_estimate_is_a_function_of_its_seed():
    """The same flips and seed give the same interval; the order of base points does not matter."""
    eps = pairs.distances(1e-4, 1e-2, 7)
    flips = synthetic(0.5, 0.3, 300, eps)
    first = pairs.estimate(flips, eps).interval
    assert first == pairs.estimate(flips[::-1], eps).interval
    assert first != pairs.estimate(flips, eps, seed=1).interval


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_partners_are_numbers_at_the_distance_asked_for(dtype):
    """Down to four last places, what is realised is within a third of what was asked for."""
    grid = Grid.over(DECADES)
    labels = grid.y[:, None] > grid.x
    bases = straddle.focused(grid, labels, 200, 0, dtype)
    eps = pairs.distances(seeing.finest(DECADES, dtype), 1e-2, 9)
    found = pairs.partners(DECADES, bases, eps, 1, dtype)
    assert np.array_equal(found.points, found.points.astype(dtype).astype(np.float64))
    np.testing.assert_allclose(found.distances, np.broadcast_to(eps, (200, 9)), rtol=0.35)
    np.testing.assert_allclose(
        found.distances[:, :6], np.broadcast_to(eps[:6], (200, 6)), rtol=0.01
    )
    moved = np.log10(found.points / bases[:, None])[:, 0]
    np.testing.assert_allclose(np.hypot(*moved.T), 1e-2, rtol=1e-4)
    assert np.abs(np.mean(moved, axis=0)).max() < 2e-3
    again = pairs.partners(DECADES, bases, eps, 1, dtype)
    assert np.array_equal(found.points, again.points)


def test_partners_may_leave_the_region_but_not_the_floats():
    """Hyperparameters exist beyond the rim; a number that cannot be held is refused."""
    bases = np.array([[1e-3, 1e-2], [1e6, 1e3]] * 20)
    points = pairs.partners(DECADES, bases, np.array([0.5]), 0).points
    assert (points[..., 0].min() < 1e-3) & (points[..., 0].max() > 1e6)
    assert points.min() > 0
    tall = Region(Axis("x", 1e30, 2e38, 8), Axis("y", 1.0, 2.0, 8))
    with pytest.raises(Refused, match="range of float32"):
        pairs.partners(tall, np.full((20, 2), [2e38, 1.5]), np.array([1.0]), 0, "float32")


def test_pairs_of_a_lattice_may_be_as_much_wider():
    """A quarter of the smaller side of a cell of the lattice."""
    grid = Grid.over(DECADES)
    assert pairs.widest(grid) == pytest.approx(5 / 16 / 4)
    assert pairs.widest(grid, 4) == pytest.approx(4 * 5 / 16 / 4)


def test_the_cost_is_the_number_of_runs():
    """Coarse map, base points with their partners, and two runs for every floor."""
    assert pairs.Budget(100, 8, (24, 16), 50).runs == 24 * 16 + 100 * 9 + 100


@given(st.integers(1_500, 10**6), st.floats(0.5, 14))
def test_a_budget_is_spent_but_not_exceeded(runs, decades):
    """What is afforded costs at most what was allowed, and one more base point would not fit."""
    budget = pairs.afford(runs, decades)
    assert runs - (1 + budget.scales) - 2 * 100 < budget.runs <= runs


def test_a_rough_boundary_is_worth_more_decades():
    """The range of scales follows the pilot: two decades if smooth, all there are if very rough."""
    eps = pairs.distances(1e-4, 1e-2, 7)
    lows = [
        pairs.reach(pairs.estimate(synthetic(alpha, 0.4, 2000, eps), eps), 1e-2, 1e-13)
        for alpha in (1.0, 0.5, 0.01)
    ]
    assert 5e-5 < lows[0] < 5e-4
    assert lows[0] > lows[1] > lows[2] == 1e-13


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: pairs.afford(500, 3.0), "too few"),
        (lambda: pairs.estimate(np.zeros((0, 3), bool), np.array([3.0, 2.0, 1.0])), "base points"),
        (lambda: pairs.estimate(np.zeros((5, 2), bool), np.array([1.0, 2.0])), "fall"),
        (lambda: pairs.estimate(np.zeros((5, 2), bool), np.array([1.0, 0.0])), "positive"),
        (
            lambda: pairs.partners(DECADES, np.ones((3, 2)), np.array([1e-17]), 0),
            "lost in the rounding",
        ),
        (
            lambda: pairs.partners(DECADES, np.ones((3, 2)), np.array([1e-9]), 0, "float32"),
            "rounding of float32",
        ),
        (
            lambda: pairs.partners(
                DECADES, np.ones((3, 2)), np.array([1e-14]), 0, magnitudes=(3.0, 0.0)
            ),
            "lost in the rounding",
        ),
    ],
)
def test_what_cannot_be_estimated_is_refused(build, says):
    """One sentence that says what is wrong."""
    with pytest.raises(Refused, match=says):
        build()
