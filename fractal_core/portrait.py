"""What a view looks like: its picture while it fills in, its widget, the loss curves of a point."""

import contextlib
import html
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fractal_core import control, figures, recipe
from fractal_core.errors import Refused
from fractal_core.explore import View, children, cost, is_language_model, opened, zoomed
from fractal_core.heatmap import Heatmap, heatmap
from fractal_core.network import recorded
from fractal_core.outcome import Outcome
from fractal_core.outlook import about
from fractal_core.store import ARRAYS, Image
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


def selected(root: Path, view: View, box: Sequence[float]) -> tuple[View | None, str]:
    """The view of a dragged rectangle, if there is one that can be computed; and why not."""
    try:
        return zoomed(root, view, box) if box else None, ""
    except Refused as error:
        return None, f"cannot zoom there: {error}"


def price(view: View, inner: View | None, trouble: str) -> str:
    """What a selection takes, or the view itself where there is none, as HTML that tests can read.

    Args:
        view: The view.
        inner: What was selected in it,
        trouble: and why that cannot be computed, as `selected` returns them.
    """
    words, gauge, region = trouble, "", (inner or view).sweep.region
    if not trouble:
        takes = cost(inner or view, like=view)
        words, gauge = f"{'selection' if inner else 'this view'}: {takes}", takes.gauge
    ends = [f"{axis.name} {axis.low!r} … {axis.high!r}" for axis in (region.x, region.y)]
    return (
        f"<div><span data-testid='cost'>{html.escape(words)}</span> {gauge}<br>"
        f"<small data-testid='region'>{html.escape(' · '.join(ends))}</small></div>"
    )


def widget(root: Path, view: View) -> Heatmap:
    """The map widget of a view, with the runs zoomed out of it outlined."""
    return heatmap(view.sweep.grid, view.sweep.labels, children(root, view))


def phase(view: View, progress: control.Progress | None = None) -> str:
    """not begun, running, stopped, complete, or gone: its folder is.

    Args:
        view: The view.
        progress: How far it is, if somebody has just looked.
    """
    if view.store is None:
        return "not begun"
    now = (progress or control.progress(view.store)).state
    return "running" if now == "stopping" else now


def keep_painted(
    canvas: Heatmap,
    root: Path,
    view: View,
    quantity: str = "measure",
    palette: str = "split",
    tell: Callable[[str], None] = lambda phase: None,
) -> None:
    """Paint a view now, and again whenever the browser asks and there is something new.

    Args:
        canvas: What to paint on.
        root: Where runs are.
        view: The view.
        quantity: What the colours mean.
        palette: Which they are.
        tell: Told the `phase` of the view whenever the browser asks.
    """
    parent = opened(root, view.parent.name) if view.parent is not None else None
    painted: list[object] = [None]

    def refresh() -> None:
        if view.store is None:
            state, seen = "not computed yet", -1
            live = False
        else:
            progress = control.progress(view.store)
            live, seen = progress.process is not None, progress.done
            state = _status(progress, view)
            tell(phase(view, progress))
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


def still(view: View, quantity: str = "measure", palette: str = "split") -> bytes:
    """A view as it is now, printed with its axes, legend and caption: a PNG."""
    image = view.store.image() if view.store is not None else Image.empty(view.sweep.grid)
    words = recipe.caption(view.store, quantity) if view.store is not None else "Not computed yet."
    figure = figures.map_figure(
        image, palette=palette, quantity=quantity, labels=view.sweep.labels, caption=words
    )
    return figures.render(figure, ".png")


def _status(progress: control.Progress, view: View) -> str:
    share = f"{progress.done:,} of {progress.points:,} runs"
    if progress.done == progress.points:
        return f"complete: {share}"
    if progress.state == "gone":
        return "the folder of this run is gone"
    if progress.process is None:
        failed = f", {progress.failed:,} failed" if progress.failed else ""
        return f"stopped: {share}{failed}"
    left = progress.seconds_remaining
    if progress.done and left is not None:
        return f"running: {share}, {about(left)} left"
    if progress.done:
        return f"running: {share}"
    first = "the model is loaded first" if is_language_model(view) else "it is compiled first"
    return f"running: {share} ({first}, which takes some seconds)"


COMPASS = {
    (0, 0): "here", (1, 0): "north", (1, 1): "north-east", (0, 1): "east",
    (-1, 1): "south-east", (-1, 0): "south", (-1, -1): "south-west", (0, -1): "west",
    (1, -1): "north-west",
}  # fmt: skip


def curves(view: View, x: float, y: float) -> pd.DataFrame:
    """Loss curves of the point whose cell holds (x, y) and of its eight neighbours.

    Tiny networks are trained again, which gives the losses of the sweep's own runs, to the bit.
    Runs of a language model are kept with their losses: those that are there are read.

    Returns:
        Columns `run` ("here", or a compass direction), `outcome`, `step` and `loss`, thinned to at
        most 250 steps. Without the point itself there are no rows.
    """
    row, col = view.sweep.grid.cell(x, y)
    rows, cols = view.sweep.grid.shape
    cells = {
        (row + up, col + right): name
        for (up, right), name in COMPASS.items()
        if 0 <= row + up < rows and 0 <= col + right < cols
    }
    found = _kept(view, list(cells)) if is_language_model(view) else _trained(view, list(cells))
    if (row, col) not in found:
        return _frame("here", Outcome.TRAINABLE, np.empty((0, 2)))
    frames = [_frame(cells[cell], *each) for cell, each in found.items()]
    return pd.concat(frames, ignore_index=True)


def _frame(name: str, outcome: int, losses: np.ndarray) -> pd.DataFrame:
    """The curve of one run, from pairs of step and loss."""
    return pd.DataFrame(
        {
            "run": [name] * len(losses),
            "outcome": [Outcome(outcome).name] * len(losses),
            "step": losses[:, 0].astype(np.int64),
            "loss": np.where(np.isfinite(losses[:, 1]), losses[:, 1], np.nan),
        }
    )


Cell = tuple[int, int]


def _trained(view: View, cells: list[Cell]) -> dict[Cell, tuple[int, np.ndarray]]:
    """Outcomes and losses of tiny networks, trained again."""
    index, sweep = np.array(cells, dtype=np.int64), view.sweep
    steps = recorded(getattr(sweep.experiment, "steps", CURVE_STEPS), CURVE_STEPS)
    outcomes = sweep.experiment.run(
        sweep.grid.points(index[:, 0], index[:, 1]), seed=sweep.seed, record=steps.tolist()
    )
    each = zip(outcomes.outcome.tolist(), outcomes.extras["losses"], strict=True)
    return {
        cell: (outcome, np.stack([steps, losses], axis=1))
        for cell, (outcome, losses) in zip(cells, each, strict=True)
    }


def _kept(view: View, cells: list[Cell]) -> dict[Cell, tuple[int, np.ndarray]]:
    """Outcomes and losses of runs that are kept with their curves; a missing one is left out."""
    if view.store is None:
        return {}
    missing = {unit.key for unit in view.store.missing()}
    found = {}
    for unit in view.store.units.values():
        places = list(zip(*(index.tolist() for index in unit.cells()), strict=True))
        if unit.key in missing or not set(places) & set(cells):
            continue
        with contextlib.suppress(Refused):  # a damaged file is a missing one
            arrays = view.store.read(unit)
            for place, outcome, curve in zip(
                places, arrays["outcome"].tolist(), arrays["curve"], strict=True
            ):
                if place in cells:
                    steps = recorded(len(curve), CURVE_STEPS)
                    found[place] = outcome, np.stack([steps, curve[steps]], axis=1)
    return found
