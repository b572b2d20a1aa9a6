"""The hyperparameter plane: the only place that knows index <-> cell <-> value.

An axis is cut into cells of equal width in its drawn coordinate (the logarithm on a `log10` axis,
the value on a `linear` one) and a point stands in the middle of its cell. Row 0 is the lowest y
and column 0 the lowest x.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int64

from fractal_core.errors import Refused

Scale = Literal["log10", "linear"]

MAX_POINTS = 2**28


@dataclass(frozen=True)
class Axis:
    """One hyperparameter and the stretch of it that is mapped.

    Args:
        name: The setting of the experiment that this axis moves.
        low: Lower end, in the units of the setting; positive on a `log10` axis.
        high: Upper end.
        points: Number of cells. An `integer` axis may hold fewer, see `values`.
        scale: In which coordinate the cells have equal width.
        integer: Values are whole numbers; `low` and `high` are the first and last that may occur,
            so the cells cover `low - 1/2` to `high + 1/2`.

    Raises:
        Refused: The ends are not finite, are reversed, or are not positive on a `log10` axis;
            there is no point, or there are more points than whole numbers.
    """

    name: str
    low: float
    high: float
    points: int
    scale: Scale = "log10"
    integer: bool = False

    def __post_init__(self):
        if self.scale not in ("log10", "linear"):
            raise Refused(f"axis {self.name}: scale {self.scale!r} is not log10 or linear")
        alone = self.integer and self.low == self.high
        if not (np.isfinite(self.low) and np.isfinite(self.high)) or not (
            self.low < self.high or alone
        ):
            raise Refused(
                f"axis {self.name}: the lower end {self.low!r} must be below the upper end "
                f"{self.high!r}, both finite"
            )
        if self.scale == "log10" and self.ends[0] <= 0:
            raise Refused(
                f"axis {self.name}: a log10 axis needs a positive lower end, not {self.low!r}; "
                "raise it or choose a linear axis"
            )
        if not (0 < self.span < np.inf):
            raise Refused(
                f"axis {self.name}: from {self.low!r} to {self.high!r} is more than a float can "
                "measure; bring the ends closer together"
            )
        if not 1 <= self.points <= MAX_POINTS:
            raise Refused(
                f"axis {self.name}: {self.points} points; choose between 1 and {MAX_POINTS}"
            )
        if self.integer and (self.low % 1 or self.high % 1):
            raise Refused(f"axis {self.name}: the ends of an integer axis must be whole numbers")
        if self.integer and self.points > self.high - self.low + 1:
            raise Refused(
                f"axis {self.name}: {self.points} points but only "
                f"{self.high - self.low + 1:.0f} whole numbers from {self.low:.0f} to "
                f"{self.high:.0f}; ask for fewer points"
            )

    @property
    def ends(self) -> tuple[float, float]:
        """Where the cells begin and end: `low` and `high`, or half a unit beyond on an integer axis."""
        half = 0.5 if self.integer else 0.0
        return self.low - half, self.high + half

    @property
    def span(self) -> float:
        """Length of the axis in its drawn coordinate: decades, or units of the setting."""
        low, high = self.ends
        with np.errstate(over="ignore"):
            length = float(np.float64(high) - np.float64(low))
            if self.scale == "linear":
                return length
            # log1p of the exact difference keeps every digit when the ends nearly coincide.
            return float(np.log1p(np.float64(length) / low) / np.log(10))

    def at(self, fraction: Float64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
        """Values at fractions 0 (low end) to 1 (high end) of the drawn length.

        On a `log10` axis a value is the axis' own centre times ten to an offset, so that even a
        very deep zoom resolves neighbouring floats.
        """
        low, high = self.ends
        if self.scale == "linear":
            return low + (high - low) * fraction
        length = np.log1p((high - low) / low)
        centre = low + low * np.expm1(length / 2)
        offset = (fraction - 0.5) * length
        near = centre + centre * np.expm1(np.clip(offset, -0.5, 0.5))
        return np.where(np.abs(offset) < 0.5, near, centre * np.exp(offset))

    def fraction(self, value: Float64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
        """The inverse of `at`: where values lie, 0 at the low end and 1 at the high end."""
        low, high = self.ends
        if self.scale == "linear":
            return (value - low) / (high - low)
        return np.log1p((value - low) / low) / np.log1p((high - low) / low)

    def values(self) -> Float64[np.ndarray, " cells"]:
        """The point of every cell, increasing.

        They are computed once, when a run is made, and stored with it: powers of ten differ in
        the last bit between machines. An integer axis rounds and drops duplicates, so on a
        logarithmic one there may be fewer cells than `points`.
        """
        centres = self.at((np.arange(self.points) + 0.5) / self.points)
        return np.unique(np.floor(centres + 0.5)) if self.integer else centres

    def edges(self, values: Float64[np.ndarray, " cells"]) -> Float64[np.ndarray, " cells+1"]:
        """The cell edges that belong to `values`, one more than there are cells."""
        low, high = self.ends
        if self.integer:
            inner = (values[:-1] + values[1:]) / 2
        else:
            inner = self.at(np.arange(1, len(values)) / len(values))
        return np.concatenate([[low], inner, [high]])

    def zoom(self, low: float, high: float, points: int | None = None) -> "Axis":
        """The same hyperparameter between two values of this axis.

        Raises:
            Refused: The stretch is reversed, empty, or not inside this axis.
        """
        if self.integer:
            low, high = float(np.ceil(low)), float(np.floor(high))
        if low <= high and not (self.low <= low and high <= self.high):
            raise Refused(
                f"axis {self.name}: {low!r} to {high!r} is not inside {self.low!r} to {self.high!r}"
            )
        points = points or self.points
        if self.integer:
            points = int(min(points, max(high - low + 1, 1)))
        return replace(self, low=low, high=high, points=points)


@dataclass(frozen=True)
class Region:
    """A rectangle of the plane: two axes, x for columns and y for rows.

    Raises:
        Refused: Both axes move the same setting, or the grid would hold over 2^28 points.
    """

    x: Axis
    y: Axis

    def __post_init__(self):
        if self.x.name == self.y.name:
            raise Refused(f"both axes are {self.x.name}; choose two different hyperparameters")
        if self.x.points * self.y.points > MAX_POINTS:
            raise Refused(
                f"a grid of {self.y.points} x {self.x.points} has over {MAX_POINTS} points; "
                "ask for a smaller one and zoom"
            )

    def zoom(
        self,
        x: Sequence[float],
        y: Sequence[float],
        rows: int | None = None,
        cols: int | None = None,
    ) -> "Region":
        """The rectangle from `x[0]`, `y[0]` to `x[1]`, `y[1]`, with its own points.

        Nothing of the parent's points is reused: their values would differ in the last bit.

        Raises:
            Refused: The rectangle is reversed, empty, or not inside this region.
        """
        return replace(self, x=self.x.zoom(x[0], x[1], cols), y=self.y.zoom(y[0], y[1], rows))

    def drag(
        self, box: Sequence[float], rows: int | None = None, cols: int | None = None
    ) -> "Region":
        """The region under a dragged box `[x0, x1, y0, y1]`, whatever corner the drag began at.

        What sticks out of this region is cut off, as a hand cannot stop exactly at the rim.
        """
        x0, x1 = np.clip(sorted(box[:2]), self.x.low, self.x.high).tolist()
        y0, y1 = np.clip(sorted(box[2:]), self.y.low, self.y.high).tolist()
        return self.zoom((x0, x1), (y0, y1), rows, cols)


@dataclass(frozen=True, eq=False)
class Grid:
    """The points of a region: its axis values, computed once and never again.

    Args:
        region: The rectangle.
        x: Value of every column, increasing.
        y: Value of every row, increasing.
    """

    region: Region
    x: Float64[np.ndarray, " cols"]
    y: Float64[np.ndarray, " rows"]

    @classmethod
    def over(cls, region: Region) -> "Grid":
        """Compute the points of `region`, for a run that is being made."""
        return cls(region, region.x.values(), region.y.values())

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.y), len(self.x)

    @property
    def digest(self) -> str:
        """SHA-256 of the axis values: the part of a recipe that no formula can give back."""
        return hashlib.sha256(
            self.x.astype("<f8").tobytes() + b"|" + self.y.astype("<f8").tobytes()
        ).hexdigest()

    def points(
        self, rows: Int64[np.ndarray, " n"], cols: Int64[np.ndarray, " n"]
    ) -> Float64[np.ndarray, "n 2"]:
        """The (x, y) values at grid positions."""
        return np.stack([self.x[cols], self.y[rows]], axis=1)

    def cells(
        self, x: Float64[np.ndarray, " n"], y: Float64[np.ndarray, " m"]
    ) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " n"]]:
        """Rows of the cells that hold values y, and columns of those that hold values x.

        Values outside belong to the nearest cell.
        """
        cols = np.searchsorted(self.region.x.edges(self.x), x, side="right") - 1
        rows = np.searchsorted(self.region.y.edges(self.y), y, side="right") - 1
        return np.clip(rows, 0, len(self.y) - 1), np.clip(cols, 0, len(self.x) - 1)

    def cell(self, x: float, y: float) -> tuple[int, int]:
        """Row and column of the cell that holds a value pair; the nearest cell if outside."""
        rows, cols = self.cells(np.array([x]), np.array([y]))
        return int(rows[0]), int(cols[0])

    def zoom_cells(
        self,
        rows: tuple[int, int],
        cols: tuple[int, int],
        shape: tuple[int, int] | None = None,
    ) -> Region:
        """The region covered by rows `rows[0]:rows[1]` and columns `cols[0]:cols[1]`.

        Raises:
            Refused: The range is empty or leaves the grid.
        """
        for name, (start, stop), length in (
            ("rows", rows, len(self.y)),
            ("columns", cols, len(self.x)),
        ):
            if not 0 <= start < stop <= length:
                raise Refused(f"{name} {start}:{stop} are not a part of 0:{length}")
        x, y = self.region.x.edges(self.x), self.region.y.edges(self.y)
        box = (x[cols[0]], x[cols[1]], y[rows[0]], y[rows[1]])
        return self.region.drag([float(edge) for edge in box], *(shape or (None, None)))

    def ulps(self, dtype: str = "float64", magnitudes: tuple[float, float] = (0.0, 0.0)) -> float:
        """Distance of the closest neighbouring values, in units in the last place of `dtype`.

        Below about 4 the picture shows rounding: neighbours train with the same numbers. An axis
        with a single value has no neighbours and counts as infinitely far apart; values beyond
        the range of `dtype` are no distance apart.

        Args:
            dtype: The precision in which the values are used.
            magnitudes: For x and y, the size of what the values are added to; 0 where they are
                used as they are. The sum has the coarser last place of the larger.
        """
        closest = np.inf
        for values, magnitude in zip((self.x, self.y), magnitudes, strict=True):
            if len(values) > 1:
                with np.errstate(over="ignore"):
                    size = np.maximum(np.abs(values), magnitude).astype(dtype)
                if not np.all(np.isfinite(size)):
                    return 0.0
                unit = np.spacing(size[1:]).astype(np.float64)
                closest = min(closest, float((np.diff(values) / unit).min()))
        return closest
