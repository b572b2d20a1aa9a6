"""Drag a rectangle on a map of trainability, look closer, drag again."""

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="full", app_title="fractal zoom", html_head_file="head.html")

with app.setup(hide_code=True):
    from pathlib import Path

    import marimo as mo

    from fractal_core import PRESETS, Refused, curves, explore, figures, forms, portrait
    from fractal_core.experiments import TUNING

    ROOT = Path("runs")


@app.cell(hide_code=True)
def title():
    mo.md("""
    # Where does training stop working?
    Every cell is one training run, at the two hyperparameters of its place: blue ones learned,
    orange ones did not, dark is near the border. **Drag** a rectangle to zoom, **click** a point
    for its loss curve, **Escape** clears.
    """)
    return


@app.cell(hide_code=True)
def navigation():
    query = mo.query_params()
    control = explore.may_control(mo.app_meta().mode)
    get_address, set_address = mo.state(forms.address(ROOT))
    get_history, set_history = mo.state(((), ()))
    get_trouble, set_trouble = mo.state("")

    def turn_to(there, past, future):
        """Show an address; it is the only thing that the notebook remembers."""
        for _key in set(query.to_dict()) - set(there):
            query.remove(_key)
        for _key, _value in there.items():
            query.set(_key, _value)
        set_history((past, future))
        set_trouble("")
        set_address(there)

    def go(view, preset=""):
        """Show a view; back leads to the one before."""
        turn_to(explore.address(view, preset), (*get_history()[0], get_address()), ())

    attempt = forms.attempting(set_trouble)

    return attempt, control, get_address, get_history, get_trouble, go, turn_to


@app.cell(hide_code=True)
def current(get_address):
    try:
        view, _wrong = explore.from_address(ROOT, get_address()), ""
    except Refused as _error:
        view, _wrong = explore.from_address(ROOT, {}), str(_error)
    mo.callout(_wrong, kind="warn") if _wrong else None
    return (view,)


@app.cell(hide_code=True)
def refused(get_trouble):
    mo.callout(get_trouble(), kind="warn") if get_trouble() else None
    return


@app.cell(hide_code=True)
def settings(view):
    _now = explore.chosen(view)
    _grids = {str(n): n for n in sorted({16, 32, 64, 128, 256, 512, _now["grid"]})}
    preset = mo.ui.dropdown([*PRESETS, *TUNING], value=_now["preset"], label="condition")
    window = mo.ui.dropdown(["overview", "published"], value=_now["window"], label="window")
    grid = mo.ui.dropdown(_grids, value=str(_now["grid"]), label="grid")
    steps = mo.ui.number(min(21, _now["steps"]), 10**6, value=_now["steps"], label="steps")
    _kinds = ["float64", "float32", "bfloat16", "float16"]
    dtype = mo.ui.dropdown(_kinds, value=_now["dtype"], label="precision")
    choose = mo.ui.run_button(label="show")
    # Shown as a list: a cell that names one of them would draw all anew while one types.
    map_fields = [preset, window, grid, steps, dtype, choose]
    return choose, dtype, grid, map_fields, preset, steps, window


@app.cell(hide_code=True)
def colours():
    quantity = mo.ui.radio(list(figures.QUANTITIES), value="measure", label="**colour**")
    palette = mo.ui.radio(["split", "paper"], value="split", label="**palette**")
    colour_fields = [quantity, palette]
    return colour_fields, palette, quantity


@app.cell(hide_code=True)
def side(colour_fields, map_fields):
    mo.sidebar([mo.md("### Map"), *map_fields, *colour_fields], width="18rem")
    return


@app.cell(hide_code=True)
def choosing(attempt, choose, dtype, go, grid, preset, steps, window):
    mo.stop(not choose.value)
    attempt(
        lambda: go(
            explore.preset_view(
                ROOT,
                preset.value,
                published=window.value == "published",
                grid=grid.value,
                steps=None if steps.value is None else int(steps.value),
                dtype=dtype.value,
            ),
            preset.value,
        )
    )
    return


@app.cell(hide_code=True)
def places(control, get_history, view):
    _past, _future = get_history()
    back = mo.ui.run_button(label="←\u00a0back", disabled=not _past and view.parent is None)
    forward = mo.ui.run_button(label="forward\u00a0→", disabled=not _future)
    place = mo.ui.dropdown(explore.places(ROOT), label="places")
    opened = mo.ui.dropdown(explore.maps(ROOT), label="runs", searchable=True)
    mark = mo.ui.text(placeholder="name this view")
    _kept = view.name in explore.bookmarks(ROOT).values()
    keep = mo.ui.run_button(label="bookmark", disabled=view.store is None or not control)
    drop = mo.ui.run_button(label="forget", disabled=not _kept or not control)
    forms.line(back, forward, place, opened, mark, keep, drop)
    return back, drop, forward, keep, mark, opened, place


@app.cell(hide_code=True)
def moving(back, forward, get_address, get_history, turn_to, view):
    # A second click may have been on its way when the first led to the end.
    _past, _future = get_history()
    if back.value and (_past or view.parent is not None):
        _before = _past[-1] if _past else {"run": view.parent.name}
        turn_to(_before, _past[:-1], (get_address(), *_future))
    elif forward.value and _future:
        turn_to(_future[0], (*_past, get_address()), _future[1:])
    return


@app.cell(hide_code=True)
def opening(attempt, go, opened):
    # Apart from the places: one that cannot be opened stays chosen, and is not to be tried again.
    if opened.value:
        attempt(lambda: go(explore.open_view(ROOT, opened.value)))
    return


@app.cell(hide_code=True)
def going(attempt, go, place):
    if place.value:
        _preset = place.value.get("preset", "")
        attempt(lambda: go(explore.from_address(ROOT, place.value), _preset))
    return


@app.cell(hide_code=True)
def marking(attempt, control, drop, get_address, get_history, keep, mark, turn_to, view):
    mo.stop(not control or not (keep.value or drop.value))

    def _mark():
        if keep.value:
            explore.bookmark(ROOT, mark.value.strip() or view.name, view.name)
        else:
            explore.forget(ROOT, view.name)
        turn_to(get_address(), *get_history())

    attempt(_mark)
    return


@app.cell(hide_code=True)
def phase(view):
    get_phase, set_phase = mo.state(portrait.phase(view))

    def tell(now):
        """What hangs on the phase runs when it changes, and not whenever somebody looks."""
        if now != get_phase():
            set_phase(now)

    return get_phase, tell


@app.cell(hide_code=True)
def selection(heat, view):
    inner, trouble = portrait.selected(ROOT, view, heat.roi)
    return inner, trouble


@app.cell(hide_code=True)
def price(get_phase, inner, trouble, view):
    # Apart from the selection, or "zoom in" would be made anew when a run ends, and lose a click.
    get_phase()
    mo.Html(portrait.price(view, inner, trouble))
    return


@app.cell(hide_code=True)
def closer(control, inner):
    _ready = inner is not None and (control or inner.store is not None)
    zoom_in = mo.ui.run_button(
        label="zoom in", disabled=not _ready, tooltip="" if control else explore.CLOSED
    )
    return (zoom_in,)


@app.cell(hide_code=True)
def working(control, get_phase):
    # Made anew only when what they can do changes; a click on one that is just replaced is lost.
    _why, _now = "" if control else explore.CLOSED, get_phase()
    _can_start = control and _now in ("not begun", "stopped")
    start = mo.ui.run_button(label="compute", disabled=not _can_start, tooltip=_why)
    cancel = mo.ui.run_button(
        label="cancel", disabled=not control or _now != "running", tooltip=_why
    )
    return cancel, start


@app.cell(hide_code=True)
def actions(cancel, start, zoom_in):
    mo.hstack([zoom_in, start, cancel], justify="start")
    return


@app.cell(hide_code=True)
def canvas(view):
    # Built once per view. Whoever repaints names `raw`; naming `heat` would run on every drag.
    raw = portrait.widget(ROOT, view)
    heat = mo.ui.anywidget(raw)
    None if forms.exported() else heat
    return heat, raw


@app.cell(hide_code=True)
def painting(palette, quantity, raw, tell, view):
    portrait.keep_painted(raw, ROOT, view, quantity.value, palette.value, tell)
    _still = forms.exported() and portrait.still(view, quantity.value, palette.value)
    mo.image(_still, alt=view.name, width=640) if _still else None
    return


@app.cell(hide_code=True)
def zooming(attempt, control, go, inner, zoom_in):
    if zoom_in.value and inner is not None:
        attempt(lambda: go(explore.begin(inner) if control else inner))
    return


@app.cell(hide_code=True)
def acting(attempt, cancel, control, go, start, view):
    if start.value and control:
        attempt(lambda: go(explore.begin(view)))
    elif cancel.value and control:
        attempt(lambda: explore.cancel(view))
    return


@app.cell(hide_code=True)
def loss_curves(heat, view):
    mo.stop(not heat.point, mo.md("*Click a point of the map to see its loss.*"))
    _frame = portrait.curves(view, *heat.point)
    mo.stop(_frame.empty, mo.md("*That point is not trained yet.*"))
    forms.shown(curves.neighbours_chart(_frame))
    return


if __name__ == "__main__":
    app.run()
