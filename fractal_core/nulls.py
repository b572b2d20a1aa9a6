"""What a measured roughness has to be told apart from, and the verdict.

An estimator gives a number for any picture. So it is run, unchanged, on three nulls that are not
fractal: the same map smoothed, the border of gradient descent on a quadratic loss, and coin flips
with the same local rates. Only what differs from all of them is a finding.

Each null is a map, for estimators of maps, and a function of points, for pairs: `smoothed` and
`local_rate` are fields over the points of a grid, `between` gives their values anywhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64
from scipy.ndimage import gaussian_filter, map_coordinates, uniform_filter

from fractal_core.errors import Refused
from fractal_core.outcome import WINDOW
from fractal_core.plane import Axis, Grid, Region

COUPLING = 0.5
MARGIN = 0.15
WIDEST = 0.5
MIN_DECADES = 1.0
DENSEST = 0.3


# ------------------------------------------------------------------------------------------ nulls


def smoothed(
    labels: Bool[np.ndarray, "rows cols"], sigma: float
) -> Float64[np.ndarray, "rows cols"]:
    """The labels as 0 and 1, averaged with a Gaussian; the map is mirrored at its rim.

    Args:
        sigma: Standard deviation of the Gaussian, in cells.
    """
    return gaussian_filter(_numbers(labels), sigma, mode="reflect")


def smooth(
    labels: Bool[np.ndarray, "rows cols"], sigma: float = 3.0
) -> Bool[np.ndarray, "rows cols"]:
    """The same map with its boundary drawn smooth: where `smoothed` is at least one half.

    It keeps the coarse shape and loses what is smaller than a few `sigma`, islands included. Its
    dimension is 1; what an estimator makes of it is the bias for curves of that shape.
    """
    return smoothed(labels, sigma) >= 0.5


def local_rate(
    labels: Bool[np.ndarray, "rows cols"], size: int
) -> Float64[np.ndarray, "rows cols"]:
    """Share of True in the box of `size` x `size` cells around each; mirrored at the rim."""
    # Sums of a running box drift by rounding; a rate stays one.
    return np.clip(uniform_filter(_numbers(labels), size, mode="reflect"), 0.0, 1.0)


def coin_flips(
    labels: Bool[np.ndarray, "rows cols"], size: int, rng: np.random.Generator
) -> Bool[np.ndarray, "rows cols"]:
    """A map with the same local rates in which no cell knows of its neighbours.

    Its dimension is 2 at every scale below `size` where both labels occur. A boundary that
    scatters around a smooth transition, whether by chance or by rounding, looks like this.

    Args:
        size: Side of the box over which a rate is taken, in cells: large enough for a rate, small
            enough to follow the transition.
    """
    return rng.random(labels.shape) < local_rate(labels, size)


def between(
    field: Float64[np.ndarray, "rows cols"],
    grid: Grid,
    points: Float64[np.ndarray, "n 2"],
    stride: int = 1,
) -> Float64[np.ndarray, " n"]:
    """Values of a field anywhere, linear between the points of its lattice and level beyond them.

    Args:
        field: Values at every `stride`-th row and column of the grid.
    """
    rows, cols = grid.shape
    col = (grid.region.x.fraction(points[:, 0]) * cols - 0.5) / stride
    row = (grid.region.y.fraction(points[:, 1]) * rows - 0.5) / stride
    return map_coordinates(field, [row, col], order=1, mode="nearest")


def quadratic(
    points: Float64[np.ndarray, "n 2"], region: Region, steps: int, window: int = WINDOW
) -> Bool[np.ndarray, " n"]:
    """Labels of gradient descent on a quadratic loss, with x and y as its two learning rates.

    With the learning rates D = diag(x, y), descent on loss = w H w / 2 multiplies the error by
    I - D H in every step, so that it is stable where the largest eigenvalue of D H is below 2. In
    u = H^(1/2) w the loss is |u|^2 / 2 and the step symmetric, which gives it in closed form as
    the sum over eigenpairs of c^2 (1 - m)^(2 t) / 2.

    The curvature H = k [[1, q], [q, 1]], in units of the centre of the region, has k = 2 / (1 + q)
    so that the border of stability passes through the centre, at any zoom. Its coupling q = 1/2
    makes that border a smooth curve which is not parallel to an axis, as a border x = const would
    be: box counts treat that one specially. The error starts along the stiffest direction.

    Args:
        points: x and y of every run.
        region: Decides the curvature. On a linear axis, the learning rate of a value is its
            fraction of the axis.
        steps: Losses per run.
        window: Last losses whose mean decides, as in `outcome`.

    Returns:
        True where the mean of the last losses is below the first.
    """
    x, y = _relative(region.x, points[:, 0]), _relative(region.y, points[:, 1])
    stiff = 2 / (1 + COUPLING)
    values, vectors = np.linalg.eigh(stiff * np.array([[1.0, COUPLING], [COUPLING, 1.0]]))
    root = vectors * np.sqrt(values) @ vectors.T
    # root @ diag(x, y) @ root, for every point
    step = x[:, None, None] * np.outer(root[0], root[0]) + y[:, None, None] * np.outer(
        root[1], root[1]
    )
    rates, directions = np.linalg.eigh(step)
    share = (directions.transpose(0, 2, 1) @ np.full(2, np.sqrt(0.5))) ** 2
    times = np.arange(steps - window, steps)
    with np.errstate(over="ignore", under="ignore"):
        losses = np.abs(1 - rates)[:, :, None] ** (2.0 * times)
        # 0 x inf, in a direction in which nothing starts, is nothing.
        tail = np.where(share[:, :, None] > 0, share[:, :, None] * losses, 0.0).sum(axis=1)
        return tail.mean(axis=1) < 1


def _relative(axis: Axis, values: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Values in units of the middle of the axis."""
    if axis.scale == "linear":
        return 2 * axis.fraction(values)
    return values / axis.at(np.array([0.5]))


def _numbers(labels: Bool[np.ndarray, "rows cols"]) -> Float64[np.ndarray, "rows cols"]:
    if np.ma.is_masked(labels):
        raise Refused("the map has missing points; finish its run first")
    return np.asarray(labels).astype(np.float64)


# ---------------------------------------------------------------------------------------- verdict


@dataclass(frozen=True)
class Reading:
    """What an estimator says of a map, or of pairs of runs, or of one of their nulls.

    Args:
        dimension: D; NaN if there is none.
        interval: Its 95% interval. For a null that is drawn, over draws.
        correlation: Interval of `boundary.neighbour_correlation`, for a map.
        edges: `boundary.edge_density`, for a map.
    """

    dimension: float
    interval: tuple[float, float]
    correlation: tuple[float, float] | None = None
    edges: float | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is no dimension."""
        return bool(np.isnan(self.dimension))

    def __str__(self) -> str:
        if self.is_empty:
            return "no dimension"
        return f"{self.dimension:.3f} ({self.interval[0]:.3f} to {self.interval[1]:.3f})"


Kind = Literal["smooth", "fractal", "unresolved", "noise"]


@dataclass(frozen=True)
class Verdict:
    """What a boundary is, and why.

    Args:
        kind: The short word.
        scales: Smallest and largest scale that were looked at.
        unit: Of the scales.
        evidence: Sentences.
    """

    kind: Kind
    scales: tuple[float, float]
    unit: str
    evidence: tuple[str, ...]

    def __str__(self) -> str:
        low, high = self.scales
        return {
            "smooth": "smooth",
            "fractal": f"fractal over [{low:.2g}, {high:.2g}] {self.unit}",
            "unresolved": "unresolved at this resolution",
            "noise": "indistinguishable from noise",
        }[self.kind]


def verdict(
    observed: Reading,
    curves: Mapping[str, Reading],
    coins: Reading,
    scales: tuple[float, float],
    unit: str = "decades",
    *,
    rerun_share: float = 0.0,
    unresolved: str = "",
) -> Verdict:
    """Tell a boundary from its nulls.

    Noise: reruns explain half of the flips; or D lies above all curves, overlaps that of the coin
    flips, and so does the neighbour correlation where there is one.

    Fractal: D lies above all curves, over at least a decade of scales, and apart from the coin flips':
    on a map it is the neighbour correlation that must lie apart.

    Smooth: the interval of D ends at most 0.15 above that of the roughest curve.

    Unresolved: anything else, and whatever says so itself, has an interval of D over 1/2 wide, or
    is a map of which over 0.3 are edges.

    Args:
        observed: The estimate.
        curves: The same estimator on smooth borders, by name.
        coins: The same estimator on coin flips. Pairs of them are estimated without a rerun floor,
            which would explain all of their flips.
        scales: Smallest and largest scale of the estimate.
        rerun_share: Share of the flips at the largest scale that reruns alone would give.
        unresolved: Why the estimate settles nothing, if it says so.
    """
    decades = float(np.log10(scales[1] / scales[0]))
    roughest = max((reading.interval[1] for reading in curves.values()), default=1.0)
    silent = [name for name, null in {**curves, "coin flips": coins}.items() if null.is_empty]
    if silent and not unresolved:
        unresolved = (
            f"{' and '.join(silent)} gave no dimension, so there is nothing to compare with"
        )
    evidence = [f"D is {observed} over {decades:.1f} decades of scale"]
    evidence += [f"{name} gives {reading}" for name, reading in curves.items()]
    evidence.append(f"coin flips with the same local rates give {coins}")
    kind, why = _judge(observed, roughest, coins, decades, rerun_share, unresolved)
    return Verdict(kind, scales, unit, (*evidence, why))


def _judge(
    observed: Reading,
    roughest: float,
    coins: Reading,
    decades: float,
    rerun_share: float,
    unresolved: str,
) -> tuple[Kind, str]:
    """The word, and the sentence that decided it."""
    low, high = observed.interval
    if rerun_share >= 0.5:
        return "noise", f"reruns at the same point explain {rerun_share:.0%} of the flips"
    if unresolved:
        return "unresolved", unresolved
    if high - low > WIDEST:
        return "unresolved", f"the interval of D is {high - low:.2f} wide"
    if low > roughest:
        alone = _overlap(observed.correlation, coins.correlation)
        if _overlap(observed.interval, coins.interval) and alone is not False:
            return "noise", "neither D nor the neighbours tell it from coin flips"
        if alone:
            return "unresolved", "D is not that of coin flips, but neighbours know as little"
        if observed.edges is not None and observed.edges > DENSEST:
            return "unresolved", f"{observed.edges:.0%} of the picture are edges; zoom in"
        if decades < MIN_DECADES:
            return "unresolved", f"{decades:.1f} decades of scale are too few to call it fractal"
        return "fractal", "it is rougher than every smooth border and is told from coin flips"
    if high <= roughest + MARGIN:
        return "smooth", f"D is at most {high - roughest:+.2f} from the roughest smooth border"
    return "unresolved", "D may be that of a smooth border or of a rough one"


def _overlap(a: tuple[float, float] | None, b: tuple[float, float] | None) -> bool | None:
    """Whether two intervals meet; None where there are not two."""
    return a[0] <= b[1] and b[0] <= a[1] if a and b else None
