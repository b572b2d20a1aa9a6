"""Who works on a run folder: locks, shares, and what is told meanwhile."""

import errno
import json

import pytest

from fractal_core import Axis, Refused, Region, Store, Sweep, TinyNetworks
from fractal_core.duty import WHOLE, Busy, Journal, Share, holders, lock, read_events

SWEEP = Sweep.over(
    TinyNetworks(samples=4, steps=30),
    Region(Axis("lr_input", 0.1, 10.0, 24), Axis("lr_output", 0.1, 10.0, 16)),
)


@pytest.fixture
def store(tmp_path) -> Store:
    return Store.create(tmp_path / "run", SWEEP, block=8)


def test_shares_divide_a_plan(store):
    """Every unit belongs to exactly one of them, and each has some of every level."""
    units = list(store.units.values())
    shares = [Share(index, 3).of(units) for index in (1, 2, 3)]
    assert sorted(unit.key for share in shares for unit in share) == sorted(store.units)
    assert WHOLE.of(units) == units


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "a/b", "-1/2", ""])
def test_a_share_that_makes_no_sense_is_refused(text):
    """One sentence says how it is written."""
    with pytest.raises(Refused, match="1/2"):
        Share.parse(text)


def test_two_shares_work_side_by_side_and_a_whole_does_not(store):
    """The same share twice, or another division, would compute things twice."""
    with lock(store.path, Share(1, 2)), lock(store.path, Share(2, 2)):
        assert set(holders(store.path)) == {"-1-of-2", "-2-of-2"}
        for share, trouble in ((WHOLE, Refused), (Share(1, 2), Busy), (Share(1, 3), Refused)):
            with pytest.raises(trouble), lock(store.path, share):
                pass
    with lock(store.path):
        pass
    assert holders(store.path) == {}


def test_every_share_has_its_own_journal(store):
    """Files with one writer each, since appending is not atomic between machines."""
    with lock(store.path, Share(2, 2)) as journal:
        journal.event("started")
        journal.status(done=3)
    assert [event["event"] for event in read_events(store.path, Share(2, 2))] == ["started"]
    assert read_events(store.path) == []
    assert json.loads((store.path / "state" / "status-2-of-2.json").read_text()) == {"done": 3}


def test_trouble_with_the_disk_does_not_end_a_journal(store, monkeypatch, caplog):
    """It is said once; any other trouble is not borne."""
    with lock(store.path) as journal:
        for number in (errno.ENOSPC, errno.ENOSPC, errno.EBADF):

            def fail(self, *_, number=number, **__):
                raise OSError(number, "trouble")

            with monkeypatch.context() as patch:
                patch.setattr("pathlib.Path.open", fail)
                if number == errno.EBADF:
                    with pytest.raises(OSError, match="trouble"):
                        journal.event("lost")
                else:
                    journal.event("lost")
    assert len(caplog.records) == 1


def test_a_torn_line_does_not_swallow_the_next(store):
    """Whatever a crash left at the end, the next journal begins a line of its own."""
    (store.path / "state").mkdir()
    file = store.path / "state" / "events.jsonl"
    file.write_text('{"event": "first"}\n{"event": "to')
    Journal(store.path, WHOLE).event("second")
    assert [event["event"] for event in read_events(store.path)] == ["first", "second"]
