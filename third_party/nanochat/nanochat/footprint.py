"""How much memory training takes, counted from the shape of a model.

The count is of eager training: weights, gradients, optimizer states, what the forward pass keeps
for the backward pass, and the logits at their peak. A compiled model keeps less. Activations are
checked against what torch saves; the allowance for the run time is a round figure, not a
measurement.
"""

from dataclasses import dataclass

import torch

from nanochat.gpt import GPT, GPTConfig

GIB = 2**30
RUNTIME_BYTES = GIB
"""Driver context, libraries and their workspaces on a GPU."""

RUNTIME_SHARE = 0.08
"""Lost between the blocks of the allocator, as a share of what is asked for."""

LOGITS_AT_ONCE = 4
"""float32 tensors of all logits at the peak: softcapped, log-softmax, and their two gradients."""


@dataclass(frozen=True)
class Footprint:
    """Bytes of one training process.

    Args:
        weights: Parameters, the embedding in the compute dtype and the rest in float32.
        gradients: One for each.
        optimizer: Two moments for AdamW's tables, one for Muon's matrices.
        casts: Copies of the float32 weights in the compute dtype, where it is another.
        row: What each row of a batch adds: activations and logits.
    """

    weights: int
    gradients: int
    optimizer: int
    casts: int
    row: int

    @property
    def fixed(self) -> int:
        """What there is at any batch size."""
        return self.weights + self.gradients + self.optimizer + self.casts

    def total(self, rows: int, runtime: bool = False) -> int:
        """Bytes at a batch size, with or without the allowance for the run time."""
        count = self.fixed + rows * self.row
        return round(count * (1 + RUNTIME_SHARE)) + RUNTIME_BYTES if runtime else count

    def largest_batch(self, card_bytes: float) -> int:
        """The most rows that fit a card, run time included; 0 if none does."""
        room = (card_bytes - RUNTIME_BYTES) / (1 + RUNTIME_SHARE) - self.fixed
        return max(0, int(room // self.row))


def footprint(config: GPTConfig, dtype: torch.dtype) -> Footprint:
    """The memory of training a shape; `dtype` is that of the residual stream."""
    with torch.device("meta"):
        count = GPT(config).num_params()
    table, others = count["embedding"], count["matrices"] + count["unembedding"]
    size = dtype.itemsize
    weights = size * table + 4 * others
    moments = 2 * (size * table + 4 * count["unembedding"]) + 4 * count["matrices"]
    casts = size * others if size != 4 else 0
    tokens = config.sequence_len
    logits = LOGITS_AT_ONCE * 4 * config.vocab_size
    return Footprint(
        weights, weights, moments, casts, tokens * (activation_bytes(config, dtype) + logits)
    )


def activation_bytes(config: GPTConfig, dtype: torch.dtype) -> int:
    """What the forward pass keeps of one token, up to the last norm.

    Each norm keeps its input in float32 and its scale; each linear map its input, which is the
    norm's result; attention its three inputs, its result and a log-sum per head; the MLP its
    hidden layer before and after the square.
    """
    size, width = dtype.itemsize, config.n_embd
    narrow = config.n_kv_head * config.head_dim
    norm = 4 * width + 4 + size * width
    heads = config.n_head + config.n_kv_head
    rotated = 4 * (width + narrow) + 4 * heads
    attention = norm + rotated + size * (2 * width + 2 * narrow) + 4 * config.n_head
    mlp = norm + 2 * size * 4 * width
    ends = (4 * width + 4) + norm + 8
    return config.n_layer * (attention + mlp) + ends
