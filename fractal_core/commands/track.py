"""The command that mirrors a run at Weights & Biases: track."""

import os
from pathlib import Path

import tyro

from fractal_core import experiments, mirror, tracking

Run = tyro.conf.Positional[Path]


def track(run: Run, /, *, follow: bool = False, patience: float = mirror.PATIENCE) -> None:
    """Send a run to Weights & Biases, or send it again: the same run there goes on.

    A map is sent with its progress, picture, table of points, summary and arrays; a single run with
    its curve, samples, summary and checkpoint. WANDB_PROJECT and WANDB_ENTITY say where, WANDB_MODE,
    WANDB_API_KEY and `wandb login` whether: without a key all is written to the run folder only.

    Args:
        run: The run folder, finished or not.
        follow: Go on until no process works on it any more, as `fractal run --track` does.
        patience: Seconds that the server may take to begin, to confirm files, and to end.
    """
    tracking.require_client()
    store = experiments.read_run(run)
    if follow:
        os.nice(10)  # the run comes first
    print((mirror.follow if follow else mirror.send)(store, patience))
