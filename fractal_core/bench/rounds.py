"""The protocol of every benchmark: contenders take turns, and only ratios within a round count."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Work = Callable[[], float]
"""Does a fixed piece of work and returns how much it was, in the units of the rate."""


@dataclass(frozen=True)
class Rates:
    """Work per second of every contender in every round.

    Args:
        by_name: For each contender one rate per round, in the order of the rounds.
    """

    by_name: dict[str, list[float]]

    def median(self, name: str) -> float:
        """The typical rate of a contender."""
        return statistics.median(self.by_name[name])

    def ratio(self, name: str, over: str) -> tuple[float, float]:
        """Minimum and median over the rounds of how many times faster `name` was than `over`."""
        ratios = [a / b for a, b in zip(self.by_name[name], self.by_name[over], strict=True)]
        return min(ratios), statistics.median(ratios)


def take_turns(contenders: dict[str, Work], rounds: int) -> Rates:
    """Let every contender work once per round, after one turn that warms up and is not counted."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, work in contenders.items():
            started = time.perf_counter()
            done = work()
            if turn:
                rates[name].append(done / (time.perf_counter() - started))
    return Rates(rates)


def matrix_peak(dtype: str, size: int = 1536, repeats: int = 3) -> Work:
    """Floating-point operations of square matrix products: what the processor can really do."""
    out = np.empty((size, size), dtype)
    a, b = np.random.default_rng(0).standard_normal((2, size, size)).astype(dtype)

    def work() -> float:
        for _ in range(repeats):
            np.matmul(a, b, out=out)
        return 2.0 * size**3 * repeats

    return work
