"""Your own conversations: a file of JSON lines."""

import json
from pathlib import Path
from typing import Any

from nanochat.common import Refused, print0

from tasks.common import Conversation, Task


class CustomJSON(Task):
    """One conversation a line, blank lines left out.

    A line is a list of messages, or an object with `messages`. Messages are objects with `role`
    and `content`, both text, from user and assistant in turn; an object's may begin with a system
    message. A file that is not there has no rows, and a line is printed that says so.

    Raises:
        Refused: A line is something else; file and line number are named.
    """

    eval_type = "generative"

    def __init__(self, filepath: str | Path, **view: Any):
        super().__init__(**view)
        path = Path(filepath)
        self.conversations: list[Conversation] = []
        if not path.exists():
            print0(f"{path} is not there, so it adds no conversations")
            return
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        self.conversations.append({"messages": _messages(line)})
                    except ValueError as error:
                        raise Refused(f"{path}, line {number}: {error}") from None

    def num_examples(self) -> int:
        return len(self.conversations)

    def get_example(self, index: int) -> Conversation:
        return self.conversations[index]


def _messages(line: bytes) -> list[dict[str, str]]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from None
    wrapped = isinstance(value, dict)
    messages = value.get("messages") if wrapped else value
    if not isinstance(messages, list):
        raise ValueError("neither a list of messages nor an object with one")
    spoken = messages
    if (
        wrapped
        and messages
        and isinstance(messages[0], dict)
        and messages[0].get("role") == "system"
    ):
        spoken = messages[1:]
    if len(spoken) < 2:
        raise ValueError("a conversation needs a user and an assistant turn")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise ValueError("a message is an object with a role and a content that is text")
    for place, message in enumerate(spoken):
        expected = ("user", "assistant")[place % 2]
        if message.get("role") != expected:
            raise ValueError(
                f"turn {place} is of role {message.get('role')!r} where {expected!r} is due"
            )
    return messages
