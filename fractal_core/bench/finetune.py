"""What a fine-tuning run costs in a sweep, against the old way: a process for every point.

Both train the same points from the same weights on the same rows in the same order, on one thread.
The old way is `afresh`, the new one `FineTune`. They take turns, and three things are told apart:

    start       seconds until a process can train; a worker starts once for all its points
    training    seconds of a step, from its forward pass to its update, the first one left out
    everything  seconds of a point, from the command to the last result; and those that processors
                worked for it, which other work on the machine disturbs less

Two ways to sum the same numbers differ by rounding, and training makes much of a little. So the
difference between their curves stands beside that of the old way from itself, where the rows of
its batches change places, which changes a loss by rounding alone.
"""

import contextlib
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fractal_core import conversations, engine, machine
from fractal_core.bench import standin
from fractal_core.bench.rounds import Rates, take_turns
from fractal_core.bench.standin import Shape
from fractal_core.duty import read_events
from fractal_core.finetune import MOST_TOKENS, Device, Dtype, FineTune
from fractal_core.local import LocalCrew
from fractal_core.plane import Axis, Region
from fractal_core.store import Store
from fractal_core.stream import Stream
from fractal_core.sweep import Sweep

if TYPE_CHECKING:
    from fractal_core.tuner import RunSettings, Tuner

NEW, OLD = "fractal", "afresh"
ORDERS = 3
"""Other orders of the rows of a batch in which the old way is compared with itself."""

SCRIPT = Path(__file__).with_name("afresh.py")


@dataclass(frozen=True)
class Case:
    """What is trained.

    Args:
        shape: Sizes of model and texts.
        steps: Of a run.
        device: Where.
        dtype: Precision of the computation.
        side: Rows and columns of the map, for everything.
        points: How many of its points the old way trains in a turn.
    """

    shape: Shape
    steps: int
    device: Device = "cpu"
    dtype: Dtype = "float32"
    side: int = 12
    points: int = 2

    @classmethod
    def usual(cls, what: str, device: Device) -> "Case":
        """The case of `training` or of `everything` that is measured on a device."""
        if device == "cuda":
            shape, steps = Shape(20, 65536, 1024, 400), {"training": 200, "everything": 9}[what]
            return cls(shape, steps, device, "bfloat16")
        if what == "training":
            return cls(Shape(4, 65536, 1024, 400), 3)
        return cls(Shape(2, 1024, 128, 85, 0.04), 9)


@dataclass(frozen=True)
class Result:
    """What was measured.

    Args:
        case: Of what.
        texts: Of the rows that were used: how many, mean and greatest length, share learned.
        start: Seconds per point of either way, the median of all turns.
        training: Steps per second.
        everything: Points per second; None where training alone was measured.
        processor: The same per second of a processor.
        curves: The losses of the points that both ways have trained, (points, steps) each; as
            `permuted` those of the old way with its rows in other orders, (..., points, steps).
        repeated: Whether every turn gave the same bits.
    """

    case: Case
    texts: dict[str, float]
    start: dict[str, float]
    training: Rates
    everything: Rates | None
    processor: Rates | None
    curves: dict[str, np.ndarray]
    repeated: bool

    def difference(self, name: str) -> float:
        """The largest difference of a way's losses from those of the old way, in nats."""
        return float(np.nanmax(np.abs(self.curves[name] - self.curves[OLD])))

    def rates(self) -> dict[str, Rates | None]:
        """What is done per second, by the name of one of it."""
        return {
            "step": self.training,
            "point": self.everything,
            "point_of_a_processor": self.processor,
        }

    def report(self) -> dict[str, Any]:
        """All of it as plain JSON data; seconds are medians over the rounds."""
        digests = {
            name: hashlib.sha256(curves.astype("<f4").tobytes()).hexdigest()
            for name, curves in self.curves.items()
        }
        found = {"case": asdict(self.case), "texts": self.texts, "seconds_to_start": self.start}
        for name, rates in self.rates().items():
            if rates is not None:
                seconds = {way: 1 / rates.median(way) for way in rates.by_name}
                found[f"seconds_per_{name}"] = seconds
                found[f"times_faster_per_{name}"] = rates.ratio(NEW, OLD)
        return found | {
            "largest_difference": {name: self.difference(name) for name in (NEW, "permuted")},
            "curves_sha256": digests,
            "repeated": self.repeated,
        }


def training(case: Case, rounds: int) -> Result:
    """Steps alone: a process of the old way against this one, which has the model loaded.

    Every round has another order of texts, so the first step is shared with no other run.
    """
    with _ground(case) as ground:
        tuner = ground.experiment.tuner()
        _timed(tuner, ground.experiment.settings(0))
        rates: dict[str, list[float]] = {NEW: [], OLD: []}
        curves: dict[str, list[np.ndarray]] = {NEW: [], OLD: [], "permuted": []}
        starts = []
        for seed in range(1, rounds + 1):
            settings = ground.experiment.settings(seed)
            old = ground.afresh(settings)
            curve, first, seconds = _timed(tuner, settings)
            counted = slice(first, len(curve))
            rates[NEW].append((len(curve) - first) / seconds)
            rates[OLD].append((len(curve) - first) / sum(old["steps"][counted]))
            starts.append(old["start"])
            curves[NEW].append(_filled(curve, case.steps))
            curves[OLD].append(_filled(old["curve"], case.steps))
            curves["permuted"].append(ground.permuted(settings))
        again = _timed(tuner, settings)[0]
        return Result(
            case,
            ground.texts(ground.experiment.settings(1)),
            {OLD: statistics.median(starts)},
            Rates(rates),
            None,
            None,
            {name: np.stack(of, axis=-2) for name, of in curves.items()},
            bool(np.array_equal(_filled(again, case.steps), curves[NEW][-1], equal_nan=True)),
        )


def everything(case: Case, rounds: int) -> Result:
    """Whole points: run folders whose units a worker trains, against a process for each point."""
    with _ground(case) as ground:
        new: list[_Map] = []
        old: list[list[dict[str, Any]]] = []
        chosen = ground.chosen()

        worked: dict[str, list[float]] = {NEW: [], OLD: []}

        def map_all() -> float:
            before = _worked()
            new.append(ground.map(len(new)))
            worked[NEW].append(len(new[-1].curves) / (_worked() - before))
            return float(len(new[-1].curves))

        def one_by_one() -> float:
            before = _worked()
            old.append([ground.afresh(settings) for settings in chosen.values()])
            worked[OLD].append(len(chosen) / (_worked() - before))
            return float(len(chosen))

        points = take_turns({NEW: map_all, OLD: one_by_one}, rounds)
        steps: dict[str, list[float]] = {
            NEW: [case.steps / turn.seconds for turn in new[1:]],
            OLD: [
                sum(len(run["steps"]) for run in turn) / sum(sum(run["steps"]) for run in turn)
                for turn in old[1:]
            ],
        }
        permuted = [ground.permuted(settings) for settings in chosen.values()]
        curves = {
            NEW: new[-1].curves[list(chosen)],
            OLD: np.stack([_filled(run["curve"], case.steps) for run in old[-1]]),
            "permuted": np.stack(permuted, axis=-2),
        }
        bits = {turn.curves.tobytes() for turn in new}
        bits_afresh = {json.dumps([run["curve"] for run in turn]) for turn in old}
        starts = {
            NEW: statistics.median(turn.start / len(turn.curves) for turn in new[1:]),
            OLD: statistics.median(run["start"] for turn in old[1:] for run in turn),
        }
        texts = ground.texts(next(iter(chosen.values())))
        repeated = len(bits) == len(bits_afresh) == 1
        processor = Rates({name: of[1:] for name, of in worked.items()})
        return Result(case, texts, starts, Rates(steps), points, processor, curves, repeated)


@dataclass(frozen=True)
class _Map:
    """A run folder that was trained: all losses, seconds of its start, and those of a point."""

    curves: np.ndarray
    start: float
    seconds: float


@dataclass(frozen=True)
class _Ground:
    """A folder with model and texts, and what is trained in it."""

    folder: Path
    case: Case
    experiment: FineTune

    @cached_property
    def sweep(self) -> Sweep:
        ends = ((1e-3, 1e-2), (1e-4, 1e-3))
        axes = zip(self.experiment.axes, ends, strict=True)
        region = Region(*(Axis(name, *of, self.case.side) for name, of in axes))
        return Sweep.over(self.experiment, region)

    def chosen(self) -> "dict[int, RunSettings]":
        """Points that the old way trains, spread over the map, by their place among the units."""
        store = Store.create(self.folder / "plan", self.sweep)
        points = np.concatenate([store.points(unit) for unit in store.units.values()])
        places = np.linspace(0, len(points) - 1, self.case.points).round().astype(int)
        runs = {int(place): self.experiment.at(points[place], 0) for place in places}
        return {place: experiment.settings(seed) for place, (experiment, seed) in runs.items()}

    def map(self, turn: int) -> _Map:
        """Train the whole map in a new run folder, with one worker."""
        began = time.time()
        store = Store.create(self.folder / f"map{turn}", self.sweep)
        slots = machine.slots(self.experiment.devices, 1)
        for exit in engine.run(store, lambda store: LocalCrew(store.path, slots[:1])):
            assert exit.committed, exit
        events = read_events(store.path)
        first = next(event["time"] for event in events if event["event"] == "committed")
        outcomes = store.outcomes(list(store.units.values()))
        seconds = float(np.median(outcomes.seconds))
        return _Map(outcomes.extras["curve"], first - began - seconds, seconds)

    def afresh(self, settings: "RunSettings", permuted: int | None = None) -> dict[str, Any]:
        """What a process of the old way says about its run."""
        folder = self._rows(settings)
        task = {
            "checkpoint": (self.experiment.checkpoint, 0),
            "device": self.case.device,
            "dtype": self.case.dtype,
            "settings": asdict(settings),
            "permuted": permuted,
            "began": time.time(),
        }
        (folder / "task.json").write_text(json.dumps(task))
        answer = subprocess.run(
            [sys.executable, "-P", str(SCRIPT), str(folder)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"},
        )
        return json.loads(answer.stdout)

    def permuted(self, settings: "RunSettings") -> np.ndarray:
        """Losses of the old way with the rows of its batches in other orders, (orders, steps)."""
        runs = [self.afresh(settings, draw) for draw in range(ORDERS)]
        return np.stack([_filled(run["curve"], self.case.steps) for run in runs])

    def texts(self, settings: "RunSettings") -> dict[str, float]:
        """Of the rows of a run: how many, mean and greatest length, share of learned tokens."""
        with np.load(self._rows(settings) / "rows.npz") as rows:
            lengths = np.diff(rows["starts"])
            return {
                "texts": len(lengths),
                "tokens_mean": round(float(lengths.mean()), 1),
                "tokens_most": int(lengths.max()),
                "learned": round(float(rows["learned"].mean()), 4),
            }

    def _rows(self, settings: "RunSettings") -> Path:
        """A folder with the rows of a run in the order of their use."""
        folder = self.folder / f"rows{settings.seed}"
        if not folder.exists():
            folder.mkdir()
            stream = Stream(self._texts, settings.sequence_length, settings.seed)
            count = settings.batch_size * settings.accumulation * len(settings.multipliers)
            ids, learned = zip(*(stream.row(place) for place in range(count)), strict=True)
            np.savez(
                folder / "rows.npz",
                ids=np.concatenate(ids),
                learned=np.concatenate(learned),
                starts=np.cumsum([0, *map(len, ids)]),
            )
        return folder

    @cached_property
    def _texts(self) -> conversations.TokenSet:
        from nanochat.tokenizer import RustBPETokenizer

        tokenizer = RustBPETokenizer.from_directory(self.experiment.checkpoint)
        return conversations.tokenised(
            self.experiment.data,
            "train",
            tokenizer.render_conversation,
            tokenizer.fingerprint,
            MOST_TOKENS,
        )


@contextlib.contextmanager
def _ground(case: Case) -> Iterator[_Ground]:
    """A folder for everything, storage included, which is removed afterwards."""
    before = os.environ.get("FRACTAL_STORAGE")
    with tempfile.TemporaryDirectory(prefix="fractal-") as name:
        folder = Path(name)
        os.environ["FRACTAL_STORAGE"] = str(folder / "storage")
        try:
            experiment = FineTune(
                num_steps=case.steps,
                window=max(1, (case.steps - 1) // 2),
                sequence_length=case.shape.longest,
                device=case.device,
                dtype=case.dtype,
            )
            # Every text once in a run, and one of twenty is held out.
            texts = 2 * case.steps * experiment.batch_size
            checkpoint, data = standin.write(folder / "model", case.shape, texts)
            yield _Ground(folder, case, replace(experiment, checkpoint=checkpoint, data=data))
        finally:
            if before is None:
                del os.environ["FRACTAL_STORAGE"]
            else:
                os.environ["FRACTAL_STORAGE"] = before


def _worked() -> float:
    """Seconds that processors have worked for this process and those that it has seen end."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _timed(tuner: "Tuner", settings: "RunSettings") -> tuple[np.ndarray, int, float]:
    """Losses of a run, how many of them were known first, and the seconds that the rest took."""
    losses, known = [], []
    for part in tuner.steps(settings, finish=True):
        known.append(time.perf_counter())
        losses.append(part)
    return np.concatenate(losses), len(losses[0]), known[-1] - known[0]


def _filled(losses: Sequence[float] | np.ndarray, steps: int) -> np.ndarray:
    """Losses in float32, with NaN for those that a run did not come to."""
    curve = np.full(steps, np.nan, np.float32)
    curve[: len(losses)] = losses
    return curve


MEASURES: dict[str, Callable[[Case, int], Result]] = {
    "training": training,
    "everything": everything,
}
