"""Long commands in the background of a folder: begun from a notebook, watched, asked to stop.

A process of its own session holds the folder's lock while it works, so that two who begin the same
begin it once, and `state/errand.json` says what was begun and how it ended. It outlives the
notebook, its kernel and the browser.
"""

import contextlib
import html
import json
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fractal_core import duty, redact
from fractal_core.errors import Refused
from fractal_core.files import Files, read_json

NOTE, LOG = "state/errand.json", "state/log.txt"
PATIENCE = 60.0
"""Seconds to wait for a process to begin."""

LAST_WORDS = 30.0
"""Seconds to wait for the log to be whole."""

STOPPED = 130
"""The code of a command that was asked to stop and put its things in order."""


@dataclass(frozen=True)
class Errand:
    """What was last begun in a folder.

    Args:
        command: The module, and its arguments.
        process: Who works on it now, or None.
        code: Its exit code; None while it works, or if it was killed.
        log: What it said.
        stopping: Whether it was asked to stop.
    """

    command: tuple[str, ...]
    process: int | None
    code: int | None
    log: str
    stopping: bool

    @property
    def state(self) -> str:
        """running, stopping, done, stopped or failed."""
        if self.process is not None:
            return "stopping" if self.stopping else "running"
        if self.code == 0:
            return "done"
        return "stopped" if self.stopping or self.code == STOPPED else "failed"

    def tail(self, lines: int = 40) -> str:
        """The end of the log; of a line that was written over, what stood there last."""
        kept = self.log.strip("\n").split("\n")[-lines:]
        return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in kept)

    def page(self, lines: int = 40) -> str:
        """The same as HTML."""
        return (
            "<pre data-testid='log' style='white-space:pre-wrap;font-size:.8em'>"
            f"{html.escape(self.tail(lines))}</pre>"
        )


def start(folder: Path, command: Sequence[str]) -> int:
    """Have a process of its own run `python -m` a command for a folder; returns its id.

    Args:
        folder: Whose lock it holds; made if need be.
        command: A module and its arguments.

    Raises:
        Refused: The folder cannot be made; or it ended at once, and the sentence carries its last
            line.
    """
    if (holder := duty.lock_holder(folder)) is not None:
        return holder
    try:
        (folder / "state").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(
            f"{folder} is no folder to work in: {error.strerror}; choose another one"
        ) from None
    process = duty.detach(["-m", "fractal_core.errands", str(folder), *command], folder / LOG)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        at_work = duty.lock_holder(folder), process.pid
        if (worker := _noted(folder)) is not None and worker in at_work:
            return worker
        if process.poll() is not None:
            break
        time.sleep(0.02)
    if _noted(folder) == process.pid:  # it worked, and has ended
        return process.pid
    if holder := duty.lock_holder(folder):  # another one was quicker
        return holder
    if process.poll():
        words = (folder / LOG).read_text(errors="replace").strip().splitlines()[-1:]
        raise Refused("".join(words) or "the process ended at once")
    return process.pid


def _noted(folder: Path) -> int | None:
    """The process that was last begun in a folder."""
    return read_json(folder / NOTE, {}).get("process")


def last(folder: Path) -> Errand | None:
    """What was last begun in a folder, or None."""
    note = read_json(folder / NOTE, {})
    try:
        with (folder / LOG).open("rb") as log:
            log.seek(note["from"])
            said = log.read().decode(errors="replace")
    except (OSError, KeyError):
        return None
    process = duty.lock_holder(folder)
    asked = (folder / "state" / "STOP").exists()
    return Errand(tuple(note["command"]), process, note["code"], said, asked)


def ask_to_stop(folder: Path) -> bool:
    """Ask whoever works on a folder to stop, and do not wait; True if there was anybody.

    Asked again it stops at once, and what it had in hand may be lost.

    Raises:
        Refused: It is on another machine.
    """
    holder = duty.lock_holder(folder)
    if holder is None:
        return False
    if not holder:
        raise Refused(f"{folder} is being worked on elsewhere; stop it on that machine")
    (folder / "state" / "STOP").touch()
    with contextlib.suppress(ProcessLookupError):
        os.kill(holder, signal.SIGTERM)
    return True


def perform(folder: Path, command: Sequence[str]) -> int:
    """Run a command here, under the lock of a folder; its exit code.

    Raises:
        Refused: Another process works on the folder.
    """
    files = Files(folder)
    with duty.lock(folder):
        (folder / "state" / "STOP").unlink(missing_ok=True)
        note = {
            "command": list(command),
            "process": os.getpid(),
            "from": (folder / LOG).stat().st_size,
            "code": None,
        }
        files.put_latest(NOTE, json.dumps(note).encode())
        with _logged(folder / LOG):
            code = _run(command)
        files.put_latest(NOTE, json.dumps(note | {"code": code}).encode())
    return code


def _run(command: Sequence[str]) -> int:
    """Run `python -m` a command in this process; its exit code."""
    sys.argv = list(command)
    try:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        return STOPPED
    except Exception:  # noqa: BLE001 - whatever it was is the last thing in the log
        traceback.print_exc()
        return 1
    return 0


@contextlib.contextmanager
def _logged(log: Path) -> Iterator[None]:
    """What this process and its children say goes into a log without secrets, whole at the end."""
    kept, (reading, writing) = [os.dup(stream) for stream in (1, 2)], os.pipe()
    # A process, since no copy of one with a thread is safe, and commands fork workers.
    filter_command = [sys.executable, "-I", redact.__file__, str(log)]
    writer = subprocess.Popen(filter_command, stdin=reading, start_new_session=True)
    for stream in (1, 2):
        os.dup2(writing, stream)
    os.close(reading)
    os.close(writing)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, before in zip((1, 2), kept, strict=True):
            os.dup2(before, stream)
            os.close(before)
        with contextlib.suppress(subprocess.TimeoutExpired):  # a child that is left may hold on
            writer.wait(LAST_WORDS)


if __name__ == "__main__":
    try:
        sys.exit(perform(Path(sys.argv[1]), sys.argv[2:]))
    except Refused as refusal:
        sys.exit(f"fractal: {refusal}")
