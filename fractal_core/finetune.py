"""Fine-tuning a nanochat language model: one run, and a plane of runs.

A run starts from the weights of a checkpoint and learns what the assistant says in conversations,
by nanochat's optimizers: Muon for the matrices of the blocks, AdamW for embedding and unembedding.
The loss of a step, in nats, is the mean over its micro-batches of each one's mean over learned
tokens, before the step. Rates rise linearly over the first steps and fall as half a cosine.

Source: the settings are those of the fractal-llm study of nanochat on DocVQA. Departures: a budget
in tokens is the number of steps that see so many learned tokens, not an estimate from the first
batch, so it does not depend on which texts come first; nothing depends on the size of the GPU; the
texts of a batch are packed (see `tuner`), which changes a loss only by rounding.
"""

import functools
import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from jaxtyping import Float64

from fractal_core import base, conversations
from fractal_core.errors import Refused, as_ours, require_known
from fractal_core.outcome import WINDOW, Outcomes, join, judge_curves
from fractal_core.stream import Stream

if TYPE_CHECKING:
    from nanochat.tokenizer import RustBPETokenizer

    from fractal_core.tuner import RunSettings, Tuner

ARITHMETIC = "finetune-1"
"""Changes whenever the same recipe would give other bits."""

Device = Literal["cpu", "cuda"]
Dtype = Literal["float32", "bfloat16", "float16"]

AXES = {
    "learning_rate": "learning rate",
    "matrix_lr": "matrix learning rate",
    "embedding_lr": "embedding learning rate",
    "unembedding_lr": "unembedding learning rate",
    "init_lr_frac": "share of the learning rates",
    "final_lr_frac": "share of the learning rates at the end",
    "weight_decay": "weight decay",
    "warmup": "share of the steps that warm up",
    "momentum": "momentum of Muon",
    "num_tokens": "learned tokens",
    "num_steps": "steps",
    "batch_size": "texts per batch",
    "accumulation": "batches per step",
    "sequence_length": "tokens per text",
    "seed": "seed of the order of texts",
}
WHOLE = {"num_tokens", "num_steps", "batch_size", "accumulation", "sequence_length", "seed"}
MULTIPLIERS = {"matrix_lr": 1.0, "embedding_lr": 10.0, "unembedding_lr": 0.2}
"""Each rate as a multiple of `learning_rate`."""

GROUPS = {
    "matrix": ("matrix", "blocks", "trunk"),
    "embedding": ("embedding", "wte", "emb"),
    "unembedding": ("unembedding", "head", "lm_head", "unembed"),
}
MAX_STEPS = 10**6
MOST_TOKENS = 2048
"""Tokens of a conversation that are kept, as in nanochat."""


@dataclass(frozen=True)
class FineTune:
    """Settings of the fine-tuning experiment.

    Args:
        checkpoint: What is fine-tuned: `builtin` (see `fractal base`), a folder in nanochat's
            layout, a stage (base, mid, sft, rl), hf:org/repo@rev or
            wandb:entity/project/name:version.
        data: Conversations: `builtin`, `docvqa`, hf:org/name@rev or a file of JSON lines.
        axes: The settings that x and y replace, two of `AXES`; `seed` is the order of the texts.
        learning_rate: Sets all three rates, see `MULTIPLIERS`; None leaves them as they are.
        matrix_lr: Of Muon.
        embedding_lr: Of AdamW for the embedding, before nanochat's scaling with the model's width.
        unembedding_lr: That for the unembedding.
        init_lr_frac: Part of these rates that the warm-up ends at.
        final_lr_frac: Part of that at the end of the cosine; 1 keeps the rates constant.
        warmup: Share of the steps in which rates rise linearly; at least one step.
        weight_decay: Of AdamW.
        momentum: Of Muon.
        trainable: What learns: matrix, embedding, unembedding with commas between them, or an
            alias, or `all` or `none`.
        num_steps: Losses per run, if there is no budget in tokens.
        num_tokens: Budget in learned tokens instead: as many steps as it takes to see them.
        batch_size: Texts of a micro-batch.
        accumulation: Micro-batches of a step.
        sequence_length: Tokens of a text that are used at most.
        window: Last losses whose mean decides between trainable and not.
        threshold: Part of the first loss that this mean must stay below.
        dtype: Precision of the computation; weights of matrices and their updates are float32.
        device: Where it is trained; the two give different bits.
        compiled: Whether `torch.compile` makes forward and backward pass: faster on a GPU after
            a minute's wait, with other bits.

    Raises:
        Refused: A setting is out of range, or two of them contradict each other.
    """

    checkpoint: str = "builtin"
    data: str = "builtin"
    axes: tuple[str, str] = ("matrix_lr", "unembedding_lr")
    learning_rate: float | None = None
    matrix_lr: float = 0.02
    embedding_lr: float = 0.2
    unembedding_lr: float = 0.004
    init_lr_frac: float = 1.0
    final_lr_frac: float = 0.0
    warmup: float = 0.06
    weight_decay: float = 0.1
    momentum: float = 0.95
    trainable: str = "matrix,unembedding"
    num_steps: int = 100
    num_tokens: int | None = None
    batch_size: int = 8
    accumulation: int = 1
    sequence_length: int = 1024
    window: int = WINDOW
    threshold: float = 1.0
    dtype: Dtype = "float32"
    device: Device = "cpu"
    compiled: bool = False

    def __post_init__(self):
        require_known("dtype", self.dtype, get_args(Dtype))
        require_known("device", self.device, get_args(Device))
        for axis in self.axes:
            require_known("axis", axis, tuple(AXES))
        object.__setattr__(self, "trainable", ",".join(_groups(self.trainable)))
        self._require_ranges()
        if self.learning_rate is not None:
            object.__setattr__(self, "learning_rate", float(self.learning_rate))
        moved = list(self._moved())
        for name in moved:
            if moved.count(name) > 1:
                raise Refused(f"both axes move {name}; choose two that do not overlap")
        if {"num_tokens", "num_steps"} <= set(moved):
            raise Refused("num_tokens and num_steps both say how long a run is; move one of them")

    def _require_ranges(self) -> None:
        at_least = {name: 0.0 for name in (*MULTIPLIERS, "init_lr_frac", "weight_decay")}
        at_least |= {name: 1 for name in WHOLE - {"seed"}} | {"window": 1, "learning_rate": 0.0}
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is not None and not least <= value < math.inf:
                raise Refused(f"{name}={value}; choose a number of at least {least}")
        if not self.threshold:
            raise Refused("threshold=0; no mean of losses stays below it, choose a share above 0")
        for name in ("final_lr_frac", "warmup", "threshold", "momentum"):
            if not 0 <= getattr(self, name) <= 1:
                raise Refused(f"{name}={getattr(self, name)}; choose a share between 0 and 1")
        if self.num_steps > MAX_STEPS:
            raise Refused(f"{self.num_steps} steps; the most that a run may have are {MAX_STEPS}")

    def _moved(self) -> Iterator[str]:
        """The settings that the axes replace."""
        for axis in self.axes:
            yield axis
            if axis == "learning_rate":
                yield from MULTIPLIERS

    @property
    def precision(self) -> str:
        """In which axis values are used: a rate becomes float32 before it meets a weight."""
        return "float32"

    @property
    def other_dtype(self) -> str:
        """The precision to compare with."""
        return "bfloat16" if self.dtype == "float32" else "float32"

    @property
    def devices(self) -> tuple[str, ...]:
        """Kinds of device that it trains on: the one that is a setting, as bits depend on it."""
        return (self.device,)

    @property
    def serial(self) -> bool:
        """A run uses one thread, so that its bits do not depend on how many there are."""
        return True

    @property
    def block(self) -> int:
        """Every run is committed by itself."""
        return 1

    def label(self, axis: str) -> str:
        """The words for an axis in a figure."""
        return AXES[axis]

    def whole(self, axis: str) -> bool:
        """Whether an axis takes whole numbers only."""
        return axis in WHOLE

    def magnitude(self, axis: str, seed: int) -> float:
        """No axis is added to anything."""
        return 0.0

    def contract(self, seed: int) -> dict[str, str]:
        """Hashes of weights and tokens, and the versions that decide bits."""
        return {
            "arithmetic": ARITHMETIC,
            "weights_sha256": _weights_digest(self.checkpoint),
            "data_sha256": self.texts("train").digest,
            "nanochat": metadata.version("nanochat"),
            "torch": metadata.version("torch"),
        }

    def review(self, points: Float64[np.ndarray, "n 2"], seed: int) -> list[str]:
        """What should be known before a map is begun, a sentence each.

        Raises:
            Refused: A setting would not be used, or runs are too short to be judged.
        """
        self._require_used()
        shortest = min(setting.length(mine) for setting, mine in self._extremes(points, seed))
        if shortest <= self.window:
            raise Refused(
                f"{shortest} steps are too few to judge by the last {self.window} losses; train "
                f"for at least {self.window + 1} steps or set a smaller window (--force skips this "
                "check: the mean is then over the whole run)"
            )
        if shortest < 2 * self.window:
            return [
                f"runs of {shortest} steps are judged by their last {self.window} losses, which is "
                "more than half of them; labels say little about where training ends"
            ]
        return []

    def _require_used(self) -> None:
        defaults = {f.name: f.default for f in fields(self)}
        for name in self._moved():
            if name in defaults and getattr(self, name) != defaults[name]:
                raise Refused(f"{name} is moved by an axis; do not set it as well")
            if name in MULTIPLIERS and self.learning_rate is not None:
                raise Refused(f"learning_rate would replace {name}, which an axis moves; set one")
            if name == "num_steps" and self.num_tokens is not None:
                raise Refused("num_tokens would replace num_steps, which an axis moves; set one")

    def _extremes(
        self, points: Float64[np.ndarray, "n 2"], seed: int
    ) -> "Iterator[tuple[FineTune, int]]":
        """Points among which is one whose run is as short as any."""
        for column in (0, 1):
            order = np.argsort(points[:, column])
            yield self.at(points[order[0]], seed)
            yield self.at(points[order[-1]], seed)

    def at(self, point: Float64[np.ndarray, " 2"], seed: int) -> "tuple[FineTune, int]":
        """The settings of one point, with the axes' values in their places, and its seed."""
        values: dict[str, Any] = {}
        for axis, value in zip(self.axes, point.tolist(), strict=True):
            values[axis] = round(value) if axis in WHOLE else value
        seed = values.pop("seed", seed)
        return replace(self, **values), seed

    def length(self, seed: int) -> int:
        """Losses of a run: as set, or as many as see the budget of tokens."""
        if self.num_tokens is None:
            return self.num_steps
        stream = _stream(self.texts("train"), self.sequence_length, seed)
        return stream.steps(self.num_tokens, self.batch_size * self.accumulation, MAX_STEPS)

    def multipliers(self, steps: int) -> tuple[float, ...]:
        """What the rates are multiplied with, step by step.

        (i + 1) / w in the first w = max(1, int(warmup * steps)) steps; then, with p the share of
        the others that is past, final + (1 - final) (1 + cos(pi p)) / 2.
        """
        warm, low = max(1, int(self.warmup * steps)), self.final_lr_frac
        rising = [(step + 1) / warm for step in range(min(warm, steps))]
        left = max(1, steps - warm)
        falling = [
            low + (1 - low) * (1 + math.cos(math.pi * step / left)) / 2
            for step in range(steps - warm)
        ]
        return tuple(self.init_lr_frac * share for share in rising + falling)

    def settings(self, seed: int) -> "RunSettings":
        """What the tuner is told."""
        from fractal_core.tuner import RunSettings

        rates = {
            name: getattr(self, name) if self.learning_rate is None else self.learning_rate * by
            for name, by in MULTIPLIERS.items()
        }
        return RunSettings(
            **rates,
            multipliers=self.multipliers(self.length(seed)),
            trainable=tuple(filter(None, self.trainable.split(","))),
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            batch_size=self.batch_size,
            accumulation=self.accumulation,
            sequence_length=self.sequence_length,
            seed=seed,
        )

    def tuner(self) -> "Tuner":
        """The model and its texts on the device, loaded once in a process."""
        return _tuner(self.checkpoint, self.data, self.device, self.dtype, self.compiled)

    def texts(self, split: conversations.Split) -> conversations.TokenSet:
        """The conversations as tokens of the checkpoint's own tokenizer."""
        return _texts(self.checkpoint, self.data, split)

    def tokenizer(self) -> "RustBPETokenizer":
        """The tokenizer that lies with the checkpoint."""
        return _tokenizer(self.checkpoint)

    def run(
        self,
        points: Float64[np.ndarray, "n 2"],
        *,
        seed: int,
        record: Sequence[int] = (),
    ) -> Outcomes:
        """Fine-tune once per point; see `sweep.Experiment.run`.

        `extras["curve"]` holds every loss (n, steps), float32, NaN beyond the end of a run.
        """
        if record and min(record) < 0:
            raise Refused("only losses from step 0 on can be recorded")
        parts = []
        for point in points:
            setting, mine = self.at(point, seed)
            started = time.perf_counter()
            settings = setting.settings(mine)
            curve = self.tuner().train(settings)
            seconds = time.perf_counter() - started
            parts.append(self.judge(curve, len(settings.multipliers), seconds, record))
        return join(parts)

    def judge(
        self, curve: np.ndarray, planned: int, seconds: float, record: Sequence[int] = ()
    ) -> Outcomes:
        """The outcome of one curve of losses, which ends early where one was not finite."""
        losses = np.full(planned, np.inf)
        losses[: len(curve)] = curve
        if record and max(record) >= planned:
            raise Refused(f"only the losses of steps 0 to {planned - 1} can be recorded")
        judged = judge_curves(losses[None], self.window, self.threshold)
        kept = np.full((1, planned), np.nan, np.float32)
        kept[0, : len(curve)] = curve
        extras: dict[str, np.ndarray] = {"curve": kept}
        if record:
            extras["losses"] = np.where(np.isfinite(losses), losses, np.inf)[None, list(record)]
        return replace(judged, seconds=np.array([seconds]), extras=extras)


def _groups(text: str) -> list[str]:
    """The groups that a text names, in the order of `GROUPS`."""
    names = {alias: group for group, aliases in GROUPS.items() for alias in aliases}
    asked = [word.strip() for word in text.split(",") if word.strip()]
    if asked == ["all"]:
        return list(GROUPS)
    if asked == ["none"]:
        return []
    for word in asked:
        require_known("group of parameters", word, (*names, "all", "none"))
    return [group for group in GROUPS if group in {names[word] for word in asked}]


def source_of(checkpoint: str) -> str:
    """A checkpoint as nanochat names it."""
    return str(base.folder()) if checkpoint == "builtin" else checkpoint


@functools.lru_cache(maxsize=4)
def _place(checkpoint: str) -> tuple[Path, int]:
    from nanochat import checkpoint_manager, common

    with as_ours(common.Refused):
        return checkpoint_manager.locate(checkpoint_manager.source_folder(source_of(checkpoint)))


@functools.lru_cache(maxsize=4)
def _weights_digest(checkpoint: str) -> str:
    folder, step = _place(checkpoint)
    with (folder / f"model_{step:06d}.pt").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.lru_cache(maxsize=4)
def _tokenizer(checkpoint: str) -> "RustBPETokenizer":
    from nanochat import checkpoint_manager, common

    with as_ours(common.Refused):
        return checkpoint_manager.load_tokenizer(*_place(checkpoint))


@functools.lru_cache(maxsize=8)
def _texts(checkpoint: str, data: str, split: conversations.Split) -> conversations.TokenSet:
    tokenizer = _tokenizer(checkpoint)
    return conversations.tokenised(
        data, split, tokenizer.render_conversation, tokenizer.fingerprint, MOST_TOKENS
    )


@functools.lru_cache(maxsize=64)
def _stream(texts: conversations.TokenSet, length: int, seed: int) -> Stream:
    return Stream(texts, length, seed)


@functools.lru_cache(maxsize=1)
def _tuner(checkpoint: str, data: str, device: str, dtype: str, compiled: bool) -> "Tuner":
    import torch
    from nanochat import checkpoint_manager, common

    from fractal_core.tuner import Tuner

    with as_ours(common.Refused):
        model, _ = checkpoint_manager.load_gpt(*_place(checkpoint), torch.device(device))
    model.set_compute_dtype(getattr(torch, dtype))
    return Tuner(model, _texts(checkpoint, data, "train"), compiled)
