"""The command for training data: data."""

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import tyro

from fractal_core import conversations, docvqa
from fractal_core.commands import Json
from fractal_core.errors import Refused
from fractal_core.storage import storage


def data(
    name: tyro.conf.Positional[Literal["docvqa"]],
    action: tyro.conf.Positional[Literal["prepare", "download", "publish", "check"]],
    folder: tyro.conf.Positional[Path | None] = None,
    /,
    *,
    source: Path | None = None,
    tokenizer: Path | None = None,
    workers: int = os.cpu_count() or 1,
    repo: str | None = None,
    as_json: Json = False,
) -> int:
    """Make, fetch, publish or count the DocVQA conversations.

    `download` fetches the published set into the storage folder, `check` counts it and fetches
    what is missing, `prepare` makes a set of our own from the words on the pages, and `publish`
    puts it on the Hub. What was interrupted goes on where it was.

    Args:
        name: Which set.
        action: What to do.
        folder: A set of our own; left out, the one in the storage folder (for `check`: the
            published one).
        source: Folder with the parquet files of the pages, instead of the Hub.
        tokenizer: Folder of the nanochat tokenizer that the length of a page is measured with;
            left out, GPT-4's.
        workers: How many processes prepare.
        repo: Where to publish, as organisation/name; it is made private.
        as_json: One JSON object and nothing else.
    """
    own = folder or storage() / "docvqa"
    if action == "prepare":
        return _prepare(own, source, tokenizer, workers, as_json)
    if action == "publish":
        if repo is None:
            raise Refused("say where to publish: --repo organisation/name")
        _say(as_json, {"commit": docvqa.publish(own, repo)})
        return 0
    if action == "download":
        published = conversations.published()
        fetched = published.fetch()
        _say(as_json, {"fetched": fetched, "folder": str(published.folder())})
        return 0
    return _check(folder, as_json)


def _prepare(
    folder: Path, source: Path | None, tokenizer: Path | None, workers: int, as_json: bool
) -> int:
    if workers < 1:
        raise Refused(f"--workers {workers}: prepare needs at least one process")
    count, fingerprint = _counter(tokenizer)
    made = docvqa.prepare(folder, count, fingerprint, source=source, workers=workers, tell=_tell)
    _say(as_json, {"folder": str(folder)} | {split: asdict(one) for split, one in made.items()})
    return 0


def _check(folder: Path | None, as_json: bool) -> int:
    """0 if there are as many conversations as in the published set, else 1."""
    told: dict[str, Any] = {}
    if folder is None:
        published = conversations.published()
        told |= {"fetched": published.fetch(), "folder": str(published.folder())}
        rows = {split: len(published.read(split)) for split in ("train", "validation")}
    else:
        rows = {split: docvqa.summary(folder / f"{split}.jsonl").rows for split in docvqa.COUNTS}
    told |= {split: {"rows": rows[split], "published": n} for split, n in docvqa.COUNTS.items()}
    _say(as_json, told)
    return 0 if rows == docvqa.COUNTS else 1


def _counter(folder: Path | None) -> tuple[docvqa.TokenCounter, str]:
    """What counts tokens, and a fingerprint of it."""
    from nanochat.tokenizer import RustBPETokenizer

    if folder is None:
        os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(storage() / "tiktoken"))
        try:
            tokenizer = RustBPETokenizer.from_pretrained("cl100k_base")
        except OSError as error:
            raise Refused(
                f"GPT-4's tokenizer cannot be fetched ({type(error).__name__}); name the folder "
                "of another with --tokenizer"
            ) from None
        return partial(_count, tokenizer), "cl100k_base"
    try:
        tokenizer = RustBPETokenizer.from_directory(folder)
    except ValueError as error:
        raise Refused(str(error)) from None
    merges = repr(sorted(tokenizer.enc._mergeable_ranks.items()))
    return partial(_count, tokenizer), hashlib.sha256(merges.encode()).hexdigest()


def _count(tokenizer: Any, text: str) -> int:
    return len(tokenizer.encode(text))


def _tell(done: int, total: int) -> None:
    print(f"{done} of {total} files", file=sys.stderr)


def _say(as_json: bool, told: Mapping[str, Any]) -> None:
    if as_json:
        print(json.dumps(told))
        return
    for name, value in told.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {number:,}" for key, number in value.items())
        elif isinstance(value, list):
            value = ", ".join(value) or "nothing was missing"
        print(f"{name:<11} {value}")
