"""An experiment that misbehaves where it is told to, the way it gets into workers, and how to look.

Workers look experiments up by name, so one of a test has to be imported where they begin. They
keep `PYTHONPATH`, and Python imports a `sitecustomize` that it finds there: `install` writes one.
What a unit does is read from a folder beside the run when it begins, so a test can change its mind
between two attempts.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from formula import Formula
from waiting import Program, alive

from fractal_core import Axis, Outcome, Outcomes, Region, Store, Sweep
from fractal_core.engine import run_here
from fractal_core.experiments import EXPERIMENTS
from fractal_core.store import ARRAYS
from fractal_core.sweep import Unit


@dataclass(frozen=True)
class Mischief(Formula):
    """Outcomes by a formula, after whatever `tell` said that a unit does first.

    Args:
        scratch: Folder of what units are told, and of what they leave.
    """

    scratch: str
    axes: tuple[str, str] = ("x", "y")
    dtype: str = "float64"

    def contract(self, seed: int) -> dict[str, str]:
        return {"arithmetic": "mischief-1"}

    def run(self, points: np.ndarray, *, seed: int, record: Sequence[int] = ()) -> Outcomes:
        x, y = points.T
        outcomes = Outcomes(
            outcome=(1 + (x * y > 1e3)).astype(np.uint8),
            measure=np.log(x) + 1e3 * np.log(y) + seed,
            first_loss=x.copy(),
            tail_loss=y.copy(),
            final_loss=x * y,
            steps=np.full(len(x), 7, np.int32),
            seconds=np.full(len(x), time.perf_counter()),
        )
        name = _name(points)
        scratch = Path(self.scratch)
        with (scratch / f"{name}.begun").open("a") as file:
            file.write(f"{os.getpid()}\n")
        for told in (scratch / name, scratch / "all"):
            if told.exists():
                for line in told.read_text().splitlines():
                    act, _, rest = line.partition(" ")
                    ACTS[act](rest, outcomes, scratch / name)
                break
        return outcomes


EXPERIMENTS["Mischief"] = Mischief


def _name(points: np.ndarray) -> str:
    return "-".join(float(value).hex() for value in points[0])


def _once(rest: str, outcomes: Outcomes, place: Path) -> None:
    if len(place.with_name(f"{place.name}.begun").read_text().split()) == 1:
        act, _, rest = rest.partition(" ")
        ACTS[act](rest, outcomes, place)


def _fail(rest: str, outcomes: Outcomes, place: Path) -> None:
    raise RuntimeError(rest)


def _memory(rest: str, outcomes: Outcomes, place: Path) -> None:
    if len(outcomes.steps) > int(rest):
        raise MemoryError


def _flood(rest: str, outcomes: Outcomes, place: Path) -> None:
    # Lines, and at the end as much again in one piece.
    lines = b"".join(b"%07d of a flood of many words\n" % n for n in range(2**15))
    for _ in range(int(rest) // len(lines) // 2):
        os.write(2, lines)
    for _ in range(int(rest) // 2**17):
        os.write(1, b"x" * 2**16)
    os.write(1, b"\nthe last line\n")


def _offspring(rest: str, outcomes: Outcomes, place: Path) -> None:
    """Children of every kind that could escape; their ids go to a file."""
    born = place.with_name(f"{place.name}.born")
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    pids = [subprocess.Popen(sleep).pid, subprocess.Popen(sleep, start_new_session=True).pid]
    for program in (sleep, None):
        child = os.fork()
        if not child:
            os.setsid()
            if grandchild := os.fork():
                with born.open("a") as file:
                    file.write(f"{grandchild}\n")
                os._exit(0)
            if program:
                os.execv(program[0], program)
            time.sleep(600)
            os._exit(0)
        os.waitpid(child, 0)
    with born.open("a") as file:
        file.writelines(f"{pid}\n" for pid in pids)


def _wait(rest: str, outcomes: Outcomes, place: Path) -> None:
    while not place.with_name(rest).exists():
        time.sleep(0.01)


def _differ(rest: str, outcomes: Outcomes, place: Path) -> None:
    outcomes.measure[:] += os.getpid()


def _diverge(rest: str, outcomes: Outcomes, place: Path) -> None:
    outcomes.outcome[:] = Outcome.DIVERGED
    outcomes.tail_loss[:] = outcomes.final_loss[:] = np.nan


ACTS = {
    "once": _once,
    "fail": _fail,
    "memory": _memory,
    "flood": _flood,
    "offspring": _offspring,
    "wait": _wait,
    "differ": _differ,
    "diverge": _diverge,
    "nap": lambda rest, *_: time.sleep(float(rest)),
    "exit": lambda rest, *_: os._exit(int(rest)),
    "signal": lambda rest, *_: os.kill(os.getpid(), signal.Signals[rest]),
    "print": lambda rest, *_: print(Path(rest).read_text()),
    "raise-from": lambda rest, *_: _fail(Path(rest).read_text(), *_),
    "environment": lambda rest, *_: print(dict(os.environ)),
    "ask": lambda rest, *_: input("Trust it? [y/N] "),
}
"""What a unit can be told to do: the words after the name go to the function."""


def install(folder: Path) -> None:
    """Write the `sitecustomize` that brings this module into every Python that begins."""
    here = str(Path(__file__).parent)
    code = f"import sys; sys.path.append({here!r}); import mischief\n"
    (folder / "sitecustomize.py").write_text(code)


def make(path: Path, rows: int = 32, cols: int = 32, block: int = 8) -> Store:
    """A run folder of this experiment, and beside it the folder of what is told."""
    scratch = path.parent / f"{path.name}.scratch"
    scratch.mkdir(parents=True)
    region = Region(Axis("x", 1.0, 1e3, points=cols), Axis("y", 1.0, 1e3, points=rows))
    return Store.create(path, Sweep.over(Mischief(str(scratch)), region), block=block)


def scratch(store: Store) -> Path:
    """The folder of what is told."""
    return Path(store.sweep.recipe["settings"]["scratch"])


def tell(store: Store, act: str, *units: Unit) -> None:
    """Have these units do something from now on, or all units that are told nothing else."""
    # By each of its points, for it may be trained in several launches.
    points = [store.points(unit)[first:] for unit in units for first in range(_size(unit))]
    for name in map(_name, points) if units else ["all"]:
        (scratch(store) / name).write_text(act)


def go(store: Store) -> None:
    """End the waiting of units that were told to `wait go`."""
    (scratch(store) / "go").touch()


def forget(store: Store) -> None:
    """Take back all that was told."""
    for file in scratch(store).iterdir():
        if file.suffix not in (".begun", ".born"):
            file.unlink()


def _size(unit: Unit) -> int:
    return len(unit.cells()[0])


def begun(store: Store, unit: Unit) -> int:
    """How often the training of a unit began; of one that is trained in one piece."""
    file = scratch(store) / f"{_name(store.points(unit))}.begun"
    return len(file.read_text().split()) if file.exists() else 0


def born(store: Store, unit: Unit) -> list[int]:
    """Ids of the processes that a unit told of its offspring began."""
    file = scratch(store) / f"{_name(store.points(unit))}.born"
    return [int(pid) for pid in file.read_text().split()] if file.exists() else []


def same_answers(store: Store, clean: Store, units: Iterable | None = None) -> None:
    """Every array of every unit but the times, byte for byte."""
    for unit in clean.units.values() if units is None else units:
        mine, other = store.read(unit), clean.read(unit)
        for name in (*ARRAYS, "points"):
            if name != "seconds":
                assert mine[name].tobytes() == other[name].tobytes(), (unit, name)


def run_clean(path: Path, rows: int = 32, cols: int = 32) -> Store:
    store = make(path, rows, cols)
    for _ in run_here(store):
        pass
    return store


def begin(store: Store, *options: str) -> Program:
    """A supervisor in a process of its own."""
    return Program(
        [sys.executable, "-m", "fractal_core", "run", str(store.path), *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def fractal(store: Store, *options: str) -> subprocess.CompletedProcess[str]:
    """What becomes of one."""
    with begin(store, *options) as process:
        out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def at_work(store: Store) -> list[psutil.Process]:
    """Processes that name the run folder, ended ones left out."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(store.path) in process.cmdline() and alive(process.pid):
                found.append(process)
        except psutil.Error:
            continue
    return found
