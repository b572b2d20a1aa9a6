"""Questions from many subjects: cais/mmlu, auxiliary_train 99,842 and all/test 14,042."""

from typing import Any

from nanochat.common import Refused

from tasks.common import Conversation, Task, choose_rows, render_mc, require_split

LETTERS = ("A", "B", "C", "D")

BUILTIN = [
    {"question": question, "choices": choices.split(", "), "answer": answer, "subject": subject}
    for subject, question, choices, answer in (
        ("biology", "Which of these is a bird?", "heron, trout, maple, hammer", 0),
        ("biology", "Which of these lives in water?", "raven, spruce, salmon, chisel", 2),
        ("mathematics", "What is 7 times 6?", "36, 48, 13, 42", 3),
        ("mathematics", "Which of these numbers is prime?", "21, 23, 25, 27", 1),
        ("physics", "What is measured in volts?", "mass, length, voltage, time", 2),
        ("astronomy", "Which body does the Moon orbit?", "Earth, Mars, the Sun, Venus", 0),
        ("geography", "On which continent is Kenya?", "Asia, Africa, Europe, Australia", 1),
        ("chemistry", "What is the symbol of oxygen?", "Og, Ox, Om, O", 3),
    )
]
"""Our own questions, in the form of the data set's rows."""


class MMLU(Task):
    """Questions with four choices. `source` is `hub` or `builtin`, where all splits are one."""

    eval_type = "categorical"
    letters = LETTERS

    def __init__(self, subset: str, split: str, source: str = "hub", **view: Any):
        super().__init__(**view)
        if subset not in ("all", "auxiliary_train"):
            raise Refused(f"unknown subset {subset!r}, choose all or auxiliary_train")
        known = ("train",) if subset == "auxiliary_train" else ("validation", "dev", "test")
        require_split(split, known)
        self.rows = choose_rows(source, BUILTIN, "cais/mmlu", subset, split)

    def num_examples(self) -> int:
        return len(self.rows)

    def get_example(self, index: int) -> Conversation:
        row = self.rows[index]
        row = row.get("train", row)  # the rows of auxiliary_train are one level deeper
        answer = LETTERS[row["answer"]]
        return {
            "messages": [
                {"role": "user", "content": render_mc(row["question"], LETTERS, row["choices"])},
                {"role": "assistant", "content": answer},
            ],
            "subject": row["subject"],
            "letters": LETTERS,
        }

    def evaluate(self, problem: Conversation, completion: str) -> bool:
        return completion == problem["messages"][-1]["content"]
