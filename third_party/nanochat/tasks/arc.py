"""School science with choices: allenai/ai2_arc, Easy 2,251 and 2,376, Challenge 1,119 and 1,172."""

from typing import Any

from nanochat.common import Refused

from tasks.common import Conversation, Task, load_rows, render_mc, require_split


class ARC(Task):
    """Questions with three to five choices; the letters are those of the data, sometimes 1 to 4."""

    eval_type = "categorical"

    def __init__(self, subset: str, split: str, **view: Any):
        super().__init__(**view)
        if subset not in ("ARC-Easy", "ARC-Challenge"):
            raise Refused(f"unknown subset {subset!r}, choose ARC-Easy or ARC-Challenge")
        require_split(split, ("train", "validation", "test"))
        self.rows = load_rows("allenai/ai2_arc", subset, split)

    def num_examples(self) -> int:
        return len(self.rows)

    def get_example(self, index: int) -> Conversation:
        row = self.rows[index]
        letters, choices = row["choices"]["label"], row["choices"]["text"]
        question = render_mc(row["question"], letters, choices)
        return {
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": row["answerKey"]},
            ],
            "letters": letters,
        }

    def evaluate(self, problem: Conversation, completion: str) -> bool:
        return completion == problem["messages"][-1]["content"]
