"""Figures of runs: drawn, with the caption that their recipe gives, and carrying that recipe.

Here a run folder becomes a printed thing. Commands and the notebook both come to this one place, so
that a figure looks the same whichever way it was asked for.
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase as LETTERS
from typing import Any

import numpy as np
from jaxtyping import Bool
from matplotlib.figure import Figure

from fractal_core import adaptive, experiments, explore, figures, plate, proof, recipe
from fractal_core.errors import Refused, require_known
from fractal_core.findings import measured
from fractal_core.outcome import SIDES, Which
from fractal_core.panels import panels_figure
from fractal_core.roughness import Roughness, pitch_of
from fractal_core.sheet import INCH
from fractal_core.store import Store

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
        Refused: It cannot be drawn so, or nothing of it is trained yet.
    """
    require_known("kind of figure", kind, KINDS)
    if not stores:
        raise Refused("no run is chosen; name one or more")
    store = stores[0]
    _require_begun(stores if kind == "plate" else [store])
    if kind == "dimension":
        return _dimension(store, which, captioned)
    drawn: dict[str, Any] = {"palette": palette, "quantity": quantity}
    drawn["width_mm"] = width_mm or (89 if kind == "map" else 183)
    if kind == "plate":
        return _plate(stores, drawn, title, captioned)
    image = store.image()
    found = adaptive.refined(store, image)
    if kind != "map" or quantity == "outcome":
        # The others are numbers of a run, which an inferred point does not have.
        image = dataclasses.replace(image, outcome=found.outcome)
    words = recipe.caption(store, quantity if kind == "map" else "")
    words = f"{words} {found.caption}".strip()
    shared: dict[str, Any] = {"title": title, "labels": store.sweep.labels}
    shared["caption"] = words if captioned else found.caption
    if kind == "map":
        shown = [store, child] if child else [store]
        inner = child.sweep.region if child else None
        figure = figures.map_figure(image, child=inner, **drawn, **shared)
        return Print(figure, recipe.text(kind, shown, drawn, words), words)
    drawn = {"width_mm": drawn["width_mm"]}
    figure = panels_figure(image, panels=3 if kind == "3 panels" else 4, **drawn, **shared)
    return Print(figure, recipe.text(kind, [store], drawn, words), words)


def _require_begun(stores: Sequence[Store]) -> None:
    """Refuse a figure on which there would be nothing but grey.

    Raises:
        Refused: No run has a single point.
    """
    if not any(np.ma.count(store.image().outcome) for store in stores):
        names = ", ".join(store.path.name for store in stores)
        raise Refused(f"nothing of {names} is trained yet; `fractal run {stores[0].path}` does it")


def _plate(
    stores: Sequence[Store], drawn: dict[str, Any], title: str | None, captioned: bool
) -> Print:
    titles = [recipe.condition(store) for store in stores]
    if len(set(titles)) < len(titles):
        titles = names_of([store.path for store in stores])
    rules = list(dict.fromkeys(recipe.rule(store.sweep.experiment) for store in stores))
    tiles = [
        plate.Tile(store.image(), store.sweep.labels, title, _words(store, len(rules) > 1))
        for store, title in zip(stores, titles, strict=True)
    ]
    runs = ", ".join(
        f"({letter}) {store.path.name} {store.sweep.id}"
        for letter, store in zip(LETTERS, stores, strict=False)
    )
    words = " ".join(
        [
            "Each cell is one run; the ends of the axes are exact unless marked ≈.",
            *(rules if len(rules) == 1 else []),
            recipe.COLOURS[drawn["quantity"]],
            f"Runs {runs}.",
        ]
    )
    figure = plate.plate_figure(tiles, title=title, caption=words if captioned else None, **drawn)
    return Print(figure, recipe.text("plate", stores, drawn, words), words)


def _words(store: Store, ruled: bool) -> str:
    """The caption of one map of a plate, with the rule by which its runs were judged."""
    rows, cols = store.sweep.grid.shape
    told: Any = store.sweep.experiment
    length = recipe.length(told)
    words = f"{rows} × {cols} runs" + (f" of {length}" if length else "") + f", {told.dtype}"
    for preset in experiments.PRESETS.values():
        known = preset.dimension is not None and preset.experiment.axes == told.axes
        if known and preset.region(True, rows, cols) == store.sweep.region:
            words += f"; the paper prints D = {preset.dimension:.2f}"
    return f"{words}. {recipe.rule(told)}" if ruled else words


def _dimension(store: Store, which: Which, captioned: bool) -> Print:
    picture = adaptive.audited(store, store.image())
    labels = SIDES[which](picture.outcome)
    found = measured(store, labels, picture.outcome)
    return dimension_print(store, labels, found, which, picture.caption, captioned)


def dimension_print(
    store: Store,
    labels: Bool[np.ndarray, "rows cols"],
    found: Roughness,
    which: Which,
    note: str,
    captioned: bool = False,
) -> Print:
    """The boundary on its map beside its dimension over scales.

    Args:
        store: The run.
        labels: One side of the boundary.
        found: What was measured of it.
        which: The boundary.
        note: What must be said below it in any case.
        captioned: Whether the caption block stands there, too.
    """
    from fractal_core import plots

    slopes = SLOPES if found.box.value is not None else ""
    words = " ".join(filter(None, (recipe.caption(store, ""), slopes, note)))
    rows, cols = store.sweep.grid.shape
    (x, y), _ = pitch_of(store.sweep.grid)
    figure = plots.dimension_figure(
        labels,
        found,
        names=store.sweep.labels,
        spans=(x * cols, y * rows),
        sides=WORDS[which],
        caption=words if captioned else note,
    )
    return Print(figure, recipe.text("dimension", [store], {"boundary": which}, words), words)


SLOPES = (
    "D(ε) are the slopes between neighbouring box sizes as counted. A box misses what reaches into it "
    "by less than about a pitch, so that small boxes read low; the fit allows for that, and gives D."
)

USAGE = """usage: python notebooks/figures.py --run FOLDER [--run FOLDER ...] --out FOLDER

Writes map, panels and dimension of every run as PDF, with captions, and a plate of several.

  --run FOLDER  a run folder, such as runs/NAME; give it once for each run
  --out FOLDER  where the files go
  --help        say this"""


def script(words: Sequence[str]) -> int:
    """What the notebook does with the words after its name on the command line.

    Returns:
        The exit code, see `headless`; 2 for words that mean nothing.
    """
    if {"-h", "--help"} & set(words):
        print(USAGE)
        return 0
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--run", action="append", default=[])
    parser.add_argument("--out", default="")
    try:
        given, others = parser.parse_known_args(words)
        if others and others[0].startswith("-"):
            raise Refused(f"there is no option {others[0]}; --help tells which there are")
        if others:
            raise Refused(f"{others[0]!r} belongs to no option; give --run again for each run")
        if not given.run:
            raise Refused("say which run to draw, --run FOLDER")
    except (Refused, argparse.ArgumentError) as error:
        print(f"fractal: {error}", file=sys.stderr)
        return 2
    return headless(given.run, given.out)


def headless(runs: Sequence[str], out: str) -> int:
    """Write map, panels and dimension of runs as PDF, with captions, and a plate of several.

    Says the name of every file, and of what could not be drawn the reason.

    Args:
        runs: Run folders.
        out: Folder to write to.

    Returns:
        The exit code: 0, or 2 where nothing could be drawn or something could not be written.
    """
    try:
        if not out:
            raise Refused("say where to write, --out FOLDER")
        stores = _begun([experiments.read_run(Path(run)) for run in runs])
        wanted = [(kind, [store]) for store in stores for kind in FILES]
        wanted += [("plate", stores)] if len(stores) > 1 else []
        paths = [store.path for store in stores]
        names = [name_of(kind, [store.path for store in some], paths) for kind, some in wanted]
        drawn = [
            _written(Path(out) / f"{name}.pdf", *figure)
            for name, figure in zip(names, wanted, strict=True)
        ]
    except Refused as refusal:
        print(f"fractal: {refusal}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"fractal: {error.filename or out}: {error.strerror}", file=sys.stderr)
        return 2
    return 0 if any(drawn) else 2


def _begun(stores: Sequence[Store]) -> list[Store]:
    """Those that have a point; of the others it is said that they have none."""
    begun = []
    for store in stores:
        try:
            _require_begun([store])
            begun.append(store)
        except Refused as refusal:
            print(f"fractal: {refusal}", file=sys.stderr)
    return begun


def _written(path: Path, kind: str, stores: Sequence[Store]) -> bool:
    """Whether a figure could be drawn; then it is written.

    Raises:
        Refused: It cannot be written.
    """
    try:
        printed = draw(kind, stores, captioned=True)
    except Refused as refusal:
        print(f"no {path}: {refusal}", file=sys.stderr)
        return False
    printed.save(path)
    print(path)
    return True


def runs_in(root: Path) -> dict[str, Path]:
    """Maps in a folder and in folders in it, such as `published`, by their names there; newest
    first. Single runs, and folders that cannot be read, are not among them.
    """
    found = {name: root / name for name in explore.runs(root)}
    for path in sorted(root.glob("*/*/sweep.json")):
        found[str(path.parent.relative_to(root))] = path.parent
    return {name: path for name, path in found.items() if explore.points(path) > 1}


def chosen(known: Mapping[str, Path], asked: str) -> tuple[list[str], str]:
    """The runs that an address names with commas between them, the newest where it names none.

    Returns:
        Their names, and nothing; or no name where one of them is not there, and a sentence.
    """
    names = list(filter(None, asked.split(",")))
    absent = ", ".join(name for name in names if name not in known)
    if absent:
        return [], f"{absent}: not among the maps in this folder; choose one that is"
    return names or list(known)[:1], ""


def stores_of(known: Mapping[str, Path], names: Sequence[str]) -> list[Store]:
    """The runs of some names, in that order.

    Raises:
        Refused: One cannot be read.
    """
    return [experiments.read_run(known[name]) for name in names if name in known]


def name_of(kind: str, paths: Sequence[Path], among: Iterable[Path] = ()) -> str:
    """What to call the file of a figure, without its suffix.

    Args:
        kind: One of `KINDS`, or film.
        paths: Folders of the runs in it; of a film the widest first.
        among: Run folders that the name is to tell apart, see `names_of`.
    """
    if kind == "plate" or not paths:
        return kind
    names = names_of(paths, among)
    if kind == "film":
        return "-to-".join(dict.fromkeys([names[0], names[-1]])) + "-film"
    return f"{names[0]}-{FILES[kind]}"


def names_of(paths: Sequence[Path], among: Iterable[Path] = ()) -> list[str]:
    """What to call runs: as their folders.

    Where folders in different places have one name, those that they lie in stand before it, as
    many as tell them apart: `first-tanh` and `second-tanh`.

    Args:
        paths: Their folders.
        among: Other run folders that could be meant.
    """
    known = {_parts(path) for path in (*paths, *among)}
    return [_shortest(_parts(path), known) for path in paths]


def _parts(path: Path) -> tuple[str, ...]:
    return path.absolute().parts


def _shortest(mine: tuple[str, ...], known: set[tuple[str, ...]]) -> str:
    length = 1
    while sum(other[-length:] == mine[-length:] for other in known) > 1:
        length += 1
    return "-".join(mine[-length:]).lstrip("/-")


def inside(folder: str, name: str) -> Path:
    """Where to write a file for whoever sits before a notebook: below the folder it works in.

    Raises:
        Refused: The folder lies elsewhere.
    """
    path = Path(folder) / name
    if not path.resolve().is_relative_to(Path.cwd().resolve()):
        raise Refused(f"{folder} is not below the folder of the notebook; choose one that is")
    return path
