"""Talk with a language model, alone or beside the one that it was trained from."""

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="full", app_title="fractal chat", html_head_file="head.html")

with app.setup(hide_code=True):
    import itertools
    from pathlib import Path

    import marimo as mo

    from fractal_core import Refused, explore, talk
    from fractal_core.transcript import Transcript

    ROOT = Path("runs")


@app.cell(hide_code=True)
def title():
    mo.md("""
    # What does the model say?
    Any checkpoint answers here, alone or beside another: what it was trained from, for example.
    A base model only goes on writing; one that was fine-tuned on conversations answers.
    Type **/** for questions of a data set; each is asked with its document, shown below. What was
    said lives in this tab only: a reload, or another choice of model, begins anew.
    """)
    return


@app.cell(hide_code=True)
def navigation():
    query = mo.query_params()
    asked = dict(query.to_dict())
    control = explore.may_control(mo.app_meta().mode)
    get_made, set_made = mo.state(0)

    def remember(**chosen):
        """Put what is chosen into the address, which leads back to it."""
        for _name, _source in chosen.items():
            if _source:
                query.set(_name, _source)
            elif _name in query.to_dict():
                query.remove(_name)

    return asked, control, get_made, remember, set_made


@app.cell(hide_code=True)
def base_model(control, get_made):
    get_made()
    checkpoints = talk.found(ROOT)
    _errand = talk.base_errand()
    making = _errand is not None and _errand.process is not None
    tick = mo.ui.refresh(default_interval="2s") if making else None
    make = mo.ui.run_button(
        label="make the base model",
        disabled=making or not control,
        tooltip="" if control else explore.CLOSED,
    )
    _failed = _errand is not None and _errand.state == "failed" and not checkpoints
    mo.vstack(
        [
            mo.callout(
                mo.md(
                    "There is no language model here yet. `fractal base` makes a small one without "
                    f"a network in a minute or two{', and so does this button' * control}; or name a "
                    "checkpoint."
                )
            ),
            mo.callout(f"The last try ended so: {_errand.tail(1)}", kind="warn") if _failed else "",
            mo.hstack([make, tick] if making else [make], justify="start"),
        ]
    ) if making or not checkpoints else None
    return checkpoints, make, making, tick


@app.cell(hide_code=True)
def base_watch(control, get_made, make, making, set_made, tick):
    tick
    _words = None
    if make.value and control:
        try:
            talk.make_base()
        except (Refused, OSError) as _error:
            _words = mo.callout(str(_error), kind="warn")
        set_made(get_made() + 1)
    elif making:
        _errand = talk.base_errand()
        if _errand is None or _errand.process is None:
            set_made(get_made() + 1)
        else:
            _words = mo.Html(_errand.page(6))
    _words
    return


@app.cell(hide_code=True)
def choosing(asked, checkpoints):
    _labels = {source: label for label, source in checkpoints.items()}
    _wanted = asked.get("checkpoint", "")
    _first = _labels.get(_wanted) or next(iter(checkpoints), None)
    pick = mo.ui.dropdown(checkpoints, value=_first, label="**model**", searchable=True)
    typed = mo.ui.text(
        value=_wanted if _wanted not in _labels else "",
        placeholder="or a folder, hf:org/model@rev, wandb:entity/project/name:version",
        full_width=True,
    )
    return pick, typed


@app.cell(hide_code=True)
def beside_it(asked, checkpoints, control, pick, typed):
    source = typed.value.strip() or pick.value or ""
    _earlier = talk.before(source, fetches=control) if source else None
    _others = {"nothing": ""}
    if _earlier:
        _others["what it was trained from"] = _earlier
    _others |= {label: other for label, other in checkpoints.items() if other != source}
    _wanted = asked.get("beside") if asked.get("checkpoint") == source else _earlier
    _first = next((label for label, other in _others.items() if other == _wanted), "nothing")
    beside = mo.ui.dropdown(_others, value=_first, label="**beside**", searchable=True)
    mo.hstack([pick, typed, beside], justify="start", align="end", widths=[0, 1, 0])
    return beside, source


@app.cell(hide_code=True)
def sampling(source):
    temperature = mo.ui.slider(
        0, 2, 0.05, value=0.8, label="temperature", show_value=True, full_width=True
    )
    top_k = mo.ui.slider(
        0, 200, 1, value=50, label="top-k, 0 is all", show_value=True, full_width=True
    )
    length = mo.ui.slider(
        16, 1024, 16, value=128, label="tokens at most", show_value=True, full_width=True
    )
    seconds = mo.ui.slider(
        5, 300, 5, value=60, label="seconds at most", show_value=True, full_width=True
    )
    seed = mo.ui.number(0, 2**31 - 1, value=0, label="seed")
    data = mo.ui.text(value=talk.data_of(source), label="questions from", full_width=True)
    mo.sidebar(
        [
            mo.md("### Answers"),
            *(temperature, top_k, length, seconds, seed),
            mo.md("*The same seed gives the same answer to the same conversation. Stop only hides "
                  "the rest of an answer; these caps end it.*"),
            mo.md("### Questions"),
            data,
        ],
        width="17rem",
    )  # fmt: skip
    return data, length, seconds, seed, temperature, top_k


@app.cell(hide_code=True)
def questions(control, data):
    try:
        samples, _wrong = talk.samples(data.value.strip() or "builtin", fetches=control), ""
    except (Refused, OSError) as _error:
        samples, _wrong = [], str(_error)
    mo.callout(_wrong, kind="warn") if _wrong else None
    return (samples,)


@app.cell(hide_code=True)
def holding():
    # A box, so that a slider changes the next answer and does not begin the chat again.
    held, begun = [talk.Manner()], itertools.count()
    return begun, held


@app.cell(hide_code=True)
def manner(held, length, seconds, seed, temperature, top_k):
    held[0] = talk.Manner(
        temperature=float(temperature.value),
        top_k=int(top_k.value),
        max_tokens=int(length.value),
        seconds=float(seconds.value),
        seed=int(seed.value or 0),
    )
    return


@app.cell(hide_code=True)
def conversation(begun, beside, control, held, remember, samples, source):
    remember(checkpoint=source, beside=beside.value)
    panel = Transcript(empty="The same questions will be answered here.")
    _talk = talk.Talk(
        [source, *([beside.value] if beside.value else [])],
        manner=lambda: held[0],
        samples=samples,
        show=lambda turns: setattr(panel, "turns", turns),
        fetches=control,
    )
    chat = mo.ui.chat(
        _talk, prompts=[sample.label for sample in samples], max_height=480, disabled=not source
    )
    # The browser keeps the turns of a chat that stands where one stood before.
    _place = ("div", "section")[next(begun) % 2]
    _chat = mo.Html(f"<{_place}>{mo.as_html(chat).text}</{_place}>")
    _left = mo.vstack([mo.plain_text(source or "no model yet"), _chat])
    _right = mo.vstack([mo.plain_text(beside.value), mo.ui.anywidget(panel)])
    mo.hstack([_left, _right], widths="equal", gap=1.5) if beside.value else _left
    return (chat,)


@app.cell(hide_code=True)
def documents(samples):
    mo.accordion(
        {
            sample.label: mo.vstack(
                [mo.plain_text(sample.document or sample.turn), mo.plain_text(sample.expected)]
            )
            for sample in samples
        }
    ) if samples else None
    return


if __name__ == "__main__":
    app.run()
