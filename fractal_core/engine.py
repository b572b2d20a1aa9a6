"""Runs the missing units of a run folder."""

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fractal_core import machine
from fractal_core.errors import Refused
from fractal_core.store import Store, lock_holder
from fractal_core.sweep import Unit


@dataclass(frozen=True)
class Exit:
    """What became of a unit.

    Args:
        unit: Which.
        points: Points that it holds.
        seconds: Wall time of their training.
        committed: False if another process had stored it first.
    """

    unit: Unit
    points: int
    seconds: float
    committed: bool


def run_here(store: Store) -> Iterator[Exit]:
    """Train the missing units in this process, coarse level first, storing each as it ends.

    Stop anywhere, even with SIGKILL: what was yielded is on the disk, and the next call goes on
    behind it.

    Raises:
        Refused: Another process works on this run.
    """
    with store.lock():
        units = store.missing()
        provenance = machine.describe()
        store.event("started", missing=len(units))
        for unit in units:
            started = time.perf_counter()
            points = store.points(unit)
            outcomes = store.sweep.experiment.run(points, seed=store.sweep.seed)
            seconds = time.perf_counter() - started
            committed = store.commit(unit, outcomes, {"seconds": seconds, **provenance})
            store.event("committed", unit=unit.key, points=len(points), seconds=seconds)
            yield Exit(unit, len(points), seconds, committed)
        store.event("finished")


def start_detached(path: Path, patience: float = 60.0) -> int:
    """Start `fractal run` on a folder as a process of its own session; returns its id.

    It outlives the terminal, the notebook kernel and the browser. Its output goes to
    `state/log.txt`.

    Raises:
        Refused: It ended at once without having worked; the sentence carries its last line.
    """
    log = path / "state" / "log.txt"
    log.parent.mkdir(exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "fractal_core", "run", str(path)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + patience
    while process.poll() is None and time.monotonic() < deadline:
        if lock_holder(path) == process.pid:
            return process.pid
        time.sleep(0.05)
    if process.poll() not in (None, 0):
        last = log.read_text(errors="replace").strip().splitlines()
        raise Refused(last[-1] if last else f"the run ended with code {process.returncode}")
    return process.pid


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Args:
        run: Its folder.
        id: Content id of its sweep.
        points: Points in all, and `done` of them.
        units: Units in all, `units_missing` of them not committed.
        failed: Units whose last attempt failed.
        process: The process that works on it, or None.
    """

    run: str
    id: str
    points: int
    done: int
    units: int
    units_missing: int
    failed: int
    process: int | None


def progress(store: Store) -> Progress:
    """Read from the disk how far a run is."""
    missing = store.missing()
    lacking = sum(len(unit.cells()[0]) for unit in missing)
    rows, cols = store.sweep.grid.shape
    return Progress(
        run=str(store.path),
        id=store.sweep.id,
        points=rows * cols,
        done=rows * cols - lacking,
        units=len(store.units),
        units_missing=len(missing),
        failed=len(store.files.list("failures")),
        process=lock_holder(store.path),
    )
