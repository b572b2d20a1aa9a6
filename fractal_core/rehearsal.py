"""Runs in processes of their own, to learn about the machine: are bits repeated, what fits into it.

Nothing here is kept in a run folder.
"""

import multiprocessing
import os
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import psutil

from fractal_core import machine
from fractal_core.errors import Refused
from fractal_core.finetune import FineTune


@dataclass(frozen=True)
class Repeats:
    """How alike the curves of one point are.

    Args:
        steps: Losses of the longest.
        distinct: How many of them differ in any bit.
        first_difference: The first step at which two of them differ; None if none do.
        largest_difference: The most that two of them are apart at any step, in nats.
        final_losses: The last loss of each.
    """

    steps: int
    distinct: int
    first_difference: int | None
    largest_difference: float
    final_losses: list[float]


def repeat(experiment: FineTune, seed: int, workers: int) -> Repeats:
    """Train the same point in so many fresh processes, and compare.

    Raises:
        Refused: There is nothing to compare, or no device.
    """
    if workers < 2:
        raise Refused(f"{workers} workers; it takes at least 2 to compare")
    slots = machine.slots(experiment.devices, None, (), experiment.serial)
    tasks = [(experiment, seed, slots[n % len(slots)].environment) for n in range(workers)]
    with _processes(min(workers, len(slots))) as pool:
        return compare(list(pool.map(_curve, tasks)))


def compare(curves: list[np.ndarray]) -> Repeats:
    """How alike some curves are; one that ends early differs where it ends."""
    longest = max(map(len, curves))
    whole = np.full((len(curves), longest), np.nan)
    for row, curve in zip(whole, curves, strict=True):
        row[: len(curve)] = curve
    same = (whole == whole[0]) | (np.isnan(whole) & np.isnan(whole[0]))
    apart = np.flatnonzero(~same.all(axis=0))
    gaps = np.nan_to_num(whole.max(axis=0) - whole.min(axis=0), nan=np.inf)
    return Repeats(
        steps=longest,
        distinct=len({curve.tobytes() for curve in curves}),
        first_difference=int(apart[0]) if len(apart) else None,
        largest_difference=float(gaps[apart].max()) if len(apart) else 0.0,
        final_losses=[float(curve[-1]) for curve in curves],
    )


def largest_batch(
    experiment: FineTune,
    most: int,
    steps: int,
    memory_gb: float | None,
    tell: Callable[[int, bool], None],
) -> int:
    """The largest batch of the longest texts that is trained on and evaluated.

    Args:
        experiment: What is trained.
        most: The largest batch to try.
        steps: Steps of each trial.
        memory_gb: Memory that a trial may use; None for all that there is.
        tell: Hears of every trial.

    Raises:
        Refused: Not even a single text fits.
    """
    slot = machine.slots(experiment.devices, 1)[0]

    def fits(size: int) -> bool:
        task = (replace(experiment, batch_size=size, num_steps=steps, num_tokens=None), memory_gb)
        with _processes(1) as pool:
            try:
                fine = pool.submit(_trial, *task, slot.environment).result()
            except BrokenProcessPool:  # the system ended it for the memory that it took
                fine = False
        tell(size, fine)
        return fine

    good, bad = 0, most + 1
    size = 1
    while size < bad:
        if not fits(size):
            bad = size
            break
        good, size = size, min(2 * size, most) if size < most else bad
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    if not good:
        raise Refused("not even a single text fits; lower sequence_length or take a smaller model")
    return good


def _processes(count: int) -> ProcessPoolExecutor:
    fresh = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, mp_context=fresh, max_tasks_per_child=1)


def _curve(task: tuple[FineTune, int, dict[str, str]]) -> np.ndarray:
    experiment, seed, environment = task
    os.environ.update(environment)
    return experiment.tuner().train(experiment.settings(seed))


class _Longest:
    """The longest texts of a set, so that no batch is larger than the one that is tried."""

    def __init__(self, texts: Any, length: int, count: int):
        self.texts, self.rows = texts, count
        taught = [at for at in range(texts.rows) if texts.row(at)[1][1 : length + 1].any()]
        taught.sort(key=lambda at: -min(length, len(texts.row(at)[0])))
        # A batch larger than the set repeats it, as it does in training.
        self._order = [taught[at % len(taught)] for at in range(count)]

    def row(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        return self.texts.row(self._order[i])


def _trial(experiment: FineTune, memory_gb: float | None, environment: dict[str, str]) -> bool:
    """Whether a batch size fits; in a process that does nothing else."""
    os.environ.update(environment)
    import torch

    tuner = experiment.tuner()
    each = experiment.batch_size * experiment.accumulation
    tuner.texts = _Longest(tuner.texts, experiment.sequence_length, each)
    if experiment.device == "cuda":
        if memory_gb is not None:
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, memory_gb * 1e9 / total))
    elif sys.platform == "linux":
        room = psutil.virtual_memory().available if memory_gb is None else int(memory_gb * 1e9)
        held = psutil.Process().memory_info().data
        resource.setrlimit(resource.RLIMIT_DATA, (held + room, held + room))
    try:
        settings = experiment.settings(0)
        tuner.train(settings, finish=True)
        with torch.no_grad():
            for batch in tuner.batch(settings, 0):
                tuner.model.packed_losses(batch)
    except (MemoryError, torch.OutOfMemoryError):
        return False
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        return False
    return True
