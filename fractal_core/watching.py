"""What the page of a sweep shows and does: how far it is, who works on it, what failed and why."""

import collections
import html
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
import psutil

from fractal_core import control, experiments, explore, machine, planner
from fractal_core.control import Failure
from fractal_core.errors import Refused
from fractal_core.explore import View
from fractal_core.outlook import about, duration, pace
from fractal_core.store import Store
from fractal_core.sweep import Sweep


def begin(
    root: Path, name: str, label: str, sweep: Sweep, options: Sequence[str], parent: str = ""
) -> str:
    """Make the run folder of a sweep and have a process of its own fill it; returns its name.

    A recipe that has a folder already is gone on with there, unless another name is given.

    Args:
        root: Where runs are.
        name: Of the folder; empty for one that follows from the recipe.
        label: What that one begins with.
        sweep: The recipe.
        options: Of `fractal run`.
        parent: The run that this is a part of.

    Raises:
        Refused: The name is no name or holds another recipe, or the map cannot be begun.
    """
    sweep.require_resolution()
    planner.notes(sweep)
    view = explore.view_of(root, sweep, label, name=name)
    above = root / parent if parent else view.parent
    return explore.begin(replace(view, parent=above), options).name


def price(
    root: Path, asked: Callable[[], Sweep], crew: tuple[Sequence[str], int]
) -> tuple[str, tuple[str, ...]]:
    """What the sweep costs that a form asks for, or why it cannot be done; and what to know.

    Args:
        root: Where runs are.
        asked: Gives the sweep, or refuses.
        crew: The devices, and the workers on each.
    """
    try:
        sweep = asked()
        places = planner.places(sweep, *crew)
        found = planner.cost(sweep, places, root)
        return cost_in_words(found, places), found.notes
    except Refused as error:
        return f"cannot be done: {error}", ()


def selected(
    root: Path,
    view: View,
    box: Sequence[float],
    point: Sequence[float],
    asked: Callable[[], Sweep],
    crew: tuple[Sequence[str], int],
) -> tuple[str, tuple[str, ...]]:
    """What is to be said of a selection in a map: `price` of a rectangle, or what can be done.

    Args:
        root: Where runs are.
        view: The map.
        box: The rectangle, or nothing.
        point: A clicked point, or nothing.
        asked: Gives the sweep of the rectangle, or refuses.
        crew: The devices, and the workers on each.
    """
    if box:
        return price(root, asked, crew)
    if point:
        return lone_point(view, point[0], point[1]), ()
    return "Drag a rectangle to sweep it closer, click a point to train it alone.", ()


def noted(name: str, words: str, notes: Sequence[str] = ()) -> str:
    """A line, and notes below it, as HTML that tests find by a name."""
    more = "".join(f"<br>note: {html.escape(note)}" for note in notes)
    return f"<div><b data-testid='{name}'>{html.escape(words)}</b>{more}</div>"


def cost_in_words(cost: planner.Cost, places: Sequence[machine.Slot]) -> str:
    """A cost as a line for a person."""
    kinds = collections.Counter(slot.device for slot in places)
    where = " and ".join(f"{count} on {device}" for device, count in kinds.items())
    wait = "no run like these was timed here yet"
    if cost.seconds is not None:
        wait = about(cost.seconds)
    plural = "worker" if len(places) == 1 else "workers"
    apart = "no neighbours" if cost.ulps == float("inf") else f"{cost.ulps:.3g} ulps apart"
    return (
        f"{cost.runs:,} runs, {wait} with {len(places)} {plural} ({where}); neighbours are {apart}, "
        f"{cost.digits:.1f} digits left to zoom"
    )


@dataclass(frozen=True)
class Glance:
    """How a sweep is doing at one moment.

    Args:
        state: complete, running, stopping, stopped, not begun, or gone: the folder is.
        done: Runs that are done, of `total`.
        failed: Units whose last attempt failed.
        rate: How fast it goes, for a person; empty if nobody works.
        left: How long it still takes, for a person; empty if nobody knows.
        slots: A row per worker.
        gpus: A row per GPU.
        failures: What failed, by cause.
    """

    state: str
    done: int
    total: int
    failed: int
    rate: str
    left: str
    slots: pd.DataFrame
    gpus: pd.DataFrame
    failures: tuple[Failure, ...]


class Meter:
    """How busy processes are between two looks."""

    def __init__(self):
        self._known: dict[int, psutil.Process] = {}

    def percent(self, pid: int | None) -> float | None:
        """Share of one core that a process took since the last look, in percent; None at first."""
        if not pid:
            return None
        first = pid not in self._known
        try:
            if first:
                self._known[pid] = psutil.Process(pid)
            used = self._known[pid].cpu_percent()
        except psutil.Error:
            self._known.pop(pid, None)
            return None
        return None if first else used


def glance(store: Store, meter: Meter) -> Glance:
    """Look at a sweep, from the disk and from the processes that it names."""
    progress = control.progress(store)
    running = progress.process is not None
    state = progress.state
    if state == "stopped" and not progress.done:
        state = "not begun"
    seconds = progress.seconds_remaining if running else None
    return Glance(
        state=state,
        done=progress.done,
        total=progress.points,
        failed=progress.failed,
        rate=pace(progress.points_per_second) if running and progress.points_per_second else "",
        left="" if seconds is None else about(seconds),
        slots=_slots(progress.slots if running else [], meter),
        gpus=_gpus() if running else pd.DataFrame(),
        failures=control.failures(store),
    )


def _slots(slots: Sequence[dict[str, Any]], meter: Meter) -> pd.DataFrame:
    now = time.time()
    rows = []
    for slot in slots:
        used = meter.percent(slot["process"])
        rows.append(
            {
                "slot": slot["index"],
                "device": slot["device"],
                "process": slot["process"] or "-",
                "unit": slot["unit"] or "waits",
                "for": duration(now - slot["since"]) if slot["since"] else "-",
                "CPU": "-" if used is None else f"{used:.0f} %",
            }
        )
    return pd.DataFrame(rows)


def _gpus() -> pd.DataFrame:
    rows = [
        {
            "GPU": f"cuda:{gpu.index}",
            "name": gpu.name,
            "used": f"{gpu.used_percent:.0f} %",
            "memory": gpu.memory or "-",
            "processes": ", ".join(map(str, gpu.processes)),
        }
        for gpu in machine.gpus()
    ]
    return pd.DataFrame(rows)


def recipe_in_words(sweep: Sweep) -> str:
    """What a map is of, in a line."""
    rows, cols = sweep.grid.shape
    experiment: Any = sweep.experiment
    kept = {name: getattr(experiment, name, None) for name in ("checkpoint", "activation")}
    what = next((str(value) for value in kept.values() if value), type(experiment).__name__)
    steps = getattr(experiment, experiments.length(experiment), None)
    length = "" if steps is None else f", {steps:,} steps"
    return f"{type(experiment).__name__} ({what}), {rows} x {cols} points{length}"


def lone_point(view: View, x: float, y: float) -> str:
    """Where the single run of a clicked point is found."""
    return (
        "open single_run.py at ?run="
        f"{view.name}&x={x!r}&y={y!r} to train the point of that cell alone, and watch it"
    )


def headline(now: Glance) -> str:
    """State, bar and numbers, as HTML that tests can read."""
    share = now.done / max(1, now.total)
    parts = [
        f"<b data-testid='state'>{now.state}</b>",
        f"<span data-testid='done'>{now.done:,} of {now.total:,} runs</span>",
        f"<progress max='1' value='{share:.4f}' style='width:14rem'></progress>",
        f"<span data-testid='failed'>{now.failed:,} units failed</span>",
    ]
    parts += [f"<span>{now.rate}</span>"] if now.rate else []
    parts += [f"<span data-testid='left'>{now.left} to go</span>"] if now.left else []
    return (
        "<div style='display:flex;flex-wrap:wrap;gap:1.2rem;align-items:center'>"
        f"{''.join(parts)}</div>"
    )


def panel(now: Glance) -> str:
    """The headline, and tables of slots and GPUs that a poll may replace without a flicker."""
    tables = [
        f"<div data-testid='{name}'>{frame.to_html(index=False, border=0, justify='left')}</div>"
        for name, frame in (("slots", now.slots), ("gpus", now.gpus))
        if len(frame)
    ]
    return headline(now) + "".join(tables)


def failure_table(found: Sequence[Failure]) -> pd.DataFrame:
    """A row for every cause."""
    return pd.DataFrame(
        [
            {
                "cause": failure.cause,
                "units": len(failure.units),
                "the first of them": failure.units[0],
                "exit code": failure.exit_code,
            }
            for failure in found
        ]
    )


def logs(found: Sequence[Failure]) -> str:
    """The last words of a worker for every cause, as HTML that tests can read."""
    parts = [
        f"<details {'' if n else 'open'}><summary>{html.escape(failure.cause)}</summary>"
        "<pre data-testid='log-tail' style='max-height:16rem;overflow:auto'>"
        f"{html.escape(failure.log.strip() or 'it said nothing')}</pre></details>"
        for n, failure in enumerate(found)
    ]
    return f"<div data-testid='failures'>{''.join(parts)}</div>"


def heading(root: Path, view: View) -> str:
    """What a run is, where it lies, and its neighbours to go to, as HTML."""
    x, y = view.sweep.region.x, view.sweep.region.y
    ends = [
        f"{axis.name} {planner.text_of(axis.low)} … {planner.text_of(axis.high)}" for axis in (x, y)
    ]
    parts = [f"<b>{html.escape(view.name)}</b>", html.escape(recipe_in_words(view.sweep))]
    if view.parent is not None:
        parts.append(f"inside {_link(view.parent.name)}")
    if inner := [_link(name) for name, _ in explore.children(root, view)]:
        parts.append(f"zooms: {', '.join(inner)}")
    return (
        f"<div>{' · '.join(parts)}<br>"
        f"<small data-testid='region'>{html.escape(' · '.join(ends))}</small></div>"
    )


def _link(name: str) -> str:
    return f"<a href='?run={quote(name)}'>{html.escape(name)}</a>"
