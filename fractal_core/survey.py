"""Points beside the map, trained as units of its run folder: pairs, floors, reruns, audits.

A survey is a name and some points. Its batches go through the engine like the units of a map, so
they resume, retry and commit like them, and a survey that is asked for again computes nothing. The
name holds a hash of what the points were made from.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from fractal_core import engine
from fractal_core.engine import Crew
from fractal_core.errors import Refused
from fractal_core.outcome import Outcomes
from fractal_core.store import Image, Store
from fractal_core.sweep import Batch, Unit, canonical, to_json
from fractal_core.worker import DONE

Hire = Callable[[Store], Crew]
Tell = Callable[[str, int, int], None]
"""Is told the name of a survey, how many of its points are done, and how many there are."""


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


def lattice(store: Store, level: int, hire: Hire, tell: Tell) -> Image:
    """The map, trained down to a level of its lattice: 3 is every 8th row and column, 0 all.

    Raises:
        Busy: Another process works on the run.
        Refused: Some points could not be trained; the sentence says why.
    """
    complete(store, "map", [u for u in store.units.values() if u.level >= level], hire, tell)
    return store.image()


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
