"""Figures and films of runs, ready to print: they carry their recipe and reopen what they show."""

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="full", app_title="fractal figures")

with app.setup(hide_code=True):
    import html
    import sys
    from pathlib import Path

    import marimo as mo

    from fractal_core import Refused, experiments, explore, figures, press, proof

    ROOT = Path("runs")


@app.cell(hide_code=True)
def headless():
    # python notebooks/figures.py --run runs/NAME --out DIR
    script = mo.app_meta().mode == "script"
    _arguments = mo.cli_args()
    _asked = script and "run" in _arguments
    _out = str(_arguments.get("out") or "")
    if _asked and (_code := press.headless(_arguments.get_all("run"), _out)):
        sys.exit(_code)
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
    known = press.runs_in(ROOT)
    _wanted = [name for name in (_query.get("run") or "").split(",") if name in known]
    runs = mo.ui.multiselect(
        list(known),
        value=_wanted or list(known)[:1],
        label="runs",
        on_change=lambda names: _query.set("run", ",".join(map(str, names))),
        full_width=True,
    )
    kind = mo.ui.dropdown([*press.KINDS, "film"], value=press.KINDS[0], label="figure")
    _empty = mo.callout(
        mo.md(
            "There is no run in `runs` yet. `fractal demo` makes one in about a minute, or zoom "
            "into one with `fractal open zoom --allow-control`; then reload this page."
        )
    )
    mo.hstack([runs, kind], widths=[3, 1], align="end") if known else _empty
    return control, kind, known, runs


@app.cell(hide_code=True)
def settings(kind):
    film = kind.value == "film"
    palette = mo.ui.radio(list(figures.PALETTES), value="split", label="**palette**")
    quantity = mo.ui.radio(list(figures.QUANTITIES), value="measure", label="**colour**")
    width = mo.ui.radio(
        {"89 mm, one column": 89, "183 mm, two columns": 183},
        value="89 mm, one column" if kind.value == "map" else "183 mm, two columns",
        label="**width**",
    )
    suffix = mo.ui.radio(
        [".mp4", ".gif"] if film else [".pdf", ".svg", ".png"],
        value=".mp4" if film else ".pdf",
        label="**file**",
    )
    heading = mo.ui.text(label="title", full_width=True)
    captioned = mo.ui.checkbox(value=True, label="caption block")
    return captioned, film, heading, palette, quantity, suffix, width


@app.cell(hide_code=True)
def locating(known):
    child = mo.ui.dropdown(known, label="locator box of", full_width=True)
    return (child,)


@app.cell(hide_code=True)
def side(captioned, child, film, heading, kind, palette, quantity, suffix, width):
    _coloured = kind.value in ("map", "plate")
    _shown = [
        (mo.md("### " + ("Film" if film else "Figure")), True),
        (heading, kind.value not in ("film", "dimension")),
        (captioned, not film),
        (width, kind.value not in ("film", "dimension")),
        (suffix, True),
        (palette, _coloured or film),
        (quantity, _coloured),
        (child, kind.value == "map"),
    ]
    mo.sidebar([element for element, wanted in _shown if wanted], width="15rem")
    return


@app.cell(hide_code=True)
def printing(captioned, child, film, heading, kind, known, palette, quantity, runs, script, width):
    # A cell that stops would leave an error in each cell after it, when it is exported.
    printed, _wrong = None, ""
    if known and not (script or film):
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
        except Refused as _error:
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
def saving(control, kind, printed, runs, suffix):
    name = press.name_of(kind.value, runs.value) + suffix.value
    folder = mo.ui.text(value="figures", label="folder")
    _why = "" if control else "open with --allow-control to write files here"
    write = mo.ui.run_button(label="write", disabled=not control, tooltip=_why)
    _download = mo.download(lambda: printed.data(suffix.value), filename=name)
    _row = mo.hstack([mo.md(f"`{name}`"), _download, folder, write], justify="start", align="end")
    _row if printed is not None else None
    return folder, name, write


@app.cell(hide_code=True)
def writing(control, folder, name, printed, write):
    mo.stop(not (write.value and control))
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
def filming(control, film, known, runs, script):
    _why = "" if control else "open with --allow-control to make runs"
    frames, _said = [], ""
    try:
        _stores = press.stores_of(known, runs.value) if film and not script else []
        if len(_stores) == 2:
            _first = _stores[0].path
            frames = press.keyframes(_first.parent, _stores)
            _price = press.price(frames, explore.open_view(_first.parent, _first.name))
            _said = f"between these two: {_price}"
    except Refused as _error:
        _said = str(_error)
    roll = mo.ui.run_button(label="make the film")
    keys = mo.ui.run_button(
        label="make the keyframes", disabled=not (control and frames), tooltip=_why
    )
    _hint = mo.md(
        "Choose runs that are zooms of one another; the order does not matter. Two that are far "
        "apart need keyframes between them, one for every factor of two."
    )
    _told = mo.Html(f"<p data-testid='film'>{html.escape(_said)}</p>")
    _buttons = mo.hstack([roll, keys], justify="start")
    mo.vstack([_hint, _told, _buttons]) if film and not script else None
    return frames, keys, roll


@app.cell(hide_code=True)
def keying(control, frames, keys):
    mo.stop(not (keys.value and control))
    _made = [store.path for store in press.make(frames)]
    mo.md(
        "Made; train them with\n\n```\n"
        + "\n".join(f"fractal run {path}" for path in _made)
        + "\n```"
    )
    return


@app.cell(hide_code=True)
def rolling(control, known, palette, roll, runs, suffix):
    mo.stop(not roll.value)
    try:
        with mo.status.spinner("drawing frames"):
            _stores = press.stores_of(known, runs.value)
            _data = press.roll(_stores, suffix.value, palette=palette.value)
        _name = press.name_of("film", runs.value) + suffix.value
        _show = mo.image if suffix.value == ".gif" else mo.video
        _where = ""
        if control:
            figures.write(press.inside("figures", _name), _data)
            _where = f"<p data-testid='written'>wrote figures/{_name}</p>"
        _page = mo.vstack(
            [mo.Html(_where), _show(_data, width=500), mo.download(_data, filename=_name)]
        )
    except Refused as _error:
        _page = mo.callout(str(_error), kind="warn")
    _page
    return


@app.cell(hide_code=True)
def eyes(script):
    mo.stop(script)
    mo.vstack(
        [
            mo.md("**The palettes, for every eye**"),
            mo.image(figures.render(proof.palettes_figure(), ".png"), width=900),
        ]
    )
    return


if __name__ == "__main__":
    app.run()
