"""Train a base model on, with conversations in place of texts.

    python -m scripts.mid_train
    python -m scripts.mid_train --data=builtin --num_iterations=200
    torchrun --standalone --nproc_per_node=8 -m scripts.mid_train

Whole conversations are laid end to end and everything in them is learned from. Ctrl-C saves and
stops; `--resume_from_step` goes on, with the same batches and to the same weights.
"""

import dataclasses
import itertools
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from nanochat import cli
from nanochat.checkpoint_manager import load_model, save_checkpoint
from nanochat.common import (
    Refused,
    StopRequest,
    Tracker,
    compute_init,
    evaluating,
    get_base_dir,
    of_all,
    print0,
    set_dtype,
    tracker,
    world_size,
)
from nanochat.corpus import WORDS
from nanochat.dataloader import mid_data_loader
from nanochat.engine import Engine
from nanochat.loss_eval import evaluate_bpb
from nanochat.report import get_report
from nanochat.schedules import accumulation, muon_momentum
from tasks.builtin import Kinds, Sums, Talk
from tasks.common import Task, TaskMixture
from tasks.customjson import CustomJSON
from tasks.gsm8k import GSM8K
from tasks.identity import Identity
from tasks.mmlu import MMLU
from tasks.smoltalk import SmolTalk
from tasks.spellingbee import SimpleSpelling, SpellingBee
from tqdm import tqdm

from scripts import chat_sft

CONSTANT = 0.8
"""The share of a run after which the learning rate goes down."""


@dataclass(frozen=True)
class Config:
    """Train a base model on conversations.

    `num_iterations` counts micro-batches of a process, one of which is read ahead; -1 is one epoch.
    `save_every` is how many steps lie between two that can be gone on from, should the run be
    killed; -1 saves none. `data` is as for fine-tuning: empty for the reference's mixture, `builtin`, or files.
    """

    run: str = "dummy"
    device_type: str = ""
    model_tag: str | None = None
    step: int | None = None
    dtype: str = "bfloat16"
    num_iterations: int = -1
    max_seq_len: int = 2048
    device_batch_size: int = 32
    unembedding_lr: float = 0.004
    embedding_lr: float = 0.2
    matrix_lr: float = 0.02
    init_lr_frac: float = 1.0
    weight_decay: float = 0.0
    eval_every: int = 150
    eval_tokens: int = 20 * 524288
    total_batch_size: int = 524288
    dry_run: int = 0
    save_every: int = -1
    data: str = ""
    resume_from_step: int = -1


def mixtures(data: str) -> tuple[Task, Task]:
    """What is learned, and what is for validation."""
    if data == "builtin":
        both = [
            TaskMixture(
                [
                    Kinds(split),
                    Sums(split),
                    Talk(size, split),
                    Identity(size, split),
                    SimpleSpelling(size, split, words=WORDS),
                    SpellingBee(size, split, words=WORDS),
                ]
            )
            for split, size in (("train", 1000), ("test", 50))
        ]
        return both[0], both[1]
    if data:
        return chat_sft.mixtures(data)[:2]
    own = Path(get_base_dir()) / "identity_conversations.jsonl"
    train = TaskMixture(
        [
            SmolTalk("train"),
            MMLU("auxiliary_train", "train"),
            GSM8K("main", "train"),
            CustomJSON(own),
            CustomJSON(own),
            SimpleSpelling(200_000, "train"),
            SpellingBee(80_000, "train"),
        ]
    )
    test = [SmolTalk("test"), MMLU("all", "test", stop=5200), GSM8K("main", "test", stop=420)]
    return train, TaskMixture(test)


def lr_multiplier(progress: float) -> float:
    """1 for four fifths of the run, then linearly to 0."""
    return 1.0 if progress < CONSTANT else (1 - progress) / (1 - CONSTANT)


@dataclass
class Training:
    """A model in mid-training."""

    config: Config
    device: torch.device
    rank: int
    accumulation: int
    model: Any
    tokenizer: Any
    optimizers: list[torch.optim.Optimizer]
    record: Tracker
    step: int = 0
    state: dict[str, Any] | None = None
    progress: float = 0.0
    last: bool = False
    val_bpb: float = math.inf

    def __post_init__(self):
        on_gpu = self.device.type == "cuda"
        self.forward: Any = torch.compile(self.model, dynamic=False) if on_gpu else self.model
        self.token_bytes = self.tokenizer.token_bytes().to(self.device)
        self.learned, self.validation = mixtures(self.config.data)

    @property
    def folder(self) -> Path:
        """Where its checkpoints go."""
        tag = self.config.model_tag or f"d{self.model.config.n_layer}"
        return Path(get_base_dir()) / "mid_checkpoints" / tag

    def batches(self, task: Task, state: dict[str, Any] | None = None) -> Iterator[Any]:
        """Conversations end to end."""
        config = self.config
        return mid_data_loader(
            task,
            self.tokenizer,
            config.device_batch_size,
            config.max_seq_len,
            device=self.device,
            resume_state_dict=state,
        )

    def run(self) -> dict[str, Any]:
        """All steps; the last turn evaluates and saves, and trains no more."""
        loader, figures = self.batches(self.learned, self.state), {}
        ahead = self.read(loader)
        bar = tqdm(initial=self.step, desc="mid_train", disable=True if self.rank else None)
        with StopRequest() as stop, bar:
            while True:
                every = self.config.eval_every
                if self.last or (every > 0 and self.step % every == 0):
                    self.record.attempt("validation", self.step, self.evaluate)
                if self.last:
                    break
                micro = []
                for _ in range(self.accumulation):
                    micro.append(ahead)
                    ahead = self.read(loader)
                multiplier = lr_multiplier(self.progress)
                for group in itertools.chain(*(o.param_groups for o in self.optimizers)):
                    if "momentum" in group:
                        group["momentum"] = muon_momentum(self.step)
                loss, _ = chat_sft.update(
                    self.forward, self.optimizers, [batch[:2] for batch in micro], multiplier
                )
                self.state, self.step = micro[-1][2], self.step + 1
                figures["train_loss"] = loss
                self.record.log(
                    {"step": self.step, "train/loss": loss, "train/lrm": multiplier}
                    | {"progress": self.progress}
                )
                bar.set_postfix(loss=f"{loss:.4f}", done=f"{self.progress:.0%}")
                bar.update()
                asked, often = stop.asked(self.device), self.config.save_every
                if (asked or (often > 0 and self.step % often == 0)) and not self.last:
                    self.save(resumable=True)
                if asked and not self.last:
                    print0(f"Go on with --resume_from_step={self.step}")
                    raise KeyboardInterrupt
        return figures | self.finish()

    def read(self, loader: Iterator[Any]) -> Any:
        """The next batch; how far the run is, and whether it is the last, follow from it."""
        batch = next(loader)
        state, count = batch[2], self.config.num_iterations
        progress, last = (
            (state["batches"] / count, state["batches"] >= count)
            if count > 0
            else (state["read"], state["ended"])
        )
        both = torch.tensor([progress, float(last)], dtype=torch.float64).to(self.device)
        if world_size() > 1:  # processes whose learning rates differ would train apart
            dist.all_reduce(both, op=dist.ReduceOp.MAX)
        self.progress = max(self.progress, min(float(both[0]), 1.0))
        self.last = self.last or bool(both[1])
        return batch

    def evaluate(self) -> None:
        """Bits per byte of the validation conversations, without their special tokens."""
        config = self.config
        tokens = config.device_batch_size * config.max_seq_len * world_size()
        pairs = (batch[:2] for batch in self.batches(self.validation))
        steps, self.val_bpb = max(1, config.eval_tokens // tokens), math.inf
        with evaluating(self.model):
            self.val_bpb = evaluate_bpb(self.forward, pairs, steps, self.token_bytes)
        self.record.log({"step": self.step, "val/bpb": self.val_bpb})
        print0(f"Step {self.step}: validation {self.val_bpb:.4f} bits per byte")

    def save(self, resumable: bool) -> None:
        """Write weights and optimizers; to be gone on from also the next batch of each process."""
        config = self.config
        shape = dataclasses.asdict(self.model.config) | {"sequence_len": config.max_seq_len}
        meta = {
            "step": self.step,
            "val_bpb": self.val_bpb if math.isfinite(self.val_bpb) else None,
            "model_config": shape,
            "user_config": {k: v for k, v in vars(config).items() if v is not None},
        }
        states = of_all({"next": self.state, "progress": self.progress})
        if resumable:
            meta["dataloader_state_dicts"] = states
        optimizers = None if self.rank else [o.state_dict() for o in self.optimizers]
        save_checkpoint(
            self.folder, self.step, self.model.state_dict(), optimizers, meta, self.rank
        )
        if not self.rank:
            self.tokenizer.save(self.folder)

    def finish(self) -> dict[str, Any]:
        """Save the last step unless it is a dry run, and hand it on."""
        figures = {"step": self.step, "val_bpb": self.val_bpb}
        if self.config.dry_run:
            return figures
        self.save(resumable=False)
        names = (f"model_{self.step:06d}.pt", f"meta_{self.step:06d}.json", "tokenizer.pkl")
        self.record.artifact({f"checkpoints/{name}": self.folder / name for name in names})
        return figures | {"checkpoint": str(self.folder)}


def prepare(config: Config) -> Training:
    """Device, model and optimizers of a run, fresh or from the step to resume from."""
    _, rank, _, world, device = compute_init(config.device_type)
    micro = accumulation(config, world)
    resumes = config.resume_from_step >= 0
    step = config.resume_from_step if resumes else config.step
    source = "mid" if resumes else "base"
    model, tokenizer, meta = load_model(source, device, "train", config.model_tag, step)
    if config.max_seq_len > (most := model.cos.size(1)):
        raise Refused(
            f"--max_seq_len={config.max_seq_len} is more than the {most} positions of the model; say "
            f"--max_seq_len={model.config.sequence_len}"
        )
    set_dtype(model, config.dtype)
    optimizers = chat_sft.fresh_optimizers(model, config)
    settings = dataclasses.asdict(config)
    record = tracker("mid", config.run, settings, project="nanochat-mid")
    training = Training(config, device, rank, micro, model, tokenizer, optimizers, record)
    if resumes:
        training.step = record.start = config.resume_from_step
        kept = chat_sft.kept_state(training.folder, training.step, meta, optimizers, device, source)
        training.state, training.progress = kept["next"], kept["progress"]
    return training


def main(config: Config) -> dict[str, Any]:
    """Train and save; the last loss, bits per byte, and where the checkpoint is.

    Raises:
        Refused: The run cannot be made, or it does not fit into memory.
        KeyboardInterrupt: It was asked to stop, and saved the step that it had reached.
    """
    try:
        training = prepare(config)
        try:
            figures = training.run()
            engine = Engine(training.model, training.tokenizer)
            said = chat_sft.exchanges(engine, training.validation)
        finally:
            training.record.finish()
    except torch.OutOfMemoryError:
        raise Refused(
            f"out of memory; lower --device_batch_size, which is {config.device_batch_size}; "
            "accumulation keeps the total batch size"
        ) from None
    get_report().log("Midtraining", [vars(config), figures, *training.record.failed, said])
    return figures


if __name__ == "__main__":
    sys.exit(cli.run(main, Config))
