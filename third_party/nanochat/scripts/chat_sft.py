"""Teach a model to hold a conversation: supervised fine-tuning, one conversation a row.

    python -m scripts.chat_sft --source=base
    python -m scripts.chat_sft --source=base --data=mine.jsonl
    python -m scripts.chat_sft --source=base --data=builtin

Only what the assistant says is learned. Ctrl-C saves and stops; `--resume_from_step` goes on.
"""

import dataclasses
import functools
import itertools
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nanochat import cli
from nanochat.checkpoint_manager import (
    load_checkpoint,
    load_model,
    load_optimizers,
    save_checkpoint,
)
from nanochat.common import (
    Refused,
    StopRequest,
    Tracker,
    compute_init,
    done_by_all,
    evaluating,
    get_base_dir,
    get_dist_info,
    of_all,
    print0,
    set_dtype,
    tracker,
)
from nanochat.corpus import WORDS
from nanochat.dataloader import sft_data_loader
from nanochat.engine import Engine
from nanochat.report import get_report
from nanochat.tokenizer import MAX_TOKENS
from tasks.arc import ARC
from tasks.builtin import Kinds, Lists, Sums, Talk
from tasks.common import Task, TaskMixture
from tasks.customjson import CustomJSON
from tasks.gsm8k import GSM8K
from tasks.identity import Identity
from tasks.mmlu import MMLU
from tasks.smoltalk import SmolTalk
from tasks.spellingbee import SimpleSpelling, SpellingBee
from torch import Tensor
from tqdm import tqdm

from scripts.chat_eval import Asking, score_of

METRICS_TOKENS = 64
"""How long an answer may be that a metric is made of."""

LISTS = 600
"""So many lists of things are shown; what is left to learn about them is for rewards."""


@dataclass(frozen=True)
class Config:
    """Fine-tune a model on conversations.

    `data` is empty for the reference's mixture, `builtin`, or files of JSON lines with commas
    between them, of which every twentieth conversation is for validation. `save_every` is how many
    steps lie between two that can be gone on from, should the run be killed; -1 saves none.
    """

    run: str = "dummy"
    source: str = "mid"
    model_tag: str | None = None
    step: int | None = None
    device_type: str = ""
    dtype: str = "bfloat16"
    device_batch_size: int = 4
    num_epochs: int = 1
    num_iterations: int = -1
    target_examples_per_step: int = 32
    unembedding_lr: float = 0.004
    embedding_lr: float = 0.2
    matrix_lr: float = 0.02
    weight_decay: float = 0.0
    init_lr_frac: float = 0.02
    eval_every: int = 100
    eval_steps: int = 100
    eval_metrics_every: int = 200
    eval_metrics_max_problems: int = 1024
    save_every: int = -1
    data: str = ""
    resume_from_step: int = -1


def mixtures(data: str) -> tuple[Task, Task, dict[str, Task]]:
    """What is learned, what is for validation, and what is asked for metrics, by name."""
    if data == "builtin":
        spelling = [SimpleSpelling(300, s, words=WORDS) for s in ("train", "test")]
        lists = Lists(stop=LISTS)
        train = TaskMixture(
            [Kinds(), Kinds(), Sums(), Sums(), Talk(200), Identity(100), spelling[0], lists]
        )
        held_out = {"kinds": Kinds("test"), "sums": Sums("test")}
        return train, TaskMixture([*held_out.values(), Talk(20, "test"), spelling[1]]), held_out
    if data:
        files = [CustomJSON(path) for path in data.split(",")]
        whole = TaskMixture(files)
        rows = list(whole)
        if len(rows) < 20:
            raise Refused(f"{data} has {len(rows)} conversations; at least 20 are needed")
        return (
            _Rows([row for i, row in enumerate(rows) if i % 20]),
            _Rows(rows[::20]),
            {},
        )
    identity = Path(get_base_dir()) / "identity_conversations.jsonl"
    train = TaskMixture(
        [
            ARC("ARC-Easy", "train"),
            ARC("ARC-Challenge", "train"),
            GSM8K("main", "train"),
            SmolTalk("train", stop=10_000),
            CustomJSON(identity),
            SimpleSpelling(300, "train"),
            SpellingBee(300, "train"),
        ]
    )
    asked = {"mmlu": MMLU("all", "test"), "arc_easy": ARC("ARC-Easy", "test")}
    return train, SmolTalk("test"), asked


class _Rows(Task):
    """Conversations in a list."""

    eval_type = "generative"

    def __init__(self, rows: Sequence[Any]):
        super().__init__()
        self.rows = rows

    def num_examples(self) -> int:
        return len(self.rows)

    def get_example(self, index: int) -> Any:
        return self.rows[index]


def update(
    model: Any,
    optimizers: Iterable[torch.optim.Optimizer],
    batches: Sequence[tuple[Tensor, Tensor]],
    multiplier: float,
) -> tuple[float, int]:
    """One step on micro-batches: the mean of their losses before it, and the tokens learned from.

    Each micro-batch counts alike, however many tokens it supervises.
    """
    total, tokens = 0.0, 0
    for inputs, targets in batches:
        loss = model(inputs, targets)
        (loss / len(batches)).backward()
        total += float(loss.detach())
        tokens += int((targets >= 0).sum())
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * multiplier
        optimizer.step()
    model.zero_grad(set_to_none=True)
    return total / len(batches), tokens


@torch.no_grad()
def mean_loss(model: Any, batches: Iterator[tuple[Tensor, Tensor, Any]], steps: int) -> float:
    """The mean loss of so many batches, over all processes."""

    def own() -> float:
        losses = [model(inputs, targets) for inputs, targets, _ in itertools.islice(batches, steps)]
        return float(torch.stack(losses).mean())

    with evaluating(model):
        means = done_by_all(own)
    return sum(means) / len(means)


def exchanges(engine: Engine, task: Task, count: int = 3, max_tokens: int = 64) -> str:
    """The first questions of a task with the greedy answers, for the report."""
    lines, tokenizer = [], engine.tokenizer
    limit = engine.model.config.sequence_len - max_tokens
    for row in itertools.islice(task, count):
        first = {"messages": [m for m in row["messages"] if m["role"] != "system"][:2]}
        prompt = tokenizer.render_for_completion(first)
        if len(prompt) <= limit:
            with evaluating(engine.model):
                rows, _ = engine.generate_batch(prompt, max_tokens=max_tokens, temperature=0.0)
            lines.append(f"user: {first['messages'][0]['content']}")
            lines.append(f"model: {tokenizer.decode(rows[0][len(prompt) :])}")
    return textwrap.indent("\n".join(lines), "    ", lambda line: True)


def main(config: Config) -> dict[str, Any]:
    """Fine-tune and save; the last losses, what was measured, and where the checkpoint is.

    Raises:
        Refused: The run cannot be made, or it does not fit into memory.
        KeyboardInterrupt: It was asked to stop, and saved the step that it had reached.
    """
    try:
        tuning = _prepare(config)
        try:
            figures = tuning.run()
        finally:
            tuning.record.finish()
        said = exchanges(Engine(tuning.model, tuning.tokenizer), mixtures(config.data)[1])
    except torch.OutOfMemoryError:
        raise Refused(
            f"out of memory; lower --device_batch_size, which is {config.device_batch_size} "
            f"(it must divide --target_examples_per_step, {config.target_examples_per_step})"
        ) from None
    get_report().log("Chat SFT", [vars(config), figures, *tuning.record.failed, said])
    return figures


@dataclass
class Tuning:
    """A fine-tuning in progress: everything but the conversations."""

    config: Config
    device: torch.device
    rank: int
    accumulation: int
    model: Any
    tokenizer: Any
    optimizers: list[torch.optim.Optimizer]
    record: Tracker
    step: int = 0
    state: dict[str, int] | None = None

    @property
    def folder(self) -> Path:
        """Where its checkpoints go."""
        tag = self.config.model_tag or f"d{self.model.config.n_layer}"
        return Path(get_base_dir()) / "chatsft_checkpoints" / tag

    def batches(self, task: Task, state: dict[str, int] | None = None) -> Iterator[Any]:
        """Conversations that fit the model's context."""
        return sft_data_loader(
            task,
            self.tokenizer,
            self.config.device_batch_size,
            max_tokens=min(MAX_TOKENS, self.model.config.sequence_len + 1),
            device=self.device,
            resume_state_dict=state,
        )

    def run(self) -> dict[str, Any]:
        """All steps; like the reference's, the last one evaluates and saves but trains no more."""
        config = self.config
        learned, validation, asked = mixtures(config.data)
        steps = config.num_iterations
        if steps < 0:
            steps = len(learned) // config.target_examples_per_step * config.num_epochs
        if steps <= self.step:
            raise Refused(
                f"there is no step to make: {len(learned)} conversations are {steps} steps of "
                f"{config.target_examples_per_step}; give --num_iterations"
            )
        return self._learn(steps, learned, validation, asked)

    def _learn(
        self, steps: int, learned: Task, validation: Task, asked: dict[str, Task]
    ) -> dict[str, Any]:
        loader, record = self.batches(learned, self.state), self.record
        figures: dict[str, Any] = {}
        bar = tqdm(
            total=steps, initial=self.step, desc="chat_sft", disable=True if self.rank else None
        )
        with StopRequest() as stop, bar:
            while True:
                last = self.step == steps - 1
                if measured := self.evaluate(last, validation, asked):
                    record.log({"step": self.step} | measured)
                    figures |= measured
                if last:
                    break
                micro = list(itertools.islice(loader, self.accumulation))
                multiplier = 1 - self.step / steps
                figures["train_loss"], tokens = update(
                    self.model, self.optimizers, [batch[:2] for batch in micro], multiplier
                )
                self.state, self.step = micro[-1][2], self.step + 1
                record.log(
                    {
                        "step": self.step,
                        "lrm": multiplier,
                        "num_tokens": tokens,
                        "train_loss": figures["train_loss"],
                    }
                )
                bar.set_postfix(loss=f"{figures['train_loss']:.4f}")
                bar.update()
                wanted, often = stop.asked(self.device), self.config.save_every
                if wanted or (often > 0 and self.step % often == 0):
                    self.save(figures, resumable=True)
                if wanted:
                    print0(f"Go on with --resume_from_step={self.step}")
                    raise KeyboardInterrupt
        self.save(figures, resumable=False)
        files = (f"model_{self.step:06d}.pt", f"meta_{self.step:06d}.json", "tokenizer.pkl")
        record.artifact({f"checkpoints/{name}": self.folder / name for name in files})
        return figures | {"step": self.step, "checkpoint": str(self.folder)}

    def evaluate(
        self, last: bool, validation: Task, asked: dict[str, Task]
    ) -> dict[str, float | None]:
        """The figures that are due before this step; None what could not be measured."""
        config, figures = self.config, {}
        if last or (config.eval_every > 0 and self.step % config.eval_every == 0):
            loss = self.record.attempt("validation", self.step, lambda: self.validate(validation))
            figures["val_loss"] = loss
        every = config.eval_metrics_every
        due = last or (every > 0 and self.step and self.step % every == 0)
        if due and config.eval_metrics_max_problems > 0:
            engine = Engine(self.model, self.tokenizer)
            asking = Asking(
                config.device_batch_size * 2,
                max_new_tokens=METRICS_TOKENS,
                max_problems=config.eval_metrics_max_problems,
            )
            for name, task in asked.items():
                ask = functools.partial(score_of, task, engine, asking)
                score = self.record.attempt(name, self.step, ask)
                figures[f"{name}_acc"] = score and score.accuracy
                if score:
                    right = f"{score.passed} of {len(score.right)} right"
                    print0(f"Step {self.step}: {right} in {name}")
        return figures

    def validate(self, task: Task) -> float:
        """The mean loss of the validation conversations."""
        loss = mean_loss(self.model, self.batches(task), self.config.eval_steps)
        print0(f"Step {self.step}: validation loss {loss:.4f}")
        return loss

    def save(self, figures: dict[str, Any], resumable: bool) -> None:
        """Write the weights; to be gone on from also the optimizers' states and the next batch."""
        states = of_all(self.state)
        meta = {
            "step": self.step,
            **figures,
            "model_config": dataclasses.asdict(self.model.config),
        }
        optimizers = None
        if resumable:
            meta["dataloader_state_dicts"] = states
            optimizers = None if self.rank else [o.state_dict() for o in self.optimizers]
        save_checkpoint(
            self.folder, self.step, self.model.state_dict(), optimizers, meta, self.rank
        )
        if not self.rank:
            self.tokenizer.save(self.folder)


def accumulation(config: Config, world: int) -> int:
    """Micro-batches of each process per step.

    Raises:
        Refused: They do not add up to the examples of a step.
    """
    at_once = config.device_batch_size * world
    if at_once < 1 or config.target_examples_per_step % at_once:
        raise Refused(
            f"--target_examples_per_step={config.target_examples_per_step} is no multiple of the "
            f"{at_once} conversations that {world} process(es) take with "
            f"--device_batch_size={config.device_batch_size}; change one of them"
        )
    return config.target_examples_per_step // at_once


def _prepare(config: Config) -> Tuning:
    """Device, model and optimizers of a run, fresh or from the step to resume from."""
    _, rank, _, world, device = compute_init(config.device_type)
    micro = accumulation(config, world)
    source, tag, step = config.source, config.model_tag, config.step
    resumes = config.resume_from_step >= 0
    if resumes:
        source, step = "sft", config.resume_from_step
    model, tokenizer, meta = load_model(source, device, phase="train", model_tag=tag, step=step)
    set_dtype(model, config.dtype)
    optimizers = fresh_optimizers(model, config)
    settings = dataclasses.asdict(config)
    record = tracker("sft", config.run, settings, project="nanochat-sft")
    tuning = Tuning(config, device, rank, micro, model, tokenizer, optimizers, record)
    if resumes:
        tuning.step = record.start = config.resume_from_step
        tuning.state = kept_state(tuning.folder, tuning.step, meta, optimizers, device, "sft")
    return tuning


def fresh_optimizers(model: Any, config: Any) -> list[torch.optim.Optimizer]:
    """Those of a stage after the first: all learning rates times `init_lr_frac`."""
    optimizers = model.setup_optimizers(
        config.unembedding_lr, config.embedding_lr, config.matrix_lr, config.weight_decay
    )
    for group in itertools.chain(*(optimizer.param_groups for optimizer in optimizers)):
        group["initial_lr"] = group["lr"] = group["lr"] * config.init_lr_frac
    return optimizers


def kept_state(
    folder: Path,
    step: int,
    meta: dict[str, Any],
    optimizers: Sequence[torch.optim.Optimizer],
    device: torch.device,
    source: str,
) -> Any:
    """Where this process of an interrupted run was, after its optimizers have got their states.

    Raises:
        Refused: The step is the end of a run, or one of another number of processes.
    """
    _, rank, _, world = get_dist_info()
    origin, kept = f"step {step} in {folder}", meta.get("dataloader_state_dicts") or []
    if len(kept) != world:
        raise Refused(
            f"{origin} is no interrupted run of {world} process(es); "
            f"start a new one from its weights with --source={source}"
        )
    _, states, _ = load_checkpoint(folder, step, device, load_optimizer=True, rank=rank)
    load_optimizers(optimizers, states, origin)
    return kept[rank]


if __name__ == "__main__":
    sys.exit(cli.run(main, Config))
