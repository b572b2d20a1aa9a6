"""Curves for screen and paper: how flips fall with distance, and the dimension that follows.

The style is that of `figures`. What is drawn is named above the axes, where it covers no data.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float64
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter

from fractal_core.figures import NARROWEST
from fractal_core.pairs import PairsDimension
from fractal_core.plane import Axis
from fractal_core.sheet import INCH, NORMAL, SMALL, STYLE, require_width
from fractal_core.ticks import ticks

BLUE, ORANGE, PALE, GREY = "#12468c", "#b45309", "#cfe8fb", "#8c8c8c"
DASHES = (0, (1, 1.6)), (0, (4, 2)), (0, (5, 1.5, 1, 1.5))

LEFT, RIGHT, SIDE, GAP = 15.0, 2.5, 15.0, 2.5
HEAD, UPPER, BETWEEN, LOWER, FOOT = 15.5, 42.0, 5.5, 22.0, 10.0
RULE = "#d0d0d0"


def pairs_figure(
    found: PairsDimension,
    *,
    nulls: Mapping[str, PairsDimension | None] | None = None,
    title: str = "",
    unit: str = "decades",
    width_mm: int | float = 100,
) -> Figure:
    """The share of pairs that flip against their distance, and below it the dimension D(eps).

    Above: flips with their 95% intervals, the fitted law, and the floors, with the same intervals,
    in a panel of their own at the left, since a rerun has no place on an axis of logarithms. What
    was not fitted, because reruns explain too much of it, is hollow. A scale without flips is an arrow down from the end of its interval.
    Below: fits to a few neighbouring distances at a time; the band is D of all of them together.

    Args:
        found: What to draw.
        nulls: Fits to draw beside it, in grey, by name.
        title: Above the figure; left out, D and its interval.
        unit: Of the distances.

    Raises:
        Refused: An unreasonable width.
    """
    require_width(width_mm, NARROWEST)
    height = HEAD + UPPER + BETWEEN + LOWER + FOOT
    wide = width_mm - LEFT - SIDE - GAP - RIGHT
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(width_mm / INCH, height / INCH))

        def panel(left: float, bottom: float, width: float, high: float, **shared) -> Axes:
            box = (left / width_mm, bottom / height, width / width_mm, high / height)
            axes = figure.add_axes(box, **shared)
            axes.tick_params(labelsize=SMALL, width=0.6, length=3)
            axes.tick_params(which="minor", width=0.4, length=1.5)
            axes.spines[["top", "right"]].set_visible(False)
            return axes

        top = panel(LEFT + SIDE + GAP, FOOT + LOWER + BETWEEN, wide, UPPER)
        side = panel(LEFT, FOOT + LOWER + BETWEEN, SIDE, UPPER, sharey=top)
        below = panel(LEFT + SIDE + GAP, FOOT, wide, LOWER, sharex=top)
        _draw_flips(top, found, nulls or {})
        _draw_floors(side, top, found)
        _draw_profile(below, found)
        _mark_distances(top, below, found.eps, unit)
        # One line for the names of both axes, though their panels begin at different places.
        for axes in (side, below):
            at = (4.5 - axes.get_position().x0 * width_mm) / (axes.get_position().width * width_mm)
            axes.yaxis.set_label_coords(at, 0.5)
        x, y = 2 / width_mm, 1 - 1.5 / height
        figure.text(x, y, title or _in_words(found), size=NORMAL, va="top")
        figure.legend(
            *top.get_legend_handles_labels(),
            loc="upper left",
            bbox_to_anchor=(x, 1 - 5.5 / height),
            ncols=3,
            fontsize=SMALL,
            frameon=False,
            borderpad=0,
            borderaxespad=0,
            handlelength=2.2,
            columnspacing=1.6,
        )
        return figure


def _in_words(found: PairsDimension) -> str:
    if np.isnan(found.dimension):
        return f"no dimension: {found.unresolved}"
    low, high = found.interval
    return f"D = {found.dimension:.3f} ({low:.3f} to {high:.3f}), from {found.bases} base points"


def _draw_flips(
    axes: Axes, found: PairsDimension, nulls: Mapping[str, PairsDimension | None]
) -> None:
    rows = (
        (found.used, BLUE, "pairs, 95 % interval"),
        (~found.used, "white", "not fitted"),
    )
    columns = (found.eps, found.flips, found.flips_low, found.flips_high)
    for some, face, label in rows:
        x, share, low, high = (column[some & (found.flips > 0)] for column in columns)
        _bars(axes, x, share, low, high, face)
        none = some & (found.flips == 0)
        _arrows(axes, found.eps[none], found.flips_high[none])
        if some.any():
            axes.plot([], [], "o", ms=3, mfc=face, mec=BLUE, mew=0.7, label=label)
    axes.plot(found.eps, found.fit, color=ORANGE, lw=1.1, label="fit", zorder=3)
    drawn = [(name, null) for name, null in nulls.items() if null is not None]
    for (name, null), dashes in zip(drawn, DASHES, strict=False):
        axes.plot(null.eps, null.fit, color=GREY, lw=0.8, ls=dashes, label=f"fit to {name}")
    shown = found.flips_low[found.flips > 0]
    floor = min(float(np.min(shown, initial=0.05)), float(found.flips_high.min()))
    axes.set(yscale="log", ylim=(10 ** np.floor(np.log10(0.5 * floor)), 1.0))
    percents = 10.0 ** np.arange(-6, 1)
    axes.yaxis.set_major_locator(FixedLocator(percents.tolist()))
    axes.yaxis.set_minor_locator(LogLocator(subs=tuple(range(2, 10))))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _bars(
    axes: Axes,
    x: Float64[np.ndarray, " n"],
    value: Float64[np.ndarray, " n"],
    low: Float64[np.ndarray, " n"],
    high: Float64[np.ndarray, " n"],
    face: str = BLUE,
) -> None:
    """Points with both ends of their intervals."""
    ends = np.stack([value - low, high - value])
    axes.errorbar(
        x, value, ends, fmt="o", ms=3, mfc=face, mec=BLUE, mew=0.7,
        color=BLUE, linewidth=0.7, capsize=1.6, capthick=0.7,
    )  # fmt: skip


def _arrows(axes: Axes, x: Float64[np.ndarray, " n"], tops: Float64[np.ndarray, " n"]) -> None:
    """Arrows down from where an interval that begins at zero ends."""
    shape = {"arrowstyle": "-|>", "color": BLUE, "lw": 0.7, "mutation_scale": 5, "shrinkA": 0}
    for at, top in zip(x.tolist(), tops.tolist(), strict=True):
        axes.annotate("", (at, 0.6 * top), (at, top), arrowprops=shape)
        axes.plot([at], [top], "_", color=BLUE, ms=3.2, mew=0.7)


def _draw_floors(side: Axes, top: Axes, found: PairsDimension) -> None:
    """Both floors as points of their own, with a line through all distances."""
    side.set(xlim=(-0.6, 1.6), xticks=[0, 1], xticklabels=["rerun", "1 ulp"])
    side.set_ylabel("pairs whose labels differ", size=NORMAL)
    side.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.6g} %")
    top.tick_params(labelleft=False, labelbottom=False)
    top.spines["left"].set_color(RULE)
    top.tick_params(axis="y", which="both", color=RULE)
    side.text(0.5, 1.02, "floors", size=SMALL, ha="center", transform=side.transAxes)
    for at, (rate, dashes) in enumerate(((found.rerun, ":"), (found.ulp, "--"))):
        if rate is not None:
            for axes in (side, top):
                axes.axhline(rate.value or rate.interval[1], color=BLUE, lw=0.6, ls=dashes)
            here, low, high = np.array([[float(at)], *([end] for end in rate.interval)])
            if rate.flips:
                _bars(side, here, np.array([rate.value]), low, high)
            else:
                _arrows(side, here, high)


def _draw_profile(axes: Axes, found: PairsDimension) -> None:
    profile, known = found.profile, np.isfinite(found.profile.dimension)
    if not np.isnan(found.dimension):
        axes.axhspan(*found.interval, color=PALE, lw=0)
        axes.axhline(found.dimension, color=ORANGE, lw=0.8)
    columns = (profile.eps, profile.dimension, profile.low, profile.high)
    x, dimension, low, high = (column[known] for column in columns)
    _bars(axes, x, dimension, low, high)
    axes.set(ylim=(float(np.min(low, initial=1.0)) - 0.06, 2.06))
    axes.yaxis.set_major_locator(FixedLocator([0, 0.5, 1, 1.5, 2]))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_ylabel("dimension D", size=NORMAL)
    for level in (1.0, 2.0):
        axes.axhline(level, color=RULE, lw=0.5, zorder=0)


def _mark_distances(top: Axes, below: Axes, eps: Float64[np.ndarray, " scales"], unit: str) -> None:
    low, high = float(eps.min() / 2), float(eps.max() * 2)
    marks = ticks(Axis("distance", low, high, 1), 9)
    top.set(xscale="log", xlim=(low, high))
    below.set_xticks([float(value) for value in marks.values], list(marks.labels))
    below.set_xticks([float(value) for value in marks.minor], minor=True)
    below.xaxis.set_minor_formatter(NullFormatter())
    below.set_xlabel(f"distance between the two runs of a pair, in {unit}", size=NORMAL)
