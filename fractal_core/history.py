"""Boundary in time: what the label of every point was after many training lengths, from one run.

A run of T steps is the beginning of a longer one, so its label needs nothing but the first loss and
the last K losses up to T. All points of the map are trained once more with those losses recorded;
the labels at the full length are those of the map itself.
"""

import numpy as np
from jaxtyping import Float64, UInt8

from fractal_core import survey
from fractal_core.errors import Refused
from fractal_core.outcome import WINDOW, Outcomes
from fractal_core.store import Store
from fractal_core.survey import Hire, Tell


def lengths(steps: int, window: int, count: int) -> tuple[int, ...]:
    """Training lengths from twice the window to all steps, evenly spaced in their logarithm.

    Raises:
        Refused: Fewer than two lengths are asked for, or the run is too short for them.
    """
    if count < 2 or steps < 2 * window + count:
        raise Refused(
            f"{count} training lengths between {2 * window} and {steps} steps; ask for at least 2, "
            "of a run that has room for them"
        )
    return tuple(np.unique(np.rint(np.geomspace(2 * window, steps, count)).astype(int)).tolist())


def outcomes_in_time(
    store: Store, count: int, hire: Hire, tell: Tell
) -> tuple[tuple[int, ...], UInt8[np.ndarray, "times rows cols"]]:
    """The training lengths, and the outcome of every point of the map after each.

    Raises:
        Busy: Another process works on the run.
        Refused: The experiment has no steps, the run is too short, or points could not be trained.
    """
    experiment = store.sweep.experiment
    steps, window = getattr(experiment, "steps", None), getattr(experiment, "window", WINDOW)
    if steps is None:
        raise Refused("this experiment does not fix its number of steps; choose another run")
    chosen = lengths(steps, window, count)
    record = sorted({step for length in chosen for step in range(length - window, length)})
    rows, cols = store.sweep.grid.shape
    points = store.sweep.grid.points(
        np.repeat(np.arange(rows), cols), np.tile(np.arange(cols), rows)
    )
    name = survey.named("time", {"lengths": chosen, "window": window})
    found = survey.trained(store, name, points, hire, tell, record)
    losses = found.extras["losses"]
    slots = {step: slot for slot, step in enumerate(record)}
    labels = [
        outcome_after(
            length, found, losses[:, [slots[step] for step in range(length - window, length)]]
        )
        for length in chosen
    ]
    return chosen, np.stack(labels).reshape(len(chosen), rows, cols)


def outcome_after(
    length: int, found: Outcomes, tail: Float64[np.ndarray, "points window"]
) -> UInt8[np.ndarray, " points"]:
    """The outcome of runs that had ended after `length` steps, given their last losses up to there."""
    nothing = np.zeros(len(tail))
    with np.errstate(invalid="ignore"):
        # One loss after another, as the kernels add them.
        tail_v = np.add.accumulate(tail / found.first_loss[:, None], axis=1)[:, -1] / tail.shape[1]
    return Outcomes.judge(
        planned=length,
        steps=np.minimum(found.steps, length).astype(np.int32),
        first_loss=found.first_loss,
        final_loss=tail[:, -1],
        tail_v=tail_v,
        sum_v=nothing,
        sum_inverse_v=nothing,
        seconds=nothing,
    ).outcome
