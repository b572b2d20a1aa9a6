"""Texts one after another in one row, without padding, none of which sees another."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

ROWS_AT_ONCE = 1024
"""Rows whose logits exist at the same time."""


@dataclass(frozen=True, eq=False)
class Packed:
    """Several texts in one row, and what is to be learned of them.

    Letters: N tokens in all, S of them followed by one that is learned.

    Args:
        ids: Token ids (N,).
        positions: Place of every token in its own text (N,).
        places: Place of every token in a rectangle of texts by longest text, flat (N,).
        learned: Where in the row a token is followed by one that is learned (S,).
        targets: Which ones those are (S,).
        lengths: Tokens of every text.
        counts: How many of them are followed by a learned one.
    """

    ids: Tensor
    positions: Tensor
    places: Tensor
    learned: Tensor
    targets: Tensor
    lengths: tuple[int, ...]
    counts: tuple[int, ...]


def pack(
    rows: Sequence[tuple[Sequence[int], Sequence[int]]], device: str | torch.device = "cpu"
) -> Packed:
    """Pack texts with their masks (1 = learned), each up to the last token that anything follows from.

    What comes after the last learned token changes no loss and is left out. A text in which
    nothing is learned after its first token is left out whole.
    """
    ids, positions, learned, targets, lengths, counts = [], [], [], [], [], []
    for tokens, mask in rows:
        marks = [at for at in range(len(tokens) - 1) if mask[at + 1]]
        if not marks:
            continue
        length = marks[-1] + 1
        learned += [len(ids) + at for at in marks]
        targets += [tokens[at + 1] for at in marks]
        ids += list(tokens[:length])
        positions += range(length)
        lengths.append(length)
        counts.append(len(marks))
    longest = max(lengths, default=0)
    starts = [row * longest for row, length in enumerate(lengths) for _ in range(length)]

    def tensor(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    places = tensor(starts) + tensor(positions)
    return Packed(
        tensor(ids),
        tensor(positions),
        places,
        tensor(learned),
        tensor(targets),
        tuple(lengths),
        tuple(counts),
    )


def attend_apart(
    q: Tensor, k: Tensor, v: Tensor, packed: Packed, grouped: bool, every: bool = True
) -> Tensor:
    """Causal attention within every text; k and v are (1, heads, N, D).

    q is of every token (1, heads, N, D), or else only of those before a learned one (1, heads, S,
    D); the answer is as long. On a CPU text by text. Elsewhere, where many small calls are dear,
    in one call.
    """
    attend = _one_by_one if q.device.type == "cpu" else _at_once
    return attend(q, k, v, packed, grouped, every)


def _one_by_one(
    q: Tensor, k: Tensor, v: Tensor, packed: Packed, grouped: bool, every: bool
) -> Tensor:
    queries = q.split(packed.lengths if every else packed.counts, dim=2)
    keys, values = (x.split(packed.lengths, dim=2) for x in (k, v))
    masks = [None] * len(packed.lengths) if every else _seen(packed)
    attended = [
        F.scaled_dot_product_attention(
            query, key, value, mask, is_causal=mask is None, enable_gqa=grouped
        )
        for query, key, value, mask in zip(queries, keys, values, masks, strict=True)
    ]
    return torch.cat(attended, dim=2)


def _seen(packed: Packed) -> list[Tensor]:
    """For every text, which tokens each of those before a learned one may look at."""
    asking = packed.positions[packed.learned].split(packed.counts)
    return [
        at[:, None] >= torch.arange(length, device=at.device)
        for at, length in zip(asking, packed.lengths, strict=True)
    ]


def _at_once(q: Tensor, k: Tensor, v: Tensor, packed: Packed, grouped: bool, every: bool) -> Tensor:
    """Attention over a rectangle; what fills it up stands after every text, where none looks."""
    count, longest = len(packed.lengths), max(packed.lengths)
    asking = packed.places if every else packed.places[packed.learned]

    def rectangle(x: Tensor, places: Tensor) -> Tensor:
        filled = x.new_zeros(x.size(1), count * longest, x.size(3))
        filled = filled.index_copy(1, places, x[0])
        return filled.view(x.size(1), count, longest, x.size(3)).transpose(0, 1)

    y = F.scaled_dot_product_attention(
        rectangle(q, asking),
        rectangle(k, packed.places),
        rectangle(v, packed.places),
        is_causal=True,
        enable_gqa=grouped,
    )
    return y.transpose(0, 1).flatten(1, 2).index_select(1, asking)[None]


def in_parts(losses_of: Callable[[Tensor, Tensor], Tensor], x: Tensor, targets: Tensor) -> Tensor:
    """The losses of many rows, some rows at a time, so that few logits exist at once."""
    if len(targets) <= ROWS_AT_ONCE:
        return losses_of(x, targets)
    # The logits of a part are computed again in the backward pass, not kept.
    again = functools.partial(checkpoint, losses_of, use_reentrant=False)
    parts = zip(x.split(ROWS_AT_ONCE), targets.split(ROWS_AT_ONCE), strict=True)
    return torch.cat([cast(Tensor, again(*part)) for part in parts])
