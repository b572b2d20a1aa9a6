"""Commands that make run folders: demo, new, zoom."""

import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fractal_core import experiments, planner, sight
from fractal_core.commands import Run
from fractal_core.commands.work import train
from fractal_core.errors import Refused
from fractal_core.outcome import is_trainable
from fractal_core.plane import Scale
from fractal_core.store import Store
from fractal_core.sweep import Sweep

Bounds = tuple[float, float]
Settings = Annotated[tuple[str, ...], tyro.conf.arg(name="set", metavar="NAME=VALUE")]


def demo(
    run: Run = Path("runs/demo"),
    /,
    *,
    preset: str = "tanh",
    grid: tuple[int, int] | None = None,
    steps: int | None = None,
) -> int:
    """Make a run from a preset, train it and draw it, in one go.

    Left to itself that is the published tanh fractal of Sohl-Dickstein 2024 (arXiv:2402.06184),
    from the paper's own initial weights, at a grid that two cores fill in about a minute; with
    `--preset matrix-unembedding` the fine-tuning of a small language model. Given again it
    computes nothing and draws the picture anew.

    Args:
        run: Folder of the run.
        preset: As for `fractal new`.
        grid: Rows and columns; left out, 128 x 128, or 16 x 16 of a language model.
        steps: Training steps of every run; left out, 1000, or 40 of a language model.
    """
    from fractal_core import press

    started = time.perf_counter()
    chosen = experiments.preset(preset)
    published = chosen.x is not None
    grid = grid or ((128, 128) if published else (16, 16))
    changes = {experiments.length(chosen.experiment): steps or (1000 if published else 40)}
    experiment = experiments.configure(chosen.experiment, changes)
    sweep = Sweep.over(experiment, chosen.region(published, *grid))
    warn(sweep)
    store = Store.create(run, sweep)
    if code := train(store):
        return code
    image = store.image()
    picture = run / "map.png"
    press.draw("map", [store]).save(picture)
    share = float(is_trainable(image.outcome).mean())
    print(f"{share:.1%} of {image.outcome.size} runs trained")
    print(f"{time.perf_counter() - started:.0f} s in all")
    print(f"picture  {picture}")
    print(f"run      {run}")
    print("\nNext: zoom into a part of it and look again")
    print(
        f"  fractal zoom {run} runs/closer --cells {grid[0] // 3}:{grid[0] * 2 // 3} "
        f"{grid[1] // 3}:{grid[1] * 2 // 3}"
    )
    print("  fractal run runs/closer")
    print("  fractal show runs/closer --out runs/closer/map.png")
    return 0


def warn(sweep: Sweep) -> None:
    """Say what should be known before a map is begun.

    Raises:
        Refused: The map would mean nothing.
    """
    for sentence in planner.notes(sweep):
        print(f"note: {sentence}", file=sys.stderr)


def settings_of(items: Settings) -> dict[str, Any]:
    """Settings by name, still as text.

    Raises:
        Refused: One of them has no name.
    """
    found = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals:
            raise Refused(f"--set {item}: write NAME=VALUE")
        found[name] = value
    return found


def new(
    run: Run,
    /,
    *,
    preset: str = "tanh",
    published: bool = False,
    x: Bounds | None = None,
    y: Bounds | None = None,
    scale: tuple[Scale, Scale] = ("log10", "log10"),
    grid: tuple[int, int] = (128, 128),
    axes: tuple[str, str] | None = None,
    steps: int | None = None,
    dtype: Literal["float64", "float32", "bfloat16", "float16"] | None = None,
    seed: int = 0,
    settings: Settings = (),
    force: bool = False,
) -> None:
    """Make a run folder. Nothing is trained: `fractal run` does that.

    Args:
        run: Folder to make.
        preset: linear, relu, single, minibatch, tanh, init or init-once for tiny networks;
            matrix-unembedding or lr-tokens for fine-tuning a language model.
        published: Take the window of the published picture, not the overview.
        x: Ends of the x axis; all digits count.
        y: Ends of the y axis.
        scale: Scales of x and y, log10 or linear; a linear one may begin at or below zero.
        grid: Rows and columns.
        axes: The two settings that x and y move.
        steps: Training steps of every run.
        dtype: Precision of the training.
        seed: Of weights, data and minibatches, where the preset does not bring the paper's own.
        settings: Further settings of the experiment.
        force: Allow neighbouring values that the arithmetic cannot tell apart.
    """
    changes = settings_of(settings)
    given = {experiments.length(experiments.preset(preset).experiment): steps, "dtype": dtype}
    changes |= {name: value for name, value in given.items() if value is not None}
    sweep = planner.recipe(
        preset,
        published=published,
        x=x,
        y=y,
        scale=scale,
        grid=grid,
        axes=axes,
        seed=seed,
        settings=changes,
    )
    _create(run, sweep, force)


def zoom(
    run: Run,
    target: Run,
    /,
    *,
    x: Bounds | None = None,
    y: Bounds | None = None,
    cells: tuple[str, str] | None = None,
    grid: tuple[int, int] | None = None,
    force: bool = False,
) -> None:
    """Make a run folder with the recipe of another on a part of its region.

    Args:
        run: The parent.
        target: Folder to make.
        x: Ends of the x axis, inside the parent's; left out, the whole of it.
        y: Ends of the y axis.
        cells: Rows and columns of the parent instead, as R0:R1 C0:C1.
        grid: Rows and columns; left out, as many as the parent has.
        force: Allow neighbouring values that the arithmetic cannot tell apart, and a zoom into what
            is mostly rounding by what `fractal seeing` found of the parent.
    """
    store = experiments.read_run(run)
    parent = store.sweep
    if cells is not None and (x or y):
        raise Refused("give --cells, or --x and --y, but not both")
    if cells is not None:
        rows, cols = (_slice(text) for text in cells)
        region = parent.grid.zoom_cells(rows, cols, grid)
    elif x or y:
        whole = parent.region
        region = whole.zoom(
            x or (whole.x.low, whole.x.high),
            y or (whole.y.low, whole.y.high),
            *(grid or (None, None)),
        )
    else:
        raise Refused("say where: --x LO HI --y LO HI, or --cells R0:R1 C0:C1")
    child = parent.zoom(region)
    if not force:
        child.require_resolution()
        sight.require_sight(store, child)
    _create(target, child, force)


def _slice(text: str) -> tuple[int, int]:
    start, colon, stop = text.partition(":")
    if not (colon and start.isdecimal() and stop.isdecimal()):
        raise Refused(f"--cells {text}: write FIRST:PAST_LAST, for example 32:64")
    return int(start), int(stop)


def _create(path: Path, sweep: Sweep, force: bool) -> None:
    if not force:
        sweep.require_resolution()
        warn(sweep)
    store = Store.create(path, sweep)
    rows, cols = sweep.grid.shape
    print(f"{path}: {rows} x {cols} points, id {sweep.id}, {len(store.missing())} units missing")
    print(f"next: fractal run {path}")
