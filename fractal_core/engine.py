"""Runs the missing units of a run folder, here or in a process of its own."""

import contextlib
import os
import signal
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from fractal_core import machine, warm
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
            try:
                outcomes = store.sweep.experiment.run(points, seed=store.sweep.seed)
            except Exception as error:
                # Nothing is swallowed: the note is for `fractal status`, the error goes on up.
                store.fail(unit, repr(error), text=traceback.format_exc())
                raise
            seconds = time.perf_counter() - started
            committed = store.commit(unit, outcomes, {"seconds": seconds, **provenance})
            store.event("committed", unit=unit.key, points=len(points), seconds=seconds)
            yield Exit(unit, len(points), seconds, committed)
        store.event("finished")


def start_detached(path: Path, patience: float = 60.0) -> int:
    """Have a process of its own session work on a folder; returns its id.

    It outlives the terminal, the notebook kernel and the browser. Its output goes to
    `state/log.txt`. A folder that a process works on already keeps that one, so starting twice
    is starting once.

    Raises:
        Refused: It ended at once without having worked; the sentence carries its last line.
    """
    if (holder := lock_holder(path)) is not None:
        return holder
    log = path / "state" / "log.txt"
    said = log.stat().st_size if log.exists() else 0
    pid = warm.start(path)
    born = _birth(pid)
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if holder := lock_holder(path):
            if holder != pid:
                # Another start came first. Ours must not take over once that one is stopped.
                _dismiss(pid, born)
            return holder
        if _ended(pid):
            break
        time.sleep(0.02)
    last = log.read_bytes()[said:].decode(errors="replace").strip().splitlines()[-1:]
    if (holder := lock_holder(path)) is None and _ended(pid) and "complete" not in "".join(last):
        raise Refused("".join(last).removeprefix("fractal: ") or "the process ended at once")
    return holder or pid


def _birth(pid: int) -> float | None:
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None


def _dismiss(pid: int, born: float | None) -> None:
    """End the process that was born then, and none that got its number later."""
    if born is not None and _birth(pid) == born:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def stop(path: Path, patience: float = 10.0) -> bool:
    """End the process that works on a folder; True if there was one.

    What it had in hand is lost, what it had finished is not. It is asked first and killed after
    `patience` seconds.

    Raises:
        Refused: That process is on another machine.
    """
    holder = lock_holder(path)
    if holder is None:
        return False
    if not holder:
        raise Refused(f"{path} is being run elsewhere; stop it on the machine that runs it")
    for how in (signal.SIGTERM, signal.SIGKILL):
        # Only the process that holds this folder's lock is ever signalled, and never its group:
        # it may be a child of a terminal that has other things to do.
        with contextlib.suppress(ProcessLookupError):
            os.kill(holder, how)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if lock_holder(path) != holder:
                return True
            time.sleep(0.02)
    return False


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Args:
        run: Its folder.
        id: Content id of its sweep.
        points: Points in all, and `done` of them.
        units: Units in all, `units_missing` of them not committed.
        failed: Units whose last attempt failed.
        process: The process that works on it, or None; 0 for one on another machine.
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
