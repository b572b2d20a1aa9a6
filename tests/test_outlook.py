"""Where to go next, and how long it takes."""

import numpy as np
import pytest

from fractal_core import Axis, Outcomes, Region, Store, Sweep, TinyNetworks
from fractal_core.outlook import Outlook, about
from fractal_core.store import Files

SWEEP = Sweep.over(
    TinyNetworks(),
    Region(Axis("lr_input", 1.0, 1e3, 64), Axis("lr_output", 1.0, 1e3, 96)),
)
EDGE = 30.0
"""Trainable left of this x."""


@pytest.fixture
def store(tmp_path) -> Store:
    return Store.create(tmp_path / "run", SWEEP, block=8)


def commit(store: Store, unit, outlook: Outlook | None = None, seconds: float = 1.0) -> None:
    points = store.points(unit)
    x, y = points.T
    store.commit(
        unit,
        Outcomes(
            outcome=np.where(x < EDGE, 1, 3).astype(np.uint8),
            measure=x,
            first_loss=x,
            tail_loss=x,
            final_loss=y,
            steps=np.ones(len(x), np.int32),
            seconds=np.ones(len(x)),
        ),
        {},
    )
    if outlook:
        outlook.add(unit, seconds)


def level(store: Store, number: int) -> list:
    return [unit for unit in store.units.values() if unit.level == number]


def test_coarse_levels_come_first_and_then_what_is_near_the_boundary(store):
    """Blocks of one level are taken by their distance from where the coarser ones differ."""
    outlook = Outlook(store)
    for number in (3, 2, 1):
        for unit in level(store, number):
            commit(store, unit, outlook)
    order = sorted(store.missing(), key=outlook.order())
    assert {unit.level for unit in order} == {0}
    column = int(np.searchsorted(SWEEP.grid.x, EDGE))
    far = [min(abs(unit.cols[0] - column), abs(unit.cols[1] - column)) for unit in order]
    here = [unit for unit in order if unit.cols[0] - 2 <= column < unit.cols[1] + 2]
    assert set(order[: len(here)]) == set(here)
    assert far[-1] == max(far)


def test_levels_are_never_mixed(store):
    """Whatever is known, a fine block waits for all coarse ones."""
    outlook = Outlook(store)
    for unit in level(store, 3):
        commit(store, unit, outlook)
    order = sorted(store.missing(), key=outlook.order())
    assert [unit.level for unit in order] == sorted((u.level for u in order), reverse=True)


def test_a_map_without_a_boundary_has_no_favourites(store):
    """The plan's order stays."""
    order = sorted(store.missing(), key=Outlook(store).order())
    assert order == store.missing()


def test_an_earlier_process_is_remembered(store):
    """What is on the disk counts as what was done here."""
    for number in (3, 2):
        for unit in level(store, number):
            commit(store, unit)
    fresh, outlook = Outlook(store), Outlook(store)
    key, other = fresh.order(), outlook.order()
    assert [key(unit) for unit in level(store, 1)] == [other(unit) for unit in level(store, 1)]
    assert len({key(unit)[1] for unit in level(store, 1)}) > 1


def test_a_damaged_unit_is_left_out(store, caplog):
    """The rest can be done all the same; the warning says what helps."""
    unit = level(store, 3)[0]
    commit(store, unit)
    (store.path / "units" / f"{unit.key}.npz").write_bytes(b"PK torn")
    outlook = Outlook(store)
    outlook.order()
    assert "fractal verify" in caplog.text


def test_beginning_costs_one_look_at_the_folder(store, monkeypatch):
    """Not one for every unit of the plan."""
    looks = []
    original = Files.list
    monkeypatch.setattr(Files, "list", lambda self, key: looks.append(key) or original(self, key))
    Outlook(store)
    assert len(looks) == 1


def test_time_is_judged_by_the_nearest_and_divided_by_the_slots(store):
    """Per point: the left half takes a hundredth of what the right half takes."""
    outlook = Outlook(store)
    units = level(store, 0)
    assert outlook.remaining(units, 1) is None
    assert outlook.remaining([], 1) == 0.0
    left = next(unit for unit in units if unit.cols[0] == 0)
    right = next(unit for unit in units if unit.cols[1] == 64)
    commit(store, left, outlook, 0.48)
    commit(store, right, outlook, 48.0)
    rest = [unit for unit in units if unit not in (left, right)]
    for unit, expected in ((rest[0], 0.48), (rest[-1], 48.0)):
        assert outlook.remaining([unit], 1) == pytest.approx(expected)
        assert outlook.remaining([unit] * 6, 3) == pytest.approx(2 * expected)


def test_an_estimate_is_words_that_can_be_read():
    """About so much, and never about under something."""
    assert [about(seconds) for seconds in (0.2, 7.0, 200.0)] == [
        "under 1 s",
        "about 7 s",
        "about 3.3 min",
    ]
