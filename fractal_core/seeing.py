"""Seeing: how far labels can be trusted at this zoom.

Three questions about a point of the plane. Does a rerun give the same label? Does a point one unit
in the last place away? Does training in another precision? A label that flips on a rerun says
nothing about its hyperparameters, and a picture finer than the last place of its values shows
rounding. A fourth question is about the axes: how many of their values are still different numbers
in the precision that trains.

Flips at one unit in the last place are compared with flips between neighbours of the map, which are
what a picture is made of. In between both follow the law of `pairs`, f = a eps^alpha, which says at
which pitch rounding alone would make half of the picture.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64
from scipy.special import betaincinv

from fractal_core.errors import Refused
from fractal_core.outcome import Which
from fractal_core.plane import Axis, Grid, Region

FINEST_ULPS = 4
"""The smallest distance that two values may be asked to have: rounding changes it by an eighth."""


@dataclass(frozen=True)
class Rate:
    """How many of some pairs of runs got two different labels.

    Args:
        flips: Pairs whose labels differ.
        pairs: All pairs; at least one.
    """

    flips: int
    pairs: int

    @classmethod
    def between(cls, a: Bool[np.ndarray, "*shape"], b: Bool[np.ndarray, "*shape"]) -> "Rate":
        """The rate at which two arrays of labels differ."""
        return cls(int(np.count_nonzero(a != b)), a.size)

    @property
    def value(self) -> float:
        """Flips per pair."""
        return self.flips / self.pairs

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of the rate, see `rate_interval`."""
        low, high = rate_interval(np.array([float(self.flips)]), float(self.pairs))
        return float(low[0]), float(high[0])


def rate_interval(
    flips: Float64[np.ndarray, "*shape"], pairs: float
) -> tuple[Float64[np.ndarray, "*shape"], Float64[np.ndarray, "*shape"]]:
    """Ends of the 95% Clopper-Pearson interval of a rate.

    It holds at every count, so that no flips in m pairs still says "below 3.7 / m". Pairs are
    taken to be independent.
    """
    with np.errstate(invalid="ignore"):
        low = betaincinv(flips, pairs - flips + 1, 0.025)
        high = betaincinv(flips + 1, pairs - flips, 0.975)
    return np.where(flips > 0, low, 0.0), np.where(flips < pairs, high, 1.0)


def rounded(values: Float64[np.ndarray, "*shape"], dtype: str) -> Float64[np.ndarray, "*shape"]:
    """The values that an experiment of this precision uses, as float64."""
    return values.astype(dtype).astype(np.float64)


def nudged(
    points: Float64[np.ndarray, "n 2"],
    seed: int,
    dtype: str = "float64",
    magnitudes: tuple[float, float] = (0.0, 0.0),
) -> Float64[np.ndarray, "n 2"]:
    """Each point moved to the next number of `dtype`, along an axis and in a direction by chance.

    Args:
        points: Values that are numbers of `dtype`, as `rounded` returns them.
        seed: Decides axes and directions.
        magnitudes: For x and y, the size of what the values are added to; 0 where they are used as
            they are. The step is then one last place of the sum: a smaller one changes nothing.
    """
    rng = np.random.default_rng([seed, *b"nudged"])
    row, axis = np.arange(len(points)), rng.integers(0, 2, len(points))
    up = rng.random(len(points)) < 0.5
    kind = np.dtype(dtype).type
    value = points[row, axis].astype(kind)
    place = np.spacing(np.asarray(magnitudes, kind))[axis]
    following = np.nextafter(value, np.where(up, kind(np.inf), kind(-np.inf)))
    coarser = place > np.spacing(np.abs(value))
    moved = points.copy()
    moved[row, axis] = np.where(coarser, value + np.where(up, place, -place), following)
    return moved


def length_of(axis: Axis) -> float:
    """The drawn length of an axis in units of distance: decades, or 1 on a linear axis."""
    return axis.span if axis.scale == "log10" else 1.0


def unit_of(region: Region) -> str:
    """The words for the unit of distance."""
    scales = {region.x.scale, region.y.scale}
    if scales == {"log10"}:
        return "decades"
    return "axis lengths" if scales == {"linear"} else "decades or axis lengths"


def require_real(region: Region) -> None:
    """Refuse an axis on which points cannot be brought close together.

    Raises:
        Refused: An axis takes whole numbers only.
    """
    for axis in (region.x, region.y):
        if axis.integer:
            raise Refused(
                f"{axis.name} takes whole numbers, which have no small distances; choose an axis "
                "of real values"
            )


def finest(
    region: Region, dtype: str = "float64", magnitudes: tuple[float, float] = (0.0, 0.0)
) -> float:
    """The smallest distance that precision allows anywhere in a region: four units in the last place.

    A distance is measured in decades on a `log10` axis and in lengths of the axis on a linear one.
    """
    axes = zip((region.x, region.y), magnitudes, strict=True)
    return FINEST_ULPS * max(_last_place(axis, dtype, size) for axis, size in axes)


def _last_place(axis: Axis, dtype: str, magnitude: float) -> float:
    low, high = np.abs(axis.ends)
    kind = np.dtype(dtype).type
    if axis.scale == "linear":
        return float(np.spacing(kind(max(low, high, magnitude)))) / axis.span
    at_low = float(np.spacing(kind(max(low, magnitude)))) / low
    return max(at_low, float(np.finfo(kind).eps)) / float(np.log(10))


def distinct(
    grid: Grid, dtype: str = "float64", magnitudes: tuple[float, float] = (0.0, 0.0)
) -> tuple[int, int]:
    """How many different numbers the values of x and y are in the precision that trains.

    Fewer than the grid has columns or rows means that neighbouring cells trained the same run.

    Args:
        magnitudes: As in `nudged`; a value that is added to something counts by the sum.
    """
    kind = np.dtype(dtype).type
    with np.errstate(over="ignore"):
        x, y = (
            len(np.unique(values.astype(kind) + kind(size)))
            for values, size in zip((grid.x, grid.y), magnitudes, strict=True)
        )
    return x, y


@dataclass(frozen=True)
class Seeing:
    """The answers for one region.

    Args:
        rerun: Flips when the same points are trained again.
        ulp: Flips when one value of a point moves by one last place, see `nudged`.
        dtype: Flips when the points are trained in another precision, in which their values are
            rounded too; None if that was not tried.
        neighbours: Flips between these points and those beside them in the map.
        pitch: Units in the last place from there to here.
        values: Different values of x and y in the precision that trains, see `distinct`.
        cells: Columns and rows of the grid.
        boundary: Whether the points are those beside the boundary; or else, if the map has none, any.
        which: The boundary, whose sides are the labels.
    """

    rerun: Rate
    ulp: Rate
    dtype: Rate | None
    neighbours: Rate
    pitch: float
    values: tuple[int, int]
    cells: tuple[int, int]
    boundary: bool
    which: Which = "trainable"

    def rounding(self, pitch: float) -> float:
        """The share of the flips between neighbours that one unit in the last place alone gives.

        With u the flips at one unit and n those at the pitch p of this map, alpha = log(n / u) /
        log(p), and the share at another pitch is pitch^-alpha.

        Args:
            pitch: Units in the last place between neighbours.
        """
        one, beside = self.ulp.value, self.neighbours.value
        if one == 0:
            return 0.0
        if one >= beside or self.pitch <= 1:
            return 1.0
        return float(max(pitch, 1.0) ** (-np.log(beside / one) / np.log(self.pitch)))

    @property
    def where(self) -> str:
        """Where the points lie."""
        place = f"the {self.which} boundary"
        return f"beside {place}" if self.boundary else f"anywhere, as {place} is not on the map"

    @property
    def sentences(self) -> tuple[str, ...]:
        """The answers in words, worst news included."""
        named = [("a rerun", self.rerun), ("one unit in the last place", self.ulp)]
        if self.dtype is not None:
            named.append(("another precision", self.dtype))
        named.append((f"a neighbour in the map, {self.pitch:.3g} units away,", self.neighbours))
        said = [
            f"{what} flips {rate.flips} of {rate.pairs} labels "
            f"({rate.interval[0]:.2%} to {rate.interval[1]:.2%})"
            for what, rate in named
        ]
        for axis, values, cells in zip("xy", self.values, self.cells, strict=True):
            said.append(f"{values} different values of {axis} in {cells} cells")
        return tuple(said)
