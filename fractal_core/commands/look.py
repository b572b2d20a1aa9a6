"""Commands that look at what is there: show, plate, film, export."""

from functools import partial
from pathlib import Path
from typing import Literal

import tyro

from fractal_core import experiments, figures, films, press, published, records
from fractal_core.commands import Run
from fractal_core.commands.work import Telling, crew_of
from fractal_core.errors import Refused
from fractal_core.files import Files
from fractal_core.film import PER_FACTOR, RATE, SIZE
from fractal_core.store import Store, exported

Palette = Literal["split", "paper"]
Quantity = Literal["measure", "outcome", "final_loss", "steps"]


def show(
    run: Run,
    /,
    *,
    out: Path,
    palette: Palette = "split",
    quantity: Quantity = "measure",
    child: Path | None = None,
    panels: Literal[3, 4] | None = None,
    width: int | None = None,
    title: str | None = None,
    caption: bool = False,
    proof: Path | None = None,
) -> None:
    """Draw a run, finished or not. The file carries its recipe: `fractal open FIGURE` reopens it.

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
        caption: Write below it, from the recipe, what was trained and how colours are read.
        proof: Picture to write of how colour-blind and grey-scale readers see the figure.
    """
    if panels and (child or (palette, quantity) != ("split", "measure")):
        raise Refused("panels have their own colours; leave out --palette, --quantity and --child")
    printed = press.draw(
        f"{panels} panels" if panels else "map",
        [experiments.read_run(run)],
        palette=palette,
        quantity=quantity,
        width_mm=width,
        title=title,
        captioned=caption,
        child=experiments.read_run(child) if child else None,
    )
    _save(printed, out, proof)


def plate(
    runs: tyro.conf.Positional[tuple[Path, ...]] = (),
    /,
    *,
    out: Path,
    root: Path = Path("runs/published"),
    grid: tuple[int, int] = (128, 128),
    steps: int = 1000,
    slots: int | None = None,
    palette: Palette = "split",
    quantity: Quantity = "measure",
    width: int = 183,
    title: str | None = None,
    caption: bool = False,
    proof: Path | None = None,
) -> None:
    """Draw several runs on one page, two rows by three like the plate of the paper.

    Without runs it is that very plate: the six published windows, trained where points are
    missing, in the folders that `fractal table` uses.

    Args:
        runs: Run folders; left out, the six published windows.
        out: Figure to write; .png, .pdf or .svg.
        root: Folder of the published windows.
        grid: Rows and columns of each of them.
        steps: Training steps of theirs.
        slots: Worker processes for them; left out, 1.
        palette: `split` is safe for the colour-blind, `paper` is the published one.
        quantity: The equalised measure, the outcomes, or the ranks of the final loss or of the steps.
        width: Of the page in mm.
        title: Above all maps.
        caption: Write below them, from the recipes, how they are read.
        proof: Picture to write of how colour-blind and grey-scale readers see the plate.
    """
    stores = [experiments.read_run(run) for run in runs]
    if not stores:
        hire = partial(crew_of, slots=slots)
        windows = published.windows(
            root, published.NAMES, grid, steps, hire, lambda name: Telling(f"{name}: ")
        )
        stores = list(windows)
    printed = press.draw(
        "plate",
        stores,
        palette=palette,
        quantity=quantity,
        width_mm=width,
        title=title,
        captioned=caption,
    )
    _save(printed, out, proof)


def film(
    runs: tyro.conf.Positional[tuple[Path, ...]],
    /,
    *,
    out: Path | None = None,
    make: bool = False,
    palette: Palette = "split",
    size: int = SIZE,
    rate: int = RATE,
    per_factor: int = PER_FACTOR,
) -> None:
    """Make a film of a zoom through runs, each a part of another; keyframes are a factor two apart.

    Between two keyframes ranks are blended, so that one value keeps one colour and none jumps.

    Args:
        runs: Run folders, in any order.
        out: Film to write; .mp4 (needs `uv sync --extra film`) or .gif.
        make: Of two runs: make the run folders between them, after saying what they cost.
            `fractal run` trains them.
        palette: `split` is safe for the colour-blind, `paper` is the published one.
        size: Edge of the map in pixels; 1030 and 2140 make frames of 89 and 183 mm with 300 dots
            per inch.
        rate: Frames per second.
        per_factor: Frames in which the view shrinks by two.
    """
    stores = [experiments.read_run(run) for run in runs]
    if make:
        _make_keyframes(runs, stores)
        return
    if out is None:
        raise Refused("say what to write, --out FILM.mp4 or .gif; or --make keyframes first")
    data = films.roll(
        stores,
        out.suffix,
        palette=palette,
        size=size,
        per_factor=per_factor,
        rate=rate,
        tell=partial(Telling(counted="frames"), "film"),
    )
    figures.write(out, data)
    print(out)


def _make_keyframes(runs: tuple[Path, ...], stores: list[Store]) -> None:
    views = films.keyframes(stores)
    print(films.price(views, stores), flush=True)
    made = films.make(views)
    for store in made:
        print(store.path)
    train, roll = films.commands(runs, made)
    print(f"next: {train}\nthen: {roll}")


def _save(printed: press.Print, out: Path, proof: Path | None) -> None:
    if proof is not None and proof.suffix.lower() != ".png":
        raise Refused(f"{proof}: a proof is a picture of pixels; let it end in .png")
    printed.save(out)
    print(out)
    if proof is not None:
        printed.prove(proof)
        print(proof)


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
