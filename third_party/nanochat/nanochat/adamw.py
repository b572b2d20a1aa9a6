"""AdamW: torch's own, and its form for processes that train together."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class AdamW(torch.optim.AdamW):
    """`torch.optim.AdamW`, fused, which gives the reference's numbers in a single process."""

    def __init__(self, params: Any, lr: float | Tensor = 1e-3, **options: Any):
        super().__init__(params, lr=lr, fused=True, **options)


class DistAdamW(AdamW):
    """AdamW on the mean of the gradients of all processes, with the state of all weights in each.

    The reference shards the state over processes and adds eps before the bias correction; this
    one takes the step that a single process would take, so a checkpoint fits any number of them.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        average_gradients(p for group in self.param_groups for p in group["params"])
        return super().step(closure)


def average_gradients(params: Iterable[Tensor]) -> None:
    """Replace every gradient by its mean over the processes, computed in float32.

    All processes must name the same parameters; a missing gradient of one that is trained counts
    as zero, so that none waits for another.
    """
    world, waiting = dist.get_world_size(), []
    for p in params:
        if not p.requires_grad:
            continue
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        total = p.grad.float()
        waiting.append((p.grad, total, dist.all_reduce(total, async_op=True)))
    for gradient, total, work in waiting:
        work.wait()
        gradient.copy_(total.div_(world))
