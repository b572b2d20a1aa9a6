"""Commands that compute and check: run, status, verify."""

import dataclasses
import json
import logging
import sys
import time
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from fractal_core import engine, experiments
from fractal_core.engine import progress, run_here, start_detached
from fractal_core.store import Store

Run = tyro.conf.Positional[Path]
Json = Annotated[bool, tyro.conf.arg(name="json")]


def train(store: Store) -> None:
    """Train what is missing, with a bar on a terminal and a line every few seconds elsewhere."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    state = progress(store)
    done, total = state.done, state.points
    if done == total:
        return
    bar = tqdm(
        total=total,
        initial=done,
        unit="run",
        unit_scale=True,
        disable=not sys.stderr.isatty(),
    )
    spoken = time.monotonic()
    with bar:
        for exit in run_here(store):
            done += exit.points
            bar.update(exit.points)
            if bar.disable and (time.monotonic() - spoken > 5 or done == total):
                spoken = time.monotonic()
                print(f"{done}/{total} runs", file=sys.stderr, flush=True)


def run(run: Run, /, *, detach: bool = False) -> None:
    """Train the missing points of a run folder, coarse level first.

    Stop it in any way: nothing finished is lost, and the same command goes on.

    Args:
        run: The run folder.
        detach: Start it as a process of its own that outlives this terminal.
    """
    store = experiments.open_run(run)
    if detach and store.missing():
        print(f"{run}: process {start_detached(run)} works on it, log in {run}/state/log.txt")
        return
    train(store)
    print(f"{run}: complete; draw it with `fractal show {run} --out {run}/map.png`")


def status(run: Run, /, *, as_json: Json = False) -> None:
    """Say how far a run is.

    Args:
        run: The run folder.
        as_json: One JSON object and nothing else.
    """
    state = progress(experiments.open_run(run))
    if as_json:
        print(json.dumps(dataclasses.asdict(state)))
        return
    who = (
        f"process {state.process} works on it"
        if state.process is not None
        else "nobody works on it"
    )
    print(f"{run}: {state.done}/{state.points} points, {state.failed} failed units; {who}")


def stop(run: Run, /) -> None:
    """End the process that works on a run; what it finished stays.

    Args:
        run: The run folder.
    """
    experiments.open_run(run)
    print(f"{run}: stopped" if engine.stop(run) else f"{run}: nobody works on it")


def verify(run: Run, /, *, as_json: Json = False) -> None:
    """Read every file of a run again; a bad one goes to quarantine and its unit is missing.

    Args:
        run: The run folder.
        as_json: One JSON object and nothing else.
    """
    store = experiments.open_run(run)
    moved = store.verify()
    units = len(store.files.list("units"))
    if as_json:
        print(json.dumps({"intact": units, "moved": moved}))
        return
    for sentence in moved:
        print(sentence)
    print(f"{run}: {units} units intact, {len(moved)} moved to quarantine")
    if moved:
        print(f"next: fractal run {run}")
