"""Spelling and counting letters, made from a list of words.

Row number i is drawn by a generator seeded with i (of the test split, with ten million more), in
the reference's order of draws, so words and letters are the reference's. The wording is our own.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from nanochat.common import get_base_dir
from nanochat.dataset import fetch_once

from tasks.common import Conversation, Task, require_split
from tasks.gsm8k import extract_answer, last_text

WORDS_URL = "https://raw.githubusercontent.com/dwyl/english-words/refs/heads/master/words_alpha.txt"
TEST_SEED = 10_000_000
QUOTES = ("", "'", '"')

_OPENINGS = ("", "Tell me: ", "A small question: ")
_BODIES = (
    "how often does {letter} occur in {word}",
    "how often does the letter {letter} occur in {word}",
    "how often does the letter {letter} occur in the word {word}",
    "how often do you see {letter} in {word}",
    "how often do you see the letter {letter} in {word}",
    "how often is {letter} written in {word}",
    "how many letters {letter} are there in {word}",
    "how many letters {letter} are there in the word {word}",
    "how many letters of {word} are {letter}",
    "how many of the letters in {word} are {letter}",
    "how many times is {letter} found in {word}",
    "how many times is the letter {letter} found in {word}",
    "how many times is the letter {letter} found in the word {word}",
    "what is the number of {letter} in {word}",
    "what is the number of letters {letter} in {word}",
    "in {word}, how many letters are {letter}",
    "in the word {word}, how often is there {letter}",
)
TEMPLATES = tuple(
    (opening + body)[0].upper() + (opening + body)[1:] for opening in _OPENINGS for body in _BODIES
)
"""Fifty-one ways to ask."""


def word_list() -> list[str]:
    """The words of `words_alpha.txt` in the base folder, fetched once if it is not there."""
    return fetch_once(WORDS_URL, Path(get_base_dir()) / "words_alpha.txt").read_text().split()


class _Words(Task):
    """Rows made from words.

    Args:
        size: How many rows.
        split: train or test, which share no row.
        words: The words; None reads the big list.
    """

    eval_type = "generative"

    def __init__(
        self,
        size: int = 1000,
        split: str = "train",
        words: Sequence[str] | None = None,
        **view: Any,
    ):
        super().__init__(**view)
        require_split(split)
        self.size = size
        self.first_seed = TEST_SEED if split == "test" else 0
        self.words = list(word_list() if words is None else words)

    def num_examples(self) -> int:
        return self.size


class SpellingBee(_Words):
    """How often a letter occurs in a word: spelled out, counted, and checked by the calculator."""

    def get_example(self, index: int) -> Conversation:
        rng = random.Random(self.first_seed + index)
        word = rng.choice(self.words)
        letter = rng.choice(word) if rng.random() < 0.9 else rng.choice(ascii_lowercase)
        template = rng.choice(TEMPLATES)
        if rng.random() < 0.3:
            template = template.lower()
        letter_quote, word_quote = rng.choice(QUOTES), rng.choice(QUOTES)
        question = template.format(
            letter=f"{letter_quote}{letter}{letter_quote}", word=f"{word_quote}{word}{word_quote}"
        )
        if rng.random() < 0.5:
            question += "?"
        return {
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": _solution(word, letter)},
            ]
        }

    def evaluate(self, problem: Conversation, completion: str) -> int:
        return int(extract_answer(completion) == extract_answer(last_text(problem)))


class SimpleSpelling(_Words):
    """A word letter by letter."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        random.Random(42).shuffle(self.words)  # other words than those of SpellingBee's same row

    def get_example(self, index: int) -> Conversation:
        word = random.Random(self.first_seed + index).choice(self.words)
        return {
            "messages": [
                {"role": "user", "content": f"How is {word} spelled?"},
                {"role": "assistant", "content": f"{word}: {' '.join(word)}"},
            ]
        }

    def evaluate(self, problem: Conversation, completion: str) -> int:
        return int(completion.strip() == last_text(problem))


def _solution(word: str, letter: str) -> list[dict[str, str]]:
    lines, count = [f"{word} is {' '.join(word)}.\n"], 0
    for place, character in enumerate(word, 1):
        count += character == letter
        hit = f", number {count}" if character == letter else ""
        lines.append(f"{place} {character}{hit}\n")
    lines.append(f"That makes {count}. The calculator says ")
    call = f"'{word}'.count('{letter}')"
    return [
        {"type": "text", "text": "".join(lines)},
        {"type": "python", "text": call},
        {"type": "python_output", "text": str(count)},
        {"type": "text", "text": f".\n\n#### {count}"},
    ]
