"""How fast boxes are counted: the dyadic pyramid and the gliding box against porespy.

All count on the same mask, the boundary cells of a filled Julia set with a boundary of dimension
1.39. porespy has ten sizes of boxes, the pyramid all powers of two, the gliding box fifteen sizes
at every offset. Each runs on one core.
"""

import importlib.util
from dataclasses import dataclass

import numpy as np

from fractal_core.bench.rounds import Rates, Work, take_turns
from fractal_core.boundary import boundary_cells, dyadic_counts, gliding_counts
from fractal_core.errors import Refused

GLIDING_SIZES = 15
CENTRE = -0.12256116687665362 + 0.7448617666197442j


@dataclass(frozen=True)
class Result:
    """What was measured; rates are masks per second.

    Args:
        side: The mask has side x side cells.
        edge_density: Share of them that hold both labels.
        rates: Of `dyadic`, `gliding` and `porespy`.
    """

    side: int
    edge_density: float
    rates: Rates

    def seconds(self, name: str) -> float:
        """Median time that a contender takes for one mask."""
        return 1 / self.rates.median(name)


def mask(side: int) -> np.ndarray:
    """The boundary cells of Douady's rabbit, the filled Julia set of a period-3 centre."""
    across = np.linspace(-1.55, 1.55, side + 1)
    labels = np.zeros((side + 1, side + 1), bool)
    for row, height in enumerate(across):
        z, alive = across + 1j * height, np.arange(side + 1)
        for _ in range(60):
            z = z * z + CENTRE
            bounded = z.real**2 + z.imag**2 <= 9
            z, alive = z[bounded], alive[bounded]
        labels[row, alive] = True
    return boundary_cells(labels)


def contenders(cells: np.ndarray) -> dict[str, Work]:
    """The three ways of counting, each on all of `cells`."""
    import porespy

    porespy.settings.tqdm["disable"] = True
    most = min(cells.shape) // 16
    sizes = np.unique(np.geomspace(1, most, GLIDING_SIZES).astype(np.int64))
    extra = np.setdiff1d(np.arange(1, most + 1), sizes)[: GLIDING_SIZES - len(sizes)]
    sizes = np.union1d(sizes, extra)

    def counting(count) -> Work:
        def work() -> float:
            count(cells)
            return 1.0

        return work

    return {
        "dyadic": counting(dyadic_counts),
        "gliding": counting(lambda cells: gliding_counts(cells, sizes)),
        "porespy": counting(porespy.metrics.boxcount),
    }


def measure(rounds: int, side: int = 4096) -> Result:
    """All contenders on one mask of `side` x `side` cells, taking turns.

    Raises:
        Refused: porespy is not installed, or the mask is too small for fifteen sizes.
    """
    if importlib.util.find_spec("porespy") is None:
        raise Refused("the benchmark needs porespy: `uv sync --extra bench` installs it")
    if side < 16 * GLIDING_SIZES:
        raise Refused(f"a side of {side} cells; choose at least {16 * GLIDING_SIZES}")
    cells = mask(side)
    return Result(side, float(cells.mean()), take_turns(contenders(cells), rounds))
