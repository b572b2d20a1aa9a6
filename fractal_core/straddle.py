"""Where pairs of runs stand: base points on the boundary, found in a coarse map or along chords.

Points of a coarse map's mixed cells cost nothing beyond the map, but share its blindness: what lies
between its points, islands and dust above all, is not found. Random chords have no such preference.
Along a chord, a boundary is known to lie between two points whose labels differ; bisecting that
bracket follows it down to any scale.

Each step is a plan: points to train, given a seed and the labels that the steps before came to.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float64, Int64

from fractal_core.errors import Refused
from fractal_core.plane import Grid, Region
from fractal_core.seeing import length_of, require_real, rounded

MAX_CHORD_POINTS = 2**24


def focused(
    grid: Grid,
    labels: Bool[np.ndarray, "rows cols"],
    bases: int,
    seed: int,
    dtype: str = "float64",
    stride: int = 1,
) -> Float64[np.ndarray, "bases 2"]:
    """Base points by chance inside the mixed cells of a coarse map.

    A cell is here the rectangle between four neighbouring points of the map, and mixed if their
    labels differ. The points are uniform over all mixed cells in drawn coordinates. Parts of the
    boundary that the coarse map does not see have no share: see `draw_chords` for points without
    that bias.

    Args:
        labels: Those of every `stride`-th row and column of the grid.

    Raises:
        Refused: Points of the map are missing, or all its labels agree.
    """
    require_real(grid.region)
    if np.ma.is_masked(labels):
        raise Refused("the coarse map has missing points; finish its run first")
    corners = (labels[:-1, :-1], labels[:-1, 1:], labels[1:, :-1], labels[1:, 1:])
    rows, cols = np.nonzero(np.any(corners, axis=0) & ~np.all(corners, axis=0))
    if not len(rows):
        raise Refused(
            f"all {labels.size} labels of the coarse map agree, so there is no boundary to stand "
            "on; choose another region or a finer map"
        )
    rng = np.random.default_rng([seed, *b"focused"])
    chosen = rng.integers(0, len(rows), bases)
    corner = np.stack([cols, rows], axis=1)[chosen] + rng.random((bases, 2))
    fractions = (corner * stride + 0.5) / grid.shape[::-1]
    return values_at(grid.region, fractions, dtype)


@dataclass(frozen=True, eq=False)
class Chords:
    """Points along random chords of a region, each chord's in order.

    Args:
        fractions: Where the points lie, 0 to 1 along x and along y.
        chord: The chord of every point.
    """

    fractions: Float64[np.ndarray, "points 2"]
    chord: Int64[np.ndarray, " points"]


def draw_chords(region: Region, count: int, spacing: float, seed: int) -> Chords:
    """Evenly spaced points along random chords, uniform over all lines that cross the region.

    A random line is equally likely to meet every piece of a curve of a given length (Crofton), so
    what is found along it favours no part of the boundary.

    Args:
        count: Lines.
        spacing: Distance between neighbours on a chord; the first lies at random below it.

    Raises:
        Refused: The chords would hold over 2^24 points.
    """
    require_real(region)
    rng = np.random.default_rng([seed, *b"chords"])
    size = np.array([length_of(region.x), length_of(region.y)])
    radius = float(np.hypot(*size)) / 2
    if count * 2 * radius / spacing > MAX_CHORD_POINTS:
        raise Refused(f"{count} chords at a spacing of {spacing:g}; ask for fewer or a wider one")
    starts, ways, reach = [], [], []
    while sum(map(len, reach)) < count:
        angle, offset = rng.random((2, count)) * [[np.pi], [2 * radius]] - [[0.0], [radius]]
        way = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        foot = size / 2 + offset[:, None] * np.stack([-way[:, 1], way[:, 0]], axis=1)
        with np.errstate(divide="ignore"):
            walls = np.sort(np.stack([-foot / way, (size - foot) / way]), axis=0)
        enter, leave = walls[0].max(axis=1), walls[1].min(axis=1)
        hits = enter < leave
        starts.append((foot + enter[:, None] * way)[hits])
        ways.append(way[hits])
        reach.append((leave - enter)[hits])
    start, way, length = (np.concatenate(part)[:count] for part in (starts, ways, reach))
    first = rng.random(count) * spacing
    held = np.maximum(np.ceil((length - first) / spacing), 0).astype(np.int64)
    chord = np.repeat(np.arange(count), held)
    place = np.arange(len(chord)) - np.repeat(np.cumsum(held) - held, held)
    along = (first[chord] + place * spacing)[:, None]
    return Chords(np.clip((start[chord] + along * way[chord]) / size, 0.0, 1.0), chord)


@dataclass(frozen=True, eq=False)
class Brackets:
    """Stretches of chords whose two ends have different labels, so that a boundary is between.

    Args:
        ends: Both ends of each, as fractions of the axes.
        first: The label of the first end.
        chord: The chord that each lies on.
    """

    ends: Float64[np.ndarray, "brackets ends=2 2"]
    first: Bool[np.ndarray, " brackets"]
    chord: Int64[np.ndarray, " brackets"]

    @classmethod
    def along(cls, chords: Chords, labels: Bool[np.ndarray, " points"]) -> "Brackets":
        """Every stretch between neighbouring points of a chord that differ.

        All of them are kept: one from each chord would favour parts that few chords meet twice.

        Raises:
            Refused: There is none.
        """
        at = np.nonzero((labels[:-1] != labels[1:]) & (chords.chord[:-1] == chords.chord[1:]))[0]
        if not len(at):
            raise Refused(
                "no chord crosses a boundary; draw more of them, or choose another region"
            )
        ends = np.stack([chords.fractions[at], chords.fractions[at + 1]], axis=1)
        return cls(ends, labels[at], chords.chord[at])

    @property
    def middles(self) -> Float64[np.ndarray, "brackets 2"]:
        """The points, as fractions, whose labels the next round of the bisection needs."""
        return self.ends.mean(axis=1)

    def halved(self, labels: Bool[np.ndarray, " brackets"]) -> "Brackets":
        """The half of every bracket whose ends differ, given the labels of `middles`.

        Exactly one does. A bracket that holds several crossings keeps one of them.
        """
        ends = self.ends.copy()
        row = np.arange(len(ends))
        ends[row, np.where(labels == self.first, 0, 1)] = self.middles
        return replace(self, ends=ends)

    def sample(self, count: int, seed: int) -> "Brackets":
        """`count` of the brackets by chance, or all if there are fewer."""
        order = np.random.default_rng([seed, *b"brackets"]).permutation(len(self.ends))[:count]
        return Brackets(self.ends[order], self.first[order], self.chord[order])

    def bases(
        self, region: Region, seed: int, each: int = 1, dtype: str = "float64"
    ) -> tuple[Float64[np.ndarray, "bases 2"], Int64[np.ndarray, " bases"]]:
        """Base points by chance along the brackets, and the chord of each.

        The chord is the `groups` of `estimate`: what lies on one chord was not drawn independently.
        """
        ends, chord = np.repeat(self.ends, each, axis=0), np.repeat(self.chord, each)
        along = np.random.default_rng([seed, *b"bases"]).random((len(ends), 1))
        fractions = ends[:, 0] + along * (ends[:, 1] - ends[:, 0])
        return values_at(region, fractions, dtype), chord


def values_at(
    region: Region, fractions: Float64[np.ndarray, "n 2"], dtype: str = "float64"
) -> Float64[np.ndarray, "n 2"]:
    """The points at fractions of the axes, rounded to the precision that trains."""
    points = np.stack([region.x.at(fractions[:, 0]), region.y.at(fractions[:, 1])], axis=1)
    return rounded(points, dtype)
