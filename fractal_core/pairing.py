"""How rough the boundary of a run is, from pairs of runs: base points, distances, nulls, verdict.

There is one course, which the run and its nulls take alike: see where the boundary is, draw base
points there, give each a partner at every distance, count flips. Only who answers for the labels
differs: a run trains, a null evaluates its field. A null looks for its own base points, on its own
boundary: on the run's it would have none.

Every training is a unit of the run folder. A survey is named by its points and these follow from
the request, so that the same request again trains nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float64, Int64

from fractal_core import nulls, pairs, straddle, survey
from fractal_core.errors import Refused
from fractal_core.nulls import Reading, Verdict
from fractal_core.outcome import SIDES, Which
from fractal_core.pairs import Budget, PairsDimension
from fractal_core.plane import Grid
from fractal_core.seeing import Rate, finest, length_of, nudged, require_real, unit_of
from fractal_core.store import Store
from fractal_core.survey import Cost, Hire, Tell

Bases = Literal["focused", "chords"]

COARSEST = 24
PILOT = Budget(100, 8, (0, 0))
PILOT_DECADES = 3.0
PILOT_SEED = 2**32
FLOORS = 200
LEAST_BASES, MOST_SCALES = 30, 16
CHORDS, CHORD_SHARE, FOLLOWED = 100, 0.4, 200
SIGMA, RATE_BOX, NULL_STEPS, NULL_BASES = 3.0, 7, 1000, 10

Points = Float64[np.ndarray, "_ 2"]
Labels = Bool[np.ndarray, " _"]


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Args:
        which: The boundary of what trained, or of what did not diverge.
        bases: `focused` draws base points in mixed cells of the coarse map; `chords` straddles the
            boundary along random lines, which favours no part of it and needs more runs.
        runs: The most runs beside the map.
        seed: Of base points, directions and bootstrap.
        low: Smallest distance; left out, what a pilot finds worth its runs.
        high: Largest distance; left out, a quarter of a cell of the coarse map, or of the spacing
            on a chord.
    """

    which: Which = "trainable"
    bases: Bases = "focused"
    runs: int = 8_000
    seed: int = 0
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, eq=False)
class Roughness:
    """How rough a boundary is, and what it was compared with.

    Args:
        request: What was asked for.
        dimension: Of the run.
        nulls: Of each null at the same distances, from ten times as many base points, since they
            cost nothing; None where the null has no boundary here.
        verdict: What follows.
        coarse: Rows and columns of the coarse map.
        budget: Base points, scales and floors.
    """

    request: Request
    dimension: PairsDimension
    nulls: dict[str, PairsDimension | None]
    verdict: Verdict
    coarse: tuple[int, int]
    budget: Budget


# -------------------------------------------------------------------------------- who is asked


@runtime_checkable
class Oracle(Protocol):
    """Whoever knows labels."""

    def lattice(self) -> Bool[np.ndarray, "rows cols"]:
        """The labels of the coarse map."""
        ...

    def at(self, points: Mapping[str, Points]) -> dict[str, Labels]:
        """The labels at some points, by kind; another kind is another training."""
        ...


@dataclass(frozen=True, eq=False)
class Trained:
    """A run folder, which trains what it does not hold."""

    store: Store
    level: int
    which: Which
    hire: Hire
    tell: Tell

    def lattice(self) -> Bool[np.ndarray, "rows cols"]:
        """See `Oracle`."""
        outcome = survey.lattice(self.store, self.level, self.hire, self.tell).outcome
        stride = 2**self.level
        return SIDES[self.which](outcome[::stride, ::stride])

    def at(self, points: Mapping[str, Points]) -> dict[str, Labels]:
        """See `Oracle`."""
        found = survey.of_kinds(self.store, points, self.hire, self.tell)
        return {kind: SIDES[self.which](trained.outcome) for kind, trained in found.items()}


@dataclass(frozen=True, eq=False)
class Null:
    """A field of labels, known everywhere."""

    grid: Grid
    stride: int
    label: Callable[[Points], Labels]

    def lattice(self) -> Bool[np.ndarray, "rows cols"]:
        """See `Oracle`."""
        points, shape = lattice_points(self.grid, self.stride)
        return self.label(points).reshape(shape)

    def at(self, points: Mapping[str, Points]) -> dict[str, Labels]:
        """See `Oracle`."""
        return {kind: self.label(where) for kind, where in points.items()}


def lattice_points(grid: Grid, stride: int) -> tuple[Points, tuple[int, int]]:
    """The points of every `stride`-th row and column, row by row, and how many of each there are."""
    rows, cols = (np.arange(0, count, stride) for count in grid.shape)
    row, col = (part.ravel() for part in np.meshgrid(rows, cols, indexing="ij"))
    return grid.points(row, col), (len(rows), len(cols))


# ------------------------------------------------------------------------------------ the course


@dataclass(frozen=True, eq=False)
class Ground:
    """Where base points are drawn: `draw` takes how many and a seed.

    Groups are those of `pairs.estimate`.
    """

    draw: Callable[[int, int], tuple[Points, Int64[np.ndarray, " _"] | None]]


@dataclass(frozen=True, eq=False)
class Course:
    """The way from labels to a dimension, which the run and its nulls take.

    Args:
        grid: Of the map.
        level: The coarse map is this level of the lattice.
        dtype: The precision that trains.
        magnitudes: For x and y, the size of what the values are added to.
        request: What was asked for.
    """

    grid: Grid
    level: int
    dtype: str
    magnitudes: tuple[float, float]
    request: Request

    @classmethod
    def of(cls, store: Store, request: Request) -> "Course":
        """The course of a request, which is refused here or not at all for what it asks.

        Raises:
            Refused: An axis takes whole numbers, the map is too coarse, there are too few runs, or
                a distance is too large or too small.
        """
        sweep = store.sweep
        require_real(sweep.region)
        level = survey.coarse_level(store, request.runs)
        x, y = (sweep.experiment.magnitude(axis, sweep.seed) for axis in sweep.experiment.axes)
        course = cls(sweep.grid, level, sweep.experiment.precision, (x, y), request)
        course._require()
        return course

    def _require(self) -> None:
        least = self.before + replace(Budget(LEAST_BASES, MOST_SCALES, (0, 0)), floors=FLOORS).runs
        if self.request.runs < least:
            raise Refused(f"{self.request.runs} runs are too few; allow at least {least}")
        rows, cols = lattice_points(self.grid, self.stride)[1]
        if min(rows, cols) < COARSEST:
            raise Refused(
                f"a coarse map of {rows} x {cols} points hardly shows where the boundary is; make "
                f"a run of at least {COARSEST} x {COARSEST} points on the same region, or allow "
                "more runs"
            )
        if self.high > self.widest:
            raise Refused(
                f"a largest distance of {self.high:.3g}, but the boundary is only known to within "
                f"{4 * self.widest:.3g}; choose at most a quarter of that, {self.widest:.3g}"
            )
        low = self.request.low
        if low is not None and not self.finest <= low < self.high / 2:
            raise Refused(
                f"a smallest distance of {low:.3g}; choose one from {self.finest:.3g}, which is "
                f"four units in the last place of {self.dtype}, to {self.high / 2:.3g}"
            )

    @property
    def stride(self) -> int:
        """The coarse map is every `stride`-th row and column."""
        return 2**self.level

    @property
    def finest(self) -> float:
        """The smallest distance that precision allows."""
        return finest(self.grid.region, self.dtype, self.magnitudes)

    @property
    def spacing(self) -> float:
        """Distance of neighbours on a chord: all chords together cost a share of the runs.

        The mean length of a random chord is pi area / circumference.
        """
        wide, high = length_of(self.grid.region.x), length_of(self.grid.region.y)
        length = np.pi * wide * high / (2 * (wide + high))
        return float(CHORDS * length / (CHORD_SHARE * self.request.runs))

    @property
    def widest(self) -> float:
        """The largest distance that pairs may have."""
        if self.request.bases == "chords":
            return self.spacing / 4
        return pairs.widest(self.grid, self.stride)

    @property
    def high(self) -> float:
        """The largest distance that they have."""
        return self.widest if self.request.high is None else self.request.high

    @cached_property
    def chords(self) -> straddle.Chords:
        """The chords, the same for the run and its nulls."""
        return straddle.draw_chords(self.grid.region, CHORDS, self.spacing, self.request.seed)

    @property
    def halvings(self) -> int:
        """How often a stretch of chord is halved, so that it is not longer than 8 times `high`."""
        return max(0, int(np.log2(self.widest / self.high)))

    @property
    def before(self) -> int:
        """Runs beside the map that are spent before the estimate."""
        pilot = 0 if self.request.low is not None else PILOT.runs
        if self.request.bases == "focused":
            return pilot
        return pilot + len(self.chords.chord) + self.halvings * FOLLOWED

    def ground(self, oracle: Oracle) -> Ground:
        """Where its boundary is.

        Raises:
            Refused: There is none.
        """
        if self.request.bases == "focused":
            return self._mixed_cells(oracle.lattice())
        return self._stretches(oracle)

    def _mixed_cells(self, labels: Bool[np.ndarray, "rows cols"]) -> Ground:
        def draw(count: int, seed: int):
            bases = straddle.focused(self.grid, labels, count, seed, self.dtype, self.stride)
            return bases, None

        draw(1, 0)  # a map without a boundary is refused here, and not after a pilot
        return Ground(draw)

    def _stretches(self, oracle: Oracle) -> Ground:
        region = self.grid.region

        def labels(kind: str, fractions: Points) -> Labels:
            return oracle.at({kind: straddle.values_at(region, fractions, self.dtype)})[kind]

        brackets = straddle.Brackets.along(self.chords, labels("chords", self.chords.fractions))
        if self.halvings:
            brackets = brackets.sample(FOLLOWED, self.request.seed)
        for _ in range(self.halvings):
            brackets = brackets.halved(labels("halves", brackets.middles))

        def draw(count: int, seed: int):
            some = brackets.sample(count, seed)
            each = -(-count // len(some.chord))
            bases, chord = some.bases(region, seed, each, self.dtype)
            return bases[:count], chord[:count]

        return Ground(draw)

    def flips(
        self, oracle: Oracle, ground: Ground, budget: Budget, low: float, seed: int
    ) -> tuple[Bool[np.ndarray, "bases scales"], dict]:
        """Flips of every base point at every distance, and what else `pairs.estimate` takes.

        The floors are asked for together with the pairs.
        """
        bases, groups = ground.draw(budget.bases, seed)
        eps = pairs.distances(low, self.high, budget.scales)
        others = pairs.partners(
            self.grid.region, bases, eps, seed, self.dtype, self.magnitudes
        ).points.reshape(-1, 2)
        points = {"pairs": np.concatenate([bases, others])}
        tried = np.linspace(0, len(bases) - 1, budget.floors).round().astype(np.int64)
        if budget.floors:
            points["rerun"] = bases[tried]
            points["ulp"] = nudged(bases[tried], seed, self.dtype, self.magnitudes)
        found = oracle.at(points)
        mine, theirs = np.split(found.pop("pairs"), [len(bases)])
        floors = {kind: Rate.between(mine[tried], labels) for kind, labels in found.items()}
        settings = {"eps": eps, "groups": groups, "seed": self.request.seed, **floors}
        return mine[:, None] != theirs.reshape(len(bases), -1), settings

    def reach(self, oracle: Oracle, ground: Ground) -> float:
        """The smallest distance that is worth its runs, from a pilot of a few base points."""
        low = max(self.finest, self.high / 10**PILOT_DECADES)
        flips, settings = self.flips(oracle, ground, PILOT, low, self.request.seed + PILOT_SEED)
        return pairs.reach(pairs.estimate(flips, **settings), self.high, self.finest)


# ------------------------------------------------------------------------------------- the whole


def cost(store: Store, request: Request) -> Cost:
    """What a request costs at the most; nothing is trained.

    Raises:
        Refused: What is asked for cannot be done; see `Course.of`.
    """
    course = Course.of(store, request)
    return survey.cost(store, course.level, request.runs)


def measure(store: Store, request: Request, hire: Hire, tell: Tell) -> Roughness:
    """How rough the boundary of a run is; what is not stored yet is trained.

    Raises:
        Busy: Another process works on the run.
        Refused: What is asked for cannot be done, there is no boundary, or some points could not
            be trained; the sentence says what.
    """
    course = Course.of(store, request)
    run = Trained(store, course.level, request.which, hire, tell)
    dimension, budget, low = estimated(course, run)
    labels = run.lattice()
    compared = {
        name: _of_null(course, Null(course.grid, course.stride, label), budget, low)
        for name, label in _nulls(course, labels).items()
    }
    return Roughness(
        request=request,
        dimension=dimension,
        nulls=compared,
        verdict=_verdict(dimension, compared, unit_of(store.sweep.region)),
        coarse=labels.shape,
        budget=budget,
    )


def estimated(course: Course, oracle: Oracle) -> tuple[PairsDimension, Budget, float]:
    """The dimension of a boundary, what was spent on it, and the smallest distance.

    Raises:
        Refused: There is no boundary.
    """
    request, ground = course.request, course.ground(oracle)
    low = course.reach(oracle, ground) if request.low is None else request.low
    budget = pairs.afford(
        request.runs - course.before, float(np.log10(course.high / low)), (0, 0), FLOORS
    )
    flips, settings = course.flips(oracle, ground, budget, low, request.seed)
    return pairs.estimate(flips, **settings), budget, low


SMOOTHED, QUADRATIC, COINS = "the smoothed map", "a quadratic loss", "coin flips"


def _nulls(
    course: Course, labels: Bool[np.ndarray, "rows cols"]
) -> dict[str, Callable[[Points], Labels]]:
    """The nulls of a run, by name, as functions of points."""
    grid, stride = course.grid, course.stride
    smoothed, rate = nulls.smoothed(labels, SIGMA), nulls.local_rate(labels, RATE_BOX)
    rng = np.random.default_rng([course.request.seed, *b"coins"])
    return {
        SMOOTHED: lambda points: nulls.between(smoothed, grid, points, stride) >= 0.5,
        QUADRATIC: lambda points: nulls.quadratic(points, grid.region, NULL_STEPS),
        COINS: lambda points: rng.random(len(points)) < nulls.between(rate, grid, points, stride),
    }


def _of_null(course: Course, null: Null, budget: Budget, low: float) -> PairsDimension | None:
    """What the course makes of a null; nothing if it has no boundary here."""
    try:
        ground = course.ground(null)
    except Refused:
        return None
    # No floors: whoever reruns a coin sees all of its flips explained.
    free = replace(budget, bases=NULL_BASES * budget.bases, floors=0)
    flips, settings = course.flips(null, ground, free, low, course.request.seed)
    return pairs.estimate(flips, **settings)


def _verdict(
    dimension: PairsDimension, compared: dict[str, PairsDimension | None], unit: str
) -> Verdict:
    readings = {name: _reading(found) for name, found in compared.items()}
    rerun, most = dimension.rerun, float(dimension.flips[0])
    return nulls.verdict(
        _reading(dimension),
        {name: readings[name] for name in (SMOOTHED, QUADRATIC)},
        readings[COINS],
        dimension.scales,
        unit,
        rerun_share=min(1.0, rerun.value / most) if rerun is not None and most > 0 else 0.0,
        unresolved=dimension.unresolved,
    )


def _reading(found: PairsDimension | None) -> Reading:
    if found is None:
        return Reading(float("nan"), (0.0, 2.0))
    return Reading(found.dimension, found.interval)
