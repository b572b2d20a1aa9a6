"""One tiny network, watched: its loss while it trains, and what it leaves behind.

It is a run folder with a single point of the plane. Beside the committed outcome lie in `single/`,
as for a language model,

    metrics.jsonl   an object per recorded step: loss, learning rates, seconds
    result.json     the outcome in words and numbers

The kernel writes each recorded loss where another thread reads it, so nothing is computed twice and
the bits are those of the same point in a map.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from fractal_core import machine
from fractal_core.errors import Refused
from fractal_core.kernels.contract import Curves
from fractal_core.plane import Axis, Region
from fractal_core.single import FOLDER, in_words
from fractal_core.store import Store
from fractal_core.sweep import Sweep
from fractal_core.tiny import TinyNetworks

MOST_ROWS = 1000
LOOK_SECONDS = 0.1


def sweep_of(experiment: TinyNetworks, point: tuple[float, float], seed: int) -> Sweep:
    """The sweep of a single point.

    An axis reaches one unit in the last place to both sides, so that its middle is that very value.

    Raises:
        Refused: A value is not finite.
    """
    if not np.all(np.isfinite(point)):
        raise Refused(f"a point at {point[0]}, {point[1]}; choose two finite numbers")
    axes = []
    for name, value in zip(experiment.axes, point, strict=True):
        reach = float(np.spacing(abs(value)))
        axes.append(Axis(name, value - reach, value + reach, 1, "linear"))
    return Sweep.over(experiment, Region(*axes), seed)


def recorded(steps: int, most: int = MOST_ROWS) -> Int64[np.ndarray, " rows"]:
    """The steps that are kept: all, or `most` evenly spaced, both ends included."""
    return np.linspace(0, steps - 1, min(steps, most)).astype(np.int64)


def train(store: Store, tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Train the network and keep all of the above; what `result.json` holds.

    Args:
        store: A run folder of `sweep_of`.
        tell: Hears of every recorded step.

    Raises:
        Refused: The folder holds a map, or another experiment.
    """
    sweep = store.sweep
    experiment = sweep.experiment
    if not isinstance(experiment, TinyNetworks) or sweep.grid.shape != (1, 1):
        raise Refused(f"{store.path} is no single tiny network; name another folder")
    steps = recorded(experiment.steps)
    losses = np.full((1, len(steps)), np.nan)
    folder = store.path / FOLDER
    folder.mkdir(exist_ok=True)
    started = time.perf_counter()
    training = _Training(sweep, steps, losses)
    with (folder / "metrics.jsonl").open("w") as file:
        for row in _rows(training, steps, losses, started):
            file.write(json.dumps(row) + "\n")
            file.flush()
            tell(row)
    curves = training.result()
    losses[np.isnan(losses)] = np.inf  # not reached: the run had blown up
    seconds = time.perf_counter() - started
    outcomes = experiment.judge(curves, seconds)
    result = in_words(outcomes, experiment.steps)
    unit = next(iter(store.units.values()))
    store.commit(unit, outcomes, {"seconds": seconds, **machine.describe()})
    store.files.put_latest(f"{FOLDER}/result.json", json.dumps(result, indent=1).encode())
    return result


class _Training:
    """The kernel at work in a thread of its own; it leaves `losses` alone where it does not get."""

    def __init__(
        self,
        sweep: Sweep,
        steps: Int64[np.ndarray, " rows"],
        losses: Float64[np.ndarray, "1 rows"],
    ):
        experiment: Any = sweep.experiment
        point = sweep.grid.points(np.array([0]), np.array([0]))
        self.hyper = experiment.hyperparameters(point)
        self._found: Curves | BaseException | None = None

        def work() -> None:
            from fractal_core.kernels import cpu

            problem = experiment.problem(sweep.seed)
            try:
                self._found = cpu.train(problem, self.hyper, steps, threads=1, losses=losses)
            except BaseException as error:  # noqa: BLE001 - raised again by whoever asks for the result
                self._found = error

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()

    def ended(self, patience: float) -> bool:
        """Whether it has ended, within so many seconds."""
        self._thread.join(patience)
        return not self._thread.is_alive()

    def result(self) -> Curves:
        """What the kernel returned."""
        self._thread.join()
        if not isinstance(self._found, Curves):
            raise self._found or RuntimeError("the kernel ended without a word")
        return self._found


def _rows(
    training: _Training,
    steps: Int64[np.ndarray, " rows"],
    losses: Float64[np.ndarray, "1 rows"],
    started: float,
) -> Iterator[dict[str, Any]]:
    """What is known of every recorded step, as it becomes known."""
    seen, ended = 0, False
    rates = {"lr_input": training.hyper[0, 0], "lr_output": training.hyper[0, 1]}
    while not ended:
        ended = training.ended(LOOK_SECONDS)
        known = int(np.isfinite(losses[0]).sum())
        seconds = time.perf_counter() - started
        for at in range(seen, known):
            row = {"step": int(steps[at]), "loss": float(losses[0, at])}
            yield row | {name: float(rate) for name, rate in rates.items()} | {"seconds": seconds}
        seen = known
