"""What both estimators of a dimension make of sets whose dimension is known.

Nothing is trained. Box counts read a map of the set; pairs ask the set itself at their points, by
the very course that a run takes. So what is found here holds for the code that is used there.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool

from fractal_core import known, pairing
from fractal_core.dimension import Dimension, dimension
from fractal_core.known import KnownSet
from fractal_core.pairing import Course, Null, Request
from fractal_core.pairs import PairsDimension
from fractal_core.plane import Axis, Grid, Region
from fractal_core.roughness import Roughness, pitch_of, roughness

GRID, LEVEL = 512, 3
RUNS = 8_000
DRAWS = 3
STEPS = 1000


def _graph(truth: float) -> Callable[[int], KnownSet]:
    return lambda seed: KnownSet(known.weierstrass(truth, seed), 1.0, truth)


def _placed(chosen: KnownSet) -> Callable[[int], KnownSet]:
    return chosen.somewhere


SETS: dict[str, Callable[[int], KnownSet]] = {
    "straight line": _placed(known.LINE),
    "circle": _placed(known.CIRCLE),
    "Weierstrass graph, 1.2": _graph(1.2),
    "Koch snowflake": _placed(known.KOCH),
    "Julia set of z² − 1": _placed(known.JULIA),
    "Douady's rabbit": _placed(known.DOUADY_RABBIT),
    "Weierstrass graph, 1.5": _graph(1.5),
    "Weierstrass graph, 1.8": _graph(1.8),
    "coin flips": _placed(known.COINS),
}
"""What is tried; a seed turns and moves the set, or draws another graph."""


@dataclass(frozen=True, eq=False)
class Tried:
    """A known set, and what was found.

    Args:
        truth: The dimension of its boundary.
        grid: Its window.
        labels: The map whose boxes were counted.
        boxes: The dimension from box counts.
        pairs: The dimension from pairs.
    """

    truth: float
    grid: Grid
    labels: Bool[np.ndarray, "rows cols"]
    boxes: Dimension
    pairs: PairsDimension


@functools.lru_cache(maxsize=64)
def tried(name: str, seed: int) -> Tried:
    """Both estimators on a known set; the same again costs nothing."""
    chosen = SETS[name](seed)
    half = chosen.window / 2
    grid = Grid.over(Region(*(Axis(name, -half, half, GRID, "linear") for name in ("x", "y"))))
    labels = chosen.labels(GRID)

    def asked(points: np.ndarray) -> np.ndarray:
        return chosen.inside(points[:, 0] + 1j * points[:, 1])

    course = Course(grid, LEVEL, "float64", (0.0, 0.0), Request(runs=RUNS, seed=seed))
    pairs, _, _ = pairing.estimated(course, Null(grid, 2**LEVEL, asked))
    return Tried(float(chosen.dimension), grid, labels, dimension(labels, pitch_of(grid)[0]), pairs)


@functools.lru_cache(maxsize=16)
def judged(name: str, seed: int) -> Roughness:
    """Box counts on a known set beside those of its nulls, and the verdict."""
    found = tried(name, seed)
    return roughness(found.labels, found.grid, steps=STEPS, draws=DRAWS)


def table(seed: int) -> pd.DataFrame:
    """A row for every known set: the truth, and both dimensions with their 95 % intervals."""
    rows = []
    for name in SETS:
        each = tried(name, seed)
        box, pairs = each.boxes, each.pairs
        read = (box.value, box.low, box.high)
        two = (pairs.dimension, *pairs.interval)
        rows.append(
            {
                "set": name,
                "true D": f"{each.truth:.3f}",
                "from boxes": "none: " + box.verdict if box.value is None else _words(read),
                "holds it": _held(each.truth, read),
                "from pairs": "none" if np.isnan(pairs.dimension) else _words(two),
                "holds it ": _held(each.truth, two),
            }
        )
    return pd.DataFrame(rows)


def _words(found: tuple[float | None, ...]) -> str:
    return "{:.3f} ({:.3f} to {:.3f})".format(*found)


def _held(truth: float, found: tuple[float | None, ...]) -> str:
    """Whether an interval holds the truth."""
    value, low, high = found
    if value is None or low is None or high is None or np.isnan(value):
        return "–"
    return "yes" if low <= truth <= high else "no"
