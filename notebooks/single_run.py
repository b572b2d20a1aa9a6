"""Train one point, watch its loss as it comes, and lay it beside other single runs."""

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="full", app_title="fractal single run", html_head_file="head.html")

with app.setup(hide_code=True):
    import html
    from pathlib import Path

    import marimo as mo

    from fractal_core import Refused, curves, explore, forms, planner, singles
    from fractal_core.control import ask_to_stop
    from fractal_core.single import Watch

    ROOT = Path("runs")


@app.cell(hide_code=True)
def title():
    mo.md("""
    # One run, watched
    Choose a point and settings, train it in a process of its own, and see the loss as it comes:
    a tiny network or a language model. What it came to is kept, and laid beside the others.
    """)
    return


@app.cell(hide_code=True)
def navigation():
    query = mo.query_params()
    control = explore.may_control(mo.app_meta().mode)
    why = "" if control else explore.CLOSED
    get_address, set_address = mo.state(forms.address(ROOT))
    get_trouble, set_trouble = mo.state("")

    def go(name):
        """Show a single run, or the form; the address is all that the notebook remembers."""
        for _key in ("run", "x", "y"):
            if _key in query:
                query.remove(_key)
        if name:
            query.set("run", name)
        set_trouble("")
        set_address({"run": name} if name else {})

    attempt = forms.attempting(set_trouble)

    return attempt, control, get_address, get_trouble, go, why


@app.cell(hide_code=True)
def current(get_address):
    run, origin, _wrong = None, None, ""
    try:
        origin = singles.from_address(ROOT, get_address())
        if origin is None and get_address().get("run"):
            run = singles.open_single(ROOT, get_address()["run"])
    except Refused as _error:
        _wrong = str(_error)
    mo.callout(_wrong, kind="warn") if _wrong else None
    return origin, run


@app.cell(hide_code=True)
def refused(get_trouble):
    mo.callout(get_trouble(), kind="warn") if get_trouble() else None
    return


@app.cell(hide_code=True)
def side(run):
    _names = singles.names(ROOT)
    _now = run.name if run and run.name in _names else None
    opened = mo.ui.dropdown(_names, value=_now, label="run", searchable=True, full_width=True)
    fresh = mo.ui.run_button(label="choose another point", disabled=run is None)
    over = mo.ui.radio(["loss", "ratio"], value="loss", label="**compare by**")
    mo.sidebar([mo.md("### Single run"), opened, fresh, over], width="15rem")
    return fresh, opened, over


@app.cell(hide_code=True)
def choosing(fresh, go, opened, run):
    if fresh.value:
        go("")
    elif opened.value and (run is None or opened.value != run.name):
        go(opened.value)
    return


@app.cell(hide_code=True)
def what(origin):
    preset = mo.ui.dropdown(
        planner.PRESETS, value="tanh", label="experiment", disabled=origin is not None
    )
    return (preset,)


@app.cell(hide_code=True)
def changes():
    get_change, changed = mo.state(None)
    return changed, get_change


@app.cell(hide_code=True)
def inputs(changed, origin, preset):
    begun = origin or singles.from_preset(preset.value)
    x, y = (
        mo.ui.text(planner.text_of(value), label=axis)
        for axis, value in zip(begun.experiment.axes, begun.point, strict=True)
    )
    settings = forms.settings(begun.experiment, changed, without=begun.experiment.axes)
    seed = mo.ui.number(0, 2**31, value=begun.seed, label="seed")
    samples = mo.ui.number(0, 50, value=5, label="questions answered before and after")
    look = mo.ui.number(1, 10**6, value=200, label="steps between looks at the validation loss")
    # Laid out where they are made: a cell that names them would draw them anew while one types.
    _from = mo.Html(f"from the map <b>{html.escape(origin.label)}</b>") if origin else preset
    _watch = (samples, look) if singles.answers(begun.experiment) else ()
    fields = forms.of_settings(settings, (_from, x, y, seed, *_watch))
    return begun, fields, look, samples, seed, settings, x, y


@app.cell(hide_code=True)
def form(fields, run):
    fields if run is None else None
    return


@app.cell(hide_code=True)
def asking(begun, seed, settings, x, y):
    def asked():
        """The run that the fields ask for at this moment."""
        _changes = planner.changed(begun.experiment, settings.value)
        return singles.planned(begun, x.value, y.value, seed.value or 0, _changes)

    return (asked,)


@app.cell(hide_code=True)
def noted(asked, get_change, run):
    mo.stop(run is not None)
    get_change()
    try:
        _words = "".join(f"note: {html.escape(note)}<br>" for note in planner.notes(asked()))
    except Refused as _error:
        _words = html.escape(f"cannot be done: {_error}")
    mo.Html(f"<div data-testid='plan'>{_words}</div>") if _words else None
    return


@app.cell(hide_code=True)
def naming(control, get_address, why):
    get_address()
    name, start, start_fields = forms.beginning("train it", control, why)
    return name, start, start_fields


@app.cell(hide_code=True)
def starting_form(run, start_fields):
    start_fields if run is None else None
    return


@app.cell(hide_code=True)
def starting(asked, attempt, begun, control, go, look, name, samples, start):
    if start.value and control:
        _watch = Watch(eval_every=look.value or 200, samples=samples.value or 0)
        attempt(lambda: go(singles.begin(ROOT, name.value, begun.label, asked(), _watch)))
    return


@app.cell(hide_code=True)
def ticking(run):
    tick = mo.ui.refresh(options=["1s", "5s", "30s"], default_interval="1s")
    # Two states, so that a longer curve rebuilds no button and no table.
    get_phase, set_phase = mo.state(run.phase if run is not None else "")
    get_size, set_size = mo.state(run.size if run is not None else 0)
    return get_phase, get_size, set_phase, set_size, tick


@app.cell(hide_code=True)
def looking(get_phase, get_size, run, set_phase, set_size, tick):
    mo.stop(run is None)
    tick
    if (_size := run.size) != get_size():
        set_size(_size)
    if (_phase := run.phase) != get_phase():
        set_phase(_phase)
    return


@app.cell(hide_code=True)
def outcome(get_phase, run):
    mo.stop(run is None)
    _state = get_phase()
    _words = mo.Html(
        f"<div><b data-testid='name'>{html.escape(run.name)}</b> · <span data-testid='state'>{_state}</span>"
        f"<br><span data-testid='reason'>{html.escape(singles.reason(run))}</span></div>"
    )
    _log = mo.accordion({"What its process said": mo.plain_text(run.last_words or "nothing")})
    mo.vstack([_words, _log] if _state == "broken off" else [_words])
    return


@app.cell(hide_code=True)
def steering(control, get_phase, why):
    _phase = get_phase()
    stop = mo.ui.run_button(label="stop", disabled=_phase != "training" or not control, tooltip=why)
    again = mo.ui.run_button(
        label="train it again", disabled=_phase != "broken off" or not control, tooltip=why
    )
    return again, stop


@app.cell(hide_code=True)
def steering_line(again, run, stop, tick):
    forms.line(stop, again, tick) if run is not None else None
    return


@app.cell(hide_code=True)
def acting(again, attempt, control, run, stop):
    # A click may have been on its way when the page left the run.
    mo.stop(run is None)
    if stop.value and control:
        attempt(lambda: ask_to_stop(run.store.path))
    elif again.value and control:
        attempt(lambda: singles.resume(run))
    return


@app.cell(hide_code=True)
def remembered():
    # A plain list: the table is made anew when a run ends, and what was selected stays so.
    selected = []
    return (selected,)


@app.cell(hide_code=True)
def others(get_phase, selected):
    def _keep(rows):
        selected[:] = rows["run"]

    get_phase()
    _all = singles.table(singles.opened(ROOT, singles.names(ROOT)))
    _again = [row for row, name in enumerate(_all["run"]) if name in selected]
    compared = forms.runs(_all, initial_selection=_again, on_change=_keep)
    return (compared,)


@app.cell(hide_code=True)
def curve(compared, get_size, over, run):
    mo.stop(run is None)
    get_size()
    _wanted = [name for name in compared.value["run"] if name != run.name]
    _frame = singles.curves([run, *singles.opened(ROOT, _wanted)])
    _seen = int((_frame["run"] == run.name).sum())
    mo.vstack(
        [
            forms.shown(curves.loss_chart(_frame, over.value)),
            mo.Html(f"<small data-testid='points' data-points='{_seen}'>{_seen:,} losses</small>"),
        ]
    )
    return


@app.cell(hide_code=True)
def learning_rates(get_size, run):
    mo.stop(run is None)
    get_size()
    forms.shown(curves.rate_chart(singles.rates(run)))
    return


@app.cell(hide_code=True)
def answers(get_phase, run):
    mo.stop(run is None or get_phase() != "complete" or not run.samples)
    mo.vstack(
        [
            mo.md("**Questions of the validation set, before and after**"),
            forms.table(singles.sample_table(run), selection=None, wrapped_columns=singles.SAMPLES),
        ]
    )
    return


@app.cell(hide_code=True)
def kept(run):
    mo.stop(run is None)
    _line = html.escape(singles.line(run.store.path, run.store.sweep))
    mo.Html(
        f"<b>Kept</b> in {html.escape(str(run.store.path))}; the same run anywhere else:"
        f"<pre data-testid='command' style='white-space:pre-wrap'>{_line}</pre>"
    )
    return


@app.cell(hide_code=True)
def comparison(compared, run):
    mo.stop(run is None)
    mo.vstack(
        [mo.md("**All single runs.** Select some, and their curves join the one above."), compared]
    )
    return


if __name__ == "__main__":
    app.run()
