"""General conversations: HuggingFaceTB/smol-smoltalk, 460,341 to learn from and 24,229 to test."""

from typing import Any

from tasks.common import Conversation, Task, load_rows, require_split


class SmolTalk(Task):
    """Conversations of several turns, some with a system message."""

    eval_type = "generative"

    def __init__(self, split: str, **view: Any):
        super().__init__(**view)
        require_split(split)
        self.rows = load_rows("HuggingFaceTB/smol-smoltalk", None, split)

    def num_examples(self) -> int:
        return len(self.rows)

    def get_example(self, index: int) -> Conversation:
        return {"messages": self.rows[index]["messages"]}
