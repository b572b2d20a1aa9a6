"""What is known of the roughness of a run: measured on its map, or kept in its folder.

Box counts cost no training and are made when they are asked for. Pairs and seeing have trained for
their answers, which are kept, so that whoever looks later reads them.
"""

import functools
import json
import math
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool

from fractal_core import adaptive, experiments, pairing, sight
from fractal_core.dimension import Dimension, Profile
from fractal_core.files import Files
from fractal_core.nulls import Verdict
from fractal_core.outcome import SIDES, WINDOW, Which
from fractal_core.pairing import Request
from fractal_core.pairs import Budget, PairsDimension
from fractal_core.roughness import Roughness, roughness
from fractal_core.seeing import Rate, Seeing
from fractal_core.store import Store
from fractal_core.sweep import canonical, to_json

KEPT = {
    kind.__name__: kind
    for kind in (pairing.Roughness, Request, Budget, PairsDimension, Profile, Rate, Verdict)
}


@dataclass(frozen=True, eq=False)
class Mapped:
    """What a map says.

    Args:
        labels: One side of the boundary; masked where missing.
        found: Its roughness with the evidence.
        picture: The outcomes behind the labels, measured and inferred.
    """

    labels: Bool[np.ndarray, "rows cols"]
    found: Roughness
    picture: adaptive.Refined


def mapped(store: Store, which: Which, jitter: float = 0.1, measured_only: bool = False) -> Mapped:
    """Count the boxes of a map; see `roughness`.

    Args:
        jitter: Of the safety margin, relative.
        measured_only: Go on with missing points.

    Raises:
        Refused: A point is missing, or the map has a single row or column.
    """
    picture = adaptive.audited(store, store.image())
    labels = SIDES[which](picture.outcome)
    found = measured(store, labels, picture.outcome, jitter=jitter, measured_only=measured_only)
    return Mapped(labels, found, picture)


def measured(
    store: Store,
    labels: Bool[np.ndarray, "rows cols"],
    outcome: np.ma.MaskedArray,
    *,
    jitter: float = 0.1,
    measured_only: bool = False,
) -> Roughness:
    """How rough the boundary of a run is, beside what is not fractal.

    Raises:
        Refused: Points are missing.
    """
    experiment = store.sweep.experiment
    return roughness(
        labels,
        store.sweep.grid,
        steps=getattr(experiment, experiments.length(experiment), 1000),
        window=getattr(experiment, "window", WINDOW),
        outcome=outcome,
        jitter=jitter,
        measured_only=measured_only,
    )


@functools.lru_cache(maxsize=8)
def _mapped(path: Path, _stamp: tuple, which: Which, jitter: float) -> Mapped:
    return mapped(experiments.read_run(path), which, jitter, measured_only=True)


def so_far(store: Store, which: Which, jitter: float = 0.1) -> Mapped:
    """The same of what there is of a map; asked again while nothing is new it costs nothing.

    Raises:
        Refused: Nothing is measured yet, or the map has a single row or column.
    """
    return _mapped(store.path, stamp(store), which, jitter)


def stamp(store: Store) -> tuple[int | str | None, ...]:
    """Of another recipe another one; changes when there is something new to read: a tenth of the map, pairs, seeing, an audit."""
    lacking, total = len(store.missing()), len(store.units)
    state: list[int | str | None] = [store.sweep.id, 10 * (total - lacking) // total]
    for name in (*(f"pairs-{which}.json" for which in SIDES), sight.KEPT, adaptive.NOTE):
        file = store.path / name
        state.append(file.stat().st_mtime_ns if file.exists() else None)
    return tuple(state)


# ------------------------------------------------------------------------------------------- pairs


def keep(store: Store, rough: pairing.Roughness) -> None:
    """Keep what pairs came to, one answer for each boundary."""
    text = canonical({"sweep": store.sweep.id, "found": _plain(rough)})
    Files(store.path).put_latest(f"pairs-{rough.request.which}.json", text.encode())


def kept(store: Store, which: Which) -> pairing.Roughness | None:
    """What pairs came to when they were last measured; None if nobody has."""
    try:
        told = json.loads(store.files.get(f"pairs-{which}.json"))
        return _typed(told["found"]) if told["sweep"] == store.sweep.id else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None  # as good as not measured; the same command makes it again


def _plain(value: Any) -> Any:
    """JSON data from which `_typed` makes the value again."""
    if is_dataclass(value) and not isinstance(value, type):
        inner = {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
        return {"a": type(value).__name__, **inner}
    if isinstance(value, np.ndarray):
        return {"a": "array", "of": str(value.dtype), "values": to_json(value.tolist())}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return {"a": "float", "is": float(value).hex()}
    return value


def _typed(data: Any) -> Any:
    if isinstance(data, list):
        return tuple(_typed(item) for item in data)
    if not isinstance(data, dict):
        return data
    inner = {name: item for name, item in data.items() if name != "a"}
    kind = data.get("a")
    if kind == "float":
        return float.fromhex(inner["is"])
    if kind == "array":
        numbers = [float.fromhex(v) if isinstance(v, str) else v for v in inner["values"]]
        return np.array(numbers, np.dtype(inner["of"]))
    typed = {name: _typed(item) for name, item in inner.items()}
    return typed if kind is None else KEPT[kind](**typed)


# ----------------------------------------------------------------------------------------- in words


def in_words(found: Dimension | PairsDimension) -> str:
    """A dimension with its interval, or why there is none."""
    if isinstance(found, PairsDimension):
        value, ends = found.dimension, found.interval
        reason = found.unresolved or "the pairs say nothing"
        value = None if math.isnan(value) else value
    else:
        value, ends, reason = found.value, (found.low, found.high), found.reason
    if value is None:
        return f"none: {reason}"
    return f"{value:.3f} (95 %: {ends[0]:.3f} to {ends[1]:.3f})"


def companions(
    store: Store, found: Roughness, which: Which, jitter: float
) -> list[tuple[str, str]]:
    """What stands beside a dimension, as names and texts; a name may go on in the next row.

    Args:
        which: The boundary that was measured.
        jitter: Of the safety margin, in per cent.
    """
    box, entropy = found.box, found.entropy
    rows = [
        ("cross-check", f"{_number(found.minkowski)} from the area around the boundary"),
        (
            "other recipes",
            f"{_number(found.paper)} the paper's, {_number(found.fractal_llm)} fractal-llm's "
            "(without interval or nulls, for comparison only)",
        ),
        (
            "companions",
            f"edge density {box.edge_density:.3f}, "
            f"neighbour correlation {box.neighbour_correlation:.2f}",
        ),
    ]
    if entropy is not None:
        proof = "proves a fractal" if entropy.fractal else "no proof of a fractal"
        text = (
            f"basin entropy {entropy.basin:.3f}, on the boundary {entropy.boundary:.3f} "
            f"(ln 2 = 0.693: {proof})"
        )
        rows.append(("", text))
    return [*rows, ("safety margin", _margin_in_words(store, found, which, jitter))]


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _margin_in_words(store: Store, found: Roughness, which: Which, jitter: float) -> str:
    if found.margin is None:
        return f"none: {found.no_margin}"
    x = store.sweep.labels[0]
    largest = found.margin.largest
    if largest.max() < 0:
        return f"none: nowhere are at most 1 % of runs not {which} under +-{jitter:g} % jitter"
    row = int(np.argmax(largest))
    grid = store.sweep.grid
    safe = np.count_nonzero(largest >= 0)
    return (
        f"{x} up to {grid.x[largest[row]]:.4g} with at most 1 % chance of not being {which} "
        f"under +-{jitter:g} % jitter, at {store.sweep.labels[1]} {grid.y[row]:.4g} "
        f"({safe} of {len(grid.y)} rows have such a value)"
    )


# --------------------------------------------------------------------------------------- as tables


def beside_boxes(found: Roughness) -> pd.DataFrame:
    """Box counts on the map, and on each null: the middle of what its maps read."""
    rows = [("this map", in_words(found.box))]
    for name, drawn in [*found.curves.items(), ("coin flips", found.coins)]:
        read = [each.read[0] for each in drawn if each.read is not None]
        rows.append((name, _read(read, len(drawn))))
    return pd.DataFrame(rows, columns=["map", "dimension"])


def _read(read: list[float], drawn: int) -> str:
    if not read:
        return "too little boundary for one"
    if drawn == 1:
        return f"reads {read[0]:.3f}"
    return f"reads {np.median(read):.3f} ({min(read):.3f} to {max(read):.3f} of {drawn} maps)"


def beside_pairs(rough: pairing.Roughness) -> pd.DataFrame:
    """Pairs on the run, and on each null."""
    rows = [("this run", in_words(rough.dimension))]
    for name, null in rough.nulls.items():
        rows.append((name, "no boundary here" if null is None else in_words(null)))
    return pd.DataFrame(rows, columns=["labels", "dimension"])


def rates(seen: Seeing) -> pd.DataFrame:
    """How many labels flipped, and when."""
    named = {
        "a rerun": seen.rerun,
        "one unit in the last place": seen.ulp,
        "another precision": seen.dtype,
        f"a neighbour in the map, {seen.pitch:.3g} units away": seen.neighbours,
    }
    rows = [
        (
            name,
            f"{rate.flips} of {rate.pairs}",
            f"{rate.value:.2%}",
            "{:.2%} to {:.2%}".format(*ends),
        )
        for name, rate in named.items()
        if rate is not None
        for ends in [rate.interval]
    ]
    return pd.DataFrame(rows, columns=["labels after", "flips", "share", "95 % interval"])
