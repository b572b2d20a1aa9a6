"""How much a base model knows: the CORE metric, task by task.

python -m nanochat.core_bundle                     fetch the tasks, once
python -m scripts.base_eval --model_tag=d12
python -m scripts.base_eval --hf_path=openai-community/gpt2
python -m scripts.base_eval --data=builtin         three small tasks of our own, offline
torchrun --standalone --nproc_per_node=8 -m scripts.base_eval
"""

import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nanochat import cli
from nanochat.checkpoint_manager import build_model, locate, source_folder
from nanochat.common import Refused, compute_init, get_base_dir, get_dist_info, print0
from nanochat.core_bundle import CoreTask, tasks_of
from nanochat.core_eval import Outcome, core_metric, evaluate_task
from nanochat.report import get_report, marked
from nanochat.shares import Limits


@dataclass(frozen=True)
class Config:
    """Evaluate a base model, or with `hf_path` one of transformers.

    `max_per_task` is how many questions of each task are asked; -1 is all. `data` is empty for the
    bundle in the base folder, or `builtin`.
    """

    hf_path: str | None = None
    max_per_task: int = -1
    model_tag: str | None = None
    step: int | None = None
    device_type: str = ""
    data: str = ""


class TransformersModel:
    """A causal language model of transformers, asked as one of ours."""

    def __init__(self, model: Any):
        self.model = model
        self.max_seq_len = getattr(model.config, "max_position_embeddings", None)

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model(ids).logits


class TransformersTokenizer:
    """A tokenizer of transformers, asked as ours; a text begins with its own first token."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def get_bos_token_id(self) -> int:
        """The token that stands before a text; GPT-2's is the one that also ends it."""
        first = self.tokenizer.bos_token_id
        return self.tokenizer.eos_token_id if first is None else first

    def __call__(self, texts: Sequence[str], prepend: int) -> list[list[int]]:
        ids = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return [[prepend, *tokens] for tokens in ids]


def load_hf(path: str, device: torch.device) -> tuple[Any, Any]:
    """Model and tokenizer of a folder or of a repository at the Hugging Face Hub.

    Raises:
        Refused: The package transformers is not installed, or they cannot be had.
    """
    try:
        import transformers  # an extra: our own models need none of it
    except ModuleNotFoundError:
        raise Refused(
            f"{path} is read with the package transformers; install it with `uv sync --extra eval`"
        ) from None
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(path, dtype="auto")
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise Refused(f"{path} cannot be had ({reason[0]}); check the name and network") from None
    model.to(device).eval()
    return TransformersModel(model), TransformersTokenizer(tokenizer)


def evaluate_model(
    model: Any,
    tokenizer: Any,
    device: torch.device,
    max_per_task: int = -1,
    tasks: Sequence[CoreTask] | None = None,
) -> dict[str, Any]:
    """The CORE metric, with its limits of 95 percent, and what it is the mean of.

    Args:
        model: Gives logits (B, T, V) for ids (B, T).
        tokenizer: Its own.
        device: Where the model is.
        max_per_task: So many questions of each task at most; -1 is all of them.
        tasks: Of the bundle in the base folder, unless others are given.

    Raises:
        Refused: There is no bundle, or it is damaged.
    """
    outcomes = []
    for task in tasks_of("") if tasks is None else tasks:
        outcome = evaluate_task(model, tokenizer, task, device, max_per_task)
        low, high = outcome.limits
        print0(
            f"{outcome.label:36} {outcome.accuracy:.4f} ({low:.4f} to {high:.4f}) of "
            f"{outcome.count}, centred {outcome.centered:.4f}"
        )
        outcomes.append(outcome)
    core, limits = core_metric(outcomes)
    print0(f"CORE {core:.4f} ({limits[0]:.4f} to {limits[1]:.4f})")
    return {
        "results": {outcome.label: outcome.accuracy for outcome in outcomes},
        "centered_results": {outcome.label: outcome.centered for outcome in outcomes},
        "core_metric": core,
        "core_limits": limits,
        "outcomes": outcomes,
    }


def main(config: Config) -> dict[str, Any]:
    """Evaluate, and write a table and a section of the report; the figures.

    Raises:
        Refused: There are no tasks or no model, or it does not fit into memory.
    """
    if config.max_per_task == 0 or config.max_per_task < -1:
        raise Refused("--max_per_task must be at least 1, or -1 for all")
    tasks = tasks_of(config.data)
    *_, device = compute_init(config.device_type)
    if config.hf_path:
        model, tokenizer = load_hf(config.hf_path, device)
        name, slug = config.hf_path, config.hf_path.strip("/").replace("/", "-")
    else:
        folder, step = locate(source_folder("base"), config.model_tag, config.step)
        model, tokenizer, _ = build_model(folder, step, device, "eval")
        name, slug = f"step {step} of {folder}", f"base_model_{step:06d}"
    print0(f"Evaluating {name}")
    try:
        figures = evaluate_model(model, tokenizer, device, config.max_per_task, tasks)
    except torch.OutOfMemoryError:
        raise Refused("out of memory; use a device with more, or --device_type=cpu") from None
    outcomes, core = figures["outcomes"], (figures["core_metric"], figures["core_limits"])
    path = Path(get_base_dir()) / "base_eval" / f"{slug}.csv"
    if get_dist_info()[1] == 0:
        write_csv(path, outcomes, core)
        print0(f"Wrote {path}")
    if not config.hf_path:  # the report is of a run's own models
        head = marked({"CORE": core[0], "CORE limits": core[1]}, config.data)
        said = [vars(config), {"checkpoint": name} | head, table(outcomes)]
        get_report().log("Base model evaluation", said)
    return figures


def write_csv(path: Path, outcomes: Sequence[Outcome], core: tuple[float, Limits]) -> None:
    """A line for each task and one for CORE."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    with draft.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("Task", "Accuracy", "Centered", "Low", "High", "Count"))
        for o in outcomes:
            rows.writerow((o.label, o.accuracy, o.centered, *o.limits, o.count))
        rows.writerow(("CORE", "", core[0], *core[1], ""))
    draft.replace(path)


def table(outcomes: Sequence[Outcome]) -> str:
    """The tasks in Markdown."""
    lines = ["| Task | Accuracy | 95 % limits | Centred | Questions |", "|---" * 5 + "|"]
    lines += [
        f"| {o.label} | {o.accuracy:.4f} | {o.limits[0]:.4f} to {o.limits[1]:.4f} "
        f"| {o.centered:.4f} | {o.count:,} |"
        for o in outcomes
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(cli.run(main, Config))
