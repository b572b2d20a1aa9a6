"""Bits per byte: a loss that does not depend on the tokenizer."""

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nanochat.common import world_size


@torch.no_grad()
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
    device = token_bytes.device
    nats = torch.zeros((), dtype=torch.float32, device=device)
    n_bytes = torch.zeros((), dtype=torch.int64, device=device)
    batches = iter(batches)
    for _ in range(steps):
        inputs, targets = next(batches)
        losses = model(inputs, targets, loss_reduction="none").flatten()
        targets = targets.flatten()
        sizes = torch.where(targets >= 0, token_bytes[targets.clamp(min=0)], 0)
        nats += (losses * (sizes > 0)).sum()
        n_bytes += sizes.sum()
    if world_size() > 1:
        dist.all_reduce(nats)
        dist.all_reduce(n_bytes)
    return float(nats) / (math.log(2) * int(n_bytes)) if n_bytes else math.inf
