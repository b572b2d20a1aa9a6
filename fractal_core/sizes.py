"""What a language model of some shape would hold, cost and need, before anybody trains it.

Parameters and operations are those of the model itself, made without memory; bytes are those of
`nanochat.footprint`: eager training, every GPU holding the whole model. Training time is

    seconds = operations per token x tokens / (GPUs x peak x utilisation)

with the peak of an H100 and a utilisation that one assumes. Tokens are a multiple of the
parameters, 20 as in Hoffmann et al. 2022 (arXiv:2203.15556) unless another is chosen.
"""

import functools
from dataclasses import dataclass
from typing import Literal

import altair as alt
import pandas as pd

from fractal_core.errors import Refused, as_ours

PEAK = {"bfloat16": 989e12, "float32": 494e12}
"""Dense operations per second of one H100 SXM; those of float32 are TF32's, as nanochat trains."""

HOURLY = 3.00
"""US dollars for an hour of one H100, as nanochat's report reckons."""

WHOLE_HEADS = 128
"""A width above this is rounded up to a multiple of it, so that heads share it evenly."""


@dataclass(frozen=True)
class Wish:
    """A model and how it is trained.

    Args:
        depth: Layers.
        aspect: Channels for each layer.
        vocab_size: Tokens.
        sequence_length: Positions.
        rows: Texts at a time on each GPU.
        dtype: What is computed in.
        gpus: How many H100 train it.
        utilisation: Share of their peak that is put to use.
        tokens_per_parameter: How many tokens it learns from.
        card: GiB of memory of a GPU.
    """

    depth: int = 20
    aspect: int = 64
    vocab_size: int = 65536
    sequence_length: int = 2048
    rows: int = 32
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    gpus: int = 8
    utilisation: float = 0.4
    tokens_per_parameter: float = 20.0
    card: float = 80.0

    @property
    def width(self) -> int:
        """Channels: depth times aspect, in whole heads."""
        width = self.depth * self.aspect
        return width if width <= WHOLE_HEADS else -(-width // WHOLE_HEADS) * WHOLE_HEADS


@dataclass(frozen=True)
class Size:
    """What a wish comes to.

    Args:
        width: Channels.
        heads: Heads of attention.
        parameters: By part.
        operations: Floating-point operations per token of training.
        tokens: That it learns from.
        seconds: That it trains.
        memory: GiB of one GPU, by part.
        largest_batch: Texts at a time that fit a GPU at most; 0 if none does.
    """

    width: int
    heads: int
    parameters: dict[str, int]
    operations: int
    tokens: int
    seconds: float
    memory: dict[str, float]
    largest_batch: int

    @property
    def total(self) -> int:
        """All parameters."""
        return sum(self.parameters.values())

    @property
    def gib(self) -> float:
        """All memory of one GPU."""
        return sum(self.memory.values())


def size(wish: Wish) -> Size:
    """What a model would hold, cost and need.

    Raises:
        Refused: There is no such shape.
    """
    if not 0 < wish.utilisation <= 1 or min(wish.gpus, wish.rows) < 1:
        raise Refused("the utilisation is above 0 and at most 1; GPUs and texts are at least 1")
    width, heads, parameters, operations = _shape(
        wish.depth, wish.width, wish.vocab_size, wish.sequence_length
    )
    tokens = round(wish.tokens_per_parameter * sum(dict(parameters).values()))
    speed = wish.gpus * PEAK[wish.dtype] * wish.utilisation
    memory, largest = _memory(wish)
    return Size(
        width,
        heads,
        dict(parameters),
        operations,
        tokens,
        operations * tokens / speed,
        memory,
        largest,
    )


@functools.lru_cache(maxsize=256)
def _shape(
    depth: int, width: int, vocab_size: int, sequence_length: int
) -> tuple[int, int, tuple[tuple[str, int], ...], int]:
    """Width, heads, parameters by part and operations per token."""
    import torch
    from nanochat import common
    from nanochat.gpt import GPT, GPTConfig
    from scripts.model_size import parameters

    with as_ours(common.Refused), torch.device("meta"):
        config = GPTConfig.from_depth(
            depth, sequence_len=sequence_length, vocab_size=vocab_size, model_dim=width
        )
        model = GPT(config)
    return config.n_embd, config.n_head, tuple(parameters(model).items()), model.estimate_flops()


@functools.lru_cache(maxsize=256)
def _memory(wish: Wish) -> tuple[dict[str, float], int]:
    """GiB by part, and the largest batch."""
    import torch
    from nanochat import footprint
    from nanochat.gpt import GPTConfig

    config = GPTConfig.from_depth(
        wish.depth,
        sequence_len=wish.sequence_length,
        vocab_size=wish.vocab_size,
        model_dim=wish.width,
    )
    dtype = getattr(torch, wish.dtype)
    need = footprint.footprint(config, dtype)
    positions = wish.rows * wish.sequence_length
    activations = positions * footprint.activation_bytes(config, dtype)
    parts = {
        "weights": need.weights,
        "gradients": need.gradients,
        "optimizer": need.optimizer,
        "casts": need.casts,
        "activations": activations,
        "logits": wish.rows * need.row - activations,
        "run time": need.total(wish.rows, runtime=True) - need.total(wish.rows),
    }
    gib = {name: value / footprint.GIB for name, value in parts.items() if value}
    return gib, need.largest_batch(wish.card * footprint.GIB)


def words(wish: Wish, found: Size) -> str:
    """The figures as Markdown."""
    hours = found.seconds / 3600
    fits = (
        f"at most {found.largest_batch:,} texts at a time fit"
        if found.largest_batch
        else "not even one text at a time fits; shorten the texts"
    )
    return (
        f"Width {found.width:,}, {found.heads} heads of {found.width // found.heads}.\n\n"
        f"| | |\n|---|---|\n"
        f"| parameters | **{found.total:,}** |\n"
        f"| operations per token | **{found.operations:,}** |\n"
        f"| tokens, {wish.tokens_per_parameter:g} for each parameter | **{found.tokens:,}** |\n"
        f"| operations in all | **{found.operations * found.tokens:.2e}** |\n"
        f"| hours on {wish.gpus} H100 | **{hours:,.2f}** |\n"
        f"| dollars, at {HOURLY:.2f} for an hour of one | **{hours * wish.gpus * HOURLY:,.0f}** |\n"
        f"| memory of each GPU | **{found.gib:.1f} GiB** |\n\n"
        f"The time assumes {wish.utilisation:.0%} of the {PEAK[wish.dtype] / 1e12:.0f} TFLOP/s that "
        f"an H100 has at its best, and counts nothing but training. On a card of {wish.card:g} GiB "
        f"{fits}; that is eager training, a compiled model keeps less."
    )


def bars(
    found: dict[str, float] | dict[str, int], title: str, limit: float | None = None
) -> alt.LayerChart | alt.FacetChart:
    """A bar for each part, and a line where a limit is."""
    frame = pd.DataFrame({"part": list(found), "value": list(found.values())})
    base = alt.Chart(frame).encode(
        x=alt.X("value:Q", title=title), y=alt.Y("part:N", title=None, sort=list(found))
    )
    layers: list[alt.Chart] = [base.mark_bar(color="#2474bd").encode(tooltip=["part", "value"])]
    if limit is not None:
        rule = pd.DataFrame({"value": [limit]})
        layers.append(alt.Chart(rule).mark_rule(color="#d1495b", size=2).encode(x="value:Q"))
    return alt.layer(*layers).properties(height=24 * len(found) + 20, width="container")
