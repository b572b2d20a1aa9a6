"""What is fine-tuned on: conversations, tokenised once and kept by their content.

    builtin                     generated memos, invoices, tables and letters; no network
    docvqa                      the published DocVQA conversations, hf:morgan/docvqa-nanochat
    hf:org/name, ...@revision   a set on the Hugging Face Hub with a column `messages`
    talk.jsonl                  a file of JSON lines; every twentieth conversation is for validation
    talk.jsonl,held.jsonl       a file to train on and one for validation

A branch of a set on the Hub is looked up once and its commit remembered, so that what a sweep was
trained on does not change under it.
"""

import hashlib
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from filelock import FileLock
from jaxtyping import Bool, Int32, Int64

from fractal_core import hub, memos, messages
from fractal_core.errors import Refused
from fractal_core.files import Files
from fractal_core.messages import Conversation
from fractal_core.storage import storage as storage

Split = Literal["train", "validation"]

Renderer = Callable[[Conversation, int], tuple[Sequence[int], Sequence[int]]]
"""Turns a conversation and a number of tokens into ids and mask, at most so many of each."""

PUBLISHED = "morgan/docvqa-nanochat"
REVISION = "main"
"""What `docvqa` stands for. The authors name no commit, so the one first met is remembered."""

HELD_OUT = 20
"""Every so many conversations one is for validation, where a source does not say which are."""

FORMAT = "tokens-1"


@dataclass(frozen=True, eq=False)
class TokenSet:
    """Rows of tokens, one for each conversation that has something to learn, laid end to end.

    Args:
        ids: The tokens of all rows.
        learned: Which of them are learned. The first of a row never is: nothing predicts it.
        starts: Where each row begins, and in the end how many tokens there are.
        passed_over: How many conversations had nothing to learn within the limit.
        truncated: How many rows lost their end to the limit.
    """

    ids: Int32[np.ndarray, " tokens"]
    learned: Bool[np.ndarray, " tokens"]
    starts: Int64[np.ndarray, " rows_1"]
    passed_over: int = 0
    truncated: int = 0

    def __post_init__(self) -> None:
        for array in (self.ids, self.learned, self.starts):
            array.flags.writeable = False

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.starts) - 1

    def row(self, i: int) -> tuple[Int32[np.ndarray, " length"], Bool[np.ndarray, " length"]]:
        """Tokens of row `i`, and which of them are learned."""
        part = slice(self.starts[i], self.starts[i + 1])
        return self.ids[part], self.learned[part]

    @property
    def supervised(self) -> Int64[np.ndarray, " rows"]:
        """How many tokens are learned in each row."""
        total = np.concatenate([[0], np.cumsum(self.learned, dtype=np.int64)])
        first = self.learned[self.starts[:-1]]
        return total[self.starts[1:]] - total[self.starts[:-1]] - first

    @cached_property
    def digest(self) -> str:
        """SHA-256 over tokens, what is learned and where rows begin."""
        content = hashlib.sha256(f"{FORMAT} {len(self.ids)} {self.rows}\n".encode())
        content.update(self.ids.astype("<i4").tobytes())
        content.update(self.learned.tobytes())
        content.update(self.starts.astype("<i8").tobytes())
        return content.hexdigest()


def conversations(source: str, split: Split) -> list[Conversation]:
    """All conversations of a source's split, in its own order.

    Raises:
        Refused: The source is none of the above, cannot be had, or holds what is no conversation.
    """
    return _origin(source).read(split)


def pinned(source: str) -> str:
    """The source with what fixes its content: a commit, or a digest of the texts themselves.

    Raises:
        Refused: The source is none of the above, or a branch was never looked up and cannot be.
    """
    return _origin(source).pinned()


def tokenised(
    source: str, split: Split, renderer: Renderer, fingerprint: str, max_tokens: int
) -> TokenSet:
    """The conversations of a source's split as tokens, from the cache if they are there.

    What is kept is checked when it is read, and made again if it is damaged. Of several processes
    that ask at once one makes it.

    Args:
        source: As above.
        split: train or validation.
        renderer: Makes tokens; called only for what is not kept.
        fingerprint: Of the tokenizer behind it.
        max_tokens: How long a row may be; the rest of it is cut off.

    Raises:
        Refused: The source cannot be had, or there is nothing to learn in any of it.
    """
    if max_tokens < 2:
        raise Refused(f"rows of {max_tokens} tokens predict nothing; allow at least 2")
    origin = _origin(source)
    files = Files(storage() / "tokens")
    key = _key(origin.pinned(), split, fingerprint, max_tokens)
    kept = _read(files, key)
    if kept is None:
        files.root.mkdir(parents=True, exist_ok=True)
        with FileLock(files.root / f"{key}.lock"):
            kept = _read(files, key)
            if kept is None:
                kept = _render(source, split, origin.read(split), renderer, max_tokens)
                files.put_latest(key, _packed(kept))
    return kept


def digest_of(source: str, split: Split, fingerprint: str, max_tokens: int) -> str | None:
    """The digest of what `tokenised` would return, if it is kept; no tokens are read for it.

    Raises:
        Refused: The source is none of the above, or a file of it cannot be read.
    """
    known = _origin(source).known()
    if known is None:
        return None
    path = storage() / "tokens" / _key(known, split, fingerprint, max_tokens)
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            return str(arrays["digest"])
    except Exception:  # noqa: BLE001 - a damaged archive raises whatever its reader stumbles over
        return None


class Origin(ABC):
    """Where conversations come from."""

    @abstractmethod
    def pinned(self) -> str:
        """The source with what fixes its content."""

    def known(self) -> str | None:
        """The same, or None where that would take a network."""
        return self.pinned()

    @abstractmethod
    def read(self, split: Split) -> list[Conversation]:
        """The conversations of a split."""


class Generated(Origin):
    """The documents that are made here."""

    def pinned(self) -> str:
        return f"builtin@{memos.digest()}"

    def read(self, split: Split) -> list[Conversation]:
        return memos.conversations(split)


@dataclass(frozen=True)
class Lines(Origin):
    """Files of JSON lines; with one alone, some of its conversations are for validation."""

    train: Path
    validation: Path | None

    def pinned(self) -> str:
        paths = [self.train, *([self.validation] if self.validation else [])]
        return f"jsonl@{','.join(_file_digest(path) for path in paths)}"

    def read(self, split: Split) -> list[Conversation]:
        if self.validation is not None:
            return messages.read_lines(self.train if split == "train" else self.validation)
        return _held_out(str(self.train), messages.read_lines(self.train), split)


@dataclass(frozen=True)
class OnHub(Origin):
    """A set on the Hugging Face Hub."""

    repo: str
    revision: str

    @property
    def files(self) -> Files:
        """Where everything of this set is kept."""
        return Files(storage() / "hub" / self.repo.replace("/", "--"))

    def known(self) -> str | None:
        commit = self._remembered()
        return None if commit is None else f"hf:{self.repo}@{commit}"

    def pinned(self) -> str:
        return f"hf:{self.repo}@{self.commit()}"

    def commit(self) -> str:
        """The commit of the revision: remembered, or looked up for the first time."""
        known = self._remembered()
        if known is None:
            self.files.root.mkdir(parents=True, exist_ok=True)
            with FileLock(self.files.root / "lock"):
                known = self._remembered() or hub.commit_of(self.repo, self.revision)
                self.files.put_latest(self._pin, json.dumps({"commit": known}).encode())
        return known

    def folder(self) -> Path:
        """Where the files of the commit lie."""
        return self.files.root / self.commit()

    def fetch(self) -> list[str]:
        """Fetch what is missing; returns the names of what was fetched."""
        folder = self.folder()
        if not hub.missing(folder):  # so that a storage folder may be read-only once it is full
            return []
        with FileLock(self.files.root / "lock"):
            return hub.fetch(self.repo, folder.name, folder)

    def read(self, split: Split) -> list[Conversation]:
        self.fetch()
        names = hub.splits(self.folder())
        if "train" not in names:
            raise Refused(f"{self.pinned()} has no split train but {', '.join(names)}")
        held = next((name for name in ("validation", "test") if name in names), None)
        chosen = held if held and split == "validation" else "train"
        found = []
        for number, row in enumerate(hub.rows(self.folder(), chosen, "messages")):
            try:
                found.append(messages.checked(row))
            except ValueError as error:
                raise Refused(f"{self.pinned()}, row {number} of {chosen}: {error}") from None
        return found if held else _held_out(self.pinned(), found, split)

    @property
    def _pin(self) -> str:
        return f"pins/{self.revision.replace('/', '--')}.json"

    def _remembered(self) -> str | None:
        if hub.COMMIT.fullmatch(self.revision):
            return self.revision
        try:
            commit = json.loads(self.files.get(self._pin))["commit"]
            return commit if hub.COMMIT.fullmatch(commit) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


def published() -> OnHub:
    """The DocVQA conversations that the published fine-tuning map was made with."""
    return OnHub(PUBLISHED, REVISION)


def _origin(source: str) -> Origin:
    if source == "builtin":
        return Generated()
    if source == "docvqa":
        return published()
    if source.startswith("hf:"):
        repo, _, revision = source.removeprefix("hf:").partition("@")
        if not hub.NAME.fullmatch(repo):
            raise Refused(f"{source} does not look like hf:org/name or hf:org/name@revision")
        return OnHub(repo, revision or "main")
    path = Path(source).expanduser()
    first, comma, second = source.partition(",")
    pair = comma and not path.is_file()
    paths = [Path(first).expanduser(), Path(second).expanduser()] if pair else [path]
    for one in paths:
        if not one.is_file():
            raise Refused(
                f"there is no file {one}; training data are builtin, docvqa, hf:org/name@revision, "
                "FILE.jsonl or TRAIN.jsonl,VALIDATION.jsonl"
            )
    return Lines(paths[0], paths[1] if pair else None)


def _held_out(what: str, found: list[Conversation], split: Split) -> list[Conversation]:
    if len(found) < 2:
        raise Refused(
            f"{what} has one conversation, which cannot be both for training and for validation; "
            "add more, or name a second file after a comma"
        )
    held = set(range(HELD_OUT - 1, len(found), HELD_OUT)) or {len(found) - 1}
    return [one for i, one in enumerate(found) if (i in held) == (split == "validation")]


def _render(
    source: str,
    split: str,
    found: Iterable[Conversation],
    renderer: Renderer,
    max_tokens: int,
) -> TokenSet:
    ids, learned, starts = [], [], [0]
    passed_over = truncated = 0
    for number, conversation in enumerate(found):
        row: Sequence[int] = ()
        mask: Sequence[int] = ()
        if messages.is_answered(conversation):
            try:  # one token more than is kept tells whether something is cut off
                row, mask = renderer(conversation, max_tokens + 1)
            except ValueError as error:
                raise Refused(f"{source}, conversation {number} of {split}: {error}") from None
        if not any(mask[1:max_tokens]):
            passed_over += 1
            continue
        truncated += len(row) > max_tokens
        ids.append(np.asarray(row[:max_tokens], np.int32))
        learned.append(np.asarray(mask[:max_tokens], bool))
        starts.append(starts[-1] + len(ids[-1]))
    if not ids:
        raise Refused(
            f"no conversation of {source} has anything to learn within {max_tokens} tokens; "
            "allow more of them or choose other data"
        )
    return TokenSet(
        np.concatenate(ids),
        np.concatenate(learned),
        np.array(starts, np.int64),
        passed_over,
        truncated,
    )


def _key(known: str, split: str, fingerprint: str, max_tokens: int) -> str:
    recipe = json.dumps([FORMAT, known, split, fingerprint, max_tokens])
    return f"{split}-{hashlib.sha256(recipe.encode()).hexdigest()[:32]}.npz"


def _packed(tokens: TokenSet) -> bytes:
    data = io.BytesIO()
    np.savez(
        data,
        digest=np.array(tokens.digest),
        counts=np.array([tokens.passed_over, tokens.truncated], np.int64),
        ids=tokens.ids,
        learned=tokens.learned,
        starts=tokens.starts,
    )
    return data.getvalue()


def _read(files: Files, key: str) -> TokenSet | None:
    """What is kept under a key, if it is there and says of itself what it is."""
    try:
        with np.load(io.BytesIO(files.get(key))) as kept:
            passed_over, truncated = kept["counts"].tolist()
            tokens = TokenSet(kept["ids"], kept["learned"], kept["starts"], passed_over, truncated)
            return tokens if tokens.digest == str(kept["digest"]) else None
    except Exception:  # noqa: BLE001 - a damaged archive raises whatever its reader stumbles over
        return None


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
