"""Whatever ends a supervisor, nothing finished is lost, nothing is done twice, nothing is torn."""

import contextlib
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import mischief
import numpy as np
import pytest
from mischief import at_work, begin, fractal, make, run_clean, same_answers, tell
from waiting import DEADLINE, until

from fractal_core import Axis, Refused, Region, Store, Sweep, TinyNetworks, control, duty, engine
from fractal_core.duty import Share, read_events
from fractal_core.experiments import open_run
from fractal_core.store import unpack
from fractal_core.worker import TEMPORARY

pytestmark = pytest.mark.usefixtures("laboratory")

DICE = random.Random()


def events(store: Store, what: str, share: Share = duty.WHOLE) -> list[dict]:
    return [event for event in read_events(store.path, share) if event["event"] == what]


def attempts(store: Store) -> int:
    return sum(mischief.begun(store, unit) for unit in store.units.values())


def another_unit(store: Store) -> Callable[[], bool]:
    known = len(store.files.list("units"))
    return lambda: len(store.files.list("units")) > known


def survives(tmp_path: Path, kills: int, rows: int, cols: int, slots: int = 2) -> None:
    """Kill a run over and over at random instants, then let it end, and compare."""
    clean = run_clean(tmp_path / "clean", rows, cols)
    store = make(tmp_path / "run", rows, cols)
    tell(store, "nap 0.05")
    tell(store, "wait go", list(store.units.values())[-1])  # no run ends before it is killed
    finished: dict[str, bytes] = {}
    for _ in range(kills):
        # Wait until it works, so that the kill meets training and commits and not only imports.
        more = another_unit(store)
        with begin(store, "--slots", str(slots)) as process:
            until(lambda more=more: more() or len(store.missing()) == 1, "a unit")
            time.sleep(DICE.uniform(0, 0.1))
            assert process.poll() is None
            process.kill()
        until(lambda: not at_work(store), "the end of the workers")
        now = {key: store.files.get(key) for key in store.files.list("units")}
        assert all(unpack(data) for data in now.values()), "torn"
        assert finished.items() <= now.items(), "lost or rewritten"
        finished = now
    mischief.go(store)
    assert fractal(store, "--slots", str(slots)).returncode == 0
    assert all(store.files.get(key) == data for key, data in finished.items()), "rewritten"
    assert store.verify() == []
    assert list(store.path.rglob(".draft-*")) == []
    again = attempts(store) - len(store.units)
    assert again <= kills * slots
    done = [event["unit"] for event in events(store, "committed")]
    # A kill may fall between a commit and its line in the log, so some may lack; none comes twice.
    assert len(store.units) - kills * slots <= len(done) == len(set(done))
    same_answers(store, clean)
    print(f"{kills} kills, {len(store.units)} units, {again} attempts lost")


def test_a_killed_supervisor_costs_what_was_in_hand(tmp_path):
    """Killed outright three times: a unit per slot is done again each time, and no worker is left."""
    survives(tmp_path, 3, 48, 48)


@pytest.mark.faults
def test_a_supervisor_killed_twenty_times_costs_what_was_in_hand(tmp_path):
    """The same, twenty times."""
    survives(tmp_path, 20, 160, 160)


@pytest.mark.parametrize(("how", "code"), [(signal.SIGTERM, TEMPORARY), (signal.SIGINT, 130)])
def test_a_run_that_is_asked_to_end_finishes_what_it_has_in_hand(tmp_path, how, code):
    """No attempt is lost, and the same command goes on."""
    clean = run_clean(tmp_path / "clean", 24, 24)
    store = make(tmp_path / "run", 24, 24)
    coarse = [unit for unit in store.units.values() if unit.level == 3]
    tell(store, "wait go")
    tell(store, "nap 0", *coarse)
    with begin(store, "--slots", "2") as process:
        until(lambda: attempts(store) == len(coarse) + 2, "an attempt in each slot")
        process.send_signal(how)
        until(lambda: events(store, "stopping"), "its answer")
        mischief.go(store)
        _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == code
    assert err.endswith("stopped; nothing that was finished is lost, the same command goes on\n")
    assert at_work(store) == []
    assert attempts(store) == len(store.units) - len(store.missing()) == len(coarse) + 2
    assert events(store, "stopped")
    assert store.failures() == {}
    assert fractal(store).returncode == 0
    assert attempts(store) == len(store.units)
    same_answers(store, clean)


def test_a_run_that_is_asked_twice_ends_now(tmp_path):
    """What it has in hand would have taken ten minutes."""
    store = make(tmp_path / "run")
    tell(store, "nap 600")
    with begin(store, "--slots", "2") as process:
        until(lambda: attempts(store), "an attempt")
        process.terminate()
        until(lambda: events(store, "stopping"), "the first answer")
        process.terminate()
        process.communicate(timeout=DEADLINE)
    assert process.returncode == TEMPORARY
    assert at_work(store) == []
    assert store.failures() == {}
    assert store.missing() == list(store.units.values())


def test_real_networks_survive_a_kill_bit_for_bit(tmp_path, monkeypatch):
    """The tiny networks, killed once in the middle."""
    region = Region(Axis("lr_input", 1e-2, 1e3, 32), Axis("lr_output", 1e-2, 1e3, 32))
    sweep = Sweep.over(TinyNetworks(samples=16, steps=6000), region)
    clean = Store.create(tmp_path / "clean", sweep, block=8)
    for _ in engine.run_here(clean):
        pass
    store = Store.create(tmp_path / "run", sweep, block=8)
    monkeypatch.setenv("FRACTAL_THREADS", "1")  # seconds, on a machine with many cores as well
    with begin(store) as process:
        until(lambda: len(store.missing()) < len(store.units), "a unit")
        process.kill()
    assert store.missing(), "the run ended before it was killed; make it longer"
    assert fractal(store, "--slots", "2").returncode == 0
    same_answers(store, clean)


def test_the_second_on_one_run_only_looks(tmp_path):
    """It says who works, computes nothing, and ends with the first."""
    store = make(tmp_path / "run", 16, 16)
    tell(store, "wait go", list(store.units.values())[-1])
    with begin(store) as first:
        until(lambda: store.files.list("units"), "a unit")
        with begin(store) as second:
            said = second.stderr.readline()
            mischief.go(store)
            out, _ = second.communicate(timeout=DEADLINE)
        first.communicate(timeout=DEADLINE)
    assert f"process {first.pid}" in said
    assert "only looks" in said
    assert (second.returncode, out) == (0, f"{store.path}: complete\n")
    assert first.returncode == 0
    assert attempts(store) == len(store.units)


def divide(store: Store) -> None:
    """Two supervisors with a share each at one time."""
    tell(store, "wait go", *list(store.units.values())[-2:])
    with begin(store, "--shard", "1/2") as one, begin(store, "--shard", "2/2") as two:
        until(lambda: len(duty.holders(store.path)) == 2, "both")
        whole = fractal(store)
        thirds = fractal(store, "--shard", "1/3")
        mischief.go(store)
        for process in (one, two):
            _, err = process.communicate()
            assert process.returncode == 0, err
    for refused in (whole, thirds):
        assert refused.returncode == 2
        assert refused.stderr.count("\n") == 1
        assert "divide the run alike" in refused.stderr
    assert store.missing() == []
    done = [
        event["unit"] for index in (1, 2) for event in events(store, "committed", Share(index, 2))
    ]
    assert sorted(done) == sorted(store.units)
    assert attempts(store) == len(store.units)
    assert store.files.list("quarantine") == []
    print(f"{len(done)} units, {attempts(store)} attempts")


def test_two_shares_do_nothing_twice(tmp_path):
    """Side by side; whoever wants the whole or another share meanwhile is refused."""
    store = make(tmp_path / "run", 48, 48)
    divide(store)


@pytest.mark.faults
def test_two_shares_of_a_thousand_units_do_nothing_twice(tmp_path):
    """The same, with 1045 units."""
    store = make(tmp_path / "run", 224, 224)
    tell(store, "nap 0.03")
    divide(store)


def watch(tmp_path: Path, rows: int, cols: int, readers: int = 10) -> None:
    """Readers look five times a second while units are committed."""
    store = make(tmp_path / "run", rows, cols)
    tell(store, "nap 0.02")
    tell(store, "wait go", list(store.units.values())[-1])
    over, wrong, looks = threading.Event(), [], []

    def read() -> None:
        mine, seen, told, shown = open_run(store.path), 0, 0, 0
        try:
            while not over.wait(0.2):
                done = control.progress(mine).done
                image = int((~np.ma.getmaskarray(mine.image().outcome)).sum())
                count = len(read_events(store.path))
                assert seen <= done
                assert shown <= image
                assert done <= image  # which is read later
                assert told <= count
                seen, told, shown = done, count, image
                looks.append(done)
        except BaseException as error:  # noqa: BLE001 - asserted on below, in the test's own thread
            wrong.append(error)

    threads = [threading.Thread(target=read) for _ in range(readers)]
    for thread in threads:
        thread.start()
    started = time.monotonic()
    try:
        with begin(store) as process:
            until(lambda: wrong or len(looks) >= readers, "looks at it")
            mischief.go(store)
            _, err = process.communicate()
        watched = time.monotonic() - started
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert process.returncode == 0, err
    assert wrong == []
    started = time.monotonic()
    alone = make(tmp_path / "alone", rows, cols)
    tell(alone, "nap 0.02")
    assert fractal(alone).returncode == 0
    print(f"{len(store.units)} commits, {len(looks)} looks, {watched:.1f} s watched")
    print(f"{time.monotonic() - started:.1f} s alone")


def test_readers_of_a_run_that_is_written_see_it_grow(tmp_path):
    """Ten at a time: no error, and never less than before."""
    watch(tmp_path, 48, 48)


@pytest.mark.faults
def test_readers_of_a_thousand_commits_see_them_grow(tmp_path):
    """The same, with 1045 units."""
    watch(tmp_path, 224, 224)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        # The same is tested below without that right, by a limit on the size of files.
        pytest.skip("mounting takes a right that this process does not have")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path, small_disk):
    """It fills up in the middle of a run; when there is room again the same command goes on."""
    clean = run_clean(tmp_path / "clean")
    made = make(tmp_path / "run")
    shutil.copytree(made.path, small_disk / "run")
    store = open_run(small_disk / "run")
    tell(store, "wait go", *list(store.units.values())[3:])
    ballast = small_disk / "ballast"
    with begin(store, "--slots", "2") as process:
        until(lambda: len(store.files.list("units")) > 2, "some units")
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(b"x" * 4096):  # until there is no room
                pass
        mischief.go(store)
        before = {key: store.files.get(key) for key in store.files.list("units")}
        _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 2, err
    (last,) = [line for line in err.splitlines() if line.startswith("fractal: ")]
    assert "No space left on device; make room" in last
    assert "nothing that was finished is lost" in last
    assert at_work(store) == []
    assert fractal(store).returncode == 2  # there is still no room
    now = {key: store.files.get(key) for key in store.files.list("units")}
    assert before.items() <= now.items()
    assert store.verify() == []
    assert store.missing()
    ballast.unlink()
    answer = fractal(store)
    assert answer.returncode == 0, answer.stderr
    assert list(store.path.rglob(".draft-*")) == []
    same_answers(store, clean)


def test_a_limit_on_the_size_of_files_is_a_full_disk(tmp_path):
    """The same where nobody may mount: no file may grow beyond 3,000 bytes."""
    clean = run_clean(tmp_path / "clean", 16, 16)
    store = make(tmp_path / "run", 16, 16)
    code = (
        "import resource, sys; from fractal_core.__main__ import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        f"sys.argv = ['fractal', 'run', {str(store.path)!r}]; main()"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 2, answer.stderr
    (last,) = [line for line in answer.stderr.splitlines() if line.startswith("fractal: ")]
    assert "File too large; make room" in last
    assert store.verify() == []
    assert store.missing()
    assert fractal(store).returncode == 0
    same_answers(store, clean)


def test_an_error_in_the_experiment_is_no_outcome(tmp_path):
    """In this process the unit stays missing and the error keeps its traceback."""
    store = make(tmp_path / "run")
    tell(store, "fail the machine broke")
    with pytest.raises(RuntimeError, match="the machine broke"):
        list(engine.run_here(store))
    assert len(open_run(store.path).missing()) == len(store.units)
    (note,) = store.files.list("failures")
    assert "the machine broke" in store.files.get(note).decode()


def test_too_little_room_is_refused_before_work_begins(tmp_path, monkeypatch):
    """Twice what the units will take has to be free."""
    store = make(tmp_path / "run")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10_000))
    with pytest.raises(Refused, match="make room"):
        list(engine.run(store, lambda store: pytest.fail("nobody is hired")))
    assert read_events(store.path) == []
