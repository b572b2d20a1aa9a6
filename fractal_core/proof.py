"""A proof of a figure: how it looks to readers who see colours otherwise, and without any.

One reader in twenty tells red from green badly, and many print in grey. A proof simulates the
three kinds of blindness at full strength, and the lightness that a grey-scale print keeps.

Source: the matrices for severity 1 of Machado, Oliveira and Fernandes 2009, "A physiologically-based
model for simulation of color vision deficiency", IEEE TVCG 15(6), which act on linear RGB; grey is
the luminance of ITU-R BT.709, the Y of sRGB.
"""

import numpy as np
from jaxtyping import Float64, UInt8
from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from fractal_core.figures import MISSING, PALE, PALETTES, WALK, light_of, printed
from fractal_core.sheet import DOTS, INCH, LARGE, NORMAL, SMALL, STYLE

VISIONS = {
    "as printed": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
    "grey": np.tile([0.2126, 0.7152, 0.0722], (3, 1)),
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = np.array([0.9505, 1.0, 1.089])
ACROSS = 3
MOST_PIXELS = 900


def seen(
    colours: UInt8[np.ndarray, "rows cols 3"], vision: str
) -> UInt8[np.ndarray, "rows cols 3"]:
    """An sRGB picture as it is seen with one of `VISIONS`."""
    return printed(_seen(colours / 255, vision))


def _seen(colours: Float64[np.ndarray, "*n 3"], vision: str) -> Float64[np.ndarray, "*n 3"]:
    """Linear light of sRGB colours from 0 to 1, as it is seen."""
    return np.clip(light_of(colours) @ VISIONS[vision].T, 0, 1)


def _lab(colours: Float64[np.ndarray, "n 3"], vision: str) -> Float64[np.ndarray, "n 3"]:
    """CIE 1976 L*a*b* (D65), in which distances are about equally visible."""
    x, y, z = np.cbrt(_seen(colours, vision) @ TO_XYZ.T / WHITE).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def separation(palette: str) -> dict[str, float]:
    """How far the two sides of a palette, and the grey of missing cells, stay apart for every eye.

    Returns:
        The least distance of two colours of different groups, in units of CIE76: below about 2
        nobody tells them apart, above about 12 everybody who has that vision does at a glance.
        Under `grey` all that is left is lightness, and pale cells of both sides share it by
        design: there the number is the distance of the two ends at the boundary instead, where
        the sides meet.
    """
    sides = PALETTES[palette].sides
    ramps = [sides((sign * np.linspace(PALE, 1, 60) + 1) / 2)[:, :3] for sign in (-1, 1)]
    found = {}
    for vision in VISIONS:
        groups = [_lab(colours, vision) for colours in (*ramps, np.array([to_rgb(MISSING)]))]
        if vision == "grey":
            found[vision] = float(np.linalg.norm(groups[0][-1] - groups[1][-1]))
            continue
        found[vision] = min(
            float(np.linalg.norm(one[:, None] - other[None], axis=-1).min())
            for k, one in enumerate(groups)
            for other in groups[:k]
        )
    return found


def proof_figure(figure: Figure) -> Figure:
    """A page with a figure as every vision sees it, in pixels: for looking, not for printing."""
    dots = figure.dpi
    try:
        longest = max(figure.get_size_inches())
        figure.set_dpi(min(dots, MOST_PIXELS / longest))
        with style.context(["default", STYLE]):
            canvas = FigureCanvasAgg(figure)
            canvas.draw()
            picture = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    finally:
        figure.set_dpi(dots)
    height, width = picture.shape[:2]
    down = -(-len(VISIONS) // ACROSS)
    head = LARGE / 72 * 2.2
    size = ACROSS * width / DOTS, down * (height / DOTS + head)
    with style.context(["default", STYLE]):
        page = Figure(figsize=size, dpi=DOTS, facecolor="white")
        for k, vision in enumerate(VISIONS):
            row, col = divmod(k, ACROSS)
            high, wide = height / DOTS / size[1], 1 / ACROSS
            top = 1 - row / down - head / size[1]
            axes = page.add_axes((col * wide, top - high, wide, high), label=vision)
            axes.imshow(seen(picture, vision), aspect="auto", interpolation="none")
            axes.set_axis_off()
            page.text(
                (col + 0.5) * wide, top + 0.3 * head / size[1], vision, ha="center", size=LARGE
            )
    return page


def palettes_figure() -> Figure:
    """The colours of every palette as every vision sees them, with the separation of their sides."""
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(183 / INCH, 12 * (len(VISIONS) + 1) / INCH), dpi=DOTS)
        figure.set_facecolor("white")
        grid = figure.subplots(
            len(VISIONS), len(PALETTES), squeeze=False,
            gridspec_kw={"left": 0.14, "right": 0.99, "top": 0.9, "bottom": 0.04, "hspace": 0.9},
        )  # fmt: skip
        for column, (name, palette) in zip(grid.T, PALETTES.items(), strict=True):
            apart = separation(name)
            colours = palette.sides(WALK, bytes=True)[None, :, :3]
            for axes, vision in zip(column, VISIONS, strict=True):
                axes.imshow(seen(colours, vision), aspect="auto", interpolation="none")
                axes.set(xticks=[], yticks=[])
                words = f"{name}: " if vision == "as printed" else ""
                where = "at the boundary" if vision == "grey" else "at least"
                words += f"sides {where} {apart[vision]:.0f} CIELAB units apart"
                axes.set_title(words, size=SMALL, loc="left")
                if name == next(iter(PALETTES)):
                    axes.set_ylabel(vision, rotation=0, ha="right", va="center", size=NORMAL)
    return figure
