"""Charts of dimensions: the boundary on its map, the profile over scales, nulls in grey.

What is measured is blue, its interval pale blue, and everything that is only there to compare with
is grey. The map is drawn in decades from its middle, which is what scales are counted in.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from fractal_core.boundary import boundary_cells
from fractal_core.dimension import Dimension
from fractal_core.figures import MISSING, PALETTES
from fractal_core.plane import Axis
from fractal_core.roughness import Roughness
from fractal_core.sheet import DOTS, INCH, LARGE, LINE, MARGIN, NORMAL, SMALL, STYLE, wrap
from fractal_core.ticks import MINUS, power_of_ten, ticks

WIDTH, HEIGHT = 183, 82
OURS, BAND, NULL, COINS = "#12468c", "#cfe8fb", "#7f7f7f", "#b0b0b0"
EDGE = "#1a1a1a"
PALE = 0.55


def dimension_figure(
    labels: Bool[np.ndarray, "rows cols"],
    found: Roughness,
    *,
    names: tuple[str, str],
    spans: tuple[float, float],
    sides: tuple[str, str] = ("trainable", "not"),
    caption: str = "",
) -> Figure:
    """The map with its boundary beside D(eps) with the nulls.

    Args:
        labels: One side of the boundary; masked where missing.
        found: What was measured of them.
        names: Words for x and y.
        spans: Lengths of x and y, in the unit of the scales.
        sides: Words for True and False.
        caption: Small text below; the verdict is said anyway.
    """
    with style.context(["default", STYLE]):
        lines = wrap(caption, WIDTH - 2 * MARGIN, SMALL)
        size = WIDTH / INCH, (HEIGHT + len(lines) * LINE * SMALL) / INCH
        figure = Figure(figsize=size, dpi=DOTS, layout="constrained", facecolor="white")
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
        _boundary(left, labels, names, spans, found.unit, sides)
        _profile(right, found)
        box = found.box
        number = (
            "no D"
            if box.value is None
            else f"D = {box.value:.2f} ({box.low:.2f} to {box.high:.2f})"
        )
        figure.suptitle(f"{number}: {found.verdict}", size=LARGE)
        if lines:
            figure.supxlabel("\n".join(lines), size=SMALL, x=MARGIN / WIDTH, ha="left")
    return figure


def time_figure(
    lengths: Sequence[int], found: Sequence[Dimension], moved: Sequence[float], caption: str = ""
) -> Figure:
    """D, and how many labels still change, against the training length.

    Args:
        lengths: Training steps.
        found: The dimension after each.
        moved: Share of the labels that are not those of the length before; nan for the first.
    """
    with style.context(["default", STYLE]):
        figure = Figure(
            figsize=(89 / INCH, 96 / INCH), dpi=DOTS, layout="constrained", facecolor="white"
        )
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        known = [(n, d) for n, d in zip(lengths, found, strict=True) if d.value is not None]
        if known:
            steps = np.array([n for n, _ in known])
            ends = np.array([(d.low, d.value, d.high) for _, d in known], float)
            above.fill_between(steps, ends[:, 0], ends[:, 2], color=BAND, label="95 % interval")
            above.plot(steps, ends[:, 1], "o-", color=OURS, ms=3, lw=1, label="box counts")
            above.legend(
                loc="lower center",
                bbox_to_anchor=(0.5, 1.0),
                ncols=2,
                frameon=False,
                fontsize=SMALL,
            )
        else:
            above.text(0.5, 0.5, "no length gives a dimension", ha="center", size=NORMAL)
        above.set_ylabel("dimension D", size=NORMAL)
        below.plot(lengths, 100 * np.asarray(moved, float), "o-", color=OURS, ms=3, lw=1)
        below.set_ylabel("labels changed, %", size=NORMAL)
        below.set_ylim(bottom=0)
        below.set_xlabel("training steps" + (f"\n{caption}" if caption else ""), size=NORMAL)
        for axes in (above, below):
            axes.set_xscale("log")
            axes.set_xticks(list(lengths), [f"{n:,}" for n in lengths], rotation=30, ha="right")
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.minorticks_off()
            _quiet(axes)
    return figure


def _boundary(
    axes: Axes,
    labels: np.ndarray,
    names: tuple[str, str],
    spans: tuple[float, float],
    unit: str,
    sides: tuple[str, str],
) -> None:
    """Pale labels, and the cells that hold both in black."""
    blue, orange, _ = PALETTES["split"].outcomes
    missing = np.ma.getmaskarray(labels)
    shown = np.where(missing, 2, np.where(np.ma.getdata(labels), 0, 1))
    colours = ListedColormap([blue, orange, MISSING])
    rows, cols = labels.shape
    (x, along), (y, up) = (_scaled(span) for span in spans)
    extent = (-x / 2, x / 2, -y / 2, y / 2)
    axes.imshow(
        shown, cmap=colours, vmin=-0.5, vmax=2.5, alpha=PALE, origin="lower", aspect="auto",
        interpolation="none", extent=extent,
    )  # fmt: skip
    cells = boundary_cells(labels, measured_only=True)
    edges = np.ma.masked_where(~np.ma.filled(cells, False), np.zeros(cells.shape))
    # A cell stands between four points, half a pitch inside the rim.
    px, py = x / cols / 2, y / rows / 2
    inner = (extent[0] + px, extent[1] - px, extent[2] + py, extent[3] - py)
    axes.imshow(
        edges, cmap=ListedColormap([EDGE]), origin="lower", aspect="auto", interpolation="none",
        extent=inner,
    )  # fmt: skip
    axes.set(xlim=extent[:2], ylim=extent[2:], box_aspect=1)
    for side, name, power in ((axes.xaxis, names[0], along), (axes.yaxis, names[1], up)):
        factor = "" if power == 0 else f"{power_of_ten(power)} "
        side.set_label_text(f"{name}\n{factor}{unit} from the middle", size=NORMAL)
        side.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}".replace("-", MINUS)))
    kinds = [(blue, sides[0]), (orange, sides[1]), (EDGE, "boundary")]
    kinds += [(MISSING, "missing")] if missing.any() else []
    marks = [
        Line2D([], [], marker="s", ls="", ms=5, color=c, alpha=1 if c == EDGE else PALE)
        for c, _ in kinds
    ]
    axes.legend(
        marks, [text for _, text in kinds], loc="lower center", bbox_to_anchor=(0.5, 1.0),
        ncols=len(kinds), frameon=False, fontsize=SMALL, handletextpad=0.1, columnspacing=1.0,
    )  # fmt: skip
    axes.tick_params(labelsize=SMALL)


def _profile(axes: Axes, found: Roughness) -> None:
    """D(eps) of the map with its interval, and of the fit; D; one grey line for each null."""
    ours = found.box.profile
    nulls = [(COINS, ":", "coin flips", found.coins)]
    for dashes, (name, drawn) in zip(("--", "-."), found.curves.items(), strict=True):
        nulls.append((NULL, dashes, name, drawn))
    scales = np.concatenate([ours.eps, *(d.profile.eps for *_, ds in nulls for d in ds)])
    power = int(np.floor(np.log10(scales.min()))) if len(scales) else 0
    power = power if power < -2 else 0
    unit = 10.0**power
    handles = []
    for colour, dashes, name, drawn in nulls:
        lines = [
            axes.plot(d.profile.eps / unit, d.profile.dimension, dashes, color=colour, lw=0.8)
            for d in drawn
            if len(d.profile.eps)
        ]
        handles += [Line2D([], [], ls=dashes, color=colour, lw=0.8, label=name)] if lines else []
    if len(ours.eps):
        at = ours.eps / unit
        axes.fill_between(at, ours.low, ours.high, color=BAND, lw=0, zorder=1)
        handles[:0] = axes.plot(
            at, ours.dimension, "o-", color=OURS, ms=2.5, lw=1.2, zorder=4,
            label="this map, 95 % interval",
        )  # fmt: skip
    if found.box.value is not None and found.box.fitted is not None:
        handles[1:1] = [
            axes.plot(at, found.box.fitted, color=EDGE, lw=0.8, zorder=5, label="its fit")[0],
            axes.axhline(found.box.value, color=OURS, ls=(0, (6, 3)), lw=0.8, label="D of the fit"),
        ]
    if len(scales):
        axes.set_xscale("log")
        low, high = float(scales.min()) / unit * 0.95, float(scales.max()) / unit * 1.05
        marks = ticks(Axis("box size", low, high, 2))
        axes.set_xticks([float(mark) for mark in marks.values], marks.labels)
        axes.minorticks_off()
    else:
        lines = wrap(f"no D: {found.box.reason}", WIDTH / 3, NORMAL)
        middle = {"ha": "center", "va": "center", "size": NORMAL}
        axes.text(0.5, 0.5, "\n".join(lines), transform=axes.transAxes, **middle)
        axes.set(xticks=[], yticks=[])
    factor = f"{power_of_ten(power)} " if power else ""
    axes.set_xlabel(f"box size, {factor}{found.unit}", size=NORMAL)
    axes.set_ylabel("local dimension D(ε)", size=NORMAL)
    axes.legend(
        handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False,
        fontsize=SMALL, columnspacing=1.0,
    )  # fmt: skip
    axes.set_ylim(*np.clip(axes.get_ylim(), 0.0, 2.6))
    _quiet(axes)


def _quiet(axes: Axes) -> None:
    axes.tick_params(labelsize=SMALL)
    axes.spines[["top", "right"]].set_visible(False)


def _scaled(span: float) -> tuple[float, int]:
    """A length as a number between 2 and 20 and its power of ten, or as it is where that is read."""
    if 0.02 <= span < 200:
        return span, 0
    power = int(np.floor(np.log10(span / 2)))
    return span / 10.0**power, power
