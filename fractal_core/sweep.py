"""The recipe of a map, its content id, and its units of work.

Anything that can change an answer is a field of the `Sweep` and so a part of its id; anything that
cannot (the folder, threads, the size of a block) is an argument of whoever runs it.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from typing import Any, Protocol, get_args, get_type_hints, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int64

from fractal_core.errors import Refused
from fractal_core.outcome import Outcomes
from fractal_core.plane import Grid, Region

LEVELS = 4
MIN_ULPS = 4


@runtime_checkable
class Experiment(Protocol):
    """Settings, as a frozen dataclass, that turn points of the plane into outcomes.

    It knows nothing of processes and folders. `axes` names the two settings that a point's x and
    y replace, `precision` the dtype in which they are used, `other_dtype` another value of the
    setting `dtype` (None if it has no such setting), and `devices` the kinds of device that it
    can train on, the fastest first. `serial` says that a run uses one thread of the CPU
    however many there are, and `block` which edge its units have, None for one that follows from
    the size of the map. It calls `pulse.tick` whenever a piece of its work is done.
    """

    @property
    def axes(self) -> tuple[str, str]: ...

    @property
    def precision(self) -> str: ...

    @property
    def other_dtype(self) -> str | None: ...

    @property
    def devices(self) -> tuple[str, ...]: ...

    @property
    def serial(self) -> bool: ...

    @property
    def block(self) -> int | None: ...

    def label(self, axis: str) -> str:
        """The words for an axis in a figure."""
        ...

    def whole(self, axis: str) -> bool:
        """Whether an axis takes whole numbers only."""
        ...

    def magnitude(self, axis: str, seed: int) -> float:
        """The size of what an axis' values are added to; 0 where they are used as they are."""
        ...

    def review(self, points: Float64[np.ndarray, "n 2"], seed: int) -> list[str]:
        """What should be known before a map of these points is begun, a sentence each.

        Raises:
            Refused: The map would mean nothing.
        """
        ...

    def contract(self, seed: int) -> dict[str, str]:
        """What can change an answer without being a setting: data hash, arithmetic, versions."""
        ...

    def run(
        self, points: Float64[np.ndarray, "n 2"], *, seed: int, record: Sequence[int] = ()
    ) -> Outcomes:
        """Train at every point. The bits of a point do not depend on the others beside it.

        Args:
            points: x and y of every run.
            seed: Decides initialisation and data, shared by all runs of a sweep.
            record: Steps whose losses are wanted, as `extras["losses"]` (n, len(record)), +inf
                once a run has blown up.
        """
        ...


def to_json(value: Any) -> Any:
    """Plain JSON data; a float becomes its exact `float.hex` text, a dataclass a dictionary.

    A whole number in a field that is declared a float is written as one, so that 1 and 1.0 are
    the same recipe.
    """
    if is_dataclass(value) and not isinstance(value, type):
        hints = get_type_hints(type(value))
        items = {f.name: getattr(value, f.name) for f in fields(value)}
        return {
            name: to_json(float(item) if hints[name] is float else item)
            for name, item in items.items()
        }
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value


def from_json(kind: Any, data: Any) -> Any:
    """The value of type `kind` that `to_json` wrote; `kind` may be a dataclass of such types."""
    if is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind)
        return kind(**{name: from_json(hints[name], item) for name, item in data.items()})
    options = get_args(kind) or (kind,)
    if isinstance(data, str) and float in options:
        return float.fromhex(data)
    return tuple(data) if isinstance(data, list) else data


def canonical(data: Any) -> str:
    """The one text of some JSON data: sorted keys, no choice of spacing, ASCII."""
    return json.dumps(data, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False) + "\n"


@dataclass(frozen=True, eq=False)
class Sweep:
    """An experiment over a grid, with a seed: the full recipe of a map.

    Args:
        experiment: What is trained.
        grid: Where; its axes carry the names of the two settings that move.
        seed: One for the whole sweep: every run shares initialisation and data.
        recorded: The contract that it was made under; None asks the experiment for today's.

    Raises:
        Refused: The axes of the grid are not those of the experiment.
    """

    experiment: Experiment
    grid: Grid
    seed: int = 0
    recorded: dict[str, str] | None = None

    def __post_init__(self):
        names = (self.grid.region.x.name, self.grid.region.y.name)
        if names != tuple(self.experiment.axes):
            raise Refused(
                f"the region's axes {names} are not the experiment's {self.experiment.axes}"
            )
        if self.seed < 0:
            raise Refused(f"a seed of {self.seed}; choose one of at least 0")

    @classmethod
    def over(cls, experiment: Experiment, region: Region, seed: int = 0) -> "Sweep":
        """A new sweep over `region`, whose axis values are computed here and then kept."""
        return cls(experiment, Grid.over(region), seed)

    @property
    def region(self) -> Region:
        """The rectangle that is mapped."""
        return self.grid.region

    @property
    def labels(self) -> tuple[str, str]:
        """The words for x and y in a figure."""
        x, y = self.experiment.axes
        return self.experiment.label(x), self.experiment.label(y)

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """Everything that can change an answer, as plain JSON data."""
        return {
            "experiment": type(self.experiment).__name__,
            "settings": to_json(self.experiment),
            "region": to_json(self.region),
            "axis_values_sha256": self.grid.digest,
            "seed": self.seed,
            "contract": self.recorded or self.experiment.contract(self.seed),
        }

    @cached_property
    def id(self) -> str:
        """Content id: 16 hexadecimal digits of the SHA-256 of the recipe."""
        return hashlib.sha256(canonical(self.recipe).encode()).hexdigest()[:16]

    def zoom(self, region: Region) -> "Sweep":
        """The same recipe on a part of the plane."""
        return replace(self, grid=Grid.over(region), recorded=None)

    @property
    def ulps(self) -> float:
        """Distance of neighbouring values in units in the last place of what they become."""
        x, y = (self.experiment.magnitude(axis, self.seed) for axis in self.experiment.axes)
        return self.grid.ulps(self.experiment.precision, (x, y))

    @property
    def digits(self) -> float:
        """Decimal digits by which one can zoom in further before rounding shows."""
        return float(np.log10(max(self.ulps / MIN_ULPS, 1)))

    def require_resolution(self) -> None:
        """Refuse a grid whose neighbours are closer than the arithmetic can tell apart.

        Raises:
            Refused: Neighbouring axis values are fewer than 4 units in the last place apart.
        """
        if self.ulps < MIN_ULPS:
            raise Refused(
                f"neighbouring values are only {self.ulps:.2g} units in the last place of "
                f"{self.experiment.precision} apart, so the picture would show rounding; "
                f"zoom out or ask for fewer points (at least {MIN_ULPS} are needed, --force skips "
                "this check)"
            )


@dataclass(frozen=True)
class Unit:
    """A block of one level of the coarse-to-fine lattice: computed and committed together.

    Level 3 holds every 8th row and column of the grid; levels 2, 1 and 0 hold every 4th, 2nd and
    1st, without the points that a coarser level has.

    Args:
        level: 3 (coarsest) to 0.
        rows: First and one past the last row of the block.
        cols: The same for columns.
    """

    level: int
    rows: tuple[int, int]
    cols: tuple[int, int]

    @property
    def key(self) -> str:
        """The name of the unit, which is also the name of its file."""
        return f"L{self.level}-{self.rows[0]:05d}-{self.cols[0]:05d}"

    @property
    def size(self) -> int:
        """How many points it holds."""
        return len(self.cells()[0])

    def cells(self) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """Rows and columns of its points, row by row."""
        stride = 2**self.level
        rows, cols = np.meshgrid(
            np.arange(*self.rows, stride), np.arange(*self.cols, stride), indexing="ij"
        )
        mine = np.ones(rows.shape, bool)
        if self.level < LEVELS - 1:
            mine = (rows % (2 * stride) != 0) | (cols % (2 * stride) != 0)
        return rows[mine], cols[mine]


@dataclass(frozen=True)
class Batch:
    """Some points of a survey: runs that are no part of the map, like pairs, reruns and audits.

    Args:
        survey: The survey that it belongs to.
        first: Its first point there.
        last: One past its last.
    """

    survey: str
    first: int
    last: int

    @property
    def key(self) -> str:
        """The name of the batch, which is also the name of its file."""
        return f"{self.survey}-{self.first:07d}"

    @property
    def size(self) -> int:
        """How many points it holds."""
        return self.last - self.first


SHARES = 16
"""Blocks of the finest level that a map has at least, where large ones are asked for."""


def default_block(shape: tuple[int, int]) -> int:
    """Edge of a level-0 block: small maps commit every second or so, large ones stay few files."""
    longest = max(shape)
    return 32 if longest <= 512 else 64 if longest <= 2048 else 128


def shared_out(shape: tuple[int, int], block: int | None) -> int | None:
    """An experiment's own block, halved until a map has enough of them for several devices."""
    while block and block > default_block(shape) and shape[0] * shape[1] < SHARES * block**2:
        block //= 2
    return block


def plan(shape: tuple[int, int], block: int | None = None) -> list[Unit]:
    """The units of a map, coarse level first; together they hold every grid point exactly once.

    Args:
        shape: Rows and columns of the grid.
        block: Edge of a level-0 block in grid points; a block of level L is 2^L times as long, so
            that units hold about equally many points. With 1 every point is a unit. It changes no
            bit.
    """
    block = block or default_block(shape)
    if block < 1:
        raise Refused(f"a block of {block} points a side; choose at least 1")
    units = []
    for level in reversed(range(LEVELS)):
        edge = block * 2**level
        for row in range(0, shape[0], edge):
            for col in range(0, shape[1], edge):
                unit = Unit(
                    level,
                    (row, min(row + edge, shape[0])),
                    (col, min(col + edge, shape[1])),
                )
                if len(unit.cells()[0]):
                    units.append(unit)
    return units
