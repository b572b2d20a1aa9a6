"""Train the stages of a small language model, watch them, and reckon what a larger one takes."""

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="full", app_title="fractal pipeline", html_head_file="head.html")

with app.setup(hide_code=True):
    import html
    import shlex
    from pathlib import Path

    import marimo as mo

    from fractal_core import Refused, errands, explore, forms, sizes, spelling, stages

    ROOT = Path("runs")


@app.cell(hide_code=True)
def title():
    mo.md("""
    # From texts to a chat
    The stages of nanochat in one folder: begin them here, come back later. Below, how a tokenizer
    spells, and what a model of another size would take.
    """)
    return


@app.cell(hide_code=True)
def navigation():
    query = mo.query_params()
    control = explore.may_control(mo.app_meta().mode)
    get_folder, set_folder = mo.state(query.get("base") or str(ROOT / "lm"))
    get_news, set_news = mo.state(())
    get_doing, set_doing = mo.state((False, False, True))
    get_card, set_card = mo.state(None)
    get_trouble, set_trouble = mo.state("")
    # What a click acts on, as it stands then. A cell that waits for a click names no field: it would
    # run again when the page turns to another folder, and begin there what it began before.
    form = forms.Fields()

    def chosen():
        """The folder that is named now, if the page has turned to it yet or not."""
        return Path(form["where"].value.strip() or get_folder())

    def go(folder):
        """Show a folder; the address leads back to it."""
        query.set("base", folder)
        set_folder(folder)
        set_trouble("")

    attempt = forms.attempting(set_trouble)

    news = (get_news, set_news, get_doing, set_doing, get_card, set_card)
    return (
        attempt,
        chosen,
        control,
        form,
        get_card,
        get_doing,
        get_folder,
        get_news,
        get_trouble,
        go,
        news,
    )


@app.cell(hide_code=True)
def settings(form, get_folder):
    folder = Path(get_folder())
    where = mo.ui.text(value=str(folder), label="folder", full_width=True)
    size = mo.ui.radio(
        list(stages.SIZES), value=stages.size_of(folder) or "smoke", label="**size**"
    )
    form.update(where=where, size=size)
    mo.sidebar(
        [
            mo.md("### Stages"),
            where,
            size,
            mo.md("*smoke: ten steps of each stage, to see that all of it works, in a few minutes. "
                  "tiny: a small model on two cores in some ten minutes. d20: nanochat's own run, "
                  "for a machine with GPUs and a network.*"),
        ],
        width="17rem",
    )  # fmt: skip
    return folder, size, where


@app.cell(hide_code=True)
def turning(get_folder, go, where):
    if where.value.strip() and where.value != get_folder():
        go(where.value.strip())
    return


@app.cell(hide_code=True)
def plan(form, size):
    one = mo.ui.dropdown(
        [stage.name for stage in stages.plan(size.value)], label="or one stage again:"
    )
    form["one"] = one
    return (one,)


@app.cell(hide_code=True)
def refused(get_trouble):
    mo.callout(get_trouble(), kind="warn") if get_trouble() else None
    return


@app.cell(hide_code=True)
def watching(folder, news, tick):
    # What is shown changes when there is news, so that nothing flickers or closes in between.
    tick
    _errand = errands.last(folder)
    _busy = _errand is not None and _errand.process is not None
    _stopping = _errand is not None and _busy and _errand.stopping
    _told = (
        stages.news(folder),
        (_busy, _stopping, stages.size_of(folder) is None),
        stages.report(folder),
    )
    for _now, _get, _set in zip(_told, news[::2], news[1::2], strict=True):
        if _now != _get():
            _set(_now)
    return


@app.cell(hide_code=True)
def ticking():
    tick = mo.ui.refresh(options=["1s", "5s", "30s"], default_interval="1s", label="look every")
    tick
    return (tick,)


@app.cell(hide_code=True)
def buttons(control, get_doing):
    # Made anew only when what they can do changes; naming the clock here would lose clicks.
    _busy, _stopping, _fresh = get_doing()
    _why = "" if control else explore.CLOSED
    start = mo.ui.run_button(
        label="start" if _fresh else "go on", disabled=_busy or not control, tooltip=_why
    )
    again = mo.ui.run_button(label="this one", disabled=_busy or not control, tooltip=_why)
    halt = mo.ui.run_button(
        label="stop at once" if _stopping else "stop",
        disabled=not _busy or not control,
        tooltip=_why or "the stage saves where it is; it goes on from there",
    )
    return again, halt, start


@app.cell(hide_code=True)
def controls(again, halt, one, start):
    mo.hstack([start, halt, one, again], justify="start", align="center")
    return


@app.cell(hide_code=True)
def doing(folder, get_news, size):
    get_news()
    errand = errands.last(folder)
    _state = errand.state if errand else "nothing was begun in this folder"
    _command = shlex.join(stages.command(folder, size.value))
    mo.hstack(
        [mo.Html(f"<b data-testid='state'>{_state}</b>"), mo.plain_text(_command)],
        justify="start",
        align="center",
    )
    return (errand,)


@app.cell(hide_code=True)
def acting(again, attempt, chosen, control, form, halt, start):
    if start.value and control:
        attempt(lambda: stages.start(chosen(), form["size"].value))
    elif again.value and control and form["one"].value:
        attempt(lambda: stages.start(chosen(), form["size"].value, form["one"].value))
    elif halt.value and control:
        attempt(lambda: errands.ask_to_stop(chosen()))
    return


@app.cell(hide_code=True)
def progress(folder, get_news, size):
    get_news()
    mo.Html(stages.table(stages.progress(folder, size.value)))
    return


@app.cell(hide_code=True)
def curves(folder, get_news):
    get_news()
    _charts = [forms.shown(chart) for chart in stages.charts(stages.curves(folder))]
    _rows = [mo.hstack(_charts[at : at + 2], widths="equal") for at in range(0, len(_charts), 2)]
    mo.vstack(_rows) if _rows else mo.md("*Loss curves appear here as soon as a stage trains.*")
    return


@app.cell(hide_code=True)
def words(errand):
    mo.Html(errand.page(15)) if errand else None
    return


@app.cell(hide_code=True)
def card(get_card):
    mo.accordion(
        {
            "Report card": mo.md(
                html.escape(get_card() or "", quote=False)
                or "*It is written when all stages are done.*"
            )
        }
    )
    return


@app.cell(hide_code=True)
def spelling_choice():
    tokenizers = spelling.found(ROOT)
    which = mo.ui.dropdown(tokenizers, value=next(iter(tokenizers)), label="tokenizer")
    text = mo.ui.text_area(value=spelling.EXAMPLE, label="text", rows=4, full_width=True)
    mo.vstack([mo.md("## How a text is spelled"), which, text])
    return text, which


@app.cell(hide_code=True)
def spelled(text, which):
    try:
        known = spelling.tokenizer(which.value)
        _shown = [
            mo.Html(spelling.summary(known, text.value)),
            mo.Html(spelling.coloured(known, text.value)),
        ]
    except (Refused, OSError) as _error:
        known, _shown = None, [mo.callout(str(_error), kind="warn")]
    mo.vstack(_shown)
    return (known,)


@app.cell(hide_code=True)
def packing(known):
    mo.hstack(
        [
            forms.shown(spelling.packing(known)),
            mo.ui.table(
                spelling.specials(known),
                selection=None,
                show_download=False,
                show_search=False,
                show_data_types=False,
            ),
        ],
        widths=[3, 2],
    ) if known else None
    return


@app.cell(hide_code=True)
def wishing():
    def _slider(label, value, start=None, stop=None, step=None, steps=None):
        return mo.ui.slider(
            start,
            stop,
            step,
            value=value,
            steps=steps,
            label=label,
            show_value=True,
            full_width=True,
            on_change=changed,
        )

    get_change, changed = mo.state(None)
    wish = forms.Fields(
        {
            "depth": _slider("depth", 20, 2, 48, 2),
            "aspect": _slider("channels for each layer", 64, 32, 128, 16),
            "vocab_size": _slider("vocabulary", 2**16, steps=[2**i for i in range(9, 18)]),
            "sequence_length": _slider("positions", 2048, steps=[2**i for i in range(7, 14)]),
            "rows": _slider("texts at a time", 8, steps=[2**i for i in range(8)]),
            "dtype": mo.ui.dropdown(
                list(sizes.PEAK), value="bfloat16", label="precision", on_change=changed
            ),
            "gpus": _slider("GPUs", 8, steps=[2**i for i in range(9)]),
            "utilisation": _slider("utilisation", 0.4, 0.05, 0.8, 0.05),
            "tokens_per_parameter": _slider("tokens a parameter", 20, 1, 200, 1),
            "card": mo.ui.dropdown(
                {f"{gib} GiB": float(gib) for gib in (16, 24, 40, 48, 80, 141)},
                value="80 GiB",
                label="card",
                on_change=changed,
            ),
        }
    )
    mo.md("## What a size takes")
    return get_change, wish


@app.cell(hide_code=True)
def reckoned(get_change, wish):
    get_change()
    try:
        _wish = sizes.Wish(**wish.value)
        _size = sizes.size(_wish)
        _told = mo.Html(f"<div data-testid='size'>{mo.md(sizes.words(_wish, _size)).text}</div>")
        _bars = (
            sizes.bars(_size.parameters, "parameters"),
            sizes.bars(_size.memory, "GiB of one GPU; the line is the card", _wish.card),
        )
        _charts = [forms.shown(chart) for chart in _bars]
    except Refused as _error:
        _told, _charts = mo.callout(str(_error), kind="warn"), []
    _sliders = mo.vstack(list(wish.values()))
    mo.hstack([_sliders, mo.vstack([_told]), mo.vstack(_charts)], widths=[2, 3, 4], gap=1.5)
    return


if __name__ == "__main__":
    app.run()
