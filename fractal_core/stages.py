"""The stages of nanochat in a base folder: begun in the background, watched, and what they left.

    speedrun.json             the stages that are complete, and their seconds
    metrics/STAGE.N.jsonl     what attempt N of a stage measured, an object per line
    report/report.md          the report card
    state/                    who works on it, what was begun, the log

As all that knows nanochat this is an adapter: it imports it only where it is asked for.
"""

import contextlib
import functools
import html
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import altair as alt
import pandas as pd

from fractal_core import errands, machine
from fractal_core.errors import Refused, as_ours, require_known
from fractal_core.files import read_json, read_lines
from fractal_core.network import recorded

if TYPE_CHECKING:
    from scripts.speedrun import Stage

SIZES = ("smoke", "tiny", "d20")
MEASURES = {
    "train/loss": "training loss",
    "train_loss": "training loss",
    "val/bpb": "validation, bits per byte",
    "val_loss": "validation loss",
    "reward": "reward of a step",
    "held_out/reward": "reward, held out",
}
"""What is drawn of what the stages measure, and what it is called."""

HUES = dict(
    zip(
        dict.fromkeys(MEASURES.values()),
        ("#2474bd", "#e07b39", "#e07b39", "#2474bd", "#e07b39"),
        strict=True,
    )
)
"""Blue while it learns, orange on what it does not learn from."""

ORDER = ("base", "mid", "sft", "rl")

MOST_POINTS = 400
"""Of a curve on the screen."""

COLOURS = {
    "done": "#2474bd",
    "running": "#15803d",
    "stopping": "#b45309",
    "stopped": "#b45309",
    "failed": "#d1495b",
    "not begun": "#8a8f98",
}


@dataclass(frozen=True)
class Status:
    """How far a stage is.

    Args:
        name: Of the stage.
        state: One of `COLOURS`.
        seconds: That it took, once it is done.
        step: The last step that it told of.
        measured: What it last measured, in words.
    """

    name: str
    state: str
    seconds: float | None = None
    step: int | None = None
    measured: str = ""


@functools.cache
def plan(size: str) -> "tuple[Stage, ...]":
    """The stages of a size, in order.

    Raises:
        Refused: There is no such size.
    """
    require_known("size", size, SIZES)
    from nanochat import common
    from scripts import speedrun

    # What it says of the machine is said again when the stages run.
    with as_ours(common.Refused), contextlib.redirect_stdout(None):
        return tuple(speedrun.stages_of(size))


def size_of(folder: Path) -> str | None:
    """The size whose stages a folder holds; None if nothing was begun there."""
    errand = errands.last(folder)
    for word in errand.command if errand else ():
        if (size := word.removeprefix("--size=")) in SIZES:
            return size
    done = _done(folder)
    for size in SIZES if done else ():
        flags = {stage.name: list(stage.flags) for stage in plan(size)}
        if all(flags.get(name) == row["flags"] for name, row in done.items()):
            return size
    return None


def progress(folder: Path, size: str) -> list[Status]:
    """How far every stage of a folder is, as the disk has it."""
    errand, done, rows = errands.last(folder), _done(folder), curves(folder)
    begun = set(errand.log.split("\n")) if errand else set()
    found = []
    for stage in plan(size):
        state = "not begun"
        if errand and errand.command == _alone(folder, size, stage.name):
            state = errand.state
        elif stage.name in done:
            state = "done"
        elif errand and f"--- {stage.name}" in begun:
            state = errand.state
        mine = rows[rows.stage == (stage.source or stage.name)]
        last = None if mine.empty else mine.iloc[-1]
        found.append(
            Status(
                stage.name,
                state,
                done.get(stage.name, {}).get("seconds"),
                None if last is None else int(last.step),
                "" if last is None else f"{last.measure} {last.value:.4f}",
            )
        )
    return found


def table(found: list[Status]) -> str:
    """The stages as a table of HTML; it is shown again and again, so nothing in it is chosen."""
    lines = []
    for status in found:
        dot = f"<span style='color:{COLOURS[status.state]}'>●</span>"
        seconds = "" if status.seconds is None else f"{status.seconds:,.1f} s"
        step = "" if status.step is None else f"{status.step:,}"
        cells = [html.escape(status.name), f"{dot}&nbsp;{status.state}", seconds, step]
        cells.append(html.escape(status.measured))
        tagged = f"<tr data-testid='stage-{html.escape(status.name)}'>"
        padded = (f"<td style='padding:.2em 1.2em .2em 0'>{cell}</td>" for cell in cells)
        lines.append(f"{tagged}{''.join(padded)}</tr>")
    heads = ("stage", "state", "took", "step", "last measured")
    head = "".join(
        f"<th style='text-align:left;font-weight:600;padding:.2em 1.2em .2em 0'>{h}</th>"
        for h in heads
    )
    return f"<table data-testid='stages'><tr>{head}</tr>{''.join(lines)}</table>"


def curves(folder: Path) -> pd.DataFrame:
    """What the stages measured: columns stage, step, measure and value, in the order of the stages.

    Where an attempt went on from a saved step, its rows take the place of those from that step on.
    """
    stages: dict[str, list[tuple[str, int, str, float]]] = {}
    numbered = [(file.name.split(".")[-2], file) for file in (folder / "metrics").glob("*.*.jsonl")]
    files = [(int(number), file) for number, file in numbered if number.isdecimal()]
    for _, file in sorted(files):
        stage, rows = file.name.partition(".")[0], list(_rows(file))
        first = min((row[1] for row in rows), default=None)
        kept = [row for row in stages.get(stage, []) if first is None or row[1] < first]
        stages[stage] = kept + rows
    order = sorted(stages, key=lambda stage: (ORDER.index(stage) if stage in ORDER else 9, stage))
    rows = [row for stage in order for row in stages[stage]]
    return pd.DataFrame(rows, columns=["stage", "step", "measure", "value"])


def charts(frame: pd.DataFrame) -> list[alt.Chart]:
    """A chart per stage of what it measured."""
    found = []
    for stage, own in frame.groupby("stage", sort=False):
        parts = [part for _, part in own.groupby("measure", sort=False)]
        thin = pd.concat([part.iloc[recorded(len(part), MOST_POINTS)] for part in parts])
        names = [name for name in HUES if name in set(thin.measure)]
        hues = alt.Scale(domain=names, range=[HUES[name] for name in names])
        found.append(
            alt.Chart(thin, title=str(stage))
            .mark_line(point=len(thin) < 40)
            .encode(
                x=alt.X("step:Q", title="step"),
                y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=False)),
                color=alt.Color("measure:N", title=None, scale=hues).legend(orient="top"),
                tooltip=["measure", "step", "value"],
            )
            .properties(height=180, width="container")
        )
    return found


def report(folder: Path) -> str | None:
    """The report card as Markdown, or None while there is none."""
    try:
        return (folder / "report" / "report.md").read_text()
    except OSError:
        return None


def news(folder: Path) -> tuple[Any, ...]:
    """Changes whenever there is something new to show of a folder."""
    files = [folder / name for name in ("speedrun.json", errands.NOTE, errands.LOG)]
    files += [folder / "report" / "report.md", folder / "state" / "STOP"]
    files += sorted((folder / "metrics").glob("*.jsonl"))
    stamps = []
    for file in files:
        # It may go at any moment, and whoever looks may name what is no folder.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            told = file.stat()
            stamps.append((file.name, told.st_size, told.st_mtime_ns))
    errand = errands.last(folder)
    return (str(folder), errand.process if errand else None, *stamps)


def start(folder: Path, size: str, stage: str = "") -> int:
    """Begin what is not complete in a folder, or one stage again; returns the process.

    Raises:
        Refused: The folder cannot be made, or it ended at once.
    """
    plan(size)
    all_of_it = command(folder, size)[2:]
    return errands.start(folder, _alone(folder, size, stage) if stage else all_of_it)


def command(folder: Path, size: str) -> list[str]:
    """What one would type to have all stages of a size complete in a folder."""
    cards = len(machine.gpus())
    gpus = [f"--gpus={cards}"] if cards else []
    return [*["python", "-m", "scripts.speedrun"], f"--size={size}", f"--base_dir={folder}", *gpus]


def again(folder: Path, size: str, stage: str) -> None:
    """Run one stage here: from its start if it was complete, else on from what it saved.

    The checkpoints of one that was complete are set aside, under a name with a number. What comes
    after it is as it was, until it is done again, too.

    Raises:
        Refused: There is no such stage, it failed, or the folder is worked in.
        KeyboardInterrupt: It was asked to stop; the same goes on.
    """
    from nanochat import common
    from nanochat.report import get_report
    from scripts import speedrun, tiny

    named = {one.name: one for one in plan(size)}
    require_known("stage", stage, named)
    with tiny.base_folder(str(folder)), as_ours(common.Refused):
        folder.mkdir(parents=True, exist_ok=True)
        speedrun.spare_threads(size)
        with speedrun.only_one(folder) as lock:
            record = speedrun.Record(folder)
            if record.forget(named[stage]) and named[stage].source:
                speedrun.set_aside(folder, named[stage])
            speedrun.perform([named[stage]], record, max(1, len(machine.gpus())), lock)
            if report(folder) is not None:
                with contextlib.suppress(common.Refused):  # what it was made of may be gone
                    get_report().generate()


def _alone(folder: Path, size: str, stage: str) -> tuple[str, ...]:
    """The command for one stage."""
    return ("fractal_core.stages", str(folder), f"--size={size}", stage)


def _done(folder: Path) -> dict[str, Any]:
    return read_json(folder / "speedrun.json", {})


def _rows(file: Path) -> Iterator[tuple[str, int, str, float]]:
    """Stage, step, measure and value of the whole lines of a file."""
    stage = file.name.partition(".")[0]
    for row in read_lines(file):
        for name, title in MEASURES.items():
            if row.get(name) is not None and "step" in row:
                yield stage, int(row["step"]), title, float(row[name])


def main(words: list[str]) -> int:
    """Run one stage: FOLDER --size=SIZE STAGE."""
    folder, size, stage = words
    try:
        again(Path(folder), size.removeprefix("--size="), stage)
    except Refused as refusal:
        print(f"error: {refusal}")
        return 2
    except KeyboardInterrupt:
        return errands.STOPPED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
