"""The command that mirrors a run at Weights & Biases, and what other commands need to have one."""

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fractal_core import experiments, tracking
from fractal_core.commands import Run

if TYPE_CHECKING:
    from fractal_core.mirror import Follower


def track(run: Run, /, *, follow: bool = False, patience: float = tracking.PATIENCE) -> None:
    """Send a run to Weights & Biases, or send it again: the same run there goes on.

    A map is sent with its progress, picture, table of points, summary and arrays; a single run with
    its curve, samples, summary and checkpoint. WANDB_PROJECT and WANDB_ENTITY say where, WANDB_MODE,
    WANDB_API_KEY and `wandb login` whether: without a key all is written to the run folder only.

    Args:
        run: The run folder, finished or not.
        follow: Go on until no process works on it any more, as `fractal run --track` does.
        patience: Seconds that the server may take to begin, to confirm files, and to end.
    """
    from fractal_core import mirror

    tracking.require_client()
    store = experiments.read_run(run)
    if follow:
        os.nice(10)  # the run comes first
    print((mirror.follow if follow else mirror.send)(store, patience))


def begin_mirror(run: Path) -> "Follower":
    """Follow a run from a process of its own.

    Raises:
        Refused: Weights & Biases is not installed, or switched off.
    """
    from fractal_core import mirror  # it draws, which no run needs

    return mirror.start(run)


def await_mirror(run: Path, follower: "Follower") -> None:
    """Wait for its last word, for where a job has ended all its processes may be ended too."""
    print(f"{run}: waiting for Weights & Biases (Ctrl-C ends the waiting)", file=sys.stderr)
    with contextlib.suppress(KeyboardInterrupt):
        print(follower.last_words(), file=sys.stderr)
