"""Single runs of a folder: where they come from, how they begin, what they came to, side by side.

A single run is a run folder with one point and its curve: a tiny network (`network`) or a language
model (`single`). The disk is the truth; a notebook holds the name of one.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fractal_core import control, duty, experiments, explore, network, planner, single
from fractal_core.errors import Refused
from fractal_core.files import read_json, read_lines
from fractal_core.finetune import FineTune
from fractal_core.outcome import V_MOST
from fractal_core.redact import redact
from fractal_core.single import FOLDER, Watch
from fractal_core.store import Store
from fractal_core.sweep import Sweep
from fractal_core.tiny import TinyNetworks

MOST_POINTS = 1000
"""Points of a curve that are drawn."""

LOG_BYTES, QUESTION = 4096, 200
RATES = "lr_"
SAMPLES = ["question", "expected", "before", "after"]


@dataclass(frozen=True)
class Start:
    """Where a single run may start from: settings, a point of the plane, and a seed.

    Args:
        experiment: The settings.
        point: x and y.
        seed: Of the run.
        label: What it comes from: a preset or a run.
    """

    experiment: Any
    point: tuple[float, float]
    seed: int
    label: str


def from_preset(name: str) -> Start:
    """A preset at its own settings, or in the middle of its overview where it has none."""
    chosen = experiments.preset(name)
    experiment, values = chosen.experiment, []
    for axis, (low, high) in zip(experiment.axes, chosen.overview, strict=True):
        own = getattr(experiment, axis, None)
        middle = float(np.sqrt(low * high))
        value = middle if own is None else float(own)
        values.append(float(round(value)) if experiment.whole(axis) else value)
    return Start(experiment, (values[0], values[1]), 0, name)


def from_map(root: Path, name: str, x: str, y: str) -> Start:
    """The point of a map whose cell holds (x, y): its very values, so that the bits are the same.

    Raises:
        Refused: There is no such run, or no point (x, y) of it.
    """
    view = explore.open_view(root, name)
    grid = view.sweep.grid
    for axis, text in ((grid.region.x, x), (grid.region.y, y)):
        if not axis.low <= planner.number(axis.name, text) <= axis.high:
            raise Refused(f"{axis.name} {text} is outside of {name}; click a point of it")
    row, col = grid.cell(float(x), float(y))
    point = (float(grid.x[col]), float(grid.y[row]))
    return Start(view.sweep.experiment, point, view.sweep.seed, name)


def from_address(root: Path, query: Mapping[str, str]) -> Start | None:
    """Where the form starts: the point of a map that an address names, if it names one.

    Raises:
        Refused: The address names a point of no map.
    """
    if not (query.get("x") and query.get("y")):
        return None
    return from_map(root, query.get("run", ""), query["x"], query["y"])


def planned(start: Start, x: str, y: str, seed: int, settings: Mapping[str, str]) -> Sweep:
    """The recipe of a single run, from what was typed; all digits count.

    Raises:
        Refused: Something cannot be; the sentence says what.
    """
    experiment = experiments.configure(start.experiment, dict(settings))
    point = (planner.number(experiment.axes[0], x), planner.number(experiment.axes[1], y))
    if isinstance(experiment, TinyNetworks):
        return network.sweep_of(experiment, point, seed)
    experiment.review(np.array([point]), seed)  # refuses what the point would replace
    return single.sweep_of(*experiment.at(np.array(point), seed))


def begin(root: Path, name: str, label: str, sweep: Sweep, watch: Watch) -> str:
    """Have a process of its own train it, unless that was done; returns the name of its folder.

    Raises:
        Refused: The name is no name or holds another run, or the run cannot begin.
    """
    planner.notes(sweep)
    path = explore.view_of(root, sweep, label, name=name).path
    store = Store.create(path, sweep)
    if store.missing():
        command, *options = words(sweep, watch)
        control.start_detached(path, options, command=command)
    return path.name


def words(sweep: Sweep, watch: Watch | None = None) -> list[str]:
    """The command, and its options, that repeat a single run."""
    experiment = sweep.experiment
    if isinstance(experiment, FineTune):
        mine, seed = experiment.at(_point(sweep), sweep.seed)
        # Where it trains depends on the machine unless it is said.
        wanted = _differences(mine, FineTune(), {"device", "dtype"})
        found = ["finetune", "--set", *wanted, "--seed", str(seed)]
        if watch is not None:
            found += ["--samples", str(watch.samples), "--eval-every", str(watch.eval_every)]
        return found
    named = experiments.PRESETS.items()
    preset, near = min(named, key=lambda item: len(_differences(experiment, item[1].experiment)))
    found = ["point", "--preset", preset, "--at", *map(repr, _point(sweep).tolist())]
    if experiment.axes != near.experiment.axes:
        found += ["--axes", *experiment.axes]
    if wanted := _differences(experiment, near.experiment):
        found += ["--set", *wanted]
    return [*found, "--seed", str(sweep.seed)]


def line(path: Path, sweep: Sweep) -> str:
    """The command line that repeats a single run."""
    command, *options = words(sweep)
    return shlex.join(["fractal", command, str(path), *options])


def _differences(mine: Any, other: Any, always: set[str] | None = None) -> list[str]:
    """Settings that differ from another's as NAME=VALUE, and those that are always said."""
    return [
        f"{f.name}={planner.text_of(getattr(mine, f.name))}"
        for f in fields(mine)
        if f.name != "axes"
        and (f.name in (always or ()) or getattr(mine, f.name) != getattr(other, f.name))
    ]


def _point(sweep: Sweep) -> np.ndarray:
    return sweep.grid.points(np.array([0]), np.array([0]))[0]


def names(root: Path) -> list[str]:
    """Names of the single runs, newest first."""
    return [name for name in explore.runs(root) if explore.points(root / name) == 1]


@dataclass(frozen=True, eq=False)
class Single:
    """A single run.

    Args:
        store: Its folder.
        settings: All that decides it, by name.
    """

    store: Store
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.store.path.name

    @property
    def kind(self) -> str:
        """What was trained."""
        return "language model" if isinstance(self.store.sweep.experiment, FineTune) else "tiny"

    @property
    def result(self) -> dict[str, Any]:
        """The outcome in words and numbers; empty while there is none."""
        return read_json(self.store.path / FOLDER / "result.json", {})

    @property
    def samples(self) -> list[dict[str, Any]]:
        """Questions and answers before and after; none of a tiny network."""
        return read_json(self.store.path / FOLDER / "samples.json", [])

    @property
    def running(self) -> bool:
        """Whether a process trains it."""
        return duty.lock_holder(self.store.path) is not None

    @property
    def phase(self) -> str:
        """complete, training, broken off before there was an outcome, or gone: its folder is."""
        if not self.store.path.exists():
            return "gone"
        running = self.running  # asked first: one that ends meanwhile leaves its result before
        return "complete" if self.result else "training" if running else "broken off"

    @property
    def size(self) -> int:
        """Bytes of its curve, which tell whether there is something new."""
        try:
            return (self.store.path / FOLDER / "metrics.jsonl").stat().st_size
        except FileNotFoundError:
            return 0

    @property
    def last_words(self) -> str:
        """The end of what its process said."""
        log = self.store.path / "state" / "log.txt"
        return redact(log.read_text(errors="replace"))[-LOG_BYTES:] if log.exists() else ""

    def rows(self) -> pd.DataFrame:
        """What it said of its steps so far; a torn line is left out."""
        found = read_lines(self.store.path / FOLDER / "metrics.jsonl")
        return pd.DataFrame(found or {"step": [], "loss": []})


def open_single(root: Path, name: str) -> Single:
    """A single run by its name.

    Raises:
        Refused: There is no such run, or it is a map.
    """
    store = experiments.read_run(root / explore.require_name(name))
    if store.sweep.grid.shape != (1, 1):
        raise Refused(
            f"{name} is a map; name a point of it as ?run={name}&x=VALUE&y=VALUE, or open a single "
            "run"
        )
    sweep = store.sweep
    experiment: Any = sweep.experiment
    if isinstance(experiment, FineTune):
        mine, seed = experiment.at(_point(sweep), sweep.seed)
        moved = {"seed": seed}
    else:
        mine = experiment
        moved = dict(zip(experiment.axes, _point(sweep).tolist(), strict=True))
        moved["seed"] = sweep.seed
    settings = {f.name: getattr(mine, f.name) for f in fields(mine) if f.name != "axes"}
    return Single(store, settings | moved)


def opened(root: Path, wanted: Sequence[str]) -> list[Single]:
    """Those of the runs that can be read."""
    found = []
    for name in wanted:
        try:
            found.append(open_single(root, name))
        except (Refused, OSError):
            continue  # one damaged folder must not spoil the others
    return found


def table(runs: Sequence[Single]) -> pd.DataFrame:
    """A row for each: how it ended, and the settings in which runs of its kind differ."""
    rows = []
    for run in runs:
        result = run.result
        rows.append(
            {
                "run": run.name,
                "kind": run.kind,
                "outcome": result.get("outcome", "running" if run.running else "not finished"),
                "ratio": result.get("ratio"),
                "steps": result.get("steps"),
                "seconds": result.get("seconds"),
                "settings that differ": ", ".join(
                    f"{name}={planner.text_of(run.settings[name])}" for name in _varying(run, runs)
                ),
            }
        )
    columns = ["run", "kind", "outcome", "ratio", "steps", "seconds", "settings that differ"]
    return pd.DataFrame(rows, columns=columns)


def _varying(run: Single, runs: Sequence[Single]) -> list[str]:
    alike = [other.settings for other in runs if other.kind == run.kind]
    return [
        name
        for name, value in run.settings.items()
        if any(other.get(name) != value for other in alike)
    ]


def curves(runs: Sequence[Single]) -> pd.DataFrame:
    """Loss by step of several runs, thinned to what can be seen.

    Returns:
        Columns `run`, `step`, `loss`, and `ratio`, the loss over the first one.
    """
    parts = []
    for run in runs:
        rows = _thinned(run.rows())
        step, loss = (rows[name].to_numpy(np.float64) for name in ("step", "loss"))
        loss = np.where(np.isfinite(loss), loss, np.nan)
        frame = {"step": step, "loss": loss, "ratio": loss / loss[:1], "run": run.name}
        parts.append(pd.DataFrame(frame))
    empty = pd.DataFrame({"step": [], "loss": [], "ratio": [], "run": []})
    return pd.concat(parts, ignore_index=True) if parts else empty


def rates(run: Single) -> pd.DataFrame:
    """Learning rates by step, as columns `step`, `group` and `rate`."""
    frame = _thinned(run.rows())
    groups = [name for name in frame.columns if name.startswith(RATES)]
    long = frame.melt(id_vars="step", value_vars=groups, var_name="group", value_name="rate")
    return long.assign(group=long["group"].str.removeprefix(RATES))


def _thinned(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.iloc[network.recorded(len(frame), MOST_POINTS)]


def reason(run: Single) -> str:
    """The outcome and why it is that, in a sentence."""
    result = run.result
    if not result:
        if run.running:
            return "It trains; the outcome comes with its last loss."
        if run.phase == "gone":
            return "The folder of the run is gone; choose another point to train it anew."
        return "It ended without an outcome; begin it again to train it anew."
    window = min(run.settings["window"], result["planned"])
    limit = run.settings.get("threshold", 1.0)
    if result["steps"] < result["planned"]:
        return (
            f"DIVERGED: the loss was not finite at step {result['steps']:,} of "
            f"{result['planned']:,}."
        )
    if result["tail_loss"] is None or result["ratio"] is None:
        return f"{result['outcome']}: the mean of the last {window} losses is not finite."
    means = (
        f"the mean of the last {window} losses, {result['tail_loss']:.4g}, is "
        f"{result['ratio']:.4g} times the first loss, {result['first_loss']:.4g}"
    )
    rule = "" if limit == 1 else f" {limit:g} times that"
    rules = {"TRAINABLE": f"below{rule or ' it'}", "UNTRAINABLE": f"not below{rule or ' it'}"}
    which = rules.get(result["outcome"], f"above {V_MOST:g} times that")
    return f"{result['outcome']}: {means}, and so {which}."


def answers(experiment: Any) -> bool:
    """Whether a run of it answers questions before and after."""
    return isinstance(experiment, FineTune)


def sample_table(run: Single) -> pd.DataFrame:
    """Questions, expected answers, and those given before and after; long questions by their end."""
    frame = pd.DataFrame(run.samples, columns=SAMPLES)
    return frame.assign(question=[_end(question) for question in frame["question"]]).fillna("-")


def _end(question: str) -> str:
    """The last words of a long one."""
    whole = " ".join(question.split())
    return whole if len(whole) <= QUESTION else "… " + whole[-QUESTION:].partition(" ")[2]


def resume(run: Single) -> None:
    """Train a run anew that has no outcome; a process that trains it already is left alone."""
    command, *options = words(run.store.sweep)
    control.start_detached(run.store.path, options, command=command)
