"""Measurements that train, in processes of their own: begun from a notebook, watched and stopped.

They are the commands `pairs` and `seeing`, at work on a run folder. What they train they train
under the lock of the folder, like anybody; beside it they hold `state/measuring` from their first
moment to their last, which says that they are there also while they only calculate.
"""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import psutil

from fractal_core.errors import Refused

Command = Literal["pairs", "seeing"]

NOTE, LOG = "state/measuring", "state/measuring.txt"
DONE = "runs trained"
"""How the last line of a measurement that came to its end ends."""

_begun: list[subprocess.Popen] = []


@dataclass(frozen=True)
class Measurement:
    """The last measurement of a run folder.

    Args:
        command: Which.
        process: Who works on it; None once it has ended.
        said: The last line that it said.
    """

    command: str
    process: int | None
    said: str

    @property
    def trouble(self) -> str:
        """Why it ended before it was done; empty if it did not."""
        if self.process is not None or self.said.endswith(DONE):
            return ""
        if self.said.startswith("fractal: "):
            return self.said.removeprefix("fractal: ")
        return f"{self.command} ended before it was done; what it trained is kept, begin it again"

    def __str__(self) -> str:
        """One line for a person."""
        if self.process is not None:
            return f"{self.command} is being measured: {self.said or 'it begins'}"
        return self.trouble or f"{self.command} is measured: {self.said}"


def begin(path: Path, command: Command, options: Sequence[str] = ()) -> int:
    """Have a process of its own session measure a run; returns its id.

    It outlives the notebook, its kernel and the browser. A folder that is being measured keeps the
    process that does so; beginning twice is beginning once.

    Args:
        options: Of `fractal pairs` or `fractal seeing`.
    """
    (path / "state").mkdir(exist_ok=True)
    _begun[:] = [process for process in _begun if process.poll() is None]  # reaps what has ended
    with (path / NOTE).open("a+") as note, (path / LOG).open("ab") as log:
        if not _locked(note, fcntl.LOCK_EX):
            return _process(note) or 0
        log.truncate(0)
        # The child inherits the open file and its lock with it, which is free when the child ends.
        process = subprocess.Popen(
            [sys.executable, "-m", "fractal_core", command, str(path), *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(note.fileno(),),
        )
        _begun.append(process)
        created = psutil.Process(process.pid).create_time()
        note.truncate(0)
        note.write(json.dumps({"command": command, "pid": process.pid, "created": created}))
    return process.pid


def last(path: Path) -> Measurement | None:
    """The measurement that was last begun on a run folder, or None."""
    try:
        with (path / NOTE).open() as note:
            process = None if _locked(note, fcntl.LOCK_SH) else _process(note) or 0
            note.seek(0)
            command = json.load(note)["command"]
        lines = (path / LOG).read_bytes().decode(errors="replace").strip().splitlines()
    except (OSError, ValueError, KeyError):
        return None
    return Measurement(command, process, (lines or [""])[-1])


def stop(path: Path, patience: float = 5.0) -> bool:
    """End the measurement of a run folder; what it has trained stays. True if there was one.

    Raises:
        Refused: It is measured on another machine.
    """
    found = last(path)
    if found is None or found.process is None:
        return False
    if not found.process:
        raise Refused(f"{path} is being measured elsewhere; stop it on the machine that does so")
    for how in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(found.process, how)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            now = last(path)
            if now is None or now.process != found.process:
                return True
            time.sleep(0.02)
    return False


def _locked(note: IO[str], kind: int) -> bool:
    """Whether the lock of an open note could be taken."""
    try:
        fcntl.flock(note, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _process(note: IO[str]) -> int | None:
    """The process that a note names, if that very one is alive."""
    note.seek(0)
    try:
        told = json.loads(note.read())
        alive = psutil.Process(told["pid"]).create_time() == told["created"]
    except (ValueError, KeyError, TypeError, psutil.Error):
        return None
    return told["pid"] if alive else None
