"""What the zoom notebook does, without the notebook: views, their addresses, costs and places.

A view is a sweep and the folder under `runs/` that holds it, or would. The folder of a recipe is
found by its id, so that the same view is never computed twice, in whatever way one came to it.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fractal_core import control, experiments, machine, planner, sight
from fractal_core.errors import Refused
from fractal_core.files import Files
from fractal_core.finetune import FineTune
from fractal_core.outlook import about
from fractal_core.plane import Region
from fractal_core.store import Store, read_recipe
from fractal_core.sweep import Sweep

MOST = {"grid": 1024, "steps": 100_000}
"""What an address may ask for; anybody can write one, and looking must stay cheap."""

LONGEST_NAME = 200
"""Bytes of the name of a run folder; most disks end at 255, and files beside it have longer ones."""


@dataclass(frozen=True, eq=False)
class View:
    """A sweep, and where its run is or would be.

    Args:
        sweep: The recipe.
        path: Its run folder.
        store: The run, once the folder is there.
        parent: Folder of the run that this one was zoomed out of, if it is known.
    """

    sweep: Sweep
    path: Path
    store: Store | None
    parent: Path | None = None

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.path.name


def runs(root: Path) -> list[str]:
    """Names of the run folders, newest first."""
    dated = []
    for path in root.glob("*/sweep.json"):
        with contextlib.suppress(FileNotFoundError):  # somebody may be clearing up
            dated.append((path.parent.stat().st_mtime, path.parent.name))
    return [name for _, name in sorted(dated, reverse=True)]


def maps(root: Path) -> list[str]:
    """Names of those that are maps and no single runs, newest first; unreadable ones are left out."""
    return [name for name in runs(root) if points(root / name) > 1]


def points(path: Path) -> int:
    """How many points a run folder has, 1 for a single run; 0 if its recipe cannot be read."""
    try:
        region = read_recipe(path)["region"]
        return region["x"]["points"] * region["y"]["points"]
    except (Refused, OSError, KeyError, TypeError):
        return 0


def require_name(name: str) -> str:
    """The name of a run folder.

    Raises:
        Refused: It is blank, leads elsewhere, would be hidden, or is too long for a folder.
    """
    bare = bool(name.strip()) and Path(name).name == name and name.isprintable()
    if not bare or name.startswith((".", "-")):
        raise Refused(
            f"{name!r} is not the name of a run; use letters of any language, digits and dashes"
        )
    if len(os.fsencode(name)) > LONGEST_NAME:
        raise Refused(f"{name[:20]}... is too long a name; use at most {LONGEST_NAME} bytes")
    return name


def open_view(root: Path, name: str) -> View:
    """The view of an existing run.

    Raises:
        Refused: There is no such run, it cannot be read, or it is a single run and no map.
    """
    store = experiments.read_run(root / require_name(name))
    if store.sweep.grid.shape == (1, 1):
        raise Refused(f"{name} is a single run and has no map; choose another one")
    parent = _parent_of(root, name)
    return View(store.sweep, root / name, store, root / parent if parent else None)


def opened(root: Path, name: str) -> View | None:
    """A run beside the one that is looked at, or None if it cannot be opened: one folder that is
    damaged or made by other code must not spoil the others.
    """
    try:
        return open_view(root, name)
    except (Refused, OSError):
        return None


def _parent_of(root: Path, name: str) -> str:
    """The name of the run that a run was zoomed out of, or nothing."""
    try:
        parent = require_name(json.loads((root / name / "origin.json").read_bytes())["parent"])
    except (Refused, OSError, ValueError, KeyError, TypeError):
        return ""
    return parent if (root / parent / "sweep.json").exists() else ""


def view_of(
    root: Path, sweep: Sweep, label: str, parent: Path | None = None, name: str = ""
) -> View:
    """The view of a sweep: the folder of a name, the run of this very recipe, or a new folder."""
    if name:
        return View(sweep, root / require_name(name.strip()), None, parent)
    for name in runs(root):
        with contextlib.suppress(Refused, OSError):
            if read_recipe(root / name).get("id") == sweep.id:
                return open_view(root, name)
    return View(sweep, root / f"{label}-{sweep.id[:8]}", None, parent)


def preset_view(
    root: Path,
    preset: str,
    *,
    published: bool = False,
    x: tuple[float, float] | None = None,
    y: tuple[float, float] | None = None,
    grid: int | None = None,
    steps: int | None = None,
    dtype: str | None = None,
) -> View:
    """The view of a preset: its overview, its published window, or any other rectangle.

    Left out, a grid has 128 points a side, or 16 of a language model.

    Raises:
        Refused: There is no such preset, the rectangle cannot be drawn, or the weights or data
            that the preset starts from are not there.
    """
    chosen = experiments.preset(preset)
    if grid is None:
        grid = 128 if preset in experiments.PRESETS else 16
    given = {experiments.length(chosen.experiment): steps, "dtype": dtype}
    experiment = experiments.configure(
        chosen.experiment, {name: value for name, value in given.items() if value is not None}
    )
    region = chosen.region(published, grid, grid)
    region = Region(
        replace(region.x, low=x[0], high=x[1]) if x else region.x,
        replace(region.y, low=y[0], high=y[1]) if y else region.y,
    )
    sweep = Sweep.over(experiment, region)
    sweep.require_resolution()
    return view_of(root, sweep, preset)


def from_address(root: Path, query: Mapping[str, str]) -> View:
    """The view that an address names: `run=NAME`, or `preset=NAME` with `x=LO,HI` and so on.

    An empty address is the overview of the tanh network at 500 steps.

    Raises:
        Refused: The address names nothing that can be drawn.
    """
    if query.get("run"):
        return open_view(root, query["run"])
    given: dict[str, Any] = {} if query.get("preset") else {"steps": 500}
    try:
        given |= {
            axis: (float(low), float(high))
            for axis in ("x", "y")
            if query.get(axis)
            for low, high in [query[axis].split(",")]
        }
        given |= {name: int(query[name]) for name in ("grid", "steps") if query.get(name)}
    except (ValueError, AttributeError, TypeError):
        raise Refused(
            "write the address as ?preset=tanh&x=LOW,HIGH&y=LOW,HIGH&grid=128&steps=500"
        ) from None
    for name, most in MOST.items():
        if not 1 <= given.get(name, 1) <= most:
            raise Refused(f"{name}={given[name]}: an address may ask for 1 to {most}")
    return preset_view(
        root,
        query.get("preset") or "tanh",
        published=query.get("window") == "published",
        dtype=query.get("dtype") or None,
        **given,
    )


def address(view: View, preset: str = "") -> dict[str, str]:
    """What to put into the address bar so that it leads back to a view."""
    if view.store is not None:
        return {"run": view.name}
    region = view.sweep.region
    return {
        "preset": preset,
        "x": f"{region.x.low!r},{region.x.high!r}",
        "y": f"{region.y.low!r},{region.y.high!r}",
        "grid": str(region.x.points),
        "steps": str(_steps(view)),
        "dtype": getattr(view.sweep.experiment, "dtype", ""),
    }


def _steps(view: View) -> int:
    return getattr(view.sweep.experiment, experiments.length(view.sweep.experiment))


def is_language_model(view: View) -> bool:
    """Whether its runs fine-tune a language model: seconds each, and kept with their losses."""
    return isinstance(view.sweep.experiment, FineTune)


def chosen(view: View) -> dict[str, Any]:
    """The settings of a view as the choices of a person: preset, window, grid, steps, dtype.

    With settings of its own it has the first preset of its kind that moves the same axes.
    """
    experiment: Any = view.sweep.experiment
    region = view.sweep.region
    kept = {experiments.length(experiment): _steps(view), "dtype": experiment.dtype}
    kind = experiments.TUNING if is_language_model(view) else experiments.PRESETS
    known = {name: experiments.preset(name).experiment for name in kind}
    named = [name for name, each in known.items() if replace(each, **kept) == experiment]
    named += [name for name, each in known.items() if each.axes == experiment.axes]
    preset = next(iter([*named, *kind]))
    published = kind[preset].dimension is not None and region == kind[preset].region(
        True, region.y.points, region.x.points
    )
    return {
        "preset": preset,
        "window": "published" if published else "overview",
        "grid": region.x.points,
        "steps": _steps(view),
        "dtype": experiment.dtype,
    }


def zoomed(root: Path, view: View, box: Sequence[float], grid: int | None = None) -> View:
    """The view of a dragged rectangle `[x0, x1, y0, y1]` of another view.

    Raises:
        Refused: Neighbouring values would be too close for the arithmetic; by the seeing of this
            view most of the zoom would be rounding; or weights or data are not there.
    """
    sweep = inside(view, box, grid, grid)
    return view_of(root, sweep, label_of(view.name), parent=view.path if view.store else None)


def inside(view: View, box: Sequence[float], rows: int | None, cols: int | None) -> Sweep:
    """The recipe of a dragged rectangle of a view; left out, rows and columns are the view's.

    Raises:
        Refused: It would show rounding: neighbours are too close, or so says the run's seeing.
    """
    sweep = view.sweep.zoom(view.sweep.region.drag(box, rows, cols))
    sweep.require_resolution()
    if view.store is not None:
        sight.require_sight(view.store, sweep)
    return sweep


def label_of(name: str) -> str:
    """What the names of a run and of its zooms have in common."""
    return name.rpartition("-")[0] or name


def begin(view: View, options: Sequence[str] = ()) -> View:
    """Make the run folder of a view if need be, and have a process work on what is missing.

    However often and from wherever this is called, one process works on a run, and a finished
    one is left alone.

    Args:
        view: The view.
        options: Of `fractal run`.
    """
    store = Store.create(view.path, view.sweep)
    if view.parent is not None:
        origin = json.dumps({"parent": view.parent.name}).encode()
        Files(view.path).put_once("origin.json", origin)
    if store.missing():
        control.start_detached(view.path, options)
    return replace(view, store=store)


def cancel(view: View) -> bool:
    """End the process that works on a view; whoever asks is looking, so it is not waited for long."""
    return control.stop(view.path, patience=1.0)


def children(root: Path, view: View) -> list[tuple[str, Region]]:
    """Names and regions of the runs that were zoomed out of this one."""
    inner = [opened(root, name) for name in runs(root) if _parent_of(root, name) == view.name]
    return [(child.name, child.sweep.region) for child in inner if child is not None]


@dataclass(frozen=True)
class Cost:
    """What a view would take.

    Args:
        runs: Training runs still to do.
        seconds: Estimated time on this machine; None if nothing like it was trained yet.
        digits: Decimal digits by which one can zoom in further before rounding shows.
    """

    runs: int
    seconds: float | None
    digits: float

    @property
    def gauge(self) -> str:
        """The digits left, of 16, as a small HTML bar; it turns red when two are left."""
        colour = "#b45309" if self.digits < 2 else "#2474bd"
        return (
            "<span role='meter' aria-label='digits left to zoom' style='display:inline-block;"
            "width:8em;height:.6em;border:1px solid currentColor'><span style='display:block;"
            f"height:100%;width:{self.digits / 16:.0%};background:{colour}'></span></span>"
        )

    def __str__(self) -> str:
        """One line for a person."""
        left = f"{self.digits:.1f} digits left to zoom"
        if not self.runs:
            return f"computed already; {left}"
        if self.seconds is None:
            return f"{self.runs:,} runs of unknown length, as none like them is trained yet; {left}"
        return f"{self.runs:,} runs, {about(self.seconds)} on this machine; {left}"


def cost(view: View, like: View | None = None) -> Cost:
    """What is missing in a view and how long it would take.

    Args:
        view: The view.
        like: A view whose measured time per run is taken, like that of the parent; if none has
            any, a few tiny networks are trained to see, and the steps of like runs of a language
            model are looked up.
    """
    rows, cols = view.sweep.grid.shape
    missing = rows * cols
    if view.store is not None:
        missing = sum(unit.size for unit in view.store.missing())
    each = _seconds_per_run(view, like) if missing else 0.0
    return Cost(missing, None if each is None else missing * each, view.sweep.digits)


def _seconds_per_run(view: View, like: View | None) -> float | None:
    """As long as known runs took, shared among those that train at the same time."""
    stores = [known.store for known in (view, like) if known is not None]
    if view.parent is not None and (parent := opened(view.parent.parent, view.parent.name)):
        stores.append(parent.store)
    for store in filter(None, stores):
        seconds = store.image().seconds.compressed()
        if len(seconds):
            return float(seconds.mean()) / _at_once(view)
    if not is_language_model(view):  # timed on the CPU, which tells nothing of a GPU
        return None if machine.gpus() else planner.timed(view.sweep)
    each = planner.remembered(view.sweep, view.path.parent)
    return None if each is None else each / _at_once(view)


def _at_once(view: View) -> int:
    """Runs that train at the same time; a time per run of networks that train together has that."""
    experiment = view.sweep.experiment
    try:
        return len(machine.slots(experiment.devices, serial=experiment.serial))
    except Refused:  # another kind of machine trains them; nobody here knows how many at a time
        return 1


def places(root: Path) -> dict[str, dict[str, str]]:
    """Addresses worth knowing, by name: bookmarks, and the six published windows."""
    kept = {f"★ {name}": {"run": run} for name, run in bookmarks(root).items()}
    return kept | {
        f"published: {name}": {"preset": name, "window": "published"}
        for name, preset in experiments.PRESETS.items()
        if preset.dimension is not None
    }


def bookmarks(root: Path) -> dict[str, str]:
    """Names that were given to runs, and the runs."""
    file = root / "bookmarks.json"
    return json.loads(file.read_bytes()) if file.exists() else {}


def bookmark(root: Path, name: str, run: str) -> None:
    """Give a run a name.

    Raises:
        Refused: The run is gone.
    """
    if not (root / run / "sweep.json").exists():
        raise Refused(f"the folder of {run} is gone; choose another run")
    with _alone(root):
        _keep(root, bookmarks(root) | {name: run})


def forget(root: Path, run: str) -> None:
    """Take a run's names away; the run stays."""
    with _alone(root):
        _keep(root, {name: kept for name, kept in bookmarks(root).items() if kept != run})


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Nobody else changes bookmarks meanwhile: two tabs may."""
    handle = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _keep(root: Path, kept: dict[str, str]) -> None:
    Files(root).put_latest("bookmarks.json", json.dumps(kept, indent=1).encode())


def may_control(mode: str | None) -> bool:
    """Whether this notebook may start, stop or delete: always when it is edited, in an app only if
    that was allowed when it was opened (`fractal open --allow-control`), never from a script.
    """
    return mode == "edit" or (mode == "run" and os.environ.get("FRACTAL_ALLOW_CONTROL") == "1")


CLOSED = "open with --allow-control to start or stop anything"
"""What a button says that is disabled for want of that."""
