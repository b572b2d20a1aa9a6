"""What a conversation is, and files with one on every line.

A conversation is {"messages": [...]}. A message has a role and a content; after at most one system
message user and assistant take turns, the user first. The content is text; an assistant's may be a
list of parts, each with a text and the type text, python or python_output.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fractal_core.errors import Refused

Conversation = dict[str, list[dict[str, Any]]]

PARTS = ("text", "python", "python_output")


def checked(messages: Any) -> Conversation:
    """The conversation of these messages, with nothing but their roles and contents.

    Raises:
        ValueError: They are no conversation; the message says why.
    """
    if not isinstance(messages, list):
        raise ValueError("the messages are no list")
    turns = [_message(message) for message in messages]
    spoken = turns[1:] if turns and turns[0]["role"] == "system" else turns
    if not spoken:
        raise ValueError("there is no user turn")
    for place, message in enumerate(spoken):
        expected = ("user", "assistant")[place % 2]
        if message["role"] != expected:
            raise ValueError(
                f"turn {place + 1} is of role {message['role']!r} where {expected!r} is due"
            )
    return {"messages": turns}


def is_answered(conversation: Conversation) -> bool:
    """Whether the assistant speaks at all: from its turns alone is learned."""
    return any(message["role"] == "assistant" for message in conversation["messages"])


def read_lines(path: Path) -> list[Conversation]:
    """The conversations of a file of JSON lines, blank lines left out.

    A line is a list of messages, or an object with `messages` whose other members do not matter.

    Raises:
        Refused: A line is something else, or the assistant never speaks in it: file, line number
            and reason are named. Or the file cannot be read, or has no conversation.
    """
    found = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        found.append(_line(line))
                    except (ValueError, RecursionError) as error:
                        raise Refused(f"{path}, line {number}: {error}") from None
    except OSError as error:
        raise Refused(f"{path} cannot be read ({error.strerror}); name another file") from None
    if not found:
        raise Refused(f"{path} holds no conversation; write one on each line")
    return found


def _line(line: bytes) -> Conversation:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error})") from None
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    if isinstance(value, Mapping):
        if "messages" not in value:
            raise ValueError("the object has no member `messages`")
        value = value["messages"]
    conversation = checked(value)
    if not is_answered(conversation):
        raise ValueError("there is no assistant turn, so there is nothing to learn")
    return conversation


def _message(message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        raise ValueError("a message is an object with a role and a content")
    role, content = message["role"], message["content"]
    if isinstance(content, str):
        return {"role": role, "content": content}
    if role != "assistant" or not isinstance(content, list):
        raise ValueError(f"the content of a message of role {role!r} is no text")
    for part in content:
        match part:
            case {"type": kind, "text": str()} if kind in PARTS:
                continue
        raise ValueError(f"a part of a content is a text with a type of {', '.join(PARTS)}")
    return {"role": role, "content": [{"type": p["type"], "text": p["text"]} for p in content]}
