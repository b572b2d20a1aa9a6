"""Charts that are read with the mouse: losses, dimensions over scales, flips, margins.

The colours are read on white and on black. What is measured is blue, a fit or a truth orange, and
what is only there to compare with grey; the paper versions are those of `charts` and `plots`.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64
from PIL import Image as Picture

from fractal_core.boundary import SafetyMargin, boundary_cells
from fractal_core.dimension import Profile
from fractal_core.figures import PALETTES
from fractal_core.outcome import Outcome
from fractal_core.pairs import PairsDimension
from fractal_core.plane import Axis, Grid
from fractal_core.roughness import Roughness

BLUE, ORANGE, GREY = "#3b82c4", "#d97706", "#8c8c8c"
HEIGHT = 300
SIDES = (116, 164, 212), (236, 178, 132)
EDGE, MISSING = (20, 20, 20), (128, 128, 128)
STEPS = alt.X("step:Q", title="step", axis=alt.Axis(labelSeparation=10))
CLOSE = alt.Scale(type="log", nice=False, padding=6)
"""Logarithms that do not reach out to whole decades: most losses stay within one."""


def loss_chart(frame: pd.DataFrame, by: str) -> alt.Chart:
    """The curves of several runs, of `singles.curves`, by `loss` or by its `ratio` to the first."""
    title = "loss" if by == "loss" else "loss over the first loss"
    return (
        alt.Chart(frame, height=HEIGHT)
        .mark_line(clip=True)
        .encode(
            x=STEPS,
            y=alt.Y(f"{by}:Q", title=title, scale=CLOSE),
            color=alt.Color("run:N", sort=None),
            tooltip=["run", "step", "loss", "ratio"],
        )
    )


def neighbours_chart(frame: pd.DataFrame) -> alt.Chart:
    """The curves of a point and its neighbours, of `portrait.curves`, in colours of their outcomes."""
    hues = alt.Scale(
        domain=[outcome.name for outcome in Outcome], range=list(PALETTES["split"].outcomes)
    )
    return (
        alt.Chart(frame, height=260)
        .mark_line(clip=True)
        .encode(
            x=STEPS,
            y=alt.Y("loss:Q", title="loss", scale=CLOSE),
            color=alt.Color("outcome:N", scale=hues),
            detail="run:N",
            size=alt.condition("datum.run == 'here'", alt.value(3), alt.value(1)),
            tooltip=["run", "outcome", "step", "loss"],
        )
    )


def rate_chart(frame: pd.DataFrame) -> alt.Chart:
    """Learning rates by step, of `singles.rates`, a line per group of parameters."""
    return (
        alt.Chart(frame, height=140)
        .mark_line()
        .encode(
            x=STEPS,
            y=alt.Y("rate:Q", title="learning rate"),
            color=alt.Color("group:N", sort=None),
            strokeDash=alt.StrokeDash("group:N", sort=None),
            tooltip=["group", "step", "rate"],
        )
    )


def boundary_png(labels: Bool[np.ndarray, "rows cols"]) -> bytes:
    """A map as PNG: both sides pale, the boundary black, row 0 at the bottom."""
    index = np.where(np.ma.getdata(labels), 0, 1).astype(np.uint8)
    index[np.ma.getmaskarray(labels)] = 3
    edge = np.ma.filled(boundary_cells(labels, measured_only=True), False)
    index[:-1, :-1][edge] = 2
    picture = Picture.fromarray(index[::-1].copy(), "P")
    picture.putpalette([value for colour in (*SIDES, EDGE, MISSING) for value in colour])
    # A small map is shown large, and must not be smoothed by the browser.
    times = max(1, 512 // max(labels.shape))
    size = (labels.shape[1] * times, labels.shape[0] * times)
    buffer = io.BytesIO()
    picture.resize(size, Picture.Resampling.NEAREST).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def box_chart(found: Roughness, truth: float | None = None) -> alt.LayerChart:
    """D(eps) of a map with its 95 % interval, and the same of its nulls in grey."""
    nulls = {name: [null.profile for null in drawn] for name, drawn in found.curves.items()}
    nulls["coin flips"] = [draw.profile for draw in found.coins]
    box = found.box
    level = None if box.value is None or box.low is None or box.high is None else box.value
    ends = None if level is None else (box.low or 0.0, box.high or 2.0)
    scale = f"box size, {found.unit}"
    return profile_chart(box.profile, nulls, scale, level, ends, truth, box.fitted)


def profile_chart(
    measured: Profile,
    nulls: Mapping[str, Sequence[Profile]],
    scale: str,
    value: float | None = None,
    ends: tuple[float, float] | None = None,
    truth: float | None = None,
    fitted: Float64[np.ndarray, " windows"] | None = None,
) -> alt.LayerChart:
    """D(eps): a line with its intervals, the fitted D as a dashed one over its band.

    Args:
        scale: What eps is.
        value: The dimension of all scales together, and `ends` of its interval.
        truth: Where that is known.
        fitted: What the fit reads at the same eps, a thin line.
    """
    ours = _rows(measured, "measured", 0)
    theirs = [
        _rows(profile, name, at)
        for name, drawn in nulls.items()
        for at, profile in enumerate(drawn)
        if len(profile.eps)
    ]
    axis = alt.Scale(domain=[0.6, 2.2], clamp=True)
    y = alt.Y("D:Q", title="dimension D(ε)", scale=axis)
    x = alt.X("eps:Q", title=scale, scale=alt.Scale(type="log"), axis=_axis())
    tips = [
        alt.Tooltip("what:N", title="of"),
        alt.Tooltip("eps:Q", title=scale, format=".3g"),
        alt.Tooltip("D:Q", format=".3f"),
        alt.Tooltip("low:Q", title="95 % from", format=".3f"),
        alt.Tooltip("high:Q", title="to", format=".3f"),
    ]
    layers = []
    if theirs:
        # One below the other and whole: beside each other they run out of a narrow chart.
        legend = alt.Legend(orient="top", columns=1, labelLimit=0)
        dashes = alt.StrokeDash("what:N", title="compared with", legend=legend)
        lines = alt.Chart(pd.concat(theirs, ignore_index=True)).encode(x=x, y=y, tooltip=tips)
        layers.append(
            lines.mark_line(color=GREY, strokeWidth=1).encode(strokeDash=dashes, detail="at:N")
        )
    if value is not None and ends is not None:
        band = pd.DataFrame({"low": [ends[0]], "high": [ends[1]]})
        layers.append(
            alt.Chart(band)
            .mark_rect(color=BLUE, opacity=0.15)
            .encode(y=alt.Y("low:Q", scale=axis), y2="high:Q")
        )
        layers.append(
            _level(value, axis, BLUE, f"D = {value:.3f} ({ends[0]:.3f} to {ends[1]:.3f})")
        )
    if truth is not None:
        layers.append(_level(truth, axis, ORANGE, f"true D = {truth:.3f}"))
    base = alt.Chart(ours).encode(x=x, tooltip=tips)
    layers += [
        base.mark_rule(color=BLUE, clip=True).encode(y=alt.Y("low:Q", scale=axis), y2="high:Q"),
        base.mark_line(color=BLUE, strokeWidth=1.5).encode(y=y),
        base.mark_point(color=BLUE, filled=True, size=40, opacity=1).encode(y=y),
    ]
    if fitted is not None:
        thin = pd.DataFrame({"what": "the fit", "eps": measured.eps, "D": fitted})
        lines = alt.Chart(thin).mark_line(color=ORANGE, strokeWidth=1, clip=True)
        layers.append(lines.encode(x=x, y=y, tooltip=tips[:3]))
    return alt.LayerChart(layer=layers, height=HEIGHT)


def flips_chart(
    found: PairsDimension, nulls: Mapping[str, PairsDimension | None], unit: str
) -> alt.LayerChart:
    """The share of pairs that flip against their distance, both as logarithms, with intervals.

    Hollow points were not fitted; a triangle stands where no pair flipped, at the end of its
    interval. Dashed lines are the flips of a rerun and of one unit in the last place, if any.
    """
    table = pd.DataFrame(
        {
            "eps": found.eps,
            "share": np.where(found.flips > 0, found.flips, found.flips_high),
            "low": np.where(found.flips_low > 0, found.flips_low, found.flips_high / 30),
            "high": found.flips_high,
            "flips": found.flips,
            "kind": np.where(found.flips == 0, "none", np.where(found.used, "fitted", "not")),
            "fit": found.fit,
        }
    )
    x = alt.X(
        "eps:Q", title=f"distance, {unit}", scale=alt.Scale(type="log"), axis=_axis(exponents=True)
    )
    share = alt.Scale(type="log", domain=[float(table.low.min()) * 0.7, 1.0])
    y = alt.Y("share:Q", title="pairs that flip", scale=share, axis=alt.Axis(format=".1~p"))
    tips = [
        alt.Tooltip("eps:Q", title="distance", format=".3g"),
        alt.Tooltip("flips:Q", format=".3%"),
        alt.Tooltip("low:Q", title="95 % from", format=".3%"),
        alt.Tooltip("high:Q", title="to", format=".3%"),
    ]
    base = alt.Chart(table).encode(x=x, tooltip=tips)
    layers: list[Any] = [
        _line(null.eps, null.fit, name, share, GREY, [4, 3])
        for name, null in nulls.items()
        if null is not None and np.isfinite(null.fit).any()
    ]
    layers += [
        _level(rate.value, share, BLUE, f"{words} flips {rate.flips} of {rate.pairs}")
        for words, rate in (("a rerun", found.rerun), ("one last place", found.ulp))
        if rate is not None and rate.flips
    ]
    if np.isfinite(found.fit).any():
        layers.append(_line(found.eps, found.fit, "fit", share, ORANGE, [1, 0]))
    for kind, shape, filled in (
        ("fitted", "circle", True),
        ("not", "circle", False),
        ("none", "triangle-down", True),
    ):
        if (table.kind == kind).any():
            points = base.transform_filter(alt.datum.kind == kind)
            layers.append(
                points.mark_rule(color=BLUE, clip=True).encode(
                    y=alt.Y("low:Q", scale=share), y2="high:Q"
                )
            )
            layers.append(
                points.mark_point(color=BLUE, filled=filled, shape=shape, opacity=1).encode(y=y)
            )
    return alt.LayerChart(layer=layers, height=HEIGHT)


def pairs_chart(found: PairsDimension, unit: str, truth: float | None = None) -> alt.LayerChart:
    """D(eps) from pairs, with that of all distances together."""
    value = None if np.isnan(found.dimension) else found.dimension
    ends = None if value is None else found.interval
    return profile_chart(found.profile, {}, f"distance, {unit}", value, ends, truth)


def margin_chart(grid: Grid, margin: SafetyMargin, labels: tuple[str, str]) -> alt.LayerChart:
    """The largest safe x for every y."""
    safe = margin.largest >= 0
    columns = margin.largest[safe]
    table = pd.DataFrame(
        {
            "x": grid.x[columns],
            "y": grid.y[safe],
            "risk": margin.risk[np.nonzero(safe)[0], columns],
        }
    )
    region = grid.region

    def scale(axis: Axis) -> alt.Scale:
        kind = "log" if axis.scale == "log10" else "linear"
        return alt.Scale(type=kind, domain=[axis.low, axis.high], nice=False)

    base = alt.Chart(table).encode(
        x=alt.X("x:Q", title=f"largest safe {labels[0]}", scale=scale(region.x), axis=_axis(True)),
        y=alt.Y("y:Q", title=labels[1], scale=scale(region.y), axis=_axis(True)),
        tooltip=[
            alt.Tooltip("x:Q", title=labels[0], format=".4g"),
            alt.Tooltip("y:Q", title=labels[1], format=".4g"),
            alt.Tooltip("risk:Q", title="chance of failing", format=".2%"),
        ],
    )
    points = base.mark_point(color=BLUE, filled=True, size=25, opacity=1)
    return alt.LayerChart(layer=[points], height=HEIGHT)


def _rows(profile: Profile, what: str, at: int) -> pd.DataFrame:
    columns = {"eps": profile.eps, "D": profile.dimension, "low": profile.low, "high": profile.high}
    known = np.isfinite(profile.dimension)
    table = pd.DataFrame({name: values[known] for name, values in columns.items()})
    return table.assign(what=what, at=f"{what} {at}")


def _level(value: float, scale: alt.Scale, colour: str, words: str) -> alt.Chart:
    """A line across all scales, with words for the mouse."""
    table = pd.DataFrame({"at": [value], "what": [words]})
    mark = alt.Chart(table).mark_rule(color=colour, strokeDash=[6, 3], strokeWidth=1.5, clip=True)
    return mark.encode(y=alt.Y("at:Q", scale=scale), tooltip=alt.Tooltip("what:N", title="line"))


def _line(
    x: np.ndarray, y: np.ndarray, what: str, scale: alt.Scale, colour: str, dash: list[int]
) -> alt.Chart:
    table = pd.DataFrame({"eps": x, "share": y, "what": what})
    mark = alt.Chart(table).mark_line(color=colour, strokeDash=dash, clip=True)
    return mark.encode(
        x="eps:Q", y=alt.Y("share:Q", scale=scale), tooltip=alt.Tooltip("what:N", title="line")
    )


def _axis(exponents: bool = False) -> alt.Axis:
    return alt.Axis(format=".0e" if exponents else ".1~g", tickCount=6, labelOverlap=True)
