"""Commands that train single runs: base, finetune, point, repro, probe-batch."""

import contextlib
import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fractal_core import base as base_model
from fractal_core import (
    duty,
    experiments,
    network,
    planner,
    rehearsal,
    single,
    tracking,
    worker,
)
from fractal_core.commands import Json, Run
from fractal_core.commands.make import Settings, settings_of, warn
from fractal_core.commands.track import await_mirror, begin_mirror
from fractal_core.errors import Refused
from fractal_core.finetune import FineTune
from fractal_core.store import Store
from fractal_core.tiny import TinyNetworks

DIFFERENT = 1


def base(*, steps: int = 300) -> None:
    """Make the small language model that fine-tuning starts from when no checkpoint is named.

    Two layers and a thousand tokens, trained on built-in texts without a network; kept in the
    storage folder (FRACTAL_STORAGE, or the user's cache) for all runs to come. Runs that were
    begun from the one before it cannot be gone on with.

    Args:
        steps: Training steps.
    """
    started = time.perf_counter()
    folder, bits = base_model.make(base_model.Base(steps=steps))
    print(f"{bits:.3f} bits per byte of texts that it has not seen")
    print(f"{time.perf_counter() - started:.0f} s in all")
    print(f"model    {folder}")
    print("\nNext: fine-tune it once, or over a plane of learning rates")
    print("  fractal finetune runs/one")
    print("  fractal demo runs/plane --preset matrix-unembedding")


def finetune(
    run: Run,
    /,
    *,
    settings: Settings = (),
    seed: int = 0,
    eval_every: int = 200,
    eval_batches: int = 4,
    samples: int = 5,
    keep_weights: bool = False,
    track: bool = False,
    force: bool = False,
    as_json: Json = False,
) -> int:
    """Fine-tune a language model once, and watch it.

    Loss, learning rates, tokens and memory as they come; validation loss and greedy answers to
    fixed questions before and after; the outcome. All of it stays in the run folder, and given
    again nothing is computed. Under torchrun the processes share the batches of each step.

    Args:
        run: Folder of the run.
        settings: Settings of the fine-tuning, for example matrix_lr=0.01 num_steps=200
            data=talk.jsonl checkpoint=hf:org/model.
        seed: Of the order of the texts.
        eval_every: Steps between two looks at the validation loss.
        eval_batches: Batches that it is the mean of.
        samples: Questions that are answered before and after.
        keep_weights: Write a checkpoint after the last step, in nanochat's layout.
        track: Mirror it at Weights & Biases meanwhile, from another process; see `fractal track`.
        force: Allow a run that is too short to be judged.
        as_json: One JSON object and nothing else.
    """
    watch = single.Watch(eval_every, eval_batches, samples, keep_weights=keep_weights)
    experiment = _experiment(settings)
    _review(experiment, seed, force)
    leader = int(os.environ.get("RANK", "0")) == 0
    if track:
        tracking.require_client()
    store = Store.create(run, single.sweep_of(experiment, seed))
    follower = begin_mirror(run) if track and leader else None
    kept = run / single.FOLDER / "result.json"
    if kept.exists() and not store.missing():
        result = json.loads(kept.read_text())
        if keep_weights and result["outcome"] != "DIVERGED" and "checkpoint" not in result:
            raise Refused(f"the weights of {run} were not kept; train it again in another folder")
    else:
        alone = contextlib.nullcontext()
        bar = _curve(experiment.length(seed), as_json) if leader else alone
        # What nanochat says on the way must not mix with the answer.
        said = contextlib.redirect_stdout(sys.stderr)
        with _fitting(experiment), said, duty.lock(run) if leader else alone, bar as tell:
            result = single.train(store, watch, tell or (lambda row: None))
    if not leader:
        return 0
    if follower:
        await_mirror(run, follower)
    if as_json:
        print(json.dumps(result))
        return 0
    _print(run, result)
    return 0


def point(
    run: Run,
    /,
    *,
    at: tuple[float, float],
    preset: str = "tanh",
    axes: tuple[str, str] | None = None,
    settings: Settings = (),
    seed: int = 0,
    as_json: Json = False,
) -> int:
    """Train one tiny network at one point, and watch it.

    The loss of up to a thousand steps as they come, and the outcome. All of it stays in the run
    folder, and given again nothing is computed. The bits are those of the same point in a map.

    Args:
        run: Folder of the run.
        at: x and y, the values of the two settings that the axes move; all digits count.
        preset: Of tiny networks, as for `fractal new`.
        axes: The two settings; left out, those of the preset.
        settings: Further settings, for example steps=100000 activation=relu.
        seed: As for `fractal new`.
        as_json: One JSON object and nothing else.
    """
    experiment = planner.configured(preset, axes, settings_of(settings))
    if not isinstance(experiment, TinyNetworks):
        raise Refused(f"{preset} is a language model; train one with `fractal finetune {run}`")
    store = Store.create(run, network.sweep_of(experiment, at, seed))
    kept = run / single.FOLDER / "result.json"
    if kept.exists() and not store.missing():
        result = json.loads(kept.read_text())
    else:
        # The kernel does not listen while it trains; what it has written by then stays.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        with duty.lock(run), _curve(len(network.recorded(experiment.steps)), as_json) as tell:
            result = network.train(store, tell)
    if as_json:
        print(json.dumps(result))
        return 0
    _print_outcome(result)
    print(f"trained      in {result['seconds']:.2f} s")
    print(f"{run}: complete")
    return 0


def repro(
    *,
    settings: Settings = (),
    seed: int = 0,
    workers: int = 2,
    force: bool = False,
    as_json: Json = False,
) -> int:
    """Train the same point in several fresh processes, and compare their curves bit for bit.

    With several GPUs the workers are spread over them. The exit code is 1 if any bit differs.

    Args:
        settings: Settings of the fine-tuning.
        seed: Of the order of the texts.
        workers: How many processes.
        force: Allow a run that is too short to be judged.
        as_json: One JSON object and nothing else.
    """
    experiment = _experiment(settings)
    _review(experiment, seed, force)
    found = rehearsal.repeat(experiment, seed, workers)
    if as_json:
        print(json.dumps(dataclasses.asdict(found)))
    elif found.first_difference is None:
        print(f"{workers} curves of {found.steps} losses, equal to the bit")
    else:
        print(
            f"{found.distinct} different curves of {workers}: they part at step "
            f"{found.first_difference} and are at most {found.largest_difference:.3g} apart"
        )
    return 0 if found.first_difference is None else DIFFERENT


def probe_batch(
    *,
    settings: Settings = (),
    most: int = 256,
    steps: int = 100,
    memory_gb: float | None = None,
    as_json: Json = False,
) -> int:
    """Find the largest batch that trains and is evaluated without running out of memory.

    The longest texts are taken, each size is tried in a process of its own, doubling and then
    halving the gap. It advises; no run derives its batch from the card.

    Args:
        settings: Settings of the fine-tuning.
        most: The largest batch of interest.
        steps: Steps of a trial.
        memory_gb: Memory that may be used; left out, all of the GPU, or what is free on a CPU.
        as_json: One JSON object and nothing else.
    """
    experiment = _experiment(settings)

    def tell(size: int, fits: bool) -> None:
        print(f"batch_size={size}: {'fits' if fits else 'out of memory'}", file=sys.stderr)

    largest = rehearsal.largest_batch(experiment, most, steps, memory_gb, tell)
    if as_json:
        print(json.dumps({"largest": largest, "tried_up_to": most, "steps": steps}))
    else:
        print(f"the largest batch that fits is {largest}; use it with --set batch_size={largest}")
    return 0


def _experiment(settings: Settings) -> FineTune:
    """The preset for fine-tuning on this machine, with these settings."""
    chosen = experiments.preset("matrix-unembedding").experiment
    return experiments.configure(chosen, settings_of(settings))


@contextlib.contextmanager
def _fitting(experiment: FineTune) -> Iterator[None]:
    """Say in one sentence that memory was not enough."""
    try:
        yield
    except Exception as error:  # what is no lack of memory is raised again
        if worker.code_of(error) != worker.MEMORY:
            raise
        raise Refused(
            f"out of memory at batch_size={experiment.batch_size}; lower it (`fractal probe-batch` "
            "finds what fits) and raise accumulation instead, or lower sequence_length"
        ) from None


def _review(experiment: FineTune, seed: int, force: bool) -> None:
    if not force:
        alone = single.sweep_of(experiment, seed)
        warn(alone)


@contextlib.contextmanager
def _curve(planned: int, quiet: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A bar with the loss on a terminal, a line now and then elsewhere."""
    bar = tqdm(total=planned, unit="step", disable=quiet or not sys.stderr.isatty())
    spoken = time.monotonic()

    def tell(row: dict[str, Any]) -> None:
        nonlocal spoken
        shown = {"loss": f"{row['loss']:.4g}"}
        if "lr_matrix" in row:
            shown["lr"] = f"{row['lr_matrix']:.3g}"
        if "val_loss" in row:
            shown["validation"] = f"{row['val_loss']:.4f}"
        bar.set_postfix(shown, refresh=False)
        bar.update()
        if bar.disable and not quiet and time.monotonic() - spoken > 5:
            spoken = time.monotonic()
            words = "  ".join(f"{name} {value}" for name, value in shown.items())
            print(f"step {row['step'] + 1}/{planned}  {words}", file=sys.stderr, flush=True)

    with bar:
        yield tell


def _print_outcome(result: dict[str, Any]) -> None:
    ratio = "" if result["ratio"] is None else f", {result['ratio']:.3f} of the first loss"
    print(f"{result['outcome']} after {result['steps']} of {result['planned']} steps{ratio}")
    for name in ("first_loss", "tail_loss", "final_loss"):
        value = result[name]
        print(f"{name:<12} {'not finite' if value is None else f'{value:.4f}'}")


def _print(run: Path, result: dict[str, Any]) -> None:
    _print_outcome(result)
    before, after = result["validation"]["before"], result["validation"]["after"]
    print(f"validation   {before:.4f} before, {'-' if after is None else f'{after:.4f}'} after")
    print(f"tokens       {result['tokens']:,} learned in {result['seconds']:.1f} s")
    for sample in json.loads((run / single.FOLDER / "samples.json").read_text()):
        question = " ".join(sample["question"].split())
        print(f"\n...{question[-100:]}")
        for name in ("expected", "before", "after"):
            text = sample[name]
            print(f"  {name:<9} {'-' if text is None else ' '.join(text.split())[:100]}")
    if where := result.get("checkpoint"):
        print(f"\ncheckpoint   {where}")
