"""The six published windows: what was printed beside them, and what we find there."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fractal_core import experiments, findings, pairs, survey
from fractal_core.errors import Refused
from fractal_core.pairing import Course, Request, Trained
from fractal_core.pairs import PairsDimension
from fractal_core.roughness import Roughness
from fractal_core.store import Store
from fractal_core.survey import Hire, Tell
from fractal_core.sweep import Sweep

RUNS = 4000
NAMES = tuple(name for name, preset in experiments.PRESETS.items() if preset.dimension is not None)


@dataclass(frozen=True, eq=False)
class Row:
    """One published condition.

    Args:
        name: Of the preset.
        published: The dimension printed beside the picture.
        found: Ours, and the paper's estimator on our picture.
        pairs: The dimension from pairs of runs, at distances below a cell of the picture; None if
            precision leaves no room for them.
    """

    name: str
    published: float
    found: Roughness
    pairs: PairsDimension | None


def folder(root: Path, name: str, grid: tuple[int, int], steps: int) -> Store:
    """The run folder of a published window, made if it is not there."""
    chosen = experiments.preset(name)
    experiment = experiments.configure(chosen.experiment, {"steps": steps})
    sweep = Sweep.over(experiment, chosen.region(True, *grid))
    sweep.require_resolution()
    return Store.create(root / f"{name}-{grid[0]}x{grid[1]}-{steps}", sweep)


def windows(
    root: Path,
    names: Sequence[str],
    grid: tuple[int, int],
    steps: int,
    hire: Callable[[Store], Hire],
    tell: Callable[[str], Tell],
) -> Iterator[Store]:
    """Published windows by name, one after the other, trained where points are missing.

    Args:
        root: Folder of their run folders.
        names: Some of `NAMES`.
        grid: Rows and columns.
        steps: Of every run.
        hire: Who trains a run.
        tell: Who is told of a window, by its name.

    Raises:
        Busy: Another process works on one of them.
        Refused: Some points could not be trained.
    """
    root.mkdir(parents=True, exist_ok=True)
    for name in names:
        store = folder(root, name, grid, steps)
        survey.lattice(store, 0, hire(store), tell(name))
        yield store


def row(store: Store, name: str, hire: Hire, tell: Tell) -> Row:
    """Measure a published window whose map is trained.

    Raises:
        Busy: Another process works on the run.
        Refused: Some points could not be trained.
    """
    found = findings.mapped(store, "trainable").found
    published = experiments.preset(name).dimension
    return Row(name, float(published or np.nan), found, pairs_of(store, hire, tell))


def pairs_of(store: Store, hire: Hire, tell: Tell) -> PairsDimension | None:
    """The dimension from pairs of runs in the boundary cells of a finished map.

    It is the course of `pairing` without a pilot, from a quarter of a cell down to what precision
    allows, so that it speaks of scales below those of the map; and without reruns, which give the
    same bits. None without a boundary, or where precision leaves no room for two scales.
    """
    run = Trained(store, 0, "trainable", hire, tell)
    try:
        course = Course.of(store, Request(runs=RUNS, seed=store.sweep.seed))
        ground = course.ground(run)
    except Refused:  # too few points, or no boundary
        return None
    low = course.finest
    if course.high < 2 * low:
        return None
    budget = pairs.afford(RUNS, float(np.log10(course.high / low)), coarse=(0, 0), floors=0)
    flips, settings = course.flips(run, ground, budget, low, course.request.seed)
    return pairs.estimate(flips, **settings)


def markdown(rows: list[Row], grid: tuple[int, int], steps: int) -> str:
    """The rows as a table for README."""
    lines = [
        "| window | printed by the paper | its estimator on our picture | D (95 %) | pairs D (95 %) "
        "| verdict on the picture |",
        "|---|---|---|---|---|---|",
    ]
    for each in rows:
        box, two = each.found.box, each.pairs
        number = (
            "none" if box.value is None else f"{box.value:.2f} ({box.low:.2f} to {box.high:.2f})"
        )
        apart = "none"
        if two is not None and not np.isnan(two.dimension) and not two.unresolved:
            apart = f"{two.dimension:.2f} ({two.interval[0]:.2f} to {two.interval[1]:.2f})"
        paper = "none" if each.found.paper is None else f"{each.found.paper:.2f}"
        lines.append(
            f"| `{each.name}` | {each.published:.2f} | {paper} | {number} | {apart} "
            f"| {each.found.verdict} |"
        )
    lines.append("")
    lines.append(
        f"{grid[0]} x {grid[1]} points, {steps} steps, float64, the trainability boundary."
    )
    return "\n".join(lines)
