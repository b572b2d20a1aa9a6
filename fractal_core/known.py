"""Sets whose boundary has a known dimension: what an estimator is tried on before it is believed.

Every set is a test of single points in the complex plane, so that a map at any resolution, angle
and offset is exact, and so are pairs of points at any distance: no polygon is drawn and no picture
is turned.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Complex, Labels = NDArray[np.complex128], NDArray[np.bool_]
Inside = Callable[[Complex], Labels]
"""Which of many complex points belong to a set."""

RABBIT = -0.12256116687665362 + 0.7448617666197442j
"""The centre of the period-3 bulb: c with c^3 + 2 c^2 + c + 1 = 0."""


@dataclass(frozen=True)
class KnownSet:
    """A set, the side of the window that shows all of it, and the dimension of its boundary."""

    inside: Inside
    window: float
    dimension: float

    def turned(self, angle: float, shift: complex = 0j) -> "KnownSet":
        """The same set, turned by `angle` and moved by `shift` windows."""
        turn, move = np.exp(-1j * angle), shift * self.window
        return replace(self, inside=lambda z: self.inside((z - move) * turn))

    def labels(self, points: int, angle: float = 0.0, shift: complex = 0j) -> Labels:
        """A map of the set, turned by `angle` and moved by `shift` windows."""
        across = ((np.arange(points) + 0.5) / points - 0.5) * self.window
        where = across[None, :] + 1j * across[:, None]
        inside = self.turned(angle, shift).inside
        return inside(where.ravel()).reshape(points, points)

    def somewhere(self, seed: int) -> "KnownSet":
        """The same set at a random angle, moved by up to 5 % of the window."""
        rng = np.random.default_rng(seed)
        return self.turned(rng.uniform(0, 2 * np.pi), complex(*rng.uniform(-0.05, 0.05, 2)))

    def placed(self, points: int, seed: int) -> Labels:
        """A map of the set at a random angle, moved by up to 5 % of the window."""
        return self.somewhere(seed).labels(points)


def julia(c: complex, steps: int = 120) -> Inside:
    """The filled Julia set of z^2 + c, for c with an attracting cycle.

    Points leave a hyperbolic set at a geometric rate, so that 120 steps decide down to 1e-16.
    """

    def inside(z: Complex) -> Labels:
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

    def into_rhombi(z: Complex, who: np.ndarray, edge: np.ndarray, path: list[complex]):
        parts = []
        for k, (start, end) in enumerate(itertools.pairwise(path)):
            local = (z - start) / (end - start)
            near = np.abs(local.imag) < spread * np.minimum(local.real, 1 - local.real)
            parts.append((local[near], who[near], scrambled(edge[near] + np.uint64(k + 1))))
        z, who, edge = (np.concatenate(column) for column in zip(*parts, strict=True))
        mirrored = (edge >> np.uint64(40)) % 2 == 1 if coin is not None else np.zeros(z.size, bool)
        return np.where(mirrored, z.conj(), z), who, edge

    def inside(z: Complex) -> Labels:
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


def in_polygon(z: Complex, corners: list[complex]) -> Labels:
    """Whether a ray to the right crosses the polygon an odd number of times."""
    odd = np.zeros(z.size, bool)
    for a, b in zip(corners, [*corners[1:], corners[0]], strict=True):
        if a.imag != b.imag:
            crosses = (a.imag > z.imag) != (b.imag > z.imag)
            at = a.real + (z.imag - a.imag) * (b.real - a.real) / (b.imag - a.imag)
            odd ^= crosses & (z.real < at)
    return odd


def weierstrass(dimension: float, seed: int) -> Inside:
    """The region below the graph of a Weierstrass function: self-affine, not self-similar.

    The graph of the sum of 2^(n (D - 2)) cos(2 pi (2^n x + phase_n)) over n = 0, ..., 29 has the
    dimension D down to 2^-30 of its period, which is the window.
    """
    phases = np.random.default_rng(seed).uniform(size=30)
    heights = 2.0 ** (np.arange(30) * (dimension - 2))
    heights *= 0.15 / np.sqrt((heights**2).sum() / 2)

    def inside(z: Complex) -> Labels:
        above = z.imag.copy()
        for n, (height, phase) in enumerate(zip(heights, phases, strict=True)):
            above -= height * np.cos(2 * np.pi * (2**n * z.real + phase))
        return above < 0

    return inside


def coins(z: Complex) -> Labels:
    """Heads or tails by a hash of the bits of a point: noise, the same whenever it is asked."""
    x, y = (np.ascontiguousarray(part).view(np.uint64) for part in (z.real, z.imag))
    return scrambled(scrambled(x) ^ y) >> np.uint64(63) == 1


TRIANGLE = [complex(np.exp(-2j * np.pi * k / 3) / np.sqrt(3)) for k in range(3)]
BUMP = [complex(z) for z in (0, 1 / 3, 1 / 2 + 1j * np.sqrt(3) / 6, 2 / 3, 1)]

LINE = KnownSet(lambda z: z.imag > 0, 1.0, 1.0)
CIRCLE = KnownSet(lambda z: np.abs(z) < 0.35, 1.0, 1.0)
KOCH = KnownSet(island(TRIANGLE, BUMP, 3**-0.5, 18), 1.45, np.log(4) / np.log(3))
JULIA = KnownSet(julia(-1 + 0j), 3.8, 1.2683)
DOUADY_RABBIT = KnownSet(julia(RABBIT), 3.1, 1.3934)
COINS = KnownSet(coins, 1.0, 2.0)
