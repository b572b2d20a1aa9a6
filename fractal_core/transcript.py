"""What a second model says, on a page beside the chat of the first, while both speak."""

from pathlib import Path

import anywidget
import traitlets


class Transcript(anywidget.AnyWidget):
    """A conversation that is only read. Set `turns` whenever there is more of it.

    A turn is {"role": "user", "assistant" or "note", "text": ...}.
    """

    _esm = Path(__file__).with_suffix(".js")
    _css = Path(__file__).with_suffix(".css")

    turns = traitlets.List(traitlets.Dict(), []).tag(sync=True)
    empty = traitlets.Unicode("").tag(sync=True)
