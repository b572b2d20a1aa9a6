"""Label maps whose boundaries have a known dimension: those of the package, and more."""

import numpy as np

from fractal_core import known
from fractal_core.known import (
    BUMP,
    CIRCLE,
    DOUADY_RABBIT,
    JULIA,
    KOCH,
    LINE,
    TRIANGLE,
    Inside,
    KnownSet,
    island,
)

__all__ = ["CIRCLE", "DOUADY_RABBIT", "JULIA", "KOCH", "LINE"]


def carpet(depth: int) -> Inside:
    """The Sierpinski carpet on the unit square around 0, after `depth` generations of holes."""

    def inside(z: np.ndarray) -> np.ndarray:
        x, y = z.real + 0.5, z.imag + 0.5
        kept = (x >= 0) & (x < 1) & (y >= 0) & (y < 1)
        for _ in range(depth):
            x, y = 3 * x, 3 * y
            kept &= ~((np.floor(x) == 1) & (np.floor(y) == 1))
            x, y = x % 1, y % 1
        return kept

    return inside


def gasket(depth: int) -> Inside:
    """The Sierpinski gasket on a triangle of side 1 around 0, after `depth` generations of holes."""

    def inside(z: np.ndarray) -> np.ndarray:
        v = (z.imag + 3**-0.5 / 2) / (3**0.5 / 2)
        u = z.real + 0.5 - v / 2
        kept = (u >= 0) & (v >= 0) & (u + v < 1)
        for _ in range(depth):
            u, v = 2 * u, 2 * v
            kept &= ~((u < 1) & (v < 1) & (u + v >= 1))
            u, v = u % 1, v % 1
        return kept

    return inside


def gosper(z: np.ndarray, depth: int = 12) -> np.ndarray:
    """The Gosper island, as 7^`depth` small hexagons.

    A hexagon is an Eisenstein integer a + b w; it belongs to the island if dividing by 3 + w with
    a digit among 0 and the six units as remainder leads to 0 in `depth` steps.
    """
    w = np.exp(2j * np.pi / 3)
    fine = z * (3 + w) ** depth
    b0 = np.floor(fine.imag / w.imag)
    a0 = np.floor(fine.real - b0 * w.real)
    near = np.stack([np.stack([a0 + i, b0 + j]) for i in (-1, 0, 1) for j in (0, 1)])
    nearest = np.argmin(np.abs(near[:, 0] + near[:, 1] * w - fine), axis=0)
    a, b = near[nearest, :, np.arange(z.size)].T.astype(np.int64)
    units = [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, -1)]
    digits = np.array(sorted(units, key=lambda digit: (digit[0] - 3 * digit[1]) % 7))
    for _ in range(depth):
        a, b = (np.stack([a, b], axis=1) - digits[(a - 3 * b) % 7]).T
        a, b = (2 * a + b) // 7, (3 * b - a) // 7
    return (a == 0) & (b == 0)


def twindragon(z: np.ndarray, depth: int = 24) -> np.ndarray:
    """The twindragon, as 2^`depth` small squares, moved so that its middle is at 0.

    A square is a Gaussian integer; it belongs to the dragon if it has `depth` binary digits in the
    base -1 + i.
    """
    base = -1 + 1j
    middle = 0.5 / (base - 1)
    fine = (z + middle) * base**depth
    a, b = np.floor(fine.real + 0.5).astype(np.int64), np.floor(fine.imag + 0.5).astype(np.int64)
    for _ in range(depth):
        a = a - (a + b) % 2
        a, b = (b - a) // 2, -(a + b) // 2
    return (a == 0) & (b == 0)


SQUARE = [-0.5 - 0.5j, -0.5 + 0.5j, 0.5 + 0.5j, 0.5 - 0.5j]
WAVE = [0, 1 / 4, 1 / 4 + 1j / 4, 1 / 2 + 1j / 4, 1 / 2, 1 / 2 - 1j / 4, 3 / 4 - 1j / 4, 3 / 4, 1]

CARPET = KnownSet(carpet(6), 1.45, np.log(8) / np.log(3))
GOSPER = KnownSet(gosper, 2.2, 2 * np.log(3) / np.log(7))
WAVY_ISLAND = KnownSet(island(SQUARE, [complex(z) for z in WAVE], 1.0, 10), 1.9, 1.5)
GASKET = KnownSet(gasket(9), 1.45, np.log(3) / np.log(2))
TWINDRAGON = KnownSet(twindragon, 2.4, 1.523627)


def random_koch(coin: int) -> KnownSet:
    """A Koch island whose bumps go in or out by chance: another set for every `coin`."""
    inside = island(TRIANGLE, BUMP, 3**-0.5, 18, coin)
    return KnownSet(inside, 1.8, np.log(4) / np.log(3))


def weierstrass(points: int, dimension: float, seed: int) -> np.ndarray:
    """The region below the graph of a Weierstrass function: self-affine, not self-similar."""
    return KnownSet(known.weierstrass(dimension, seed), 1.0, dimension).labels(points)


def blurred_line(points: int, width: float, seed: int) -> np.ndarray:
    """A straight boundary on which every point decides for itself, within `width` of the map."""
    noise = np.random.default_rng(seed).standard_normal((points, points))
    return np.linspace(-0.5, 0.5, points)[:, None] + width * noise > 0
