"""DocVQA as conversations: made from the words on its pages, published, counted.

The data are questions about scanned pages of business documents (Mathew, Karatzas, Jawahar 2021,
arXiv:2007.00398) with the words that a machine read on each page. A conversation is the page and
the question, and the first of the accepted answers. A page that is too long keeps the lines that
hold the answer and as many lines around them as there is room for.
"""

import json
import multiprocessing
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from fractal_core import hub
from fractal_core.errors import Refused
from fractal_core.files import Files
from fractal_core.memos import exchange

SOURCE = "pixparse/docvqa-single-page-questions"
COMMIT = "33136ef456fa5a3fe68568d6e31dda4eeff95b9b"

COUNTS = {"train": 39_455, "validation": 5_349}
"""How many conversations the published set has."""

MAX_TOKENS = 1_750
MAX_ANSWER = 150
"""Characters; longer answers are left out."""

ALIKE = 85.0
"""From which likeness in percent on an answer counts as found, though it is written otherwise."""

SHORTEST_ALIKE = 4
"""Shorter answers are like something on every page."""

SPECIAL_TOKENS = 6
"""What rendering adds to the texts of a conversation of two turns."""

COLUMNS = ["question_id", "question", "answers", "ocr_results", "other_metadata"]

Match = Literal["exact", "fuzzy", "none"]
TokenCounter = Callable[[str], int]


@dataclass(frozen=True)
class Summary:
    """What is in one split of a prepared set.

    Args:
        rows: How many conversations.
        exact: In how many the answer stands on the page, letter case and line ends aside.
        fuzzy: In how many something stands there that is much like it.
        none: In how many neither.
        truncated: How many pages lost lines.
    """

    rows: int
    exact: int
    fuzzy: int
    none: int
    truncated: int


@dataclass(frozen=True)
class Shard:
    """A file of the source: where it is, and the name of what is made of it."""

    split: str
    address: str
    commit: str | None

    @property
    def part(self) -> str:
        return f"parts/{Path(self.address).stem}.jsonl"

    def open(self) -> AbstractContextManager[Any]:
        if self.commit is None:
            return Path(self.address).open("rb")
        return hub.open_file(SOURCE, self.commit, self.address)


def prepare(
    folder: Path,
    count: TokenCounter,
    fingerprint: str,
    *,
    source: Path | None = None,
    workers: int = 1,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Summary]:
    """Write `train.jsonl` and `validation.jsonl` into a folder, and say what is in them.

    Files of the source are worked on one by one, several at a time; after an interruption the
    finished ones are not made again. Of the Hub only the columns with text are read, not the
    scans, which are nearly all of its 12 GB.

    Args:
        folder: Made if it is not there.
        count: How many tokens a text has; sent to the processes, so a function with a name.
        fingerprint: Of what counts them.
        source: A folder with the parquet files of the set, instead of the Hub.
        workers: How many processes.
        tell: Is told how many files are done, and of how many.

    Raises:
        Refused: The folder holds a set made in another way, or the source cannot be had.
    """
    files = Files(folder)
    made = {"source": str(source or f"{SOURCE}@{COMMIT}"), "tokens": fingerprint}
    if all((folder / f"{split}.jsonl").exists() for split in COUNTS):
        _require_same(files, made)
    else:
        shards = _shards(source)
        _require_same(files, made)
        todo = [shard for shard in shards if not (folder / shard.part).exists()]
        for done, _ in enumerate(_made(files, todo, count, workers), len(shards) - len(todo) + 1):
            tell(done, len(shards))
        for split in COUNTS:
            parts = [files.get(shard.part) for shard in shards if shard.split == split]
            files.put_latest(f"{split}.jsonl", b"".join(parts))
        for shard in shards:
            files.drop(shard.part)
    return {split: summary(folder / f"{split}.jsonl") for split in COUNTS}


def publish(folder: Path, repo: str) -> str:
    """Put a prepared set on the Hub, and return the address of the commit.

    Raises:
        Refused: The folder holds no prepared set, or the Hub does not take it.
    """
    counts = {split: summary(folder / f"{split}.jsonl") for split in COUNTS}
    lines = [f"- {split}: {one.rows:,} conversations" for split, one in counts.items()]
    card = f"# DocVQA as conversations\n\nMade from {SOURCE} at commit {COMMIT}.\n\n"
    Files(folder).put_latest("README.md", (card + "\n".join(lines) + "\n").encode())
    total = sum(one.rows for one in counts.values())
    return hub.publish(folder, repo, f"{total:,} conversations")


def summary(path: Path) -> Summary:
    """What is in a file of a prepared set.

    Raises:
        Refused: There is no such file, or it was not made by `prepare`.
    """
    matches: Counter[str] = Counter()
    truncated = 0
    try:
        with path.open() as file:
            for line in file:
                row = json.loads(line)
                matches[row["match"]] += 1
                truncated += row["truncated"]
    except FileNotFoundError:
        raise Refused(f"there is no {path}; make it with `fractal data docvqa prepare`") from None
    except (ValueError, KeyError, TypeError):
        raise Refused(f"{path} is no file of a prepared set; remove it and prepare again") from None
    return Summary(matches.total(), matches["exact"], matches["fuzzy"], matches["none"], truncated)


def example(row: dict[str, Any], count: TokenCounter) -> dict[str, Any] | None:
    """A row of the source as a conversation with what is known of it; None if it is left out.

    Left out is what has no answer, or one above `MAX_ANSWER` characters.
    """
    answer = next((one.strip() for one in row["answers"] or () if one and one.strip()), "")
    if not answer or len(answer) > MAX_ANSWER:
        return None
    known = row.get("other_metadata") or {}
    page = known.get("ucsf_document_page_no")
    head = [f"Page {page}"] if page else []
    question = row["question"].strip()
    lines = _lines(row)
    frame = exchange("\n".join([*head, ""]), question, answer)["messages"]
    room = MAX_TOKENS - SPECIAL_TOKENS - sum(count(turn["content"]) for turn in frame)
    match, held = locate(lines, answer)
    kept = lines
    if count("\n".join(lines)) > room:
        lines = [piece for line in lines for piece in textwrap.wrap(line, 200)]
        match, held = locate(lines, answer)
        kept = within(lines, held, count, room)
    return {
        **exchange("\n".join([*head, *kept]), question, answer),
        "question_id": row["question_id"],
        "document": known.get("ucsf_document_id"),
        "page": page,
        "match": match,
        "truncated": len(kept) < len(lines),
    }


def locate(lines: Sequence[str], answer: str) -> tuple[Match, range]:
    """Whether and in which lines an answer stands, whatever its letter case and line ends.

    `exact` are whole words. `fuzzy` is a stretch of text that is at least `ALIKE` percent like the
    answer (the normalised indel similarity of rapidfuzz).
    """
    texts = [" ".join(line.lower().split()) for line in lines]
    text, wanted = " ".join(texts), " ".join(answer.lower().split())
    found = re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", text)
    if found is not None:
        return "exact", _spanned(texts, *found.span())
    if not SHORTEST_ALIKE <= len(wanted) <= len(text):
        return "none", range(0)
    alike = _rapidfuzz().fuzz.partial_ratio_alignment(wanted, text, score_cutoff=ALIKE)
    if alike is None:
        return "none", range(0)
    return "fuzzy", _spanned(texts, alike.dest_start, alike.dest_end)


def within(lines: Sequence[str], held: range, count: TokenCounter, room: int) -> list[str]:
    """The lines of a range and as many around it as there is room for, in reading order.

    The nearest come first, above and below in turn. Without a range it begins with the first.
    """
    costs = [count(line + "\n") for line in lines]
    low, high = held.start, held.stop
    used = sum(costs[low:high])
    while True:
        above = low > 0 and used + costs[low - 1] <= room
        below = high < len(lines) and used + costs[high] <= room
        if not (above or below):
            break
        if above and (not below or held.start - low <= high - held.stop):
            low -= 1
            used += costs[low]
        else:
            used += costs[high]
            high += 1
    while count("\n".join(lines[low:high])) > room and (low, high) != (held.start, held.stop):
        if held.start - low > high - held.stop:
            low += 1
        else:
            high -= 1
    return list(lines[low:high])


def _made(
    files: Files, shards: Sequence[Shard], count: TokenCounter, workers: int
) -> Iterator[None]:
    make = partial(_make, files.root, count)
    if workers == 1 or len(shards) < 2:
        yield from map(make, shards)
        return
    # A tokenizer may hold threads and torch; a process that begins anew inherits neither.
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(min(workers, len(shards)), mp_context=context) as pool:
            yield from pool.map(make, shards)
    except BrokenProcessPool:
        raise Refused(
            "a process was killed, perhaps for want of memory; the same command goes on where it "
            "was, with fewer --workers if need be"
        ) from None


def _make(folder: Path, count: TokenCounter, shard: Shard) -> None:
    def convert() -> bytes:
        import pyarrow.parquet as pq

        made = []
        with shard.open() as file, pq.ParquetFile(file) as table:
            absent = set(COLUMNS) - set(table.schema_arrow.names)
            if absent:
                raise Refused(f"{shard.address} has no column {', '.join(sorted(absent))}")
            for batch in table.iter_batches(batch_size=256, columns=COLUMNS):
                made += [one for row in batch.to_pylist() if (one := example(row, count))]
        return "".join(json.dumps(one) + "\n" for one in made).encode()

    _rapidfuzz()
    Files(folder).put_latest(shard.part, hub.asked(shard.address, convert))


def _shards(source: Path | None) -> list[Shard]:
    if source is None:
        names, commit = list(hub.files_of(SOURCE, COMMIT)), COMMIT
    else:
        names, commit = [str(path) for path in source.rglob("*.parquet")], None
    found = [
        Shard(match[1], name, commit)
        for name in sorted(names)
        if (match := re.match(r"(train|validation)-.*\.parquet$", Path(name).name))
    ]
    for split in COUNTS:
        if not any(shard.split == split for shard in found):
            raise Refused(f"{source or SOURCE} has no file {split}-*.parquet")
    return found


def _require_same(files: Files, made: dict[str, str]) -> None:
    recipe = json.dumps(made | {"limits": [MAX_TOKENS, MAX_ANSWER, ALIKE]}, sort_keys=True)
    if not files.put_once("recipe.json", recipe.encode()) and (
        files.get("recipe.json") != recipe.encode()
    ):
        raise Refused(
            f"{files.root} holds a set that was made from another source or with another "
            "tokenizer; choose another folder"
        )


def _lines(row: dict[str, Any]) -> list[str]:
    lines = (row["ocr_results"] or {}).get("lines") or ()
    texts = [line.get("text") or " ".join(w["text"] for w in line["words"]) for line in lines]
    return [text.strip() for text in texts if text.strip()]


def _spanned(texts: Sequence[str], start: int, stop: int) -> range:
    """The lines that the characters from start to stop of the joined texts stand in."""
    low = high = None
    place = 0
    for number, text in enumerate(texts):
        if place < stop and start < place + len(text):
            low = number if low is None else low
            high = number + 1
        place += len(text) + 1
    return range(low or 0, high or 0)


def _rapidfuzz() -> Any:
    try:
        import rapidfuzz
    except ModuleNotFoundError:
        raise Refused(
            "answers are looked for with the package rapidfuzz; run `uv sync --extra data`"
        ) from None
    return rapidfuzz
