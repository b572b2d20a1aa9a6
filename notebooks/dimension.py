"""Try the estimators of a dimension on known sets, then ask them about a run."""

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="full", app_title="fractal dimension", html_head_file="head.html")

with app.setup(hide_code=True):
    import html
    from pathlib import Path

    import marimo as mo

    from fractal_core import (
        Refused,
        calibration,
        curves,
        explore,
        findings,
        forms,
        measuring,
        pairing,
        seeing,
        sight,
    )
    from fractal_core.outcome import SIDES

    ROOT = Path("runs")

    def said(test_id: str, text: str) -> mo.Html:
        """A line that tests read, whoever wrote it."""
        return mo.Html(f"<div data-testid='{test_id}'>{html.escape(text)}</div>")

    def listed(sentences) -> mo.Html:
        """Sentences, one below the other."""
        return mo.md("\n".join(f"- {sentence}" for sentence in sentences))

    def pair(left, right) -> mo.Html:
        """Two things beside each other, or below each other where it is narrow."""
        return mo.hstack([left, right], widths="equal", wrap=True, gap=1.5)


@app.cell(hide_code=True)
def title():
    mo.md("""
    # How rough is the boundary?
    Two ways of measuring one number. **Boxes** are counted on a map; **pairs** of runs are trained
    at smaller and smaller distances. Both come with a 95 % interval, and with the same
    measurement of things that are not fractal. First, see what they make of sets whose
    dimension is known.
    """)
    return


@app.cell(hide_code=True)
def choosing_a_set():
    known = mo.ui.dropdown(list(calibration.SETS), value="Koch snowflake", label="known set")
    seed = mo.ui.number(0, 999, value=1, label="placed by seed")
    return known, seed


@app.cell(hide_code=True)
def known_sets(known, seed):
    with mo.status.spinner("measuring nine known sets"):
        _table = calibration.table(int(seed.value or 0))
    mo.vstack(
        [
            mo.md("## Known sets"),
            mo.ui.table(_table, selection=None, show_download=False, pagination=False),
            mo.md(
                f"{calibration.GRID} × {calibration.GRID} points for boxes, at most "
                f"{calibration.RUNS:,} for pairs. Graphs of functions are why pairs are measured "
                "as well: box counts read them low at any size that can be computed."
            ),
            mo.hstack([known, seed], justify="start"),
        ]
    )
    return


@app.cell(hide_code=True)
def one_known_set(known, seed):
    _found = calibration.tried(known.value, int(seed.value or 0))
    _judged = calibration.judged(known.value, int(seed.value or 0))
    _picture = mo.image(curves.boundary_png(_found.labels), width=380, alt=known.value)
    mo.vstack(
        [
            said("known", f"{known.value}: true D = {_found.truth:.3f}; {_judged.verdict}"),
            pair(_picture, forms.shown(curves.box_chart(_judged, _found.truth))),
            pair(
                forms.shown(curves.flips_chart(_found.pairs, {}, "sides of the map")),
                forms.shown(curves.pairs_chart(_found.pairs, "sides of the map", _found.truth)),
            ),
            listed(_judged.verdict.evidence),
        ]
    )
    return


@app.cell(hide_code=True)
def choosing_a_run():
    query = mo.query_params()
    control = explore.may_control(mo.app_meta().mode)
    _names = explore.maps(ROOT)
    asked = forms.address(ROOT).get("run", "")
    _asked = asked or (_names[0] if _names else None)
    _now = _asked if _asked in _names else None
    run = mo.ui.dropdown(_names, value=_now, label="run", searchable=True, full_width=True)
    which = mo.ui.radio(list(SIDES), value="trainable", label="**boundary of what is**")
    jitter = mo.ui.number(0.1, 1000, value=10, step=0.1, label="jitter, %")
    tick = mo.ui.refresh(options=["1s", "5s"], default_interval="1s")
    get_news, set_news = mo.state(0)
    get_trouble, set_trouble = mo.state("")
    mo.sidebar([mo.md("### Run"), run, which, jitter, mo.md("news every"), tick], width="15rem")
    return (
        asked,
        control,
        get_news,
        get_trouble,
        jitter,
        query,
        run,
        set_news,
        set_trouble,
        tick,
        which,
    )


@app.cell(hide_code=True)
def opened(asked, query, run):
    _name, store, _words = run.value or asked, None, ""
    if run.value and query.get("run") != run.value:
        query.set("run", run.value)
    try:
        store = explore.open_view(ROOT, _name).store if _name else None
    except Refused as _error:
        _words = str(_error)
    _empty = "There is no run here yet: make a map with `fractal demo`, or in the zoom notebook."
    mo.vstack(
        [
            forms.heading(store.path.name if store else "A run"),
            mo.callout(
                mo.plain_text(_words) if _words else mo.md(_empty),
                kind="warn" if _words else "neutral",
            )
            if store is None
            else said("run", " × ".join(map(str, store.sweep.grid.shape)) + " points"),
        ]
    )
    return (store,)


@app.cell(hide_code=True)
def on_the_map(get_news, jitter, store, which):
    get_news()
    mo.stop(store is None)
    try:
        _whole = findings.so_far(store, which.value, (jitter.value or 10) / 100)
    except Refused as _error:
        mo.stop(True, said("verdict", f"no dimension from boxes: {_error}"))
    _found = _whole.found
    _rows = findings.companions(store, _found, which.value, jitter.value or 10.0)
    _picture = mo.image(curves.boundary_png(_whole.labels), width=380, alt="the boundary")
    mo.vstack(
        [
            said("verdict", f"{_found.verdict}; D from boxes {findings.in_words(_found.box)}"),
            mo.md(_whole.picture.caption),
            pair(_picture, forms.shown(curves.box_chart(_found))),
            pair(
                listed(_found.verdict.evidence),
                mo.ui.table(findings.beside_boxes(_found), selection=None, show_download=False),
            ),
            listed(f"{name + ': ' if name else ''}{text}" for name, text in _rows),
            forms.shown(curves.margin_chart(store.sweep.grid, _found.margin, store.sweep.labels))
            if _found.margin is not None
            else mo.md(""),
        ]
    )
    return


@app.cell(hide_code=True)
def from_pairs(get_news, store, which):
    get_news()
    mo.stop(store is None)
    _rough, _unit = findings.kept(store, which.value), seeing.unit_of(store.sweep.region)
    _nothing = said("pairs", "No pairs have been measured of this boundary.")
    mo.vstack(
        [mo.md("### Pairs")]
        + (
            [_nothing]
            if _rough is None
            else [
                said(
                    "pairs",
                    f"{_rough.verdict}; D from pairs {findings.in_words(_rough.dimension)}",
                ),
                pair(
                    forms.shown(curves.flips_chart(_rough.dimension, _rough.nulls, _unit)),
                    forms.shown(curves.pairs_chart(_rough.dimension, _unit)),
                ),
                pair(
                    listed(_rough.verdict.evidence),
                    mo.ui.table(findings.beside_pairs(_rough), selection=None, show_download=False),
                ),
            ]
        )
    )
    return


@app.cell(hide_code=True)
def from_seeing(get_news, store):
    get_news()
    mo.stop(store is None)
    _seen = sight.seen(store)
    _nothing = said("seeing", "Nobody has looked how far the labels can be trusted.")
    _found = [_nothing]
    if _seen is not None:
        _where = f"points {_seen.where}"
        _table = mo.ui.table(findings.rates(_seen), selection=None, show_download=False)
        _found = [said("seeing", "; ".join([_where, *_seen.sentences[-2:]])), _table]
    mo.vstack([mo.md("### Seeing"), *_found])
    return


@app.cell(hide_code=True)
def asking(control):
    _why = "" if control else explore.CLOSED
    runs = mo.ui.number(500, 10**6, value=8_000, label="at most so many runs")
    bases = mo.ui.dropdown(["focused", "chords"], value="focused", label="base points")
    measure = mo.ui.run_button(label="measure pairs", disabled=not control, tooltip=_why)
    look = mo.ui.run_button(label="measure seeing", disabled=not control, tooltip=_why)
    halt = mo.ui.run_button(label="stop", disabled=not control, tooltip=_why)
    # Laid out where they are made: a cell that names them would draw them anew while one types.
    _line = mo.hstack([bases, runs, measure, look, halt], justify="start", align="end", wrap=True)
    measuring_fields = mo.vstack([mo.md("### Measure"), _line])
    return bases, halt, look, measure, measuring_fields, runs


@app.cell(hide_code=True)
def measuring_form(measuring_fields, store):
    measuring_fields if store else None
    return


@app.cell(hide_code=True)
def price(bases, runs, store, which):
    request = pairing.Request(which.value, bases.value, int(runs.value or 0))
    try:
        _cost = pairing.cost(store, request) if store is not None else ""
        _words = f"{_cost}; what is stored is not trained again"
    except Refused as _error:
        _words = f"pairs cannot be measured: {_error}"
    said("price", _words) if store else None
    return (request,)


@app.cell(hide_code=True)
def acting(control, halt, look, measure, request, set_trouble, store):
    _which = ("--which", request.which)
    _pairs = (*_which, "--runs", str(request.runs), "--bases", request.bases)
    if control and store and (measure.value or look.value or halt.value):
        try:
            set_trouble("")
            if measure.value:
                measuring.begin(store.path, "pairs", _pairs)
            elif look.value:
                measuring.begin(store.path, "seeing", _which)
            else:
                measuring.stop(store.path)
        except (Refused, OSError) as _error:
            set_trouble(str(_error))
    return


@app.cell(hide_code=True)
def remembered(store):
    # What the page has shown; a plain dictionary, so that a tick which changes it runs nothing else.
    shown = {"stamp": findings.stamp(store) if store is not None else ()}
    return (shown,)


@app.cell(hide_code=True)
def ticking(get_trouble, set_news, shown, store, tick):
    tick
    mo.stop(store is None)
    _last, _stamp = measuring.last(store.path), findings.stamp(store)
    if _stamp != shown["stamp"]:
        shown["stamp"] = _stamp
        set_news(lambda count: count + 1)
    _words = get_trouble() or (_last and (_last.trouble or str(_last))) or ""
    _kind = "warn" if get_trouble() or (_last and _last.trouble) else "neutral"
    mo.callout(said("measuring", _words), kind=_kind) if _words else None
    return


if __name__ == "__main__":
    app.run()
