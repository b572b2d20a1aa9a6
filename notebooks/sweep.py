"""Plan a sweep, see what it costs, start it, and watch it from anywhere."""

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="full", app_title="fractal sweep")

with app.setup(hide_code=True):
    import html
    from pathlib import Path

    import marimo as mo

    from fractal_core import (
        Refused,
        explore,
        figures,
        planner,
        portrait,
        singles,
        watching,
    )

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
    leave = "" if control else "open with --allow-control to start or stop runs"
    get_address, set_address = mo.state(query.get("run") or "")
    get_trouble, set_trouble = mo.state("")

    def go(name):
        """Show a run, or the form; the address is all that the notebook remembers."""
        if name:
            query.set("run", name)
        elif "run" in query:
            query.remove("run")
        set_trouble("")
        set_address(name)

    def attempt(action):
        """Do something, or say in a sentence why it cannot be done."""
        try:
            set_trouble("")
            action()
        except (Refused, OSError) as error:
            set_trouble(str(error))

    return attempt, control, get_address, get_trouble, go, leave


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
    _maps = [name for name in explore.runs(ROOT) if name not in singles.names(ROOT)]
    _now = get_address() if get_address() in _maps else None
    opened = mo.ui.dropdown(_maps, value=_now, label="run", searchable=True)
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
    return preset, window


@app.cell(hide_code=True)
def moved(preset):
    base = planner.configured(preset.value)
    _names = planner.axis_names(base)
    xname = mo.ui.dropdown(_names, value=base.axes[0], label="x is")
    yname = mo.ui.dropdown(_names, value=base.axes[1], label="y is")
    settings = mo.ui.dictionary(
        {
            choice.name: mo.ui.dropdown(choice.options, value=choice.value, label=choice.name)
            if choice.options
            else mo.ui.text(choice.value, label=choice.name)
            for choice in planner.choices(base)
        }
    )
    return base, settings, xname, yname


@app.cell(hide_code=True)
def where(base, preset, window, xname, yname):
    _ends = planner.ends_as_text(preset.value, (xname.value, yname.value), window.value)
    bounds = mo.ui.array(
        [
            mo.ui.text(text, label=f"{axis} {end}")
            for axis, pair in zip("xy", _ends, strict=True)
            for end, text in zip(("from", "to"), pair, strict=True)
        ]
    )
    xscale = mo.ui.dropdown(["log10", "linear"], value="log10", label="scale")
    yscale = mo.ui.dropdown(["log10", "linear"], value="log10", label="scale")
    _edge = planner.usual_edge(base)
    rows = mo.ui.number(1, 16384, value=_edge, label="rows")
    cols = mo.ui.number(1, 16384, value=_edge, label="columns")
    seed = mo.ui.number(0, 2**31, value=0, label="seed")
    return bounds, cols, rows, seed, xscale, yscale


@app.cell(hide_code=True)
def crew(base, view):
    _here = planner.devices(view.sweep.experiment if view is not None else base)
    devices = mo.ui.multiselect(_here, value=_here, label="devices")
    each = mo.ui.number(0, 1024, value=0, label="workers on each (0: as many as suit)")
    return devices, each


@app.cell(hide_code=True)
def form(
    bounds, cols, devices, each, preset, rows, seed, settings, view, window, xname, xscale, yname,
    yscale,
):  # fmt: skip
    mo.stop(view is not None)
    _main = [settings[name] for name in (*planner.LENGTHS, "dtype") if name in settings.value]
    _rest = mo.hstack(list(settings.elements.values()), wrap=True, justify="start")

    def _line(*elements):
        return mo.hstack(elements, justify="start", align="end", wrap=True)

    mo.vstack(
        [
            _line(preset, window, *_main),
            _line(xname, xscale, bounds[0], bounds[1]),
            _line(yname, yscale, bounds[2], bounds[3]),
            _line(cols, rows, seed),
            _line(devices, each),
            mo.accordion({"All settings": _rest}),
        ]
    )
    return


@app.cell(hide_code=True)
def asked(
    base, bounds, cols, devices, each, preset, rows, seed, settings, view, xname, xscale, yname,
    yscale,
):  # fmt: skip
    mo.stop(view is not None)
    options = planner.options(devices.value, each.value)
    try:
        _axes = (xname.value, yname.value)
        plan = planner.recipe(
            preset.value,
            axes=None if _axes == base.axes else _axes,
            x=planner.ends(xname.value, *bounds.value[:2]),
            y=planner.ends(yname.value, *bounds.value[2:]),
            scale=(xscale.value, yscale.value),
            grid=(rows.value, cols.value),
            seed=seed.value,
            settings=planner.changed(base, settings.value),
        )
        _places = planner.places(plan, devices.value, each.value)
        _cost = planner.cost(plan, _places, ROOT)
        _words = watching.cost_in_words(_cost, _places)
        _notes = "".join(f"<br>note: {html.escape(note)}" for note in _cost.notes)
    except Refused as _error:
        plan, _words, _notes = None, f"cannot be done: {_error}", ""
    mo.Html(f"<div><b data-testid='cost'>{html.escape(_words)}</b>{_notes}</div>")
    return options, plan


@app.cell(hide_code=True)
def starting_form(control, leave, plan):
    name = mo.ui.text(placeholder="name (or leave it out)")
    start = mo.ui.run_button(
        label="start the sweep", kind="success", disabled=plan is None or not control, tooltip=leave
    )
    mo.hstack([name, start], justify="start")
    return name, start


@app.cell(hide_code=True)
def starting(attempt, control, go, name, options, plan, preset, start):
    if start.value and control and plan is not None:
        attempt(lambda: go(watching.begin(ROOT, name.value, preset.value, plan, options)))
    return


@app.cell(hide_code=True)
def heading(view):
    mo.stop(view is None)
    _x, _y = view.sweep.region.x, view.sweep.region.y
    _up = f" · inside [{view.parent.name}](?run={view.parent.name})" if view.parent else ""
    _in = " · zooms: " + ", ".join(
        f"[{name}](?run={name})" for name, _ in explore.children(ROOT, view)
    )
    mo.md(
        f"**{view.name}** · {watching.recipe_in_words(view.sweep)}{_up}"
        f"{_in if _in[-2:] != ': ' else ''}\n\n"
        f"<small data-testid='region'>{_x.name} {planner.text_of(_x.low)} … "
        f"{planner.text_of(_x.high)} · {_y.name} {planner.text_of(_y.low)} … "
        f"{planner.text_of(_y.high)}</small>"
    )
    return


@app.cell(hide_code=True)
def ticking(view):
    mo.stop(view is None)
    tick = mo.ui.refresh(options=["1s", "5s", "30s"], default_interval="1s")
    meter = watching.Meter()
    get_state, set_state = mo.state("")
    get_failed, set_failed = mo.state(())
    return get_failed, get_state, meter, set_failed, set_state, tick


@app.cell(hide_code=True)
def looking(get_failed, get_state, meter, set_failed, set_state, tick, view):
    tick
    _now = watching.glance(view.store, meter)
    if _now.state != get_state():
        set_state(_now.state)
    if _now.failures != get_failed():
        set_failed(_now.failures)
    _tables = [
        mo.Html(f"<div data-testid='{name}'>{watching.as_html(frame)}</div>")
        for name, frame in (("slots", _now.slots), ("gpus", _now.gpus))
        if len(frame)
    ]
    mo.vstack([mo.Html(watching.headline(_now)), *_tables, tick])
    return


@app.cell(hide_code=True)
def steering(control, get_state, leave, view):
    mo.stop(view is None)
    _busy = get_state() in ("running", "stopping")
    _ends = "end now" if get_state() == "stopping" else "stop"
    stop = mo.ui.run_button(label=_ends, disabled=not (_busy and control), tooltip=leave)
    resume = mo.ui.run_button(
        label="resume",
        disabled=_busy or get_state() == "complete" or not control,
        tooltip=leave,
    )
    return resume, stop


@app.cell(hide_code=True)
def steering_line(devices, each, resume, stop):
    mo.hstack([stop, resume, devices, each], justify="start", align="end", wrap=True)
    return


@app.cell(hide_code=True)
def acting(attempt, control, devices, each, resume, stop, tick, view):
    if stop.value and control:
        attempt(lambda: watching.stop(view.store))
    elif resume.value and control:
        _options = planner.options(devices.value, each.value)
        attempt(lambda: watching.resume(view.store, _options))
    return


@app.cell(hide_code=True)
def failing(get_failed, view):
    mo.stop(view is None or not get_failed())
    _log = "".join(
        f"<details {'' if n else 'open'}><summary>{html.escape(failure.cause)}</summary>"
        f"<pre data-testid='log-tail' style='max-height:16rem;overflow:auto'>"
        f"{html.escape(failure.log.strip() or 'it said nothing')}</pre></details>"
        for n, failure in enumerate(get_failed())
    )
    mo.vstack(
        [
            mo.md("**What failed, by cause**"),
            mo.ui.table(watching.failure_table(get_failed()), selection=None, show_download=False),
            mo.Html(f"<div data-testid='failures'>{_log}</div>"),
        ]
    )
    return


@app.cell(hide_code=True)
def canvas(view):
    # Built once per run. Whoever repaints names `raw`; naming `heat` would run on every drag.
    mo.stop(view is None)
    raw = portrait.widget(ROOT, view)
    heat = mo.ui.anywidget(raw)
    heat
    return heat, raw


@app.cell(hide_code=True)
def painting(palette, quantity, raw, view):
    portrait.keep_painted(raw, ROOT, view, quantity.value, palette.value)
    return


@app.cell(hide_code=True)
def closer_form(view):
    mo.stop(view is None)
    inner_rows = mo.ui.number(1, 16384, value=view.sweep.grid.shape[0], label="rows")
    inner_cols = mo.ui.number(1, 16384, value=view.sweep.grid.shape[1], label="columns")
    return inner_cols, inner_rows


@app.cell(hide_code=True)
def closer(control, devices, each, heat, inner_cols, inner_rows, leave, view):
    try:
        _places = planner.places(view.sweep, devices.value, each.value)
        inner, _words = (
            None,
            "Drag a rectangle to sweep it closer, click a point to train it alone.",
        )
        if heat.roi:
            inner = watching.inside(view, heat.roi, inner_rows.value, inner_cols.value)
            _words = watching.cost_in_words(planner.cost(inner, _places, ROOT), _places)
        elif heat.point:
            _words = watching.lone_point(view, *heat.point)
    except Refused as _error:
        inner, _words = None, f"cannot zoom there: {_error}"
    zoom_in = mo.ui.run_button(
        label="sweep the rectangle", disabled=inner is None or not control, tooltip=leave
    )
    mo.vstack(
        [
            mo.Html(f"<span data-testid='selection'>{html.escape(_words)}</span>"),
            mo.hstack([inner_rows, inner_cols, zoom_in], justify="start", align="end"),
        ]
    )
    return inner, zoom_in


@app.cell(hide_code=True)
def zooming(attempt, control, devices, each, go, inner, view, zoom_in):
    if zoom_in.value and control and inner is not None:
        _options = planner.options(devices.value, each.value)
        _label = watching.label_of(view.name)
        attempt(lambda: go(watching.begin(ROOT, "", _label, inner, _options, view.name)))
    return


if __name__ == "__main__":
    app.run()
