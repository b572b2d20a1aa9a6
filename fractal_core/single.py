"""One fine-tuning run, watched: what it says of itself while it trains, and what it leaves behind.

It is a run folder with a single point, whose axes are the batch size and the order of the texts, so
that all else is a setting. Beside the committed outcome lie, in `single/`,

    metrics.jsonl   an object per step: loss, learning rates, learned tokens, memory, seconds
    samples.json    questions of the validation set, the answers expected, given before and after
    result.json     the outcome in words and numbers
    checkpoint/     the weights after the last step in nanochat's layout, if they are wanted
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fractal_core import conversations, machine
from fractal_core.errors import Refused
from fractal_core.finetune import FineTune
from fractal_core.outcome import Outcome, Outcomes
from fractal_core.plane import Axis, Region
from fractal_core.store import Store
from fractal_core.stream import Stream
from fractal_core.sweep import Sweep

FOLDER = "single"
AXES = ("batch_size", "seed")


@dataclass(frozen=True)
class Watch:
    """How closely a run is watched; it changes nothing in it.

    Args:
        eval_every: Steps between two looks at the validation loss, before the first step and after
            the last aside.
        eval_batches: Batches that it is the mean of; the same every time.
        samples: Questions of the validation set that are answered, greedily, before and after.
        answer_tokens: Tokens that an answer may have.
        keep_weights: Whether the weights after the last step are written.
    """

    eval_every: int = 200
    eval_batches: int = 4
    samples: int = 5
    answer_tokens: int = 64
    keep_weights: bool = False

    def __post_init__(self):
        if min(self.eval_every, self.eval_batches, self.answer_tokens) < 1 or self.samples < 0:
            raise Refused(
                "eval-every, eval-batches and answer-tokens are at least 1, samples at least 0"
            )


def sweep_of(experiment: FineTune, seed: int) -> Sweep:
    """The sweep of a single point."""
    values = {"batch_size": float(experiment.batch_size), "seed": float(seed)}
    axes = (Axis(name, v, v, 1, "linear", integer=True) for name, v in values.items())
    alone = replace(experiment, axes=AXES, batch_size=FineTune.batch_size)
    return Sweep.over(alone, Region(*axes), seed)


def train(store: Store, watch: Watch, tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Train the run and keep all of the above; what `result.json` holds.

    Under torchrun all processes call it, and the first one writes.

    Args:
        store: A run folder of `sweep_of`.
        watch: How closely it is looked at.
        tell: Hears of every step.

    Raises:
        Refused: The processes cannot share the batches of a step evenly.
    """
    sweep = store.sweep
    if not isinstance(sweep.experiment, FineTune) or sweep.grid.shape != (1, 1):
        raise Refused(f"{store.path} is a map and not a single run; name another folder")
    point = sweep.grid.points(np.array([0]), np.array([0]))[0]
    experiment, seed = sweep.experiment.at(point, sweep.seed)
    return _Single(store, experiment, seed, watch).run(tell)


class _Single:
    """A run under way."""

    def __init__(self, store: Store, experiment: FineTune, seed: int, watch: Watch):
        import torch
        from nanochat.common import compute_init

        self.store, self.experiment, self.watch = store, experiment, watch
        _, self.rank, _, world, self.device = compute_init(experiment.device)
        if experiment.accumulation % world:
            raise Refused(
                f"{world} processes cannot share {experiment.accumulation} batches per step evenly; "
                f"set accumulation to a multiple of {world}"
            )
        self.torch = torch
        self.tuner, self.settings = experiment.tuner(), experiment.settings(seed)
        self.model, self.tokenizer = self.tuner.model, experiment.tokenizer()
        self.held_out = Stream(experiment.texts("validation"), experiment.sequence_length, 0)

    def run(self, tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        started, planned = time.perf_counter(), len(self.settings.multipliers)
        before, first = self._answers(), self._validation()
        curve: list[float] = []
        folder = self.store.path / FOLDER
        folder.mkdir(exist_ok=True)
        with Path(os.devnull if self.rank else folder / "metrics.jsonl").open("w") as file:
            for row in self._rows():
                curve.append(row["loss"])
                file.write(json.dumps(row) + "\n")
                file.flush()
                tell(row)
        seconds = time.perf_counter() - started
        outcomes = self.experiment.judge(np.array(curve, np.float32), planned, seconds)
        blown = outcomes.outcome[0] == Outcome.DIVERGED
        result = in_words(outcomes, planned) | {
            "tokens": sum(self.tuner.tokens(self.settings)[: len(curve)]),
            "validation": {"before": first, "after": None if blown else self._validation()},
        }
        after = [None] * len(before) if blown else [answer for _, _, answer in self._answers()]
        samples = [
            {"question": question, "expected": expected, "before": old, "after": new}
            for (question, expected, old), new in zip(before, after, strict=True)
        ]
        if self.watch.keep_weights and not blown:
            result["checkpoint"] = self._keep(result)
        if self.rank:
            return result
        put = self.store.files.put_latest
        put(f"{FOLDER}/samples.json", json.dumps(samples, indent=1).encode())
        put(f"{FOLDER}/result.json", json.dumps(result, indent=1).encode())
        unit = next(iter(self.store.units.values()))
        self.store.commit(unit, outcomes, {"seconds": seconds, **machine.describe()})
        return result

    def _rows(self) -> Iterator[dict[str, Any]]:
        """What is known of every step, as it becomes known."""
        settings, tokens = self.settings, self.tuner.tokens(self.settings)
        began, step, seen, due = time.perf_counter(), 0, 0, self.watch.eval_every
        for losses in self.tuner.steps(settings, finish=True):
            for loss in losses.tolist():
                seen += tokens[step]
                multiplier = settings.multipliers[step]
                row = {
                    "step": step,
                    "loss": loss,
                    "lr_matrix": settings.matrix_lr * multiplier,
                    "lr_embedding": settings.embedding_lr * multiplier,
                    "lr_unembedding": settings.unembedding_lr * multiplier,
                    "tokens": seen,
                    "memory": self._memory(),
                    "seconds": time.perf_counter() - began,
                }
                step += 1
                if step >= due and loss == losses[-1] and step < len(settings.multipliers):
                    row["val_loss"], due = self._validation(), step + self.watch.eval_every
                yield row

    def _memory(self) -> int:
        """The most bytes that were held on the GPU, or those that this process holds."""
        if self.device.type == "cuda":
            return self.torch.cuda.max_memory_allocated()
        import psutil

        return psutil.Process().memory_info().rss

    def _validation(self) -> float:
        """The mean loss of the first batches of the validation set."""
        from nanochat.packing import pack

        size, losses = self.experiment.batch_size, []
        with self.torch.no_grad():
            for at in range(0, size * self.watch.eval_batches, size):
                packed = pack([self.held_out.row(at + i) for i in range(size)], self.device)
                losses.append(float(self.model.packed_losses(packed).mean()))
        return float(np.mean(losses))

    def _answers(self) -> list[tuple[str, str, str]]:
        """Question, expected answer and the model's own, for the first validation texts."""
        from nanochat.engine import Engine

        engine, found = Engine(self.model, self.tokenizer), []
        source = conversations.conversations(self.experiment.data, "validation")
        for talk in source[: self.watch.samples]:
            prompt = self.tokenizer.render_for_completion(talk)
            rows, _ = engine.generate_batch(
                prompt, max_tokens=self.watch.answer_tokens, temperature=0.0
            )
            answer = self.tokenizer.decode(rows[0][len(prompt) :])
            said = [plain(message["content"]) for message in talk["messages"]]
            found.append((said[-2], said[-1], answer))
        return found

    def _keep(self, result: dict[str, Any]) -> str:
        """Write the weights in nanochat's layout; where."""
        from nanochat.checkpoint_manager import save_checkpoint

        folder = self.store.path / FOLDER / "checkpoint"
        rates = {name: getattr(self.settings, name) for name in ("matrix_lr", "embedding_lr")}
        meta = {
            "step": result["steps"],
            "model_config": asdict(self.model.config),
            "final_loss": result["final_loss"],
            "tokens_seen": result["tokens"],
            "trainable": result["outcome"] == Outcome.TRAINABLE.name,
            "trainable_ratio": result["ratio"],
            **rates,
            "unembedding_lr": self.settings.unembedding_lr,
        }
        save_checkpoint(folder, result["steps"], self.model.state_dict(), None, meta, self.rank)
        if not self.rank:
            self.tokenizer.save(folder)
        return str(folder)


def plain(content: Any) -> str:
    """What is said, without its parts."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content)


def in_words(outcomes: Outcomes, planned: int) -> dict[str, Any]:
    """The outcome of one run of `planned` steps; what is not finite is None."""

    def number(value: np.float64) -> float | None:
        return float(value) if np.isfinite(value) else None

    return {
        "outcome": Outcome(int(outcomes.outcome[0])).name,
        "ratio": number(outcomes.tail_loss[0] / outcomes.first_loss[0]),
        "first_loss": number(outcomes.first_loss[0]),
        "tail_loss": number(outcomes.tail_loss[0]),
        "final_loss": number(outcomes.final_loss[0]),
        "steps": int(outcomes.steps[0]),
        "planned": planned,
        "seconds": float(outcomes.seconds[0]),
    }
