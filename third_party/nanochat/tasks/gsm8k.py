"""Sums in words: openai/gsm8k, 7,473 to learn from and 1,319 to test.

An answer is a solution with its calculations as <<12/60=0.2>>, and `#### 10` in the end. Each
calculation becomes a call of the calculator and what it answered.
"""

import re
from typing import Any

from nanochat.common import Refused

from tasks.common import Conversation, Task, load_rows, require_split

_ANSWER = re.compile(r"#### (-?[0-9.,]+)")
_CALCULATION = re.compile(r"(<<[^>]+>>)")


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
    """Problems in words with worked solutions."""

    eval_type = "generative"

    def __init__(self, subset: str, split: str, **view: Any):
        super().__init__(**view)
        if subset not in ("main", "socratic"):
            raise Refused(f"unknown subset {subset!r}, choose main or socratic")
        require_split(split)
        self.rows = load_rows("openai/gsm8k", subset, split)

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
