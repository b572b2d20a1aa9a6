"""One process per slot: takes units on its standard input, commits them, dies with its parent.

`python -m fractal_core.worker RUN --slot K` keeps compiled kernels, models and data loaded between
units. All is said in lines of JSON. An order is {"unit": KEY, "launch": most points at a time or
null, "attempt": N}; its answer {"unit": KEY, "seconds": S, "committed": BOOL} or {"unit": KEY,
"error": WORDS, "code": EXIT CODE}, which is the last. {"ready": true} comes once, {"waiting": WORDS}
while a result waits for room on the disk, and every second {"beat": N, "ticks": N}: alive, and
whether anything moves. What anything prints goes to the log, not between the answers.

Exit codes: 0 no more orders, 4 error in configuration or code, 5 out of memory, 74 the disk takes no
more, 75 temporary.
"""

import argparse
import contextlib
import ctypes
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from fractal_core import experiments, machine, pulse
from fractal_core.errors import Refused
from fractal_core.files import DISK_TROUBLE
from fractal_core.outcome import Outcomes, join
from fractal_core.redact import redact
from fractal_core.store import Store
from fractal_core.sweep import Batch, Sweep, Unit

DONE, WRONG, MEMORY, DISK, TEMPORARY = 0, 4, 5, 74, 75

BEAT_SECONDS = 1.0
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of Linux


def train(
    sweep: Sweep, points: np.ndarray, launch: int | None = None, record: Sequence[int] = ()
) -> Outcomes:
    """Train at the points, at most `launch` at a time; how many changes no bit."""
    size = launch or len(points)
    parts = []
    for first in range(0, len(points), size):
        some = points[first : first + size]
        parts.append(sweep.experiment.run(some, seed=sweep.seed, record=record))
        pulse.tick()
    return join(parts)


def code_of(error: BaseException) -> int:
    """The exit code that tells a supervisor what to do about an error."""
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return MEMORY
    if isinstance(error, OSError) and error.errno in DISK_TROUBLE:
        return DISK
    return WRONG


def in_words(error: BaseException) -> str:
    """An error as the cause of a failure: one line, without secrets."""
    if isinstance(error, OSError) and error.errno in DISK_TROUBLE:
        return f"{error.filename or 'the disk'}: {error.strerror}"
    text = " ".join(redact(str(error)).split())[:500]
    return text if isinstance(error, Refused) else f"{type(error).__name__}: {text}"


class _Answers:
    """The way back to the supervisor, for several threads."""

    def __init__(self, sink: int):
        self._sink, self._one = sink, threading.Lock()

    def say(self, **message: Any) -> None:
        line = json.dumps(message).encode() + b"\n"
        with self._one, contextlib.suppress(BrokenPipeError):  # the listener ends us then
            while line:
                line = line[os.write(self._sink, line) :]

    def beat(self) -> None:
        beats = 0
        while True:
            self.say(beat=beats, ticks=pulse.ticks())
            beats += 1
            time.sleep(BEAT_SECONDS)


def serve(path: Path, source: int, sink: int) -> int:
    """Work through the orders that come from one file descriptor, answering on another.

    Returns:
        The exit code of the process.
    """
    answers = _Answers(sink)
    orders: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    # Ctrl-C reaches every process of a terminal; the supervisor decides what becomes of us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: orders.put(None))
    _adopt_orphans()
    for loop in (answers.beat, lambda: _listen(source, orders)):
        threading.Thread(target=loop, daemon=True).start()
    try:
        store = experiments.open_run(path)
        provenance = machine.describe()
    except Exception as error:  # noqa: BLE001 - whatever it is, the supervisor must hear of it
        traceback.print_exc()
        answers.say(error=in_words(error), code=code_of(error))
        return code_of(error)
    answers.say(ready=True)
    while (order := orders.get()) is not None:
        try:
            answers.say(unit=order["unit"], **_work(store, order, provenance, answers))
        except Exception as error:  # noqa: BLE001 - it is told, and this process not used again
            traceback.print_exc()
            answers.say(unit=order["unit"], error=in_words(error), code=code_of(error))
            return code_of(error)
        finally:
            end_children()
    return TEMPORARY


def _work(
    store: Store, order: dict[str, Any], provenance: dict[str, Any], answers: _Answers
) -> dict[str, Any]:
    if (unit := store.unit(order["unit"])) is None:
        raise Refused(f"{store.path} has no unit {order['unit']}; its plan was changed under way")
    started = time.perf_counter()
    outcomes = train(store.sweep, store.points(unit), order["launch"], store.record(unit))
    seconds = time.perf_counter() - started
    meta = {"seconds": seconds, "attempt": order["attempt"], **provenance}
    data = store.seal(unit, outcomes, meta)
    committed = deliver(store, unit, data, seconds, lambda words: answers.say(waiting=words))
    return {"seconds": seconds, "committed": committed}


def deliver(
    store: Store, unit: Unit | Batch, data: bytes, seconds: float, waiting: Callable[[str], None]
) -> bool:
    """Commit the file of a unit, once the disk has room for it.

    What waits in memory is worth as long a wait as it would take to compute again.

    Args:
        store: The run.
        unit: Which.
        data: What `Store.seal` made.
        seconds: How long that took to compute.
        waiting: Is told why nothing happens, whenever it is tried in vain.

    Returns:
        False if another process had stored it first.
    """
    deadline, pause = time.monotonic() + min(seconds, 600.0), 0.1
    while True:
        try:
            return store.accept(unit, data)
        except OSError as error:
            if error.errno not in DISK_TROUBLE or time.monotonic() > deadline:
                raise
            waiting(in_words(error))
            pulse.tick()
            time.sleep(pause)
            pause = min(2 * pause, 10.0)


def _listen(source: int, orders: queue.SimpleQueue) -> None:
    with os.fdopen(source, "rb") as lines:
        for line in lines:
            orders.put(json.loads(line))
    # Nobody is left to answer to.
    end_children()
    os._exit(DONE)


def _adopt_orphans() -> None:
    """Have processes whose parent dies become our children, so that none is lost sight of."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)


def end_children() -> None:
    """End whatever a unit left running; nothing outlives its unit."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return  # the usual case, told by one call
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


def shut_stdin() -> None:
    """Put nothing in the place of standard input, or a library that asks would take our orders."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)


def main() -> None:
    """Work for a supervisor on one slot of a run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--slot", help="for whoever looks at the list of processes")
    orders, answers = os.dup(0), os.dup(1)
    shut_stdin()
    os.dup2(2, 1)
    code = serve(parser.parse_args().run, orders, answers)
    sys.stderr.flush()
    # Threads of libraries may still be busy, and nothing that matters is left to be done.
    os._exit(code)


if __name__ == "__main__":
    main()
