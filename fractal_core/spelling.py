"""How a tokenizer spells a text: tokens in colours with their ids, and how well they pack it."""

import functools
import html
from pathlib import Path
from typing import TYPE_CHECKING

import altair as alt
import pandas as pd

from fractal_core.errors import as_ours
from fractal_core.storage import nanochat_folder, storage

if TYPE_CHECKING:
    from nanochat.tokenizer import RustBPETokenizer

OWN = ""
"""Stands for a tokenizer that is learned here and now."""

OWN_TEXTS, OWN_TOKENS = 300, 1024
MOST_CHARACTERS = 4000
"""Of a text on the page."""

EXAMPLE = "The lighthouse keeper's daughter counted 1,234 gulls.\nZürich, naïve café — x² + y² = z²"
GOLDEN_ANGLE = 137.508
"""Degrees between the hues of two ids that follow each other, so that neighbours never look alike."""


def found(root: Path) -> dict[str, str]:
    """Tokenizers on this machine: what to call them, and their folders."""
    places = {"of the base model": storage() / "base" / "d2"}
    places |= {f"of {path.parent.name}": path for path in sorted(root.glob("*/tokenizer"))}
    places["of $NANOCHAT_BASE_DIR"] = nanochat_folder() / "tokenizer"
    there = {
        name: str(path)
        for name, path in places.items()
        if any((path / f"tokenizer.{kind}").exists() for kind in ("json", "pkl"))
    }
    return there | {f"learned here from {OWN_TEXTS} built-in texts": OWN}


def tokenizer(folder: str) -> "RustBPETokenizer":
    """The tokenizer of a folder, or the one that is learned here.

    Raises:
        Refused: It is damaged.
    """
    files = sorted(Path(folder).glob("tokenizer.*")) if folder else []
    return _tokenizer(folder, tuple(file.stat().st_mtime_ns for file in files))


@functools.lru_cache(maxsize=8)
def _tokenizer(folder: str, _stamps: tuple[int, ...]) -> "RustBPETokenizer":
    from nanochat import common, corpus
    from nanochat.tokenizer import RustBPETokenizer

    if folder == OWN:
        return RustBPETokenizer.train_from_iterator(corpus.documents(OWN_TEXTS), OWN_TOKENS)
    with as_ours(common.Refused):
        return RustBPETokenizer.from_directory(folder)


def coloured(known: "RustBPETokenizer", text: str) -> str:
    """The tokens of a text as HTML: each in the colour of its id, with the id below it.

    What is a part of a character is shown as its bytes.
    """
    cells = []
    for id in known.encode(text[:MOST_CHARACTERS]):
        piece = known.enc.decode_single_token_bytes(id)
        try:
            shown = piece.decode()
        except UnicodeDecodeError:
            shown = " ".join(f"{byte:02x}" for byte in piece)
        mark = html.escape(shown).replace("\n", "⏎").replace(" ", "·").replace("\t", "⇥")
        colour = f"hsl({id * GOLDEN_ANGLE % 360:.0f} 70% 50% / 0.28)"
        cells.append(
            f"<span data-id='{id}' title='{len(piece)} bytes' style='display:inline-flex;"
            f"flex-direction:column;align-items:center;background:{colour};border-radius:3px;"
            f"padding:1px 4px;margin:1px'><span style='white-space:pre'>{mark}</span>"
            f"<small style='opacity:.65;font-size:.7em'>{id}</small></span>"
        )
        if "\n" in shown:
            cells.append("<br>")
    return (
        "<div data-testid='tokens' style='font-family:ui-monospace,monospace;line-height:1.3'>"
        f"{''.join(cells)}</div>"
    )


def summary(known: "RustBPETokenizer", text: str) -> str:
    """How many tokens a text takes, in a line of HTML."""
    ids = known.encode(text)
    size, count = len(text.encode()), len(ids)
    packed = f"{size / count:.2f} bytes per token" if count else "nothing to pack"
    return (
        f"<div data-testid='packing'>{count:,} tokens for {len(text):,} characters, {size:,} bytes: "
        f"<b>{packed}</b>; {known.get_vocab_size():,} tokens in the vocabulary</div>"
    )


def specials(known: "RustBPETokenizer") -> pd.DataFrame:
    """The special tokens and their ids; a text never becomes one, whatever it says."""
    names = sorted(known.get_special_tokens(), key=known.encode_special)
    return pd.DataFrame({"token": names, "id": [known.encode_special(name) for name in names]})


def packing(known: "RustBPETokenizer") -> alt.Chart:
    """Bytes per token by kind of text."""
    from scripts.tok_eval import TEXTS, ratio

    frame = pd.DataFrame(
        {"text": list(TEXTS), "bytes per token": [ratio(known, text) for text in TEXTS.values()]}
    )
    return (
        alt.Chart(frame)
        .mark_bar(color="#2474bd")
        .encode(
            x=alt.X("bytes per token:Q"),
            y=alt.Y("text:N", title=None, sort="-x"),
            tooltip=["text", alt.Tooltip("bytes per token:Q", format=".2f")],
        )
        .properties(height=26 * len(TEXTS), width="container")
    )
