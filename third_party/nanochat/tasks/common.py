"""What a set of conversations is, and sets made of sets.

A task is a sequence of conversations, each {"messages": [...]}, perhaps with more keys that say
what the right answer is. `start`, `stop` and `step` make a view of some of its rows.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from nanochat.common import Refused, Unavailable

Conversation = Mapping[str, Any]


class Task:
    """A view of the rows start, start + step, ... of a set of conversations, up to stop."""

    eval_type: ClassVar[str]
    """`generative` if the model writes an answer, `categorical` if it chooses a letter."""

    def __init__(self, start: int = 0, stop: int | None = None, step: int = 1):
        if start < 0 or step < 1 or (stop is not None and stop < start):
            raise Refused("a view of a task needs 0 <= start <= stop and a step of at least 1")
        self.start, self.stop, self.step = start, stop, step

    def num_examples(self) -> int:
        """How many rows there are, views aside."""
        raise NotImplementedError

    def get_example(self, index: int) -> Conversation:
        """A row, by its number in the whole set."""
        raise NotImplementedError

    def evaluate(self, problem: Conversation, completion: str) -> bool | int:
        """Whether a completion answers the problem."""
        raise NotImplementedError

    def __len__(self) -> int:
        stop = self.num_examples() if self.stop is None else min(self.stop, self.num_examples())
        return len(range(self.start, stop, self.step))

    def __getitem__(self, index: int) -> Conversation:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.get_example(self.start + index * self.step)

    def __iter__(self) -> Iterator[Conversation]:
        return (self[index] for index in range(len(self)))


class TaskMixture(Task):
    """The rows of several tasks in one order, shuffled once with a fixed seed.

    A task that is given twice is seen twice.
    """

    def __init__(self, tasks: Sequence[Task], **view: Any):
        super().__init__(**view)
        self.tasks = list(tasks)
        self.index_map = [(t, row) for t, task in enumerate(tasks) for row in range(len(task))]
        random.Random(42).shuffle(self.index_map)

    def num_examples(self) -> int:
        return len(self.index_map)

    def get_example(self, index: int) -> Conversation:
        task, row = self.index_map[index]
        return self.tasks[task][row]


class TaskSequence(Task):
    """The rows of several tasks, one task after the other."""

    def __init__(self, tasks: Sequence[Task], **view: Any):
        super().__init__(**view)
        self.tasks = list(tasks)

    def num_examples(self) -> int:
        return sum(len(task) for task in self.tasks)

    def get_example(self, index: int) -> Conversation:
        for task in self.tasks:
            if index < len(task):
                return task[index]
            index -= len(task)
        raise IndexError(index)


def load_rows(path: str, name: str | None, split: str) -> Any:
    """The rows of a Hugging Face data set, in the order that `shuffle(seed=42)` gives them.

    Raises:
        Refused: The package `datasets` is not installed.
        Unavailable: The rows cannot be had.
    """
    try:
        import datasets  # type: ignore[import-not-found] # an extra: what runs offline needs none of it
    except ModuleNotFoundError:
        raise Refused(
            f"{path} is read with the package datasets; install it with `uv sync --extra data`"
        ) from None
    try:
        return datasets.load_dataset(path, name, split=split).shuffle(seed=42)
    except Exception as error:  # noqa: BLE001 - the client raises whatever its transport does
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise Unavailable(
            f"{path} cannot be had ({reason[0]}); check the network, or say --data=builtin for a few "
            "questions of our own"
        ) from None


def choose_rows(
    source: str, builtin: Sequence[Any], path: str, name: str | None, split: str
) -> Any:
    """The rows of a data set at the hub, or those that stand in for it without a network.

    Raises:
        Refused: The source is neither `hub` nor `builtin`, or the hub's cannot be read.
    """
    if source == "builtin":
        return list(builtin)
    if source != "hub":
        raise Refused(f"unknown source {source!r} of questions, choose hub or builtin")
    return load_rows(path, name, split)


def require_split(split: str, known: Sequence[str] = ("train", "test")) -> None:
    """Refuse a split that a task does not have."""
    if split not in known:
        raise Refused(f"unknown split {split!r}, choose among {', '.join(known)}")


def render_mc(question: str, letters: Sequence[str], choices: Sequence[str]) -> str:
    """A question with its choices, each before its letter.

    `=A` is then a token of its own, the one that the answer is; after a space it would be another.
    """
    options = "".join(f"- {c}={letter}\n" for letter, c in zip(letters, choices, strict=True))
    return f"Choose the right answer to this question: {question}\n{options}\nSay only its letter."
