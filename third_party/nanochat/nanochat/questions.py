"""What a client may ask the chat server: a conversation, and how the answer is drawn, within limits."""

import json
from dataclasses import dataclass, replace
from typing import Any

from nanochat.common import Refused

MAX_MESSAGES = 500
MAX_CHARACTERS = 8000
MAX_TOTAL_CHARACTERS = 32_000
RANGES = {"temperature": (0, 2), "top_k": (1, 200), "max_tokens": (1, 4096)}


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn, and how long it may get.

    Raises:
        Refused: A value is not one of its range.
    """

    temperature: float = 0.8
    top_k: int = 50
    max_tokens: int = 512

    def __post_init__(self):
        for name, (low, high) in RANGES.items():
            value, whole = getattr(self, name), name != "temperature"
            number = isinstance(value, int if whole else int | float)
            if not number or isinstance(value, bool) or not low <= value <= high:
                kind = "a whole number" if whole else "a number"
                raise Refused(f"{name} must be {kind} from {low} to {high}")


@dataclass(frozen=True)
class Question:
    """A conversation that waits for an answer: (role, content) of every message."""

    messages: tuple[tuple[str, str], ...]
    sampling: Sampling

    @classmethod
    def read(cls, body: bytes, defaults: Sampling) -> "Question":
        """What a request asks.

        Raises:
            Refused: It is malformed, or beyond the limits.
        """
        try:
            given = json.loads(body)
        except (ValueError, RecursionError):
            raise Refused("the request must be JSON") from None
        messages = given.get("messages") if isinstance(given, dict) else None
        if not isinstance(messages, list) or not 1 <= len(messages) <= MAX_MESSAGES:
            raise Refused(f"the request must have a list of 1 to {MAX_MESSAGES} messages")
        read = tuple(_message(place, message) for place, message in enumerate(messages))
        total = sum(len(content) for _, content in read)
        if total > MAX_TOTAL_CHARACTERS:
            raise Refused(
                f"the messages have {total} characters together and may have "
                f"{MAX_TOTAL_CHARACTERS}; leave old ones out"
            )
        chosen = {name: given[name] for name in RANGES if given.get(name) is not None}
        return cls(read, replace(defaults, **chosen))

    def prompt(self, tokenizer: Any) -> list[int]:
        """The tokens that ask the model for the next turn of the assistant."""
        special = tokenizer.encode_special
        tokens = [tokenizer.get_bos_token_id()]
        for role, content in self.messages:
            start, end = special(f"<|{role}_start|>"), special(f"<|{role}_end|>")
            tokens += [start, *tokenizer.encode(content), end]
        return [*tokens, special("<|assistant_start|>")]


def _message(place: int, message: Any) -> tuple[str, str]:
    role, content = (
        (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
    )
    if role not in ("user", "assistant"):
        raise Refused(f"the role of message {place} must be user or assistant")
    if not isinstance(content, str) or not content:
        raise Refused(f"the content of message {place} must be a text that is not empty")
    if len(content) > MAX_CHARACTERS:
        raise Refused(
            f"message {place} has {len(content)} characters and may have {MAX_CHARACTERS}; "
            "shorten it"
        )
    return role, content
