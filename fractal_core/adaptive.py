"""Maps that compute only their boundary, and how much of it they may have missed.

Refinement follows what it has found: the coarsest lattice and the borders of all blocks are
trained, and then only those units of the plan whose surroundings hold two different outcomes, from
coarse to fine, until there are none. The points left over are *settled*: all that is known around
them agrees, so their outcome is inferred and not measured.

An island that touches neither lattice nor border stays unseen, and trainability maps are full of
islands. So settled points are drawn at random and trained: the audit. A surprise is a point whose
outcome is not the inferred one; it is refined like any other, and a new audit follows, of twice as
many points. Of m probes k were surprises, and with 95 % confidence at most the share p of the
settled points is wrong,

    P(at most k surprises in m | p) = 5 %        p = 1 - 0.05^(1/m), about 3 / m, for k = 0

the upper end of Clopper and Pearson 1934. The 95 % are those of one audit: after n audits with
surprises the chance that the bound fails is below (n + 1) 5 %.

Units are those of the map's plan, so `fractal run` completes what was refined and nothing is
trained twice but the borders and the probes, which are surveys.
"""

import hashlib
import io
import json
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Bool, Int64, UInt8
from scipy.special import betaincinv

from fractal_core import survey
from fractal_core.errors import Refused
from fractal_core.store import UNREADABLE, Image, Store, unpack
from fractal_core.survey import Hire, Tell
from fractal_core.sweep import LEVELS, Unit, canonical

METHOD = "block borders and quadtree refinement, random audit of settled points"
PROBES = 300
MOST_AUDITS = 12
NOTE, ARRAYS = "adaptive.json", "adaptive.npz"


@dataclass(frozen=True)
class Audit:
    """What the last audit of settled points found.

    Args:
        probes: Settled points that were trained, drawn at random.
        surprises: Those whose outcome was not the inferred one.
        settled: Settled points when they were drawn.
        audits: Which audit it was; those before it all had surprises.
    """

    probes: int
    surprises: int
    settled: int
    audits: int

    @property
    def bound(self) -> float:
        """Upper 95 % limit of the share of settled points whose inferred outcome is wrong."""
        if self.probes == self.settled:
            return 0.0
        return float(betaincinv(self.surprises + 1, self.probes - self.surprises, 0.95))


@dataclass(frozen=True, eq=False)
class Refined:
    """A map of which some outcomes are inferred.

    Args:
        outcome: Measured or inferred outcomes; masked where neither.
        inferred: Where they are inferred.
        audit: What they rest on; None if there was none yet.
    """

    outcome: np.ma.MaskedArray
    inferred: Bool[np.ndarray, "rows cols"]
    audit: Audit | None

    @property
    def caption(self) -> str:
        """How much is inferred, and how much of that may be wrong; empty if all is measured."""
        if not self.inferred.any():
            return ""
        share = (
            f"{100 * self.inferred.mean():.1f} % of the points are inferred from their surroundings"
        )
        if self.audit is None:
            return f"{share}; no audit says how many of them are wrong"
        audit = self.audit
        return (
            f"{share}; {audit.surprises} of {audit.probes} audited ones were wrong, so with 95 % "
            f"confidence at most {100 * audit.bound:.2f} % of them are"
        )


def refined(store: Store, image: Image) -> Refined:
    """A map with what refinement measured beside it and inferred from it.

    Without a refinement it is the image as it is. What was measured since goes before what was
    inferred, and what was measured and lost is missing.

    Raises:
        Refused: The note or the arrays of the refinement are damaged.
    """
    beside, inferred, audits = _state(store)
    known = _known(image, beside)
    here = (known == 0) & (inferred > 0)
    outcome = np.where(here, inferred, known).astype(np.uint8)
    return Refined(np.ma.masked_array(outcome, outcome == 0), here, audits[-1] if audits else None)


def audited(store: Store, image: Image) -> Refined:
    """The same, for those who measure on it.

    Raises:
        Refused: Outcomes are inferred and nobody knows how well.
    """
    found = refined(store, image)
    if found.inferred.any() and found.audit is None:
        raise Refused(
            f"{np.count_nonzero(found.inferred)} outcomes are inferred and were never audited, so "
            f"a dimension of them would mean nothing; `fractal refine {store.path}` audits them"
        )
    return found


def refine(store: Store, hire: Hire, tell: Tell, probes: int = PROBES, seed: int = 0) -> Refined:
    """Train what lies near the boundary, infer the rest, and audit it until there is no surprise.

    Stopped anywhere, the same call goes on; finished, it computes nothing.

    Args:
        probes: Points of the first audit.
        seed: Decides which.

    Raises:
        Busy: Another process works on the run.
        Refused: Some points could not be trained, or there is nothing to probe with.
    """
    if probes < 1:
        raise Refused(f"{probes} probes; ask for at least 1, and for 300 to bound 1 %")
    work = _Refinement(store, hire, tell)
    while True:
        work.follow()
        work.save()
        last = work.audits[-1] if work.audits else None
        size = probes if last is None or not last.surprises else 2 * last.probes
        enough = last is not None and not last.surprises and last.probes >= min(size, last.settled)
        if enough or len(work.audits) >= MOST_AUDITS or not work.settled().any():
            return refined(store, store.image())
        work.audit(size, seed)


def border_points(store: Store) -> Bool[np.ndarray, "rows cols"]:
    """The first row and column of every finest block of the plan, and the last of the map."""
    finest = min(unit.level for unit in store.units.values())
    blocks = [unit for unit in store.units.values() if unit.level == finest]
    border = np.zeros(store.sweep.grid.shape, bool)
    border[sorted({unit.rows[0] for unit in blocks})] = True
    border[:, sorted({unit.cols[0] for unit in blocks})] = True
    border[-1] = border[:, -1] = True
    return border


class _Refinement:
    """A refinement under way: what is known of the map, and the steps that make it more."""

    def __init__(self, store: Store, hire: Hire, tell: Tell):
        self.store, self.hire, self.tell = store, hire, tell
        self.beside, _, self.audits = _state(store)
        coarsest = [unit for unit in store.units.values() if unit.level == LEVELS - 1]
        survey.complete(store, "lattice", coarsest, hire, tell)
        border = border_points(store)
        border[:: 2 ** (LEVELS - 1), :: 2 ** (LEVELS - 1)] = False
        self.train("borders", {}, *np.nonzero(border))

    @property
    def known(self) -> UInt8[np.ndarray, "rows cols"]:
        """The measured outcomes, 0 where there is none."""
        return _known(self.store.image(), self.beside)

    def settled(self) -> Bool[np.ndarray, "rows cols"]:
        """Where nothing is measured."""
        return self.known == 0

    def train(
        self,
        kind: str,
        settings: dict,
        rows: Int64[np.ndarray, " n"],
        cols: Int64[np.ndarray, " n"],
    ) -> UInt8[np.ndarray, " n"]:
        """The outcomes at some points of the grid, trained as a survey."""
        name = survey.named(kind, settings)
        points = self.store.sweep.grid.points(rows, cols)
        outcomes = survey.trained(self.store, name, points, self.hire, self.tell)
        self.beside[rows, cols] = outcomes.outcome
        return outcomes.outcome

    def follow(self) -> None:
        """Train the units whose surroundings are mixed, coarse ones first, until none is left."""
        while True:
            around = _Around(self.known)
            touched = [u for u in self.store.missing() if isinstance(u, Unit) and around.mixed(u)]
            if not touched:
                return
            coarsest = max(unit.level for unit in touched)
            todo = [unit for unit in touched if unit.level == coarsest]
            survey.complete(self.store, f"level {coarsest}", todo, self.hire, self.tell)

    def inferred(self) -> UInt8[np.ndarray, "rows cols"]:
        """The outcome that is known around every point that is not measured; 0 elsewhere."""
        known = self.known
        around, settled = _Around(known), np.zeros_like(known)
        for unit in self.store.missing():
            if isinstance(unit, Unit):
                settled[unit.cells()] = around.highest(unit)
        settled[known > 0] = 0
        return settled

    def audit(self, size: int, seed: int) -> None:
        """Train some settled points by chance and compare."""
        inferred = self.inferred()
        where = np.flatnonzero(inferred)
        number, size = len(self.audits) + 1, min(size, len(where))
        digest = hashlib.sha256(where.tobytes()).hexdigest()
        settings = {"audit": number, "probes": size, "seed": seed, "settled": digest}
        chosen = np.random.default_rng([seed, number]).choice(where, size, replace=False)
        rows, cols = np.divmod(chosen, inferred.shape[1])
        found = self.train("audit", settings, rows, cols)
        surprises = int(np.count_nonzero(found != inferred[rows, cols]))
        self.audits.append(Audit(size, surprises, len(where), number))

    def save(self) -> None:
        """Write down what the units do not hold."""
        buffer = io.BytesIO()
        np.savez(buffer, beside=self.beside, inferred=self.inferred())
        note = {"method": METHOD, "audits": [asdict(audit) for audit in self.audits]}
        if self.audits:
            note["wrong_at_most"] = self.audits[-1].bound.hex()
        self.store.files.put_latest(ARRAYS, buffer.getvalue())
        self.store.files.put_latest(NOTE, canonical(note).encode())


class _Around:
    """What is known in and around units: within one stride of their level beyond their rim."""

    def __init__(self, known: UInt8[np.ndarray, "rows cols"]):
        self._high = known
        self._low = np.where(known == 0, np.uint8(255), known)

    def mixed(self, unit: Unit) -> bool:
        """Whether two different outcomes are known there."""
        window = _window(unit)
        return bool(self._low[window].min() < self._high[window].max())

    def highest(self, unit: Unit) -> int:
        """The known outcome, which is the only one unless it is mixed."""
        return int(self._high[_window(unit)].max())


def _window(unit: Unit) -> tuple[slice, slice]:
    stride = 2**unit.level
    return (
        slice(max(unit.rows[0] - stride, 0), unit.rows[1] + stride),
        slice(max(unit.cols[0] - stride, 0), unit.cols[1] + stride),
    )


def _known(image: Image, beside: UInt8[np.ndarray, "rows cols"]) -> UInt8[np.ndarray, "rows cols"]:
    missing = np.ma.getmaskarray(image.outcome)
    return np.where(missing, beside, np.ma.getdata(image.outcome))


def _state(store: Store) -> tuple[np.ndarray, np.ndarray, list[Audit]]:
    """What was measured beside the units, what was inferred, and the audits so far."""
    try:
        note = json.loads(store.files.get(NOTE))
        arrays = unpack(store.files.get(ARRAYS))
        audits = [Audit(**audit) for audit in note["audits"]]
        return arrays["beside"], arrays["inferred"], audits
    except FileNotFoundError:
        empty = np.zeros(store.sweep.grid.shape, np.uint8)
        return empty, empty.copy(), []
    except (*UNREADABLE, TypeError):
        raise Refused(
            f"{store.path}/{NOTE} or {ARRAYS} is damaged; remove both, and `fractal refine "
            f"{store.path}` makes them again"
        ) from None
