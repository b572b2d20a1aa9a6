"""A sweep in three or four panels: trainability, final loss, and where both boundaries run.

They answer different questions. *Trainability* says which runs learned and, by rank, which of them
learned most; *final loss* says how much, on a scale that is the same for all runs; *trainable or
not* and *stability* are the two labels whose boundaries are measured. Page, ticks and file formats
are those of `figures`.
"""

from string import ascii_lowercase as LETTERS
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, UInt8
from matplotlib import colormaps, style
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Colormap, LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure

from fractal_core import figures
from fractal_core.figures import BLUES, MISSING, PALETTES, Page
from fractal_core.outcome import is_stable, is_trainable
from fractal_core.plane import Axis
from fractal_core.sheet import (
    BAR,
    GAP,
    LARGE,
    LINE,
    MARGIN,
    POINT,
    SMALL,
    STYLE,
    require_width,
    text_width,
    wrap,
)
from fractal_core.store import Image
from fractal_core.ticks import MINUS, power_of_ten, ticks

LEARNED = LinearSegmentedColormap.from_list("learned", ["#eef7fe", *reversed(BLUES)], N=1024)
"""Colours of the trainable, from the highest final loss to the lowest."""

LOSSES = colormaps["viridis"]
"""Perceptually uniform, and unlike cividis nowhere near the grey of what is missing."""

NOT_TRAINABLE = "#8b0000"
TRAINABLE = BLUES[2]
STABLE = BLUES[3]
DIVERGED = INFINITE = PALETTES["split"].outcomes[2]
BOUNDARY = "#ffffff"

CLIP = 2.0
"""Losses above so many times the first loss share one colour."""

DECADES = 2
"""Losses that span more of them are drawn on a scale of logarithms."""

# In millimetres: the least width, that for a row of three, the height of a printed page, and what
# stands above a map. The boundary is in points.
NARROWEST, ROW, PAGE, HEAD = 89, 140, 240, 20
THICK = 0.7


class Bar(NamedTuple):
    """A colour bar: `colours` from left to right, and texts at places from 0 to 1.

    Where two texts would touch, the earlier one in the list stays.
    """

    name: str
    colours: UInt8[np.ndarray, "1 n 3"]
    texts: list[tuple[float, str]]


class Panel(NamedTuple):
    """What one panel shows: a colour for every cell, and how they are read.

    `labels` are the two sides of a boundary that is drawn; a note is said below the figure.
    """

    title: str
    colours: UInt8[np.ndarray, "rows cols 3"]
    legend: list[tuple[str, str]]
    bar: Bar | None = None
    labels: Bool[np.ndarray, "rows cols"] | None = None
    note: str = ""


def panels_figure(
    image: Image,
    *,
    panels: Literal[3, 4] = 3,
    title: str | None = None,
    caption: str | None = None,
    labels: tuple[str, str] | None = None,
    width_mm: int | float = 183,
) -> Figure:
    """The panels of a sweep, ready to print: three in a row or a column, four in a square.

    A cell is one pixel of each embedded picture, never resampled in PDF and SVG. What is missing
    is grey, and its share is said.

    Args:
        image: The map so far. Outcomes may be inferred, and then have no loss.
        panels: 4 adds stability to the three others.
        title, caption: Text above the panels, and small text below them.
        labels: Names of the x and y axis, in place of the names of the settings.
        width_mm: 89 and 183 are the widths of one and two columns in most journals. Below 140,
            three panels stand in a column, as large as a page of 240 mm allows.

    Raises:
        Refused: An unreasonable width.
    """
    require_width(width_mm, NARROWEST)
    shown = [trainability(image), final_loss(image), trainable_or_not(image)]
    shown += [stability(image)] if panels == 4 else []
    across = 2 if panels == 4 else 3 if width_mm >= ROW else 1
    down = panels // across
    most = (PAGE - HEAD * (down + 1)) / down
    with style.context(["default", STYLE]):
        page = Page(float(width_mm), image.grid.region, labels, across, most)
        page.paragraph(title or "", LARGE, page.left)
        page.top += GAP if title else 0
        left = page.left
        for first in range(0, panels, across):
            places = [left + k * (page.side + page.between) for k in range(across)]
            bottom = first + across >= panels
            _row(page, image, shown[first : first + across], places, first, bottom)
        page.left = MARGIN
        page.legend(figures.missing_swatch(np.ma.getmaskarray(image.final_loss)))
        notes = [f"{LETTERS[k]}: {panel.note}." for k, panel in enumerate(shown) if panel.note]
        page.paragraph(" ".join([*notes, caption or ""]), SMALL, MARGIN)
        return page.finish(max(image.grid.shape))


def trainability(image: Image) -> Panel:
    """Dark red where a run did not train, else blue, the darker the lower its final loss.

    Blue is a rank, since losses crowd: a tenth of the different losses takes a tenth of the
    colours. The bar says which losses they are.
    """
    labels = is_trainable(image.outcome)
    learned = np.ma.filled(labels, False)
    loss = np.ma.masked_where(~learned, image.final_loss)
    blues = LEARNED.with_extremes(bad=MISSING)
    colours = blues(1 - figures.ranks(loss), bytes=True)[..., :3]
    colours[np.ma.filled(~labels, False)] = _bytes(NOT_TRAINABLE)
    bar, note = None, ""
    if loss.count():
        note = "blue is the rank of the final loss among the trainable"
        ladder = np.unique(loss.compressed())
        most = len(ladder) - 1
        # Both ends and the middle come first, since a narrow bar has no room for all five.
        at = [round(share * most) for share in ((0, 1, 0.5, 0.25, 0.75) if most >= 4 else (0, 1))]
        places = [step / most if most else 0.0 for step in at]
        texts = list(zip(places, _rounded(ladder[at]), strict=True))
        bar = Bar("final loss, by rank", _strip(LEARNED.reversed()), texts)
    legend = [(NOT_TRAINABLE, "not trainable")]
    return Panel("trainability", colours, legend, bar, note=note)


def final_loss(image: Image) -> Panel:
    """The last loss of every run, and a colour of its own where it is infinite.

    Losses above twice the first loss, which is the median one if runs begin differently, share
    the last colour. The scale is linear, or logarithmic where it spans more than two decades.
    """
    loss = image.final_loss
    colours = np.full((*loss.shape, 3), _bytes(MISSING))
    colours[np.ma.filled(np.isinf(loss), False)] = _bytes(INFINITE)
    finite = np.ma.filled(np.isfinite(loss), False)
    legend = [(INFINITE, "infinite")] if np.isinf(loss.compressed()).any() else []
    if not finite.any():
        return Panel("final loss", colours, legend)
    values = loss.data[finite]
    axis, clipped = _loss_axis(values, image.first_loss)
    places = axis.fraction(np.clip(values, axis.low, axis.high))
    colours[finite] = LOSSES(np.clip(places, 0, 1), bytes=True)[:, :3]
    marks = ticks(axis, 4)
    at = axis.fraction(np.array(marks.values, np.float64)).tolist()
    texts, note = list(zip(at, marks.labels, strict=True)), ""
    if clipped:
        limit = _rounded(np.array([axis.high]))[0]
        texts = [(1.0, f"≥ {limit}"), *texts]
        note = f"losses above {limit}, twice the first loss, are drawn as that"
    scale = "log scale" if axis.scale == "log10" else "linear scale"
    name = f"final loss = {marks.note}" if marks.note else f"final loss, {scale}"
    return Panel("final loss", colours, legend, Bar(name, _strip(LOSSES), texts), note=note)


def trainable_or_not(image: Image) -> Panel:
    """Two colours, and the trainability boundary between them."""
    sides = (TRAINABLE, "trainable"), (NOT_TRAINABLE, "not trainable")
    return _two_sides("trainable or not", is_trainable(image.outcome), sides)


def stability(image: Image) -> Panel:
    """Stable, which is trainable or untrainable, against diverged, and the boundary between them."""
    sides = (STABLE, "stable"), (DIVERGED, "diverged")
    return _two_sides("stability", is_stable(image.outcome), sides)


def _two_sides(
    title: str,
    labels: Bool[np.ndarray, "rows cols"],
    sides: tuple[tuple[str, str], tuple[str, str]],
) -> Panel:
    yes, no = sides
    table = np.array([_bytes(no[0]), _bytes(yes[0]), _bytes(MISSING)])
    colours = table[np.ma.filled(labels.astype(np.int64), 2)]
    return Panel(title, colours, [yes, (BOUNDARY, "boundary"), no], labels=labels)


def edges(labels: Bool[np.ndarray, "rows cols"]) -> Float64[np.ndarray, "n 2 2"]:
    """The sides of cells between two neighbours whose labels differ, both known, as (x, y) ends."""
    values, known = np.ma.getdata(labels), ~np.ma.getmaskarray(labels)
    across = (values[:, 1:] != values[:, :-1]) & known[:, 1:] & known[:, :-1]
    upward = (values[1:] != values[:-1]) & known[1:] & known[:-1]
    rows, cols = np.nonzero(across)
    upright = np.stack([cols + 1, rows, cols + 1, rows + 1], axis=1)
    rows, cols = np.nonzero(upward)
    level = np.stack([cols, rows + 1, cols + 1, rows + 1], axis=1)
    return np.concatenate([upright, level]).reshape(-1, 2, 2).astype(np.float64)


def _row(
    page: Page, image: Image, shown: list[Panel], places: list[float], first: int, bottom: bool
) -> None:
    """Panels beside each other, their legends and maps in line."""
    titles = [f"{LETTERS[first + k]}  {panel.title}" for k, panel in enumerate(shown)]
    start = page.top
    tops = []
    for place, panel, title in zip(places, shown, titles, strict=True):
        page.left, page.top = place, start
        page.text(place, title, LARGE)
        page.top += LINE * LARGE + GAP
        if panel.bar is not None:
            _bar(page, panel.bar)
        tops.append(page.top)
    start, tops = max(tops), []
    for place, panel in zip(places, shown, strict=True):
        page.left, page.top = place, start
        page.legend(panel.legend)
        tops.append(page.top)
    start = max(tops)
    for k, (place, panel) in enumerate(zip(places, shown, strict=True)):
        page.left, page.top = place, start
        axes = page.map_axes(image.grid, outer=(bottom, k == 0))
        axes.set_label(panel.title)
        _draw(axes, panel, page.side)
    page.top += 2 * GAP


def _draw(axes: Axes, panel: Panel, side: float) -> None:
    figures.draw_cells(axes, panel.colours)
    if panel.labels is not None:
        # No thicker than a third of a cell, so that dust does not vanish below its own boundary.
        width = min(THICK, side / max(panel.labels.shape) / POINT / 3)
        lines = LineCollection(
            list(edges(panel.labels)), colors=BOUNDARY, linewidths=width, capstyle="round"
        )
        axes.add_collection(lines, autolim=False)


def _bar(page: Page, bar: Bar) -> None:
    for line in wrap(bar.name, page.side, SMALL):
        page.text(page.left, line, SMALL)
        page.top += LINE * SMALL
    taken: list[tuple[float, float]] = []
    for place, text in bar.texts:
        wide = text_width(text, SMALL)
        at = min(max(place * page.side - wide / 2, 0), page.side - wide)
        if all(at > end + 2 * GAP or at + wide + 2 * GAP < begin for begin, end in taken):
            taken.append((at, at + wide))
            page.text(page.left + at, text, SMALL)
    page.top += LINE * SMALL
    axes = page.add_axes(BAR)
    axes.imshow(bar.colours, aspect="auto", interpolation="none", extent=(0, 1, 0, 1))
    axes.set(xticks=[], yticks=[])
    page.top += 2 * GAP


def _loss_axis(
    values: Float64[np.ndarray, " n"], first_loss: np.ma.MaskedArray
) -> tuple[Axis, bool]:
    """The scale of finite losses, and whether its upper end cuts some off."""
    begun = first_loss.compressed()
    begun = begun[np.isfinite(begun)]
    low, high = float(values.min()), float(values.max())
    start = float(np.median(begun)) if len(begun) else high
    # Rounded, so that the number which is printed is the one that was used.
    clip = float(f"{CLIP * start:.3g}")
    clipped = 0 < clip < high
    if clipped:
        low, high = min(low, start), clip
    if low == high:
        low, high = low - 0.01 * abs(low) - 1e-9, high + 0.01 * abs(high) + 1e-9
    wide = low > 0 and 10**DECADES < high / low < np.inf
    return Axis("final loss", low, high, 2, "log10" if wide else "linear"), clipped


def _rounded(values: Float64[np.ndarray, " n"]) -> list[str]:
    """Numbers with three significant digits, or as many as tell different ones apart."""
    wanted = len(np.unique(values))
    for digits in range(3, 18):
        texts = [f"{value:#.{digits}g}".rstrip(".") for value in values.tolist()]
        if len(set(texts)) == wanted:
            break
    parts = [text.partition("e") for text in texts]
    texts = [f"{m} × {power_of_ten(int(p))}" if p else m for m, _, p in parts]
    return [text.replace("-", MINUS) for text in texts]


def _strip(colours: Colormap) -> UInt8[np.ndarray, "1 n 3"]:
    return colours(np.linspace(0, 1, 512), bytes=True)[None, :, :3]


def _bytes(colour: str) -> UInt8[np.ndarray, " 3"]:
    return np.round(np.array(to_rgb(colour)) * 255).astype(np.uint8)
