"""Bits per byte: a loss that does not depend on the tokenizer."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from nanochat.common import done_by_all


def evaluate_bpb(
    model: Any, batches: Iterable[tuple[Tensor, Tensor]], steps: int, token_bytes: Tensor
) -> float:
    """Cross entropy in bits per byte of text, over all processes.

    sum of nats / (ln 2 x sum of bytes), over targets that stand for bytes: special tokens, with
    no bytes, and targets below zero count in neither sum. Infinite where there are no bytes.

    Args:
        model: Called as model(x, y, loss_reduction="none").
        batches: Inputs and targets; at least `steps` of them.
        steps: How many batches to use, in each process.
        token_bytes: Bytes of each token, 0 for special tokens.
    """
    parts = done_by_all(lambda: _sums(model, iter(batches), steps, token_bytes))
    nats, n_bytes = sum(part[0] for part in parts), sum(part[1] for part in parts)
    return nats / (math.log(2) * n_bytes) if n_bytes else math.inf


@torch.no_grad()
def _sums(
    model: Any, batches: Iterator[tuple[Tensor, Tensor]], steps: int, token_bytes: Tensor
) -> tuple[float, int]:
    """Nats and bytes of this process."""
    device = token_bytes.device
    nats = torch.zeros((), dtype=torch.float32, device=device)
    n_bytes = torch.zeros((), dtype=torch.int64, device=device)
    for _ in range(steps):
        inputs, targets = next(batches)
        losses = model(inputs, targets, loss_reduction="none").flatten()
        targets = targets.flatten()
        sizes = torch.where(targets >= 0, token_bytes[targets.clamp(min=0)], 0)
        nats += (losses * (sizes > 0)).sum()
        n_bytes += sizes.sum()
    return float(nats), int(n_bytes)
