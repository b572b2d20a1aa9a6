"""The dimension of a boundary from pairs of runs, without a picture.

Train at a point and at another a distance eps away, both with the same randomness. The labels
differ with probability f(eps), which falls with the distance as

    f(eps) = exp(a) eps^alpha        D = 2 - alpha

where alpha is the uncertainty exponent and D the box-counting dimension of the boundary. A smooth
boundary has alpha = 1; noise has alpha = 0, as its labels differ at any distance. One run of the
base point serves all distances.

Here are plans and sums only; whoever trains the points does so between two calls (`straddle` has
the base points). A distance is measured in decades on a `log10` axis and in lengths of the axis on
a linear one.

Source: Grebogi, McDonald, Ott and Yorke 1983 (Phys. Lett. A 99); McDonald, Grebogi, Ott and Yorke
1985 (Physica D 17). Departures: base points lie where the boundary is, which changes a and not
alpha, as long as eps stays well below the size of the cells they were drawn from; the partner's
direction is random; the fit is a binomial one in which a scale without flips counts.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from fractal_core.dimension import Profile
from fractal_core.errors import Refused
from fractal_core.plane import Grid, Region
from fractal_core.seeing import Rate, finest, length_of, rate_interval, require_real, rounded

LN10 = float(np.log(10))

PER_DECADE = 2
MIN_SCALES = 3
MIN_FLIPS = 10
MIN_DRAWN = 20
WINDOW = 3
USEFUL = 4.0
MOST_RERUN = 0.2
WIDEST = 0.5
RIDGE = 1e-2
BARRIER = 1e-3


# ---------------------------------------------------------------------------------- what it costs


@dataclass(frozen=True)
class Budget:
    """What an estimate consists of, and so what it costs.

    Args:
        bases: Base points.
        scales: Distances at which every base point has a partner.
        coarse: Rows and columns of the map in which the base points are looked for; (0, 0) if
            there is one already.
        floors: Base points that are also run again, and nudged by one last place.
    """

    bases: int
    scales: int
    coarse: tuple[int, int] = (24, 24)
    floors: int = 0

    @property
    def runs(self) -> int:
        """Number of trainings."""
        rows, cols = self.coarse
        return rows * cols + self.bases * (1 + self.scales) + 2 * self.floors


def afford(
    runs: int, decades: float, coarse: tuple[int, int] = (24, 24), floors: int = 100
) -> Budget:
    """The base points and scales that a number of runs pays for.

    Two scales to a decade, but at least 8 and at most 16 of them: fewer may fall in step with a
    boundary that repeats itself, and beyond, more base points say more.

    Args:
        runs: The most runs to spend.
        decades: Range of distances to cover, see `distances`.

    Raises:
        Refused: Too few for 30 base points.
    """
    scales = int(np.clip(round(PER_DECADE * decades) + 1, 8, 16))
    bases = (runs - coarse[0] * coarse[1] - 2 * floors) // (1 + scales)
    if bases < 30:
        least = Budget(30, scales, coarse, floors).runs
        raise Refused(f"{runs} runs are too few for {scales} scales; allow at least {least}")
    return Budget(bases, scales, coarse, min(floors, bases))


# --------------------------------------------------------------------------------------- partners


@dataclass(frozen=True, eq=False)
class Partners:
    """A point at each distance of each base point.

    Args:
        points: Values that are numbers of the precision that trains. They may lie outside the
            region, where hyperparameters exist as well.
        distances: What the distances came to after rounding.
    """

    points: Float64[np.ndarray, "bases scales 2"]
    distances: Float64[np.ndarray, "bases scales"]


def distances(low: float, high: float, scales: int) -> Float64[np.ndarray, " scales"]:
    """Distances from `high` down to `low`, evenly spaced in their logarithm."""
    return np.geomspace(high, low, scales)


def widest(grid: Grid, stride: int = 1) -> float:
    """The largest distance at which base points of a coarse map may have partners.

    It is a quarter of the smaller side of a cell: from there on, pairs whose base point would lie
    in a neighbouring cell are missed and f is too small.

    Args:
        stride: The coarse map is every `stride`-th row and column of the grid.
    """
    rows, cols = grid.shape
    return stride * min(length_of(grid.region.x) / cols, length_of(grid.region.y) / rows) / 4


def reach(pilot: "PairsDimension", high: float, least: float) -> float:
    """The smallest distance that is worth its runs, given the estimate of a few base points.

    What a scale says of alpha goes with f(eps) (log eps - mean)^2: the lever grows with distance
    while flips die out as eps^alpha. Beyond exp(-4 / alpha) of the largest distance little is left,
    which is two decades on a smooth boundary and all that precision allows on a very rough one.

    Args:
        pilot: An estimate; without one, the boundary is taken for smooth.
        high: The largest distance.
        least: What precision allows, see `seeing.finest`.
    """
    alpha = 1.0 if np.isnan(pilot.dimension) else 2 - pilot.dimension
    with np.errstate(divide="ignore"):
        return float(max(least, high * np.exp(-USEFUL / np.float64(alpha))))


def partners(
    region: Region,
    bases: Float64[np.ndarray, "bases 2"],
    eps: Float64[np.ndarray, " scales"],
    seed: int,
    dtype: str = "float64",
    magnitudes: tuple[float, float] = (0.0, 0.0),
) -> Partners:
    """A partner of each base point at every distance, each in a direction of its own.

    Args:
        bases: Values that are numbers of `dtype`.
        magnitudes: For x and y, the size of what the values are added to, see `seeing.nudged`.

    Raises:
        Refused: A distance is below what the precision allows, or a partner beyond its range.
    """
    require_real(region)
    least = finest(region, dtype, magnitudes)
    if eps.min() < least:
        raise Refused(
            f"a distance of {eps.min():.3g} is lost in the rounding of {dtype}; the smallest here "
            f"is {least:.3g}"
        )
    angle = np.random.default_rng([seed, *b"partners"]).random((len(bases), len(eps))) * 2 * np.pi
    steps = np.stack([np.cos(angle), np.sin(angle)]) * eps
    moved, squares = [], np.zeros(angle.shape)
    with np.errstate(over="ignore", under="ignore"):
        for axis, base, step in zip((region.x, region.y), bases.T[:, :, None], steps, strict=True):
            change = base * np.expm1(step * LN10) if axis.scale == "log10" else step * axis.span
            value = rounded(base + change, dtype)
            if not np.all(np.isfinite(value)) or (axis.scale == "log10" and value.min() <= 0):
                raise Refused(f"partners on {axis.name} leave the range of {dtype}; zoom first")
            moved.append(value)
            off = value - base
            squares += (
                np.log1p(off / base) / LN10 if axis.scale == "log10" else off / axis.span
            ) ** 2
    return Partners(np.stack(moved, axis=2), np.sqrt(squares))


# --------------------------------------------------------------------------------------- estimate


@dataclass(frozen=True, eq=False)
class PairsDimension:
    """A dimension from pairs of runs, with all that a plot of it shows.

    Args:
        dimension: D = 2 - alpha, at most 2; NaN if the data say nothing.
        interval: 95% of the bootstrap; (0, 2) if the data say nothing.
        standard_error: Standard deviation of the bootstrap.
        scales: Smallest and largest distance that the fit used.
        eps: All distances.
        flips: Share of the pairs whose labels differ, at each of them.
        flips_low: Lower end of its 95% interval.
        flips_high: Upper end.
        used: The distances that the fit used: all but those whose flips a rerun may explain.
        fit: The fitted share at every distance; NaN if there is no fit.
        profile: D of each `WINDOW` neighbouring distances; NaN where flips are too few.
        bases: Number of base points.
        rerun: The floor of the labels themselves: flips at no distance; None if not tried.
        ulp: Flips at one unit in the last place; None if not tried.
        unresolved: Why the data do not settle D, as a sentence; empty if they do.
    """

    dimension: float
    interval: tuple[float, float]
    standard_error: float
    scales: tuple[float, float]
    eps: Float64[np.ndarray, " scales"]
    flips: Float64[np.ndarray, " scales"]
    flips_low: Float64[np.ndarray, " scales"]
    flips_high: Float64[np.ndarray, " scales"]
    used: Bool[np.ndarray, " scales"]
    fit: Float64[np.ndarray, " scales"]
    profile: Profile
    bases: int
    rerun: Rate | None
    ulp: Rate | None
    unresolved: str


def estimate(
    flips: Bool[np.ndarray, "bases scales"],
    eps: Float64[np.ndarray, " scales"],
    *,
    rerun: Rate | None = None,
    ulp: Rate | None = None,
    groups: Int64[np.ndarray, " bases"] | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> PairsDimension:
    """The dimension that the flips of pairs show, with its interval.

    A binomial regression with the logarithm as its link, log f = a + alpha log eps and f < 1, by
    maximum likelihood; scales without flips count. The interval comes from drawing base points
    again, all scales of one together, as they share a run. alpha is free to be negative in the
    fit, so that its error is fair near zero, but D is reported as 2 at the most.

    A scale takes part only if reruns explain at most a fifth of its flips. The interval is about
    which base points were drawn. It does not know that the law may be bent: a range of scales that
    is short beside the pattern of the boundary shifts D, and only the profile shows that.

    Args:
        flips: Whether the labels of base point and partner differ.
        eps: The distances of the partners, in decreasing order.
        groups: Base points with the same number were drawn together and are drawn again together.
        draws: Bootstrap samples.

    Raises:
        Refused: There is no base point, or the distances are not positive and decreasing.
    """
    if not flips.size or np.any(np.diff(eps) >= 0) or eps[-1] <= 0:
        raise Refused("an estimate needs base points, and distances that are positive and fall")
    bases = len(flips)
    counts = flips.sum(axis=0).astype(np.float64)
    share = counts / bases
    used = (rerun.value if rerun is not None else 0.0) <= MOST_RERUN * share
    resampled = _resampled(flips, groups, draws, seed)
    log_eps = np.log(eps)
    line = _slopes(resampled, log_eps, used)
    alpha = line[0, 1]
    spread = np.nan if np.isnan(alpha) else np.nanstd(line[1:, 1], ddof=1)
    low, high = _interval(line)
    low_share, high_share = rate_interval(counts, float(bases))
    kept = eps[used] if used.any() else eps
    drawn = bases if groups is None else len(np.unique(groups))
    return PairsDimension(
        dimension=float(min(2 - alpha, 2.0)),
        interval=(low, high),
        standard_error=float(spread),
        scales=(float(kept[-1]), float(kept[0])),
        eps=eps,
        flips=share,
        flips_low=low_share,
        flips_high=high_share,
        used=used,
        fit=np.exp(line[0, 0] + alpha * log_eps),
        profile=_profile(resampled, log_eps, used),
        bases=bases,
        rerun=rerun,
        ulp=ulp,
        unresolved=_unresolved(counts, drawn, used, high - low),
    )


def _resampled(
    flips: Bool[np.ndarray, "bases scales"],
    groups: Int64[np.ndarray, " bases"] | None,
    draws: int,
    seed: int,
) -> Float64[np.ndarray, "samples scales_and_pairs"]:
    """Flips per scale, and pairs, of the data (first row) and of every bootstrap sample.

    Base points with the same flips are alike, so that it is enough to draw how often each pattern
    occurs: the multinomial of the pattern counts is the bootstrap over base points.
    """
    rows = np.column_stack([flips, np.ones(len(flips), bool)]).astype(np.int64)
    if groups is not None:
        _, member = np.unique(groups, return_inverse=True)
        sums = np.zeros((member.max() + 1, rows.shape[1]), np.int64)
        np.add.at(sums, member, rows)
        rows = sums
    patterns, counts = np.unique(rows, axis=0, return_counts=True)
    rng = np.random.default_rng([seed, *b"bootstrap"])
    drawn = rng.multinomial(counts.sum(), counts / counts.sum(), draws)
    return np.vstack([counts, drawn]).astype(np.float64) @ patterns


def _slopes(
    resampled: Float64[np.ndarray, "samples scales_and_pairs"],
    log_eps: Float64[np.ndarray, " scales"],
    used: Bool[np.ndarray, " scales"],
) -> Float64[np.ndarray, "samples 2"]:
    """Fitted a and alpha of every sample over the scales that are used; NaN without flips.

    The likelihood is concave where f < 1, and Newton's steps climb it. Two prior terms, too weak to
    show beside MIN_FLIPS flips, keep the maximum inside: BARRIER non-flips per scale keep f below
    1, and RIDGE holds alpha when only one scale has flips.
    """
    line = np.full((len(resampled), 2), np.nan)
    seen = resampled[:, :-1][:, used].sum(axis=1)
    if used.sum() < 2 or seen[0] < MIN_FLIPS:
        return line
    can = seen > 0
    x = log_eps[used] - log_eps[used][0]
    k, n = resampled[can][:, :-1][:, used], resampled[can][:, -1:]
    rest = n - k + BARRIER

    def likelihood(a, alpha):
        eta = a[:, None] + alpha[:, None] * x
        inside = np.minimum(eta, -1e-300)
        value = (k * inside + rest * np.log(-np.expm1(inside))).sum(axis=1)
        return np.where(np.all(eta < 0, axis=1), value - RIDGE / 2 * alpha**2, -np.inf)

    a, alpha = np.log(k.sum(axis=1) / (k + rest).sum(axis=1)), np.zeros(len(k))
    best = likelihood(a, alpha)
    for _ in range(100):
        f = np.exp(a[:, None] + alpha[:, None] * x)
        odds = f / (1 - f)
        score, weight = k - rest * odds, rest * odds / (1 - f)
        g0, g1 = score.sum(axis=1), score @ x - RIDGE * alpha
        h00, h01, h11 = weight.sum(axis=1), weight @ x, weight @ x**2 + RIDGE
        det = h00 * h11 - h01**2
        da, dalpha = (h11 * g0 - h01 * g1) / det, (h00 * g1 - h01 * g0) / det
        step = np.ones(len(k))
        for _ in range(40):
            value = likelihood(a + step * da, alpha + step * dalpha)
            worse = ~(value >= best)
            if not worse.any():
                break
            step[worse] /= 2
        step[worse] = 0.0
        a, alpha, best = a + step * da, alpha + step * dalpha, np.where(worse, best, value)
        if max(np.abs(step * da).max(), np.abs(step * dalpha).max()) < 1e-9:
            break
    line[can] = np.stack([a - alpha * log_eps[used][0], alpha], axis=1)
    return line


def _interval(line: Float64[np.ndarray, "samples 2"]) -> tuple[float, float]:
    """The middle 95% of the bootstrap of D, within what a dimension can be."""
    if np.isnan(line[0, 1]):
        return 0.0, 2.0
    low, high = 2 - np.nanquantile(line[1:, 1], [0.975, 0.025])
    return float(np.clip(low, 0.0, 2.0)), float(np.clip(high, 0.0, 2.0))


def _profile(
    resampled: Float64[np.ndarray, "samples scales_and_pairs"],
    log_eps: Float64[np.ndarray, " scales"],
    used: Bool[np.ndarray, " scales"],
) -> Profile:
    kept = np.nonzero(used)[0]
    windows = [kept[i : i + WINDOW] for i in range(len(kept) - WINDOW + 1)]
    rows = []
    for window in windows:
        line = _slopes(resampled, log_eps, np.isin(np.arange(len(log_eps)), window))
        ends = _interval(line) if np.isfinite(line[0, 1]) else (np.nan, np.nan)
        rows.append((np.exp(log_eps[window].mean()), min(2 - line[0, 1], 2.0), *ends))
    return Profile(*np.array(rows, np.float64).reshape(-1, 4).T.copy())


def _unresolved(
    counts: Float64[np.ndarray, " scales"],
    drawn: int,
    used: Bool[np.ndarray, " scales"],
    width: float,
) -> str:
    """Why the data do not settle a dimension, or nothing."""
    if drawn < MIN_DRAWN:
        return f"only {drawn} base points, or chords of them, were drawn independently"
    if len(used) < MIN_SCALES:
        return f"only {len(used)} distances"
    if used.sum() < MIN_SCALES:
        return f"reruns explain the flips at all but {used.sum()} of {len(used)} distances"
    if counts[used].sum() < MIN_FLIPS:
        return f"only {counts[used].sum():.0f} flips at {used.sum()} distances"
    if width > WIDEST:
        return f"the interval of the dimension is {width:.2f} wide"
    return ""
