"""The recipe that a figure carries: what it shows, in words and for programs, and the way back.

It is one line of JSON in a field that every format has: the keywords of a PDF, the description of
an SVG, the comment of a PNG, a GIF or an MP4. A run appears by its name, its id and its sweep, and
no folder of the machine that drew it does.
"""

import contextlib
import html
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from PIL import Image as Picture
from PIL import UnidentifiedImageError

from fractal_core import experiments, explore
from fractal_core.errors import Refused
from fractal_core.finetune import FineTune
from fractal_core.plane import Axis, Region
from fractal_core.store import Store, read_recipe
from fractal_core.sweep import Sweep, from_json, to_json
from fractal_core.ticks import brief
from fractal_core.tiny import TinyNetworks

MARK = '{"fractal_figure":'
VERSION = 1
SUFFIXES = (".pdf", ".svg", ".png", ".gif", ".mp4")
COLOURS = {
    "measure": "Colour is the rank of how fast a run learned, or blew up, among those that did; "
    "the darkest were slowest.",
    "outcome": "Colour is the outcome.",
    "final_loss": "Colour is the rank of the final loss.",
    "steps": "Colour is the rank of the number of steps before a run blew up.",
}


@dataclass(frozen=True)
class Shown:
    """A run that a figure shows, as the figure tells it.

    Args:
        name: Its folder's name where the figure was drawn.
        id: Content id of its sweep.
        sweep: Its recipe.
    """

    name: str
    id: str
    sweep: dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """What a figure shows.

    Args:
        kind: Of figure: map, plate, film and so on.
        runs: The runs in it.
        drawn: How it was drawn: palette, width and the like.
        caption: In words.
    """

    kind: str
    runs: tuple[Shown, ...]
    drawn: dict[str, Any]
    caption: str


def text(kind: str, stores: Sequence[Store], drawn: Mapping[str, Any], words: str = "") -> str:
    """The recipe of a figure of some runs, as the one line that goes into its file."""
    runs = [
        {"name": store.path.name, "id": store.sweep.id, "sweep": _without_folders(store.sweep)}
        for store in stores
    ]
    told = {"fractal_figure": VERSION, "kind": kind, "runs": runs}
    told |= {"drawn": dict(drawn), "caption": words}
    return json.dumps(told, separators=(",", ":"))


def _without_folders(sweep: Sweep) -> dict[str, Any]:
    """A recipe whose checkpoint and data, where they are folders, go by their last name."""
    told = sweep.recipe
    return told | {"settings": {key: _last(item) for key, item in told["settings"].items()}}


def _last(value: Any) -> Any:
    folder = isinstance(value, str) and "/" in value and not re.match(r"(hf|wandb):", value)
    return PurePath(value).name if folder else value


def read(path: Path) -> Recipe:
    """The recipe in the file of a figure.

    Raises:
        Refused: There is no such file, or it holds no recipe that this version can read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}; name a figure that is there") from None
    said = _said(data)
    start = said.find(MARK)
    if start < 0:
        raise Refused(f"{path} carries no recipe; open a figure that `fractal show` has drawn")
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        told, _ = json.JSONDecoder().raw_decode(said, start)
        runs = tuple(Shown(str(r["name"]), str(r["id"]), dict(r["sweep"])) for r in told["runs"])
        if told["fractal_figure"] == VERSION and runs:
            return Recipe(str(told["kind"]), runs, dict(told["drawn"]), str(told["caption"]))
    raise Refused(f"{path} carries a recipe that cannot be read; draw the figure anew")


def _said(data: bytes) -> str:
    """What a file says in its comments, its format's own quoting undone."""
    if data.startswith((b"\x89PNG", b"GIF8")):
        with contextlib.suppress(UnidentifiedImageError, OSError, ValueError, SyntaxError):
            comment = Picture.open(io.BytesIO(data)).info
            found = comment.get("Comment") or comment.get("comment") or ""
            return found.decode("latin-1") if isinstance(found, bytes) else str(found)
        return ""
    said = data.decode("latin-1")
    if data.startswith(b"%PDF"):
        return re.sub(r"\\([\\()])", r"\1", said)
    return html.unescape(said) if b"<svg" in data[:2000] else said


def caption(store: Store, quantity: str = "measure") -> str:
    """The caption block of a map: what was trained where, how it was judged, what colours mean.

    All of it follows from the recipe, so that it is right whoever draws the map.

    Args:
        store: The run.
        quantity: What the colours show; one that is not in `COLOURS` goes without a sentence.
    """
    sweep = store.sweep
    rows, cols = sweep.grid.shape
    ends = " and ".join(
        f"{label} {' to '.join(brief(axis.low, axis.high))}"
        + " (linear)" * (axis.scale == "linear")
        for label, axis in zip(sweep.labels, (sweep.region.x, sweep.region.y), strict=True)
    )
    sentences = [
        f"Each of {rows} × {cols} cells is one run of {subject(sweep)}, over {ends}.",
        rule(sweep.experiment),
        COLOURS.get(quantity, ""),
        f"Run {store.path.name}, id {sweep.id}.",
    ]
    return " ".join(filter(None, sentences))


def rule(experiment: Any) -> str:
    """The rule by which runs were judged, as a sentence."""
    part = getattr(experiment, "threshold", 1.0)
    below = "its first loss" if part == 1.0 else f"{part:g} times its first loss"
    return (
        f"A run is trainable if the mean of its last {experiment.window} losses is below {below}."
    )


def length(experiment: Any) -> str:
    """How long each run trains, in words; empty where an axis decides that."""
    if {"num_steps", "num_tokens"} & set(experiment.axes):
        return ""
    if getattr(experiment, "num_tokens", None) is not None:
        return f"{experiment.num_tokens:,} tokens"
    return f"{getattr(experiment, experiments.length(experiment))} steps"


def condition(store: Store) -> str:
    """A run's condition in a few words, as a title; the name of its folder where there are none."""
    told = store.sweep.experiment
    if not isinstance(told, TinyNetworks):
        return store.path.name
    data = "one sample" if told.samples == 1 else "full batch"
    data = f"batches of {told.batch}" if told.batch else data
    words = f"{_kind(told)}, {data}"
    for axis, more in (("drift", "drifting weights"), ("offset", "offset weights")):
        words += f", {more}" if axis in told.axes else ""
    return words


def _kind(told: TinyNetworks) -> str:
    return {"identity": "deep linear", "relu": "ReLU"}.get(told.activation, told.activation)


def subject(sweep: Sweep) -> str:
    """What was trained, in words: the network, its data and how long. What an axis moves is left
    out.
    """
    told: Any = sweep.experiment
    if isinstance(told, TinyNetworks):
        data = f"{told.samples} sample" + "s" * (told.samples != 1)
        data += f" in batches of {told.batch}" if told.batch else ""
        source = f"seed {sweep.seed}" if told.arrays == "seeded" else "the paper's weights"
        words = [f"a {_kind(told)} network of width {told.width} on {data}"]
        return ", ".join([*words, length(told), told.dtype, source])
    if isinstance(told, FineTune):
        names = (_last(told.checkpoint), _last(told.data))
        texts = f"{told.batch_size * told.accumulation} texts per step"
        words = [
            f"a language model ({names[0]}) fine-tuned on {names[1]}",
            length(told),
            "" if {"batch_size", "accumulation"} & set(told.axes) else texts,
            told.dtype,
            "" if "seed" in told.axes else f"seed {sweep.seed}",
        ]
        return ", ".join(filter(None, words))
    return f"{type(told).__name__}, seed {sweep.seed}"


def address(root: Path, run: Shown) -> dict[str, str]:
    """What leads the zoom notebook to a run of a figure.

    The run folder of that name if it holds this recipe, else any other that does, else an address
    that says the same settings, where one can.

    Args:
        root: Folder of the run folders.
        run: What the figure says.

    Raises:
        Refused: The run is not there, and its settings are of no preset.
    """
    for name in sorted(explore.runs(root), key=lambda name: name != run.name):
        with contextlib.suppress(Refused, OSError):
            if read_recipe(root / name).get("id") == run.id:
                return {"run": name}
    found = _from_settings(root, run)
    if found is None:
        raise Refused(
            f"the run {run.name} ({run.id}) is not in {root}, and its settings are of no preset "
            "that an address could name; copy its folder there and open the figure again"
        )
    return found


def _from_settings(root: Path, run: Shown) -> dict[str, str] | None:
    """The address of a preset, of a window of it, which gives the same settings; None if none does."""
    told = run.sweep
    try:
        experiment = from_json(experiments.EXPERIMENTS[told["experiment"]], told["settings"])
        axes = {name: from_json(Axis, axis) for name, axis in told["region"].items()}
        sweep = Sweep.over(experiment, Region(**axes), told["seed"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    length = experiments.length(experiment)
    kept = {length: getattr(experiment, length), "dtype": experiment.dtype}
    for name in (*experiments.PRESETS, *experiments.TUNING):
        known = experiments.preset(name).experiment
        if type(known) is not type(experiment) or replace(known, **kept) != experiment:
            continue
        there = explore.address(explore.View(sweep, root / run.name, None), name)
        with contextlib.suppress(Refused):
            view = explore.from_address(root, there)
            same = to_json(view.sweep.region) == told["region"] and view.sweep.seed == sweep.seed
            return there if same else None
    return None
