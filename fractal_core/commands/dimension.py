"""Commands that measure a boundary: dim."""

import json
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from fractal_core import experiments, figures
from fractal_core.boundary import SafetyMargin
from fractal_core.commands.work import Json
from fractal_core.dimension import Dimension
from fractal_core.errors import Refused
from fractal_core.outcome import WINDOW, is_stable, is_trainable
from fractal_core.roughness import Roughness, pitch_of, roughness
from fractal_core.store import Store

Run = tyro.conf.Positional[Path]
Which = Literal["trainable", "stable"]

SIDES = {"trainable": is_trainable, "stable": is_stable}
WORDS = {"trainable": ("trainable", "not trainable"), "stable": ("stable", "diverged")}


def dim(
    run: Run,
    /,
    *,
    which: Which = "trainable",
    measured_only: bool = False,
    jitter: float = 10.0,
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
        out: Figure to write; .png, .pdf or .svg.
        as_json: One JSON object and nothing else.
    """
    if not 0 < jitter < math.inf:
        raise Refused(f"a jitter of {jitter:g} %; choose a positive number of per cent")
    store = experiments.open_run(run)
    image = store.image()
    labels = SIDES[which](image.outcome)
    experiment = store.sweep.experiment
    found = roughness(
        labels,
        store.sweep.grid,
        steps=getattr(experiment, "steps", 1000),
        window=getattr(experiment, "window", WINDOW),
        outcome=image.outcome,
        jitter=jitter / 100,
        measured_only=measured_only,
    )
    if out is not None:
        _draw(store, labels, found, which, out)
    if as_json:
        print(json.dumps(_report(store, found, which, jitter)))
        return
    _print(store, found, which, jitter)
    if out is not None:
        print(out)


def _draw(store: Store, labels: np.ndarray, found: Roughness, which: Which, out: Path) -> None:
    from fractal_core import plots

    rows, cols = store.sweep.grid.shape
    (x, y), _ = pitch_of(store.sweep.grid)
    figure = plots.dimension_figure(
        labels,
        found,
        names=store.sweep.labels,
        spans=(x * cols, y * rows),
        sides=WORDS[which],
    )
    figures.save(figure, out)


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
    print(f"cross-check    {_number(found.minkowski)} from the area around the boundary")
    print(
        f"other recipes  {_number(found.paper)} the paper's, {_number(found.fractal_llm)} "
        "fractal-llm's (without interval or nulls, for comparison only)"
    )
    print(
        f"companions     edge density {box.edge_density:.3f}, "
        f"neighbour correlation {box.neighbour_correlation:.2f}"
    )
    if found.entropy is not None:
        proof = "proves a fractal" if found.entropy.fractal else "no proof of a fractal"
        print(
            f"               basin entropy {found.entropy.basin:.3f}, on the boundary "
            f"{found.entropy.boundary:.3f} (ln 2 = 0.693: {proof})"
        )
    print(f"safety margin  {_margin_in_words(store, found, jitter)}")
    profile = box.profile
    if len(profile.scales):
        print(f"\nbox size, {found.unit}   D(eps)  95 % interval")
        for row in zip(profile.scales, profile.slopes, profile.low, profile.high, strict=True):
            print("{:<18.3g}  {:7.3f}  {:.3f} to {:.3f}".format(*row))


def in_words(found: Dimension) -> str:
    """A dimension with its interval, or why there is none."""
    if found.value is None:
        return f"none: {found.reason}"
    return f"{found.value:.3f} (95 %: {found.low:.3f} to {found.high:.3f})"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _margin_in_words(store: Store, found: Roughness, jitter: float) -> str:
    if found.margin is None:
        return f"none: {found.no_margin}"
    x = store.sweep.labels[0]
    largest = found.margin.largest
    if largest.max() < 0:
        return f"none: nowhere do at most 1 % of runs fail under +-{jitter:g} % jitter"
    row = int(np.argmax(largest))
    grid = store.sweep.grid
    safe = np.count_nonzero(largest >= 0)
    return (
        f"{x} up to {grid.x[largest[row]]:.4g} with at most 1 % chance of failing under "
        f"+-{jitter:g} % jitter, at {store.sweep.labels[1]} {grid.y[row]:.4g} "
        f"({safe} of {len(grid.y)} rows have such a value)"
    )


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
            for name in ("scales", "slopes", "low", "high")
        },
    }


def _margin(store: Store, margin: SafetyMargin) -> list[float | None]:
    x = store.sweep.grid.x
    return [float(x[col]) if col >= 0 else None for col in margin.largest]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
