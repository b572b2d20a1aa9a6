"""Drag a rectangle on a map of trainability, look closer, drag again."""

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="full", app_title="fractal zoom")

with app.setup(hide_code=True):
    from pathlib import Path

    import altair as alt
    import marimo as mo

    from fractal_core import PRESETS, Outcome, Refused, engine, explore, figures

    ROOT = Path("runs")


@app.cell(hide_code=True)
def title():
    mo.md("""
    # Where does training stop working?
    Every cell is one network, trained at the two hyperparameters of its place: blue ones learned,
    orange ones did not, dark is near the border. **Drag** a rectangle to zoom, **click** a point
    for its loss curve, **Escape** clears.
    """)
    return


@app.cell(hide_code=True)
def navigation():
    query = mo.query_params()
    control = explore.may_control(mo.app_meta().mode)
    get_address, set_address = mo.state(dict(query.to_dict()))
    get_forward, set_forward = mo.state(())

    def go(view, preset="", forward=()):
        """Show a view: its address is the only thing that the notebook remembers."""
        there = explore.address(view, preset)
        for _key in set(query.to_dict()) - set(there):
            query.remove(_key)
        for _key, _value in there.items():
            query.set(_key, _value)
        set_forward(forward)
        set_address(there)

    return control, get_address, get_forward, go


@app.cell(hide_code=True)
def current(get_address):
    try:
        view, trouble = explore.from_address(ROOT, get_address()), ""
    except Refused as _error:
        view, trouble = explore.from_address(ROOT, {}), str(_error)
    mo.callout(trouble, kind="warn") if trouble else None
    return (view,)


@app.cell(hide_code=True)
def settings():
    preset = mo.ui.dropdown(list(PRESETS), value="tanh", label="condition")
    window = mo.ui.dropdown(["overview", "published"], value="overview", label="window")
    grid = mo.ui.dropdown({str(n): n for n in (64, 128, 256, 512)}, value="128", label="grid")
    steps = mo.ui.number(21, 100_000, value=500, label="steps")
    dtype = mo.ui.dropdown(["float64", "float32"], value="float64", label="precision")
    choose = mo.ui.run_button(label="show")
    quantity = mo.ui.radio(list(figures.VIEWS), value="measure", label="**colour**")
    palette = mo.ui.radio(["split", "paper"], value="split", label="**palette**")
    mo.sidebar(
        [mo.md("### Map"), preset, window, grid, steps, dtype, choose, quantity, palette],
        width="15rem",
    )
    return choose, dtype, grid, palette, preset, quantity, steps, window


@app.cell(hide_code=True)
def choosing(choose, dtype, go, grid, preset, steps, window):
    mo.stop(not choose.value)
    go(
        explore.preset_view(
            ROOT,
            preset.value,
            published=window.value == "published",
            grid=grid.value,
            steps=int(steps.value),
            dtype=dtype.value,
        ),
        preset.value,
    )
    return


@app.cell(hide_code=True)
def places(control, get_forward, view):
    back = mo.ui.run_button(label="← back", disabled=view.parent is None)
    forward = mo.ui.run_button(label="forward →", disabled=not get_forward())
    place = mo.ui.dropdown(explore.places(ROOT), label="places")
    opened = mo.ui.dropdown(explore.runs(ROOT), label="runs", searchable=True)
    mark = mo.ui.text(placeholder="name this view")
    _kept = view.name in explore.bookmarks(ROOT).values()
    keep = mo.ui.run_button(label="bookmark", disabled=view.store is None or not control)
    drop = mo.ui.run_button(label="forget", disabled=not _kept or not control)
    mo.hstack([back, forward, place, opened, mark, keep, drop], justify="start", align="end")
    return back, drop, forward, keep, mark, opened, place


@app.cell(hide_code=True)
def moving(back, drop, forward, get_forward, go, keep, mark, opened, place, view):
    if back.value:
        go(explore.open_view(ROOT, view.parent.name), forward=(view.name, *get_forward()))
    elif forward.value:
        _next, *_rest = get_forward()
        go(explore.open_view(ROOT, _next), forward=tuple(_rest))
    elif keep.value:
        explore.bookmark(ROOT, mark.value or view.name, view.name)
        go(view)
    elif drop.value:
        explore.forget(ROOT, view.name)
        go(view)
    elif opened.value:
        go(explore.open_view(ROOT, opened.value))
    elif place.value:
        go(explore.from_address(ROOT, place.value), place.value.get("preset", ""))
    return


@app.cell(hide_code=True)
def selection(heat, view):
    try:
        inner = explore.zoomed(ROOT, view, heat.roi) if heat.roi else None
        _region = inner.sweep.region if inner else view.sweep.region
        _what = "selection" if inner else "this view"
        _cost = explore.cost(inner or view, like=view)
        _words, _gauge = f"{_what}: {_cost}", _cost.gauge
    except Refused as _error:
        inner, _region, _gauge = None, view.sweep.region, ""
        _words = f"cannot zoom there: {_error}"
    _ends = " · ".join(
        f"{axis.name} {axis.low!r} … {axis.high!r}" for axis in (_region.x, _region.y)
    )
    mo.Html(
        f"<div><span data-testid='cost'>{_words}</span> {_gauge}<br>"
        f"<small data-testid='region'>{_ends}</small></div>"
    )
    return (inner,)


@app.cell(hide_code=True)
def actions(control, inner, view):
    _why = "" if control else "open with --allow-control to start or stop runs"
    _ready = inner is not None and (control or inner.store is not None)
    zoom_in = mo.ui.run_button(label="zoom in", disabled=not _ready, tooltip=_why)
    start = mo.ui.run_button(label="compute", disabled=not control, tooltip=_why)
    cancel = mo.ui.run_button(label="cancel", disabled=not control, tooltip=_why)
    mo.hstack([zoom_in, start, cancel], justify="start")
    return cancel, start, zoom_in


@app.cell(hide_code=True)
def canvas(view):
    # Built once per view. Whoever repaints names `raw`; naming `heat` would run on every drag.
    raw = explore.widget(ROOT, view)
    heat = mo.ui.anywidget(raw)
    heat
    return heat, raw


@app.cell(hide_code=True)
def painting(palette, quantity, raw, view):
    explore.keep_painted(raw, ROOT, view, quantity.value, palette.value)
    return


@app.cell(hide_code=True)
def acting(cancel, control, go, inner, start, view, zoom_in):
    if zoom_in.value and inner is not None:
        go(explore.begin(inner) if control else inner)
    elif start.value and control:
        go(explore.begin(view))
    elif cancel.value and control:
        engine.stop(view.path)
    return


@app.cell(hide_code=True)
def loss_curves(heat, view):
    mo.stop(not heat.point, mo.md("*Click a point of the map to train it again and see its loss.*"))
    _frame = explore.curves(view, *heat.point)
    _labels, _colours = [o.name for o in Outcome], list(figures.PALETTES["split"].outcomes)
    _chart = (
        alt.Chart(_frame)
        .mark_line(clip=True)
        .encode(
            x=alt.X("step:Q", title="step"),
            y=alt.Y("loss:Q", title="loss", scale=alt.Scale(type="log")),
            color=alt.Color("outcome:N", scale=alt.Scale(domain=_labels, range=_colours)),
            detail="run:N",
            size=alt.condition("datum.run == 'here'", alt.value(3), alt.value(1)),
            tooltip=["run", "outcome", "step", "loss"],
        )
        .properties(height=260, width="container")
    )
    mo.ui.altair_chart(_chart, chart_selection=False, legend_selection=False)
    return


if __name__ == "__main__":
    app.run()
