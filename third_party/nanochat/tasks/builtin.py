"""What can be taught without a network: talk, sums and kinds of things, from the built-in corpus.

In `Kinds` and `Sums` every question that can be asked is either in the train or in the test split,
so a right answer to a test question was never seen as an answer to it.
"""

import itertools
import re
from collections.abc import Sequence
from random import Random
from typing import Any

from nanochat.corpus import KINDS, THINGS, WORDS, a

from tasks.common import Conversation, Task, require_split
from tasks.gsm8k import last_text

QUESTIONS = (
    "What is {thing}?",
    "Tell me what {thing} is.",
    "What kind of thing is {thing}?",
    "Do you know what {thing} is?",
    "I read about {thing}. What is that?",
    "Please say what {thing} is.",
)

WISHES = ("Name", "Say", "Tell me", "Give me", "Think of")

_NAMES = [
    "Adam",
    "Berta",
    "Carl",
    "Dora",
    "Erik",
    "Frida",
    "Georg",
    "Hanna",
    "Ivan",
    "Julia",
    "Kurt",
    "Lena",
    "Max",
    "Nora",
    "Otto",
    "Petra",
]


def _listed(nouns: Sequence[str]) -> str:
    *first, last = map(a, nouns)
    return f"{', '.join(first)} and {last}"


def _said(names: Sequence[str]) -> str:
    text = _listed(names)
    return f"{text[0].upper()}{text[1:]}."


def _exchange(*turns: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {
        "messages": [
            {"role": roles[place % 2], "content": text} for place, text in enumerate(turns)
        ]
    }


class _Builtin(Task):
    """Conversations made here; the answer is right if it is the one expected, word for word."""

    eval_type = "generative"

    def __init__(self, split: str = "train", known: Sequence[str] = ("train", "test"), **view: Any):
        super().__init__(**view)
        require_split(split, known)
        self.split = split

    def evaluate(self, problem: Conversation, completion: str) -> int:
        return int(completion.strip() == last_text(problem))


class Kinds(_Builtin):
    """What a thing is. The test split holds one way of asking for each thing."""

    chance = 1 / len(KINDS)
    """How often it is right to say the form of the answer with any kind."""

    def __init__(self, split: str = "train", **view: Any):
        super().__init__(split, **view)
        asked = [
            (thing, question, (number + way) % len(QUESTIONS) == 0)
            for number, thing in enumerate(WORDS)
            for way, question in enumerate(QUESTIONS)
        ]
        self.rows = [row[:2] for row in asked if row[2] == (split == "test")]

    def num_examples(self) -> int:
        return len(self.rows)

    def get_example(self, index: int) -> Conversation:
        thing, question = self.rows[index]
        return _exchange(
            question.format(thing=a(thing)), f"{a(thing).capitalize()} is {a(THINGS[thing])}."
        )


class Sums(_Builtin):
    """Sums of two digits. A fifth of them is for testing."""

    chance = 1 / 19

    def __init__(self, split: str = "train", **view: Any):
        super().__init__(split, **view)
        pairs = [(left, right) for left in range(10) for right in range(10)]
        Random(42).shuffle(pairs)
        self.rows = pairs[:20] if split == "test" else pairs[20:]

    def num_examples(self) -> int:
        return len(self.rows)

    def get_example(self, index: int) -> Conversation:
        left, right = self.rows[index]
        return _exchange(f"What is {left} plus {right}?", f"{left} plus {right} is {left + right}.")


class Lists(_Builtin):
    """Things of three kinds to be named, of which there are twelve each: many answers are right.

    Every order of three of the eight kinds, asked for in five ways, is a question. Of the 1,680,
    384 are for testing and 384 for validation, which choices of settings are made by. What is asked
    for in a test question may be asked for in another way elsewhere.
    """

    def __init__(self, split: str = "train", **view: Any):
        super().__init__(split, ("train", "validation", "test"), **view)
        rows = list(itertools.product(itertools.permutations(KINDS, 3), WISHES))
        Random(42).shuffle(rows)
        parts = {"test": rows[:384], "validation": rows[384:768], "train": rows[768:]}
        self.rows = parts[split]

    def num_examples(self) -> int:
        return len(self.rows)

    def get_example(self, index: int) -> Conversation:
        (kinds, wish), rng = self.rows[index], Random(f"{self.split}:{index}")
        names = [rng.choice(KINDS[kind].split()) for kind in kinds]
        return _exchange(f"{wish} {_listed(kinds)}.", _said(names)) | {"kinds": kinds}

    def evaluate(self, problem: Conversation, completion: str) -> int:
        """Whether these are things of the kinds in their order, whichever they are."""
        names = [word for word in re.findall(r"\w+", completion) if word in THINGS]
        kinds = tuple(THINGS[name] for name in names)
        return int(kinds == problem["kinds"] and completion.strip() == _said(names))


class Talk(_Builtin):
    """A few words with someone who says a name and something seen.

    Args:
        size: How many rows.
        split: train or test, which share no seed.
    """

    def __init__(self, size: int = 500, split: str = "train", **view: Any):
        super().__init__(split, **view)
        self.size = size

    def num_examples(self) -> int:
        return self.size

    def get_example(self, index: int) -> Conversation:
        rng = Random(f"{self.split}:{index}")
        name, thing = rng.choice(_NAMES), rng.choice(WORDS)
        hello = rng.choice(("Hello, I am", "Good morning, my name is", "Hi, my name is"))
        turns = [f"{hello} {name}.", f"Hello, {name}. What did you see today?"]
        if rng.random() < 0.7:
            turns += [
                f"I saw {a(thing)}.",
                f"That is nice. {a(thing).capitalize()} is {a(THINGS[thing])}.",
            ]
        if rng.random() < 0.5:
            turns += ["Goodbye.", f"Goodbye, {name}."]
        return _exchange(*turns)
