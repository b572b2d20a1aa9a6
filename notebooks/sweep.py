"""Plan a sweep, see what it costs, start it, and watch it from anywhere."""

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="full", app_title="fractal sweep", html_head_file="head.html")

with app.setup(hide_code=True):
    from pathlib import Path

    import marimo as mo

    from fractal_core import Refused, explore, figures, forms, planner, portrait, watching
    from fractal_core.control import ask_to_stop
    from fractal_core.heatmap import Heatmap

    ROOT = Path("runs")


@app.cell(hide_code=True)
def title():
    mo.md("""
    # Sweep a plane of hyperparameters
    Choose what is trained and where, look at the cost, start. The work is a process of its own:
    close this page, restart it or open its address elsewhere, and the sweep goes on.
    """)
    return


@app.cell(hide_code=True)
def navigation():
    query = mo.query_params()
    control = explore.may_control(mo.app_meta().mode)
    why = "" if control else explore.CLOSED
    get_address, set_address = mo.state(forms.address(ROOT).get("run", ""))
    get_trouble, set_trouble = mo.state("")

    def go(name):
        """Show a run, or the form; the address is all that the notebook remembers."""
        if name:
            query.set("run", name)
        elif "run" in query:
            query.remove("run")
        set_trouble("")
        set_address(name)

    attempt = forms.attempting(set_trouble)

    return attempt, control, get_address, get_trouble, go, why


@app.cell(hide_code=True)
def current(get_address):
    try:
        view, _wrong = explore.open_view(ROOT, get_address()) if get_address() else None, ""
    except Refused as _error:
        view, _wrong = None, str(_error)
    mo.callout(_wrong, kind="warn") if _wrong else None
    return (view,)


@app.cell(hide_code=True)
def refused(get_trouble):
    mo.callout(get_trouble(), kind="warn") if get_trouble() else None
    return


@app.cell(hide_code=True)
def side(get_address):
    _maps = explore.maps(ROOT)
    _now = get_address() if get_address() in _maps else None
    opened = mo.ui.dropdown(_maps, value=_now, label="run", searchable=True, full_width=True)
    fresh = mo.ui.run_button(label="plan a new sweep", disabled=not get_address())
    quantity = mo.ui.radio(list(figures.QUANTITIES), value="measure", label="**colour**")
    palette = mo.ui.radio(["split", "paper"], value="split", label="**palette**")
    mo.sidebar([mo.md("### Sweep"), opened, fresh, quantity, palette], width="15rem")
    return fresh, opened, palette, quantity


@app.cell(hide_code=True)
def choosing(fresh, get_address, go, opened):
    if fresh.value:
        go("")
    elif opened.value and opened.value != get_address():
        go(opened.value)
    return


@app.cell(hide_code=True)
def what():
    preset = mo.ui.dropdown(planner.PRESETS, value="tanh", label="experiment")
    window = mo.ui.dropdown(["overview", "published"], value="overview", label="window")
    # Laid out where they are made, or passed on as a list: a cell that names one of them would draw
    # all anew while one types.
    what_fields = (preset, window)
    return preset, what_fields, window


@app.cell(hide_code=True)
def changes():
    get_change, changed = mo.state(None)
    return changed, get_change


@app.cell(hide_code=True)
def moved(changed, preset, what_fields):
    base = planner.configured(preset.value)
    _names = planner.axis_names(base)
    x_axis, y_axis = (
        mo.ui.dropdown(_names, value=name, label=f"{axis} is")
        for axis, name in zip("xy", base.axes, strict=True)
    )
    axes_fields = (x_axis, y_axis)
    settings = forms.settings(base, changed)
    settings_fields = forms.of_settings(settings, what_fields)
    return axes_fields, base, settings, settings_fields, x_axis, y_axis


@app.cell(hide_code=True)
def where(axes_fields, changed, preset, window, x_axis, y_axis):
    plane = forms.plane(preset.value, (x_axis.value, y_axis.value), window.value, changed)
    plane_fields = forms.of_plane(axes_fields, plane)
    return plane, plane_fields


@app.cell(hide_code=True)
def hands(base, view):
    devices, workers = forms.crew(view.sweep.experiment if view is not None else base)
    crew_fields = forms.line(devices, workers)
    return crew_fields, devices, workers


@app.cell(hide_code=True)
def form(crew_fields, plane_fields, settings_fields, view):
    mo.vstack([settings_fields, plane_fields, crew_fields]) if view is None else None
    return


@app.cell(hide_code=True)
def asking(plane, preset, settings, x_axis, y_axis):
    def asked():
        """The sweep that the fields ask for at this moment."""
        _axes = (x_axis.value, y_axis.value)
        return planner.chosen(preset.value, _axes, plane.value, settings.value)

    return (asked,)


@app.cell(hide_code=True)
def cost(asked, devices, get_change, view, workers):
    mo.stop(view is not None)
    get_change()
    mo.Html(watching.noted("cost", *watching.price(ROOT, asked, (devices.value, workers.value))))
    return


@app.cell(hide_code=True)
def naming(control, get_address, why):
    get_address()
    name, start, start_fields = forms.beginning("start the sweep", control, why)
    return name, start, start_fields


@app.cell(hide_code=True)
def starting_form(start_fields, view):
    start_fields if view is None else None
    return


@app.cell(hide_code=True)
def starting(asked, attempt, control, devices, go, name, preset, start, workers):
    if start.value and control:
        _options = planner.options(devices.value, workers.value)
        attempt(lambda: go(watching.begin(ROOT, name.value, preset.value, asked(), _options)))
    return


@app.cell(hide_code=True)
def heading(view):
    mo.stop(view is None)
    mo.Html(watching.heading(ROOT, view))
    return


@app.cell(hide_code=True)
def ticking(view):
    # Made anew for every run, and whether there is one or not: only cells that nothing hangs on
    # may stop, or an export would call those below it errors.
    view
    tick = mo.ui.refresh(options=["1s", "5s", "30s"], default_interval="1s")
    meter = watching.Meter()
    get_state, set_state = mo.state("")
    get_failed, set_failed = mo.state(())
    return get_failed, get_state, meter, set_failed, set_state, tick


@app.cell(hide_code=True)
def looking(get_failed, get_state, meter, set_failed, set_state, tick, view):
    mo.stop(view is None)
    tick
    _now = watching.glance(view.store, meter)
    if _now.state != get_state():
        set_state(_now.state)
    if _now.failures != get_failed():
        set_failed(_now.failures)
    mo.vstack([mo.Html(watching.panel(_now)), tick])
    return


@app.cell(hide_code=True)
def steering(control, get_state, why):
    _busy = get_state() in ("running", "stopping")
    _ends = "end now" if get_state() == "stopping" else "stop"
    stop = mo.ui.run_button(label=_ends, disabled=not (_busy and control), tooltip=why)
    resume = mo.ui.run_button(
        label="resume",
        disabled=get_state() not in ("stopped", "not begun") or not control,
        tooltip=why,
    )
    return resume, stop


@app.cell(hide_code=True)
def steering_line(crew_fields, resume, stop, view):
    mo.stop(view is None)
    forms.line(stop, resume, crew_fields)
    return


@app.cell(hide_code=True)
def acting(attempt, control, devices, resume, stop, view, workers):
    # A click may have been on its way when the page left the run.
    mo.stop(view is None)
    if stop.value and control:
        attempt(lambda: ask_to_stop(view.path))
    elif resume.value and control:
        _options = planner.options(devices.value, workers.value)
        attempt(lambda: explore.begin(view, _options))
    return


@app.cell(hide_code=True)
def failing(get_failed, view):
    mo.stop(view is None or not get_failed())
    mo.vstack(
        [
            mo.md("**What failed, by cause**"),
            forms.table(watching.failure_table(get_failed()), selection=None),
            mo.Html(watching.logs(get_failed())),
        ]
    )
    return


@app.cell(hide_code=True)
def canvas(view):
    # Built once per run. Whoever repaints names `raw`; naming `heat` would run on every drag.
    raw = portrait.widget(ROOT, view) if view is not None else Heatmap()
    heat = mo.ui.anywidget(raw)
    heat if view is not None and not forms.exported() else None
    return heat, raw


@app.cell(hide_code=True)
def painting(palette, quantity, raw, view):
    mo.stop(view is None)
    portrait.keep_painted(raw, ROOT, view, quantity.value, palette.value)
    _still = forms.exported() and portrait.still(view, quantity.value, palette.value)
    mo.image(_still, alt=view.name, width=640) if _still else None
    return


@app.cell(hide_code=True)
def closer_form(view):
    _rows, _cols = view.sweep.grid.shape if view is not None else (1, 1)
    inner_rows = mo.ui.number(1, forms.LARGEST_EDGE, value=_rows, label="rows")
    inner_cols = mo.ui.number(1, forms.LARGEST_EDGE, value=_cols, label="columns")
    forms.line(inner_rows, inner_cols) if view is not None else None
    return inner_cols, inner_rows


@app.cell(hide_code=True)
def selecting(heat, inner_cols, inner_rows, view):
    def inner():
        """The sweep of the rectangle, as it is at this moment."""
        return explore.inside(view, heat.roi, inner_rows.value, inner_cols.value)

    return (inner,)


@app.cell(hide_code=True)
def selection(devices, heat, inner, view, workers):
    mo.stop(view is None)
    _crew = (devices.value, workers.value)
    _words = watching.selected(ROOT, view, heat.roi, heat.point, inner, _crew)
    mo.Html(watching.noted("selection", *_words))
    return


@app.cell(hide_code=True)
def closer(control, heat, view, why):
    zoom_in = mo.ui.run_button(
        label="sweep the rectangle", disabled=not (heat.roi and control), tooltip=why
    )
    zoom_in if view is not None else None
    return (zoom_in,)


@app.cell(hide_code=True)
def zooming(attempt, control, devices, go, heat, inner, view, workers, zoom_in):
    if zoom_in.value and control and heat.roi:
        _options = planner.options(devices.value, workers.value)
        _label = explore.label_of(view.name)
        attempt(lambda: go(watching.begin(ROOT, "", _label, inner(), _options, view.name)))
    return


if __name__ == "__main__":
    app.run()
