"""Workers that die, hang, flood and leave things behind: each unit ends in its own way."""

import contextlib
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import mischief
import numpy as np
import psutil
import pytest
from mischief import (
    begun,
    born,
    fractal,
    make,
    run_clean,
    same_answers,
    tell,
)
from waiting import DEADLINE, alive, until

from fractal_core import Outcome, Refused, Store, engine, worker
from fractal_core.agenda import Exit, Order, Policy
from fractal_core.duty import WHOLE, Share, read_events
from fractal_core.local import LocalCrew, Patience
from fractal_core.machine import Slot

QUICK = Policy(backoff=0.01)
pytestmark = pytest.mark.usefixtures("laboratory")


@pytest.fixture(autouse=True)
def no_copies(monkeypatch):
    """Workers are begun anew: a copy of a test's process would carry its captured output along."""
    monkeypatch.delitem(sys.modules, "fractal_core.kernels.cpu", raising=False)


def drive(
    store: Store,
    slots: int = 2,
    policy: Policy = QUICK,
    patience: Patience | None = None,
    share: Share = WHOLE,
    crew: Callable[..., LocalCrew] = LocalCrew,
) -> list[Exit]:
    """Run what is missing in a crew that is watched by this process."""
    places = [Slot(index, "cpu", 1) for index in range(slots)]
    return list(
        engine.run(
            store, lambda store: crew(store.path, places, patience), share=share, policy=policy
        )
    )


class Killer(LocalCrew):
    """A crew of which about every other attempt loses its worker, at any instant of it.

    After `MOST` attempts a unit is left alone: where all is slow, every strike comes in time.
    """

    MOST = 8
    dice = random.Random()

    def do(self, slot: Slot, order: Order) -> Exit:
        if order.attempt > self.MOST or self.dice.random() < 0.2:
            return super().do(slot, order)
        over = threading.Event()
        striking = threading.Thread(target=self._strike, args=(slot, order, over))
        striking.start()
        exit = super().do(slot, order)
        over.set()
        striking.join()
        return exit

    def _strike(self, slot: Slot, order: Order, over: threading.Event) -> None:
        store = self.store
        before = begun(store, order.unit)
        if self.dice.random() < 0.9:  # else while it still begins, perhaps
            while begun(store, order.unit) == before and not over.wait(0.005):
                pass
        if not over.wait(self.dice.uniform(0, 0.12)):
            with contextlib.suppress(KeyError, psutil.NoSuchProcess):
                victim = psutil.Process(self.processes()[slot.index])
                if str(store.path) in victim.cmdline() and not over.is_set():
                    victim.kill()


def kill_half(tmp_path: Path, rows: int, cols: int, slots: int) -> None:
    clean = run_clean(tmp_path / "clean", rows, cols)
    store = make(tmp_path / "run", rows, cols)
    tell(store, "nap 0.08")
    # Those die for certain, however late the strikes come.
    tell(store, "once signal SIGKILL\nnap 0.08", *list(store.units.values())[-3:])
    crew = type("Crew", (Killer,), {"store": store})
    exits = drive(store, slots, Policy(attempts=20, backoff=0.01), crew=crew)
    done = [exit.order.unit.key for exit in exits if exit.code == 0]
    assert sorted(done) == sorted(store.units)
    killed = [exit for exit in exits if exit.code == -signal.SIGKILL]
    assert len(killed) > 2
    assert {exit.code for exit in exits} == {0, -signal.SIGKILL}
    assert store.verify() == []
    assert store.failures() == {}
    same_answers(store, clean)
    attempts = [exit.order.attempt for exit in exits]
    print(f"{len(done)} units, {len(exits)} attempts, {len(killed)} killed, most {max(attempts)}")


def test_half_of_all_attempts_killed_change_no_answer(tmp_path):
    """Workers die at random instants; all is done in the end and equals a quiet run."""
    kill_half(tmp_path, 32, 32, slots=3)


@pytest.mark.faults
def test_half_of_all_attempts_killed_of_five_hundred_units(tmp_path):
    """The same, with 534 units in 4 slots."""
    kill_half(tmp_path, 160, 160, slots=4)


def test_slots_and_shares_change_no_byte(tmp_path):
    """In this process, in one slot, in two, and in two shares one after the other."""
    clean = run_clean(tmp_path / "clean")
    for slots in (1, 2):
        store = make(tmp_path / f"{slots}")
        assert {exit.code for exit in drive(store, slots)} == {0}
        assert store.missing() == []
        same_answers(store, clean)
    store = make(tmp_path / "shares")
    drive(store, share=Share(1, 2))
    assert len(store.missing()) == len(store.units) // 2
    drive(store, share=Share(2, 2))
    assert store.missing() == []
    same_answers(store, clean)


def test_every_failure_has_its_own_end_and_harms_no_other(tmp_path):
    """Killed, hung, out of memory, gone without a word, wrong: named, tried as often as it helps."""
    clean = run_clean(tmp_path / "clean")
    store = make(tmp_path / "run")
    *_, poison, hang, leaves, wrong, large, tight, blown, system = store.units.values()
    tell(store, "signal SIGKILL", poison)
    tell(store, "nap 600", hang)
    tell(store, "exit 0", leaves)
    tell(store, "fail these 17 are not those 18", wrong)
    tell(store, f"memory {len(large.cells()[0]) // 2}", large)
    tell(store, "memory 0", tight)
    tell(store, "diverge", blown)
    tell(store, "exit 3", system)
    patience = Patience(stuck=10.0, factor=1.0, grace=1.0)
    exits = drive(store, patience=patience)
    attempts = {
        unit: [exit for exit in exits if exit.order.unit == unit] for unit in store.units.values()
    }
    ends = {unit: (len(tries), tries[-1].code) for unit, tries in attempts.items()}
    assert all(
        [exit.final for exit in tries] == [False] * (len(tries) - 1) + [True]
        for tries in attempts.values()
    )
    notes = store.failures()
    failed = {
        poison: (3, -signal.SIGKILL, "killed by SIGKILL"),
        hang: (3, -signal.SIGKILL, "hung: no progress for 10 s"),
        leaves: (3, 1, "ended without a result"),
        wrong: (1, worker.WRONG, "RuntimeError: these 17 are not those 18"),
        tight: (2, worker.MEMORY, "out of memory with"),
        system: (3, 3, "ended with exit code 3"),
    }
    for unit, (tries, code, cause) in failed.items():
        assert ends[unit] == (tries, code), cause
        assert cause in notes[unit.key]["cause"]
        assert notes[unit.key]["exit_code"] == code
    assert set(notes) == {unit.key for unit in failed}
    assert ends[large] == (2, 0)
    assert ends[blown] == (1, 0)
    assert np.all(store.read(blown)["outcome"] == Outcome.DIVERGED)
    others = [unit for unit in store.units.values() if unit not in (*failed, blown)]
    same_answers(store, clean, others)

    mischief.forget(store)
    again = drive(store)
    assert {exit.order.unit for exit in again} == set(failed)
    assert {exit.code for exit in again} == {0}
    assert store.failures() == {}
    assert store.missing() == []
    same_answers(store, clean, failed)


def test_what_fits_in_memory_is_what_the_next_units_get(tmp_path):
    """Those that begin before the first is tried again find out; the others begin with half."""
    store = make(tmp_path / "run")
    tell(store, "memory 32")
    exits = drive(store, slots=1)
    failed = [exit.order.unit for exit in exits if exit.code]
    assert {exit.code for exit in exits} == {0, worker.MEMORY}
    assert len(failed) == len(set(failed)) < 5
    assert store.missing() == []


def test_the_first_five_units_failing_alike_stop_the_run(tmp_path):
    """One sentence with the cause, and not a failure for every unit."""
    store = make(tmp_path / "run")
    tell(store, "fail no such data set as number 5")
    answer = fractal(store, "--slots", "2")
    assert answer.returncode == 2
    assert answer.stderr.count("\n") == 1, answer.stderr
    assert "first 5 units failed alike (RuntimeError: no such data set" in answer.stderr
    assert 5 <= len(store.failures()) <= 6
    tell(store, "nap 0")
    assert fractal(store).returncode == 0


def test_a_worker_of_other_code_than_its_supervisor_works_on_nothing(tmp_path, monkeypatch):
    """What has changed meanwhile is named; old and new numbers are never mixed."""
    monkeypatch.setattr(
        mischief.Mischief, "contract", lambda self, seed: {"arithmetic": "mischief-0"}
    )
    store = make(tmp_path / "run")
    with pytest.raises(Refused, match=r"contract\.arithmetic was mischief-0 and is mischief-1"):
        drive(store)
    assert store.files.list("units") == []
    answer = fractal(store)
    assert answer.returncode == 2
    assert "contract.arithmetic was mischief-0 and is mischief-1" in answer.stderr


def test_a_hung_unit_is_ended_with_its_children_and_replaced(tmp_path):
    """It gives no sign of progress though it lives; the next attempt is another process."""
    store = make(tmp_path / "run")
    unit = list(store.units.values())[-1]
    tell(store, "once offspring\nonce nap 600", unit)
    exits = drive(store, patience=Patience(stuck=10.0, factor=1.0, grace=1.0))
    causes = [exit.cause for exit in exits if exit.code]
    assert set(causes) == {"hung: no progress for 10 s"}
    assert begun(store, unit) == 2
    assert store.missing() == []
    until(lambda: not any(map(alive, born(store, unit))), "the end of the children")


def test_a_stopped_worker_is_replaced(tmp_path):
    """A process that is frozen beats no more; it is ended, and waking it up does nothing."""
    store = make(tmp_path / "run")
    unit = list(store.units.values())[-1]
    tell(store, "once signal SIGSTOP", unit)
    exits = drive(store, patience=Patience(silence=10.0, grace=0.5))
    assert {exit.cause for exit in exits if exit.code} == {"gave no sign of life for 10 s"}
    assert store.missing() == []
    assert store.files.list("quarantine") == []


class ByHand:
    """A worker without a supervisor."""

    def __init__(self, store: Store):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fractal_core.worker", str(store.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
        )

    def order(self, key: str) -> None:
        print(json.dumps({"unit": key, "launch": None, "attempt": 1}), file=self.process.stdin)

    def answer(self) -> dict:
        """The next answer that is about a unit."""
        while "unit" not in (answer := json.loads(self.process.stdout.readline())):
            pass
        return answer

    def leave(self) -> int:
        self.process.stdin.close()
        self.process.stdout.close()
        return self.process.wait(timeout=DEADLINE)


@pytest.mark.parametrize("answers", ["equal", "different"])
def test_a_zombie_that_wakes_up_commits_nothing(tmp_path, answers):
    """Of two processes with one unit the first wins; the second's answer is kept if it differs."""
    store = make(tmp_path / "run")
    unit = next(iter(store.units.values()))
    tell(store, "once wait go" + ("\ndiffer" if answers == "different" else ""), unit)
    zombie, other = ByHand(store), ByHand(store)
    zombie.order(unit.key)
    until(lambda: begun(store, unit) == 1, "the first attempt")
    zombie.process.send_signal(signal.SIGSTOP)
    other.order(unit.key)
    assert other.answer()["committed"]
    committed = store.files.get(f"units/{unit.key}.npz")
    mischief.go(store)
    zombie.process.send_signal(signal.SIGCONT)
    assert zombie.answer() | {"seconds": 0} == {
        "unit": unit.key,
        "seconds": 0,
        "committed": False,
    }
    assert zombie.leave() == other.leave() == 0
    assert store.files.get(f"units/{unit.key}.npz") == committed
    assert len(store.files.list("quarantine")) == (answers == "different")
    assert store.verify() == []


def test_a_worker_asked_to_leave_finishes_what_it_has_in_hand(tmp_path):
    """SIGTERM is no loss, and its exit code is that of temporary trouble."""
    store = make(tmp_path / "run")
    unit = next(iter(store.units.values()))
    tell(store, "nap 1")
    lone = ByHand(store)
    lone.order(unit.key)
    until(lambda: begun(store, unit), "the attempt")
    lone.process.terminate()
    assert lone.answer()["committed"]
    assert lone.process.wait(timeout=DEADLINE) == worker.TEMPORARY
    lone.leave()


def test_a_question_to_the_keyboard_is_an_error_and_takes_no_order(tmp_path):
    """Nobody sits there; what waits for an answer would wait for ever."""
    store = make(tmp_path / "run")
    unit = list(store.units.values())[-1]
    tell(store, "ask", unit)
    drive(store)
    assert "EOFError" in store.failures()[unit.key]["cause"]
    assert store.missing() == [unit]


@pytest.mark.parametrize("end", ["", "signal SIGKILL", "exit 0", "fail"])
def test_nothing_outlives_its_unit(tmp_path, end):
    """Children in sessions of their own and forked twice, also after their worker was killed."""
    store = make(tmp_path / "run", 8, 8)
    (unit, *_) = store.units.values()
    tell(store, f"offspring\n{end}".strip(), unit)
    exits = drive(store, slots=1)
    assert len(born(store, unit)) == 4 * len([e for e in exits if e.order.unit == unit])
    assert bool(store.missing()) == bool(end)
    until(lambda: not any(map(alive, born(store, unit))), "the end of the children")


def test_the_children_of_a_copied_worker_end_with_it(tmp_path):
    """The same for the workers that are forks of their supervisor."""
    store = make(tmp_path / "run", 8, 8)
    (unit, *_) = store.units.values()
    tell(store, "once offspring\nonce signal SIGKILL", unit)
    code = (
        "import fractal_core.kernels.cpu, sys; from fractal_core.__main__ import main\n"
        f"sys.argv = ['fractal', 'run', {str(store.path)!r}]; main()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdin=subprocess.DEVNULL)
    assert born(store, unit)
    until(lambda: not any(map(alive, born(store, unit))), "the end of the children")


@pytest.mark.parametrize(("loaded", "begun"), [("", "-c"), (", torch", "-m")])
def test_a_process_in_which_torch_may_compute_is_not_copied(tmp_path, loaded, begun):
    """A copy has none of torch's threads, and would wait for them."""
    store = make(tmp_path / "run", 8, 8)
    code = (
        f"import psutil, fractal_core.kernels.cpu{loaded}\nfrom pathlib import Path\n"
        "from fractal_core import local, machine\n"
        f"crew = local.LocalCrew(Path({str(store.path)!r}), machine.slots(('cpu',), 1))\n"
        "print(psutil.Process(crew.processes()[0]).cmdline()[1])\ncrew.close()\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert done.stdout.decode().split() == [begun]


def flood(store: Store, amount: int) -> None:
    """One unit prints so much; its supervisor stays small and the others go on."""
    unit = list(store.units.values())[-1]
    tell(store, f"flood {amount}", unit)
    with subprocess.Popen(
        [sys.executable, "-m", "fractal_core", "run", str(store.path)],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    ) as process:
        most = 0
        while process.poll() is None:
            try:
                most = max(most, psutil.Process(process.pid).memory_info().rss)
            except psutil.NoSuchProcess:
                break
            time.sleep(0.1)
    assert process.returncode == 0
    assert store.missing() == []
    (log,) = store.path.glob("state/logs/*.txt")
    size = log.stat().st_size
    assert size <= 64 * 2**20 + 2**18
    assert log.read_bytes().endswith(b"\nthe last line\n")
    assert 2**20 < most < 300e6
    print(f"{amount / 1e6:.0f} MB said, {size / 1e6:.1f} MB kept, {most / 1e6:.0f} MB of memory")


def test_a_flood_of_words_neither_stops_nor_fills_anything(tmp_path):
    """100 MB, half of it in one line without an end."""
    flood(make(tmp_path / "run", 16, 16), 10**8)


@pytest.mark.faults
def test_a_gigabyte_of_words_neither_stops_nor_fills_anything(tmp_path):
    """The same, ten times as much."""
    flood(make(tmp_path / "run", 16, 16), 10**9)


SECRETS = {
    "HF_TOKEN": "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZ01234567",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "AWS_ACCESS_KEY_ID": "AKIAQQQQWWWWEEEERRRR",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIK7MDENGbPxRfiCYzzzzzzzzzzzz",
    "MY_DATABASE": "postgres://owner:correct-horse-battery@db.example/x",
}


def test_no_secret_reaches_the_run_folder(tmp_path, monkeypatch):
    """Planted in the environment, printed, raised, in what fails and in what is told of it."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    told = tmp_path / "secrets.txt"
    told.write_text("\n".join(f"{name}={value}" for name, value in SECRETS.items()))
    store = make(tmp_path / "run", 16, 16)
    first, *_, last = store.units.values()
    tell(store, f"environment\nprint {told}\nraise-from {told}", last)
    tell(store, f"environment\nprint {told}\nprint {told}", first)
    answer = fractal(store)
    assert answer.returncode == 1, answer.stderr
    assert "[redacted]" in store.failures()[last.key]["cause"]
    said = {str(path): path.read_bytes() for path in store.path.rglob("*") if path.is_file()}
    said |= {"stderr": answer.stderr.encode(), "stdout": answer.stdout.encode()}
    values = [*SECRETS.values(), "correct-horse-battery"]
    found = [
        (name, value) for name, data in said.items() for value in values if value.encode() in data
    ]
    assert found == []
    log = next(store.path.glob("state/logs/*.txt")).read_text()
    assert "WANDB_API_KEY=[redacted]" in log
    assert "FRACTAL_THREADS" in log  # the environment was printed, and holds none of them
    assert [event for event in read_events(store.path) if event["event"] == "failed"]
