"""General conversations: HuggingFaceTB/smol-smoltalk, 460,341 to learn from and 24,229 to test."""

from typing import Any

from tasks.common import Conversation, Task, choose_rows, require_split


def _row(*turns: str, system: str = "") -> dict[str, Any]:
    roles = ("user", "assistant")
    said = [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
    return {"messages": [{"role": "system", "content": system}] * bool(system) + said}


BUILTIN = [
    _row("Is a penguin a bird?", "Yes. It cannot fly, but it has feathers and lays eggs."),
    _row(
        "My tea is too hot.",
        "Wait a little, or pour it into a wide cup.",
        "And if I am in a hurry?",
        "Then add some cold water.",
    ),
    _row(
        "Rewrite this: the meeting are at noon.",
        "The meeting is at noon.",
        system="You mend the grammar of sentences and say nothing else.",
    ),
    _row(
        "Give me a title for a story about a lighthouse.",
        "The Last Lamp",
        "Shorter, please.",
        "Lamp",
        "Thank you.",
        "You are welcome.",
    ),
    _row(
        "What follows from the fact that all herons are birds?",
        "That whatever is no bird is no heron.",
        system="Answer in one sentence.",
    ),
    _row("Sum this up: Ada came, saw that it rained, and left.", "Ada left because of rain."),
]
"""Our own conversations, in the form of the data set's rows."""


class SmolTalk(Task):
    """Conversations of several turns, some with a system message.

    `source` is `hub`, or `builtin`, where both splits are one.
    """

    eval_type = "generative"

    def __init__(self, split: str, source: str = "hub", **view: Any):
        super().__init__(**view)
        require_split(split)
        self.rows = choose_rows(source, BUILTIN, "HuggingFaceTB/smol-smoltalk", None, split)

    def num_examples(self) -> int:
        return len(self.rows)

    def get_example(self, index: int) -> Conversation:
        return {"messages": self.rows[index]["messages"]}
