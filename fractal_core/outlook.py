"""What the finished part of a map tells about the rest: where to go next, and how long it takes."""

import logging
from collections.abc import Callable, Iterable

import numpy as np
from scipy.ndimage import distance_transform_edt
from scipy.spatial import KDTree

from fractal_core.errors import Refused
from fractal_core.outcome import is_trainable
from fractal_core.store import Store
from fractal_core.sweep import LEVELS, Batch, Unit

log = logging.getLogger(__name__)


class Outlook:
    """The outcomes of a run so far, kept as small as what is asked of them.

    Points of a survey have no place in the map: they have no order, and cost what others did.
    """

    def __init__(self, store: Store):
        self._store = store
        self._outcome = np.zeros(store.sweep.grid.shape, np.uint8)
        self._seconds: dict[str, float] = {}
        self._cost = [0.0, 0]
        missing = {unit.key for unit in store.missing()}
        self._unread = [unit for key, unit in store.units.items() if key not in missing]

    def add(self, unit: Unit | Batch, seconds: float) -> None:
        """Note that a unit is done, and how long its training took."""
        self._cost[0] += seconds
        self._cost[1] += unit.size
        if isinstance(unit, Batch):
            return
        self._unread.append(unit)
        self._seconds[unit.key] = seconds / max(1, unit.size)

    def order(self) -> Callable[[Unit | Batch], tuple[int, float]]:
        """A sort key: coarse levels first, and within a level what is near the boundary found.

        The boundary is that of the lattice of all coarser levels; distances are in blocks. A part
        of it that is not known yet has none.
        """
        self._read()
        far = {level: self._distances(level) for level in range(LEVELS - 1)}

        def key(unit: Unit | Batch) -> tuple[int, float]:
            if isinstance(unit, Batch):
                return 0, 0.0
            if unit.level not in far:
                return -unit.level, 0.0
            edge, distance = far[unit.level]
            return -unit.level, float(distance[unit.rows[0] // edge, unit.cols[0] // edge])

        return key

    def remaining(self, missing: Iterable[Unit | Batch], slots: int) -> float | None:
        """Seconds until the missing units are done; None before anything is known.

        Every unit is taken to cost what the nearest finished one does per point: where runs blow
        up early there is less to do.
        """
        missing = list(missing)
        lattice = [unit for unit in missing if isinstance(unit, Unit)]
        if len(lattice) < len(missing):
            per_point = self._cost[0] / self._cost[1] if self._cost[1] else None
            return per_point and per_point * sum(unit.size for unit in missing) / slots
        known = [unit for key, unit in self._store.units.items() if key in self._seconds]
        if not known or not missing:
            return None if missing else 0.0
        _, nearest = KDTree([_centre(unit) for unit in known]).query([_centre(u) for u in lattice])
        per_point = np.array([self._seconds[unit.key] for unit in known])[nearest]
        points = np.array([unit.size for unit in missing])
        return float(per_point @ points / slots)

    def _read(self) -> None:
        units, self._unread = self._unread, []
        for unit in filter(lambda unit: unit.level, units):  # nothing is finer than level 0
            try:
                self._outcome[unit.cells()] = self._store.read(unit)["outcome"]
            except Refused as error:  # what is missing can be done all the same
                log.warning("%s; run `fractal verify %s`", error, self._store.path)

    def _distances(self, level: int) -> tuple[int, np.ndarray]:
        """Edge of the blocks of a level, and of every block its distance to the boundary."""
        units = [unit for unit in self._store.units.values() if unit.level == level]
        rows, cols = self._outcome.shape
        edge = max((max(u.rows[1] - u.rows[0], u.cols[1] - u.cols[0]) for u in units), default=1)
        stride = 2 ** (level + 1)
        known = self._outcome[::stride, ::stride]
        side, seen = is_trainable(known), known > 0
        touched = np.zeros((-(-rows // edge), -(-cols // edge)), bool)
        for ahead, behind in (
            (np.s_[1:, :], np.s_[:-1, :]),
            (np.s_[:, 1:], np.s_[:, :-1]),
        ):
            differ = (side[ahead] != side[behind]) & seen[ahead] & seen[behind]
            for moved in (ahead, behind):
                where = np.zeros(known.shape, bool)
                where[moved] = differ
                row, col = np.nonzero(where)
                touched[row * stride // edge, col * stride // edge] = True
        if not touched.any():
            return edge, np.zeros(touched.shape)
        return edge, np.asarray(distance_transform_edt(~touched))


def _centre(unit: Unit) -> tuple[float, float]:
    return sum(unit.rows) / 2, sum(unit.cols) / 2


def duration(seconds: float) -> str:
    """A time for a person."""
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else "under 1 s"


def about(seconds: float) -> str:
    """An estimated time for a person."""
    return f"about {duration(seconds)}" if seconds >= 1 else duration(seconds)


def pace(points_per_second: float) -> str:
    """How fast runs are for a person, or how long one takes where that says more."""
    if 0 < points_per_second < 1:
        return f"{1 / points_per_second:.3g} s per point"
    return f"{points_per_second:,.0f} points/s"
