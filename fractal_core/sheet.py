"""A printed page: millimetres from its top left, one font, texts that wrap and never touch.

Whoever draws a page fills it from top to bottom and asks for the height at the end. What stands on
it is drawn by others; here are the sizes that all pages share.
"""

import math

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D

from fractal_core.errors import Refused

SMALL, NORMAL, LARGE = 6.5, 7.0, 8.0
POINT, INCH = 25.4 / 72, 25.4
LINE, ASCENT = 1.28 * POINT, 0.95 * POINT
MARGIN, GAP, TICK, BAR, SWATCH = 1.5, 0.6, 1.0, 2.2, 2.0
DOTS = 300
WIDEST = 400

# Text is outlines in SVG, since without this font labels would collide; a PDF carries the font
# itself as TrueType, which journals ask for.
STYLE = {
    "font.family": "DejaVu Sans",
    "text.parse_math": False,
    # Hinting moves letters, and a long line in a PNG would be wider than it was measured.
    "text.hinting": "none",
    "axes.linewidth": 0.6,
    "figure.dpi": DOTS,
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "fractal_core",
}


class Sheet:
    """A figure filled from top to bottom in millimetres, whose height is what was needed.

    Args:
        width: Of the page.
        left: Where axes begin, until it is moved.
        side: Of the square of a map, and the width of other axes unless they have their own.
    """

    def __init__(self, width: float, left: float, side: float):
        self.figure, self.width, self.top = Figure(), width, MARGIN
        self.left, self.side = left, side
        self.flip = Affine2D().scale(1 / INCH, -1 / INCH)
        self.mm = self.flip + self.figure.dpi_scale_trans
        self.placed: list[tuple[Axes, tuple[float, float], tuple[float, float]]] = []

    def paragraph(self, text: str, size: float, left: float) -> None:
        """Wrapped text; nothing if it is empty."""
        for line in wrap(text, self.width - MARGIN - left, size):
            self.text(left, line, size)
            self.top += LINE * size
        self.top += GAP if text else 0

    def text(self, x: float, text: str, size: float, align: str = "left") -> None:
        baseline = self.top + ASCENT * size
        self.figure.text(x, baseline, text, size=size, ha=align, va="baseline", transform=self.mm)

    def add_axes(self, height: float, width: float | None = None) -> Axes:
        axes = self.figure.add_axes((0, 0, 1, 1), label=f"{len(self.placed)}")
        self.placed.append((axes, (self.left, self.top), (width or self.side, height)))
        self.top += height
        return axes

    def bar(
        self,
        walk: Float64[np.ndarray, " n"],
        colours: Colormap,
        texts: tuple[str, str, str, str],
        width: float | None = None,
    ) -> None:
        """A colour bar, with a text at each end and one on each side of its middle."""
        wide = width or self.side
        right, middle = self.left + wide, self.left + wide / 2
        self.text(self.left, texts[0], SMALL)
        self.text(middle - 2 * GAP, texts[1], SMALL, "right")
        self.text(middle + 2 * GAP, texts[2], SMALL)
        self.text(right, texts[3], SMALL, "right")
        self.top += LINE * SMALL
        axes = self.add_axes(BAR, wide)
        shown = colours(walk, bytes=True)[None, :, :3]
        axes.imshow(shown, aspect="auto", interpolation="none", extent=(-1, 1, 0, 1))
        if texts[1]:
            axes.axvline(0, color="white", linewidth=0.8)
        axes.set(xticks=[], yticks=[])
        self.top += 2 * GAP

    def legend(self, swatches: list[tuple[str, str]]) -> None:
        """Squares of colour with a text each, in as many rows as they need."""
        x = self.left
        for colour, text in swatches:
            length = SWATCH + 1.5 * GAP + text_width(text, SMALL)
            if x > self.left and x + length > self.left + self.side:
                x, self.top = self.left, self.top + LINE * SMALL + GAP
            square = Rectangle((x, self.top + 0.3), SWATCH, SWATCH, lw=0.3, ec="black", fc=colour)
            self.figure.add_artist(square).set_transform(self.mm)
            self.text(x + length - text_width(text, SMALL), text, SMALL)
            x += length + 2.5
        self.top += LINE * SMALL + GAP if swatches else 0

    def finish(self, finest: int) -> Figure:
        """The figure, now that its height is known, with a dot for each of `finest` cells."""
        height = self.top + MARGIN - GAP
        self.figure.set_size_inches(self.width / INCH, height / INCH)
        self.figure.set_dpi(DOTS * math.ceil(max(1, finest * INCH / self.side / DOTS)))
        self.flip.translate(0, height / INCH)
        for axes, (left, top), (wide, high) in self.placed:
            low = (height - top - high) / height
            axes.set_position((left / self.width, low, wide / self.width, high / height))
        return self.figure


def require_width(width: int | float, least: int, across: str = "") -> None:
    """Refuse a page that is too narrow for what stands across it, or wider than any sheet.

    Raises:
        Refused: Its width in mm is below `least` or above 400.
    """
    if not least <= width <= WIDEST:
        raise Refused(f"a width of {width} mm{across}; choose between {least} and {WIDEST} mm")


def wrap(text: str, width: float, size: float) -> list[str]:
    """Lines of a text no wider than `width`, broken at spaces; its own line breaks are kept."""
    lines = []
    for paragraph in text.splitlines():
        lines.append("")
        for word in paragraph.split():
            longer = f"{lines[-1]} {word}".lstrip()
            fits = not lines[-1] or text_width(longer, size) <= width
            lines[-1:] = [longer] if fits else [lines[-1], word]
    return lines


def text_width(text: str, size: float) -> float:
    """Printed width of a text in millimetres, in the font of the style in force."""
    # A dollar sign would start mathematics in an outline, though it does not in the figure.
    outline = TextPath((0, 0), text.replace("$", "S"), size=size)
    return float(outline.vertices[:, 0].max()) * POINT
