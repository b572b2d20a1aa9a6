"""Fine-tunes one model again and again on one device, always from the same weights.

What is the same for every run is done once: the weights are loaded and kept on the device, the
batches are packed there, and the first loss, gradient and orthogonalised update, which no learning
rate changes, are kept from one run to the next. Between two runs weights and the optimizers'
state are set back to the bit, so a run has the same bits whatever ran before it.

No step computes what its loss does not need: texts are packed without padding, and logits exist
only where a token is learned. The loss of a batch is still the mean over its learned tokens, as in
nanochat. Nothing waits for the device at a step but the question, now and then, whether the losses
are still finite.

The optimizers are nanochat's: Muon for the matrices, AdamW for embedding and unembedding. Here
Muon's matrices of one shape are orthogonalised in one stack; on a CPU their bfloat16 products are
float32 products that are rounded afterwards, as few processors multiply bfloat16 fast.
"""

import contextlib
import ctypes
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float32
from nanochat.adamw import average_gradients
from nanochat.common import world_size
from nanochat.gpt import GPT
from nanochat.muon import Muon, zeropower_via_newtonschulz5
from nanochat.packing import Packed, pack
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from fractal_core import pulse
from fractal_core.determinism import determined
from fractal_core.stream import Stream, Texts

GROUPS = ("matrix", "embedding", "unembedding")
KEPT_ORDERS = 8
"""Orders of texts whose packed batches are kept on the device."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Names of glibc's for `mallopt`."""

LOOK_EVERY = 8
"""Steps between two looks at the losses on a device that works ahead of us."""


@dataclass(frozen=True)
class RunSettings:
    """All that a run depends on, beside weights, texts and device.

    Args:
        matrix_lr: Learning rate of Muon, at a multiplier of 1.
        embedding_lr: That of AdamW for the embedding, before the scaling with the model's width.
        unembedding_lr: That for the unembedding.
        multipliers: What the rates are multiplied with, step by step; as many as there are losses.
        trainable: Which of `GROUPS` learn.
        weight_decay: Of AdamW.
        momentum: Of Muon.
        batch_size: Texts of a micro-batch.
        accumulation: Micro-batches of a step, which count alike.
        sequence_length: Tokens of a text that are used at most.
        seed: Of the order of the texts, drawn anew for every pass through them.
    """

    matrix_lr: float
    embedding_lr: float
    unembedding_lr: float
    multipliers: tuple[float, ...]
    trainable: tuple[str, ...]
    weight_decay: float
    momentum: float
    batch_size: int
    accumulation: int
    sequence_length: int
    seed: int

    @property
    def beginning(self) -> tuple[Any, ...]:
        """What the first update depends on; runs that agree in it share it."""
        order = (self.batch_size, self.accumulation, self.sequence_length, self.seed)
        return (self.trainable, self.momentum, *order)


@functools.cache
def _keep_memory() -> None:
    """Have the C library keep what a step gives back, as the next one asks for the same again."""
    # Only glibc has it; elsewhere memory goes back and forth.
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 2**25)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


class Tuner:
    """A model with its optimizers, ready to be trained from its first weights at any rates.

    Args:
        model: What is fine-tuned; it is changed in place.
        texts: What it learns from.
        compiled: Whether `torch.compile` makes the forward and backward pass.
    """

    def __init__(self, model: GPT, texts: Texts, compiled: bool = False):
        self.model, self.texts, self.device = model, texts, model.get_device()
        if self.device.type == "cpu":
            _keep_memory()
        self._first = [p.detach().clone() for p in model.parameters()]
        self._losses = torch.compile(model.packed_losses, dynamic=True) if compiled else None
        self._batches: dict[tuple, dict[int, list[Packed]]] = {}
        self._streams: dict[tuple[int, int], Stream] = {}
        self._beginning: _Beginning | None = None
        self._kept: tuple[tuple, _Optimizers] | None = None

    def train(
        self, settings: RunSettings, *, finish: bool = False
    ) -> Float32[np.ndarray, " steps"]:
        """The loss before every step, up to the first that is not finite.

        Args:
            settings: At what rates, how long, on what.
            finish: Also make the update after the last loss, which changes no loss; for weights
                that are used afterwards.
        """
        return np.concatenate([*self.steps(settings, finish)] or [np.empty(0, np.float32)])

    def steps(self, settings: RunSettings, finish: bool = False) -> Iterator[np.ndarray]:
        """The same bit by bit: the losses of a few steps at a time, as they become known."""
        with determined(self.device):
            optimizers = self._begin(settings)
            planned = len(settings.multipliers)
            waiting: list[Tensor] = []
            every = 1 if self.device.type == "cpu" else LOOK_EVERY
            for step, multiplier in enumerate(settings.multipliers):
                optimizers.rate(settings, multiplier)
                last = step == planned - 1
                waiting.append(self._step(settings, step, optimizers, update=finish or not last))
                if last or len(waiting) == every:
                    losses = torch.stack(waiting).float().cpu().numpy()
                    waiting.clear()
                    pulse.tick()
                    blown = np.flatnonzero(~np.isfinite(losses))
                    yield losses[: blown[0] + 1] if len(blown) else losses
                    if len(blown):
                        return

    def tokens(self, settings: RunSettings) -> list[int]:
        """Learned tokens of every step."""
        return [
            sum(len(batch.targets) for batch in self.batch(settings, step))
            for step in range(len(settings.multipliers))
        ]

    def _begin(self, settings: RunSettings) -> "_Optimizers":
        """Set weights and optimizers back to where every run begins."""
        key = (settings.trainable, settings.weight_decay, settings.momentum)
        if self._kept is None or self._kept[0] != key:
            self._kept = (key, _Optimizers(self.model, *key))
        optimizers = self._kept[1]
        with torch.no_grad():
            for p, first in zip(self.model.parameters(), self._first, strict=True):
                p.copy_(first)
        optimizers.reset()
        return optimizers

    def _step(
        self, settings: RunSettings, step: int, optimizers: "_Optimizers", update: bool
    ) -> Tensor:
        """One loss, and the update that follows from it."""
        if step or optimizers.scaler is not None:
            loss = self._loss(settings, step, optimizers, backward=update)
            if update:
                optimizers.step()
            return loss
        if self._beginning is None or self._beginning.key != settings.beginning:
            # As large as the model, so only the last one is kept.
            self._beginning = None
            loss = self._loss(settings, 0, optimizers)
            gradients = [p.grad for p in optimizers.params]
            self._beginning = _Beginning(settings.beginning, loss, gradients, optimizers.step())
        elif update:
            for p, gradient in zip(optimizers.params, self._beginning.gradients, strict=True):
                p.grad = gradient
            optimizers.step(self._beginning.updates)
        return self._beginning.loss

    def _loss(
        self, settings: RunSettings, step: int, optimizers: "_Optimizers", backward: bool = True
    ) -> Tensor:
        """The mean loss of a step's micro-batches; leaves their gradient behind, if asked for."""
        for p in optimizers.params:
            p.grad = None
        total = torch.zeros((), device=self.device)
        losses_of = self._losses or self.model.packed_losses
        world = world_size()
        # Processes that train together share the micro-batches of a step.
        mine = self.batch(settings, step)[dist.get_rank() if world > 1 else 0 :: world]
        for batch in mine:
            loss = losses_of(batch).mean() / len(mine)
            if backward and optimizers.params:
                optimizers.scaled(loss).backward()
            total += loss.detach()
        if world > 1:
            dist.all_reduce(total)
        return total / world

    def batch(self, settings: RunSettings, step: int) -> list[Packed]:
        """The micro-batches of a step, packed on the device; kept for the runs to come."""
        kept = self._batches.setdefault(settings.beginning[2:], {})
        if len(self._batches) > KEPT_ORDERS:
            del self._batches[next(iter(self._batches))]
        if step not in kept:
            size = settings.batch_size
            first = step * size * settings.accumulation
            order = (settings.sequence_length, settings.seed)
            if order not in self._streams:
                self._streams[order] = Stream(self.texts, *order)
            stream = self._streams[order]
            kept[step] = [
                pack([stream.row(at + i) for i in range(size)], self.device)
                for at in range(first, first + size * settings.accumulation, size)
            ]
        return kept[step]


@dataclass(frozen=True)
class _Beginning:
    """What the first step of all runs has in common.

    Args:
        key: `RunSettings.beginning` of those runs.
        loss: The loss before it.
        gradients: Of every parameter that learns.
        updates: What Muon made of them.
    """

    key: tuple[Any, ...]
    loss: Tensor
    gradients: list[Tensor | None]
    updates: list[Tensor]


class _Optimizers:
    """Muon and AdamW over the parameters that learn."""

    def __init__(
        self, model: GPT, trainable: tuple[str, ...], weight_decay: float, momentum: float
    ):
        tables = ("unembedding",) if model.lm_head is None else ("unembedding", "embedding")
        self._adamw = model.setup_optimizers(1.0, 1.0, weight_decay=weight_decay)[0]
        matrices = [p for block in model.blocks for p in block.parameters()]
        self._muon = _StackedMuon(matrices, momentum=momentum)
        groups = list(zip(tables, self._adamw.param_groups, strict=True))
        groups += [("matrix", group) for group in self._muon.param_groups]
        self.params: list[Tensor] = []
        for p in model.parameters():
            p.requires_grad_(False)
            p.grad = None
        for name, group in groups:
            # The width's share of a rate is what `setup_optimizers` made of 1.
            group |= {"name": name, "share": 1.0 if name == "matrix" else float(group["lr"])}
            group["lr"] = torch.zeros((), device=model.get_device())
            if name in trainable:
                for p in group["params"]:
                    self.params.append(p.requires_grad_(True))
        self._groups = [group for _, group in groups]
        self._half = model.wte.weight.dtype == torch.float16
        self.scaler: GradScaler | None = None

    def reset(self) -> None:
        """Forget everything, as if no step had ever been made."""
        for optimizer in (self._adamw, self._muon):
            for state in optimizer.state.values():
                for tensor in state.values():
                    tensor.zero_()
        if self._half:
            self.scaler = GradScaler(self._groups[0]["lr"].device.type)

    def rate(self, settings: RunSettings, multiplier: float) -> None:
        """Set the rates of the next step."""
        for group in self._groups:
            rate = getattr(settings, f"{group['name']}_lr")
            group["lr"].fill_(rate * group["share"] * multiplier)

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss, scaled so that gradients in float16 do not vanish."""
        return loss if self.scaler is None else self.scaler.scale(loss)

    def step(self, updates: list[Tensor] | None = None) -> list[Tensor]:
        """Move the parameters; what Muon moved them by, unless that is given.

        In float16 an optimizer whose gradients overflowed makes no step.
        """
        if self.scaler is None:
            self._adamw.step()
            return self._muon.step(updates)
        for optimizer in (self._adamw, self._muon):
            if any(p.grad is not None for g in optimizer.param_groups for p in g["params"]):
                self.scaler.step(optimizer)
        self.scaler.update()
        return []


class _StackedMuon(Muon):
    """Muon that orthogonalises all matrices of one shape in one stack."""

    @torch.no_grad()
    def step(self, updates: list[Tensor] | None = None) -> list[Tensor]:
        if world_size() > 1:
            average_gradients(p for group in self.param_groups for p in group["params"])
        stacks: dict[torch.Size, list[tuple[Tensor, Tensor, Tensor]]] = {}
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    rate = group["lr"] * max(1.0, p.size(0) / p.size(1)) ** 0.5
                    stacks.setdefault(p.shape, []).append((p, self._momentum(p, group), rate))
        if updates is None:
            updates = [
                self._orthogonal(torch.stack([direction for _, direction, _ in stack]))
                for stack in stacks.values()
            ]
        for stack, update in zip(stacks.values(), updates, strict=True):
            for (p, _, rate), mine in zip(stack, update, strict=True):
                p.sub_(rate * mine)
        return updates

    def _orthogonal(self, stack: Tensor) -> Tensor:
        product = _rounded_product if stack.device.type == "cpu" else torch.matmul
        return zeropower_via_newtonschulz5(stack, product=product).to(stack.dtype)


def _rounded_product(a: Tensor, b: Tensor) -> Tensor:
    return (a.float() @ b.float()).bfloat16()
