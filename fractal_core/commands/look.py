"""Commands that look at what is there: show, export."""

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from fractal_core import adaptive, experiments, figures, records
from fractal_core.errors import Refused
from fractal_core.files import Files
from fractal_core.panels import panels_figure
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
    panels: Literal[3, 4] | None = None,
    width: int | None = None,
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
        panels: Beside each other, in colours of their own: 3 are trainability with the rank of the
            final loss, the final loss, and trainable or not; 4 adds stability.
        width: Of the figure in mm; 89 and 183 are one and two columns of most journals, and what
            is taken for a map and for panels.
        title: Above the picture.
    """
    if panels and (child or (palette, quantity) != ("split", "measure")):
        raise Refused("panels have their own colours; leave out --palette, --quantity and --child")
    store = experiments.read_run(run)
    inner = experiments.read_run(child).sweep.region if child else None
    image = store.image()
    found = adaptive.refined(store, image)
    if quantity == "outcome" or panels:
        # The others are numbers of a run, which an inferred point does not have.
        image = dataclasses.replace(image, outcome=found.outcome)
    shared = {"title": title, "caption": found.caption, "labels": store.sweep.labels}
    if panels:
        figure = panels_figure(image, panels=panels, width_mm=width or 183, **shared)
    else:
        figure = figures.map_figure(
            image, palette=palette, quantity=quantity, child=inner, width_mm=width or 89, **shared
        )
    figures.save(figure, out)
    print(out)


def export(run: Run, out: Run, /) -> None:
    """Write the arrays of a run to one npz file, or its points to a table.

    An npz holds x (cols,), y (rows,), outcome (0 missing, 1 TRAINABLE, 2 UNTRAINABLE, 3 DIVERGED),
    and measure, first_loss, tail_loss, final_loss, steps, all (rows, cols); what is missing is nan,
    or 0 steps. A csv has a row for every point: x, y, outcome, measure, first_loss, tail_loss,
    final_loss, ratio (tail over first), steps, seconds; what is missing is empty.

    Args:
        run: The run folder.
        out: File to write; .npz or .csv.
    """
    if out.suffix not in (".npz", ".csv"):
        raise Refused(f"{out}: the file name must end in .npz or .csv")
    image = experiments.read_run(run).image()
    data = exported(image) if out.suffix == ".npz" else records.to_csv(image).encode()
    Files(out.parent).put_latest(out.name, data)
    print(out)
