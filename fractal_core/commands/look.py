"""Commands that look at what is there: show, export."""

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from fractal_core import adaptive, experiments, figures
from fractal_core.errors import Refused
from fractal_core.files import Files
from fractal_core.store import exported

Run = tyro.conf.Positional[Path]


def show(
    run: Run,
    /,
    *,
    out: Path,
    palette: Literal["split", "paper"] = "split",
    quantity: Literal["measure", "outcome", "final_loss", "steps"] = "measure",
    child: Path | None = None,
    title: str | None = None,
) -> None:
    """Draw a run, finished or not.

    Of a refined run the outcomes show what is inferred as well, and how far that can be trusted is
    written below.

    Args:
        run: The run folder.
        out: Figure to write; .png, .pdf or .svg.
        palette: `split` is safe for the colour-blind, `paper` is the published one.
        quantity: The equalised measure, the outcomes, or the ranks of the final loss or of the steps.
        child: Another run whose region is marked in the picture.
        title: Above the picture.
    """
    store = experiments.open_run(run)
    inner = experiments.open_run(child).sweep.region if child else None
    image = store.image()
    found = adaptive.refined(store, image)
    if quantity == "outcome":
        # The others are numbers of a run, which an inferred point does not have.
        image = dataclasses.replace(image, outcome=found.outcome)
    figure = figures.map_figure(
        image,
        palette=palette,
        quantity=quantity,
        child=inner,
        title=title,
        caption=found.caption,
        labels=store.sweep.labels,
    )
    figures.save(figure, out)
    print(out)


def export(run: Run, out: Run, /) -> None:
    """Write the arrays of a run to one npz file.

    It holds x (cols,), y (rows,), outcome (0 missing, 1 TRAINABLE, 2 UNTRAINABLE, 3 DIVERGED), and
    measure, first_loss, tail_loss, final_loss, steps, all (rows, cols); what is missing is nan, or
    0 steps.

    Args:
        run: The run folder.
        out: File to write.
    """
    if out.suffix != ".npz":
        raise Refused(f"{out}: the file name must end in .npz")
    data = exported(experiments.open_run(run).image())
    Files(out.parent).put_latest(out.name, data)
    print(out)
