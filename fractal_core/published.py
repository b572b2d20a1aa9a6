"""The six published windows: what was printed beside them, and what we find there."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from fractal_core import experiments, pairs, straddle, survey
from fractal_core.errors import Refused
from fractal_core.outcome import is_trainable
from fractal_core.pairs import PairsDimension
from fractal_core.roughness import Roughness, roughness
from fractal_core.seeing import finest
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


def row(store: Store, name: str, hire: Hire, tell: Tell) -> Row:
    """Measure a published window, training what is missing.

    Raises:
        Busy: Another process works on the run.
        Refused: Some points could not be trained.
    """
    image = survey.lattice(store, 0, hire, tell)
    labels = np.ma.getdata(is_trainable(image.outcome))
    experiment = experiments.preset(name).experiment
    found = roughness(
        labels,
        store.sweep.grid,
        steps=getattr(store.sweep.experiment, "steps", experiment.steps),
        window=experiment.window,
        outcome=image.outcome,
    )
    published = experiments.preset(name).dimension
    return Row(name, float(published or np.nan), found, pairs_of(store, labels, hire, tell))


def pairs_of(
    store: Store, labels: Bool[np.ndarray, "rows cols"], hire: Hire, tell: Tell, runs: int = RUNS
) -> PairsDimension | None:
    """The dimension from pairs of runs in the boundary cells of a finished map.

    The largest distance is a quarter of a cell and the smallest what precision allows, so that it
    speaks of scales below those of the map. Rerun flips are taken to be none.
    """
    sweep = store.sweep
    dtype, region = sweep.experiment.precision, sweep.region
    x, y = (sweep.experiment.magnitude(axis, sweep.seed) for axis in sweep.experiment.axes)
    high, low = pairs.widest(sweep.grid), finest(region, dtype, (x, y)) * (1 + 1e-9)
    if high < 2 * low:
        return None
    try:
        budget = pairs.afford(runs, float(np.log10(high / low)), coarse=(0, 0), floors=0)
        bases = straddle.focused(sweep.grid, labels, budget.bases, sweep.seed, dtype)
        eps = pairs.distances(low, high, budget.scales)
        eps[-1] = low
        others = pairs.partners(region, bases, eps, sweep.seed, dtype, (x, y)).points
    except Refused:
        return None
    settings = {"bases": budget.bases, "scales": eps.tolist(), "seed": sweep.seed}
    points = np.concatenate([bases, others.reshape(-1, 2)])
    name = survey.named("pairs", settings)
    trains = is_trainable(survey.trained(store, name, points, hire, tell).outcome)
    base, other = trains[: len(bases)], trains[len(bases) :].reshape(len(bases), -1)
    return pairs.estimate(base[:, None] != other, eps)


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
