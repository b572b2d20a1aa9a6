"""What the engine costs: units by a worker process, against the same units computed in place.

Contenders take turns, a run folder each time. The engine is timed from its first commit to its
last, so starting a process is told apart; the bare computation is timed over the same units.
"""

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from fractal_core import engine, machine
from fractal_core.duty import read_events
from fractal_core.local import LocalCrew
from fractal_core.plane import Axis, Region
from fractal_core.store import Store
from fractal_core.sweep import LEVELS, Sweep, Unit, canonical, to_json
from fractal_core.tiny import TinyNetworks

SHORT = TinyNetworks(samples=1, steps=21)
LONG = TinyNetworks(steps=1000)
SIDE = 32
"""Rows and columns of the grid of one turn: 1,024 units of one point."""


@dataclass(frozen=True)
class Turn:
    """One turn of both contenders.

    Args:
        units: How many were timed.
        start: Seconds from the beginning of the run to its first commit.
        engine: Seconds per unit, committed by a worker.
        bare: Seconds per unit, computed in this process and forgotten.
    """

    units: int
    start: float
    engine: float
    bare: float

    @property
    def overhead(self) -> float:
        """What the engine takes per unit, in seconds."""
        return self.engine - self.bare

    @property
    def share(self) -> float:
        """The same as a share of the computation."""
        return self.engine / self.bare - 1


def measure(rounds: int, seconds: float) -> dict[str, list[Turn]]:
    """Let the engine and the bare computation take turns.

    Args:
        rounds: Turns of 1,024 units of one point; four times as many turns of 18 long units.
        seconds: What a long unit should take.
    """
    with tempfile.TemporaryDirectory(prefix="fractal-") as name:
        folder = Path(name)
        steady = replace(LONG, steps=_steps(seconds))
        return {
            "one point": [_turn(folder / f"s{n}", SHORT, SIDE, n, True) for n in range(rounds)],
            "long": [_turn(folder / f"l{n}", steady, 24, n, False) for n in range(4 * rounds)],
        }


def _sweep(experiment: TinyNetworks, side: int, seed: int) -> Sweep:
    # Where every run trains, so that all units take the same time.
    axes = (Axis(axis, 0.1, 1.0, side) for axis in experiment.axes)
    return Sweep.over(experiment, Region(*axes), seed)


def _steps(seconds: float) -> int:
    """Steps for which a block of 8 x 8 points takes so long."""
    sweep = _sweep(LONG, 24, 0)
    points = sweep.grid.points(*Unit(0, (0, 8), (0, 8)).cells())
    took = []
    for _ in range(4):
        started = time.perf_counter()
        LONG.run(points, seed=0)
        took.append(time.perf_counter() - started)
    return max(LONG.window + 1, round(LONG.steps * seconds / min(took)))


def _turn(path: Path, experiment: TinyNetworks, side: int, seed: int, single: bool) -> Turn:
    store = Store.create(path, _sweep(experiment, side, seed), block=8)
    if single:
        units = _one_point_each(side)
        store.files.put_latest("plan.json", canonical({"units": to_json(units)}).encode())
        store = Store(path, store.sweep)
    slots = machine.slots(("cpu",))  # where the bare computation is done as well
    began = time.time()
    exits = list(engine.run(store, lambda store: LocalCrew(store.path, slots)))
    commits = [event["time"] for event in read_events(path) if event["event"] == "committed"]
    started = time.perf_counter()
    for exit in exits[1:]:
        experiment.run(store.points(exit.order.unit), seed=seed)
    bare = time.perf_counter() - started
    count = len(commits) - 1
    return Turn(count, commits[0] - began, (commits[-1] - commits[0]) / count, bare / count)


def _one_point_each(side: int) -> list[Unit]:
    """A plan of units of one point, each on its level of the lattice."""
    units = []
    for row in range(side):
        for col in range(side):
            level = next(n for n in reversed(range(LEVELS)) if row % 2**n == col % 2**n == 0)
            units.append(Unit(level, (row, row + 1), (col, col + 1)))
    return sorted(units, key=lambda unit: -unit.level)
