"""What is done next, and what follows from each way to end."""

import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest

from fractal_core import worker
from fractal_core.agenda import Agenda, Exit, Order, Policy, fingerprint
from fractal_core.sweep import Unit, plan

UNITS = plan((32, 32), 8)


def agenda(units=UNITS, **policy) -> Agenda:
    return Agenda(units, lambda unit: len(unit.cells()[0]), Policy(**{"backoff": 0.0, **policy}))


def take(agenda: Agenda) -> Order:
    order = agenda.take()
    assert order is not None
    return order


def fail(agenda: Agenda, code: int, cause: str = "", order: Order | None = None) -> Exit:
    return agenda.settle(Exit(order or take(agenda), code, cause=cause))


def all_attempts(agenda: Agenda, code: int) -> list[Exit]:
    exits = []
    while (order := agenda.take()) is not None:
        exits.append(fail(agenda, code, order=order))
    return exits


def test_units_come_in_order_and_once():
    """When all are done there is nothing left."""
    mine = agenda()
    seen = []
    while (order := mine.take()) is not None:
        seen.append(order.unit)
        assert mine.settle(Exit(order, worker.DONE, committed=True)).final
    assert seen == UNITS
    assert not mine.stopped


@pytest.mark.parametrize(
    ("code", "attempts"), [(-9, 3), (1, 3), (3, 3), (worker.WRONG, 1), (worker.MEMORY, 2)]
)
def test_a_unit_is_tried_as_often_as_it_may_help(code, attempts):
    """Death is tried again, wrong code is not, and what does not fit is halved once."""
    exits = all_attempts(agenda(UNITS[:1]), code)
    assert [exit.order.attempt for exit in exits] == list(range(1, attempts + 1))
    assert [exit.final for exit in exits] == [False] * (attempts - 1) + [True]


def test_temporary_trouble_is_no_attempt():
    """It is put off so often, and then counts."""
    exits = all_attempts(agenda(UNITS[:1], deferrals=4, attempts=2), worker.TEMPORARY)
    assert [(exit.order.attempt, exit.order.deferred) for exit in exits] == [
        *((1, deferred) for deferred in range(5)),
        (2, 4),
    ]


def test_what_does_not_fit_is_halved_and_the_others_learn():
    """Half is tried once; if it fits, the next units begin with it, and a point is not halved."""
    mine = agenda()
    first = take(mine)
    assert not fail(mine, worker.MEMORY, order=first).final
    again = next(order for order in iter(mine.take, None) if order.unit == first.unit)
    assert (again.launch, again.halved) == (first.points // 2, True)
    mine.settle(Exit(again, worker.DONE))
    assert take(mine).launch == first.points // 2
    alone = Agenda(UNITS[:1], lambda unit: 1, Policy(backoff=0.0))
    assert fail(alone, worker.MEMORY).final


def test_a_retry_waits_and_the_rest_does_not(monkeypatch):
    """The pause doubles; meanwhile others are handed out, and the last waits for its retry."""
    mine, waits = agenda(UNITS[:2], backoff=0.5), []
    # By a clock that stands still but for the waiting.
    monkeypatch.setattr("fractal_core.agenda.time", SimpleNamespace(monotonic=lambda: sum(waits)))
    monkeypatch.setattr(mine._changed, "wait", waits.append)
    failed = fail(mine, -9).order
    other = take(mine)
    assert other.unit == UNITS[1]
    mine.settle(Exit(other, worker.DONE))
    again = take(mine)
    assert (again, waits) == (replace(failed, attempt=2), [0.5])
    fail(mine, -9, order=again)
    assert take(mine) == replace(failed, attempt=3)
    assert waits == [0.5, 1.0]


def test_who_finds_nothing_waits_for_what_may_come_back():
    """A unit in another's hand may fail; a thread leaves only when it cannot."""
    mine = agenda(UNITS[:1])
    order = take(mine)
    found: list[Order | None] = []
    waiting = threading.Thread(target=lambda: found.append(mine.take()))
    waiting.start()
    fail(mine, -9, order=order)
    waiting.join()
    assert found == [replace(order, attempt=2)]
    leaving = threading.Thread(target=lambda: found.append(mine.take()))
    leaving.start()
    mine.settle(Exit(found[0], worker.DONE))
    leaving.join()
    assert found[1] is None


def test_the_first_units_failing_alike_stop_the_run():
    """Numbers in a cause do not make it another; the sentence carries one of them."""
    mine = agenda()
    for number in range(5):
        assert not mine.broken
        fail(mine, worker.WRONG, f"ValueError: no file part-{number}")
    assert "first 5 units failed alike (ValueError: no file part-4)" in mine.broken
    assert mine.take() is None


def test_failures_that_differ_or_follow_a_success_stop_nothing():
    """Four alike, many different, and any number after one unit was done."""
    mine = agenda()
    for letter in "abcdefg":
        fail(mine, worker.WRONG, letter)
    for _ in range(4):
        fail(mine, worker.WRONG, "alike")
    mine.settle(Exit(take(mine), worker.DONE))
    for _ in range(6):
        fail(mine, worker.WRONG, "alike")
    assert not mine.broken
    assert mine.take() is not None


def test_one_unit_failing_again_and_again_is_one_unit():
    """Attempts are not counted as units."""
    mine = agenda(UNITS[:2], attempts=9)
    all_attempts(mine, -9)
    assert not mine.broken


def test_a_full_disk_stops_the_run_at_once():
    """Nothing is counted as failed; the sentence says what to do."""
    mine = agenda()
    assert not fail(mine, worker.DISK, "units/x: No space left on device").final
    assert mine.broken.startswith("units/x: No space left on device; make room")
    assert mine.take() is None


def test_after_a_stop_nothing_is_final():
    """What was in hand when it ended is only missing."""
    mine = agenda()
    order = take(mine)
    mine.stop()
    assert mine.take() is None
    assert not fail(mine, -15, order=order).final


def test_order_can_be_changed_for_what_nobody_began():
    """The last first; what is in hand stays there."""
    mine = agenda()
    first = take(mine)

    def backwards(unit: Unit) -> tuple:
        return (-UNITS.index(unit),)

    mine.rank(backwards)
    rest = [take(mine).unit for _ in UNITS[1:]]
    assert rest == UNITS[:0:-1]
    assert first.unit == UNITS[0]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("killed at 0x7f3a", "killed at 0x11"),
        ("loss 1.5e-3 is not -2", "loss 4 is not 1e+9"),
        ("unit L3-00000-00008", "unit L3-00016-00000"),
    ],
)
def test_causes_are_alike_but_for_their_numbers(one, other):
    """Addresses, floats and indices."""
    assert fingerprint(one) == fingerprint(other)
    assert fingerprint(one) != fingerprint(f"no {other}")
