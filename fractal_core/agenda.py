"""What is to be done next, and what becomes of a unit that failed: one place for every engine."""

import heapq
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from fractal_core.sweep import Batch, Unit
from fractal_core.worker import DISK, DONE, MEMORY, TEMPORARY, WRONG


@dataclass(frozen=True)
class Policy:
    """What to do about failures.

    Args:
        attempts: How often a unit is tried before it counts as failed.
        backoff: Seconds before the second attempt; doubled for each one after it.
        deferrals: How often a unit may end in temporary trouble, which is no attempt.
        alike: So many units failing for one reason, before any has succeeded, stop the run.
    """

    attempts: int = 3
    backoff: float = 1.0
    deferrals: int = 20
    alike: int = 5


@dataclass(frozen=True)
class Order:
    """A unit to be done.

    Args:
        unit: Which.
        points: Points that it holds.
        attempt: Which attempt this is, from 1.
        deferred: How often it was put off by temporary trouble.
        launch: Most points that are trained at a time; None for all.
        halved: Whether that is half of what did not fit in the memory.
    """

    unit: Unit | Batch
    points: int
    attempt: int = 1
    deferred: int = 0
    launch: int | None = None
    halved: bool = False


@dataclass(frozen=True)
class Exit:
    """What became of an order.

    Args:
        order: Which.
        code: 0 if it is done; else the exit code of the worker, negative for a signal.
        seconds: Wall time of the training.
        committed: False if another process had stored it first.
        cause: Why it is not done.
        log: The end of what the worker said.
        final: Whether it will not be tried again by this run.
    """

    order: Order
    code: int
    seconds: float = 0.0
    committed: bool = False
    cause: str = ""
    log: str = ""
    final: bool = True

    @property
    def fingerprint(self) -> str:
        """The cause without what differs between units."""
        return fingerprint(self.cause)


def fingerprint(cause: str) -> str:
    """A cause without its numbers, by which like failures are told.

    Example:
        >>> fingerprint("ValueError: 17 is not 18")
        'ValueError: # is not #'
    """
    return re.sub(r"[-+]?(0x[0-9a-f]+|\d[\d.]*(e[-+]?\d+)?)", "#", cause)


@dataclass
class Agenda:
    """Hands out orders to the threads of an engine and takes back what became of them.

    `stopped` says that it hands out no more, and `broken` why, if that was its own decision.

    Args:
        units: What is to be done, in this order.
        points: How many points a unit holds.
        policy: What to do about failures.
    """

    units: Iterable[Unit | Batch]
    points: Callable[[Unit | Batch], int]
    policy: Policy = field(default_factory=Policy)

    def __post_init__(self):
        self._fresh = deque(Order(unit, self.points(unit)) for unit in self.units)
        self._later: list[tuple[float, int, Order]] = []
        self._count = self._in_hand = self._done = 0
        self._alike: dict[str, set[str]] = {}
        self._launch: int | None = None
        self._changed = threading.Condition()
        self.stopped = False
        self.broken = ""

    def take(self) -> Order | None:
        """The next order, waiting for one that may come back; None when there is nothing left."""
        with self._changed:
            while not self.stopped:
                now = time.monotonic()
                if self._later and self._later[0][0] <= now:
                    return self._hand_out(heapq.heappop(self._later)[2])
                if self._fresh:
                    return self._hand_out(self._fresh.popleft())
                if not self._in_hand and not self._later:
                    return None
                self._changed.wait(self._later[0][0] - now if self._later else None)
            return None

    def _hand_out(self, order: Order) -> Order:
        self._in_hand += 1
        launch = min(filter(None, (order.launch, self._launch)), default=None)
        return replace(order, launch=launch)

    def settle(self, exit: Exit) -> Exit:
        """Decide what follows from an exit: nothing, another attempt, or the end of the run."""
        order = exit.order
        with self._changed:
            self._in_hand -= 1
            self._changed.notify_all()
            if exit.code == DONE:
                self._done += 1
                if order.launch is not None:
                    self._launch = order.launch  # what fitted here is what the next ones get
                return exit
            if exit.code == DISK:
                self._break(f"{exit.cause}; make room or allow writing")
            if self.stopped:
                return replace(exit, final=False)
            if (again := self._again(exit)) is not None:
                self._count += 1
                pause = self.policy.backoff * 2 ** (order.attempt - 1 + min(order.deferred, 5))
                heapq.heappush(self._later, (time.monotonic() + pause, self._count, again))
                return replace(exit, final=False)
            self._trip(exit)
            return exit

    def _again(self, exit: Exit) -> Order | None:
        order = exit.order
        if exit.code == WRONG:
            return None  # the same code on the same points would only fail again
        if exit.code == MEMORY:
            half = min(order.points, order.launch or order.points) // 2
            if order.halved or not half:
                return None
            return replace(order, attempt=order.attempt + 1, launch=half, halved=True)
        if exit.code == TEMPORARY and order.deferred < self.policy.deferrals:
            return replace(order, deferred=order.deferred + 1)
        if order.attempt < self.policy.attempts:
            return replace(order, attempt=order.attempt + 1)
        return None

    def _trip(self, exit: Exit) -> None:
        if self._done:
            return
        units = self._alike.setdefault(exit.fingerprint, set())
        units.add(exit.order.unit.key)
        if len(units) >= self.policy.alike:
            self._break(f"the first {len(units)} units failed alike ({exit.cause}); mend that")

    def _break(self, why: str) -> None:
        self.broken = self.broken or (
            f"{why}; nothing that was finished is lost, and the same command goes on"
        )
        self.stopped = True

    def stop(self) -> None:
        """Hand out no more."""
        with self._changed:
            self.stopped = True
            self._changed.notify_all()

    def rank(self, key: Callable[[Unit | Batch], tuple]) -> None:
        """Put those that nobody has begun in the order of `key`."""
        with self._changed:
            self._fresh = deque(sorted(self._fresh, key=lambda order: key(order.unit)))
