"""Figures of runs: drawn, with the caption that their recipe gives, and carrying that recipe.

Here a run folder becomes a printed thing. Commands and the notebook both come to this one place, so
that a figure looks the same whichever way it was asked for.
"""

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from matplotlib.figure import Figure

from fractal_core import (
    adaptive,
    experiments,
    explore,
    figures,
    film,
    plate,
    proof,
    published,
    recipe,
    survey,
)
from fractal_core.errors import Refused, require_known
from fractal_core.explore import View
from fractal_core.findings import measured
from fractal_core.outcome import SIDES, WINDOW, Which
from fractal_core.panels import panels_figure
from fractal_core.roughness import Roughness, pitch_of
from fractal_core.sheet import INCH
from fractal_core.store import Image, Store, read_recipe
from fractal_core.survey import Hire, Tell

WORDS = {"trainable": ("trainable", "not trainable"), "stable": ("stable", "diverged")}
KINDS = ("map", "3 panels", "4 panels", "dimension", "plate")
FILES = {"map": "map", "3 panels": "panels3", "4 panels": "panels4", "dimension": "dimension"}


@dataclass(frozen=True, eq=False)
class Print:
    """A figure that is ready to be written.

    Args:
        figure: What is printed.
        recipe: What its file will carry.
        caption: In words, whether or not it stands in the figure.
    """

    figure: Figure
    recipe: str
    caption: str

    @property
    def width_mm(self) -> float:
        """Of the page."""
        return float(self.figure.get_figwidth() * INCH)

    def data(self, suffix: str) -> bytes:
        """Its file; `suffix` is .pdf, .svg or .png."""
        return figures.render(self.figure, suffix, self.recipe)

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        figures.save(self.figure, path, self.recipe)

    def prove(self, path: Path) -> None:
        """Write beside it how other eyes see it, as a picture of pixels."""
        figures.save(proof.proof_figure(self.figure), path, self.recipe)


def draw(
    kind: str,
    stores: Sequence[Store],
    *,
    palette: str = "split",
    quantity: str = "measure",
    width_mm: int | None = None,
    title: str | None = None,
    captioned: bool = False,
    child: Store | None = None,
    which: Which = "trainable",
) -> Print:
    """A figure of one run, or a plate of several.

    Args:
        kind: One of `KINDS`.
        stores: The runs; all but a plate show the first.
        palette: A name in `figures.PALETTES`, of a map and a plate.
        quantity: One of `figures.QUANTITIES`, of a map and a plate.
        width_mm: Left out, 89 for a map and 183 for the others; that of `dimension` is fixed.
        title: Above it.
        captioned: Whether the caption block stands in the figure.
        child: Another run whose region is marked in the map.
        which: The boundary that `dimension` measures.

    Raises:
        Refused: It cannot be drawn so.
    """
    require_known("kind of figure", kind, KINDS)
    if not stores:
        raise Refused("no run is chosen; name one or more")
    drawn = {"palette": palette, "quantity": quantity, "width_mm": width_mm or _width(kind)}
    if kind == "plate":
        return _plate(stores, drawn, title, captioned)
    store = stores[0]
    image = store.image()
    if kind == "dimension":
        return _dimension(store, image, which, captioned)
    found = adaptive.refined(store, image)
    panels = 0 if kind == "map" else int(kind[0])
    if panels or quantity == "outcome":
        # The others are numbers of a run, which an inferred point does not have.
        image = dataclasses.replace(image, outcome=found.outcome)
    words = f"{recipe.caption(store, '' if panels else quantity)} {found.caption}".strip()
    shared: dict[str, Any] = {"title": title, "labels": store.sweep.labels}
    shared |= {"caption": words if captioned else found.caption, "width_mm": drawn["width_mm"]}
    shown = [store]
    if panels:
        del drawn["palette"], drawn["quantity"]
        figure = panels_figure(image, panels=4 if panels == 4 else 3, **shared)
    else:
        inner = child.sweep.region if child else None
        shown += [child] if child else []
        figure = figures.map_figure(
            image, palette=palette, quantity=quantity, child=inner, **shared
        )
    return Print(figure, recipe.text(kind, shown, drawn, words), words)


def _width(kind: str) -> int:
    return 89 if kind == "map" else 183


def _plate(
    stores: Sequence[Store], drawn: dict[str, Any], heading: str | None, captioned: bool
) -> Print:
    titles = [recipe.condition(store) for store in stores]
    if len(set(titles)) < len(titles):
        titles = [store.path.name for store in stores]
    tiles = [
        plate.Tile(store.image(), store.sweep.labels, title, _words(store))
        for store, title in zip(stores, titles, strict=True)
    ]
    words = " ".join(
        [
            "Each cell is one run; the ends of the axes are exact unless marked ≈.",
            f"A run is trainable if the mean of its last {WINDOW} losses is below its first loss.",
            recipe.COLOURS[drawn["quantity"]],
            "Runs "
            + ", ".join(
                f"({chr(ord('a') + k)}) {store.path.name} {store.sweep.id}"
                for k, store in enumerate(stores)
            )
            + ".",
        ]
    )
    figure = plate.plate_figure(
        tiles,
        palette=drawn["palette"],
        quantity=drawn["quantity"],
        title=heading,
        caption=words if captioned else None,
        width_mm=drawn["width_mm"],
    )
    return Print(figure, recipe.text("plate", stores, drawn, words), words)


def _words(store: Store) -> str:
    """The caption of one map of a plate."""
    rows, cols = store.sweep.grid.shape
    told: Any = store.sweep.experiment
    steps = getattr(told, "steps", None) or getattr(told, "num_steps", None)
    words = f"{rows} × {cols} runs of {steps} steps, {told.dtype}"
    for preset in experiments.PRESETS.values():
        known = preset.dimension is not None and preset.experiment.axes == told.axes
        if known and preset.region(True, rows, cols) == store.sweep.region:
            words += f"; the paper prints D = {preset.dimension:.2f}"
    return words


def _dimension(store: Store, image: Image, which: Which, captioned: bool) -> Print:
    picture = adaptive.audited(store, image)
    labels = SIDES[which](picture.outcome)
    found = measured(store, labels, picture.outcome)
    words = f"{recipe.caption(store, '')} {picture.caption}".strip()
    return dimension_print(store, labels, found, which, words if captioned else picture.caption)


def dimension_print(
    store: Store,
    labels: Bool[np.ndarray, "rows cols"],
    found: Roughness,
    which: Which,
    caption: str,
) -> Print:
    """The boundary on its map beside its dimension over scales."""
    from fractal_core import plots

    rows, cols = store.sweep.grid.shape
    (x, y), _ = pitch_of(store.sweep.grid)
    figure = plots.dimension_figure(
        labels,
        found,
        names=store.sweep.labels,
        spans=(x * cols, y * rows),
        sides=WORDS[which],
        caption=caption,
    )
    return Print(figure, recipe.text("dimension", [store], {"boundary": which}, caption), caption)


def headless(runs: Sequence[str], out: str) -> int:
    """Write map, panels and dimension of runs as PDF, with captions, and a plate of several.

    Says the name of every file, and of what could not be drawn the reason.

    Args:
        runs: Run folders.
        out: Folder to write to.

    Returns:
        The exit code, 2 where nothing could be drawn at all.
    """
    try:
        if not out:
            raise Refused("say where to write, --out FOLDER")
        stores = [experiments.read_run(Path(run)) for run in runs]
        wanted = [(kind, [store]) for store in stores for kind in FILES]
        wanted += [("plate", stores)] if len(stores) > 1 else []
        for kind, shown in wanted:
            path = Path(out) / f"{name_of(kind, [store.path.name for store in shown])}.pdf"
            try:
                draw(kind, shown, captioned=True).save(path)
                print(path)
            except Refused as refusal:
                print(f"no {path}: {refusal}", file=sys.stderr)
    except Refused as refusal:
        print(f"fractal: {refusal}", file=sys.stderr)
        return 2
    return 0


def runs_in(root: Path) -> dict[str, Path]:
    """Maps in a folder and in folders in it, such as `published`, by their names there; newest
    first. Single runs, and folders that cannot be read, are not among them.
    """
    found = {name: root / name for name in explore.runs(root)}
    for path in sorted(root.glob("*/*/sweep.json")):
        found[str(path.parent.relative_to(root))] = path.parent
    return {name: path for name, path in found.items() if _is_map(path)}


def _is_map(path: Path) -> bool:
    try:
        axes = read_recipe(path)["region"].values()
        return max(axis["points"] for axis in axes) > 1
    except (Refused, OSError, KeyError, TypeError, AttributeError):
        return False


def stores_of(known: Mapping[str, Path], names: Sequence[str]) -> list[Store]:
    """The runs of some names, in that order.

    Raises:
        Refused: One cannot be read.
    """
    return [experiments.read_run(known[name]) for name in names if name in known]


def name_of(kind: str, names: Sequence[str]) -> str:
    """What to call the file of a figure, without its suffix."""
    if kind == "plate":
        return "plate"
    which = -1 if kind == "film" else 0
    run = Path(names[which]).name if names else "run"
    return f"{run}-{FILES.get(kind, kind)}"


def inside(folder: str, name: str) -> Path:
    """Where to write a file for whoever sits before a notebook: below the folder it works in.

    Raises:
        Refused: The folder lies elsewhere.
    """
    path = Path(folder) / name
    if not path.resolve().is_relative_to(Path.cwd().resolve()):
        raise Refused(f"{folder} is not below the folder of the notebook; choose one that is")
    return path


def published_runs(
    root: Path,
    grid: tuple[int, int],
    steps: int,
    hire: Callable[[Store], Hire],
    tell: Callable[[str], Tell],
) -> list[Store]:
    """The six published windows, trained where points are missing.

    Args:
        root: Folder of their run folders.
        grid: Rows and columns.
        steps: Of every run.
        hire: Who trains a run.
        tell: Who is told of a window, by its name.

    Raises:
        Busy: Another process works on one of them.
        Refused: Some points could not be trained.
    """
    root.mkdir(parents=True, exist_ok=True)
    stores = []
    for name in published.NAMES:
        store = published.folder(root, name, grid, steps)
        survey.lattice(store, 0, hire(store), tell(name))
        stores.append(store)
    return stores


def roll(
    stores: Sequence[Store],
    suffix: str,
    *,
    palette: str = "split",
    size: int = 480,
    per_factor: int = film.PER_FACTOR,
    rate: int = film.RATE,
) -> bytes:
    """The file of a film through runs, each a zoom of another.

    Raises:
        Refused: They are no chain, were trained otherwise, or the format cannot be written here.
    """
    film.require_encoder(suffix)
    stores = wide_first(stores)
    frames = film.frames(
        [store.image() for store in stores],
        stores[0].sweep.labels,
        palette=palette,
        size=size,
        per_factor=per_factor,
    )
    drawn = {"palette": palette, "size": size, "per_factor": per_factor, "rate": rate}
    told = recipe.text("film", stores, drawn, recipe.caption(stores[-1]))
    return film.encode(frames, suffix, rate=rate, recipe=told)


def wide_first(stores: Sequence[Store]) -> list[Store]:
    """Runs from the widest to the narrowest.

    Raises:
        Refused: There is none, or they were not all trained in the same way.
    """
    if not stores:
        raise Refused("a film needs a run; name one or more")
    first = stores[0].sweep
    for store in stores[1:]:
        if (store.sweep.experiment, store.sweep.seed) != (first.experiment, first.seed):
            raise Refused(
                f"{store.path.name} and {stores[0].path.name} were not trained in the same way; "
                "a film needs runs that are zooms of one another"
            )

    def area(store: Store) -> float:
        return store.sweep.region.x.span * store.sweep.region.y.span

    return sorted(stores, key=area, reverse=True)


def keyframes(root: Path, stores: Sequence[Store]) -> list[View]:
    """Views of all maps that a film between two runs needs, one for every factor of two.

    Those that are there are found again, whatever their name.

    Raises:
        Refused: There are not two runs, one is no part of the other, or neighbouring values would
            be too close for the arithmetic.
    """
    if len(stores) != 2:
        raise Refused("keyframes lie between two runs; name the widest and the narrowest")
    outer, inner = wide_first(stores)
    views = []
    for number, region in enumerate(film.keyframes(outer.sweep.region, inner.sweep.region), 1):
        sweep = outer.sweep.zoom(region)
        sweep.require_resolution()
        label = f"{inner.path.name}-key{number:02d}"
        views.append(explore.view_of(root, sweep, label, parent=outer.path))
    return views


def price(views: Sequence[View], like: View) -> str:
    """What keyframes would cost, in words."""
    costs = [explore.cost(view, like=like) for view in views]
    runs, seconds = sum(cost.runs for cost in costs), [cost.seconds for cost in costs]
    if not runs:
        return f"{len(views)} keyframes, all computed already"
    known = [each for each in seconds if each is not None]
    time = f"about {explore.duration(sum(known))} on this machine"
    time = time if len(known) == len(costs) else "of unknown length, as none is trained yet"
    return f"{len(views)} keyframes, {runs:,} runs to train, {time}"


def make(views: Sequence[View]) -> list[Store]:
    """The run folders of views, made where they are not there; nothing is trained."""
    return [view.store or Store.create(view.path, view.sweep) for view in views]
