"""Keeps Weights & Biases up to date with a run folder, from a process that no run waits for.

The mirror only reads the folder. Whether the server is down, slow or refuses, the workers never
learn of it; and the mirror ends some time after they do, whatever the server does.
"""

import fcntl
import io
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Picture

from fractal_core import control, figures, tracking
from fractal_core.dimension import dimension
from fractal_core.duty import detach, lock_holder
from fractal_core.errors import Refused
from fractal_core.files import read_json
from fractal_core.outcome import is_trainable
from fractal_core.roughness import pitch_of
from fractal_core.store import Image, Store, exported
from fractal_core.sweep import LEVELS
from fractal_core.tracking import PATIENCE, Record, Subject, Unsent

STATUS_SECONDS, PICTURE_SECONDS = 30.0, 60.0
GRACE_SECONDS = 60.0
START_SECONDS = 30.0
"""How long a run that is to be followed may take to begin."""

SMALLEST_PICTURE = 512


def send(store: Store, patience: float = PATIENCE) -> str:
    """Send all that a run folder holds, or send it again; a sentence that says where it is.

    Args:
        store: The run, finished or not.
        patience: See `Record`.

    Raises:
        Unsent: Weights & Biases did not take it.
        Refused: Another process is sending it.
    """
    with _alone(store.path), _scratch() as scratch, _limit(store.path, patience):
        return _Mirror(store, patience, scratch).finish()


def follow(store: Store, patience: float = PATIENCE) -> str:
    """The same, and what there is so far again and again while a process works on the folder.

    What cannot be sent meanwhile is tried again; only the last word counts.
    """
    with _alone(store.path), _scratch() as scratch, _limit(store.path, patience):
        mirror = _Mirror(store, patience, scratch)
        for _ in _while_worked_on(store):
            mirror.update()
        return mirror.finish()


@dataclass(frozen=True)
class Follower:
    """A process that follows a run.

    Args:
        process: It, in a session of its own.
        log: What it says goes there,
        said: behind so many bytes.
    """

    process: subprocess.Popen
    log: Path
    said: int

    def last_words(self) -> str:
        """Wait until it has ended, and say what it said last."""
        self.process.wait()
        lines = self.log.read_bytes()[self.said :].decode(errors="replace").splitlines()
        return lines[-1] if lines else f"it ended with {self.process.returncode}, see {self.log}"


def start(path: Path, patience: float = PATIENCE) -> Follower:
    """Follow a run from a process of its own, which outlives the terminal.

    Raises:
        Refused: Weights & Biases is not installed, or switched off.
    """
    tracking.require_client()
    (path / "state").mkdir(exist_ok=True)
    log = path / "state" / "track.txt"
    said = log.stat().st_size if log.exists() else 0
    command = ["-m", "fractal_core", "track", str(path), "--follow", "--patience", str(patience)]
    return Follower(detach(command, log), log, said)


class _Mirror:
    """What of a run has been sent so far."""

    def __init__(self, store: Store, patience: float, scratch: Path):
        self.store, self.patience, self.scratch = store, patience, scratch
        self.record: Record | None = None
        self.told: dict[str, Any] = {}
        self.painted, self.drawn = -math.inf, -1

    def open(self) -> Record:
        if self.record is None:
            subject = Subject.of(self.store.path, self.store.sweep)
            self.record = Record(subject, self.patience, self.scratch)
        return self.record

    def update(self) -> None:
        """Send how far the run is; what fails is tried again the next time."""
        try:
            if tracking.single(self.store.sweep):
                self.open().steps(tracking.curve(self.store.path))
            else:
                self._progress()
                self._picture()
        except Unsent:
            self.record = None

    def _progress(self) -> None:
        state = control.progress(self.store)
        told = {
            "points_done": state.done,
            "share_done": state.done / state.points,
            "units_failed": state.failed,
            "points_per_second": state.points_per_second,
            "seconds_remaining": state.seconds_remaining,
        }
        told = {name: value for name, value in told.items() if value is not None}
        if told != self.told:
            self.open().log(told)
            self.told = told

    def _picture(self) -> None:
        done = len(self.store.units) - len(self.store.missing())
        if done != self.drawn and time.monotonic() - self.painted > PICTURE_SECONDS:
            self.painted, self.drawn = time.monotonic(), done
            self.open().picture("map", _paint(self.store.image()))

    def finish(self) -> str:
        """Send everything and end the record; a sentence that says where it is."""
        record = self.open()
        (self._run if tracking.single(self.store.sweep) else self._map)(record)
        record.close()
        if record.online:
            return f"{self.store.path}: sent to {record.place}"
        return (
            f"{self.store.path}: written to {record.place} as there is no key, or offline is asked "
            f"for; after `wandb login` send it with `{record.subject.again}`"
        )

    def _map(self, record: Record) -> None:
        image = self.store.image()
        self._progress()
        record.picture("map", _paint(image))
        figure = self.scratch / "figure.png"
        figures.save(figures.map_figure(image, labels=self.store.sweep.labels), figure)
        record.picture("figure", figure.read_bytes())
        rows, stride = tracking.points(image)
        record.table("table", tracking.COLUMNS, rows)
        told = tracking.counts(image)
        told |= {"units_failed": len(self.store.failures()), "table_stride": stride}
        record.summary(told | _dimension(self.store))
        files = {"map.npz": exported(image), "sweep.json": self._file("sweep.json")}
        record.artifact(f"sweep-{self.store.sweep.id}", "sweep", files)

    def _run(self, record: Record) -> None:
        path = self.store.path
        rows = tracking.curve(path)
        record.steps(rows)
        if samples := read_json(path / "single" / "samples.json", []):
            texts = [
                [tracking.clean(sample.get(n)) for n in tracking.SAMPLES] for sample in samples
            ]
            record.table("samples", tracking.SAMPLES, texts)
        memory = [row["memory"] for row in rows if "memory" in row]
        told = read_json(path / "single" / "result.json", {})
        told.pop("checkpoint", None)  # where it lies on this machine
        record.summary(told | ({"peak_memory": max(memory)} if memory else {}))
        files = {"sweep.json": self._file("sweep.json")}
        for name in ("metrics.jsonl", "samples.json", "result.json"):
            if (path / "single" / name).exists():
                files[name] = self._file(f"single/{name}")
        record.artifact(f"run-{self.store.sweep.id}", "run", files)
        if (path / "single" / "checkpoint").is_dir():
            record.artifact(f"model-{self.store.sweep.id}", "model", path / "single" / "checkpoint")

    def _file(self, key: str) -> bytes:
        return tracking.cleaned(self.store.files.get(key))


def _paint(image: Image) -> bytes:
    """The map so far as PNG, a square of pixels a cell: its finest lattice of which half is there."""
    known = ~np.ma.getmaskarray(image.outcome)
    strides = [2**level for level in range(LEVELS)]
    stride = next((s for s in strides if known[::s, ::s].mean() >= 0.5), strides[-1])
    lattice = replace(image, measure=image.measure[::stride, ::stride])
    colours = figures.paint(lattice)[::-1]
    zoom = max(1, SMALLEST_PICTURE // max(colours.shape[:2]))
    buffer = io.BytesIO()
    Picture.fromarray(colours.repeat(zoom, axis=0).repeat(zoom, axis=1)).save(buffer, "PNG")
    return buffer.getvalue()


def _dimension(store: Store) -> dict[str, Any]:
    """The dimension of the trainability boundary of a finished map, never without its interval."""
    outcome = store.image().outcome
    if np.ma.getmaskarray(outcome).any() or min(outcome.shape) < 2:
        return {}
    found = dimension(np.asarray(is_trainable(outcome)), pitch_of(store.sweep.grid)[0])
    told = {"verdict": found.verdict, "reason": found.reason, "value": found.value}
    told |= {"low": found.low, "high": found.high}
    return {f"dimension_{name}": value for name, value in told.items()}


def _while_worked_on(store: Store) -> Iterator[None]:
    """Now and then as long as a process works on a run, which may have to begin first."""
    deadline = time.monotonic() + START_SECONDS
    while lock_holder(store.path) is None:
        if not store.missing() or time.monotonic() > deadline:
            return
        time.sleep(0.1)
    due = 0.0
    while lock_holder(store.path) is not None:
        if time.monotonic() >= due:
            due = time.monotonic() + STATUS_SECONDS
            yield
        time.sleep(0.5)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Be the one process that sends a run, for two would mix their histories."""
    (path / "state").mkdir(exist_ok=True)
    with (path / "state" / "mirror").open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(
                f"{path} is being sent to Weights & Biases by another process; wait for it and try "
                "again"
            ) from None
        yield


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fractal-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextmanager
def _limit(path: Path, patience: float) -> Iterator[None]:
    """End this process if the client hangs for long after the run, in spite of its own limits."""
    over = threading.Event()

    def watch() -> None:
        while lock_holder(path) is not None:
            if over.wait(1.0):
                return
        upload = tracking.size(path) / tracking.SLOWEST
        if not over.wait(GRACE_SECONDS + 5 * patience + upload):
            print(
                f"fractal: Weights & Biases hangs; the run folder holds everything, and `fractal "
                f"track {path}` sends it again",
                file=sys.stderr,
                flush=True,
            )
            os._exit(2)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()
