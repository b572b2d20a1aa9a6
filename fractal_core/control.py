"""Start, stop and watch a run from outside: from a notebook, another terminal, a script."""

import collections
import contextlib
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from fractal_core import warm
from fractal_core.agenda import fingerprint
from fractal_core.duty import holders, lock_holder
from fractal_core.errors import Refused
from fractal_core.files import read_json
from fractal_core.store import Store


def start_detached(
    path: Path, options: Sequence[str] = (), patience: float = 60.0, command: str = "run"
) -> int:
    """Have a process of its own session work on a folder; returns its id.

    It outlives the terminal, the notebook kernel and the browser. Its output goes to
    `state/log.txt`. A folder that a process works on already keeps that one, so starting twice
    is starting once.

    Args:
        path: The run folder.
        options: Of the command.
        patience: Seconds to wait for it to begin.
        command: Which it is to run; one that takes the lock of the folder.

    Raises:
        Refused: It ended at once without having worked; the sentence carries its last line.
    """
    if (holder := lock_holder(path)) is not None:
        return holder
    log = path / "state" / "log.txt"
    said = log.stat().st_size if log.exists() else 0
    pid = warm.start(path, options, command)
    born = _birth(pid)
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if holder := lock_holder(path):
            if holder != pid:
                # Another start came first. Ours must not take over once that one is stopped.
                _dismiss(pid, born)
            return holder
        if _ended(pid, born):
            break
        time.sleep(0.02)
    last = log.read_bytes()[said:].decode(errors="replace").strip().splitlines()[-1:]
    if (
        (holder := lock_holder(path)) is None
        and _ended(pid, born)
        and "complete" not in "".join(last)
    ):
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


def _ended(pid: int, born: float | None) -> bool:
    """Whether the process that was born then has ended, whoever may have its number now."""
    try:
        process = psutil.Process(pid)
        return process.create_time() != born or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def ask_to_stop(path: Path) -> bool:
    """Ask the processes that work on a folder to end, and do not wait; True if there were any.

    Asked once they finish what they have in hand, asked again they end at once.

    Raises:
        Refused: One of them is on another machine.
    """
    found = holders(path)
    _require_here(path, found)
    for holder in found.values():
        with contextlib.suppress(ProcessLookupError):
            os.kill(holder, signal.SIGTERM)
    return bool(found)


def _require_here(path: Path, found: dict[str, int]) -> None:
    if not all(found.values()):
        raise Refused(f"{path} is being run elsewhere; stop it on the machine that runs it")


def stop(path: Path, patience: float = 20.0) -> bool:
    """End the processes that work on a folder; True if there were any.

    They are asked first, and finish what they have in hand. After `patience` seconds they are
    told to end now, and at last killed; then what they had in hand is lost. What was finished
    never is.

    Raises:
        Refused: One of them is on another machine.
    """
    found = holders(path)
    _require_here(path, found)
    for how, wait in (
        (signal.SIGTERM, patience),
        (signal.SIGTERM, 15.0),
        (signal.SIGKILL, 5.0),
    ):
        for suffix, holder in holders(path).items():
            # Only a process that holds this folder's lock is ever signalled, and never its group:
            # it may be a child of a terminal that has other things to do.
            if found.get(suffix) == holder:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(holder, how)
        deadline = time.monotonic() + wait
        while time.monotonic() < deadline:
            now = holders(path)
            # One that is about to let go of its lock has no name any more.
            if not any(now.get(suffix) in (holder, 0) for suffix, holder in found.items()):
                return bool(found)
            time.sleep(0.02)
    return False


STATUS = {"process", "points_per_second", "seconds_remaining", "stopping", "slots"}
"""What is read of what a process on duty tells."""


@dataclass(frozen=True)
class Failure:
    """Units that failed for one cause.

    Args:
        cause: In the words of the most common one.
        units: Their names.
        exit_code: Of the last of them.
        log: The end of what its worker said.
    """

    cause: str
    units: tuple[str, ...]
    exit_code: int | None
    log: str


def failures(store: Store) -> tuple[Failure, ...]:
    """What failed, by cause, numbers in it aside; the largest group first."""
    groups: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for unit, note in store.failures().items():
        groups.setdefault(fingerprint(note["cause"]), []).append((unit, note))
    found = []
    for group in groups.values():
        last = max((note for _, note in group), key=lambda note: note.get("time", 0.0))
        causes = collections.Counter(note["cause"] for _, note in group)
        found.append(
            Failure(
                cause=causes.most_common(1)[0][0],
                units=tuple(sorted(unit for unit, _ in group)),
                exit_code=last.get("exit_code"),
                log=last.get("log", ""),
            )
        )
    return tuple(sorted(found, key=lambda failure: -len(failure.units)))


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Args:
        run: Its folder.
        id: Content id of its sweep.
        points: Points in all, and `done` of them.
        units: Units in all, `units_missing` of them not committed.
        failed: Units whose last attempt failed,
        causes: and how many for each cause.
        process: The process that works on it, or None; 0 for one on another machine.
        points_per_second: Since that process began; None if there is none.
        seconds_remaining: Estimated from the finished neighbours of what is missing, or None.
        stopping: Whether it was asked to end.
        slots: What each slot of that process does.
    """

    run: str
    id: str
    points: int
    done: int
    units: int
    units_missing: int
    failed: int
    process: int | None
    causes: dict[str, int] = field(default_factory=dict)
    points_per_second: float | None = None
    seconds_remaining: float | None = None
    stopping: bool = False
    slots: list[dict[str, Any]] = field(default_factory=list)

    @property
    def state(self) -> str:
        """running, stopping, complete, stopped before that, or gone: its folder is."""
        if self.process is not None:
            return "stopping" if self.stopping else "running"
        if not Path(self.run).exists():
            return "gone"
        return "stopped" if self.units_missing else "complete"


def progress(store: Store) -> Progress:
    """Read from the disk how far a run is."""
    working = holders(store.path)  # asked first: one that ends meanwhile leaves its units before
    missing = store.missing()
    lacking = sum(unit.size for unit in missing)
    failed = failures(store)
    rows, cols = store.sweep.grid.shape
    live = [
        told
        for suffix, holder in working.items()
        if (told := _told(store.path, suffix)) and holder in (0, told["process"])
    ]
    rates = [told["points_per_second"] for told in live]
    waits = [told["seconds_remaining"] for told in live if told["seconds_remaining"] is not None]
    return Progress(
        run=str(store.path),
        id=store.sweep.id,
        points=rows * cols,
        done=rows * cols - lacking,
        units=len(store.units),
        units_missing=len(missing),
        failed=sum(len(failure.units) for failure in failed),
        process=next(iter(working.values()), None),
        causes={failure.cause: len(failure.units) for failure in failed},
        points_per_second=sum(rates) if rates else None,
        seconds_remaining=max(waits, default=None),
        stopping=any(told["stopping"] for told in live),
        slots=[slot for told in live for slot in told["slots"]],
    )


def _told(path: Path, suffix: str) -> dict[str, Any] | None:
    """What the process on duty last told; None if it has not told anything readable yet."""
    told = read_json(path / "state" / f"status{suffix}.json", {})  # it tells again in a second
    return told if told.keys() >= STATUS else None
