"""Teach a chat model by reward: it answers, and what was right more often than usual is learned.

    python -m scripts.chat_rl
    python -m scripts.chat_rl --data=builtin --num_iterations=40
    torchrun --standalone --nproc_per_node=8 -m scripts.chat_rl

To each question the model draws answers, which are worth 1 if right and 0 if not. An answer is
made likelier by as much as its worth exceeds the mean of that question's (GRPO, Shao et al. 2024,
without its division by the deviation, its clipping and its reference model: answers are always
drawn from the weights that learn from them). Ctrl-C saves; `--resume_from_step` goes on.
"""

import dataclasses
import functools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nanochat import cli
from nanochat.checkpoint_manager import load_model, save_checkpoint
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
from nanochat.dataloader import IGNORED
from nanochat.engine import Engine
from nanochat.report import get_report
from nanochat.shares import interval, pass_at
from tasks.builtin import Lists
from tasks.common import Conversation, Task
from tasks.gsm8k import GSM8K
from torch import Tensor
from tqdm import tqdm

from scripts import chat_sft


@dataclass(frozen=True)
class Config:
    """Learn from rewards; `data` is empty for GSM8K or `builtin` for lists of things of some kinds."""

    run: str = "dummy"
    source: str = "sft"
    model_tag: str | None = None
    step: int | None = None
    device_type: str = ""
    dtype: str = "bfloat16"
    device_batch_size: int = 8
    examples_per_step: int = 16
    num_samples: int = 16
    max_new_tokens: int = 256
    temperature: float = 1.0
    top_k: int = 50
    unembedding_lr: float = 0.004
    embedding_lr: float = 0.2
    matrix_lr: float = 0.02
    weight_decay: float = 0.0
    init_lr_frac: float = 0.05
    num_epochs: int = 1
    num_iterations: int = -1
    save_every: int = 60
    eval_every: int = 60
    eval_examples: int = 400
    data: str = ""
    resume_from_step: int = -1


@dataclass(frozen=True)
class Rollout:
    """Answers to one question.

    Args:
        inputs: Ids (answers, tokens), filled up on the right.
        targets: The next ids, -1 where the model did not speak: prompt, calculator, filling.
        rewards: What each answer is worth.
    """

    inputs: Tensor
    targets: Tensor
    rewards: Tensor


def tasks(data: str) -> tuple[Task, Task]:
    """What is learned, and what is held out.

    Raises:
        Refused: There are no such questions.
    """
    if data not in ("", "builtin"):
        raise Refused(f"no questions are called {data!r}; leave --data out or say builtin")
    if data:
        return Lists("train"), Lists("test")
    return GSM8K("main", "train"), GSM8K("main", "test")


def seed_of(step: int, example: int, turn: int) -> int:
    """The seed of one draw of answers, other for every step, question and turn."""
    return hash((step, example, turn)) & 0x7FFFFFFF


def answers(
    engine: Engine, task: Task, example: int, step: int, config: Config
) -> tuple[list[list[int]], list[list[int]], list[float]]:
    """Samples with their masks, and what each is worth."""
    problem: Conversation = task[example]
    prompt = engine.tokenizer.render_for_completion(problem)
    rows, masks = [], []
    for turn in range(config.num_samples // config.device_batch_size):
        drawn = engine.generate_batch(
            prompt,
            num_samples=config.device_batch_size,
            max_tokens=config.max_new_tokens,
            temperature=config.temperature,
            top_k=config.top_k,
            seed=seed_of(step, example, turn),
        )
        rows += drawn[0]
        masks += drawn[1]
    texts = (engine.tokenizer.decode(row[len(prompt) :]) for row in rows)
    return rows, masks, [float(task.evaluate(problem, text)) for text in texts]


def rollout(engine: Engine, task: Task, example: int, step: int, config: Config) -> Rollout:
    """Answers as a batch to learn from; the token that ends an answer is not in it."""
    rows, masks, rewards = answers(engine, task, example, step, config)
    pad = engine.tokenizer.encode_special("<|assistant_end|>")
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    spoken = torch.tensor([mask + [0] * (width - len(mask)) for mask in masks], dtype=torch.bool)
    device = engine.model.get_device()
    targets = ids[:, 1:].where(spoken[:, 1:], IGNORED)
    values = torch.tensor(rewards)
    return Rollout(ids[:, :-1].to(device), targets.to(device), values.to(device))


def objective(model: Any, drawn: Rollout, passes: int, questions: int) -> Iterator[Tensor]:
    """The loss of each pass: - sum of (log p of a token x advantage) / (tokens x passes x questions).

    The advantage of an answer is its reward less the mean of the question's, so if all are worth
    the same there is nothing to learn.
    """
    advantages = drawn.rewards - drawn.rewards.mean()
    parts = zip(*(t.chunk(passes) for t in (drawn.inputs, drawn.targets, advantages)), strict=True)
    for inputs, targets, worth in parts:
        log_p = -model(inputs, targets, loss_reduction="none").view_as(targets)
        tokens = (targets >= 0).sum().clamp(min=1)
        yield -(log_p * worth[:, None]).sum() / (tokens * passes * questions)


def gain_interval(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """95 percent limits of the mean gain of the same questions (paired bootstrap, Efron 1979).

    Questions are drawn again with what each gained. One that lost all and one that gained all are
    added, so that the limits do not meet where no question changed. They are about other questions
    to this model, not about other models trained the same way.
    """
    gains = np.append(np.subtract(after, before), (-1.0, 1.0))
    draws = np.random.default_rng(0).integers(len(gains), size=(5000, len(gains)))
    low, high = np.quantile(gains[draws].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


def evaluate(engine: Engine, task: Task, config: Config) -> dict[str, Any]:
    """Mean reward of a task's first questions, and pass@k up to eight answers; over all processes.

    `each` is the mean reward of every question, in their order. Answers are drawn at temperature 1,
    with the same seeds every time.
    """
    _, rank, _, world = get_dist_info()
    count = min(config.eval_examples, len(task))
    asked = dataclasses.replace(config, num_samples=config.device_batch_size, temperature=1.0)
    own = range(rank, count, world)
    with evaluating(engine.model):
        shares = done_by_all(lambda: [sum(answers(engine, task, i, 0, asked)[2]) for i in own])
    right = [int(shares[i % world][i // world]) for i in range(count)]
    samples = asked.num_samples
    figures: dict[str, Any] = {"reward": sum(right) / (count * samples), "questions": count}
    figures["each"] = [value / samples for value in right]
    for k in range(1, min(samples, 8) + 1):
        figures[f"pass@{k}"] = sum(pass_at(n, samples, k) for n in right) / count
    return figures


@dataclass
class Learning:
    """A model learning from rewards."""

    config: Config
    device: torch.device
    rank: int
    world: int
    model: Any
    tokenizer: Any
    optimizers: list[torch.optim.Optimizer]
    record: Tracker
    step: int = 0
    rewards: list[float] = dataclasses.field(default_factory=list)
    before: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        self.engine = Engine(self.model, self.tokenizer)
        self.learned, self.held_out = tasks(self.config.data)

    @property
    def folder(self) -> Path:
        """Where its checkpoints go."""
        tag = self.config.model_tag or f"d{self.model.config.n_layer}"
        return Path(get_base_dir()) / "chatrl_checkpoints" / tag

    @property
    def steps(self) -> int:
        """How many there are in all."""
        config = self.config
        if config.num_iterations >= 0:
            return config.num_iterations
        return len(self.learned) // config.examples_per_step * config.num_epochs

    def run(self) -> dict[str, Any]:
        """All steps, measured before the first and after the last."""
        config, steps = self.config, self.steps
        if steps <= self.step:
            raise Refused(f"there is no step to make: there are {steps}; give --num_iterations")
        bar = tqdm(
            total=steps, initial=self.step, desc="chat_rl", disable=True if self.rank else None
        )
        with StopRequest() as stop, bar:
            if not self.step:
                self.before = {"held_out": self.measure(), "learned": self.measure(True)}
            while self.step < steps:
                if config.eval_every > 0 and self.step and self.step % config.eval_every == 0:
                    self.record.attempt("mean reward", self.step, self.measure)
                bar.set_postfix(reward=f"{self.update(steps):.3f}")
                bar.update()
                done, self.step = self.step, self.step + 1
                asked = stop.asked(self.device) and self.step < steps
                due = config.save_every > 0 and done and done % config.save_every == 0
                if self.step == steps or due or asked:
                    self.save(resumable=self.step < steps)
                if asked:
                    print0(f"Go on with --resume_from_step={done}")
                    raise KeyboardInterrupt
        return self.outcome()

    def update(self, steps: int) -> float:
        """Answer the questions of this step and learn from that; the mean reward."""
        config = self.config
        own = config.examples_per_step // self.world
        passes = config.num_samples // config.device_batch_size
        total = 0.0
        for turn in range(own):
            example = (self.rank + (self.step * own + turn) * self.world) % len(self.learned)
            self.model.eval()
            drawn = rollout(self.engine, self.learned, example, self.step, config)
            self.model.train()
            total += float(drawn.rewards.mean())
            for loss in objective(self.model, drawn, passes, own):
                loss.backward()
        multiplier = 1 - self.step / steps
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * multiplier
            optimizer.step()
        self.model.zero_grad(set_to_none=True)
        means = of_all(total / own)
        self.rewards.append(sum(means) / len(means))
        self.record.log({"step": self.step, "reward": self.rewards[-1], "lrm": multiplier})
        return self.rewards[-1]

    def measure(self, learned: bool = False) -> dict[str, Any]:
        """Mean reward and pass@k of questions held out, or of those learned from."""
        name = "learned" if learned else "held_out"
        figures = evaluate(self.engine, self.learned if learned else self.held_out, self.config)
        told = {f"{name}/{key}": value for key, value in figures.items() if key != "each"}
        self.record.log({"step": self.step} | told)
        low, high = interval(figures["reward"], figures["questions"])
        print0(
            f"Step {self.step}: mean reward {figures['reward']:.4f} ({low:.4f} to {high:.4f}) on "
            f"{figures['questions']} questions {name.replace('_', ' ')}"
        )
        return figures

    def outcome(self) -> dict[str, Any]:
        """What was gained, with 95 percent limits, and where the checkpoint is."""
        figures: dict[str, Any] = {}

        def tell(prefix: str, when: str, found: dict[str, Any]) -> None:
            figures[f"{prefix}reward_{when}"] = found["reward"]
            limits = interval(found["reward"], found["questions"])
            figures[f"{prefix}reward_{when}_limits"] = limits

        for name, prefix in (("held_out", ""), ("learned", "learned_")):
            before = self.before[name]
            figures[f"{prefix}questions"] = before["questions"]
            tell(prefix, "before", before)
            asked = functools.partial(self.measure, name == "learned")
            after = self.record.attempt(f"mean reward {name.replace('_', ' ')}", self.step, asked)
            if after is None:
                continue
            tell(prefix, "after", after)
            gain = figures[f"{prefix}gain"] = after["reward"] - before["reward"]
            low, high = gain_interval(before["each"], after["each"])
            figures[f"{prefix}gain_limits"] = low, high
            print0(f"Gain {name.replace('_', ' ')}: {gain:+.4f} ({low:+.4f} to {high:+.4f})")
            figures |= {f"{prefix}{k}": v for k, v in after.items() if k.startswith("pass@")}
        done = self.step - 1
        names = (f"model_{done:06d}.pt", f"meta_{done:06d}.json", "tokenizer.pkl")
        self.record.artifact({f"checkpoints/{name}": self.folder / name for name in names})
        return figures | {"step": done, "rewards": self.rewards, "checkpoint": str(self.folder)}

    def save(self, resumable: bool) -> None:
        """Write the weights after this step; to be gone on from also the optimizers' states."""
        meta: dict[str, Any] = {"model_config": dataclasses.asdict(self.model.config)}
        optimizers = None
        if resumable:
            state = {"step": self.step, "before": self.before, "rewards": self.rewards}
            meta["dataloader_state_dicts"] = [state] * self.world
            optimizers = None if self.rank else [o.state_dict() for o in self.optimizers]
        weights = self.model.state_dict()
        save_checkpoint(self.folder, self.step - 1, weights, optimizers, meta, self.rank)
        if not self.rank:
            self.tokenizer.save(self.folder)


def _require(config: Config, world: int) -> None:
    """Refuse numbers that do not divide each other."""
    pairs: Sequence[tuple[str, int, int, str]] = (
        ("examples_per_step", config.examples_per_step, world, "processes"),
        ("num_samples", config.num_samples, config.device_batch_size, "--device_batch_size"),
    )
    for name, whole, part, what in pairs:
        if part < 1 or whole < 1 or whole % part:
            raise Refused(f"--{name}={whole} is no multiple of {part} ({what}); change one of them")
    if config.max_new_tokens < 1 or config.eval_examples < 1:
        raise Refused("--max_new_tokens and --eval_examples must be at least 1")


def prepare(config: Config) -> Learning:
    """Device, model and optimizers of a run, fresh or from the step to resume from."""
    _, rank, _, world, device = compute_init(config.device_type)
    _require(config, world)
    resumes = config.resume_from_step >= 0
    step = config.resume_from_step if resumes else config.step
    source = "rl" if resumes else config.source
    model, tokenizer, meta = load_model(source, device, "train", config.model_tag, step)
    set_dtype(model, config.dtype)
    optimizers = chat_sft.fresh_optimizers(model, config)
    record = tracker("rl", config.run, dataclasses.asdict(config), project="nanochat-rl")
    learning = Learning(config, device, rank, world, model, tokenizer, optimizers, record)
    if resumes:
        kept = chat_sft.kept_state(
            learning.folder, config.resume_from_step, meta, optimizers, device, source
        )
        learning.step = record.start = kept["step"]
        learning.before, learning.rewards = kept["before"], kept["rewards"]
    return learning


def main(config: Config) -> dict[str, Any]:
    """Learn and save; mean reward before and after with 95 percent limits, and pass@k.

    Raises:
        Refused: The run cannot be made, or it does not fit into memory.
        KeyboardInterrupt: It was asked to stop, and saved the step that it had reached.
    """
    try:
        learning = prepare(config)
        try:
            figures = learning.run()
            said = chat_sft.exchanges(
                learning.engine, learning.held_out, max_tokens=config.max_new_tokens
            )
        finally:
            learning.record.finish()
    except torch.OutOfMemoryError:
        raise Refused(
            f"out of memory; lower --device_batch_size, which is {config.device_batch_size} (it "
            f"must divide --num_samples, {config.num_samples}), or --max_new_tokens"
        ) from None
    get_report().log("Chat RL", [vars(config), figures, *learning.record.failed, said])
    return figures


if __name__ == "__main__":
    sys.exit(cli.run(main, Config))
