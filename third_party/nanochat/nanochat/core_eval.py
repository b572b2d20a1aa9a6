"""The CORE metric (Li et al. 2024, DataComp-LM): the mean of many tasks' centred accuracies.

A base model is not asked, it is measured by what it finds likely. Solved examples stand before
each question, with blank lines between them:

    multiple_choice      one question and several answers: the answer of the lowest loss a token
    schema               several beginnings and one end: the beginning that makes the end likeliest
    language_modeling    the likeliest token must be the right one at every place of the answer

A centred accuracy is 0 for guessing and 1 for all right.
"""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from nanochat.common import done_by_all, get_dist_info
from nanochat.core_bundle import CoreTask, Row
from nanochat.shares import Limits, centered, exact_interval, interval_of_mean

ORDER_SEED = 1337
SHOTS_SEED = 1234


@dataclass(frozen=True)
class Span:
    """A text as tokens, and which of them are looked at.

    Args:
        tokens: The text, which begins with the token that stands before documents.
        start: The first token that is looked at, never the first of the text.
        end: The one after the last.
    """

    tokens: list[int]
    start: int
    end: int

    def cropped(self, limit: int | None) -> "Span":
        """Without the beginning of what is longer than a model can read."""
        cut = max(0, len(self.tokens) - limit) if limit else 0
        return Span(self.tokens[cut:], max(1, self.start - cut), self.end - cut)


@dataclass(frozen=True)
class Outcome:
    """What came of a task."""

    label: str
    right: int
    count: int
    chance: float

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return self.right / self.count

    @property
    def limits(self) -> Limits:
        """Between which it is known, with 95 percent."""
        return exact_interval(self.right, self.count)

    @property
    def centered(self) -> float:
        """The accuracy with guessing at 0."""
        return centered(self.accuracy, self.chance)

    @property
    def centered_limits(self) -> Limits:
        """Between which that is known, with 95 percent."""
        low, high = self.limits
        return centered(low, self.chance), centered(high, self.chance)


def core_metric(outcomes: Sequence[Outcome]) -> tuple[float, Limits]:
    """The mean of the centred accuracies, and between which limits of 95 percent it is known."""
    values = [outcome.centered for outcome in outcomes]
    return sum(values) / len(values), interval_of_mean(
        values, [outcome.centered_limits for outcome in outcomes]
    )


def evaluate_task(
    model: Any, tokenizer: Any, task: CoreTask, device: torch.device, max_per_task: int = -1
) -> Outcome:
    """How many questions of a task a model answers right; processes share the questions.

    Args:
        model: Gives logits (B, T, V) for ids (B, T).
        tokenizer: Its own.
        task: The task.
        device: Where the model is.
        max_per_task: So many questions at most; -1 is all of them.
    """

    def own() -> tuple[int, int]:
        rows = list(task.load())
        random.Random(ORDER_SEED).shuffle(rows)
        rows = rows[:max_per_task] if max_per_task > 0 else rows
        _, rank, _, world = get_dist_info()
        asked = range(rank, len(rows), world)
        bar = tqdm(asked, desc=task.label, leave=False, disable=True if rank else None)
        right = sum(evaluate_example(model, tokenizer, task, rows, i, device) for i in bar)
        return right, len(rows)

    parts = done_by_all(own)
    return Outcome(task.label, sum(right for right, _ in parts), parts[0][1], task.chance)


def evaluate_example(
    model: Any,
    tokenizer: Any,
    task: CoreTask,
    rows: Sequence[Row],
    index: int,
    device: torch.device,
) -> bool:
    """Whether a model answers one question right."""
    row = rows[index]
    found = spans(tokenizer, task, row, examples(rows, index, task.shots))
    limit = longest(model)
    losses, hits = looked_at(
        model, [span.cropped(limit) for span in found], tokenizer.get_bos_token_id(), device
    )
    if task.kind == "language_modeling":
        return hits[0]
    return min(range(len(losses)), key=losses.__getitem__) == row["gold"]


def examples(rows: Sequence[Row], index: int, shots: int) -> list[Row]:
    """Other rows, drawn anew for every question."""
    others = [i for i in range(len(rows)) if i != index]
    drawn = random.Random(SHOTS_SEED + index).sample(others, min(shots, len(others)))
    return [rows[i] for i in drawn]


def prompts(task: CoreTask, row: Row, solved: Sequence[Row]) -> list[str]:
    """A text for each answer or beginning; of language modelling, without and with the answer."""
    if task.kind == "multiple_choice":
        answers = [(row["query"], choice) for choice in row["choices"]]
        before = [(shot["query"], shot["choices"][shot["gold"]]) for shot in solved]
    elif task.kind == "schema":
        answers = [(context, row["continuation"]) for context in row["context_options"]]
        before = [(shot["context_options"][shot["gold"]], shot["continuation"]) for shot in solved]
    else:
        answers = [(row["context"].strip(), end) for end in ("", row["continuation"])]
        before = [(shot["context"].strip(), shot["continuation"]) for shot in solved]
    texts = [
        "\n\n".join(task.delimiter.join(pair) for pair in (*before, answer)) for answer in answers
    ]
    if task.kind == "language_modeling":
        texts[0] = texts[0].strip()  # a space belongs to the token after it
    return texts


def spans(tokenizer: Any, task: CoreTask, row: Row, solved: Sequence[Row]) -> list[Span]:
    """What is to be read, and where to look: at what differs, or at the end that all share."""
    texts = prompts(task, row, solved)
    ids = tokenizer(texts, prepend=tokenizer.get_bos_token_id())
    if task.kind == "schema":
        shared = _alike([tokens[::-1] for tokens in ids])
        return [Span(t, max(1, len(t) - shared), len(t)) for t in ids]
    # What all texts begin with; a token that reaches into the answer belongs to the answer.
    start = max(1, min(_alike(ids), min(map(len, ids)) - (task.kind == "multiple_choice")))
    if task.kind == "language_modeling":
        ids = ids[1:]
    return [Span(tokens, start, len(tokens)) for tokens in ids]


@torch.inference_mode()
def looked_at(
    model: Any, read: Sequence[Span], pad: int, device: torch.device
) -> tuple[list[float], list[bool]]:
    """For each text the mean loss of what is looked at, and whether all of it was the likeliest."""
    ids = padded([span.tokens for span in read], pad, device)
    sizes = [span.end - span.start for span in read]
    places = [range(span.start - 1, span.end - 1) for span in read]
    rows = torch.arange(len(read), device=device).repeat_interleave(
        torch.tensor(sizes, device=device)
    )
    positions = torch.tensor(list(itertools.chain(*places)), device=device)
    logits, targets = logits_at(model, ids, rows, positions), ids[rows, positions + 1]
    losses = F.cross_entropy(logits.float(), targets, reduction="none").split(sizes)
    hits = (logits.argmax(-1) == targets).split(sizes)
    return [float(part.mean()) for part in losses], [bool(part.all()) for part in hits]


def logits_at(model: Any, ids: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
    """Logits (N, V) at N places of ids (B, T), of any model."""
    if hasattr(model, "logits_at"):
        return model.logits_at(ids, rows, positions)
    return model(ids)[rows, positions]


def padded(texts: Sequence[Sequence[int]], pad: int, device: torch.device) -> Tensor:
    """Texts as rows, filled up on the right, where no token before sees it."""
    width = max(map(len, texts))
    return torch.tensor([[*text, *[pad] * (width - len(text))] for text in texts], device=device)


def longest(model: Any) -> int | None:
    """How many tokens a model can read: of ours, as many as its rotary tables have rows."""
    tables = getattr(model, "cos", None)
    return getattr(model, "max_seq_len", None) if tables is None else tables.size(1)


def _alike(texts: Sequence[Sequence[int]]) -> int:
    """How many tokens all texts begin with."""
    pairs = enumerate(zip(*texts, strict=False))
    return next((i for i, column in pairs if len(set(column)) > 1), min(map(len, texts)))
