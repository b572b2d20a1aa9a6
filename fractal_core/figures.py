"""Maps as publication figures: the one place for palettes, tick labels and file formats.

A map is drawn in units of cells: column j fills j to j + 1 and row i fills i to i + 1 of the axes,
so every cell is exactly one pixel of the embedded picture and a tick stands where its value lies
in the drawn coordinate. The layout is in millimetres. Nothing here needs or starts a GUI.
"""

import io
import math
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, UInt8
from matplotlib import colormaps, style
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, Patch, Rectangle
from matplotlib.patheffects import withStroke

from fractal_core.errors import Refused, require_known
from fractal_core.files import Files
from fractal_core.plane import Grid, Region
from fractal_core.sheet import (
    GAP,
    LARGE,
    LINE,
    MARGIN,
    NORMAL,
    POINT,
    SMALL,
    STYLE,
    TICK,
    Sheet,
    require_width,
    text_width,
    wrap,
)
from fractal_core.store import Image
from fractal_core.ticks import ticks

QUANTITIES = ("measure", "outcome", "final_loss", "steps")
RANKED = colormaps["cividis"]
BLUES = ["#08224f", "#12468c", "#2474bd", "#5aa5dd", "#9bcdf0", "#cfe8fb"]
FORMATS = {".png": {}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
RECIPES = {".png": "Comment", ".pdf": "Keywords", ".svg": "Description"}
"""The field of a file of each format that carries the recipe of what it shows."""

PALE = 0.25
MISSING = "#b0b0b0"
NARROWEST = 70
RING, CLOSE, TINY = 5.0, 5.5, 0.015


class Palette(NamedTuple):
    """Colours of equalised measures (trainable below 0, dark at both ends), and of outcomes 1, 2, 3."""

    sides: Colormap
    outcomes: tuple[str, str, str]


def _split() -> Colormap:
    """Blue against orange. The dark ends differ in lightness, so the border survives in grey."""
    orange = ["#fee9ae", "#fac765", "#f2a233", "#d97812", "#b45309", "#8a3604"]
    at = [*np.linspace(0, 0.5 - PALE / 2, 6), *np.linspace(0.5 + PALE / 2, 1, 6)]
    pairs = list(zip(at, BLUES + orange, strict=True))
    return LinearSegmentedColormap.from_list("split", pairs, N=1024)


PALETTES = {
    "split": Palette(_split(), ("#2474bd", "#fac765", "#8a3604")),
    "paper": Palette(colormaps["Spectral_r"], ("#3288bd", "#fdae61", "#9e0142")),
}
WALK = np.concatenate([-np.linspace(PALE, 1, 256), np.linspace(1, PALE, 256)]) / 2 + 0.5
"""All colours of the sides of a palette, from trained fast over the boundary to blown up fast."""


def equalise(
    measure: np.ma.MaskedArray, reference: Sequence[np.ma.MaskedArray] = ()
) -> np.ma.MaskedArray:
    """Replace measures by their rank among those of the same sign, in [-1, -1/4] and [1/4, 1].

    The sign stays, so negative is trainable; -1 and 1 are the runs nearest to the boundary, which
    took longest to learn or to blow up, and -1/4 and 1/4 those farthest from it. Ranks spend the
    colours evenly on measures that crowd within a few parts in a thousand.

    Args:
        measure: (rows, cols) signed convergence measures; inf is welcome, nan counts as missing.
        reference: Measures whose ranks are used instead of the map's own, so that one value has
            one colour in all frames of a film.

    Returns:
        float64 of the shape of `measure`, masked where that is masked. Equal measures share the
        mean of their ranks; a side that the reference knows at most one value of takes the middle.

    Source:
        Sohl-Dickstein 2024, arXiv:2402.06184. It negates the ranks, which here is left to the
        palette; it gives ties the rank of one of them; and between two values of a reference it
        interpolates, where we stay half-way in rank.
    """
    known = ~np.isnan(measure.filled(np.nan))
    pool = np.concatenate([part.compressed() for part in reference or [measure]])
    pool = np.sort(pool[~np.isnan(pool)])
    positive = int(np.searchsorted(pool, 0))
    values, inverse = np.unique(measure.data[known], return_inverse=True)
    ranks = np.empty(len(values))
    sides = (values < 0, -1.0, pool[:positive]), (values >= 0, PALE, pool[positive:])
    for mine, start, ladder in sides:
        below = np.searchsorted(ladder, values[mine], side="left")
        through = np.searchsorted(ladder, values[mine], side="right")
        top = len(ladder) - 1
        share = np.clip((below + through - 1) / 2, 0, top) / top if top > 0 else 0.5
        ranks[mine] = start + (1 - PALE) * share
    drawn = np.ma.masked_array(np.zeros(measure.shape), ~known)
    drawn[known] = ranks[inverse]
    return drawn


def paint(
    image: Image,
    *,
    palette: str = "split",
    quantity: str = "measure",
    reference: Sequence[np.ma.MaskedArray] = (),
) -> UInt8[np.ndarray, "rows cols 3"]:
    """The colours of a map, one per cell, row 0 at the lowest y; missing cells are grey."""
    require_known("palette", palette, PALETTES)
    require_known("quantity", quantity, QUANTITIES)
    if quantity == "outcome":
        table = np.array([to_rgb(c) for c in (MISSING, *PALETTES[palette].outcomes)])
        return (table * 255).round().astype(np.uint8)[image.outcome.filled(0)]
    if quantity != "measure":
        return RANKED.with_extremes(bad=MISSING)(ranks(getattr(image, quantity)), bytes=True)[
            ..., :3
        ]
    sides = PALETTES[palette].sides.with_extremes(bad=MISSING)
    return sides((equalise(image.measure, reference) + 1) / 2, bytes=True)[..., :3]


def light_of(colours: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Linear light of sRGB colours, both from 0 to 1; what is mixed is mixed in light."""
    return np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)


def printed(light: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """The sRGB colours, 0 to 255, of linear light from 0 to 1."""
    codes = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.round(codes * 255).astype(np.uint8)


def ranks(values: np.ma.MaskedArray) -> np.ma.MaskedArray:
    """Ranks of values of one sign, from 0 to 1; equal values, such as inf, share one."""
    drawn = np.ma.masked_array(np.zeros(values.shape), True)
    known = ~np.ma.getmaskarray(values)
    different, inverse = np.unique(values.data[known], return_inverse=True)
    drawn[known] = inverse / max(len(different) - 1, 1)
    return drawn


def map_figure(
    image: Image,
    *,
    palette: str = "split",
    quantity: str = "measure",
    child: Region | None = None,
    title: str | None = None,
    caption: str | None = None,
    labels: tuple[str, str] | None = None,
    width_mm: int | float = 89,
) -> Figure:
    """One map, ready to print: a square of its cells with axes, legend, title and caption.

    A cell is one pixel of the embedded picture, never resampled in PDF and SVG. The cells fill
    the square whatever their number; those of an integer axis are drawn equally wide.

    Args:
        image: The map so far. Missing cells are grey, and their share is said.
        palette: A name in `PALETTES`: `split` is safe for colour-blind readers, `paper` is the
            colouring of Sohl-Dickstein 2024.
        quantity: `measure` shades how fast a run learned or blew up, `outcome` shows the three labels,
            `final_loss` and `steps` (those before it blew up) shade their ranks.
        child: A part of the region to mark, with a ring around it where it is tiny.
        title, caption: Text above the map, and small text below it.
        labels: Names of the x and y axis, in place of the names of the settings.
        width_mm: 89 and 183 are the widths of one and two columns in most journals.

    Raises:
        Refused: No such palette or quantity, an unreasonable width, or a child that sticks out.
    """
    require_width(width_mm, NARROWEST)
    colours = paint(image, palette=palette, quantity=quantity)
    with style.context(["default", STYLE]):
        page = Page(float(width_mm), image.grid.region, labels)
        page.paragraph(title or "", LARGE, page.left)
        if quantity == "measure":
            measure_bar(page, palette)
        elif quantity != "outcome":
            ends = (
                ("lower final loss", "higher")
                if quantity == "final_loss"
                else ("fewer steps", "more")
            )
            page.bar(np.linspace(0, 1, 512), RANKED, (ends[0], "", "", ends[1]))
        missing = missing_swatch(np.ma.getmaskarray(image.outcome))
        page.legend(outcome_swatches(palette, quantity) + missing)
        axes = page.map_axes(image.grid)
        draw_cells(axes, colours)
        if child is not None:
            _locate(axes, _box(image.grid, child), page.side)
        page.paragraph(caption or "", SMALL, MARGIN)
        return page.finish(max(colours.shape[:2]))


def render(figure: Figure, suffix: str, recipe: str = "") -> bytes:
    """The bytes of a figure as PNG, PDF or SVG, which hold no date: the same figure, the same file.

    A PNG has 300 dots per inch, or a multiple of that for a map whose cells would be smaller than
    a dot and so be lost.

    Args:
        figure: What to render.
        suffix: `.png`, `.pdf` or `.svg`.
        recipe: What it shows, for programs; it is kept in the file.

    Raises:
        Refused: The suffix is none of the three.
    """
    kind = suffix.lower()
    if kind not in FORMATS:
        raise Refused(f"{suffix!r} is none of {', '.join(FORMATS)}; choose one of these suffixes")
    buffer = io.BytesIO()
    with style.context(["default", STYLE]):
        told = {RECIPES[kind]: recipe} if recipe else {}
        figure.savefig(buffer, format=kind[1:], metadata=FORMATS[kind] | told)
    return buffer.getvalue()


def save(figure: Figure, path: Path, recipe: str = "") -> None:
    """Write a figure as PNG, PDF or SVG, by the suffix of `path`: whole or not at all.

    Raises:
        Refused: The suffix is none of the three, or the file cannot be written.
    """
    write(path, render(figure, path.suffix, recipe))


def write(path: Path, data: bytes) -> None:
    """Put a finished file in its place in one step, and make the folder if need be.

    Raises:
        Refused: It cannot be written.
    """
    try:
        Files(path.parent).put_latest(path.name, data)
    except OSError as error:
        raise Refused(f"cannot write {path}: {error.strerror}; choose another folder") from None


class Page(Sheet):
    """A sheet for maps of one region: room for the ticks and names of its axes.

    Args:
        width: Of the page; `across` maps of this region stand beside each other.
        names: Names of the x and y axis, in place of the names of the settings.
        most: No map is larger than this.
    """

    def __init__(
        self,
        width: float,
        region: Region,
        names: tuple[str, str] | None = None,
        across: int = 1,
        most: float = math.inf,
    ):
        about = min(8, max(5, round(width / across / 15)))
        self.marks = marks = ticks(region.x, about), ticks(region.y, about)
        room = min((width - 18) / across - 3 * (across > 1), most)
        self.labels = [
            wrap(f"{name}\n= {mark.note}" if mark.note else name, room, NORMAL)
            for name, mark in zip(names or (region.x.name, region.y.name), marks, strict=True)
        ]
        widest = max(text_width(text, SMALL) for text in marks[1].labels)
        left = MARGIN + len(self.labels[1]) * LINE * NORMAL + GAP + widest + GAP + TICK
        first, last = (text_width(marks[0].labels[end], SMALL) / 2 for end in (0, -1))
        self.between = first + last + 4 * GAP
        free = width - left - max(MARGIN, last + GAP) - (across - 1) * self.between
        super().__init__(width, left, min(free / across, most))

    def map_axes(self, grid: Grid, outer: tuple[bool, bool] = (True, True)) -> Axes:
        """Empty axes for the map, in units of cells, with ticks; x and y are labelled if `outer`."""
        axes = self.add_axes(self.side)
        sides = ("x", axes.xaxis), ("y", axes.yaxis)
        rows = zip(sides, self.marks, self.labels, outer, strict=True)
        for (name, side), mark, label, labelled in rows:
            places = _cells(grid, name, mark.values)
            texts = _sparse(places * self.side / len(getattr(grid, name)), mark.labels, name == "x")
            side.set_ticks(places, texts if labelled else [""] * len(texts))
            side.set_ticks(_cells(grid, name, mark.minor), minor=True)
            side.set_tick_params(labelsize=SMALL, length=TICK / POINT, width=0.6, pad=GAP / POINT)
            side.set_tick_params(which="minor", length=TICK / POINT / 2, width=0.4)
            side.labelpad = GAP / POINT
            if labelled:
                side.set_label_text("\n".join(label), size=NORMAL, linespacing=1.1)
        self.top += TICK + GAP
        if outer[0]:
            self.top += LINE * SMALL + GAP + len(self.labels[0]) * LINE * NORMAL + GAP
        return axes


def _sparse(at: Float64[np.ndarray, " n"], texts: Sequence[str], across: bool) -> list[str]:
    """The texts at places in millimetres, empty where they would touch the one before.

    It is wanted where the cells of an integer axis crowd its low decades, and in small panels.
    """
    kept, free = [], -math.inf
    for place, text in zip(at.tolist(), texts, strict=True):
        half = text_width(text, SMALL) / 2 if across else 0.0
        clear = place - half >= free
        kept.append(text if clear else "")
        free = place + max(half + 2 * GAP, CLOSE - half) if clear else free
    return kept


def measure_bar(sheet: Sheet, palette: str, width: float | None = None) -> None:
    """The colour bar of a measure; left out, `width` is that of a map."""
    ends = "trained faster", "slower", "slower", "blew up faster"
    sheet.bar(WALK, PALETTES[palette].sides, ends, width)


def draw_cells(axes: Axes, colours: UInt8[np.ndarray, "rows cols 3"]) -> None:
    """A colour for every cell, in units of cells, row 0 at the bottom."""
    rows, cols = colours.shape[:2]
    # "none" is what leaves the picture at native pixels in a PDF; "nearest" resamples it.
    extent = (0, cols, 0, rows)
    axes.imshow(colours, origin="lower", aspect="auto", interpolation="none", extent=extent)


def outcome_swatches(palette: str, quantity: str) -> list[tuple[str, str]]:
    """Colours and names of the three outcomes, where they are what is drawn."""
    texts = ("trainable", "untrainable", "diverged") if quantity == "outcome" else ()
    return list(zip(PALETTES[palette].outcomes, texts, strict=False))


def missing_swatch(missing: Bool[np.ndarray, "rows cols"]) -> list[tuple[str, str]]:
    """Grey and the share of the cells that are missing; nothing where none is."""
    share = 100 * missing.mean()
    if share == 0:
        return []
    amount = "< 1" if share < 1 else "> 99" if 99 < share < 100 else f"{share:.0f}"
    return [(MISSING, f"{amount} % not computed yet")]


def _cells(grid: Grid, name: str, at: Sequence[Decimal | float]) -> Float64[np.ndarray, " n"]:
    """Positions of values of the x or y axis, in units of cells."""
    axis, values = getattr(grid.region, name), getattr(grid, name)
    wanted = np.array(at, np.float64)
    if axis.integer:
        return np.interp(wanted, axis.edges(values), np.arange(len(values) + 1.0))
    return axis.fraction(wanted) * len(values)


def _box(grid: Grid, child: Region) -> Float64[np.ndarray, "2 2"]:
    """Left and right, then bottom and top, in cells, of a child; refused if it sticks out."""
    box = []
    for name in ("x", "y"):
        axis, part = getattr(grid.region, name), getattr(child, name)
        inside = axis.low <= part.low and part.high <= axis.high
        if not inside or (axis.name, axis.scale) != (part.name, part.scale):
            raise Refused(
                f"the child is not inside {axis.name} {axis.low!r} to {axis.high!r} "
                f"({axis.scale}); choose a zoom of this map"
            )
        half = 0.5 if part.integer else 0.0
        box.append(_cells(grid, name, (part.low - half, part.high + half)))
    return np.array(box)


def _locate(axes: Axes, box: Float64[np.ndarray, "2 2"], side: float) -> None:
    """Draw a box in black around white, which shows on every colour; ring it where it is tiny."""
    cells = np.array([axes.get_xlim()[1], axes.get_ylim()[1]])
    size = box[:, 1] - box[:, 0]
    tiny = bool((size < TINY * cells).all())
    shapes: list[Patch] = [Rectangle(tuple(box[:, 0]), *size, linewidth=0.4 if tiny else 0.8)]
    if tiny:
        shapes.append(Ellipse(tuple(box.mean(axis=1)), *(RING / side * cells), linewidth=0.8))
    for shape in shapes:
        under = withStroke(linewidth=2.5 * shape.get_linewidth(), foreground="black")
        shape.set(fill=False, edgecolor="white", clip_on=tiny, path_effects=[under])
        axes.add_patch(shape)
