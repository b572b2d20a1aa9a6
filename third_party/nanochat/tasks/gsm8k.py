"""Sums in words: openai/gsm8k, 7,473 to learn from and 1,319 to test.

An answer is a solution with its calculations as <<12/60=0.2>>, and `#### 10` in the end. Each
calculation becomes a call of the calculator and what it answered.
"""

import re
from typing import Any

from nanochat.common import Refused

from tasks.common import Conversation, Task, choose_rows, require_split

_ANSWER = re.compile(r"#### (-?[0-9.,]+)")
_CALCULATION = re.compile(r"(<<[^>]+>>)")

BUILTIN = [
    {"question": question, "answer": answer}
    for question, answer in (
        (
            "A crate holds 12 pears. How many pears do 4 crates hold?",
            "4 crates hold 4 * 12 = <<4*12=48>>48 pears.\n#### 48",
        ),
        (
            "Nora had 30 coins and gave 12 away. How many are left?",
            "She has 30 - 12 = <<30-12=18>>18 coins.\n#### 18",
        ),
        (
            "Three friends share 21 plums alike. How many does each have?",
            "Each has 21 / 3 = <<21/3=7>>7 plums.\n#### 7",
        ),
        (
            "A tram has 15 people. 6 leave and 9 come. How many are in it?",
            "After 6 left there are 15 - 6 = <<15-6=9>>9.\n"
            "Then there are 9 + 9 = <<9+9=18>>18.\n#### 18",
        ),
    )
]
"""Our own problems, in the form of the data set's rows."""


def extract_answer(text: str) -> str | None:
    """The number after `####`, without commas; None if there is none."""
    found = _ANSWER.search(text)
    return found and found.group(1).strip().replace(",", "")


def parts_of(solution: str) -> list[dict[str, str]]:
    """A solution as the parts of an assistant's turn, some of them empty texts."""
    parts = []
    for piece in _CALCULATION.split(solution):
        if _CALCULATION.fullmatch(piece):
            expression, equals, result = piece[2:-2].rpartition("=")
            parts.append({"type": "python", "text": expression if equals else result})
            parts.append({"type": "python_output", "text": result if equals else ""})
        else:
            parts.append({"type": "text", "text": piece})
    return parts


def last_text(problem: Conversation) -> str:
    """The last text of the assistant's turn, which holds the answer."""
    content = problem["messages"][-1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


class GSM8K(Task):
    """Problems in words with worked solutions. `source` is `hub` or `builtin`."""

    eval_type = "generative"

    def __init__(self, subset: str, split: str, source: str = "hub", **view: Any):
        super().__init__(**view)
        if subset not in ("main", "socratic"):
            raise Refused(f"unknown subset {subset!r}, choose main or socratic")
        require_split(split)
        self.rows = choose_rows(source, BUILTIN, "openai/gsm8k", subset, split)

    def num_examples(self) -> int:
        return len(self.rows)

    def get_example(self, index: int) -> Conversation:
        row = self.rows[index]
        return {
            "messages": [
                {"role": "user", "content": row["question"]},
                {"role": "assistant", "content": parts_of(row["answer"])},
            ]
        }

    def evaluate(self, problem: Conversation, completion: str) -> int:
        return int(extract_answer(completion) == extract_answer(last_text(problem)))
