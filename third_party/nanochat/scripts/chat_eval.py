"""How well a chat model answers: school questions, sums, programs and spelling.

    python -m scripts.chat_eval -i sft
    python -m scripts.chat_eval -i sft -a "MMLU|GSM8K" -x 100
    python -m scripts.chat_eval -i sft --data=builtin       a few questions of our own, offline
    torchrun --standalone --nproc_per_node=8 -m scripts.chat_eval -- -i sft

Where a question has choices the model does not speak: the likeliest letter is its answer. To the
others it writes one, with a calculator at hand. A prompt longer than the model's context is not
answered, which counts as wrong.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from nanochat import cli
from nanochat.checkpoint_manager import FOLDERS, load_model
from nanochat.common import (
    Refused,
    compute_init,
    done_by_all,
    evaluating,
    get_dist_info,
    print0,
    set_dtype,
)
from nanochat.core_eval import logits_at, padded
from nanochat.corpus import WORDS
from nanochat.engine import Engine
from nanochat.report import get_report, marked
from nanochat.shares import (
    Limits,
    centered,
    exact_interval,
    interval,
    interval_of_mean,
    pass_at,
)
from tasks.arc import ARC
from tasks.common import Task
from tasks.gsm8k import GSM8K
from tasks.humaneval import HumanEval
from tasks.mmlu import MMLU
from tasks.spellingbee import SpellingBee
from tqdm import tqdm

SPELLINGS = 256
"""Questions about spelling, of which there is no end."""

TASKS: dict[str, Callable[[str], Task]] = {
    "ARC-Easy": lambda source: ARC("ARC-Easy", "test", source),
    "ARC-Challenge": lambda source: ARC("ARC-Challenge", "test", source),
    "MMLU": lambda source: MMLU("all", "test", source),
    "GSM8K": lambda source: GSM8K("main", "test", source),
    "HumanEval": lambda source: HumanEval(source),
    "SpellingBee": lambda source: SpellingBee(
        SPELLINGS, "test", words=WORDS if source == "builtin" else None
    ),
}
"""How each task is read, from the `hub` or from what is `builtin`."""

CHANCE = {"ARC-Easy": 0.25, "ARC-Challenge": 0.25, "MMLU": 0.25}
"""What guessing gives, as ChatCORE reckons; nothing in the other tasks."""


@dataclass(frozen=True)
class Config:
    """Evaluate a chat model; `task_name` is one task or several with `|` between, empty for all.

    `data` is empty for the tasks' own questions, or `builtin`. An answer counts as right if any of
    the `num_samples` drawn is.
    """

    SHORT: ClassVar = {
        "-i": "--source",
        "-a": "--task_name",
        "-d": "--dtype",
        "-t": "--temperature",
        "-m": "--max_new_tokens",
        "-n": "--num_samples",
        "-k": "--top_k",
        "-b": "--batch_size",
        "-g": "--model_tag",
        "-s": "--step",
        "-x": "--max_problems",
    }

    source: str = ""
    task_name: str | None = None
    dtype: str = "bfloat16"
    temperature: float = 0.0
    max_new_tokens: int = 512
    num_samples: int = 1
    top_k: int = 50
    batch_size: int = 8
    model_tag: str | None = None
    step: int | None = None
    max_problems: int | None = None
    device_type: str = ""
    data: str = ""


@dataclass(frozen=True)
class Score:
    """What came of a task.

    Args:
        right: How many of each question's answers were right.
        samples: How many there were of each.
        unanswered: How many questions had no room in the context.
    """

    right: list[int]
    samples: int = 1
    unanswered: int = 0

    @property
    def passed(self) -> int:
        """Questions of which any answer was right."""
        return sum(bool(right) for right in self.right)

    @property
    def accuracy(self) -> float:
        """Their share."""
        return self.passed / len(self.right)

    @property
    def limits(self) -> Limits:
        """Between which it is known, with 95 percent."""
        return exact_interval(self.passed, len(self.right))

    def passes(self) -> dict[str, tuple[float, float, float]]:
        """pass@k for fewer answers than were drawn, each with its limits."""
        found = {}
        for k in range(1, min(self.samples, 9)):
            mean = sum(pass_at(n, self.samples, k) for n in self.right) / len(self.right)
            found[f"pass@{k}"] = (mean, *interval(mean, len(self.right)))
        return found


@dataclass(frozen=True)
class Asking:
    """How questions are asked.

    Args:
        batch_size: Questions with choices that are read at a time.
        num_samples: Answers that are written to each other question; any may be right.
        max_new_tokens: How long they may be.
        temperature: 0 takes the likeliest token.
        top_k: Draw among so many tokens.
        max_problems: Only the first so many questions; None is all.
    """

    batch_size: int = 1
    num_samples: int = 1
    max_new_tokens: int = 512
    temperature: float = 0.0
    top_k: int = 50
    max_problems: int | None = None


def score_of(task: Task, engine: Engine, asking: Asking) -> Score:
    """What comes of a task, over all processes; the model is left in the mode it was in.

    Raises:
        Refused: There are no questions, or an answer of one letter is no token of its own.
    """
    _, rank, _, world = get_dist_info()
    count = min(len(task), asking.max_problems or len(task))
    if not count:
        raise Refused("the task has no questions; choose another")
    model, own = engine.model, range(rank, count, world)
    ask = chosen if task.eval_type == "categorical" else written
    with evaluating(model):
        found = done_by_all(lambda: list(ask(task, engine, asking, own)))
    answered = [right for part in found for right in part]
    right = [value or 0 for value in answered]
    samples = 1 if ask is chosen else asking.num_samples
    return Score(right, samples, answered.count(None))


@torch.inference_mode()
def chosen(task: Task, engine: Engine, asking: Asking, own: Sequence[int]) -> Iterator[int | None]:
    """Whether the likeliest of the letters is right, where the answer would begin; None: no room."""
    model, tokenizer = engine.model, engine.tokenizer
    for first in _bar(range(0, len(own), asking.batch_size)):
        asked = []
        for index in own[first : first + asking.batch_size]:
            prompt = tokenizer.render_for_completion(task[index])
            if len(prompt) > model.config.sequence_len:
                yield None
            else:
                asked.append((task[index], prompt))
        if not asked:
            continue
        prompts = [prompt for _, prompt in asked]
        device = model.get_device()
        last = torch.tensor([len(prompt) - 1 for prompt in prompts], device=device)
        ids = padded(prompts, tokenizer.get_bos_token_id(), device)
        ends = logits_at(model, ids, torch.arange(len(asked), device=device), last)
        for (problem, _), logits in zip(asked, ends, strict=True):
            letters = problem["letters"]
            best = logits[[_letter(tokenizer, letter) for letter in letters]].argmax()
            yield int(task.evaluate(problem, letters[int(best)]))


def written(task: Task, engine: Engine, asking: Asking, own: Sequence[int]) -> Iterator[int | None]:
    """How many of the answers to each question are right, all drawn at once; None: no room."""
    for index in _bar(own):
        problem = task[index]
        prompt = engine.tokenizer.render_for_completion(problem)
        if len(prompt) > engine.model.config.sequence_len:
            yield None
            continue
        rows, _ = engine.generate_batch(
            prompt,
            num_samples=asking.num_samples,
            max_tokens=asking.max_new_tokens,
            temperature=asking.temperature,
            top_k=asking.top_k,
        )
        texts = [engine.tokenizer.decode(row[len(prompt) :]) for row in rows]
        yield sum(bool(task.evaluate(problem, text)) for text in texts)


def run_chat_eval(
    task_name: str,
    model: Any,
    tokenizer: Any,
    engine: Engine,
    batch_size: int = 1,
    num_samples: int = 1,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    top_k: int = 50,
    max_problems: int | None = None,
    data: str = "",
) -> float:
    """The share of a task's questions that a model answers right; over all processes.

    Everything but the data is as in the reference: model and tokenizer are those of the engine,
    and `Asking` says what each number is.

    Raises:
        Refused: There is no such task, or it cannot be asked here.
    """
    asking = Asking(batch_size, num_samples, max_new_tokens, temperature, top_k, max_problems)
    return score_of(tasks_of(task_name, data)[task_name], engine, asking).accuracy


def tasks_of(names: str | None, data: str) -> dict[str, Task]:
    """The tasks of these names, `|` between them, ready to be asked; None or empty is all.

    Raises:
        Refused: There is no such task or data, it cannot be read, or no program may be run here.
    """
    if data not in ("", "hf", "builtin"):
        raise Refused(f"no questions are called {data!r}; leave --data out or say builtin")
    asked = names.split("|") if names else list(TASKS)
    for name in asked:
        if name not in TASKS:
            raise Refused(f"unknown task {name!r}, choose among {', '.join(TASKS)}")
    source = "builtin" if data == "builtin" else "hub"
    return {name: TASKS[name](source) for name in asked}


def chat_core(scores: dict[str, Score]) -> tuple[float, Limits] | None:
    """The mean of the centred accuracies and its limits; None unless every task was asked."""
    if set(scores) != set(TASKS):
        return None
    chances = [CHANCE.get(name, 0.0) for name in scores]
    values = [centered(s.accuracy, c) for s, c in zip(scores.values(), chances, strict=True)]
    limits = [
        (centered(s.limits[0], c), centered(s.limits[1], c))
        for s, c in zip(scores.values(), chances, strict=True)
    ]
    return sum(values) / len(values), interval_of_mean(values, limits)


def main(config: Config) -> dict[str, Any]:
    """Ask, print a table, and write a section of the report; the figures.

    Raises:
        Refused: Something asked for is not there, or it does not fit into memory.
    """
    if not config.source:
        raise Refused("say which model with --source: base, mid, sft, rl or a folder")
    counts = (config.max_new_tokens, config.num_samples, config.batch_size, config.max_problems)
    if min(1 if count is None else count for count in counts) < 1:
        raise Refused(
            "--max_new_tokens, --num_samples, --batch_size and --max_problems must be at least 1"
        )
    tasks = tasks_of(config.task_name, config.data)
    *_, device = compute_init(config.device_type)
    model, tokenizer, _ = load_model(config.source, device, "eval", config.model_tag, config.step)
    set_dtype(model, config.dtype)
    engine, scores = Engine(model, tokenizer), {}
    asking = Asking(**{field.name: getattr(config, field.name) for field in fields(Asking)})
    try:
        for name, task in tasks.items():
            score = score_of(task, engine, asking)
            low, high = score.limits
            print0(f"{name:14} {score.accuracy:.4f} ({low:.4f} to {high:.4f})")
            scores[name] = score
    except torch.OutOfMemoryError:
        raise Refused(
            f"out of memory; lower --batch_size, which is {config.batch_size}, or --num_samples"
        ) from None
    figures = figures_of(scores)
    print0("\n" + table(scores, figures))
    if config.source in FOLDERS:  # the report is of a run's own models
        title = f"Chat evaluation {config.source}"
        said = [vars(config), marked(figures, config.data), table(scores, figures)]
        get_report().log(title, said)
    return figures


def figures_of(scores: dict[str, Score]) -> dict[str, Any]:
    """The accuracies by task, what was drawn beside, and ChatCORE where all tasks were asked."""
    figures: dict[str, Any] = {name: score.accuracy for name, score in scores.items()}
    for name, score in scores.items():
        figures |= {f"{name} {k}": value for k, value in score.passes().items()}
        if score.unanswered:
            figures[f"{name} unanswered"] = score.unanswered
    core = chat_core(scores)
    if core is not None:
        figures |= {"ChatCORE": core[0], "ChatCORE limits": core[1]}
    return figures


def table(scores: dict[str, Score], figures: dict[str, Any]) -> str:
    """The tasks in Markdown."""
    lines = ["| Task | Accuracy | 95 % limits | Right | Guessing |", "|---" * 5 + "|"]
    for name, s in scores.items():
        low, high = s.limits
        long = f", {s.unanswered:,} too long" if s.unanswered else ""
        lines.append(
            f"| {name} | {s.accuracy:.4f} | {low:.4f} to {high:.4f} "
            f"| {s.passed:,} of {len(s.right):,}{long} | {CHANCE.get(name, 0.0):.2f} |"
        )
    if "ChatCORE" in figures:
        low, high = figures["ChatCORE limits"]
        lines.append(f"| ChatCORE | {figures['ChatCORE']:.4f} | {low:.4f} to {high:.4f} | | 0.00 |")
    return "\n".join(lines)


def _bar(items: Sequence[int]) -> Iterable[int]:
    return tqdm(items, leave=False, disable=True if get_dist_info()[1] else None)


def _letter(tokenizer: Any, letter: str) -> int:
    ids = tokenizer.encode(letter)
    if len(ids) != 1:
        raise Refused(
            f"the answer {letter!r} is {len(ids)} tokens and must be one; use another tokenizer"
        )
    return ids[0]


if __name__ == "__main__":
    sys.exit(cli.run(main, Config))
