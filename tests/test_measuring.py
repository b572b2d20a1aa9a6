"""Measurements in processes of their own, begun, watched and stopped from outside."""

import os

import pytest
import waiting
from waiting import until, until_gone

from fractal_core import Axis, Region, Store, Sweep, TinyNetworks, findings, measuring, sight
from fractal_core.duty import lock

PLANE = Region(Axis("lr_input", 0.1, 1e3, 48), Axis("lr_output", 0.1, 1e3, 48))


@pytest.fixture
def store(tmp_path):
    """A run of which nothing is trained yet."""
    sweep = Sweep.over(TinyNetworks(width=4, samples=4, steps=60), PLANE)
    return Store.create(tmp_path / "run", sweep)


def ended(store: Store) -> measuring.Measurement:
    return waiting.ended(lambda: measuring.last(store.path))


def test_pairs_are_measured_by_a_process_of_their_own(store):
    """Begun twice it is one; it says how far it is, and what it found is kept."""
    assert measuring.last(store.path) is None
    first = measuring.begin(store.path, "pairs", ("--runs", "2500"))
    assert measuring.begin(store.path, "seeing") == first
    assert os.getsid(first) == first != os.getsid(0)
    running = measuring.last(store.path)
    assert (running.command, running.process, running.trouble) == ("pairs", first, "")
    assert str(running).startswith("pairs is being measured")
    over = ended(store)
    assert over.trouble == ""
    assert over.said.endswith("runs trained")
    assert findings.kept(store, "trainable").request.runs == 2500


def test_why_a_measurement_ended_is_said(store):
    """A refusal in its own words, for example while another process works on the run."""
    with lock(store.path):
        measuring.begin(store.path, "seeing", ("--runs", "300"))
        assert "already being run" in ended(store).trouble
    measuring.begin(store.path, "seeing", ("--runs", "3"))
    assert ended(store).trouble == "3 runs are too few; allow at least 90"
    assert sight.seen(store) is None


def test_a_stopped_measurement_goes_on_when_it_is_begun_again(store):
    """Nothing of it is left running, and what it trained is kept."""
    assert not measuring.stop(store.path)
    process = measuring.begin(store.path, "pairs", ("--runs", "8000"))
    until(lambda: store.files.list("units"), "a unit")
    assert measuring.stop(store.path)
    kept = store.files.list("units")
    assert kept
    until_gone(process)
    assert "begin it again" in measuring.last(store.path).trouble
    measuring.begin(store.path, "seeing", ("--runs", "300"))
    assert ended(store).trouble == ""
    assert set(kept) <= set(store.files.list("units"))
    assert sight.seen(store) is not None
