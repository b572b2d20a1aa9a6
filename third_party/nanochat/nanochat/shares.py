"""Shares of right answers, and between which limits they are known.

All limits are of 95 percent.
"""

import math
from collections.abc import Sequence
from typing import Literal

CONFIDENCE = 0.95
Z95 = 1.959964
"""The normal distribution's 97.5 percent point."""

Limits = tuple[float, float]


def exact_interval(right: int, count: int) -> Limits:
    """Limits of a share of right answers (Clopper and Pearson 1934): exact for a binomial count."""
    return _exact(right, count, "two-sided")


def lower_bound(right: int, count: int) -> float:
    """The smallest probability under which so many right answers are not too many.

    One-sided: it exceeds the truth in at most five percent of all cases.
    """
    return _exact(right, count, "greater")[0]


def _exact(right: int, count: int, alternative: Literal["two-sided", "greater"]) -> Limits:
    # Half a second, and who only looks at a page needs none of it.
    from scipy.stats import binomtest

    found = binomtest(right, count, alternative=alternative).proportion_ci(CONFIDENCE, "exact")
    return float(found.low), float(found.high)


def interval(mean: float, count: int) -> Limits:
    """Limits of a mean of values between 0 and 1 (Wilson 1927), each question counting as one draw.

    What lies between 0 and 1 varies at most as a coin does, so with several answers a question, or
    rewards between, the limits are too wide rather than too narrow. They are not [0, 0] where
    nothing was right.
    """
    z2 = Z95**2 / count
    middle = (mean + z2 / 2) / (1 + z2)
    half = Z95 * math.sqrt(mean * (1 - mean) / count + z2 / (4 * count)) / (1 + z2)
    return max(0.0, middle - half), min(1.0, middle + half)


def interval_of_mean(values: Sequence[float], limits: Sequence[Limits]) -> Limits:
    """Limits of the mean of values that are known independently, from the limits of each.

    The distances to the limits add up as squares (Zou and Donner 2008); from limits of the normal
    distribution this makes those of the mean.
    """
    count, mean = len(values), sum(values) / len(values)
    down = math.hypot(*(v - low for v, (low, _) in zip(values, limits, strict=True)))
    up = math.hypot(*(high - v for v, (_, high) in zip(values, limits, strict=True)))
    return mean - down / count, mean + up / count


def centered(share: float, chance: float) -> float:
    """A share on the scale on which guessing is 0 and all right is 1."""
    return (share - chance) / (1 - chance)


def pass_at(right: int, count: int, k: int) -> float:
    """The chance that one of k answers, drawn without replacement, is right (Chen et al. 2021)."""
    return 1 - math.comb(count - right, k) / math.comb(count, k)
