"""How rough the boundary of a map is, next to what is not fractal and measured the same way.

One pipeline, `dimension`, is run on the map and on its nulls: the same map smoothed, the border of
a quadratic loss on the same grid, and coin flips with the same local rates. The verdict compares
them. Around it stand a cross-check, the recipes of others, and the companions of a dimension.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, UInt8
from scipy import ndimage

from fractal_core import nulls
from fractal_core.boundary import (
    BasinEntropy,
    SafetyMargin,
    basin_entropy,
    boundary_cells,
    minkowski_counts,
    safety_margin,
)
from fractal_core.dimension import (
    Dimension,
    dimension,
    fit,
    fractal_llm_dimension,
    paper_dimension,
)
from fractal_core.errors import Refused
from fractal_core.nulls import Reading, Verdict
from fractal_core.outcome import WINDOW
from fractal_core.plane import Grid

SIGMAS = 2.0, 3.0, 4.0
"""Standard deviations, in points, of the Gaussians that smooth the map."""

COIN_BOX = 9
"""Side of the box over which the rate of a coin is taken: 81 points, and longer than most boxes."""

DRAWS = 10
SPREAD = 3.0
"""How many standard deviations of the draws the interval of the coin flips goes to either side."""

CHUNK = 2**16

T = TypeVar("T")

NOTHING = float("nan"), 0.0, 2.0
SMOOTHED, QUADRATIC = "the same map smoothed", "a quadratic loss"


@dataclass(frozen=True, eq=False)
class Roughness:
    """What is known of the roughness of a boundary, with the evidence.

    Args:
        unit: What `box.decades` and the scales of its profile are counted in.
        box: The box-counting dimension, or why there is none.
        minkowski: The dimension of the area around the boundary; None where no fit is possible.
        paper: The published recipe's number, for comparison only; None where it cannot be had.
        fractal_llm: The earlier project's number, for comparison only.
        curves: The nulls with a smooth border, by name: one map, or the same for each of `SIGMAS`.
        coins: The draws of coin flips.
        verdict: What all this comes to.
        entropy: Over the outcomes; None with missing points.
        margin: How far a hyperparameter may be raised.
        no_margin: Why there is no margin; empty if there is one.
    """

    unit: str
    box: Dimension
    minkowski: float | None
    paper: float | None
    fractal_llm: float | None
    curves: Mapping[str, tuple[Dimension, ...]]
    coins: tuple[Dimension, ...]
    verdict: Verdict
    entropy: BasinEntropy | None
    margin: SafetyMargin | None
    no_margin: str


def roughness(
    labels: Bool[np.ndarray, "rows cols"],
    grid: Grid,
    *,
    steps: int,
    window: int = WINDOW,
    outcome: UInt8[np.ndarray, "rows cols"] | None = None,
    jitter: float = 0.1,
    draws: int = DRAWS,
    measured_only: bool = False,
) -> Roughness:
    """Measure a boundary and its nulls.

    With missing points, a null is made of the map in which each takes the label of the nearest
    measured one, and then misses the same points.

    Args:
        labels: One side of the boundary; masked where missing.
        steps: Losses per run, for the quadratic loss.
        window: Last losses whose mean decides, for the same.
        outcome: The outcomes behind the labels; left out, the entropy is that of the labels.
        jitter: Of the safety margin, relative: 0.1 for +-10 %.
        draws: Maps of coin flips.
        measured_only: Go on with missing points.

    Raises:
        Refused: A point is missing, or the map has a single row or column.
    """
    pitch, unit = pitch_of(grid)
    cells = boundary_cells(labels, measured_only)
    missing = np.ma.getmaskarray(labels)
    if missing.all():
        raise Refused("no point of the map is measured; run it first")
    whole = _filled(labels)

    def through(null: np.ndarray) -> Dimension:
        masked = np.ma.masked_array(null, missing) if missing.any() else null
        return dimension(masked, pitch, measured_only)

    box = through(whole)
    curves = {
        SMOOTHED: tuple(through(nulls.smooth(whole, sigma)) for sigma in SIGMAS),
        QUADRATIC: (through(quadratic_map(grid, steps, window)),),
    }
    rng = np.random.default_rng(0)
    coins = tuple(through(nulls.coin_flips(whole, COIN_BOX, rng)) for _ in range(draws))
    margin, no_margin = _margin(labels, pitch, unit, jitter)
    return Roughness(
        unit=unit,
        box=box,
        minkowski=_if_any(lambda: fit(minkowski_counts(cells))[0]),
        paper=_finite(_if_any(lambda: paper_dimension(labels))),
        fractal_llm=_finite(_if_any(lambda: fractal_llm_dimension(labels))),
        curves=curves,
        coins=coins,
        verdict=judge(box, curves, coins, unit, min(pitch)),
        entropy=_if_any(lambda: basin_entropy(labels if outcome is None else outcome)),
        margin=margin,
        no_margin=no_margin,
    )


def pitch_of(grid: Grid) -> tuple[tuple[float, float], str]:
    """The distances between neighbouring points along x and y, and what they are counted in.

    Decades where both axes are logarithmic; otherwise there is no common unit but the map itself.
    """
    rows, cols = grid.shape
    x, y = grid.region.x, grid.region.y
    if all(axis.scale == "log10" and not axis.integer for axis in (x, y)):
        return (x.span / cols, y.span / rows), "decades"
    return (1 / cols, 1 / rows), "sides of the map"


def quadratic_map(grid: Grid, steps: int, window: int) -> Bool[np.ndarray, "rows cols"]:
    """The labels of gradient descent on a quadratic loss at the points of a grid."""
    rows, cols = grid.shape
    points = grid.points(np.repeat(np.arange(rows), cols), np.tile(np.arange(cols), rows))
    parts = [
        nulls.quadratic(points[first : first + CHUNK], grid.region, steps, window)
        for first in range(0, len(points), CHUNK)
    ]
    return np.concatenate(parts).reshape(rows, cols)


def judge(
    box: Dimension,
    curves: Mapping[str, tuple[Dimension, ...]],
    coins: tuple[Dimension, ...],
    unit: str,
    pitch: float,
) -> Verdict:
    """The verdict on a map, given the same pipeline's results for its nulls.

    What a smooth curve reads is a fact about the estimator, so its interval is the range over
    smoothings; that only a part of the boundary was seen is in the interval of the map's own D. A
    null with too little boundary for a dimension is left out and that is said; but a map that
    smoothing wipes out can only be told from noise, not called smooth or fractal.

    A map without a number is still compared by what the counts alone read: it may be noise.
    """
    readings = {name: _of_curve(drawn) for name, drawn in curves.items()}
    empty = {name for name, reading in readings.items() if reading.is_empty}
    left = {name: reading for name, reading in readings.items() if name not in empty}
    observed = _reading(box)
    rest = (_of_coins(coins), box.decades or (pitch, pitch), unit)
    found = nulls.verdict(observed, left, *rest)
    reason = "" if box.verdict == "resolved" else box.reason
    if not reason and SMOOTHED in empty:
        reason = "smoothing leaves no boundary, so nothing says what smooth shapes would read"
    if reason and found.kind != "noise":
        found = nulls.verdict(observed, left, *rest, unresolved=reason)
    first, *middle, last = found.evidence
    if box.verdict != "resolved":
        first = f"box counts alone would read {observed}"
    middle += [f"{name} has too little boundary for a dimension" for name in sorted(empty)]
    return replace(found, evidence=(first, *middle, last))


def _reading(found: Dimension) -> Reading:
    value, low, high = found.read or NOTHING
    known = found.neighbour_correlation
    correlation = None if np.isnan(known) else (known, known)
    return Reading(value, (low, high), correlation, found.edge_density)


def _of_curve(drawn: tuple[Dimension, ...]) -> Reading:
    """The middle and the range of what smooth curves read."""
    read = [null.read[0] for null in drawn if null.read is not None]
    if not read:
        return Reading(NOTHING[0], NOTHING[1:])
    return Reading(float(np.median(read)), (min(read), max(read)))


def _of_coins(coins: tuple[Dimension, ...]) -> Reading:
    """The mean over draws; a map of the same kind lies within three standard deviations."""
    read = np.array([draw.read[0] for draw in coins if draw.read is not None])
    known = np.array([draw.neighbour_correlation for draw in coins])
    if len(read) < 2:
        return Reading(NOTHING[0], NOTHING[1:])
    return Reading(float(read.mean()), _around(read), _around(known))


def _around(values: np.ndarray) -> tuple[float, float]:
    reach = SPREAD * values.std(ddof=1)
    return float(values.mean() - reach), float(values.mean() + reach)


def _filled(labels: np.ndarray) -> np.ndarray:
    """The labels, each missing one replaced by that of the nearest measured point."""
    if not np.ma.is_masked(labels):
        return np.ma.getdata(labels)
    nearest = ndimage.distance_transform_edt(
        np.ma.getmaskarray(labels), return_distances=False, return_indices=True
    )
    return np.ma.getdata(labels)[tuple(np.asarray(nearest))]


def _margin(
    labels: np.ndarray, pitch: tuple[float, float], unit: str, jitter: float
) -> tuple[SafetyMargin | None, str]:
    """The safety margin, in which a missing point counts as a failure, or why there is none."""
    if unit != "decades":
        return None, "jitter is relative, which needs two logarithmic axes"
    try:
        return safety_margin(np.ma.filled(labels, False), pitch, jitter), ""
    except Refused as error:
        return None, str(error)


def _if_any(recipe: Callable[[], T]) -> T | None:
    """What a recipe gives, or None where it refuses this map."""
    try:
        return recipe()
    except Refused:
        return None


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None
