"""Figures and films of runs, ready to print: they carry their recipe and reopen what they show."""

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="full", app_title="fractal figures", html_head_file="head.html")

with app.setup(hide_code=True):
    import html
    import sys
    from pathlib import Path

    import marimo as mo

    from fractal_core import (
        Refused,
        experiments,
        explore,
        figures,
        film,
        films,
        forms,
        press,
        proof,
    )

    ROOT, OUT = Path("runs"), Path("figures")


@app.cell(hide_code=True)
def headless():
    # python notebooks/figures.py --run runs/NAME --out DIR
    script = mo.app_meta().mode == "script"
    if script and sys.argv[1:]:
        sys.exit(press.script(sys.argv[1:]))
    return (script,)


@app.cell(hide_code=True)
def title():
    mo.md("""
    # Figures
    Maps, panels, plates, dimensions and films of what is in `runs`, at the widths of journals:
    cells are never resampled, fonts are embedded, and every file carries its recipe, so that
    `fractal open FIGURE` leads back to the view.
    """)
    return


@app.cell(hide_code=True)
def choosing():
    _query = mo.query_params()
    control = explore.may_control(mo.app_meta().mode)
    why = "" if control else "open with --allow-control to write files or make runs"
    known = press.runs_in(ROOT)
    _wanted, absent = press.chosen(known, forms.address(ROOT).get("run", ""))
    runs = mo.ui.multiselect(
        list(known),
        value=_wanted,
        label="runs",
        on_change=lambda names: _query.set("run", ",".join(map(str, names))),
        full_width=True,
    )
    _kinds, _asked = [*press.KINDS, "film"], _query.get("figure")
    kind = mo.ui.dropdown(
        _kinds,
        value=_asked if _asked in _kinds else _kinds[0],
        label="figure",
        on_change=lambda name: _query.set("figure", name),
    )
    _empty = mo.callout(
        mo.md(
            "There is no run in `runs` yet. `fractal demo` makes one in about a minute, or zoom "
            "into one with `fractal open zoom --allow-control`; then reload this page."
        )
    )
    mo.hstack([runs, kind], widths=[3, 1], align="end") if known else _empty
    return absent, control, kind, known, runs, why


@app.cell(hide_code=True)
def settings(kind):
    filmed = kind.value == "film"
    _widths = {"89 mm, one column": 89, "183 mm, two columns": 183}
    _sizes = {f"{film.SIZE} pixels, for a screen": film.SIZE}
    _sizes |= {name: film.pixels(wide) for name, wide in _widths.items()}
    width = mo.ui.radio(_widths, value=list(_widths)[kind.value != "map"], label="**width**")
    size = mo.ui.radio(_sizes, value=next(iter(_sizes)), label="**width**")
    _suffixes = list(film.SUFFIXES if filmed else figures.FORMATS)
    suffix = mo.ui.radio(_suffixes, value=".mp4" if filmed else ".pdf", label="**file**")
    return filmed, size, suffix, width


@app.cell(hide_code=True)
def looks():
    # Of every figure: what is chosen here while another figure is drawn is not forgotten.
    palette = mo.ui.radio(list(figures.PALETTES), value="split", label="**palette**")
    quantity = mo.ui.radio(list(figures.QUANTITIES), value="measure", label="**colour**")
    heading = mo.ui.text(label="title", full_width=True)
    captioned = mo.ui.checkbox(value=True, label="caption block")
    return captioned, heading, palette, quantity


@app.cell(hide_code=True)
def wishes(control, known, why):
    child = mo.ui.dropdown(known, label="locator box of", full_width=True)
    folder = mo.ui.text(value=str(OUT), label="folder")
    write = mo.ui.run_button(label="write", disabled=not control, tooltip=why)
    return child, folder, write


@app.cell(hide_code=True)
def side(captioned, child, filmed, heading, kind, palette, quantity, size, suffix, tick, width):
    _coloured = kind.value in ("map", "plate")
    _shown = [
        (mo.md("### " + ("Film" if filmed else "Figure")), True),
        (heading, kind.value not in ("film", "dimension")),
        (captioned, not filmed),
        (width, kind.value not in ("film", "dimension")),
        (size, filmed),
        (suffix, True),
        (palette, _coloured or filmed),
        (quantity, _coloured),
        (child, kind.value == "map"),
        (tick, filmed),
    ]
    mo.sidebar([element for element, wanted in _shown if wanted], width="15rem")
    return


@app.cell(hide_code=True)
def printing(
    absent, captioned, child, filmed, heading, kind, known, palette, quantity, runs, script, width
):
    # A cell that stops would leave an error in each cell after it, when it is exported.
    printed, _wrong = None, "" if runs.value else absent
    if known and not (script or filmed or _wrong):
        try:
            with mo.status.spinner("drawing"):
                printed = press.draw(
                    kind.value,
                    press.stores_of(known, runs.value),
                    palette=palette.value,
                    quantity=quantity.value,
                    width_mm=width.value,
                    title=heading.value or None,
                    captioned=captioned.value,
                    child=experiments.read_run(child.value) if child.value else None,
                )
        except (Refused, OSError) as _error:
            _wrong = str(_error)
    mo.callout(_wrong, kind="warn") if _wrong else None
    return (printed,)


@app.cell(hide_code=True)
def showing(printed):
    mo.stop(printed is None)
    _narrow = printed.width_mm < 100
    _picture = mo.image(printed.data(".png"), width=f"{printed.width_mm * 5:.0f}px")
    _words = mo.ui.text_area(
        printed.caption,
        label="**caption**, from the recipe",
        rows=12 if _narrow else 5,
        full_width=True,
    )
    _both = [_picture, _words]
    mo.hstack(_both, widths=[5, 4]) if _narrow else mo.vstack(_both)
    return


@app.cell(hide_code=True)
def saving(chain, folder, kind, known, printed, runs, suffix, write):
    _paths = [store.path for store in chain] or [known[name] for name in runs.value]
    name = press.name_of(kind.value, _paths, known.values()) + suffix.value
    if printed is not None:
        _download = mo.download(lambda: printed.data(suffix.value), filename=name)
        _row = [mo.md(f"`{name}`"), _download, folder, write]
    mo.hstack(_row, justify="start", align="end") if printed is not None else None
    return (name,)


@app.cell(hide_code=True)
def writing(control, folder, name, printed, write):
    mo.stop(not (write.value and control and printed is not None))
    try:
        _path = press.inside(folder.value, name)
        printed.save(_path)
        _said = mo.Html(
            f"<p><span data-testid='written'>wrote {html.escape(str(_path))}</span>; "
            f"<code>fractal open {html.escape(str(_path))}</code> shows it again</p>"
        )
    except Refused as _error:
        _said = mo.callout(str(_error), kind="warn")
    _said
    return


@app.cell(hide_code=True)
def proving(printed):
    mo.stop(printed is None)
    mo.accordion(
        {
            "Proof: the figure for colour-blind readers and in grey": mo.lazy(
                lambda: mo.image(figures.render(proof.proof_figure(printed.figure), ".png")),
                show_loading_indicator=True,
            )
        }
    )
    return


@app.cell(hide_code=True)
def ticking():
    # Whether a film is being made, and when its file was written: a tick changes only that.
    get_film, set_film = mo.state((False, None))
    tick = mo.ui.refresh(options=["1s", "5s"], default_interval="1s", label="news every")
    return get_film, set_film, tick


@app.cell(hide_code=True)
def linking(filmed, known, runs, script):
    chain, price = [], ""
    try:
        if filmed and runs.value and not script:
            chain = films.wide_first(press.stores_of(known, runs.value))
        if len(chain) == 2:
            price = f"between these two: {films.price(films.keyframes(chain), chain)}"
    except (Refused, OSError) as _error:
        price = str(_error)
    return chain, price


@app.cell(hide_code=True)
def filming(control, get_film, why):
    # Made anew by another choice of runs they would lose the click that comes with it.
    _busy = get_film()[0]
    roll = mo.ui.run_button(label="make the film", disabled=_busy or not control, tooltip=why)
    halt = mo.ui.run_button(label="stop", disabled=not (control and _busy), tooltip=why)
    keys = mo.ui.run_button(label="make the keyframes", disabled=not control, tooltip=why)
    return halt, keys, roll


@app.cell(hide_code=True)
def film_line(filmed, halt, keys, name, price, roll, script):
    _hint = mo.md(
        "Choose runs that are zooms of one another; the order does not matter. Two that are far "
        "apart need keyframes between them, one for every factor of two."
    )
    _told = mo.Html(f"<p data-testid='film'>{html.escape(price)}</p>")
    _row = [mo.md(f"`{OUT / name}`"), roll, halt, keys]
    _buttons = mo.hstack(_row, justify="start", align="end")
    mo.vstack([_hint, _told, _buttons]) if filmed and not script else None
    return


@app.cell(hide_code=True)
def rolling(control, halt, keys, known, name, palette, roll, runs, size):
    mo.stop(not (control and (roll.value or halt.value or keys.value)))
    _said = None
    try:
        _chain = films.wide_first(press.stores_of(known, runs.value))
        if roll.value:
            films.begin(_chain, OUT / name, palette=palette.value, size=size.value)
        elif halt.value:
            films.stop(_chain)
        else:
            _between = films.make(films.keyframes(_chain))
            _commands = films.commands([store.path for store in _chain], _between)
            _said = mo.md("They are made. To go on:\n\n```\n" + "\n".join(_commands) + "\n```")
    except (Refused, OSError) as _error:
        _said = mo.callout(str(_error), kind="warn")
    _said
    return


@app.cell(hide_code=True)
def watching(chain, get_film, name, set_film, tick):
    tick
    mo.stop(not chain)
    _errand, _file = films.last(chain), OUT / name
    _written = (_file, _file.stat().st_mtime) if _file.exists() else None
    _now = (_errand is not None and _errand.process is not None, _written)
    if _now != get_film():
        set_film(_now)
    mo.Html(f"<p data-testid='rolling'>{html.escape(films.told(_errand))}</p>")
    return


@app.cell(hide_code=True)
def projecting(filmed, get_film):
    mo.stop(not filmed or get_film()[1] is None)
    _file, _ = get_film()[1]
    _data = _file.read_bytes()
    _download = mo.download(_data, filename=_file.name)
    if _file.suffix == ".gif":
        _shown = mo.image(_data, width=500)
    else:
        _shown = mo.video(_data, width=500, muted=True, autoplay=True, loop=True)
    mo.vstack([_shown, _download])
    return


@app.cell(hide_code=True)
def eyes(script):
    mo.stop(script)
    _picture = mo.image(figures.render(proof.palettes_figure(), ".png"), width=900)
    mo.vstack([mo.md("**The palettes, for every eye**"), _picture])
    return


if __name__ == "__main__":
    app.run()
