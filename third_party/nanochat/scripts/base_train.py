"""Train a base model on texts.

    python -m scripts.base_train --depth=12
    torchrun --standalone --nproc_per_node=8 -m scripts.base_train -- --depth=20

Ctrl-C saves the step that was reached; `--resume_from_step` goes on from a saved one, with the
same batches and to the same weights as if nothing had happened. An evaluation that fails is told of
and left out; it ends no training.
"""

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from nanochat import cli
from nanochat.checkpoint_manager import (
    load_checkpoint,
    load_optimizers,
    model_from,
    save_checkpoint,
)
from nanochat.common import (
    Refused,
    StopRequest,
    Tracker,
    compute_init,
    evaluating,
    get_base_dir,
    of_all,
    print0,
    tracker,
)
from nanochat.core_bundle import CoreTask, tasks_of
from nanochat.gpt import GPT, GPTConfig
from nanochat.loss_eval import evaluate_bpb
from nanochat.report import get_report
from nanochat.schedules import accumulation, iterations, lr_multiplier, muon_momentum
from torch import Tensor
from tqdm import tqdm

from scripts.base_eval import evaluate_model

SMOOTHING = 0.9
UNTIMED_STEPS = 11
"""Steps whose time is not counted: they compile and warm up."""

PEAK_FLOPS = 989e12
"""Of one H100 in bfloat16, against which utilisation is stated."""

PROMPTS = (
    "The capital of France is",
    "The chemical symbol of gold is",
    "If yesterday was Friday, then tomorrow will be",
    "The opposite of hot is",
    "The planets of the solar system are:",
    "My favorite color is",
    "If 5*x + 3 = 13, then x is",
)

Batches = Iterator[tuple[Tensor, Tensor, Any]]


@dataclass(frozen=True)
class Config:
    """Train a base model; flags and defaults are the reference's.

    `model_dim`, `head_dim` and `tie_embeddings` may override what the depth says. CORE is evaluated
    where its tasks have been fetched (`python -m nanochat.core_bundle`).
    """

    run: str = "dummy"
    device_type: str = ""
    depth: int = 20
    max_seq_len: int = 2048
    model_dim: int | None = None
    head_dim: int | None = None
    tie_embeddings: bool = False
    num_iterations: int = -1
    target_flops: float = -1.0
    target_param_data_ratio: int = 20
    device_batch_size: int = 32
    total_batch_size: int = 524288
    embedding_lr: float = 0.2
    unembedding_lr: float = 0.004
    weight_decay: float = 0.0
    matrix_lr: float = 0.02
    grad_clip: float = 1.0
    warmup_ratio: float = 0.0
    warmdown_ratio: float = 0.2
    final_lr_frac: float = 0.0
    resume_from_step: int = -1
    eval_every: int = 250
    eval_tokens: int = 20 * 524288
    core_metric_every: int = 2000
    core_metric_max_per_task: int = 500
    sample_every: int = 2000
    save_every: int = -1
    model_tag: str = ""

    @property
    def tag(self) -> str:
        """The name of the checkpoint folder."""
        return self.model_tag or f"d{self.depth}"


@dataclass(frozen=True)
class Data:
    """Where tokens come from.

    Args:
        vocab_size: How many there are.
        token_bytes: The bytes that each stands for.
        train: Batches after a state (None: from the start), each with its own state.
        split: Batches of `train` or `val` from the start.
        tokenizer: Reads and writes text; None: no samples are drawn.
    """

    vocab_size: int
    token_bytes: Tensor
    train: Callable[[Any], Batches]
    split: Callable[[str], Iterator[tuple[Tensor, Tensor]]]
    tokenizer: Any = None


def texts(rows: int, length: int, device: torch.device) -> Data:
    """The pretraining shards and the tokenizer of the base folder."""
    from nanochat.dataloader import (
        tokenizing_distributed_data_loader,
        tokenizing_distributed_data_loader_with_state,
    )
    from nanochat.tokenizer import get_token_bytes, get_tokenizer

    tokenizer = get_tokenizer()
    return Data(
        tokenizer.get_vocab_size(),
        get_token_bytes(device),
        lambda state: tokenizing_distributed_data_loader_with_state(
            rows, length, "train", device=device, resume_state_dict=state
        ),
        lambda split: tokenizing_distributed_data_loader(rows, length, split, device=device),
        tokenizer,
    )


@dataclass
class Loop:
    """What goes on from step to step, beside weights and optimizers."""

    step: int = 0
    data_state: Any = None
    val_bpb: float | None = None
    min_val_bpb: float = math.inf
    smooth_train_loss: float = 0.0
    total_training_time: float = 0.0
    core: float | None = None
    losses: list[float] = field(default_factory=list)


@dataclass
class Training:
    """A base model in training."""

    config: Config
    data: Data
    device: torch.device
    rank: int
    world: int
    model: GPT
    optimizers: list[torch.optim.Optimizer]
    loop: Loop
    last: int
    record: Tracker
    tasks: list[CoreTask] = field(default_factory=list)

    def __post_init__(self):
        on_gpu = self.device.type == "cuda"
        self.forward: Any = torch.compile(self.model, dynamic=False) if on_gpu else self.model
        self.batches = self.data.train(self.loop.data_state)
        self.accumulation = accumulation(self.config, self.world)
        self.record.start = self.loop.step

    @property
    def folder(self) -> Path:
        return Path(get_base_dir(), "base_checkpoints", self.config.tag)

    def run(self) -> None:
        """Every step up to the last; evaluation, saving and samples come before a step's update."""
        config, start = self.config, self.record.start
        bar = tqdm(
            total=self.last, initial=start, desc="base_train", disable=True if self.rank else None
        )
        with StopRequest() as stop, bar:
            while True:
                step, ends = self.loop.step, self.loop.step == self.last
                if config.eval_every > 0 and (ends or step % config.eval_every == 0):
                    self.attempt("validation", self.evaluate)
                due = config.save_every > 0 and step % config.save_every == 0 and step > start
                if ends or due:
                    self.save()
                every = config.core_metric_every
                if self.tasks and step and (ends or step % every == 0):
                    self.attempt("CORE", self.measure)
                if config.sample_every > 0 and step and (ends or step % config.sample_every == 0):
                    self.attempt("samples", self.sample)
                if ends:
                    return
                self.update(bar)
                if stop.asked(self.device) and self.loop.step < self.last:
                    self.save()
                    print0(f"Go on with --resume_from_step={self.loop.step}")
                    raise KeyboardInterrupt

    def update(self, bar: tqdm) -> None:
        """One step of training."""
        started, loop, config = time.perf_counter(), self.loop, self.config
        for _ in range(self.accumulation):
            inputs, targets, loop.data_state = next(self.batches)
            loss = self.forward(inputs, targets)
            (loss / self.accumulation).backward()
        if config.grad_clip > 0:  # of each process by itself, before gradients are averaged
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip)
        multiplier = lr_multiplier(config, loop.step, self.last)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * multiplier
                if "momentum" in group:
                    group["momentum"] = muon_momentum(loop.step)
            optimizer.step()
        self.model.zero_grad(set_to_none=True)
        value = loss.item()
        loop.losses.append(value)
        loop.smooth_train_loss = SMOOTHING * loop.smooth_train_loss + (1 - SMOOTHING) * value
        shown = loop.smooth_train_loss / (1 - SMOOTHING ** (loop.step + 1))
        seconds = time.perf_counter() - started
        if loop.step >= UNTIMED_STEPS:
            loop.total_training_time += seconds
        loop.step += 1
        speed = config.total_batch_size / seconds
        use = self.model.estimate_flops() * speed / (PEAK_FLOPS * self.world)
        self.record.log(
            {
                "step": loop.step,
                "train/loss": shown,
                "train/lrm": multiplier,
                "train/dt": seconds,
                "train/tok_per_sec": speed,
                "train/mfu": 100 * use,
                "total_training_time": loop.total_training_time,
            }
        )
        bar.set_postfix(loss=f"{shown:.4f}", tokens_per_s=f"{speed:,.0f}", mfu=f"{use:.1%}")
        bar.update()

    def attempt(self, what: str, measure: Callable[[], None]) -> None:
        """Measure something before a step."""
        with evaluating(self.model):
            self.record.attempt(what, self.loop.step, measure)

    def evaluate(self) -> None:
        """Bits per byte of the validation texts."""
        config, loop = self.config, self.loop
        steps = config.eval_tokens // (config.device_batch_size * config.max_seq_len * self.world)
        loop.val_bpb = None
        loop.val_bpb = evaluate_bpb(
            self.forward, self.data.split("val"), max(1, steps), self.data.token_bytes
        )
        loop.min_val_bpb = min(loop.min_val_bpb, loop.val_bpb)
        self.record.log({"step": loop.step, "val/bpb": loop.val_bpb})
        print0(f"Step {loop.step}: validation {loop.val_bpb:.4f} bits per byte")

    def measure(self) -> None:
        """The CORE metric; of all processes together."""
        self.loop.core = None
        found = evaluate_model(
            self.model,
            self.data.tokenizer,
            self.device,
            self.config.core_metric_max_per_task,
            self.tasks,
        )
        self.loop.core = found["core_metric"]
        self.record.log(
            {"step": self.loop.step, "core_metric": self.loop.core}
            | {f"centered_results/{k}": v for k, v in found["centered_results"].items()}
        )

    def sample(self) -> None:
        """How the model completes those of seven fixed prompts that it has room for, greedily."""
        if self.data.tokenizer is None or self.rank:
            return
        from nanochat.engine import Engine

        engine = Engine(self.model, self.data.tokenizer)
        for prompt in PROMPTS:
            ids = self.data.tokenizer(prompt, prepend="<|bos|>")
            if len(ids) >= self.model.config.sequence_len:
                continue
            samples, _ = engine.generate_batch(ids, num_samples=1, max_tokens=16, temperature=0)
            print0(self.data.tokenizer.decode(samples[0]))

    def save(self) -> None:
        """Write weights, states and meta of the step that has been reached."""
        loop, config = self.loop, self.config
        states = of_all(loop.data_state)
        meta = {
            "step": loop.step,
            "val_bpb": loop.val_bpb,
            "model_config": dataclasses.asdict(self.model.config),
            "user_config": {k: v for k, v in vars(config).items() if v is not None},
            "device_batch_size": config.device_batch_size,
            "max_seq_len": config.max_seq_len,
            "dataloader_state_dict": states[0],
            "dataloader_state_dicts": states,
            "loop_state": {
                "min_val_bpb": loop.min_val_bpb,
                "smooth_train_loss": loop.smooth_train_loss,
                "total_training_time": loop.total_training_time,
            },
        }
        optimizers = None if self.rank else [o.state_dict() for o in self.optimizers]
        save_checkpoint(
            self.folder, loop.step, self.model.state_dict(), optimizers, meta, self.rank
        )

    def hand_on(self) -> None:
        """Upload the last step and its tokenizer as the model of this stage."""
        step, tokenizer = self.loop.step, Path(get_base_dir(), "tokenizer")
        names = (f"model_{step:06d}.pt", f"meta_{step:06d}.json")
        files = {f"checkpoints/{name}": self.folder / name for name in names}
        self.record.artifact(files | ({"tokenizer": tokenizer} if tokenizer.is_dir() else {}))


def prepare(config: Config, data: Data | None) -> Training:
    """Device, data, model and optimizers of a run, fresh or from the step to resume from.

    Raises:
        Refused: The flags do not fit each other, the machine, or the checkpoint.
    """
    _, rank, _, world, device = compute_init(config.device_type)
    accumulation(config, world)
    data = data or texts(config.device_batch_size, config.max_seq_len, device)
    shape = GPTConfig.from_depth(
        config.depth,
        sequence_len=config.max_seq_len,
        vocab_size=data.vocab_size,
        model_dim=config.model_dim,
        head_dim=config.head_dim,
        tie_embeddings=config.tie_embeddings,
    )
    loop, states = Loop(), None
    if config.resume_from_step >= 0:
        model, loop, states = resumed(config, shape, device, rank, world)
    else:
        with torch.device("meta"):
            model = GPT(shape)
        model.to_empty(device=device)
        model.init_weights()
    optimizers = model.setup_optimizers(
        config.unembedding_lr, config.embedding_lr, config.matrix_lr, config.weight_decay
    )
    if states is not None:
        load_optimizers(optimizers, states, f"step {loop.step} of {config.tag}")
    params, flops = sum(model.num_params().values()), model.estimate_flops()
    last = iterations(config, params, flops)
    print0(f"{params:,} parameters, {flops:,} operations per token, {last:,} steps of")
    print0(f"{config.total_batch_size:,} tokens in {accumulation(config, world)} micro-batches")
    if loop.step > last:
        raise Refused(f"step {loop.step} is beyond the last, {last}; raise --num_iterations")
    tasks = core_tasks(config, data)
    record = tracker("base", config.run, vars(config))
    return Training(config, data, device, rank, world, model, optimizers, loop, last, record, tasks)


def core_tasks(config: Config, data: Data) -> list[CoreTask]:
    """The tasks of the CORE metric; none where it is off, or where they are not there."""
    if config.core_metric_every <= 0 or data.tokenizer is None:
        return []
    try:
        return tasks_of("")
    except Refused as refusal:
        print0(f"CORE is left out: {refusal}")
        return []


def resumed(
    config: Config, shape: GPTConfig, device: torch.device, rank: int, world: int
) -> tuple[GPT, Loop, Any]:
    """Model, loop and optimizer states of the step to resume from."""
    folder, step = Path(get_base_dir(), "base_checkpoints", config.tag), config.resume_from_step
    weights, states, meta = load_checkpoint(folder, step, device, load_optimizer=True, rank=rank)
    model = model_from(weights, meta, f"step {step} in {folder}")
    if model.config != shape:
        raise Refused(f"step {step} in {folder} is a model of another shape; give its own flags")
    model.train()
    positions = meta.get("dataloader_state_dicts") or []
    own = len(positions) == world
    kept = meta["loop_state"]
    print0(f"Resuming from step {step} in {folder}")
    loop = Loop(
        step,
        positions[rank] if own else meta["dataloader_state_dict"],
        meta["val_bpb"],
        kept["min_val_bpb"],
        kept["smooth_train_loss"],
        kept["total_training_time"],
    )
    return model, loop, states


def main(config: Config, data: Data | None = None) -> dict[str, Any]:
    """Train; what came of it. `data` stands in for the pretraining texts.

    Raises:
        Refused: The run cannot be made, or it does not fit into memory.
        KeyboardInterrupt: It was asked to stop, and saved the step that it had reached.
    """
    try:
        training = prepare(config, data)
        try:
            training.run()
            training.hand_on()
        finally:
            training.record.finish()
    except torch.OutOfMemoryError:
        n = config.device_batch_size
        lower = f"--device_batch_size={n // 2}" if n > 1 else "--max_seq_len or --depth"
        same = "; accumulation keeps the total batch size" if n > 1 else ""
        raise Refused(f"out of memory with {n} rows at a time; lower {lower}{same}") from None
    loop = training.loop
    figures = {k: getattr(loop, k) for k in ("step", "val_bpb", "min_val_bpb", "losses")}
    if loop.core is not None:
        figures["CORE"] = loop.core
    figures["checkpoint"] = str(training.folder)
    get_report().log("Base model training", [vars(config), figures, *training.record.failed])
    return figures


if __name__ == "__main__":
    sys.exit(cli.run(main, Config))
