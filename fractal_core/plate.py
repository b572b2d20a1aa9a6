"""A plate: maps of several runs on one page, two rows by three like that of the paper.

Every map has a title, the ends of its axes with all their digits, and a line of caption. Windows of
a plate lie at different places, so there are no ticks, which could not be compared anyway.
"""

import math
from collections.abc import Sequence
from string import ascii_lowercase as LETTERS
from typing import NamedTuple

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fractal_core import figures
from fractal_core.errors import Refused
from fractal_core.figures import paint
from fractal_core.plane import Axis
from fractal_core.sheet import (
    GAP,
    LARGE,
    LINE,
    MARGIN,
    SMALL,
    STYLE,
    Sheet,
    require_width,
    text_width,
    wrap,
)
from fractal_core.store import Image
from fractal_core.ticks import digits_of, number

MOST = 12
BETWEEN, NARROWEST, KEY, APART = 3.0, 44.0, 80.0, 3.0


class Tile(NamedTuple):
    """One map of a plate.

    Args:
        image: The map so far.
        labels: Words for x and y.
        title: Above it.
        caption: Below it.
    """

    image: Image
    labels: tuple[str, str]
    title: str
    caption: str = ""


def plate_figure(
    tiles: Sequence[Tile],
    *,
    palette: str = "split",
    quantity: str = "measure",
    title: str | None = None,
    caption: str | None = None,
    width_mm: int | float = 183,
) -> Figure:
    """Maps beside and below each other, ready to print: three in a row, fewer if they are few.

    A cell is one pixel of each embedded picture, never resampled in PDF and SVG. Colours are ranks
    within each map.

    Raises:
        Refused: No map or too many, an unreasonable width, no such palette or quantity.
    """
    if not 1 <= len(tiles) <= MOST:
        raise Refused(f"{len(tiles)} runs on a plate; choose 1 to {MOST}")
    across = 2 if len(tiles) == 4 else min(len(tiles), 3)
    room = MARGIN + 2 * LINE * SMALL + GAP
    side = (width_mm - MARGIN - (across - 1) * BETWEEN) / across - room
    least = math.ceil(MARGIN - BETWEEN + across * (NARROWEST + room + BETWEEN))
    require_width(width_mm, least, f" for {across} maps in a row")
    painted = [paint(tile.image, palette=palette, quantity=quantity) for tile in tiles]
    with style.context(["default", STYLE]):
        sheet = Sheet(float(width_mm), room, side)
        sheet.paragraph(title or "", LARGE, room)
        _key(sheet, tiles, palette, quantity)
        for first in range(0, len(tiles), across):
            row = slice(first, first + across)
            _row(sheet, tiles[row], painted[row], first, room + side + BETWEEN)
        sheet.paragraph(caption or "", SMALL, MARGIN)
        return sheet.finish(max(max(tile.image.grid.shape) for tile in tiles))


def _key(sheet: Sheet, tiles: Sequence[Tile], palette: str, quantity: str) -> None:
    """What the colours of all maps mean; a share is missing of all their cells together."""
    missing = [np.ma.getmaskarray(tile.image.outcome).ravel() for tile in tiles]
    swatches = figures.missing_swatch(np.concatenate(missing)[None])
    if quantity == "measure":
        figures.measure_bar(sheet, palette, max(sheet.side, KEY))
    sheet.legend(figures.outcome_swatches(palette, quantity) + swatches)


def _row(
    sheet: Sheet, tiles: Sequence[Tile], painted: Sequence[np.ndarray], first: int, stride: float
) -> None:
    start, top, lefts = sheet.left, sheet.top, []
    for k, tile in enumerate(tiles):
        sheet.left, sheet.top = start + k * stride, top
        lefts.append(sheet.left)
        titled = f"{LETTERS[first + k]}  {tile.title}"
        for line in wrap(titled, sheet.side, LARGE):
            sheet.text(sheet.left, line, LARGE)
            sheet.top += LINE * LARGE
    under = max(top + LINE * LARGE, sheet.top) + GAP
    lowest = under
    for left, tile, colours in zip(lefts, tiles, painted, strict=True):
        sheet.left, sheet.top = left, under
        axes = sheet.add_axes(sheet.side)
        axes.set_label(tile.title)
        axes.set(xticks=[], yticks=[])
        figures.draw_cells(axes, colours)
        _ends(sheet, axes, tile)
        for line in wrap(tile.caption, sheet.side, SMALL):
            sheet.text(left, line, SMALL)
            sheet.top += LINE * SMALL
        lowest = max(lowest, sheet.top)
    sheet.left, sheet.top = start, lowest + 2 * GAP


def _ends(sheet: Sheet, axes: Axes, tile: Tile) -> None:
    """The ends of both axes at the corners, and what they are between or below them."""
    region = tile.image.grid.region
    low, high = ends_of(region.x, sheet.side)
    sheet.top += GAP
    right = sheet.left + sheet.side
    sheet.text(sheet.left, low, SMALL)
    sheet.text(right, high, SMALL, "right")
    sheet.top += LINE * SMALL
    for line in wrap(tile.labels[0], sheet.side, SMALL):
        sheet.text(sheet.left + sheet.side / 2, line, SMALL, "center")
        sheet.top += LINE * SMALL
    sheet.top += GAP
    # Along the left side, from below: the ends nearer to the map, the name outside them.
    low, high = ends_of(region.y, sheet.side)
    beside = -GAP / sheet.side
    further = beside - LINE * SMALL / sheet.side
    turned = {"rotation": 90, "size": SMALL, "ha": "right", "transform": axes.transAxes}
    axes.text(beside, 0.0, low, va="bottom", **turned)
    axes.text(beside, 1.0, high, va="top", **turned)
    axes.text(further, 0.5, tile.labels[1], va="center", **turned)


def ends_of(axis: Axis, room: int | float) -> tuple[str, str]:
    """The ends of an axis as they were typed, which is exact; rounded, and said to be so with an
    ≈, where both together are longer than `room` in millimetres.
    """

    def fit(texts: tuple[str, str]) -> bool:
        return sum(text_width(text, SMALL) for text in texts) + APART <= room

    texts, digits = (number(axis.low), number(axis.high)), digits_of(axis.low, axis.high)
    while not fit(texts):
        shorter = f"≈ {number(axis.low, digits)}", f"≈ {number(axis.high, digits)}"
        if shorter[0] == shorter[1] or digits < 2:
            break
        texts, digits = shorter, digits - 1
    return texts
