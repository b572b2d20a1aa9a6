"""What a view looks like: its picture while it fills in, its widget, the loss curves of a point."""

from pathlib import Path

import numpy as np
import pandas as pd

from fractal_core import control, figures
from fractal_core.explore import View, children, duration, opened
from fractal_core.heatmap import Heatmap, heatmap
from fractal_core.outcome import Outcome
from fractal_core.store import ARRAYS, Image, Store
from fractal_core.sweep import LEVELS

CURVE_STEPS = 250


def compose(view: View, parent: View | None) -> Image:
    """The best picture of a view so far: coarse points stand for the cells around them, and where
    there is none yet the parent's cell does.

    It is for the eye only. Nothing is measured on it.
    """
    grid = view.sweep.grid
    image = view.store.image() if view.store is not None else Image.empty(grid)
    if not image.outcome.mask.any():
        return image
    behind = parent.store.image() if parent is not None and parent.store is not None else None
    cells = None
    if behind is not None:
        cells = np.ix_(*behind.grid.cells(grid.x, grid.y))
    arrays = {}
    for name in ARRAYS:
        coarsest = getattr(Image.empty(grid) if behind is None else behind, name)
        picture = coarsest[cells] if cells is not None else coarsest
        arrays[name] = _spread(getattr(image, name), picture)
    return Image(grid, **arrays)


def _spread(array: np.ma.MaskedArray, picture: np.ma.MaskedArray) -> np.ma.MaskedArray:
    """`picture`, painted over by each level of `array`, coarse first."""
    rows, cols = array.shape
    for level in reversed(range(LEVELS)):
        stride = 2**level
        coarse = (
            np.ma.getdata(array)[::stride, ::stride],
            ~np.ma.getmaskarray(array)[::stride, ::stride],
        )
        values, known = (
            np.repeat(np.repeat(part, stride, axis=0), stride, axis=1)[:rows, :cols]
            for part in coarse
        )
        picture[known] = values[known]
    return picture


def widget(root: Path, view: View) -> Heatmap:
    """The map widget of a view, with the runs zoomed out of it outlined."""
    return heatmap(view.sweep.grid, view.sweep.labels, children(root, view))


def keep_painted(
    canvas: Heatmap, root: Path, view: View, quantity: str = "measure", palette: str = "split"
) -> None:
    """Paint a view now, and again whenever the browser asks and there is something new."""
    parent = opened(root, view.parent.name) if view.parent is not None else None
    painted: list[object] = [None]

    def refresh() -> None:
        if view.store is None:
            state, seen = "not computed yet", -1
            live = False
        else:
            progress = control.progress(view.store)
            live, seen = progress.process is not None, progress.done
            state = _status(progress, view.store)
        if painted[0] != seen:
            painted[0] = seen
            image = compose(view, parent)
            values = view.store.image() if view.store is not None else image
            canvas.show(
                figures.paint(image, palette=palette, quantity=quantity),
                np.ma.getdata(getattr(values, quantity).astype(np.float64).filled(np.nan)),
                quantity.replace("_", " "),
            )
        if canvas.status != {"text": state, "live": live}:
            canvas.status = {"text": state, "live": live}

    canvas.answer(refresh)
    refresh()


def _status(progress: control.Progress, store: Store) -> str:
    share = f"{progress.done:,} of {progress.points:,} runs"
    if progress.done == progress.points:
        return f"complete: {share}"
    if progress.process is None:
        return f"stopped: {share}"
    seconds = store.image().seconds.compressed()
    left = (progress.points - progress.done) * float(np.mean(seconds)) if len(seconds) else 0.0
    if not len(seconds):
        return f"running: {share} (the first use of a network compiles it for some seconds)"
    return f"running: {share}, about {duration(left)} left"


def curves(view: View, x: float, y: float) -> pd.DataFrame:
    """Loss curves of the point whose cell holds (x, y), trained again, and of its eight neighbours.

    Returns:
        Columns `run` ("here", or a compass direction), `outcome`, `step` and `loss`, thinned to at
        most 250 steps. Losses are those of the sweep's own runs, to the bit.
    """
    sweep = view.sweep
    row, col = sweep.grid.cell(x, y)
    compass = {
        (0, 0): "here", (1, 0): "north", (1, 1): "north-east", (0, 1): "east",
        (-1, 1): "south-east", (-1, 0): "south", (-1, -1): "south-west", (0, -1): "west",
        (1, -1): "north-west",
    }  # fmt: skip
    rows, cols = sweep.grid.shape
    cells = {
        (row + up, col + right): name
        for (up, right), name in compass.items()
        if 0 <= row + up < rows and 0 <= col + right < cols
    }
    index = np.array(list(cells), dtype=np.int64)
    total = getattr(sweep.experiment, "steps", CURVE_STEPS)
    steps = np.unique(np.linspace(0, total - 1, min(total, CURVE_STEPS)).astype(np.int64))
    outcomes = sweep.experiment.run(
        sweep.grid.points(index[:, 0], index[:, 1]), seed=sweep.seed, record=steps.tolist()
    )
    losses = outcomes.extras["losses"]
    return pd.DataFrame(
        {
            "run": np.repeat(list(cells.values()), len(steps)),
            "outcome": np.repeat([Outcome(o).name for o in outcomes.outcome], len(steps)),
            "step": np.tile(steps, len(cells)),
            "loss": np.where(np.isfinite(losses), losses, np.nan).ravel(),
        }
    )
