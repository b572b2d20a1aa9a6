"""Muon: momentum whose update is brought near the closest orthogonal matrix."""

from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from nanochat.adamw import average_gradients

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NORM_EPS = 1e-7


def zeropower_via_newtonschulz5(
    gradient: Tensor,
    steps: int = 5,
    product: Callable[[Tensor, Tensor], Tensor] = torch.matmul,
) -> Tensor:
    """Bring every singular value of a matrix near 1; bfloat16, on any device.

    Leading dimensions are a stack of matrices. `product` multiplies two of them in bfloat16.

    A quintic Newton-Schulz iteration, X <- a X + (b A + (c A) A) X with A = X X', on the matrix
    divided by its Frobenius norm. Singular values end between about 0.7 and 1.2, which is what
    the coefficients trade for speed. The order of the products is the reference's: in bfloat16
    another order changes the result by some 3 %.

    Source:
        Jordan et al. 2024, Muon: an optimizer for hidden layers in neural networks.
    """
    a, b, c = COEFFICIENTS
    x = gradient.bfloat16()
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + NORM_EPS)
    for _ in range(steps):
        gram = product(x, x.mT)
        x = a * x + product(b * gram + product(c * gram, gram), x)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum as a running mean, orthogonalised; for matrices only.

        m <- m + (1 - mu)(g - m);  u = NS(g + mu (m - g));  p <- p - lr max(1, rows / cols)^1/2 u

    `torch.optim.Muon` is not used: it multiplies in another order, and differs by per cents. There
    is one group for each number of elements, in order of appearance, as in the reference's files.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float | Tensor = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
    ):
        defaults = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps}
        groups: dict[int, list[Tensor]] = {}
        for p in params:
            groups.setdefault(p.numel(), []).append(p)
        super().__init__([{"params": group} for group in groups.values()], defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, self._momentum(p, group), group)

    def _momentum(self, p: Tensor, group: dict) -> Tensor:
        """Move the running mean of a matrix's gradients; the direction that follows from it."""
        gradient, mu = p.grad, group["momentum"]
        assert gradient is not None
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        mean = state["momentum_buffer"].lerp_(gradient, 1 - mu)
        return gradient.lerp(mean, mu) if group["nesterov"] else mean

    def _update(self, p: Tensor, direction: Tensor, group: dict) -> None:
        update = zeropower_via_newtonschulz5(direction, group["ns_steps"]).float()
        rate = group["lr"] * max(1.0, p.size(-2) / p.size(-1)) ** 0.5
        # Not add_ with alpha: on a CPU that rounds the rate of bfloat16 weights to 8 bits.
        p.sub_(rate * update)


class DistMuon(Muon):
    """Muon for processes that train together: they average gradients and share the iterations.

    Every process keeps the momentum of every matrix, so a checkpoint fits any number of
    processes; the Newton-Schulz iterations, which are the cost, are dealt out in turn.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        average_gradients(p for group in self.param_groups for p in group["params"])
        rank, world, dealt, waiting = dist.get_rank(), dist.get_world_size(), 0, []
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                owner, dealt = dealt % world, dealt + 1
                direction = self._momentum(p, group)
                if owner == rank:
                    self._update(p, direction, group)
                waiting.append(dist.broadcast(p, src=owner, async_op=True))
        for work in waiting:
            work.wait()
