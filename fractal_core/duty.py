"""Who works on a run folder, and what they say of it while they do.

A lock is the kernel's: it is free at the instant its holder dies, whatever clock or crash. One
process at a time works on a folder, or one for each share where several machines divide it.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import psutil

from fractal_core.errors import Refused
from fractal_core.files import DISK_TROUBLE, Files, read_lines

U = TypeVar("U")

log = logging.getLogger(__name__)


class _Detached(subprocess.Popen):
    def __del__(self, *_: object) -> None:
        """That it is running still is meant, so there is no warning of it."""


_detached: list[_Detached] = []


def detach(arguments: Sequence[str], log: Path) -> subprocess.Popen:
    """Begin Python with these arguments in a session of its own; `log` gets all that it says.

    It outlives this process, and so the terminal, the notebook's kernel and the browser.
    """
    _detached[:] = [process for process in _detached if process.poll() is None]  # reaps the ended
    with log.open("ab") as output:
        process = _Detached(
            [sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _detached.append(process)
    return process


@dataclass(frozen=True)
class Share:
    """The part of a plan that one of several machines takes: every `count`-th unit.

    Args:
        index: Which of them, from 1.
        count: How many there are.
    """

    index: int = 1
    count: int = 1

    def __post_init__(self):
        if not 1 <= self.index <= self.count:
            raise Refused(
                f"shard {self.index}/{self.count}; write I/N with I from 1 to N, for example 1/2"
            )

    @classmethod
    def parse(cls, text: str) -> "Share":
        """The share that I/N means."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if not match:
            raise Refused(f"shard {text}; write I/N, for example 1/2")
        return cls(int(match[1]), int(match[2]))

    @property
    def suffix(self) -> str:
        """What the names of its files in `state/` end with; each has one writer."""
        return "" if self.count == 1 else f"-{self.index}-of-{self.count}"

    def of(self, units: Sequence[U]) -> list[U]:
        """Its units among all of a plan; coarse and fine ones alike."""
        return list(units[self.index - 1 :: self.count])


WHOLE = Share()


class Busy(Refused):
    """Another process works on the folder."""


class Journal:
    """What the process on duty tells: events for ever, its status for now.

    A disk that is full must not end a run that may still finish what it has in hand, so trouble
    with writing here is said once and otherwise borne.
    """

    def __init__(self, path: Path, share: Share):
        self.files = Files(path)
        self.path = path / "state"
        self.share = share
        self._said = False
        events = self._name("events", "jsonl")
        with self.borne(), events.open("a+b") as file:
            if file.tell() and _last_byte(file) != b"\n":
                file.write(b"\n")  # a crash tore the last line; ours must not go on in it

    def event(self, what: str, **details: Any) -> None:
        """Append a line to `state/events.jsonl`, in one write."""
        line = json.dumps({"time": time.time(), "event": what, **details}) + "\n"
        with self.borne(), self._name("events", "jsonl").open("ab", buffering=0) as file:
            file.write(line.encode())

    def status(self, **details: Any) -> None:
        """Replace `state/status.json`."""
        with self.borne():
            name = f"state/{self._name('status', 'json').name}"
            self.files.put_latest(name, json.dumps(details).encode())

    def _name(self, stem: str, ending: str) -> Path:
        return self.path / f"{stem}{self.share.suffix}.{ending}"

    @contextlib.contextmanager
    def borne(self) -> Iterator[None]:
        """Bear trouble with the disk inside, and say so the first time."""
        try:
            yield
        except OSError as error:
            if error.errno not in DISK_TROUBLE:
                raise
            if not self._said:
                self._said = True
                log.warning("%s: %s", self.path, error.strerror)


def _last_byte(file: IO[bytes]) -> bytes:
    file.seek(-1, os.SEEK_END)
    return file.read(1)


def read_events(path: Path, share: Share = WHOLE) -> list[dict[str, Any]]:
    """The events of a run folder so far; a last line that is not finished is left out."""
    return read_lines(path / "state" / f"events{share.suffix}.jsonl")


@contextlib.contextmanager
def lock(path: Path, share: Share = WHOLE) -> Iterator[Journal]:
    """Be the one process that works on a folder, or on a share of it.

    Raises:
        Busy: Another process does.
        Refused: Another process divides the folder in another way.
    """
    state = path / "state"
    state.mkdir(exist_ok=True)
    _require_alike(path, share)
    with (state / f"lock{share.suffix}").open("a+") as handle:
        # Those who only look hold it for an instant, so insist; a worker is not waited for.
        if not _acquire(handle, fcntl.LOCK_EX, patience=1.0, unless=_holder):
            raise Busy(
                f"{path} is already being run by process {_holder(handle) or 'elsewhere'}; "
                f"watch it with `fractal status {path}`"
            )
        try:
            _require_alike(path, share)  # again, for two may have begun at one time
            created = psutil.Process().create_time()
            handle.truncate(0)
            handle.write(json.dumps({"pid": os.getpid(), "created": created}))
            handle.flush()
            if share == WHOLE:  # or the drafts may be another machine's
                Files(path).sweep_drafts("units", "failures", "state")
            yield Journal(path, share)
        finally:
            handle.truncate(0)


def _require_alike(path: Path, share: Share) -> None:
    for suffix, holder in holders(path).items():
        if suffix != share.suffix and not suffix.endswith(f"-of-{share.count}"):
            raise Refused(
                f"{path} is being run by process {holder or 'elsewhere'} as "
                f"{'share' + suffix if suffix else 'a whole'}; stop that, or divide the run alike"
            )


def holders(path: Path) -> dict[str, int]:
    """The processes that work on a run folder now, by the suffix of their share.

    0 stands for one that cannot be named: on another machine, or not far enough to say who it is.
    """
    found = {}
    for file in sorted((path / "state").glob("lock*")):
        try:
            handle = file.open()
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            continue
        with handle:
            # Shared, so that those who only look do not take each other for the worker.
            if not _acquire(handle, fcntl.LOCK_SH, patience=0.0):
                found[file.name.removeprefix("lock")] = _holder(handle)
    return found


def lock_holder(path: Path) -> int | None:
    """The process that works on a run folder now, or None; 0 for one that cannot be named."""
    return next(iter(holders(path).values()), None)


def _holder(handle: IO[str]) -> int:
    """The process that a lock file names, if that very process is alive, else 0."""
    handle.seek(0)
    try:
        noted = json.loads(handle.read())
        alive = psutil.Process(noted["pid"]).create_time() == noted["created"]
    except (ValueError, KeyError, TypeError, psutil.Error):
        return 0
    return noted["pid"] if alive else 0


def _acquire(
    handle: IO[str],
    kind: int,
    patience: float,
    unless: Callable[[IO[str]], int] = lambda _: 0,
) -> bool:
    """Take the lock of an open file, within `patience` seconds `unless` there is no hope."""
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if unless(handle) or time.monotonic() >= deadline:
                return False
            time.sleep(0.05)
