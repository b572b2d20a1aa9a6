"""The zoom widget: a map on a canvas, on which one drags a rectangle or clicks a point.

The picture goes to the browser as one PNG pixel per cell and may be replaced at any time without
touching the rectangle; the rectangle comes back in the values of the axes. The browser asks for
news by itself while there is something to wait for, so that no cell of a notebook runs again.
"""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets
from jaxtyping import Float, UInt8
from PIL import Image as Picture

from fractal_core.plane import Axis, Grid, Region
from fractal_core.ticks import ticks

LARGEST_HOVER = 2**19
"""Cells beyond which the values for hovering would be more to send than the picture."""


class Heatmap(anywidget.AnyWidget):
    """A map of a grid. Build it with `heatmap`, fill it with `show`.

    What the browser sets: `roi`, the dragged rectangle as `[x0, x1, y0, y1]` in the values of the
    axes, or empty; `point`, the clicked `[x, y]`, or empty. Escape empties both.
    """

    _esm = Path(__file__).with_suffix(".js")
    _css = Path(__file__).with_suffix(".css")

    png = traitlets.Bytes(b"").tag(sync=True)
    values = traitlets.Bytes(b"").tag(sync=True)
    quantity = traitlets.Unicode("measure").tag(sync=True)
    shape = traitlets.List(traitlets.Int(), [1, 1]).tag(sync=True)
    xaxis = traitlets.Dict().tag(sync=True)
    yaxis = traitlets.Dict().tag(sync=True)
    digits = traitlets.List(traitlets.Int(), [6, 6]).tag(sync=True)
    marks = traitlets.List(traitlets.Dict(), []).tag(sync=True)
    status = traitlets.Dict({"text": "", "live": False}).tag(sync=True)
    roi = traitlets.List(traitlets.Float(), []).tag(sync=True)
    point = traitlets.List(traitlets.Float(), []).tag(sync=True)

    def show(
        self,
        colours: UInt8[np.ndarray, "rows cols 3"],
        values: Float[np.ndarray, "rows cols"],
        quantity: str,
    ) -> None:
        """Replace the picture and what hovering says; row 0 is the lowest y, nan is missing."""
        buffer = io.BytesIO()
        Picture.fromarray(colours[::-1]).save(buffer, "PNG", compress_level=1)
        with self.hold_sync():
            self.quantity = quantity
            self.png = buffer.getvalue()
            small = values.size <= LARGEST_HOVER
            self.values = values.astype("<f8").tobytes() if small else b""

    def __init__(self, **traits: Any):
        super().__init__(**traits)
        self._refresh: Callable[[], None] | None = None
        self.on_msg(self._asked)

    def answer(self, refresh: Callable[[], None]) -> None:
        """Have `refresh`, and nothing given before, called when the browser asks for news."""
        self._refresh = refresh

    def _asked(self, _widget: object, content: object, _buffers: object) -> None:
        if content == "news?" and self._refresh is not None:
            self._refresh()


def heatmap(
    grid: Grid, labels: Sequence[str], children: Sequence[tuple[str, Region]] = ()
) -> Heatmap:
    """An empty map of a grid, with the regions of further runs outlined in it.

    Args:
        grid: What is mapped.
        labels: Words for x and y.
        children: Names and regions to outline.
    """
    region = grid.region
    marks = [
        {"label": name, "box": [inner.x.low, inner.x.high, inner.y.low, inner.y.high]}
        for name, inner in children
    ]
    return Heatmap(
        shape=list(grid.shape),
        xaxis=_axis(region.x, labels[0]),
        yaxis=_axis(region.y, labels[1]),
        digits=[_digits(region.x, len(grid.x)), _digits(region.y, len(grid.y))],
        marks=marks,
    )


def _axis(axis: Axis, label: str) -> dict[str, Any]:
    marked = ticks(axis, most=7)
    at = axis.fraction(np.array([float(value) for value in marked.values]))
    return {
        "low": axis.ends[0],
        "high": axis.ends[1],
        "log": axis.scale == "log10",
        "label": f"{label} = {marked.note}" if marked.note else label,
        "ticks": [
            {"at": float(a), "text": text} for a, text in zip(at, marked.labels, strict=True)
        ],
    }


def _digits(axis: Axis, cells: int) -> int:
    """Significant digits that tell a tenth of a cell."""
    pitch = (axis.high - axis.low) / (cells * 10)
    if axis.scale == "log10":
        pitch = min(pitch, axis.low * axis.span * 2.3 / (cells * 10))
    return int(np.clip(np.ceil(np.log10(max(abs(axis.low), abs(axis.high)) / pitch)), 3, 17))
