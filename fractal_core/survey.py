"""Points beside the map, trained as units of its run folder: pairs, floors, reruns, audits.

A survey is a name and some points. Its batches go through the engine like the units of a map, so
they resume, retry and commit like them, and a survey that is asked for again computes nothing. The
name holds a hash of what the points were made from.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from fractal_core import engine
from fractal_core.engine import Crew
from fractal_core.errors import Refused
from fractal_core.outcome import Outcomes
from fractal_core.store import Image, Store, unpack
from fractal_core.sweep import LEVELS, Batch, Unit, canonical, to_json
from fractal_core.worker import DONE

MOST_COARSE = 90
LOOKED_AT = 64

Hire = Callable[[Store], Crew]
Tell = Callable[[str, int, int], None]
"""Is told the name of a survey, how many of its points are done, and how many there are."""


@dataclass(frozen=True)
class Cost:
    """What a survey costs at the most.

    Args:
        map: Runs of the map that are needed and not there yet.
        beside: Runs beside the map; those that are there already are not trained again.
        seconds: For both, as long as other runs of the folder took; None if there are none.
    """

    map: int
    beside: int
    seconds: float | None

    def __str__(self) -> str:
        """One line for a person."""
        time = "an unknown time, as nothing is trained yet"
        if self.seconds is not None:
            time = f"{self.seconds:,.0f} s if they take as long as those that are there"
        return (
            f"at most {self.map + self.beside:,} runs ({self.map:,} of the map, {self.beside:,} "
            f"beside it), {time}"
        )


def named(kind: str, settings: Any) -> str:
    """The name of a survey of some kind, with a hash of all that its points come from."""
    digest = hashlib.sha256(canonical(to_json(settings)).encode()).hexdigest()
    return f"{kind}-{digest[:12]}"


def trained(
    store: Store,
    name: str,
    points: Float64[np.ndarray, "n 2"],
    hire: Hire,
    tell: Tell,
    record: Sequence[int] = (),
) -> Outcomes:
    """The outcomes at the points of a survey, of which only what is missing is trained.

    With steps to `record`, their losses come as `extras["losses"]`.

    Raises:
        Busy: Another process works on the run.
        Refused: Some points could not be trained; the sentence says why.
    """
    batches = store.survey(name, points, record)
    complete(store, name, batches, hire, tell)
    return store.outcomes(batches)


def of_kinds(
    store: Store, kinds: Mapping[str, Float64[np.ndarray, "_ 2"]], hire: Hire, tell: Tell
) -> dict[str, Outcomes]:
    """The outcomes of one survey of each kind, trained by one crew.

    A survey has the name of its kind and a hash of its points: the same points of the same kind
    are trained once, of another kind again. `tell` hears of all together, by the first name.

    Raises:
        Busy: Another process works on the run.
        Refused: Some points could not be trained; the sentence says why.
    """
    batches = {}
    for kind, points in kinds.items():
        digest = hashlib.sha256(points.astype("<f8").tobytes()).hexdigest()
        batches[kind] = store.survey(named(kind, {"points": digest}), points)
    units = [batch for mine in batches.values() for batch in mine]
    complete(store, units[0].survey, units, hire, tell)
    return {kind: store.outcomes(mine) for kind, mine in batches.items()}


def lattice(store: Store, level: int, hire: Hire, tell: Tell) -> Image:
    """The map, trained down to a level of its lattice: 3 is every 8th row and column, 0 all.

    Raises:
        Busy: Another process works on the run.
        Refused: Some points could not be trained; the sentence says why.
    """
    complete(store, "map", at_least(store, level), hire, tell)
    return store.image()


def coarse_level(store: Store, most: int) -> int:
    """The level of the map that shows where its boundary is: what is there, or else some 64 a side.

    It is the finest level that is complete. While that is coarser than the finest whose lattice has
    at most 90 points along its shorter side and `most` in all, and could be trained for the
    purpose, it is that one.
    """
    rows, cols = store.sweep.grid.shape
    levels = range(LEVELS)
    done = [level for level in levels if not store.missing(at_least(store, level))]
    shapes = {level: (-(-rows // 2**level), -(-cols // 2**level)) for level in levels}
    fit = [k for k, shape in shapes.items() if min(shape) <= MOST_COARSE and np.prod(shape) <= most]
    return min([*done, min(fit, default=LEVELS - 1)])


def at_least(store: Store, level: int) -> list[Unit]:
    """The units of the map down to a level."""
    return [unit for unit in store.units.values() if unit.level >= level]


def cost(store: Store, level: int, beside: int) -> Cost:
    """What the map down to a level and some runs beside it cost, as far as stored ones tell."""
    lacking = sum(unit.size for unit in store.missing(at_least(store, level)))
    keys = store.files.list("units")
    some = [unpack(store.files.get(key)) for key in keys[:: len(keys) // LOOKED_AT + 1]]
    each = np.concatenate([arrays["seconds"] for arrays in some]).mean() if some else None
    return Cost(lacking, beside, None if each is None else float(each * (lacking + beside)))


def complete(
    store: Store, name: str, units: Sequence[Unit | Batch], hire: Hire, tell: Tell
) -> None:
    """Train those units that are missing.

    Raises:
        Busy: Another process works on the run.
        Refused: Some points could not be trained; the sentence says why.
    """
    missing = store.missing(units)
    total = sum(unit.size for unit in units)
    done = total - sum(unit.size for unit in missing)
    tell(name, done, total)
    causes = set()
    for exit in engine.run(store, hire, units=units) if missing else ():
        if exit.code == DONE:
            done += exit.order.points
            tell(name, done, total)
        elif exit.final:
            causes.add(exit.cause)
    if left := store.missing(units):
        raise Refused(
            f"{sum(unit.size for unit in left)} of {total} points of {name} are not trained "
            f"({'; '.join(sorted(causes)) or 'stopped'}); the same command goes on"
        )
