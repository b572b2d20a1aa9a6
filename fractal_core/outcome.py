"""What a training run came to: its outcome, and one signed number that says how fast.

With v = loss / first loss, cut off at 1e6, and the last K losses of a run as its tail,

    TRAINABLE     the mean of the tail is below the first loss; all finite
    DIVERGED      not finite at the end, or the mean of the tail above 1e6 times the first loss
    UNTRAINABLE   finite, but not below

and the measure is -sum(v) for a trainable run (closer to zero = learned faster) and sum(1 / v) for
any other (closer to zero = blew up faster). A run ends at its first loss that is not finite; that
step and those it did not take count as a loss of 1e6 each.

Source: Sohl-Dickstein 2024, arXiv:2402.06184, whose sign and size these are (its code, too, puts
1e6 in place of a loss that is not finite before it divides). It tells two labels apart; the split
of those that did not train into UNTRAINABLE and DIVERGED is ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from enum import IntEnum
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int32, UInt8

V_MOST = 1e6
WINDOW = 20


class Outcome(IntEnum):
    """How a run ended. Missing is a mask, not an outcome; files write it as 0."""

    TRAINABLE = 1
    UNTRAINABLE = 2
    DIVERGED = 3


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What an experiment returns for n points: one row of arrays a point.

    Args:
        outcome: Values of `Outcome`.
        measure: Signed convergence measure, negative = trained.
        first_loss: Loss before the first step.
        tail_loss: Mean of the last K losses; inf if the run blew up.
        final_loss: Last loss; inf if the run blew up.
        steps: Losses that were finite, which is the number of steps asked for unless it blew up.
        seconds: Wall time that the point took, or its share of a batch.
        extras: Further named arrays over the points, when asked for.
    """

    outcome: UInt8[np.ndarray, " points"]
    measure: Float64[np.ndarray, " points"]
    first_loss: Float64[np.ndarray, " points"]
    tail_loss: Float64[np.ndarray, " points"]
    final_loss: Float64[np.ndarray, " points"]
    steps: Int32[np.ndarray, " points"]
    seconds: Float64[np.ndarray, " points"]
    extras: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def judge(
        cls,
        *,
        planned: int,
        steps: Int32[np.ndarray, " points"],
        first_loss: Float64[np.ndarray, " points"],
        final_loss: Float64[np.ndarray, " points"],
        tail_v: Float64[np.ndarray, " points"],
        sum_v: Float64[np.ndarray, " points"],
        sum_inverse_v: Float64[np.ndarray, " points"],
        seconds: Float64[np.ndarray, " points"],
        extras: dict[str, np.ndarray] | None = None,
        threshold: float = 1.0,
    ) -> "Outcomes":
        """Apply the label rule and the measure to the sums that a training loop kept.

        Args:
            planned: Losses that a run has unless it blows up; `steps` of them were finite.
            tail_v: Mean of v over the tail, without the cut-off. It is v and not the loss that is
                summed, so that a loss which never moves has a mean of exactly 1 and did not train.
            sum_v: Sum of v over the losses that were finite.
            sum_inverse_v: Sum of 1 / v over them.
            threshold: What the mean of the tail of v must stay below in a trainable run.
        """
        untaken = planned - steps
        blown = untaken > 0
        # A loss of 1e6 over the first one, cut off at 1e6 as every v is.
        v_blown = V_MOST / np.where((first_loss > 1) & (first_loss < np.inf), first_loss, 1.0)
        sum_v = sum_v + untaken * v_blown
        sum_inverse_v = sum_inverse_v + untaken * (1 / v_blown)

        trainable = ~blown & (tail_v < threshold)
        settled = ~blown & ~(tail_v > V_MOST)
        outcome = np.where(settled, Outcome.UNTRAINABLE, Outcome.DIVERGED)
        return cls(
            outcome=np.where(trainable, Outcome.TRAINABLE, outcome).astype(np.uint8),
            measure=np.where(trainable, -sum_v, sum_inverse_v),
            first_loss=first_loss,
            tail_loss=np.where(blown, np.inf, tail_v * np.where(blown, 1.0, first_loss)),
            final_loss=np.where(blown, np.inf, final_loss),
            steps=steps,
            seconds=seconds,
            extras=extras or {},
        )


def join(parts: Sequence[Outcomes]) -> Outcomes:
    """The outcomes of several batches as those of one, in the order given."""
    names = [f.name for f in fields(Outcomes) if f.name != "extras"]
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    extras = {
        name: np.concatenate(_as_wide([part.extras[name] for part in parts]))
        for name in parts[0].extras
    }
    return Outcomes(**arrays, extras=extras)


def _as_wide(arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Curves of several lengths, filled up with NaN."""
    widest = max(array.shape[1:] for array in arrays)
    return [
        array
        if array.shape[1:] == widest
        else np.pad(array, ((0, 0), (0, widest[0] - array.shape[1])), constant_values=np.nan)
        for array in arrays
    ]


def is_trainable(outcome: UInt8[np.ndarray, "*shape"]) -> Bool[np.ndarray, "*shape"]:
    """The side of the trainability boundary; keeps the mask of a masked array."""
    return outcome == Outcome.TRAINABLE


def is_stable(outcome: UInt8[np.ndarray, "*shape"]) -> Bool[np.ndarray, "*shape"]:
    """The side of the stability boundary: TRAINABLE or UNTRAINABLE."""
    return outcome <= Outcome.UNTRAINABLE


Which = Literal["trainable", "stable"]
"""Of two boundaries: between TRAINABLE and not, or between what did not diverge and what did."""

SIDES = {"trainable": is_trainable, "stable": is_stable}


class Tally:
    """Judges runs while they train: feed it the loss of every step, before the step.

    All sums are float64 and taken in the order of the steps, so a kernel that keeps the same sums
    gives the same bits.

    Args:
        steps: Number of losses that will come.
        window: K, the number of last losses whose mean decides; at most `steps`.
    """

    def __init__(self, points: int, steps: int, window: int = WINDOW):
        self.planned, self.window = steps, window
        self.t = 0
        self.first = np.full(points, np.nan)
        self.final = np.full(points, np.nan)
        self.tail_v, self.sum_v, self.sum_inverse_v = np.zeros((3, points))
        self.steps = np.zeros(points, np.int32)

    def add(self, loss: Float64[np.ndarray, " points"]) -> Bool[np.ndarray, " points"]:
        """Take in the losses of one step; True where the run goes on."""
        if self.t == 0:
            self.first = np.where(np.isfinite(loss), loss, np.inf)
        running = (self.steps == self.t) & np.isfinite(loss)
        loss = np.where(running, loss, np.inf)
        with np.errstate(divide="ignore", invalid="ignore"):
            v = loss / self.first
            if self.t >= self.planned - self.window:
                self.tail_v += v
            v = np.where(v <= V_MOST, v, V_MOST)
            self.sum_v[running] += v[running]
            self.sum_inverse_v[running] += (1 / v)[running]
        self.final = loss
        self.steps[running] += 1
        self.t += 1
        return running

    def outcomes(self, seconds: Float64[np.ndarray, " points"], threshold: float = 1.0) -> Outcomes:
        """The verdict on every run."""
        return Outcomes.judge(
            planned=self.planned,
            steps=self.steps.copy(),
            first_loss=self.first,
            final_loss=self.final,
            tail_v=self.tail_v / self.window,
            sum_v=self.sum_v,
            sum_inverse_v=self.sum_inverse_v,
            seconds=seconds,
            threshold=threshold,
        )


def judge_curves(
    losses: Float64[np.ndarray, "points steps"], window: int = WINDOW, threshold: float = 1.0
) -> Outcomes:
    """Judge whole loss curves: column t is the loss before step t.

    Example:
        A curve that falls is trainable; one that explodes is not.

        >>> falls, explodes = 0.9 ** np.arange(40), 2.0 ** np.arange(40)
        >>> judge_curves(np.stack([falls, explodes])).outcome.tolist()
        [1, 3]
    """
    points, steps = losses.shape
    tally = Tally(points, steps, min(window, steps))
    for loss in losses.T:
        tally.add(loss)
    return tally.outcomes(np.zeros(points), threshold)
