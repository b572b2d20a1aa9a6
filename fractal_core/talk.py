"""Talking with language models in a notebook: which there are, one answer, and two side by side.

Models are held once per process, whoever talks with them, and only the last few. An answer ends by
itself: after so many tokens, after so many seconds, or when the context is full; the notebook's own
Stop does not reach it. A model is loaded when it is first asked, never before. As all that knows
nanochat this is an adapter: it imports it only where it is asked for.
"""

import collections
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fractal_core import base, conversations, errands, experiments, single
from fractal_core.errors import Refused, as_ours, first_line
from fractal_core.finetune import FineTune, source_of
from fractal_core.storage import nanochat_folder, storage

if TYPE_CHECKING:
    from nanochat.engine import Engine

HELD = 2
"""Models in memory at a time: one, and another beside it."""

SHOWN_EVERY = 0.05
"""Seconds between two looks at the second answer while it grows."""

LEAST_ROOM = 16
"""Tokens that an answer can have, however long the question is."""

BEFORE = {"mid": "base", "sft": "mid", "rl": "sft"}
"""The stage that each stage of nanochat starts from."""

NOTE = "\n\n*("
"""Begins what is said about an answer; it is no part of it, and no model ever reads it."""

FINE_TUNED = f"{single.FOLDER}/checkpoint"

ELSEWHERE = ("hf:", "wandb:")

Turn = tuple[str, str]
"""A role and what was said."""

_lock = threading.Lock()
_held: "collections.OrderedDict[tuple[str, int, int], Engine]" = collections.OrderedDict()


@dataclass(frozen=True)
class Manner:
    """How an answer is drawn, and when it ends.

    Args:
        temperature: How freely; 0 always takes the likeliest token.
        top_k: Among how many tokens; 0 is all.
        max_tokens: How long it may get.
        seconds: How long it may take.
        seed: The same seed gives the same answer to the same conversation.
    """

    temperature: float = 0.8
    top_k: int = 50
    max_tokens: int = 128
    seconds: float = 60.0
    seed: int = 0


@dataclass(frozen=True)
class Sample:
    """A question of a data set.

    Args:
        label: What it is called on the page.
        question: The question alone.
        document: What it is about, or nothing.
        turn: Both, as the model is asked.
        expected: The answer of the data set.
    """

    label: str
    question: str
    document: str
    turn: str
    expected: str


def found(root: Path) -> dict[str, str]:
    """The checkpoints on this machine, newest first: what to call them, and their sources."""
    from nanochat.checkpoint_manager import FOLDERS, find_steps

    places = {f"{p.parents[1].name}, fine-tuned": p for p in root.glob(f"*/{FINE_TUNED}")}
    homes = {path.name: path for path in root.glob("*") if path.is_dir()}
    homes["$NANOCHAT_BASE_DIR"] = nanochat_folder()
    for name, home in homes.items():
        for stage, folder in FOLDERS.items():
            places |= {f"{name}, {stage} {p.name}": p for p in (home / folder).glob("*")}
    dated = {
        label: (path.stat().st_mtime, str(path))
        for label, path in places.items()
        if find_steps(path)
    }
    if _has_base():
        dated["the small base model"] = (base.folder().stat().st_mtime, "builtin")
    return {label: dated[label][1] for label in sorted(dated, key=lambda one: -dated[one][0])}


def _has_base() -> bool:
    try:
        return base.folder().is_dir()
    except Refused:
        return False


def before(source: str, fetches: bool = True) -> str | None:
    """What a checkpoint was trained from, if that is known: the other one to talk with.

    Args:
        source: The checkpoint.
        fetches: Whether the other one may be fetched from a network.
    """
    from nanochat.checkpoint_manager import FOLDERS, find_steps

    path = Path(source)
    run = path.parent.parent
    if path.name == "checkpoint" and (run / "sweep.json").exists():
        try:
            found = _recipe(run).checkpoint
            return found if fetches or not found.startswith(ELSEWHERE) else None
        except (Refused, OSError):
            return None
    stages = {folder: stage for stage, folder in FOLDERS.items()}
    stage = BEFORE.get(stages.get(path.parent.name, ""))
    if stage and find_steps(earlier := run / FOLDERS[stage] / path.name):
        return str(earlier)
    return None


def data_of(source: str) -> str:
    """The conversations that a fine-tuned checkpoint was trained on, if they need no network."""
    run = Path(source).parent.parent
    if (run / "sweep.json").exists():
        try:
            data = _recipe(run).data
        except (Refused, OSError):
            return "builtin"
        if data != "docvqa" and not data.startswith("hf:"):
            return data
    return "builtin"


def _recipe(run: Path) -> FineTune:
    experiment = experiments.read_run(run).sweep.experiment
    if not isinstance(experiment, FineTune):
        raise Refused(f"{run} is no fine-tuning run")
    return experiment


def samples(data: str, count: int = 8, fetches: bool = True) -> list[Sample]:
    """The first questions of a data set's validation split.

    Args:
        data: As `FineTune` takes it.
        count: How many.
        fetches: Whether it may be fetched from the Hub.

    Raises:
        Refused: The data cannot be had.
    """
    if not fetches and (data == "docvqa" or data.startswith("hf:")):
        raise Refused(f"{data} comes from the Hub; open with --allow-control to fetch")
    chosen = []
    for talk in conversations.conversations(data, "validation")[:count]:
        said = [m for m in talk["messages"] if m["role"] != "system"]
        turn, expected = single.plain(said[0]["content"]), single.plain(said[1]["content"])
        document, _, question = turn.rpartition("\n\nQuestion: ")
        shown = " ".join(question.split())
        chosen.append(
            Sample(
                f"Q{len(chosen) + 1}: {shown[:100]}",
                question,
                document.removeprefix("Document:\n"),
                turn,
                expected,
            )
        )
    return chosen


def make_base() -> int:
    """Begin to make the base model in the background; returns the process."""
    return errands.start(storage() / "base", ["fractal_core", "base"])


def base_errand() -> errands.Errand | None:
    """How far the making of the base model is, if it was begun."""
    return errands.last(storage() / "base")


def voice(source: str) -> "Engine":
    """The model of a checkpoint, from memory if it is held; on a GPU if there is one.

    Raises:
        Refused: It cannot be had.
    """
    import torch
    from nanochat import checkpoint_manager, common
    from nanochat.engine import Engine

    with _lock, as_ours(common.Refused):
        place = checkpoint_manager.locate(
            checkpoint_manager.source_folder(source_of(source.strip()))
        )
        folder, step = place
        stamp = (folder / f"model_{step:06d}.pt").stat().st_mtime_ns
        key = (str(folder.resolve()), step, stamp)
        if key not in _held:
            while len(_held) >= HELD:
                _held.popitem(last=False)
            device = torch.device(common.autodetect_device_type())
            model, tokenizer, _ = checkpoint_manager.build_model(folder, step, device, "eval")
            _held[key] = Engine(model, tokenizer)
        _held.move_to_end(key)
        return _held[key]


def answer(engine: "Engine", turns: Sequence[Turn], manner: Manner) -> Iterator[str]:
    """The next turn of the assistant, piece by piece; a note at its end says what cut it off.

    The oldest turns are forgotten where the context is too short for all of them.

    Raises:
        Refused: The last question alone is too long, or the manner is out of range.
    """
    from nanochat import common
    from nanochat.engine import TextStream
    from nanochat.questions import Question, Sampling

    tokenizer, context = engine.tokenizer, engine.model.config.sequence_len
    ends = [tokenizer.encode_special(f"<|{name}|>") for name in ("assistant_end", "bos")]
    deadline = time.monotonic() + manner.seconds
    with as_ours(common.Refused):
        tokens = Question(tuple(turns), Sampling()).prompt(tokenizer)
        try:
            tokens = engine.fit(tokens, min(manner.max_tokens, context // 2))
        except common.Refused:  # a long question gets a short answer rather than none
            tokens = engine.fit(tokens, LEAST_ROOM)
        stream, said, cut = TextStream(tokenizer), 0, ""
        for column, _ in engine.generate(
            tokens,
            max_tokens=manner.max_tokens,
            temperature=manner.temperature,
            top_k=manner.top_k or None,
            seed=manner.seed,
        ):
            if column[0] in ends:
                break
            said += 1
            if text := stream.push(column[0]):
                yield text
            if time.monotonic() > deadline:
                cut = f"cut off after {manner.seconds:g} seconds"
                break
        else:
            full = said < manner.max_tokens
            cut = "the context is full" if full else f"cut off after {said} tokens"
    if text := stream.rest():
        yield text
    if cut or not said:
        yield note(cut or "it said nothing")


def note(text: str) -> str:
    """What is said about an answer."""
    return f"{NOTE}{text})*"


def without_notes(text: str) -> str:
    """An answer, without what is said about it."""
    return text.rpartition(NOTE)[0] if text.endswith(")*") and NOTE in text else text


def borne(pieces: Iterator[str]) -> Iterator[str]:
    """An answer piece by piece, and a note about whatever breaks it off."""
    try:
        yield from pieces
    except Refused as error:
        yield note(str(error))
    except Exception as error:  # noqa: BLE001 - a reader of a page is shown no traceback
        yield note(f"the answer broke off: {first_line(error)}")


@dataclass
class Talk:
    """What the chat of a notebook calls: one model answers in it, another one beside it.

    Args:
        sources: One checkpoint or two; the first answers in the chat. What stands in it when they
            are first asked was said by others, and is not told to them.
        manner: Asked anew for every answer, so that sliders do not begin the chat again.
        samples: Questions that are asked by their label, with their documents.
        show: Hears what the second model's side holds, as turns of a `Transcript`.
        fetches: Whether a checkpoint may be fetched from a network.
    """

    sources: Sequence[str]
    manner: Callable[[], Manner]
    samples: Sequence[Sample] = ()
    show: Callable[[list[dict[str, str]]], None] = lambda turns: None
    fetches: bool = True
    _beside: list[str] = field(default_factory=list)
    _others: int | None = None

    def __call__(self, messages: Sequence[Any], config: Any = None) -> Iterator[str]:
        """The answer of the first model, piece by piece. Whatever goes wrong is said in a line."""
        yield from borne(self._answered(messages))

    def _answered(self, messages: Sequence[Any]) -> Iterator[str]:
        spoken = self._own(
            [(m.role, m.content if isinstance(m.content, str) else "") for m in messages]
        )
        typed = [text for role, text in spoken if role == "user"]
        asked = [self.meant(text) for text in typed]
        follows = [*spoken[1:], ("", "")]  # an answer that was stopped may be missing
        own = [
            said if who == "assistant" else ""
            for (role, _), (who, said) in zip(spoken, follows, strict=True)
            if role == "user"
        ]
        for source in self.sources if not self.fetches else ():
            if source.startswith(ELSEWHERE):
                raise Refused("open with --allow-control to fetch a checkpoint")
        voices = [voice(source) for source in self.sources]
        manner, expected = self.manner(), self._expected(spoken[-1][1])
        del self._beside[len(asked) - 1 :]
        sides = zip(voices, (own, self._beside), strict=False)
        parts = [borne(answer(one, _turns(asked, said), manner)) for one, said in sides]
        heard, told = "", 0.0
        try:
            for piece, other in itertools.zip_longest(parts[0], *parts[1:2] or [()], fillvalue=""):
                heard += other
                if other and time.monotonic() > told + SHOWN_EVERY:
                    self._tell(typed, heard)
                    told = time.monotonic()
                if piece:
                    yield piece
        finally:
            if len(voices) > 1:
                self._tell(typed, heard)
                self._beside.append(heard)
        if expected:
            yield note(f"the data set's answer: {expected}")

    def _own(self, spoken: list[Turn]) -> list[Turn]:
        """The turns from the first question on that these models were asked."""
        asked = [place for place, (role, _) in enumerate(spoken) if role == "user"]
        last = len(asked) - 1
        self._others = last if self._others is None else min(self._others, last)
        return spoken[asked[self._others] :]

    def meant(self, text: str) -> str:
        """What the models are asked: a sample for its label, and all else as it is."""
        text = text.strip()
        return next((sample.turn for sample in self.samples if sample.label == text), text)

    def _expected(self, text: str) -> str:
        text = text.strip()
        return next((s.expected for s in self.samples if s.label == text), "")

    def _tell(self, typed: Sequence[str], heard: str) -> None:
        turns = []
        for question, text in zip(typed, [*self._beside, heard], strict=False):
            turns += [{"role": "user", "text": question}]
            turns += [{"role": "assistant", "text": text.replace(NOTE, "\n(").replace(")*", ")")}]
        self.show(turns)


def _turns(asked: Sequence[str], answers: Sequence[str]) -> list[Turn]:
    """Questions and what was answered to them; one without an answer is left out."""
    turns: list[Turn] = []
    for question, text in zip(asked, answers, strict=False):
        if kept := without_notes(text).strip():
            turns += [("user", question), ("assistant", kept)]
    return [*turns, ("user", asked[-1])]
