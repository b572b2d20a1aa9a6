"""Experiments and presets by name, and the way back from a run folder to its sweep."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
from jaxtyping import Float64

from fractal_core import machine
from fractal_core.errors import Refused, require_known
from fractal_core.finetune import FineTune
from fractal_core.plane import Axis, Region
from fractal_core.store import Store, read_grid, read_recipe
from fractal_core.sweep import Sweep, canonical, from_json
from fractal_core.tiny import TinyNetworks

EXPERIMENTS: dict[str, type] = {"TinyNetworks": TinyNetworks, "FineTune": FineTune}

Bounds = tuple[float, float]

OVERVIEW = (1e-3, 1e6)


@dataclass(frozen=True)
class Preset:
    """A named starting point: settings, and windows to look at.

    Args:
        experiment: The settings.
        x: Ends of the window of the published picture; None if none was published.
        y: The same for the rows.
        dimension: The box-counting dimension printed beside the published picture.
        overview: Ends of x and y of a window that shows where everything is.
    """

    experiment: Any
    x: Bounds | None = None
    y: Bounds | None = None
    dimension: float | None = None
    overview: tuple[Bounds, Bounds] = (OVERVIEW, OVERVIEW)

    def region(self, published: bool, rows: int, cols: int) -> Region:
        """The published window, or the overview.

        Raises:
            Refused: No window was published.
        """
        (x, y), names = self.overview, self.experiment.axes
        if published:
            if self.x is None or self.y is None:
                raise Refused("no window of this preset was published; leave --published out")
            x, y = self.x, self.y
        whole = map(self.experiment.whole, names)
        axes = zip(names, (x, y), (cols, rows), whole, strict=True)
        return Region(*(Axis(name, *ends, n, integer=i) for name, ends, n, i in axes))


_TANH = TinyNetworks(arrays="full")
_INIT = replace(_TANH, axes=("drift", "lr"))

# Windows and dimensions as printed on the published figure (arXiv:2402.06184).
PRESETS: dict[str, Preset] = {
    "tanh": Preset(_TANH, (1.329976231e1, 1.329978604e1), (2.003582269e2, 2.003585844e2), 1.66),
    "relu": Preset(
        replace(_TANH, activation="relu"),
        (5.77622737e-1, 5.77625590e-1),
        (8.14432439e1, 8.14436463e1),
        1.20,
    ),
    "linear": Preset(
        TinyNetworks(activation="identity", samples=16, arrays="linear"),
        (1.90010080e2, 1.90011840e2),
        (4.77745244e0, 4.77749670e0),
        1.17,
    ),
    "single": Preset(
        TinyNetworks(samples=1, arrays="single"),
        (4.8298735e1, 4.8299146e1),
        (1.82066141e1, 1.82067690e1),
        1.41,
    ),
    "minibatch": Preset(
        replace(_TANH, batch=16),
        (2.67398835471957e-1, 2.67398835475071e-1),
        (1.74269509700711e2, 1.74269509702741e2),
        1.55,
    ),
    "init": Preset(
        _INIT,
        (1.960618282403e-1, 1.960618285243e-1),
        (3.90254607863e1, 3.90254608429e1),
        1.98,
    ),
    # What the text of the paper says of `init`: the offset is added once. Never published, so the
    # window is that of `init` and there is no dimension to compare with.
    "init-once": Preset(
        replace(_INIT, axes=("offset", "lr")),
        (1.960618282403e-1, 1.960618285243e-1),
        (3.90254607863e1, 3.90254608429e1),
        None,
    ),
}


@dataclass(frozen=True)
class Window:
    """Points of a preset at which the published code was run, for its numbers to be compared with.

    Args:
        preset: Its name.
        published: The published window; else the overview.
        side: Points along each axis, both ends included.
        steps: Losses of every run.
    """

    preset: str
    published: bool
    side: int
    steps: int

    @property
    def experiment(self) -> TinyNetworks:
        """The settings of its runs."""
        return replace(PRESETS[self.preset].experiment, steps=self.steps)

    def points(self) -> Float64[np.ndarray, "n 2"]:
        """Rows of y, columns of x; powers of ten, whose last bit is another on other machines."""
        region = PRESETS[self.preset].region(self.published, self.side, self.side)
        axes = (
            10 ** np.linspace(np.log10(axis.low), np.log10(axis.high), self.side)
            for axis in (region.x, region.y)
        )
        return np.stack([grid.ravel() for grid in np.meshgrid(*axes)], axis=1)


GOLDEN = {
    "tanh_overview_48": Window("tanh", False, 48, 500),
    "tanh_tile_48": Window("tanh", True, 48, 500),
    "tanh_tile_48_1000": Window("tanh", True, 48, 1000),
    "linear_overview_48": Window("linear", False, 48, 500),
    "linear_tile_96": Window("linear", True, 96, 500),
    "single_tile_96": Window("single", True, 96, 500),
}
"""The windows whose numbers from the published code the tests hold."""

# Windows of the fractal-llm study of nanochat.
TUNING: dict[str, Preset] = {
    "matrix-unembedding": Preset(FineTune(batch_size=16), overview=((1e-6, 3e-1), (1e-6, 1e-1))),
    "lr-tokens": Preset(
        FineTune(batch_size=16, axes=("learning_rate", "num_tokens")),
        overview=((1e-6, 3e-1), (5e3, 5e5)),
    ),
}


def preset(name: str) -> Preset:
    """The preset of that name; a language model is trained on a GPU, in bfloat16, if one is here.

    Raises:
        Refused: There is none; the sentence gives the nearest name.
    """
    known = PRESETS | TUNING
    require_known("preset", name, known)
    chosen = known[name]
    if name in TUNING and machine.gpus():
        return replace(
            chosen, experiment=replace(chosen.experiment, device="cuda", dtype="bfloat16")
        )
    return chosen


def length(experiment: Any) -> str:
    """What an experiment calls the steps of a run."""
    return "steps" if "steps" in {f.name for f in fields(experiment)} else "num_steps"


def configure(experiment: Any, settings: dict[str, Any]) -> Any:
    """`experiment` with some settings replaced, all at once; values may be text.

    Raises:
        Refused: A setting is unknown or its value is not of its type.
    """
    known = sorted({f.name for f in fields(experiment)} - {"axes"})
    hints = get_type_hints(type(experiment))
    changes = {}
    for name, value in settings.items():
        if name != "axes" or isinstance(value, str):
            require_known("setting", name, known)
        changes[name] = _parse(name, hints[name], value) if isinstance(value, str) else value
    return replace(experiment, **changes)


def _parse(name: str, kind: Any, text: str) -> Any:
    options = get_args(kind) or (kind,)
    if text.lower() == "none" and type(None) in options:
        return None
    if bool in options:
        if text.lower() not in ("true", "false"):
            raise Refused(f"{name}={text}: that setting takes true or false")
        return text.lower() == "true"
    for option in (int, float):
        if option in options:
            try:
                value = float(text)
            except ValueError:
                kind_of = "whole number" if option is int else "number"
                raise Refused(f"{name}={text}: that setting takes a {kind_of}") from None
            if option is int and not value.is_integer():
                raise Refused(f"{name}={text}: that setting takes a whole number")
            return option(text if text.lstrip("+-").isdecimal() else value)
    return text


def _differences(before: Any, now: Any, where: str = "") -> Iterator[str]:
    """What differs between two pieces of JSON data, a sentence each."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted({*before, *now}):
            inner = f"{where}.{name}" if where else name
            yield from _differences(before.get(name), now.get(name), inner)
    elif canonical(before) != canonical(now):
        yield f"{where} was {before} and is {now}"


def read_run(path: Path) -> Store:
    """The store of an existing run folder, to be looked at.

    That takes neither the data and weights it was computed with nor the same versions.

    Raises:
        Refused: It is not a run folder, or is damaged.
    """
    recipe = read_recipe(path)
    try:
        kind = EXPERIMENTS[recipe["experiment"]]
        experiment = from_json(kind, recipe["settings"])
        sweep = Sweep(experiment, read_grid(path, recipe), recipe["seed"], recipe["contract"])
    except Refused:
        raise
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise Refused(
            f"{path}/sweep.json is no recipe of this version ({error}); make the run anew"
        ) from None
    if recipe.get("id") != sweep.id:
        raise Refused(f"{path}/sweep.json was edited; restore it or make the run anew")
    return Store(path, sweep)


def open_run(path: Path) -> Store:
    """The store of an existing run folder, to be trained in.

    Raises:
        Refused: It is not a run folder, is damaged, or was computed with something else than what
            would be trained with now; the sentence says with what.
    """
    store = read_run(path)
    now = replace(store.sweep, recorded=None).recipe
    if changed := list(_differences(store.sweep.recipe, now)):
        raise Refused(
            f"{path} was made by code whose answers may differ: {'; '.join(changed)}; use the "
            "version that made the run, or make it anew"
        )
    return store
