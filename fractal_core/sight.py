"""The seeing of a run: some of its points trained again, nudged, and in another precision.

The points are those of the map that lie beside its boundary, where labels are in doubt first. What
was seen is kept in the run folder, and a zoom asks it whether there is more to be seen further down.
"""

import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from fractal_core import survey
from fractal_core.boundary import boundary_cells
from fractal_core.errors import Refused
from fractal_core.outcome import SIDES, Which
from fractal_core.seeing import Rate, Seeing, distinct, nudged, require_real, rounded
from fractal_core.store import Store
from fractal_core.survey import Cost, Hire, Tell
from fractal_core.sweep import Sweep, canonical

KEPT = "seeing.json"
MOST_ROUNDING = 0.5
LEAST_POINTS = 30

Cells = tuple[Int64[np.ndarray, " _"], Int64[np.ndarray, " _"]]


def cost(store: Store, runs: int) -> Cost:
    """What looking costs at the most; nothing is trained.

    Raises:
        Refused: An axis takes whole numbers, or there are too few runs.
    """
    require_real(store.sweep.region)
    if (least := LEAST_POINTS * _each(store)) > runs:
        raise Refused(f"{runs} runs are too few; allow at least {least}")
    return survey.cost(store, survey.coarse_level(store, runs), runs)


def look(store: Store, which: Which, runs: int, seed: int, hire: Hire, tell: Tell) -> Seeing:
    """The seeing of a run, which is kept in its folder; what is not stored yet is trained.

    The runs in another precision belong to another recipe, and so to a run folder of their own
    inside this one, named after that precision.

    Args:
        which: The boundary beside which the points lie, and whose sides are the labels.
        runs: The most runs beside the map: three for every point, or two where there is no other
            precision.
        seed: Of points and nudges.

    Raises:
        Busy: Another process works on the run.
        Refused: See `cost`; or some points could not be trained.
    """
    level = survey.coarse_level(store, cost(store, runs).beside)
    sweep, side, stride = store.sweep, SIDES[which], 2**level
    dtype, names = sweep.experiment.precision, sweep.experiment.axes
    x, y = (sweep.experiment.magnitude(axis, sweep.seed) for axis in names)
    labels = side(survey.lattice(store, level, hire, tell).outcome[::stride, ::stride])
    beside = _beside(labels)
    rows, cols = _some(beside if beside.any() else ~beside, runs // _each(store), seed)
    points = rounded(sweep.grid.points(rows * stride, cols * stride), dtype)
    asked = {"rerun": points, "ulp": nudged(points, seed, dtype, (x, y))}
    found = survey.of_kinds(store, asked, hire, tell)
    if (other := sweep.experiment.other_dtype) is not None:
        experiment: Any = replace(sweep.experiment, dtype=other)  # pyright: ignore - a protocol cannot say dataclass
        elsewhere = Store.create(store.path / other, Sweep(experiment, sweep.grid, sweep.seed))
        found |= survey.of_kinds(
            elsewhere, {"dtype": rounded(points, experiment.precision)}, hire, tell
        )
    mine = np.ma.getdata(labels)[rows, cols]
    rates = {kind: Rate.between(mine, side(outcomes.outcome)) for kind, outcomes in found.items()}
    seeing = Seeing(
        rerun=rates["rerun"],
        ulp=rates["ulp"],
        dtype=rates.get("dtype"),
        neighbours=_neighbours(np.ma.getdata(labels), (rows, cols)),
        pitch=stride * sweep.ulps,
        values=distinct(sweep.grid, dtype, (x, y)),
        cells=(len(sweep.grid.x), len(sweep.grid.y)),
        boundary=bool(beside.any()),
        which=which,
    )
    store.files.put_latest(KEPT, canonical({"sweep": sweep.id, **asdict(seeing)}).encode())
    return seeing


def seen(store: Store) -> Seeing | None:
    """What was seen of a run when it was last looked at; None if nobody has."""
    try:
        kept = json.loads(store.files.get(KEPT))
        if kept.pop("sweep") != store.sweep.id:
            return None
        for name in ("rerun", "ulp", "dtype", "neighbours"):
            kept[name] = kept[name] and Rate(**kept[name])
        return Seeing(**kept | {name: tuple(kept[name]) for name in ("values", "cells")})
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None  # as good as not looked at; the same command makes it again


def require_sight(parent: Store, child: Sweep) -> None:
    """Refuse a zoom in which, by the seeing of its parent, rounding makes half of the picture.

    A parent that nobody has looked at refuses nothing.

    Raises:
        Refused: Half of the flips between neighbours of the zoom are those that one unit in the
            last place gives by itself, see `seeing.Seeing.rounding`.
    """
    kept = seen(parent)
    share = kept.rounding(child.ulps) if kept is not None else 0.0
    if kept is not None and share >= MOST_ROUNDING:
        raise Refused(
            f"one unit in the last place flips {kept.ulp.flips} of {kept.ulp.pairs} labels "
            f"({kept.which} or not) of {parent.path}, which is {share:.0%} of the flips to be expected between neighbours of "
            f"this zoom, {child.ulps:.3g} units apart: its labels would mean little; zoom out or "
            "ask for fewer points (--force skips this check)"
        )


def _each(store: Store) -> int:
    """Runs that a point takes."""
    return 2 if store.sweep.experiment.other_dtype is None else 3


def _beside(labels: Bool[np.ndarray, "rows cols"]) -> Bool[np.ndarray, "rows cols"]:
    """The points that are corners of a boundary cell."""
    cells = np.pad(boundary_cells(labels), 1)
    return cells[1:, 1:] | cells[1:, :-1] | cells[:-1, 1:] | cells[:-1, :-1]


def _some(among: Bool[np.ndarray, "rows cols"], count: int, seed: int) -> Cells:
    """Rows and columns of some points, by chance; of all, if there are no more."""
    rows, cols = np.nonzero(among)
    order = np.random.default_rng([seed, *b"seeing"]).permutation(len(rows))[:count]
    return rows[order], cols[order]


def _neighbours(labels: Bool[np.ndarray, "rows cols"], at: Cells) -> Rate:
    """Flips between points and all of their two to four neighbours."""
    flips = pairs = 0
    for down, right in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        rows, cols = at[0] + down, at[1] + right
        inside = (rows >= 0) & (rows < labels.shape[0]) & (cols >= 0) & (cols < labels.shape[1])
        rate = Rate.between(labels[at][inside], labels[rows[inside], cols[inside]])
        flips, pairs = flips + rate.flips, pairs + rate.pairs
    return Rate(flips, pairs)
