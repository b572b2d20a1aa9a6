"""Kills: whatever dies, nothing finished is lost, nothing is done twice, nothing is torn."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fractal_core import Axis, Region, Store, Sweep, TinyNetworks
from fractal_core.engine import run_here
from fractal_core.experiments import open_run
from fractal_core.store import ARRAYS, unpack

SWEEP = Sweep.over(
    TinyNetworks(samples=64, steps=2000),
    Region(Axis("lr_input", 1e-2, 1e3, 96), Axis("lr_output", 1e-2, 1e3, 64)),
)


def start(path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "fractal_core", "run", str(path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    )


def events(store: Store, what: str) -> list[dict]:
    lines = (store.path / "state" / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == what]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Store:
    store = Store.create(tmp_path_factory.mktemp("clean") / "run", SWEEP, block=8)
    for _ in run_here(store):
        pass
    return store


def survives(path: Path, uninterrupted: Store, kills: int, how: signal.Signals) -> None:
    """Kill a run over and over at random instants, then let it end, and compare."""
    store = Store.create(path, SWEEP, block=8)
    dice = random.Random()
    finished: dict[str, bytes] = {}
    for _ in range(kills):
        before = len(store.missing())
        process = start(path)
        # Wait until it works, so that the kill meets training and commits and not only imports.
        while len(store.missing()) == before and process.poll() is None:
            time.sleep(0.005)
        time.sleep(dice.uniform(0, 0.3))
        assert process.poll() is None, "the run ended before it could be killed; make it longer"
        process.send_signal(how)
        assert process.wait() == (130 if how == signal.SIGINT else -how)
        now = {key: store.files.get(key) for key in store.files.list("units")}
        assert all(unpack(data) for data in now.values()), "torn"
        assert finished.items() <= now.items(), "lost or rewritten"
        finished = now
    process = start(path)
    assert process.wait() == 0
    assert all(store.files.get(key) == data for key, data in finished.items()), "rewritten"
    assert store.verify() == []
    assert list(path.rglob(".draft-*")) == []
    done = [event["unit"] for event in events(store, "committed")]
    # A kill may fall between a commit and its line in the log, so some may lack; none comes twice.
    assert len(done) == len(set(done)) >= len(store.units) - kills
    for unit in store.units.values():
        mine, clean = store.read(unit), uninterrupted.read(unit)
        for name in ARRAYS:
            if name != "seconds":
                np.testing.assert_array_equal(mine[name], clean[name])


@pytest.mark.parametrize(
    ("how", "kills"), [(signal.SIGKILL, 3), (signal.SIGINT, 1), (signal.SIGTERM, 1)]
)
def test_a_killed_run_equals_an_uninterrupted_one(tmp_path, uninterrupted, how, kills):
    """Killed outright three times, or asked to end once."""
    survives(tmp_path / "run", uninterrupted, kills, how)


@pytest.mark.faults
def test_a_run_killed_twenty_times_equals_an_uninterrupted_one(tmp_path, uninterrupted):
    """The same, twenty times."""
    survives(tmp_path / "run", uninterrupted, 20, signal.SIGKILL)


def test_two_processes_on_one_run_do_nothing_twice(tmp_path):
    """The second is refused while the first works."""
    store = Store.create(tmp_path / "run", SWEEP, block=8)
    first = start(store.path)
    while not store.files.list("units"):
        time.sleep(0.01)
    second = subprocess.run(
        [sys.executable, "-m", "fractal_core", "run", str(store.path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 2
    assert f"process {first.pid}" in second.stderr
    first.terminate()
    first.wait()
    done = [event["unit"] for event in events(store, "committed")]
    assert len(done) == len(set(done))


def test_an_error_in_the_experiment_is_no_outcome(tmp_path, monkeypatch):
    """The unit stays missing and the error keeps its traceback."""
    store = Store.create(tmp_path / "run", SWEEP, block=8)

    def broken(self, points, *, seed, record=()):
        raise RuntimeError("the machine broke")

    monkeypatch.setattr(TinyNetworks, "run", broken)
    with pytest.raises(RuntimeError, match="the machine broke"):
        list(run_here(store))
    assert len(open_run(store.path).missing()) == len(store.units)
    (note,) = store.files.list("failures")
    assert "the machine broke" in store.files.get(note).decode()
