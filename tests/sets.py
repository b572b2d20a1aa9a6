"""Label maps whose boundaries have a known dimension, turned and shifted at will.

Every set is a test of single points in the complex plane, so that a map at any resolution, angle
and offset is exact: no polygon is drawn and no picture is turned.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Inside = Callable[[np.ndarray], np.ndarray]
"""Which of many complex points belong to a set."""

RABBIT = -0.12256116687665362 + 0.7448617666197442j
"""The centre of the period-3 bulb: c with c^3 + 2 c^2 + c + 1 = 0."""


@dataclass(frozen=True)
class KnownSet:
    """A set, the side of the window that shows all of it, and the dimension of its boundary."""

    inside: Inside
    window: float
    dimension: float

    def labels(self, points: int, angle: float = 0.0, shift: complex = 0.0) -> np.ndarray:
        """A map of the set, turned by `angle` and moved by `shift` windows."""
        across = ((np.arange(points) + 0.5) / points - 0.5) * self.window
        where = across[None, :] + 1j * across[:, None] - shift * self.window
        return self.inside((where * np.exp(-1j * angle)).ravel()).reshape(points, points)

    def placed(self, points: int, seed: int) -> np.ndarray:
        """A map of the set at a random angle, moved by up to 5 % of the window."""
        rng = np.random.default_rng(seed)
        return self.labels(points, rng.uniform(0, 2 * np.pi), complex(*rng.uniform(-0.05, 0.05, 2)))


def julia(c: complex, steps: int = 120) -> Inside:
    """The filled Julia set of z^2 + c, for c with an attracting cycle.

    Points leave a hyperbolic set at a geometric rate, so that 120 steps decide down to 1e-16.
    """

    def inside(z: np.ndarray) -> np.ndarray:
        stays = np.ones(z.size, bool)
        alive = np.arange(z.size)
        for _ in range(steps):
            z = z * z + c
            bounded = z.real**2 + z.imag**2 <= 9
            stays[alive[~bounded]] = False
            alive, z = alive[bounded], z[bounded]
        return stays

    return inside


def island(
    corners: list[complex],
    generator: list[complex],
    spread: float,
    depth: int,
    coin: int | None = None,
) -> Inside:
    """The region inside a polygon whose edges are replaced by `generator`, and theirs, and so on.

    `generator` is a path from 0 to 1. Everything that grows on an edge lies in the rhombus on it
    of half-height `spread` times the distance to the nearer end, and the rhombi of the edges of
    one generation do not overlap. So a point is followed into one rhombus after another, and each
    polygon between an edge and its generator that holds the point turns its label around. With a
    `coin`, a seed, every edge has its generator on a side that is decided by chance.
    """

    def into_rhombi(z: np.ndarray, who: np.ndarray, edge: np.ndarray, path: list[complex]):
        parts = []
        for k, (start, end) in enumerate(itertools.pairwise(path)):
            local = (z - start) / (end - start)
            near = np.abs(local.imag) < spread * np.minimum(local.real, 1 - local.real)
            parts.append((local[near], who[near], scrambled(edge[near] + np.uint64(k + 1))))
        z, who, edge = (np.concatenate(column) for column in zip(*parts, strict=True))
        mirrored = (edge >> np.uint64(40)) % 2 == 1 if coin is not None else np.zeros(z.size, bool)
        return np.where(mirrored, z.conj(), z), who, edge

    def inside(z: np.ndarray) -> np.ndarray:
        label, who = in_polygon(z, corners), np.arange(z.size)
        edge = scrambled(np.full(z.size, coin or 0, np.uint64))
        z, who, edge = into_rhombi(z, who, edge, [*corners, corners[0]])
        for _ in range(depth):
            label[who] ^= in_polygon(z, generator)
            z, who, edge = into_rhombi(z, who, edge, generator)
        return label

    return inside


def scrambled(numbers: np.ndarray) -> np.ndarray:
    """Other 64-bit numbers, far apart for neighbouring ones: the finaliser of SplitMix64."""
    mixed = numbers * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def in_polygon(z: np.ndarray, corners: list[complex]) -> np.ndarray:
    """Whether a ray to the right crosses the polygon an odd number of times."""
    odd = np.zeros(z.size, bool)
    for a, b in zip(corners, [*corners[1:], corners[0]], strict=True):
        if a.imag != b.imag:
            crosses = (a.imag > z.imag) != (b.imag > z.imag)
            at = a.real + (z.imag - a.imag) * (b.real - a.real) / (b.imag - a.imag)
            odd ^= crosses & (z.real < at)
    return odd


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


TRIANGLE = [complex(np.exp(-2j * np.pi * k / 3) / np.sqrt(3)) for k in range(3)]
SQUARE = [-0.5 - 0.5j, -0.5 + 0.5j, 0.5 + 0.5j, 0.5 - 0.5j]
BUMP = [0, 1 / 3, 1 / 2 + 1j * np.sqrt(3) / 6, 2 / 3, 1]
WAVE = [0, 1 / 4, 1 / 4 + 1j / 4, 1 / 2 + 1j / 4, 1 / 2, 1 / 2 - 1j / 4, 3 / 4 - 1j / 4, 3 / 4, 1]


def _complex(path) -> list[complex]:
    return [complex(point) for point in path]


LINE = KnownSet(lambda z: z.imag > 0, 1.0, 1.0)
CIRCLE = KnownSet(lambda z: np.abs(z) < 0.35, 1.0, 1.0)
KOCH = KnownSet(island(TRIANGLE, _complex(BUMP), 3**-0.5, 18), 1.45, np.log(4) / np.log(3))
DOUADY_RABBIT = KnownSet(julia(RABBIT), 3.1, 1.3934)
JULIA = KnownSet(julia(-1), 3.8, 1.2683)
CARPET = KnownSet(carpet(6), 1.45, np.log(8) / np.log(3))
GOSPER = KnownSet(gosper, 2.2, 2 * np.log(3) / np.log(7))
WAVY_ISLAND = KnownSet(island(SQUARE, _complex(WAVE), 1.0, 10), 1.9, 1.5)
GASKET = KnownSet(gasket(9), 1.45, np.log(3) / np.log(2))
TWINDRAGON = KnownSet(twindragon, 2.4, 1.523627)


def random_koch(coin: int) -> KnownSet:
    """A Koch island whose bumps go in or out by chance: another set for every `coin`."""
    inside = island(TRIANGLE, _complex(BUMP), 3**-0.5, 18, coin)
    return KnownSet(inside, 1.8, np.log(4) / np.log(3))


def weierstrass(points: int, dimension: float, seed: int) -> np.ndarray:
    """The region below the graph of a Weierstrass function: self-affine, not self-similar."""
    rng = np.random.default_rng(seed)
    x = np.arange(points) / points
    terms = [
        2 ** (n * (dimension - 2)) * np.cos(2 * np.pi * (2**n * x + rng.uniform()))
        for n in range(30)
    ]
    height = np.sum(terms, axis=0)
    height = 0.15 * (height - height.mean()) / height.std()
    return (x - 0.5)[:, None] < height[None, :]


def blurred_line(points: int, width: float, seed: int) -> np.ndarray:
    """A straight boundary on which every point decides for itself, within `width` of the map."""
    noise = np.random.default_rng(seed).standard_normal((points, points))
    return np.linspace(-0.5, 0.5, points)[:, None] + width * noise > 0
