"""Commands that say how good a language model is: eval."""

import contextlib
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any, Literal

import tyro

from fractal_core import evaluation
from fractal_core.commands import Json
from fractal_core.errors import Refused
from fractal_core.evaluation import BUILT_IN, Score


def eval(
    checkpoint: tyro.conf.Positional[str] = "sft",
    /,
    *,
    tasks: tuple[str, ...] = BUILT_IN,
    limit: int | None = None,
    tag: str | None = None,
    step: int | None = None,
    batch_size: int = 16,
    device: Literal["cuda", "mps", "cpu"] | None = None,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    task_folder: Path | None = None,
    as_json: Json = False,
) -> None:
    """Measure how good a language model is, with intervals of 95 %.

    Args:
        checkpoint: A folder, `hf:org/repo@revision`, `wandb:entity/project/name:version`, or a
            stage (base, mid, sft, rl) of $NANOCHAT_BASE_DIR.
        tasks: `kinds`, `sums` and `texts` need no network. Others, such as hellaswag, arc_easy and
            arc_challenge, are asked by the lm-evaluation-harness (`uv sync --extra eval`).
        limit: So many questions of each task, from its first; all if left out.
        tag: Which folder of one model, as in d20; the deepest model if left out.
        step: Which step; the last one if left out.
        batch_size: Texts at a time.
        device: Where to compute; the best there is if left out.
        dtype: In what to compute on a GPU.
        task_folder: A folder with tasks of your own, as YAML files of the harness.
        as_json: One JSON object and nothing else.
    """
    # Here, because torch takes seconds to load and no other command needs these.
    from nanochat import common
    from nanochat.checkpoint_manager import load_model
    from scripts.chat_sft import set_dtype

    if batch_size < 1:
        raise Refused("--batch-size is at least 1")
    began = time.monotonic()
    try:
        # What loads and asks speaks on the standard output, which belongs to the scores.
        with contextlib.redirect_stdout(sys.stderr):
            *_, place = common.compute_init(device or "")
            model, tokenizer, meta = load_model(checkpoint, place, "eval", tag, step)
            set_dtype(model, dtype)
            reader = evaluation.Reader(model, tokenizer, batch_size, Progress())
            scores = evaluation.evaluate(reader, tasks, limit, task_folder)
    except common.Refused as refusal:
        raise Refused(str(refusal)) from None
    if as_json:
        told: dict[str, Any] = {"checkpoint": checkpoint, "step": meta.get("step")}
        told |= {"model": meta["model_config"], "device": str(place), "limit": limit}
        told |= {"dtype": str(model.wte.weight.dtype).removeprefix("torch.")}
        told |= {"seconds": time.monotonic() - began}
        print(json.dumps(told | {"scores": [dataclasses.asdict(score) for score in scores]}))
        return
    for line in table(scores):
        print(line)


def table(scores: list[Score]) -> list[str]:
    """A line for each score, under a heading."""
    wide = max(len(score.task) for score in scores)
    lines = [
        f"{'task':<{wide}}  {'metric':<15} {'value':>8}  {'95 % interval':<18} {'of':>6}  chance"
    ]
    for s in scores:
        chance = "" if s.chance is None else f"{s.chance:.3f}"
        interval = f"{s.low:.4g} to {s.high:.4g}"
        lines.append(
            f"{s.task:<{wide}}  {s.metric:<15} {s.value:>8.4g}  {interval:<18} {s.count:>6}  {chance}"
        )
    return lines


class Progress:
    """Says how many texts were read, every few seconds."""

    def __init__(self):
        self.said = time.monotonic()

    def __call__(self, done: int, count: int) -> None:
        if time.monotonic() - self.said >= 5.0:
            self.said = time.monotonic()
            print(f"{done:,} of {count:,} texts", file=sys.stderr)
