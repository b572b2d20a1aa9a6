"""Commands that measure a boundary: dim, refine, table."""

import dataclasses
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fractal_core import (
    adaptive,
    experiments,
    figures,
    findings,
    history,
    press,
    published,
    recipe,
)
from fractal_core.boundary import SafetyMargin
from fractal_core.commands import Json, Run
from fractal_core.commands.work import Telling, crew_of
from fractal_core.dimension import Dimension, dimension_in_time
from fractal_core.errors import Refused, require_known
from fractal_core.findings import companions, in_words
from fractal_core.outcome import SIDES, Which
from fractal_core.pairs import PairsDimension
from fractal_core.roughness import Roughness, pitch_of
from fractal_core.store import Store


def dim(
    run: Run,
    /,
    *,
    which: Which = "trainable",
    measured_only: bool = False,
    jitter: float = 10.0,
    times: int | None = None,
    out: Path | None = None,
    as_json: Json = False,
) -> None:
    """Say how rough the boundary of a map is, and whether that means anything.

    The box-counting dimension with its interval and range of scales, the same of what is not
    fractal (the map smoothed, a quadratic loss, coin flips with the same local rates), and the
    verdict: smooth, fractal over a range of scales, unresolved at this resolution, or
    indistinguishable from noise.

    Args:
        run: The run folder.
        which: The border between trainable and not, or between stable and diverged.
        measured_only: Go on with missing points, and leave out the boxes that hold one.
        jitter: Of the safety margin: both hyperparameters off by up to so many per cent.
        times: Train every point of the map once more and say how the dimension goes with the
            training length, at so many lengths.
        out: Figure to write; .png, .pdf or .svg.
        as_json: One JSON object and nothing else.
    """
    if not 0 < jitter < math.inf:
        raise Refused(f"a jitter of {jitter:g} %; choose a positive number of per cent")
    store = experiments.read_run(run) if times is None else experiments.open_run(run)
    if times is not None:
        _in_time(store, which, times, out, as_json)
        return
    whole = findings.mapped(store, which, jitter / 100, measured_only)
    labels, found, picture = whole.labels, whole.found, whole.picture
    if out is not None:
        press.dimension_print(store, labels, found, which, picture.caption).save(out)
    if as_json:
        report = _report(store, found, which, jitter) | {"inferred": _inferred(picture)}
        print(json.dumps(report))
        return
    _print(store, found, which, jitter)
    if picture.caption:
        print(f"\n{picture.caption}")
    if out is not None:
        print(out)


def refine(
    run: Run,
    /,
    *,
    probes: int = adaptive.PROBES,
    slots: int | None = None,
    as_json: Json = False,
) -> None:
    """Train a run only where its boundary is, infer the rest, and audit what was inferred.

    Trained are the coarsest lattice, the borders of all blocks, and then the blocks in and around
    which outcomes differ. Settled points drawn at random are trained too: the audit, which finds
    what refinement cannot see. `fractal run` completes the map at any time.

    Args:
        run: The run folder.
        probes: Points of the first audit; 300 without surprise bound the wrong ones to 1 %.
        slots: Worker processes; left out, 1.
        as_json: One JSON object and nothing else.
    """
    store = experiments.open_run(run)
    found = adaptive.refine(store, crew_of(store, slots), Telling(), probes)
    measured = np.count_nonzero(~np.ma.getmaskarray(found.outcome) & ~found.inferred)
    if as_json:
        report = {"points": found.inferred.size, "measured": int(measured)}
        print(json.dumps(report | {"inferred": _inferred(found)}))
        return
    print(f"{run}: {measured} of {found.inferred.size} points are measured")
    print(found.caption or "nothing is inferred")
    print(f"next: fractal dim {run}")


def table(
    root: Run = Path("runs/published"),
    /,
    *,
    grid: tuple[int, int] = (128, 128),
    steps: int = 1000,
    only: tuple[str, ...] = (),
    slots: int | None = None,
    as_json: Json = False,
) -> None:
    """Measure the six published windows and print the table of README.

    Args:
        root: Folder of the run folders, which are made, or used again.
        grid: Rows and columns of every map.
        steps: Training steps of every run.
        only: Some of linear, relu, single, minibatch, tanh and init; left out, all.
        slots: Worker processes; left out, 1.
        as_json: One JSON object and nothing else.
    """
    for name in only:
        require_known("window", name, published.NAMES)
    names = only or published.NAMES
    tellers = {name: Telling(f"{name}: ") for name in names}
    hire = partial(crew_of, slots=slots)
    rows, stores = [], []
    trained = published.windows(root, names, grid, steps, hire, tellers.__getitem__)
    for name, store in zip(names, trained, strict=True):
        stores.append(store)
        rows.append(published.row(store, name, hire(store), tellers[name]))
    if not as_json:
        print(published.markdown(rows, grid, steps))
        return
    report = [
        _report(store, each.found, "trainable", 10.0)
        | {"window": each.name, "published": each.published, "pairs": _pairs(each.pairs)}
        for store, each in zip(stores, rows, strict=True)
    ]
    print(json.dumps({"grid": list(grid), "steps": steps, "windows": report}))


def _in_time(store: Store, which: Which, times: int, out: Path | None, as_json: bool) -> None:
    """The dimension after several training lengths, and how many labels still change."""
    lengths, outcomes = history.outcomes_in_time(store, times, crew_of(store), Telling())
    labels = SIDES[which](outcomes)
    pitch, unit = pitch_of(store.sweep.grid)
    found = dimension_in_time(labels, pitch)
    moved = [math.nan, *(labels[1:] != labels[:-1]).mean(axis=(1, 2)).tolist()]
    if out is not None:
        from fractal_core import plots

        told = recipe.text("dimension in time", [store], {"boundary": which})
        figures.save(plots.time_figure(lengths, found, moved), out, told)
    if as_json:
        rows = [
            {"steps": length, "share": float(label.mean()), "changed": _finite(change)} | _box(each)
            for length, label, change, each in zip(lengths, labels, moved, found, strict=True)
        ]
        report = {"run": str(store.path), "boundary": which, "scales_in": unit, "lengths": rows}
        print(json.dumps(report))
        return
    rows, cols = store.sweep.grid.shape
    print(f"{store.path}: {rows} x {cols} points, the {which} boundary\n")
    print(f"{'steps':>7}  {which + ', %':>12}  {'changed, %':>10}  dimension")
    for length, label, change, each in zip(lengths, labels, moved, found, strict=True):
        changed = "" if math.isnan(change) else f"{100 * change:.2f}"
        print(f"{length:>7}  {100 * label.mean():>12.1f}  {changed:>10}  {in_words(each)}")
    if out is not None:
        print(out)


def _print(store: Store, found: Roughness, which: Which, jitter: float) -> None:
    rows, cols = store.sweep.grid.shape
    steps = getattr(store.sweep.experiment, "steps", None)
    trained = f", {steps} steps" if steps else ""
    print(f"{store.path}: {rows} x {cols} points{trained}, the {which} boundary\n")
    box = found.box
    print(f"dimension      {in_words(box)}")
    if box.decades is not None:
        low, high = box.decades
        print(f"               box sizes from {low:.2g} to {high:.2g} {found.unit}")
    print(f"verdict        {found.verdict}")
    for sentence in found.verdict.evidence:
        print(f"               - {sentence}")
    for name, text in companions(store, found, which, jitter):
        print(f"{name:<15}{text}")
    profile = box.profile
    if len(profile.eps):
        print(f"\nbox size, {found.unit}   D(eps)  95 % interval")
        for row in zip(profile.eps, profile.dimension, profile.low, profile.high, strict=True):
            print("{:<18.3g}  {:7.3f}  {:.3f} to {:.3f}".format(*row))


def _report(store: Store, found: Roughness, which: Which, jitter: float) -> dict[str, Any]:
    """All that is printed, as JSON data."""
    rows, cols = store.sweep.grid.shape
    entropy = found.entropy
    margin = None if found.margin is None else _margin(store, found.margin)
    return {
        "run": str(store.path),
        "id": store.sweep.id,
        "grid": [rows, cols],
        "steps": getattr(store.sweep.experiment, "steps", None),
        "boundary": which,
        "scales_in": found.unit,
        **_box(found.box),
        "verdict": {
            "kind": found.verdict.kind,
            "text": str(found.verdict),
            "evidence": found.verdict.evidence,
        },
        "minkowski": found.minkowski,
        "for_comparison_only": {"paper": found.paper, "fractal_llm": found.fractal_llm},
        "basin_entropy": None if entropy is None else _finite(entropy.basin),
        "boundary_basin_entropy": None if entropy is None else _finite(entropy.boundary),
        "safety_margin": {
            "jitter_percent": jitter,
            "chance": 0.01,
            "largest_x_by_row": margin,
            "none_because": found.no_margin or None,
        },
        "nulls": {
            **{name: [_box(null) for null in drawn] for name, drawn in found.curves.items()},
            "coin flips": [_box(null) for null in found.coins],
        },
    }


def _box(found: Dimension) -> dict[str, Any]:
    profile = found.profile
    return {
        "dimension": found.value,
        "interval": None if found.value is None else [found.low, found.high],
        "no_dimension_because": found.reason or None,
        "counts_alone": None if found.read is None else list(found.read),
        "scales": None if found.decades is None else list(found.decades),
        "edge_density": found.edge_density,
        "neighbour_correlation": _finite(found.neighbour_correlation),
        "profile": {
            name: [_finite(float(value)) for value in getattr(profile, name)]
            for name in ("eps", "dimension", "low", "high")
        },
    }


def _inferred(found: adaptive.Refined) -> dict[str, Any] | None:
    """What is inferred and how far it can be trusted; None if all is measured."""
    if not found.inferred.any():
        return None
    audit = found.audit and dataclasses.asdict(found.audit) | {"wrong_at_most": found.audit.bound}
    return {"points": int(np.count_nonzero(found.inferred)), "audit": audit}


def _pairs(found: PairsDimension | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "dimension": _finite(found.dimension),
        "interval": list(found.interval),
        "scales": list(found.scales),
        "bases": found.bases,
        "eps": found.eps.tolist(),
        "flips": found.flips.tolist(),
        "unresolved": found.unresolved or None,
    }


def _margin(store: Store, margin: SafetyMargin) -> list[float | None]:
    x = store.sweep.grid.x
    return [float(x[col]) if col >= 0 else None for col in margin.largest]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
