"""Commands that say how rough a boundary is and how far labels can be trusted: pairs, seeing."""

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from fractal_core import experiments, findings, pairing, recipe, sight
from fractal_core.commands import Json, Run
from fractal_core.commands.work import Telling, crew_of
from fractal_core.outcome import Which
from fractal_core.pairing import Bases, Request, Roughness
from fractal_core.pairs import PairsDimension
from fractal_core.seeing import Rate, unit_of
from fractal_core.survey import Cost


def pairs(
    run: Run,
    /,
    *,
    which: Which = "trainable",
    bases: Bases = "focused",
    runs: int = 8_000,
    low: float | None = None,
    high: float | None = None,
    seed: int = 0,
    out: Path | None = None,
    as_json: Json = False,
) -> None:
    """Measure the dimension of a boundary from pairs of runs, without a picture.

    Trains at points near the boundary and at partners of them at many distances, and counts the
    pairs whose labels differ: f = a eps^(2 - D). It says what it costs first; the same command
    again trains nothing. What it comes to is kept in the folder.

    Args:
        run: The run folder. Its map need not be finished: what is missing of a coarse one is
            trained as a part of it.
        which: The boundary of what trained, or of what did not diverge.
        bases: `focused` starts from the mixed cells of the coarse map; `chords` from random lines,
            which favour no part of the boundary and need more runs.
        runs: The most runs beside the map.
        low: Smallest distance, in decades (lengths of a linear axis); left out, the smallest that
            is worth its runs.
        high: Largest distance; left out, what the coarse map allows.
        seed: Of points, directions and intervals.
        out: Figure to write; .png, .pdf or .svg.
        as_json: One JSON object and nothing else.
    """
    store = experiments.open_run(run)
    request = Request(which, bases, runs, seed, low, high)
    _announce(pairing.cost(store, request))
    telling = Telling()
    rough = pairing.measure(store, request, crew_of(store), telling)
    findings.keep(store, rough)
    unit = unit_of(store.sweep.region)
    if out is not None:
        from fractal_core import charts, figures

        found = rough.dimension
        title = f"{_dimension(found)}, {rough.verdict}"
        told = recipe.text("pairs", [store], {"boundary": which, "runs": runs, "seed": seed})
        figures.save(
            charts.pairs_figure(found, nulls=rough.nulls, title=title, unit=unit), out, told
        )
    if as_json:
        told = {"run": str(run), "id": store.sweep.id, "unit": unit, "trained": telling.count}
        told |= {"verdict": str(rough.verdict), "evidence": rough.verdict.evidence}
        rest = {"nulls": rough.nulls, "request": rough.request, "coarse": rough.coarse}
        print(json.dumps(told | plain(rough.dimension) | plain(rest)))
        return
    for line in _lines(rough):
        print(line)
    print(f"{telling.count:,} runs trained")
    if out is not None:
        print(out)


def seeing(
    run: Run,
    /,
    *,
    which: Which = "trainable",
    runs: int = 1_500,
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """Say how far the labels of a run can be trusted, and keep that in its folder.

    Trains points beside the boundary again as they are, moved by one unit in the last place, and
    in another precision. A zoom asks what was seen whether there is more to be seen further down.

    Args:
        run: The run folder.
        which: The boundary of what trained, or of what did not diverge.
        runs: The most runs beside the map, three for every point.
        seed: Of the points.
        as_json: One JSON object and nothing else.
    """
    store = experiments.open_run(run)
    _announce(sight.cost(store, runs))
    telling = Telling()
    seen = sight.look(store, which, runs, seed, crew_of(store), telling)
    if as_json:
        told = {"run": str(run), "id": store.sweep.id, "trained": telling.count}
        print(json.dumps(told | plain(seen) | {"sentences": seen.sentences}))
        return
    print(f"{seen.rerun.pairs} points {seen.where}:")
    for sentence in seen.sentences:
        print(f"  {sentence}")
    print(f"{telling.count:,} runs trained")


def _announce(cost: Cost) -> None:
    """Say what it costs before anything is trained."""
    print(f"{cost}; what is stored is not trained again", file=sys.stderr, flush=True)


def _dimension(found: PairsDimension) -> str:
    if math.isnan(found.dimension):
        return "no dimension"
    low, high = found.interval
    return f"D = {found.dimension:.3f} ({low:.3f} to {high:.3f})"


def _lines(rough: Roughness) -> list[str]:
    found, budget = rough.dimension, rough.budget
    lines = [
        f"{_dimension(found)}, {rough.verdict}",
        f"  {found.bases} base points, {budget.scales} distances from {found.eps[0]:.3g} to "
        f"{found.eps[-1]:.3g}, coarse map {rough.coarse[0]} x {rough.coarse[1]}",
    ]
    for name, rate in (("a rerun", found.rerun), ("one unit in the last place", found.ulp)):
        if rate is not None:
            low, high = rate.interval
            lines.append(
                f"  floor: {name} flips {rate.flips} of {rate.pairs} ({low:.2%} to {high:.2%})"
            )
    return lines + [f"  {sentence}" for sentence in rough.verdict.evidence]


def plain(value: Any) -> Any:
    """JSON data of a result: an array is a list, what is not a number null, a rate has its interval."""
    if isinstance(value, Rate):
        return dataclasses.asdict(value) | {"value": value.value, "interval": value.interval}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
