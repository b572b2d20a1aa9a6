"""A run folder: whatever order, however often, whatever dies, one image."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fractal_core import Axis, Outcomes, Refused, Region, Store, Sweep, TinyNetworks
from fractal_core.duty import lock, lock_holder
from fractal_core.experiments import open_run
from fractal_core.store import Files, unpack

SWEEP = Sweep.over(
    TinyNetworks(),
    Region(Axis("lr_input", 1e-3, 1e6, 24), Axis("lr_output", 1e-3, 1e6, 16)),
)


def outcomes_at(points: np.ndarray) -> Outcomes:
    """Made-up outcomes that name their point, so that a swapped row or column shows."""
    x, y = points.T
    return Outcomes(
        outcome=(1 + (x * y > 1)).astype(np.uint8),
        measure=np.log(x) + 1e3 * np.log(y),
        first_loss=x,
        tail_loss=y,
        final_loss=x * y,
        steps=np.arange(len(x), dtype=np.int32),
        seconds=np.ones(len(x)),
    )


def fill(store: Store, units=None) -> None:
    for unit in store.missing() if units is None else units:
        store.commit(unit, outcomes_at(store.points(unit)), {})


def arrays(store: Store) -> list[np.ndarray]:
    image = store.image()
    return [image.measure.filled(np.nan), image.outcome.filled(0), image.first_loss.filled(np.nan)]


@pytest.fixture
def store(tmp_path) -> Store:
    return Store.create(tmp_path / "run", SWEEP, block=8)


def test_the_image_is_the_grid(store):
    """Row 0 is the lowest y and column 0 the lowest x, on a grid that is not square."""
    fill(store)
    image = store.image()
    np.testing.assert_array_equal(image.first_loss.filled(), np.tile(SWEEP.grid.x, (16, 1)))
    np.testing.assert_array_equal(image.tail_loss.filled(), np.tile(SWEEP.grid.y, (24, 1)).T)
    assert not image.measure.mask.any()


def test_missing_is_a_mask(store):
    """What is not computed is masked, in an empty run and in a half-filled one."""
    assert store.image().outcome.mask.all()
    half = store.missing()[:3]
    fill(store, half)
    mask = store.image().outcome.mask
    for unit in store.units.values():
        assert np.all(mask[unit.cells()] == (unit not in half))
    assert len(store.missing()) == len(store.units) - 3


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=15,
    deadline=None,
)
@given(st.data())
def test_units_in_any_order_and_twice_give_one_image(tmp_path, data):
    """Committing is idempotent and its order irrelevant."""
    straight = Store.create(tmp_path / "straight", SWEEP, block=8)
    fill(straight)
    path = tmp_path / "shuffled"
    shutil.rmtree(path, ignore_errors=True)
    shuffled = Store.create(path, SWEEP, block=8)
    units = list(shuffled.units.values())
    order = data.draw(st.permutations(units)) + data.draw(st.lists(st.sampled_from(units)))
    fill(shuffled, order)
    for a, b in zip(arrays(straight), arrays(shuffled), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_block_changes_no_bit(tmp_path):
    """Units of another size hold the same picture under the same id."""
    one, other = (Store.create(tmp_path / f"{b}", SWEEP, block=b) for b in (8, 64))
    fill(one)
    fill(other)
    assert one.sweep.id == other.sweep.id
    assert np.array_equal(one.image().measure, other.image().measure)


def test_the_first_commit_wins(store, caplog):
    """A later one with the same answers leaves no trace, one with other answers a note."""
    unit = store.missing()[0]
    outcomes = outcomes_at(store.points(unit))
    assert store.commit(unit, outcomes, {})
    assert not store.commit(unit, outcomes, {"attempt": 2})
    assert store.files.list("quarantine") == []
    outcomes.measure[0] += 1
    assert not store.commit(unit, outcomes, {})
    assert "differ" in caplog.text
    assert len(store.files.list("quarantine")) == 1
    assert store.read(unit)["measure"][0] == outcomes.measure[0] - 1


def test_many_writers_of_one_key_have_one_winner(tmp_path):
    """Threads race for the same names; every name has exactly one winner, and its bytes."""
    files = Files(tmp_path)
    won: list[tuple[str, int]] = []

    def write(writer: int) -> None:
        won.extend(
            (key, writer)
            for key in map(str, range(50))
            if files.put_once(key, bytes([writer]) * 99)
        )

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(key for key, _ in won) == sorted(map(str, range(50)))
    assert all(files.get(key) == bytes([writer]) * 99 for key, writer in won)


def test_reading_again_reads_only_what_is_new(store, monkeypatch):
    """A poll costs as much as what came since the last one."""
    fill(store, store.missing()[:4])
    store.image()
    read: list[str] = []
    original = Files.get
    monkeypatch.setattr(Files, "get", lambda self, key: read.append(key) or original(self, key))
    fill(store, store.missing()[:1])
    store.image()
    assert len(read) == 1


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "other points", "other run"])
def test_verify_moves_a_damaged_unit_and_only_that(store, damage, caplog):
    """One byte is enough; the unit is missing again and the others stay."""
    fill(store)
    victim, other = list(store.units.values())[2:4]
    file = store.path / "units" / f"{victim.key}.npz"
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    elif damage == "truncate":
        del data[-40:]
    elif damage == "empty":
        data.clear()
    elif damage == "other run":
        other_run = Store.create(
            store.path.parent / "other", Sweep.over(TinyNetworks(steps=500), SWEEP.region), block=8
        )
        fill(other_run, [victim])
        data = (other_run.path / "units" / f"{victim.key}.npz").read_bytes()
    else:
        data = (store.path / "units" / f"{other.key}.npz").read_bytes()
    file.write_bytes(data)
    reopened = open_run(store.path)
    assert reopened.image().outcome.mask.any()
    assert "verify" in caplog.text
    assert len(reopened.verify()) == 1
    assert [unit.key for unit in reopened.missing()] == [victim.key]
    assert len(reopened.files.list("quarantine")) == 1
    fill(reopened)
    assert reopened.verify() == []
    assert not reopened.image().outcome.mask.any()


def test_a_failure_is_noted_and_leaves_with_the_commit(store):
    """A unit that failed stays missing; its note goes when it succeeds."""
    unit = store.missing()[0]
    store.fail(unit, "killed", exit_code=-9, text="x" * 10_000)
    note = json.loads(store.files.get(f"failures/{unit.key}.json"))
    assert note["cause"] == "killed"
    assert len(note["log"]) == 4096
    assert unit in store.missing()
    fill(store, [unit])
    assert store.files.list("failures") == []


def test_another_recipe_is_refused_and_the_same_is_opened(store):
    """A folder belongs to one recipe for ever."""
    assert Store.create(store.path, SWEEP).sweep.id == SWEEP.id
    other = Sweep.over(TinyNetworks(steps=500), SWEEP.region)
    before = sorted(store.path.rglob("*"))
    with pytest.raises(Refused, match="another recipe"):
        Store.create(store.path, other)
    assert sorted(store.path.rglob("*")) == before


def test_a_folder_of_something_else_is_refused(tmp_path):
    """Nothing is written beside somebody's files."""
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(Refused, match="other files"):
        Store.create(tmp_path, SWEEP)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_opened_run_is_the_run_that_was_made(store):
    """Recipe, axis values and plan come back from the disk, not from formulas."""
    fill(store)
    opened = open_run(store.path)
    assert opened.sweep.id == SWEEP.id
    assert opened.sweep.grid.x.tobytes() == SWEEP.grid.x.tobytes()
    assert list(opened.units) == list(store.units)


def test_a_committed_recipe_alone_is_enough(store):
    """From sweep.json the axis values are computed again, and must be the same."""
    for name in ("axes.npz", "plan.json", "env.json"):
        (store.path / name).unlink()
    assert open_run(store.path).sweep.grid.digest == SWEEP.grid.digest


def test_an_edited_recipe_is_refused(store):
    """A recipe and its results belong together."""
    file = store.path / "sweep.json"
    file.write_text(file.read_text().replace('"steps": 1000', '"steps": 999'))
    with pytest.raises(Refused, match="edited"):
        open_run(store.path)


def test_results_of_other_arithmetic_are_refused(store, monkeypatch):
    """Old and new numbers are never mixed; the sentence says what changed."""
    monkeypatch.setattr("fractal_core.tiny.CONTRACT", "tiny-99")
    with pytest.raises(Refused, match="tiny-99"):
        open_run(store.path)


def test_a_plan_that_is_gone_is_not_guessed(store):
    """The units that are there belong to it, and another plan would put them aside."""
    fill(store, store.missing()[:2])
    (store.path / "plan.json").unlink()
    with pytest.raises(Refused, match="restore"):
        open_run(store.path)


@pytest.mark.parametrize("text", ["{", "[]", "null"])
def test_an_unreadable_recipe_is_refused(store, text):
    """Broken JSON, or JSON that is no recipe."""
    (store.path / "sweep.json").write_text(text)
    with pytest.raises(Refused, match="restore"):
        open_run(store.path)


def test_a_lock_file_that_names_somebody_else_names_nobody(store):
    """A number from a crash may be another process' today; only the very process is named."""
    file = store.path / "state" / "lock"
    file.parent.mkdir()
    file.write_text(json.dumps({"pid": os.getppid(), "created": 1.0}))
    assert lock_holder(store.path) is None
    with lock(store.path):
        assert lock_holder(store.path) == os.getpid()
        file.write_text(json.dumps({"pid": os.getppid(), "created": 1.0}))
        assert lock_holder(store.path) == 0
    assert file.read_text() == ""


def test_a_file_system_without_hard_links_is_named(tmp_path, monkeypatch):
    """The first commit could not win there."""

    def link(source, target):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(Refused, match="hard links"):
        Store.create(tmp_path / "run", SWEEP)
    assert list(tmp_path.iterdir()) == []


def test_damaged_axis_values_are_refused(store):
    """They are the only thing that cannot be computed again elsewhere."""
    (store.path / "axes.npz").write_bytes(b"PK broken")
    with pytest.raises(Refused, match="damaged"):
        open_run(store.path)


def test_one_process_works_on_a_folder(store):
    """A second one is told who; when the first dies the lock is free at once."""
    code = (
        "import sys, time; from pathlib import Path; from fractal_core.duty import lock\n"
        f"with lock(Path({str(store.path)!r})):\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    with holder, holder.stdout:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Refused, match=f"process {holder.pid}"), lock(store.path):
            pass
        holder.kill()
    draft = store.path / "units" / ".draft-left-behind"
    draft.parent.mkdir(exist_ok=True)
    draft.write_bytes(b"torn")
    with lock(store.path):
        assert not draft.exists()


def test_a_run_that_cannot_be_made_leaves_nothing(tmp_path, monkeypatch):
    """A full disk in the middle of making a run folder leaves no half of one, empty or new."""

    def full(self, key, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Files, "put_once", full)
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "deep" / "run", tmp_path / "empty"):
        with pytest.raises(Refused, match="No space left"):
            Store.create(path, SWEEP)
    assert not (tmp_path / "deep" / "run").exists()
    assert not list(tmp_path.rglob(".draft-*"))


@pytest.mark.parametrize("nth", range(1, 16))
def test_a_crash_at_any_system_call_tears_nothing(tmp_path, nth):
    """A process that dies at its n-th open, write, flush or link leaves the old or the new state."""
    code = f"""
import os, sys
from pathlib import Path
from fractal_core.store import Files
calls = 0
def dying(function):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == {nth}:
            os._exit(9)
        return function(*args, **kwargs)
    return call
for name in ("fsync", "link", "open", "close"):
    setattr(os, name, dying(getattr(os, name)))
for name in ("replace", "unlink", "open"):
    setattr(Path, name, dying(getattr(Path, name)))
files = Files(Path({str(tmp_path)!r}))
files.put_once("unit", b"u" * 100_000)
files.put_latest("status", b"n" * 100_000)
"""
    (tmp_path / "status").write_bytes(b"o" * 100_000)
    subprocess.run([sys.executable, "-c", code], check=False)
    unit = tmp_path / "unit"
    assert not unit.exists() or unit.read_bytes() == b"u" * 100_000
    assert (tmp_path / "status").read_bytes() in (b"o" * 100_000, b"n" * 100_000)


def test_a_unit_file_is_plain_npz(store):
    """Anyone can read it with numpy, without pickle, and find its provenance inside."""
    unit = store.missing()[0]
    store.commit(unit, outcomes_at(store.points(unit)), {"commit": "abc"})
    arrays = unpack(store.files.get(f"units/{unit.key}.npz"))
    meta = json.loads(arrays["meta"].tobytes())
    assert meta["unit"] == unit.key
    assert meta["sweep"] == SWEEP.id
    assert meta["commit"] == "abc"
    assert not any(
        os.environ[name] in Path(store.path, "env.json").read_text()
        for name in ("HOME",)
        if len(os.environ.get(name, "")) > 3
    )
