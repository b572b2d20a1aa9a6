"""From what a person chooses to the recipe of a map, and what that will cost.

A form and the command line ask the same questions, so both give their answers to `recipe`.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np

from fractal_core import experiments, finetune, machine, tiny
from fractal_core.errors import Refused
from fractal_core.finetune import FineTune
from fractal_core.plane import Axis, Region, Scale
from fractal_core.store import Store
from fractal_core.sweep import Sweep
from fractal_core.tiny import TinyNetworks

Bounds = tuple[float, float]

PROBE_STEPS, PROBE_POINTS, PROBE_ROWS = 100, 64, 2**15


def configured(
    preset: str,
    axes: tuple[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Any:
    """The experiment of a preset with other axes and settings, which may be text.

    Raises:
        Refused: There is no such preset or setting, or a value is not allowed.
    """
    changes = dict(settings or {}) | ({"axes": axes} if axes is not None else {})
    return experiments.configure(experiments.preset(preset).experiment, changes)


def recipe(
    preset: str,
    *,
    published: bool = False,
    x: Bounds | None = None,
    y: Bounds | None = None,
    scale: tuple[Scale, Scale] = ("log10", "log10"),
    grid: tuple[int, int] = (128, 128),
    axes: tuple[str, str] | None = None,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> Sweep:
    """The sweep of a preset, or of what was changed in it.

    Args:
        preset: Its name.
        published: Take the window of the published picture, not the overview.
        x: Ends of the x axis; left out, those of the preset.
        y: Ends of the y axis.
        scale: Scales of x and y.
        grid: Rows and columns.
        axes: The two settings that x and y move.
        seed: Of the sweep.
        settings: Further settings of the experiment, which may be text.

    Raises:
        Refused: The sentence says what cannot be, and what can.
    """
    own = experiments.preset(preset)
    experiment = configured(preset, axes, settings)
    default = own.region(published, *grid)
    if axes is not None and published:
        raise Refused("the published window belongs to the preset's own axes; leave --axes out")
    other = own.x is None and experiment.axes != own.experiment.axes
    if other and not (x and y):
        raise Refused("these are not the preset's own axes; say where: --x LO HI --y LO HI")
    bounds = (x or (default.x.low, default.x.high), y or (default.y.low, default.y.high))
    named = zip(experiment.axes, bounds, reversed(grid), scale, strict=True)
    region = Region(
        *(Axis(name, *ends, n, kind, experiment.whole(name)) for name, ends, n, kind in named)
    )
    return Sweep.over(experiment, region, seed)


def chosen(
    preset: str,
    axes: tuple[str, str],
    plane: Mapping[str, Any],
    settings: Mapping[str, str],
) -> Sweep:
    """The sweep that the fields of a form ask for, see `forms.plane` and `forms.settings`.

    Raises:
        Refused: The sentence says what cannot be, and what can.
    """
    base = configured(preset)
    for name in ("rows", "columns", "seed"):
        if plane[name] is None:
            raise Refused(f"{name}: write a whole number")
    return recipe(
        preset,
        axes=None if axes == base.axes else axes,
        x=ends(axes[0], plane["x from"], plane["x to"]),
        y=ends(axes[1], plane["y from"], plane["y to"]),
        scale=(plane["x scale"], plane["y scale"]),
        grid=(plane["rows"], plane["columns"]),
        seed=plane["seed"],
        settings=changed(base, settings),
    )


def notes(sweep: Sweep) -> list[str]:
    """What should be known before a map is begun, a sentence each.

    Raises:
        Refused: The map would mean nothing.
    """
    rows, cols = sweep.grid.shape
    row, col = np.array([0, 0, rows - 1, rows - 1]), np.array([0, cols - 1, 0, cols - 1])
    return sweep.experiment.review(sweep.grid.points(row, col), sweep.seed)


PRESETS = tuple(experiments.PRESETS | experiments.TUNING)
NAMES: dict[type, dict[str, str]] = {TinyNetworks: tiny.AXES, FineTune: finetune.AXES}


def axis_names(experiment: Any) -> list[str]:
    """The settings that an axis can move."""
    return list(NAMES[type(experiment)])


def ends_of(preset: str, axes: tuple[str, str], published: bool) -> tuple[Bounds, Bounds] | None:
    """Where x and y begin and end if nobody says so; None if nothing is known of these axes.

    Raises:
        Refused: No window of the preset was published.
    """
    chosen = experiments.preset(preset)
    if axes != chosen.experiment.axes and (published or chosen.x is None):
        return None
    region = chosen.region(published, 1, 1)
    return (region.x.low, region.x.high), (region.y.low, region.y.high)


def ends_as_text(preset: str, axes: tuple[str, str], window: str) -> list[tuple[str, str]]:
    """What a form says of both axes before anybody typed; empty texts where nothing is known."""
    try:
        found = ends_of(preset, axes, window == "published")
    except Refused:
        found = None
    return [(text_of(low), text_of(high)) for low, high in found] if found else [("", "")] * 2


def usual_edge(experiment: Any) -> int:
    """Rows and columns of a map that is not worth long thought: fewer where runs are long."""
    return 16 if experiment.block == 1 else 128


def ends(name: str, low: str, high: str) -> Bounds:
    """Both ends of an axis as they were typed.

    Raises:
        Refused: One of them is no number.
    """
    return number(name, low), number(name, high)


@dataclass(frozen=True)
class Choice:
    """A setting that can be chosen.

    Args:
        name: Of the setting.
        value: What it is, as text.
        options: All that it can be; empty if it is a number or free text.
    """

    name: str
    value: str
    options: tuple[str, ...] = ()


def choices(experiment: Any) -> list[Choice]:
    """All settings of an experiment but its axes, in their order."""
    hints = get_type_hints(type(experiment))
    found = []
    for name in (f.name for f in fields(experiment) if f.name != "axes"):
        kind, value = hints[name], getattr(experiment, name)
        options = ("false", "true") if kind is bool else get_args(kind)
        named = all(isinstance(option, str) for option in options)
        found.append(Choice(name, text_of(value), options if named else ()))
    return found


def text_of(value: Any) -> str:
    """A setting as text, which `experiments.configure` reads back; digits are exact."""
    if isinstance(value, float):
        short = f"{value:g}".replace("e+0", "e").replace("e-0", "e-")
        return min((text for text in (repr(value), short) if float(text) == value), key=len)
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def changed(experiment: Any, texts: Mapping[str, str]) -> dict[str, str]:
    """Those of the texts that say something else than the experiment does."""
    return {
        choice.name: texts[choice.name].strip()
        for choice in choices(experiment)
        if choice.name in texts and texts[choice.name].strip() not in ("", choice.value)
    }


def number(name: str, text: str) -> float:
    """What was typed, as a number with all its digits.

    Raises:
        Refused: It is none.
    """
    if not text.strip():
        raise Refused(f"{name}: say where it begins and ends")
    try:
        return float(text)
    except ValueError:
        raise Refused(f"{name}: {text!r} is not a number; write it like 0.001 or 1e-3") from None


def devices(experiment: Any) -> list[str]:
    """The devices of this machine that an experiment can train on, the fastest kind first."""
    try:
        slots = machine.slots(experiment.devices, serial=experiment.serial)
    except Refused:
        return []
    return list(dict.fromkeys(slot.device for slot in slots))


def options(devices: Sequence[str], each: int) -> list[str]:
    """Devices and slots on each of them, as options of `fractal run`; nothing means all."""
    found = ["--slots", str(each)] if each else []
    return found + (["--devices", *devices] if devices else [])


def places(sweep: Sweep, devices: Sequence[str], each: int) -> list[machine.Slot]:
    """The slots that these options mean.

    Raises:
        Refused: A device is not here, or cannot train this.
    """
    experiment = sweep.experiment
    return machine.slots(experiment.devices, each or None, tuple(devices), experiment.serial)


@dataclass(frozen=True)
class Cost:
    """What a map would take.

    Args:
        runs: Training runs.
        seconds: Estimated time on these slots; None if no run like these was ever timed here.
        ulps: Distance of neighbouring values in units in the last place.
        digits: Decimal digits by which one can zoom in further before rounding shows.
        notes: What should be known before it is begun.
    """

    runs: int
    seconds: float | None
    ulps: float
    digits: float
    notes: tuple[str, ...]


def cost(sweep: Sweep, places: Sequence[machine.Slot], root: Path) -> Cost:
    """What a map would take on some slots.

    Tiny networks that a CPU will train are timed: a few short runs, spread over the map. For
    language models the runs of like sweeps in `root` tell.

    Raises:
        Refused: The map cannot be begun; the sentence says why.
    """
    sweep.require_resolution()
    told = tuple(notes(sweep))
    rows, cols = sweep.grid.shape
    tiny_ones = isinstance(sweep.experiment, TinyNetworks)
    if not tiny_ones:
        each = remembered(sweep, root)
    else:  # here, on the CPU, which tells nothing of a GPU
        each = timed(sweep) if all(place.device == "cpu" for place in places) else None
    at_once = len(places) if sweep.experiment.serial else 1
    seconds = None if each is None else rows * cols * each / at_once
    return Cost(rows * cols, seconds, sweep.ulps, sweep.digits, told)


def timed(sweep: Sweep) -> float:
    """Seconds of a run of tiny networks that train together, by trying a few for some steps."""
    rows, cols = sweep.grid.shape
    spread = np.linspace(0, rows * cols - 1, PROBE_POINTS).astype(np.int64)
    points = sweep.grid.points(spread // cols, spread % cols)
    experiment: Any = sweep.experiment
    # Whoever looks at a page may ask for millions of samples, or judge by as many losses.
    steps = min(experiment.steps, PROBE_STEPS, max(2, PROBE_ROWS // experiment.samples))
    short = replace(experiment, steps=steps, window=min(experiment.window, steps - 1))
    short.run(points[:1], seed=sweep.seed)  # compiles, which is paid once
    started = time.perf_counter()
    short.run(points, seed=sweep.seed)
    return (time.perf_counter() - started) / len(points) * experiment.steps / steps


ALIKE = (
    *("checkpoint", "data", "device", "dtype", "compiled", "trainable"),
    *("batch_size", "accumulation", "sequence_length"),
)
"""Settings that decide how long a step of fine-tuning takes."""


def remembered(sweep: Sweep, root: Path) -> float | None:
    """Seconds of a run by what the steps of like runs took, the newest folder first."""
    wanted, seed = _middle(sweep)
    for path in sorted(root.glob("*/sweep.json"), key=lambda p: -p.stat().st_mtime):
        try:
            store = experiments.read_run(path.parent)
        except (Refused, OSError):
            continue  # one that cannot be read tells nothing
        if type(store.sweep.experiment) is not type(wanted):
            continue
        theirs, _ = _middle(store.sweep)
        alike = all(getattr(theirs, name) == getattr(wanted, name) for name in ALIKE)
        if alike and (per_step := _per_step(store)):
            return per_step * wanted.length(seed)
    return None


def _middle(sweep: Sweep) -> tuple[Any, int]:
    """The settings of the point in the middle of a map of fine-tuning, and its seed."""
    rows, cols = sweep.grid.shape
    point = sweep.grid.points(np.array([rows // 2]), np.array([cols // 2]))[0]
    experiment: Any = sweep.experiment
    return experiment.at(point, sweep.seed)


def _per_step(store: Store) -> float | None:
    image = store.image()
    steps = int(image.steps.sum()) if image.steps.count() else 0
    return float(image.seconds.sum()) / steps if steps else None
