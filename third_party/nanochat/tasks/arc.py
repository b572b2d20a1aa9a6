"""School science with choices: allenai/ai2_arc, Easy 2,251 and 2,376, Challenge 1,119 and 1,172."""

from typing import Any

from nanochat.common import Refused

from tasks.common import Conversation, Task, choose_rows, render_mc, require_split

BUILTIN = [
    {"question": question, "choices": {"label": list(labels), "text": texts.split(", ")}}
    | {"answerKey": answer}
    for question, labels, texts, answer in (
        ("What do plants take from the air?", "ABCD", "carbon dioxide, iron, salt, sand", "A"),
        ("Which of these conducts electricity best?", "ABCD", "wood, glass, copper, wool", "C"),
        ("What pulls an apple to the ground?", "1234", "light, sound, heat, gravity", "4"),
        ("What does water become when it freezes?", "ABC", "steam, ice, sand", "B"),
        ("Which sense uses the ear?", "ABCDE", "sight, taste, smell, touch, hearing", "E"),
        ("What gives the Earth its light by day?", "ABCD", "the Moon, the Sun, Mars, clouds", "B"),
    )
]
"""Our own questions, in the form of the data set's rows."""


class ARC(Task):
    """Questions with three to five choices; the letters are those of the data, sometimes 1 to 4.

    `source` is `hub`, or `builtin`, where all subsets and splits are one.
    """

    eval_type = "categorical"

    def __init__(self, subset: str, split: str, source: str = "hub", **view: Any):
        super().__init__(**view)
        if subset not in ("ARC-Easy", "ARC-Challenge"):
            raise Refused(f"unknown subset {subset!r}, choose ARC-Easy or ARC-Challenge")
        require_split(split, ("train", "validation", "test"))
        self.rows = choose_rows(source, BUILTIN, "allenai/ai2_arc", subset, split)

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
