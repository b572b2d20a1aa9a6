"""Texts one after another in one row, without padding, none of which sees another."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


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
    """

    ids: Tensor
    positions: Tensor
    places: Tensor
    learned: Tensor
    targets: Tensor
    lengths: tuple[int, ...]


def pack(
    rows: Sequence[tuple[Sequence[int], Sequence[int]]], device: str | torch.device = "cpu"
) -> Packed:
    """Pack texts with their masks (1 = learned), each up to the last token that anything follows from.

    What comes after the last learned token changes no loss and is left out. A text in which
    nothing is learned after its first token is left out whole.
    """
    ids, positions, learned, targets, lengths = [], [], [], [], []
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
    longest = max(lengths, default=0)
    starts = [row * longest for row, length in enumerate(lengths) for _ in range(length)]

    def tensor(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    places = tensor(starts) + tensor(positions)
    return Packed(
        tensor(ids), tensor(positions), places, tensor(learned), tensor(targets), tuple(lengths)
    )


def attend_apart(q: Tensor, k: Tensor, v: Tensor, packed: Packed, grouped: bool) -> Tensor:
    """Causal attention within every text; q, k, v are (1, heads, N, D), and so is the answer.

    On a CPU text by text. Elsewhere, where many small calls are dear, in one call.
    """
    attend = _one_by_one if q.device.type == "cpu" else _at_once
    return attend(q, k, v, packed, grouped)


def _one_by_one(q: Tensor, k: Tensor, v: Tensor, packed: Packed, grouped: bool) -> Tensor:
    texts = zip(*(x.split(packed.lengths, dim=2) for x in (q, k, v)), strict=True)
    attended = [
        F.scaled_dot_product_attention(*text, is_causal=True, enable_gqa=grouped) for text in texts
    ]
    return torch.cat(attended, dim=2)


def _at_once(q: Tensor, k: Tensor, v: Tensor, packed: Packed, grouped: bool) -> Tensor:
    """Attention over a rectangle; what fills it up stands after every text, where none looks."""
    count, longest = len(packed.lengths), max(packed.lengths)

    def rectangle(x: Tensor) -> Tensor:
        filled = x.new_zeros(x.size(1), count * longest, x.size(3))
        filled = filled.index_copy(1, packed.places, x[0])
        return filled.view(x.size(1), count, longest, x.size(3)).transpose(0, 1)

    y = F.scaled_dot_product_attention(
        rectangle(q), rectangle(k), rectangle(v), is_causal=True, enable_gqa=grouped
    )
    return y.transpose(0, 1).flatten(1, 2).index_select(1, packed.places)[None]
