"""Bytes to tokens and back, and conversations to tokens with a mask.

Ids 0 to 255 are the raw bytes, merges follow in the order they were learned, and the nine special
tokens come last. Text never encodes to a special token, whatever it says: they are only put there
by name. `<|bos|>` stands before every document and every conversation.

`rustbpe` learns the merges and `tiktoken` applies them. On disk a tokenizer is `tokenizer.json`;
`tokenizer.pkl` beside it is the same thing for upstream users. A pickle can run code, so ours is
read by `nanochat.pickled`, which builds nothing but text, bytes, numbers and dictionaries.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import rustbpe
import tiktoken
import torch

from nanochat.common import Refused, get_base_dir
from nanochat.pickled import pickle_of, state_of

SPECIAL_TOKENS = (
    "<|bos|>",
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
)

SPLIT_PATTERN = "|".join(
    (
        r"'(?i:[sdmt]|ll|ve|re)",
        r"[^\r\n\p{L}\p{N}]?+\p{L}+",
        r"\p{N}{1,2}",  # cl100k has {1,3}: a small vocabulary cannot afford a thousand numbers
        r" ?[^\s\p{L}\p{N}]++[\r\n]*",
        r"\s*[\r\n]",
        r"\s+(?!\S)",
        r"\s+",
    )
)

MAX_TOKENS = 2048
"""Where a rendered conversation is cut off."""

FORMAT = "nanochat-tokenizer-1"

Conversation = Mapping[str, Any]


@dataclass(frozen=True)
class Piece:
    """A stretch of a rendered conversation: special tokens around a text, learned from or not."""

    text: str = ""
    before: str = ""
    after: str = ""
    learned: bool = False


class RustBPETokenizer:
    """A byte-level tokenizer.

    Args:
        enc: What encodes; its special tokens are the ones that may be asked for by name.
        bos_token: Which of them stands before a document.
    """

    def __init__(self, enc: tiktoken.Encoding, bos_token: str):
        self.enc = enc
        self.bos_token_id = self.encode_special(bos_token)

    @classmethod
    def train_from_iterator(
        cls, text_iterator: Iterable[str], vocab_size: int
    ) -> "RustBPETokenizer":
        """Learn merges until the vocabulary, special tokens included, has `vocab_size` entries.

        The most frequent pair is merged, ties go to the smallest ids; so the same texts give the
        same tokenizer. If the texts run out of pairs the vocabulary stays smaller.

        Raises:
            Refused: There is no room for the bytes and the special tokens.
        """
        mergeable = vocab_size - len(SPECIAL_TOKENS)
        if mergeable < 256:
            raise Refused(
                f"a vocabulary of {vocab_size} has no room for 256 bytes and "
                f"{len(SPECIAL_TOKENS)} special tokens; ask for {256 + len(SPECIAL_TOKENS)} or more"
            )
        trained = rustbpe.Tokenizer()  # type: ignore[attr-defined] - compiled, without stubs
        trained.train_from_iterator(text_iterator, mergeable, pattern=SPLIT_PATTERN)
        ranks = {bytes(piece): rank for piece, rank in trained.get_mergeable_ranks()}
        special = {name: len(ranks) + i for i, name in enumerate(SPECIAL_TOKENS)}
        return cls(
            tiktoken.Encoding("rustbpe", **_arguments(SPLIT_PATTERN, ranks, special)), "<|bos|>"
        )

    @classmethod
    def from_directory(cls, tokenizer_dir: str | os.PathLike[str]) -> "RustBPETokenizer":
        """The tokenizer of a folder: `tokenizer.json`, or else what upstream left there.

        Raises:
            Refused: There is none, it is damaged, or the two files are different tokenizers.
        """
        folder = Path(tokenizer_dir)
        own, upstream = folder / "tokenizer.json", folder / "tokenizer.pkl"
        states = [_read_json(own)] if own.exists() else []
        states += [state_of(upstream)] if upstream.exists() else []
        if not states:
            raise Refused(f"no tokenizer in {folder}; train one with `python -m scripts.tok_train`")
        if states[0] != states[-1]:
            raise Refused(f"{own} and {upstream.name} are different tokenizers; remove one of them")
        return cls(tiktoken.Encoding("rustbpe", **states[0]), "<|bos|>")

    @classmethod
    def from_pretrained(cls, tiktoken_name: str) -> "RustBPETokenizer":
        """One of OpenAI's tokenizers, for comparison; tiktoken fetches it when it is not cached."""
        return cls(tiktoken.get_encoding(tiktoken_name), "<|endoftext|>")

    def save(self, tokenizer_dir: str | os.PathLike[str]) -> None:
        """Write `tokenizer.json`, and the same tokenizer as `tokenizer.pkl` for upstream users."""
        folder = Path(tokenizer_dir)
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / "tokenizer.json", self._json)
        _replace(folder / "tokenizer.pkl", pickle_of(self.enc))

    @cached_property
    def _json(self) -> bytes:
        merges = sorted(self.enc._mergeable_ranks, key=self.enc._mergeable_ranks.__getitem__)
        state = {
            "format": FORMAT,
            "pattern": self.enc._pat_str,
            "special_tokens": self.enc._special_tokens,
            "tokens_hex": [token.hex() for token in merges],
        }
        return json.dumps(state, indent=1).encode()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides which ids a text becomes."""
        return hashlib.sha256(self._json).hexdigest()

    def get_vocab_size(self) -> int:
        """How many ids there are."""
        return self.enc.n_vocab

    def get_special_tokens(self) -> set[str]:
        """The special tokens by name."""
        return self.enc.special_tokens_set

    def get_bos_token_id(self) -> int:
        """The id that stands before a document."""
        return self.bos_token_id

    def id_to_token(self, id: int) -> str:
        """What one token reads like; a part of a character reads as U+FFFD."""
        return self.decode([id])

    def encode_special(self, text: str) -> int:
        """The id of a special token.

        Raises:
            Refused: This tokenizer has no such token.
        """
        if text not in self.enc.special_tokens_set:
            raise Refused(f"this tokenizer has no special token {text!r}")
        return self.enc.encode_single_token(text)

    def encode(
        self,
        text: str | Sequence[str],
        prepend: int | str | None = None,
        append: int | str | None = None,
        num_threads: int = 8,
    ) -> Any:
        """The ids of a text, or one list for each of several texts.

        Args:
            text: A text or several; "<|bos|>" in it is seven ordinary characters.
            prepend: A token, by id or special name, to put before each text.
            append: One to put after it.
            num_threads: How many threads share several texts.
        """
        head = [] if prepend is None else [self._id(prepend)]
        tail = [] if append is None else [self._id(append)]
        if isinstance(text, str):
            return head + self.enc.encode_ordinary(text) + tail
        many = self.enc.encode_ordinary_batch(list(text), num_threads=num_threads)
        return [head + ids + tail for ids in many]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`encode`."""
        return self.encode(*args, **kwargs)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids; bytes that are no UTF-8 read as U+FFFD.

        Raises:
            Refused: An id is outside the vocabulary.
        """
        self.check(ids)
        return self.enc.decode(list(ids))

    def check(self, ids: Sequence[int]) -> None:
        """Refuse ids that are outside the vocabulary."""
        for id in ids:
            if not 0 <= id < self.enc.n_vocab:
                raise Refused(
                    f"token id {id} is outside the vocabulary of {self.enc.n_vocab}; "
                    "the ids come from another tokenizer"
                )

    def token_bytes(self) -> torch.Tensor:
        """How many bytes each token stands for, 0 for special tokens: int32, one per id.

        This is the reference's table, by which bits per byte are comparable: a token that is no
        UTF-8 by itself counts three bytes for each U+FFFD that it reads as, not its own length.
        """
        special = {self.encode_special(name) for name in self.enc.special_tokens_set}
        sizes = [
            0 if id in special else len(self.enc.decode([id]).encode())
            for id in range(self.enc.n_vocab)
        ]
        return torch.tensor(sizes, dtype=torch.int32)

    def render_conversation(
        self, conversation: Conversation, max_tokens: int = MAX_TOKENS
    ) -> tuple[list[int], list[int]]:
        """The ids of a conversation, and a mask: 1 where the model learns to say the token.

        Learned are what the assistant says, the calls it makes and the token that ends its turn;
        not what the user says, nor what a tool answered. Every piece is encoded on its own, so no
        token reaches across two. What is longer than `max_tokens` loses its end.

        Raises:
            Refused: The conversation is malformed or the assistant never speaks.
        """
        messages = _checked(conversation)
        if len(messages) < 2:
            raise Refused("the conversation has no assistant turn, so there is nothing to learn")
        ids, mask = self._render(messages)
        return ids[:max_tokens], mask[:max_tokens]

    def render_for_completion(self, conversation: Conversation) -> list[int]:
        """The ids that ask the model for the last assistant turn, which is left out.

        Raises:
            Refused: The conversation is malformed or does not end with the assistant.
        """
        messages = _checked(conversation)
        if len(messages) % 2:
            raise Refused("the last turn must be the assistant's: it is the one to be completed")
        ids, _ = self._render(messages[:-1])
        return [*ids[:MAX_TOKENS], self.encode_special("<|assistant_start|>")]

    def visualize_tokenization(
        self, ids: Sequence[int], mask: Sequence[int], with_token_id: bool = False
    ) -> str:
        """The tokens between bars, green where they are learned and red where not."""
        shown = []
        for id, learned in zip(ids, mask, strict=True):
            label = f"{self.decode([id])}({id})" if with_token_id else self.decode([id])
            shown.append(f"\033[{92 if learned else 91}m{label}\033[0m")
        return "|".join(shown)

    def _render(self, messages: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[int]]:
        ids, mask = [self.bos_token_id], [0]
        for piece in _pieces(messages):
            tokens = [self._special[piece.before]] if piece.before else []
            tokens += self.enc.encode_ordinary(piece.text)
            tokens += [self._special[piece.after]] if piece.after else []
            ids += tokens
            mask += [int(piece.learned)] * len(tokens)
        return ids, mask

    @cached_property
    def _special(self) -> dict[str, int]:
        return {name: self.encode_special(name) for name in SPECIAL_TOKENS}

    def _id(self, token: int | str) -> int:
        return token if isinstance(token, int) else self.encode_special(token)


def get_tokenizer() -> RustBPETokenizer:
    """The tokenizer of the base folder."""
    return RustBPETokenizer.from_directory(Path(get_base_dir()) / "tokenizer")


def get_token_bytes(device: str | torch.device = "cpu") -> torch.Tensor:
    """How many bytes each token of that tokenizer stands for, as `tok_train` left it.

    Raises:
        Refused: There is no such file.
    """
    path = Path(get_base_dir()) / "tokenizer" / "token_bytes.pt"
    if not path.exists():
        raise Refused(f"{path} is missing; `python -m scripts.tok_train` writes it")
    return torch.load(path, map_location=device, weights_only=True)


def _checked(conversation: Conversation) -> list[Mapping[str, Any]]:
    """The turns, user and assistant in alternation, with a leading system message merged in."""
    messages = list(conversation.get("messages") or [])
    if not messages:
        raise Refused("the conversation has no messages")
    for place, message in enumerate(messages):
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise Refused(f"message {place} of the conversation lacks a role or a content")
    if messages[0]["role"] == "system":
        if len(messages) < 2 or messages[1]["role"] != "user":
            raise Refused("a system message must be followed by a user message")
        system, user = messages[0]["content"], messages[1]["content"]
        if not (isinstance(system, str) and isinstance(user, str)):
            raise Refused("the content of system and user messages must be text")
        messages = [{"role": "user", "content": f"{system}\n\n{user}"}, *messages[2:]]
    for place, message in enumerate(messages):
        expected = ("user", "assistant")[place % 2]
        if message["role"] != expected:
            raise Refused(
                f"turn {place} of the conversation is {message['role']!r} where {expected!r} is due"
            )
    return messages


def _pieces(messages: Sequence[Mapping[str, Any]]) -> Iterator[Piece]:
    for message in messages:
        content = message["content"]
        if message["role"] == "user":
            if not isinstance(content, str):
                raise Refused("the content of system and user messages must be text")
            yield Piece(content, "<|user_start|>", "<|user_end|>")
            continue
        yield Piece(before="<|assistant_start|>")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        for part in parts:
            yield _part(part)
        yield Piece(after="<|assistant_end|>", learned=True)


def _part(part: Any) -> Piece:
    match part:
        case {"type": "text", "text": str(text)}:
            return Piece(text, learned=True)
        case {"type": "python", "text": str(text)}:
            return Piece(text, "<|python_start|>", "<|python_end|>", learned=True)
        case {"type": "python_output", "text": str(text)}:
            return Piece(text, "<|output_start|>", "<|output_end|>")
    raise Refused(
        "an assistant's content is text or a list of parts, each with a text and the type text, "
        "python or python_output"
    )


def _arguments(pattern: str, ranks: dict[bytes, int], special: dict[str, int]) -> dict[str, Any]:
    return {"pat_str": pattern, "mergeable_ranks": ranks, "special_tokens": special}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_text())
        if state["format"] != FORMAT:
            raise Refused(f"{path} is a tokenizer of another kind ({state['format']!r})")
        ranks = {bytes.fromhex(token): rank for rank, token in enumerate(state["tokens_hex"])}
        return _arguments(state["pattern"], ranks, state["special_tokens"])
    except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise Refused(f"{path} is not a tokenizer of ours ({error})") from None


def _replace(path: Path, data: bytes) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(data)
    draft.replace(path)
