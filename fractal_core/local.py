"""Workers on this machine: one process per slot, watched, replaced, and never left behind."""

import collections
import contextlib
import json
import os
import selectors
import signal
import statistics
import subprocess
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from fractal_core import machine, worker
from fractal_core.agenda import Exit, Order
from fractal_core.machine import Slot
from fractal_core.redact import CappedLog

MARK = "FRACTAL_WORKER"
"""In the environment of a worker and of all that it starts, so that none of them can hide."""


@dataclass(frozen=True)
class Patience:
    """How long a worker is waited for, in seconds.

    Args:
        starting: To its first word; and of the first workers of a run, to their first progress.
        silence: Without a beat: the process is stopped, or its machine has gone.
        stuck: Alive but without progress, at the least;
        factor: or this many times what usually passes between two signs of progress.
        grace: Between asking it to leave and ending it.
    """

    starting: float = 900.0
    silence: float = 60.0
    stuck: float = 300.0
    factor: float = 10.0
    grace: float = 15.0


def clean_environment(slot: Slot, mark: str) -> dict[str, str]:
    """What a worker inherits: an allow-list, so that no key or token is in what it may print."""
    return machine.inherited() | slot.environment | {MARK: mark, "PYTHONUNBUFFERED": "1"}


Gaps = collections.deque[float]


class _Fork:
    """A child that was forked, with the manners of `subprocess.Popen` that are needed here."""

    def __init__(self, pid: int):
        self.pid, self.returncode = pid, None

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("worker", timeout)
            time.sleep(0.005)
        return code


def _fork(path: Path, environment: dict[str, str], orders: int, answers: int, log: int) -> _Fork:
    """Begin a worker as a copy of this process, which has loaded everything already."""
    pid = os.fork()
    if pid:
        return _Fork(pid)
    code = worker.WRONG
    try:
        os.setsid()
        # Numbers above those of pipes in use, so that no copy falls on another's place.
        copies = [os.dup(fd) for fd in (orders, answers, log)]
        for copy, place in zip([copies[2], copies[2], *copies[:2]], range(1, 5), strict=True):
            os.dup2(copy, place)
        os.closerange(5, 2**16)  # the lock of the run among them
        worker.shut_stdin()
        os.environ.clear()
        os.environ.update(environment)
        code = worker.serve(path, 3, 4)
    except BaseException:  # noqa: BLE001 - a copy must end here and not go on as its parent
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


class Worker:
    """A worker process of this machine, seen from its supervisor.

    Args:
        path: The run folder.
        slot: Where it works.
        log: What it says is written there.
        gaps: Seconds between signs of progress, of all workers of a run.
        fork: Copy this process instead of beginning a new one.
    """

    def __init__(self, path: Path, slot: Slot, log: CappedLog, gaps: Gaps, fork: bool):
        self.log, self.mark = log, uuid.uuid4().hex
        self._answers = b""
        self._heard = self._moved = time.monotonic()
        self._ticks, self._gaps = None, gaps
        environment = clean_environment(slot, self.mark)
        command = [sys.executable, "-m", "fractal_core.worker", str(path.resolve())]
        command += ["--slot", str(slot.index)]
        theirs_in, self._orders = os.pipe()
        answers, theirs_out = os.pipe()
        said, theirs_err = os.pipe()
        try:
            if fork:
                self.process = _fork(path, environment, theirs_in, theirs_out, theirs_err)
            else:
                self.process = subprocess.Popen(
                    command,
                    stdin=theirs_in,
                    stdout=theirs_out,
                    stderr=theirs_err,
                    env=environment,
                    start_new_session=True,
                )
        finally:
            for fd in (theirs_in, theirs_out, theirs_err):
                os.close(fd)
        self._known = psutil.Process(self.process.pid)
        self._pipes = {f"pipe:[{os.fstat(fd).st_ino}]" for fd in (answers, said)}
        self._selector = selectors.DefaultSelector()
        for fd in (answers, said):
            os.set_blocking(fd, False)
            self._selector.register(fd, selectors.EVENT_READ, "answer" if fd == answers else "log")

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def do(self, order: Order, patience: Patience) -> Exit:
        """Have a unit done, however it ends."""
        message = {"unit": order.unit.key, "launch": order.launch, "attempt": order.attempt}
        self._heard = self._moved = time.monotonic()
        with contextlib.suppress(BrokenPipeError):
            line = json.dumps(message).encode() + b"\n"
            os.write(self._orders, line)
        while True:
            # Asked before listening, so that its last words are heard. The end of its pipes would
            # not tell: whatever it started may hold them open.
            gone = self.process.poll() is not None
            for answer in self._listen(0.0 if gone else 1.0):
                if "error" in answer:
                    return self._ended(order, answer["error"], answer["code"])
                if answer.get("unit") == order.unit.key:
                    return Exit(order, worker.DONE, answer["seconds"], answer["committed"])
            if gone or not self._selector.get_map():
                return self._ended(order)
            if trouble := self._trouble(patience):
                self.end(patience.grace)
                # It may have finished while it was asked to leave; the disk knows.
                return Exit(order, -signal.SIGKILL, cause=trouble, log=self.log.end)

    def _listen(self, seconds: float = 1.0) -> list[dict[str, Any]]:
        """What it answers within so long; what it prints goes to the log meanwhile."""
        answers = []
        for key, _ in self._selector.select(seconds):
            data = os.read(key.fd, 2**16)
            if not data:
                self._selector.unregister(key.fd)
                os.close(key.fd)
            elif key.data == "log":
                self.log.write(data)
            else:
                *lines, self._answers = (self._answers + data).split(b"\n")
                answers += [json.loads(line) for line in lines]
        for answer in answers:
            self._heard = time.monotonic()
            if (ticks := answer.get("ticks", self._ticks)) != self._ticks:
                if self._ticks is not None:
                    self._gaps.append(self._heard - self._moved)
                self._ticks, self._moved = ticks, self._heard
        return answers

    def _trouble(self, patience: Patience) -> str:
        now = time.monotonic()
        if now - self._heard > patience.silence and self._ticks is not None:
            return f"gave no sign of life for {patience.silence:.0f} s"
        limit = patience.starting
        # One that has said nothing yet is being started, however quick the others were.
        if self._gaps and self._ticks is not None:
            limit = max(patience.stuck, patience.factor * statistics.median(self._gaps))
        if now - self._moved > limit:
            return f"hung: no progress for {limit:.0f} s"
        return ""

    def _ended(self, order: Order, error: str = "", said: int | None = None) -> Exit:
        """It is gone, or going: with what words and what code."""
        code = self.end(5.0)
        if said is not None:
            code = said  # the end of its orders may have ended it before it could exit with that
        if code == worker.DONE:
            code, error = 1, "ended without a result"
        elif code == worker.MEMORY:
            size = min(order.points, order.launch or order.points)
            error = f"out of memory with {size} points at a time"
        elif code < 0 and not error:
            name = signal.Signals(-code).name if -code in list(signal.Signals) else str(-code)
            error = f"killed by {name}"
        return Exit(order, code, cause=error or f"ended with exit code {code}", log=self.log.end)

    def ask(self) -> None:
        """Ask it to leave when it has finished what it has in hand."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._known.terminate()  # only if it still is that very process

    def kill(self) -> None:
        """End it at once, with what it started; safe while another thread waits for it."""
        for process in (*self._offspring(), self._known):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def end(self, grace: float) -> int:
        """See it gone with all that it started, within `grace` seconds or by force.

        Returns:
            Its exit code, negative for a signal.
        """
        if self._orders >= 0:
            os.close(self._orders)
            self._orders = -1
        started = self._offspring()
        code = self.process.poll()
        if code is None and grace:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._wait(grace)
        if code is None:
            started |= self._offspring()
            with contextlib.suppress(psutil.NoSuchProcess):
                self._known.kill()
            code = self.process.wait(timeout=30)
        started |= strays(self.mark, self._pipes)
        for process in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(list(started), timeout=5)
        self._finish_log()
        return code

    def _wait(self, grace: float) -> int:
        """Wait for its end while what it prints is taken in, or it would wait for us."""
        deadline = time.monotonic() + grace
        while self._selector.get_map() and time.monotonic() < deadline:
            self._listen()
            if (code := self.process.poll()) is not None:
                return code
        return self.process.wait(timeout=max(0.01, deadline - time.monotonic()))

    def _offspring(self) -> set[psutil.Process]:
        try:
            return set(self._known.children(recursive=True))
        except psutil.NoSuchProcess:
            return set()

    def _finish_log(self) -> None:
        deadline = time.monotonic() + 2.0
        while self._selector.get_map() and time.monotonic() < deadline:
            self._listen()
        for key in list(self._selector.get_map().values()):
            self._selector.unregister(key.fd)
            os.close(int(key.fd))
        self._selector.close()
        self.log.close()


def strays(mark: str, pipes: set[str]) -> set[psutil.Process]:
    """Living processes that carry a worker's mark or hold its pipes, whoever is their parent now.

    A mark is seen from `exec` on, so that a copy of a copy of this process is known by its pipes.
    """
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark or any(
                str(fd.readlink()) in pipes and fd.lstat().st_mode & 0o200  # those who write
                for fd in Path(f"/proc/{process.pid}/fd").iterdir()
            ):
                found.add(process)
    return found


class LocalCrew:
    """One worker per slot of this machine.

    Args:
        path: The run folder.
        slots: Where to work.
        patience: How long a worker is waited for.
    """

    def __init__(self, path: Path, slots: Sequence[Slot], patience: Patience | None = None):
        self.path, self.slots = path, slots
        self.patience = patience or Patience()
        self._gaps = Gaps(maxlen=256)
        self._lock = threading.Lock()
        self._closed = False
        # Copying this process saves the first picture a second. Only one that has a single thread
        # and holds no GPU can be copied safely, so replacements are begun anew; the threads with which
        # torch computes are none of Python's, and a copy would wait for them for ever.
        loaded = "fractal_core.kernels.cpu" in sys.modules
        alone = threading.active_count() == 1 and "torch" not in sys.modules
        self._workers: dict[int, Worker] = {}
        for slot in slots:
            self._hire(slot, fork=loaded and alone and slot.device == "cpu")

    def _hire(self, slot: Slot, fork: bool = False) -> Worker:
        folder = self.path / "state" / "logs"
        number = len(list(folder.glob(f"slot-{slot.index}.*.txt"))) + 1
        log = CappedLog(folder / f"slot-{slot.index}.{number}.txt")
        self._workers[slot.index] = Worker(self.path, slot, log, self._gaps, fork)
        return self._workers[slot.index]

    def do(self, slot: Slot, order: Order) -> Exit:
        """Have a unit done in a slot; a worker that died is replaced by the next order."""
        with self._lock:  # while it is hired too, or `kill` would miss it
            if self._closed:
                return Exit(order, worker.TEMPORARY, cause="stopped")
            current = self._workers.get(slot.index) or self._hire(slot)
        exit = current.do(order, self.patience)
        if exit.code != worker.DONE:
            with self._lock:
                self._workers.pop(slot.index, None)
        return exit

    def processes(self) -> dict[int, int]:
        """The process in each slot that has one."""
        with self._lock:
            return {index: process.pid for index, process in self._workers.items()}

    def ask(self) -> None:
        """Ask all workers to leave when they have finished what they have in hand."""
        with self._lock:
            for process in self._workers.values():
                process.ask()

    def kill(self) -> None:
        """End all workers at once; those that wait for one are told by its exit."""
        with self._lock:
            self._closed = True
            for process in self._workers.values():
                process.kill()

    def close(self) -> None:
        """See the workers gone that nobody waits for any more."""
        with self._lock:
            self._closed = True
            workers, self._workers = list(self._workers.values()), {}
        for process in workers:
            process.end(5.0)
