"""Commands that compute and check: run, status, stop, verify."""

import contextlib
import dataclasses
import json
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Literal

from tqdm import tqdm

from fractal_core import control, duty, engine, experiments, machine, tracking
from fractal_core.commands import Json, Run
from fractal_core.commands.track import await_mirror, begin_mirror
from fractal_core.duty import Busy, Share
from fractal_core.engine import Crew, Stop
from fractal_core.errors import Refused
from fractal_core.local import LocalCrew
from fractal_core.outlook import about, pace
from fractal_core.store import Store
from fractal_core.worker import TEMPORARY

Engine = Literal["local", "ray"]

FAILED, INTERRUPTED = 1, 130


def train(
    store: Store,
    hire: Callable[[Store], Crew] | None = None,
    share: Share = duty.WHOLE,
) -> int:
    """Train what is missing, with a bar on a terminal and a line every few seconds elsewhere.

    Returns:
        The exit code: 0 done, 1 some units failed, 75 or 130 asked to stop.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    hire = hire or crew_of(store)
    stop, failed = Stop(), {}
    # A copy of this process is only safe while it has one thread, and tqdm would begin another.
    tqdm.monitor_interval = 0
    with stop.on(signal.SIGINT, signal.SIGTERM), _bar(store) as tell:
        for exit in engine.run(store, hire, share=share, stop=stop):
            if exit.code == 0:
                tell(exit.order.points)
            elif exit.final:
                failed[exit.order.unit.key] = exit.cause
    if stop.signal is not None:
        print(
            "stopped; nothing that was finished is lost, the same command goes on",
            file=sys.stderr,
        )
        return INTERRUPTED if stop.signal == signal.SIGINT else TEMPORARY
    if failed:
        print(
            f"fractal: {len(failed)} units failed ({'; '.join(sorted(set(failed.values())))}); "
            f"`fractal status {store.path}` tells more, and the same command tries them again",
            file=sys.stderr,
        )
        return FAILED
    return 0


def crew_of(
    store: Store,
    slots: int | None = None,
    devices: tuple[str, ...] = (),
    where: Engine = "local",
) -> Callable[[Store], Crew]:
    """What makes the crew of a run, once it is known that the devices are there.

    Raises:
        Refused: A device is not there, or Ray is not.
    """
    if where == "ray":
        from fractal_core import cluster

        if devices:
            raise Refused("--devices names those of this machine; with --engine ray say --slots N")
        return cluster.hire(store.sweep.experiment.devices, slots)
    experiment = store.sweep.experiment
    places = machine.slots(experiment.devices, slots, devices, experiment.serial)
    return lambda store: LocalCrew(store.path, places)


class Telling:
    """Says how far something is: at once, every few seconds, and at its end; counts what is done."""

    def __init__(self, before: str = "", counted: str = "runs"):
        self.before, self.counted, self.count = before, counted, 0
        self._known: dict[str, int] = {}
        self._spoken = 0.0

    def __call__(self, name: str, done: int, total: int) -> None:
        """See `survey.Tell`; a part that was there before is not counted, nor is its end said."""
        more = done - self._known.get(name, done)
        self._known[name] = done
        self.count += more
        now = time.monotonic()
        if now - self._spoken > 5 or (more and done == total):
            self._spoken = now
            kind = name.rpartition("-")[0] or name  # without the hash
            line = f"{self.before}{kind} {done:,}/{total:,} {self.counted}"
            print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _bar(store: Store) -> Iterator[Callable[[int], None]]:
    """What shows how many more runs are done."""
    state = control.progress(store)
    done, total, spoken = state.done, state.points, time.monotonic()
    bar = tqdm(
        total=total,
        initial=done,
        unit="run",
        unit_scale=True,
        disable=not sys.stderr.isatty(),
    )

    def tell(more: int) -> None:
        nonlocal done, spoken
        done += more
        bar.update(more)
        if bar.disable and (time.monotonic() - spoken > 5 or (done == total and more)):
            spoken = time.monotonic()
            print(f"{done}/{total} runs", file=sys.stderr, flush=True)

    with bar:
        yield tell


def run(
    run: Run,
    /,
    *,
    slots: int | None = None,
    devices: tuple[str, ...] = (),
    engine: Engine = "local",
    shard: str = "1/1",
    detach: bool = False,
    track: bool = False,
) -> int:
    """Train the missing points of a run folder, coarse level first.

    Stop it in any way: nothing finished is lost, and the same command goes on. Asked once (Ctrl-C,
    SIGTERM) it finishes the units in hand, asked twice it ends at once. A folder that a process
    works on already is watched instead.

    Args:
        run: The run folder.
        slots: Worker processes that share the CPU, or each GPU; left out, 1, or one per core where
            a run uses a single thread.
        devices: One slot each, for example cuda:0 cuda:1; left out, all that the experiment can use.
        engine: `local` is this machine, `ray` the cluster that `RAY_ADDRESS` names, or else one
            that is begun here.
        shard: I/N: the I-th of N machines that share this folder and divide its units.
        detach: Start it as a process of its own that outlives this terminal.
        track: Mirror it at Weights & Biases meanwhile, from another process; see `fractal track`.
    """
    store = experiments.open_run(run)
    share = Share.parse(shard)
    hire = crew_of(store, slots, devices, engine)
    if track:
        tracking.require_client()
    if detach and store.missing():
        options = [*(["--slots", str(slots)] if slots else []), "--engine", engine]
        options += ["--devices", *devices] if devices else []
        options += ["--shard", shard] if share.count > 1 else []
        pid = control.start_detached(run, options)
        print(f"{run}: process {pid} works on it, log in {run}/state/log.txt")
        if track:
            follower = begin_mirror(run)
            print(f"{run}: process {follower.process.pid} mirrors it, log in {follower.log}")
        return 0
    follower = begin_mirror(run) if track else None
    code = _train_or_watch(store, hire, share)
    if follower and code in (0, FAILED):
        await_mirror(run, follower)
    return code


def _train_or_watch(store: Store, hire: Callable[[Store], Crew], share: Share) -> int:
    """Train what is missing, or look on while another process does; returns the exit code."""
    path = store.path
    try:
        code = train(store, hire, share)
    except Busy as busy:
        if not duty.lock_holder(path):
            raise
        print(f"{busy}; this one only looks (Ctrl-C ends the looking)", file=sys.stderr)
        return _watch(store)
    if code:
        return code
    if lacking := len(store.missing()):
        which = f"{share.index}/{share.count}"
        print(f"{path}: share {which} is complete, {lacking} units of others are not")
    else:
        print(f"{path}: complete; draw it with `fractal show {path} --out {path}/map.png`")
    return 0


def _watch(store: Store) -> int:
    """Show how far the process on duty is, until it ends."""
    with _bar(store) as tell:
        done = control.progress(store).done
        while duty.lock_holder(store.path) is not None:
            time.sleep(0.5)
            now = control.progress(store).done
            tell(now - done)
            done = now
    if missing := len(store.missing()):
        raise Refused(
            f"{store.path}: that process ended with {missing} units missing; run it again"
        )
    print(f"{store.path}: complete")
    return 0


def status(run: Run, /, *, as_json: Json = False) -> None:
    """Say how far a run is.

    Args:
        run: The run folder.
        as_json: One JSON object and nothing else.
    """
    state = control.progress(experiments.read_run(run))
    if as_json:
        print(json.dumps(dataclasses.asdict(state)))
        return
    who = (
        f"process {state.process} works on it"
        if state.process
        else "nobody works on it"
        if state.process is None
        else "a process elsewhere works on it"
    )
    print(
        f"{run}: {state.done}/{state.points} points, {state.units_missing} units missing, "
        f"{state.failed} failed; {who}"
    )
    if state.points_per_second is not None:
        wait = state.seconds_remaining
        rest = "" if wait is None else f", {about(wait)} to go"
        print(f"  {pace(state.points_per_second)}{rest}")
    for slot in state.slots:
        doing = f"unit {slot['unit']}" if slot["unit"] else "waits"
        used = f", GPU {slot['gpu_percent']:.0f} %" if "gpu_percent" in slot else ""
        whose = f"process {slot['process']}, " if slot["process"] else ""
        print(f"  slot {slot['index']} on {slot['device']}: {whose}{doing}{used}")
    for cause, count in state.causes.items():
        print(f"  {count} failed: {cause}")


def stop(run: Run, /) -> None:
    """End the processes that work on a run, gracefully if they can; what they finished stays.

    Args:
        run: The run folder.
    """
    experiments.read_run(run)
    print(f"{run}: stopped" if control.stop(run) else f"{run}: nobody works on it")


def verify(run: Run, /, *, as_json: Json = False) -> None:
    """Read every file of a run again; a bad one goes to quarantine and its unit is missing.

    Args:
        run: The run folder.
        as_json: One JSON object and nothing else.
    """
    store = experiments.read_run(run)
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
