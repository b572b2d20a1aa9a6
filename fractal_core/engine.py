"""Runs the missing units of a run folder: here, or on a crew of workers, or in a process of its own.

A thread per slot hands units to whatever works there and takes back what became of them. Retries,
back-off, halving and the breaker are the agenda's, once for every crew. Nothing here knows what
training is; a unit that died is an `Exit`, never an exception.
"""

import collections
import contextlib
import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Protocol, runtime_checkable

from fractal_core import machine, worker
from fractal_core.agenda import Agenda, Exit, Order, Policy
from fractal_core.duty import WHOLE, Journal, Share, lock
from fractal_core.errors import Refused
from fractal_core.machine import Slot
from fractal_core.outlook import Outlook
from fractal_core.store import Store
from fractal_core.sweep import Batch, Unit

LOOK_SECONDS = 5.0


@runtime_checkable
class Crew(Protocol):
    """Workers in slots, on this machine or on others."""

    slots: Sequence[Slot]

    def do(self, slot: Slot, order: Order) -> Exit:
        """Have a unit done in a slot, and committed; never raises for what a unit did."""
        ...

    def processes(self) -> dict[int, int]:
        """The process in each slot that has one on this machine."""
        ...

    def ask(self) -> None:
        """Ask all workers to leave when they have finished what they have in hand."""
        ...

    def kill(self) -> None:
        """End all workers at once."""
        ...

    def close(self) -> None:
        """Give back what is left; called when nobody waits for a worker any more."""
        ...


class Stop:
    """How a run is asked to end: once and it finishes what it has in hand, twice and it ends now."""

    def __init__(self):
        self.asked = 0
        self.signal: int | None = None

    def ask(self) -> None:
        """Ask."""
        self.asked += 1

    @contextlib.contextmanager
    def on(self, *signals: signal.Signals) -> Iterator[None]:
        """Take these signals as asking, while the context lasts."""

        def asked(number: int, _: object) -> None:
            self.signal = number
            self.ask()

        before = {number: signal.signal(number, asked) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def run_here(store: Store) -> Iterator[Exit]:
    """Train the missing units in this process, coarse level first, storing each as it ends.

    Raises:
        Busy: Another process works on this run.
    """
    with lock(store.path) as journal:
        units = store.missing()
        provenance = machine.describe()
        journal.event("started", missing=len(units))
        for unit in units:
            started = time.perf_counter()
            order = Order(unit, unit.size)
            try:
                outcomes = worker.train(store.sweep, store.points(unit))
            except Exception as error:  # noted for `fractal status`, and raised again
                store.fail(unit, worker.in_words(error), text=traceback.format_exc())
                raise
            seconds = time.perf_counter() - started
            committed = store.commit(unit, outcomes, {"seconds": seconds, **provenance})
            exit = Exit(order, worker.DONE, seconds, committed)
            _note(journal, exit)
            yield exit
        journal.event("finished")


def run(
    store: Store,
    hire: Callable[[Store], Crew],
    *,
    units: Sequence[Unit | Batch] | None = None,
    share: Share = WHOLE,
    policy: Policy | None = None,
    stop: Stop | None = None,
) -> Iterator[Exit]:
    """Have a crew train the missing units, coarse level first and near the boundary first.

    Stop anywhere, even with SIGKILL: what was yielded is on the disk, and the next call goes on
    behind it. Neither the crew nor the order changes a bit of any answer.

    Args:
        store: The run.
        hire: Makes the crew, once this process is the one that works on the run.
        units: What to train; left out, the map.
        share: The part of the plan that is this machine's.
        policy: What to do about failures.
        stop: Whoever holds it can end the run.

    Yields:
        Every exit, those that will be tried again among them.

    Raises:
        Busy: Another process works on this run.
        Refused: The disk is too full, or the first units all failed alike.
    """
    stop = stop or Stop()
    with lock(store.path, share) as journal:
        plan = list(store.units.values()) if units is None else units
        missing = store.missing(share.of(plan))
        store.require_room(missing)
        if not missing:
            return
        desk = _Desk(store, journal, hire(store), Agenda(missing, _size, policy or Policy()))
        try:
            yield from desk.work(missing, stop)
        finally:
            desk.leave()


def _size(unit: Unit | Batch) -> int:
    return unit.size


def _level(unit: Unit | Batch) -> int:
    return 0 if isinstance(unit, Batch) else unit.level


def _note(journal: Journal, exit: Exit) -> None:
    order = exit.order
    details: dict[str, object] = {"unit": order.unit.key, "attempt": order.attempt}
    if exit.code == worker.DONE:
        what = "committed" if exit.committed else "known already"
        details |= {"points": order.points, "seconds": exit.seconds}
    else:
        what = "failed" if exit.final else "retried"
        details |= {"exit_code": exit.code, "cause": exit.cause}
    journal.event(what, **details)


class _Desk:
    """The supervisor of one run: its threads, its notes, and what is done when."""

    def __init__(self, store: Store, journal: Journal, crew: Crew, agenda: Agenda):
        self.store, self.journal, self.crew, self.agenda = store, journal, crew, agenda
        self.news: queue.SimpleQueue[Exit | BaseException | Slot] = queue.SimpleQueue()
        self.busy: dict[int, tuple[Order, float]] = {}
        self.threads = [
            threading.Thread(target=self._serve, args=(slot,), daemon=True) for slot in crew.slots
        ]
        self.began, self.points, self.failed = time.monotonic(), 0, 0

    def _serve(self, slot: Slot) -> None:
        try:
            while (order := self.agenda.take()) is not None:
                self.busy[slot.index] = order, time.time()
                exit = self.agenda.settle(self.crew.do(slot, order))
                self.busy.pop(slot.index, None)
                self.news.put(exit)
        except BaseException as error:  # noqa: BLE001 - raised again by whoever works at the desk
            self.news.put(error)
        finally:
            self.news.put(slot)

    def work(self, missing: Sequence[Unit | Batch], stop: Stop) -> Iterator[Exit]:
        slots = [asdict(slot) for slot in self.crew.slots]
        self.journal.event("started", missing=len(missing), slots=slots)
        left = collections.Counter(_level(unit) for unit in missing)
        rest = {unit.key: unit for unit in missing}
        outlook = Outlook(self.store)
        remaining, shown, looked, heeded = None, 0.0, 0.0, 0
        for thread in self.threads:
            thread.start()
        working = len(self.threads)
        while working:
            exit, now = self._hear(), time.monotonic()
            working -= isinstance(exit, Slot)
            if isinstance(exit, Exit):
                unit = exit.order.unit
                if exit.final and rest.pop(unit.key, None):
                    left[_level(unit)] -= 1
                    looked = looked if left[_level(unit)] else 0.0  # the next level may be ordered
                if exit.code == worker.DONE:
                    outlook.add(unit, exit.seconds)
                self._file(exit)
                yield exit
            if not looked or now - looked > LOOK_SECONDS:
                looked = now
                self.agenda.rank(outlook.order())
                remaining = outlook.remaining(rest.values(), len(self.threads))
            if now - shown > 1.0 or not working:
                shown = now
                self._show(len(rest), remaining, stop)
            if stop.asked > heeded:
                heeded = stop.asked
                self._end(now=heeded > 1)
        self.journal.event("stopped" if self.agenda.stopped else "finished")
        if self.agenda.broken:
            raise Refused(self.agenda.broken)

    def _hear(self) -> Exit | Slot | None:
        """The next that a slot's thread has to tell, if it comes soon."""
        try:
            heard = self.news.get(timeout=0.2)
        except queue.Empty:
            return None
        if isinstance(heard, BaseException):
            raise heard
        return heard

    def _file(self, exit: Exit) -> None:
        _note(self.journal, exit)
        if exit.code == worker.DONE:
            self.points += exit.order.points
        elif exit.final:
            self.failed += 1
            with self.journal.borne():
                self.store.fail(exit.order.unit, exit.cause, exit.code, exit.log)

    def _show(self, missing: int, remaining: float | None, stop: Stop) -> None:
        """Replace the status that others read."""
        pids = self.crew.processes()
        used = {f"cuda:{gpu.index}": gpu for gpu in machine.gpus()}
        slots = []
        for slot in self.crew.slots:
            order, since = self.busy.get(slot.index, (None, None))
            row = {**asdict(slot), "process": pids.get(slot.index), "since": since}
            row["unit"] = order.unit.key if order else None
            if gpu := used.get(slot.device):
                row["gpu_percent"] = gpu.used_percent
                if gpu.memory_total:
                    row["gpu_bytes"] = gpu.memory_used
            slots.append(row)
        self.journal.status(
            process=os.getpid(),
            time=time.time(),
            units_missing=missing,
            units_failed=self.failed,
            points_per_second=self.points / max(1e-9, time.monotonic() - self.began),
            seconds_remaining=remaining,
            stopping=stop.asked > 0,
            slots=slots,
        )

    def _end(self, now: bool) -> None:
        self.agenda.stop()
        self.journal.event("stopping", now=now)
        (self.crew.kill if now else self.crew.ask)()

    def leave(self) -> None:
        """End whatever still runs, however the work ended."""
        self.agenda.stop()
        if any(thread.is_alive() for thread in self.threads):
            self.crew.kill()
        for thread in self.threads:
            if thread.ident is not None:
                thread.join(timeout=60)
        self.crew.close()
