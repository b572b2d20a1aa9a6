"""Waiting for other processes: for as long as a busy machine takes, and no longer.

Who lets go of a lock, or writes its last line, has not ended yet; what follows from a process's end
is waited for, never looked at once.
"""

import subprocess
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

import psutil


class Begun(Protocol):
    @property
    def process(self) -> int | None: ...


Found = TypeVar("Found")
Work = TypeVar("Work", bound=Begun)

DEADLINE = 120.0
"""Seconds that a busy machine may take for anything."""


class Program(subprocess.Popen[str]):
    """A program; a test that fails ends it, and does not wait for what it would have told it."""

    def __exit__(self, kind, value, traceback) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, value, traceback)


def until(condition: Callable[[], Found], what: str, deadline: float = DEADLINE) -> Found:
    """Wait for something, and return what the condition found."""
    end = time.monotonic() + deadline
    while not (found := condition()):
        assert time.monotonic() < end, f"never came: {what}"
        time.sleep(0.01)
    return found


def alive(pid: int) -> bool:
    """Not ended; one whose parent has not asked yet what became of it has ended, too."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def ended(last: Callable[[], Work | None]) -> Work:
    """Wait until nobody works on what was last begun, and return what is said of it."""

    def over() -> Work | None:
        return found if (found := last()) is not None and found.process is None else None

    return until(over, "the end of what was begun")


def until_gone(pid: int) -> None:
    """Wait for the end of a process."""
    until(lambda: not alive(pid), f"the end of process {pid}")
