"""An experiment whose labels are known in closed form, and a crew that trains it right here."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from formula import Formula

from fractal_core import Store, machine, worker
from fractal_core.agenda import Exit
from fractal_core.outcome import Outcomes

KINDS = ("weierstrass", "line", "noise", "plain")


@dataclass(frozen=True)
class ClosedForm(Formula):
    """Trainable above a curve, diverged below it.

    Args:
        kind: `weierstrass` is above the graph of the sum of 2^(-Hk) cos(2 pi 2^k x), whose
            dimension is 2 - H = 1.5; `line` above a straight line; `noise` a hash of the bits of a
            point; `plain` everywhere.
        fickle: Share of the labels that a rerun gives by chance.
    """

    kind: str = "weierstrass"
    fickle: float = 0.0
    dtype: str = "float64"
    axes: tuple[str, str] = ("u", "v")

    @property
    def other_dtype(self) -> str:
        return "float32" if self.dtype == "float64" else "float64"

    def run(self, points: np.ndarray, *, seed: int, record: Sequence[int] = ()) -> Outcomes:
        points = points.astype(self.dtype).astype(np.float64)
        above = getattr(self, f"_{self.kind}")(*points.T)
        if self.fickle:
            rng = np.random.default_rng(time.perf_counter_ns())
            above ^= rng.random(len(points)) < self.fickle
        last = np.where(above, 0.5, 1e9)
        return Outcomes.judge(
            planned=30,
            steps=np.full(len(points), 30, np.int32),
            first_loss=np.ones(len(points)),
            final_loss=last,
            tail_v=last,
            sum_v=last,
            sum_inverse_v=1 / last,
            seconds=np.full(len(points), 1e-6),
        )

    def _weierstrass(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        # The phase 2^k x is exact in binary, and so is its remainder by 1.
        height = np.zeros(len(x))
        for k in range(52):
            height += 2.0 ** (-0.5 * k) * np.cos(2 * np.pi * np.mod(np.ldexp(x, k), 1.0))
        return y > height

    def _line(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return y > 3 * x - 0.5

    def _noise(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        mixed = np.ascontiguousarray(x).view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= np.ascontiguousarray(y).view(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
        mixed ^= mixed >> np.uint64(29)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        return (mixed >> np.uint64(40)) % np.uint64(2) == 1

    def _plain(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.ones(len(x), bool)


class Here:
    """Trains and commits in the process that asks, and counts the points of every unit."""

    def __init__(self, store: Store, counts: list[int] | None = None):
        self.store, self.slots = store, machine.slots(("cpu",))
        self.counts = [] if counts is None else counts

    def do(self, slot, order) -> Exit:
        outcomes = worker.train(self.store.sweep, self.store.points(order.unit))
        self.counts.append(order.points)
        committed = self.store.commit(order.unit, outcomes, {"seconds": 1e-3})
        return Exit(order, worker.DONE, 1e-3, committed)

    def processes(self) -> dict[int, int]:
        return {}

    def ask(self) -> None: ...

    def kill(self) -> None: ...

    def close(self) -> None: ...


def refuse(store: Store):
    """A crew for those who need none."""
    pytest.fail("something was trained again")


def quiet(name: str, done: int, total: int) -> None:
    """Tell nobody."""
