"""Text from a model: many samples at once, token by token, with a calculator at hand.

The prompt goes through the model once; after that each step feeds one token per row, and the keys
and values of earlier ones come from a cache. A row in which the model calls the calculator is not
asked until the answer has been forced into it. What the engine asks of a model is `forward(ids,
kv_cache=cache)`, `get_device()` and a `config` with the sizes; of a tokenizer, its special tokens.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nanochat.calculator import use_calculator
from nanochat.common import Refused

GROWTH = 1024
"""A cache grows to a multiple of so many positions."""


class KVCache:
    """Keys and values of all layers, one position after the other.

    The tensor (layer, key or value, batch, head, position, channel) is made when the first keys
    come, in their dtype and on their device, and grows when they need it to.
    """

    def __init__(
        self, batch_size: int, num_heads: int, seq_len: int, head_dim: int, num_layers: int
    ):
        self.kv_shape = (num_layers, 2, batch_size, num_heads, seq_len, head_dim)
        self.kv_cache: Tensor | None = None
        self.pos = 0

    def reset(self) -> None:
        """Forget what was inserted, and keep the room."""
        self.pos = 0

    def get_pos(self) -> int:
        """How many positions every layer has seen."""
        return self.pos

    def prefill(self, other: "KVCache") -> None:
        """Start from a prompt that went through another cache, with one row or as many as here.

        Raises:
            Refused: This one is not empty, or the other has other sizes or nothing in it.
        """
        layers, _, batch, heads, room, channels = self.kv_shape
        if self.pos or self.kv_cache is not None:
            raise Refused("a prompt can be copied only into a cache that is empty")
        if other.kv_cache is None:
            raise Refused("the cache to copy from is empty")
        theirs = other.kv_cache.shape
        if (theirs[0], theirs[3], theirs[5]) != (layers, heads, channels):
            raise Refused("the two caches belong to models of different sizes")
        if theirs[2] not in (1, batch):
            raise Refused(f"a prompt of {theirs[2]} rows cannot be copied into {batch}")
        self.kv_shape = (layers, 2, batch, heads, max(room, other.pos), channels)
        self.kv_cache = other.kv_cache.new_empty(self.kv_shape)
        self.kv_cache[..., : other.pos, :] = other.kv_cache[..., : other.pos, :]
        self.pos = other.pos

    def insert_kv(self, layer_idx: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add (batch, head, time, channel) of a layer; all of its keys and values so far come back.

        The position advances when the last layer has inserted: until then all see the same one.
        """
        end = self.pos + k.size(2)
        if self.kv_cache is None:
            self.kv_cache = k.new_empty(self.kv_shape)
        if end > self.kv_cache.size(4):
            missing = -(-(end + GROWTH) // GROWTH) * GROWTH - self.kv_cache.size(4)
            more = self.kv_cache.new_empty((*self.kv_shape[:4], missing, self.kv_shape[5]))
            self.kv_cache = torch.cat((self.kv_cache, more), dim=4)
            self.kv_shape = tuple(self.kv_cache.shape)
        self.kv_cache[layer_idx, 0, :, :, self.pos : end] = k
        self.kv_cache[layer_idx, 1, :, :, self.pos : end] = v
        if layer_idx == self.kv_shape[0] - 1:
            self.pos = end
        return self.kv_cache[layer_idx, 0, :, :, :end], self.kv_cache[layer_idx, 1, :, :, :end]


def sample_next_token(
    logits: Tensor,
    rng: torch.Generator,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> Tensor:
    """One token (batch, 1) for each row of logits (batch, vocabulary).

    Args:
        logits: As the model gives them.
        rng: The generator that is drawn from, once for all rows.
        temperature: Divides the logits; 0 takes the likeliest token and draws nothing.
        top_k: Draw among so many of the likeliest tokens; None or 0 draws among all.
    """
    if temperature < 0 or (top_k or 0) < 0:
        raise Refused("temperature and top_k must not be negative; 0 is greedy, and all tokens")
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    if not top_k:
        return torch.multinomial(F.softmax(logits / temperature, dim=-1), 1, generator=rng)
    values, ids = logits.topk(min(top_k, logits.size(-1)), dim=-1)
    drawn = torch.multinomial(F.softmax(values / temperature, dim=-1), 1, generator=rng)
    return ids.gather(1, drawn)


@dataclass
class _Row:
    """What is known of one sample while it grows."""

    forced: deque[int] = field(default_factory=deque)
    call: list[int] | None = None
    completed: bool = False


class Engine:
    """Samples from a model.

    Args:
        model: A GPT, or whatever answers like one.
        tokenizer: Names the special tokens, and reads what the calculator is asked.
    """

    def __init__(self, model: Any, tokenizer: Any):
        self.model = model
        self.tokenizer = tokenizer
        names = ("python_start", "python_end", "output_start", "output_end", "assistant_end", "bos")
        self._special = {name: tokenizer.encode_special(f"<|{name}|>") for name in names}

    @torch.inference_mode()
    def generate(
        self,
        tokens: Sequence[int],
        num_samples: int = 1,
        max_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 42,
    ) -> Iterator[tuple[list[int], list[int]]]:
        """Columns of tokens, one per sample, with a mask: 1 sampled, 0 forced by the calculator.

        A sample is complete with `<|assistant_end|>` or `<|bos|>`, which is part of its column;
        it is stepped on, for nothing, until all are. The columns also end after `max_tokens` of
        them, and when the context of the model is full.

        Raises:
            Refused: The prompt is empty, longer than the context, or not of this vocabulary.
        """
        if num_samples < 1:
            raise Refused("ask for at least one sample")
        context = self._admitted(tokens)
        device = self.model.get_device()
        rng = torch.Generator(device=device).manual_seed(seed)
        prompt = self._cache(1, len(tokens))
        ids = torch.tensor([list(tokens)], dtype=torch.long, device=device)
        logits = self.model.forward(ids, kv_cache=prompt)[:, -1].expand(num_samples, -1)
        room = min(context, len(tokens) + max_tokens) if max_tokens is not None else context
        cache = self._cache(num_samples, room)
        cache.prefill(prompt)
        rows = [_Row() for _ in range(num_samples)]
        column: list[int] = []
        produced = 0
        while max_tokens is None or produced < max_tokens:
            if produced:
                if cache.get_pos() >= context:
                    return
                ids = torch.tensor(column, dtype=torch.long, device=device).unsqueeze(1)
                logits = self.model.forward(ids, kv_cache=cache)[:, -1]
            sampled = sample_next_token(logits, rng, temperature, top_k)[:, 0].tolist()
            mask = [int(not row.forced) for row in rows]
            column = [
                row.forced.popleft() if row.forced else token
                for row, token in zip(rows, sampled, strict=True)
            ]
            for row, token in zip(rows, column, strict=True):
                self._advance(row, token)
            yield column, mask
            produced += 1
            if all(row.completed for row in rows):
                return

    def generate_batch(
        self, tokens: Sequence[int], num_samples: int = 1, **kwargs: Any
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Whole samples: the prompt and what followed, without the token that ended it, and masks.

        The mask is 1 where the model spoke; 0 in the prompt and where the calculator did.
        """
        results = [list(tokens) for _ in range(num_samples)]
        masks = [[0] * len(tokens) for _ in range(num_samples)]
        ends = (self._special["assistant_end"], self._special["bos"])
        completed = [False] * num_samples
        for column, mask in self.generate(tokens, num_samples, **kwargs):
            for i, (token, spoken) in enumerate(zip(column, mask, strict=True)):
                completed[i] |= token in ends
                if not completed[i]:
                    results[i].append(token)
                    masks[i].append(spoken)
        return results, masks

    def fit(self, tokens: Sequence[int], room: int) -> list[int]:
        """A conversation without its oldest turns, so that `room` more tokens fit the context.

        It keeps the first token and starts again at a user's turn. The last user's turn is kept
        whole, and refused if it alone is too long.
        """
        limit = self.model.config.sequence_len - room
        tokens = list(tokens)
        if len(tokens) <= limit:
            return tokens
        user = self.tokenizer.encode_special("<|user_start|>")
        starts = [i for i, token in enumerate(tokens) if token == user]
        for start in starts:
            if 1 + len(tokens) - start <= limit:
                return [tokens[0], *tokens[start:]]
        raise Refused(
            f"the message leaves no room for {room} tokens of an answer in the context of "
            f"{self.model.config.sequence_len}; shorten it"
        )

    def _advance(self, row: _Row, token: int) -> None:
        """Follow a row: where it ends, and what it asks the calculator."""
        special = self._special
        if token in (special["assistant_end"], special["bos"]):
            row.completed = True
        elif token == special["python_start"]:
            row.call = []
        elif token == special["python_end"] and row.call is not None:
            answer = use_calculator(self.tokenizer.decode(row.call)) if row.call else None
            row.call = None
            if answer is not None:
                said = self.tokenizer.encode(str(answer))
                row.forced.extend((special["output_start"], *said, special["output_end"]))
        elif row.call is not None:
            row.call.append(token)

    def _admitted(self, tokens: Sequence[int]) -> int:
        """The length of the context, if the prompt fits it."""
        context = self.model.config.sequence_len
        if not tokens:
            raise Refused("the prompt is empty; start it with <|bos|>")
        if len(tokens) > context:
            raise Refused(
                f"the prompt has {len(tokens)} tokens and the context of the model {context}; "
                "shorten it"
            )
        vocabulary = self.model.config.vocab_size
        for id in tokens:
            if not 0 <= id < vocabulary:
                raise Refused(f"token id {id} is outside the vocabulary of {vocabulary}")
        return context

    def _cache(self, rows: int, length: int) -> KVCache:
        config = self.model.config
        head_dim = config.n_embd // config.n_head
        return KVCache(rows, config.n_kv_head, length, head_dim, config.n_layer)


class TextStream:
    """Text of tokens as they come; half a character is held back until its rest is there."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.held: list[int] = []

    def push(self, token: int) -> str:
        """What can be shown now that this token is known."""
        self.held.append(token)
        text = self.tokenizer.decode(self.held)
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        self.held = []
        return text

    def rest(self) -> str:
        """What was held back and will not become a character any more."""
        text, self.held = self.tokenizer.decode(self.held), []
        return text
