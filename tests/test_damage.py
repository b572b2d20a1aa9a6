"""Files that are damaged: told in a sentence, or of no consequence, and never a wrong picture."""

import hashlib
import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from mischief import fractal, make, run_clean, same_answers

from fractal_core import Refused, Store, control, duty
from fractal_core.duty import Journal, lock, read_events
from fractal_core.experiments import open_run, read_run
from fractal_core.store import ARRAYS
from fractal_core.sweep import canonical

pytestmark = pytest.mark.usefixtures("laboratory")

KINDS = {
    "units": "units/L3-00000-00000.npz",
    "sweep": "sweep.json",
    "plan": "plan.json",
    "axes": "axes.npz",
    "environment": "env.json",
    "failures": "failures/L0-00000-00000.json",
    "status": "state/status.json",
    "events": "state/events.jsonl",
    "lock": "state/lock",
}
LEFT_OUT = "L0-00000-00000"


@pytest.fixture
def clean(tmp_path) -> Store:
    return run_clean(tmp_path / "clean", 8, 8)


@pytest.fixture
def store(tmp_path, clean) -> Iterator[Store]:
    """A run that this process works on: one of its units has failed, all others are done."""
    store = make(tmp_path / "run", 8, 8)
    with lock(store.path) as journal:
        journal.event("started", missing=len(store.units))
        for unit in store.units.values():
            if unit.key == LEFT_OUT:
                store.fail(unit, "killed by SIGKILL", -9, "the end of a log")
            else:
                fill(store, unit)
        journal.event("committed", unit="L1-00000-00000", seconds=1.5)
        journal.status(
            process=duty.lock_holder(store.path),
            points_per_second=1.5,
            seconds_remaining=3.0,
            slots=[{"index": 0, "device": "cpu", "process": 1, "unit": LEFT_OUT}],
        )
        yield store


def fill(store: Store, unit) -> None:
    outcomes = store.sweep.experiment.run(store.points(unit), seed=store.sweep.seed)
    store.commit(unit, outcomes, {})


def damages(data: bytes, every: bool) -> Iterator[bytes]:
    """A bit changed or the rest cut off: at a hundred places, or at each and each sixteenth."""
    dice = random.Random(None if every else 0)  # where few are tried, the same ones each time
    size = len(data)
    for place in range(size) if every else [dice.randrange(size) for _ in range(50)]:
        flipped = bytearray(data)
        flipped[place] ^= 1 << dice.randrange(8)
        yield bytes(flipped)
    for place in range(0, size, 16) if every else [dice.randrange(size) for _ in range(50)]:
        yield data[:place]


def look(path: Path, clean: Store) -> str:
    """Look at a run in every way that there is: what was noticed?"""
    try:
        store = open_run(path)
    except Refused:
        return "refused"
    control.progress(store)
    duty.holders(path)
    read_events(path)
    seen, whole = store.image(), clean.image()
    for name in ARRAYS:
        if name != "seconds":
            known = ~np.ma.getmaskarray(getattr(seen, name))
            right = np.ma.getdata(getattr(whole, name))[known]
            assert np.ma.getdata(getattr(seen, name))[known].tobytes() == right.tobytes()
    moved = store.verify()
    missing = {unit.key for unit in store.missing()} - {LEFT_OUT}
    assert len(moved) == len(missing)
    for key in missing:
        fill(store, store.units[key])
    same_answers(store, clean, [unit for unit in clean.units.values() if unit.key != LEFT_OUT])
    assert store.image().outcome.mask.sum() == len(clean.units[LEFT_OUT].cells()[0])
    return "moved" if moved else "harmless"


def survives(store: Store, clean: Store, kind: str, every: bool) -> Counter:
    file = store.path / KINDS[kind]
    data = file.read_bytes()
    assert data
    found = Counter()
    for damaged in damages(data, every):
        file.write_bytes(damaged)
        found[look(store.path, clean)] += damaged != data
        file.write_bytes(data)
    print(f"{kind}: {dict(found)}")
    return found


@pytest.mark.filterwarnings("ignore")  # zipfile warns of what it then refuses
@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_told_or_harmless(store, clean, kind):
    """One bit or the end of a file: never a wrong value, never a traceback."""
    found = survives(store, clean, kind, every=False)
    if kind in ("units", "sweep", "plan", "axes"):
        assert found["moved"] + found["refused"] > found["harmless"]
    else:
        assert set(found) == {"harmless"}


@pytest.mark.faults
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_damage_at_every_byte_is_told_or_harmless(store, clean, kind):
    """The same, at each place of each kind of file."""
    survives(store, clean, kind, every=True)


def test_a_damaged_unit_is_computed_again(tmp_path):
    """`fractal run` leaves it aside, `fractal verify` moves it, and the next run computes it."""
    clean = run_clean(tmp_path / "clean", 16, 16)
    store = run_clean(tmp_path / "run", 16, 16)
    first, *_, last = store.units.values()
    damaged = store.path / "units" / f"{first.key}.npz"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    store.files.drop(f"units/{last.key}.npz")
    answer = fractal(store)
    assert answer.returncode == 0, answer.stderr
    assert f"unit {first.key} is damaged" in answer.stderr
    assert "fractal verify" in answer.stderr
    assert len(open_run(store.path).verify()) == 1
    assert fractal(store).returncode == 0
    same_answers(store, clean)
    assert len(store.files.list("quarantine")) == 1


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ('"seed": 0', '"seed": 1', "edited"),
        ('"arithmetic": "mischief-1"', '"arithmetic": "mischief-0"', "edited"),
        ('"experiment": "Mischief"', '"experiment": "Blunder"', "no recipe of this version"),
    ],
)
def test_another_recipe_is_refused(tmp_path, before, after, says):
    """The command names what differs, and computes nothing."""
    store = make(tmp_path / "run")
    recipe = store.path / "sweep.json"
    text = recipe.read_text()
    assert before in text
    recipe.write_text(text.replace(before, after))
    answer = fractal(store)
    assert answer.returncode == 2
    assert says in answer.stderr
    assert answer.stderr.count("\n") == 1
    assert store.files.list("units") == []


def test_what_other_code_made_is_looked_at_and_not_gone_on_with(tmp_path):
    """The command that would train names what differs; to read the run takes no such agreement."""
    store = make(tmp_path / "run")
    file = store.path / "sweep.json"
    recipe = json.loads(file.read_text())
    recipe["contract"]["arithmetic"] = "mischief-0"
    del recipe["id"]
    name = hashlib.sha256(canonical(recipe).encode()).hexdigest()[:16]
    file.write_text(canonical({"id": name, **recipe}))
    answer = fractal(store)
    assert answer.returncode == 2
    assert "arithmetic was mischief-0 and is mischief-1" in answer.stderr
    assert store.files.list("units") == []
    assert read_run(store.path).sweep.id == name


def test_a_torn_line_hides_only_itself(store):
    """Torn at each byte: reading never fails, and what comes next has a line of its own."""
    log = store.path / "state" / "events.jsonl"
    whole = log.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    events = read_events(store.path)
    for cut in range(len(last) + 1):
        log.write_bytes(whole[: len(whole) - cut])
        assert read_events(store.path) == (events if cut == 0 else events[:-1])
        Journal(store.path, duty.WHOLE).event("next")
        *before, following = read_events(store.path)
        assert following["event"] == "next"
        assert before == (events if cut < 2 else events[:-1])  # without its end a line is whole


def test_every_command_says_what_is_damaged(store):
    """From the shell: no traceback."""
    (store.path / KINDS["failures"]).write_text('{"cause": ')
    (store.path / KINDS["status"]).write_text("{}")
    answer = subprocess.run(
        [sys.executable, "-m", "fractal_core", "status", str(store.path), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["causes"] == {f"{KINDS['failures']} is damaged": 1}
