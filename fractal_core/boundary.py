"""The boundary of a map: where it runs, how many boxes it meets, and what surrounds it.

Labels are one bool per point: `outcome.is_trainable` gives the trainability boundary,
`outcome.is_stable` the stability boundary. The boundary runs through the *cells* of the dual grid:
a cell is the square between 2 x 2 neighbouring points, and a boundary cell is one whose points do
not all have the same label. A box of s x s cells has (s+1) x (s+1) points, shared with its
neighbours along the rim, and holds both labels exactly when one of its cells does. So one mask
serves every box size, no side of the boundary is preferred, and the frame of the map adds nothing.

Lengths are counted in points. A map whose pitch differs between x and y has boxes that are not
square in decades; the dimension is the same, and the scale is the geometric mean of both pitches.

Source: the 2 x 2 cells are those of Sohl-Dickstein 2024, arXiv:2402.06184.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64, Shaped, UInt8
from scipy import ndimage

from fractal_core.errors import Refused

NEIGHBOURHOOD = 16
"""Side in points of the window that says what is local; see `neighbour_correlation`."""


@dataclass(frozen=True, eq=False)
class Counts:
    """How many boxes of each size hold both labels.

    Args:
        sizes: Sides of the boxes in cells, which is in pitches of the grid, increasing.
        counts: Boxes that hold both labels; a fraction where all offsets were averaged.
        boxes: Boxes that were looked at, out of which `counts` hold both labels.
        side: Points along the shorter side of the map.
    """

    sizes: Int64[np.ndarray, " sizes"]
    counts: Float64[np.ndarray, " sizes"]
    boxes: Float64[np.ndarray, " sizes"]
    side: int


def boundary_cells(
    labels: Bool[np.ndarray, "rows cols"], measured_only: bool = False
) -> Bool[np.ndarray, "rows-1 cols-1"]:
    """The 2 x 2 cells that hold both labels.

    Args:
        labels: One side of the boundary; masked where missing.
        measured_only: Go on with missing points: cells that touch one come back masked.

    Raises:
        Refused: A point is missing, or the map has a single row or column.

    Example:
        >>> boundary_cells(np.array([[True, False, False], [True, True, False]]))
        array([[ True,  True]])
    """
    if min(labels.shape) < 2:
        raise Refused("a map of a single row or column has no cells; ask for at least 2 x 2 points")
    values, missing = measured_values(labels, measured_only)
    across = values[:, 1:] != values[:, :-1]
    cells = across[1:] | across[:-1]
    upward = values[1:] != values[:-1]
    cells |= upward[:, 1:]
    if missing is None:
        return cells
    holes = missing[1:] | missing[:-1]
    return np.ma.masked_array(cells, holes[:, 1:] | holes[:, :-1])


def measured_values(
    labels: Shaped[np.ndarray, "rows cols"], measured_only: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    """The values, and where they are missing or None.

    Raises:
        Refused: A point is missing and `measured_only` does not say to go on; how many and where.
    """
    missing = np.ma.getmaskarray(labels) if np.ma.is_masked(labels) else None
    if missing is not None and not measured_only:
        rows, cols = np.nonzero(missing)
        raise Refused(
            f"{len(rows)} of {labels.size} points are missing, in rows {rows.min()} to "
            f"{rows.max()} and columns {cols.min()} to {cols.max()}, the first at row {rows[0]}, "
            f"column {cols[0]}; finish the run, or ask for the measured part only"
        )
    return np.ma.getdata(labels), missing


def _holes(cells: Bool[np.ndarray, "rows cols"]) -> np.ndarray | None:
    return np.ma.getmaskarray(cells) if np.ma.is_masked(cells) else None


def dyadic_counts(cells: Bool[np.ndarray, "rows cols"]) -> Counts:
    """Box counts at sizes 1, 2, 4, ... on a fixed lattice that begins at the first cell.

    Every level is the one below it, two by two, so all of them cost a third more than the first.
    Exact. A box that sticks out of the map counts as a whole one, and one with a masked cell is
    left out.
    """
    sizes, counts, boxes = [], [], []
    level, holes, size = np.ma.getdata(cells), _holes(cells), 1
    while True:
        hit = level if holes is None else level & ~holes
        sizes.append(size)
        counts.append(np.count_nonzero(hit))
        boxes.append(level.size - (0 if holes is None else np.count_nonzero(holes)))
        if level.size == 1:
            break
        level, holes, size = _halved(level), None if holes is None else _halved(holes), 2 * size
    return Counts(np.array(sizes), np.array(counts, float), np.array(boxes, float), _side(cells))


def _halved(mask: np.ndarray) -> np.ndarray:
    """True where any of 2 x 2 is; slices and not a reduction, which is twenty times slower."""
    rows = mask[0::2].copy()
    rows[: len(mask) // 2] |= mask[1::2]
    both = rows[:, 0::2].copy()
    both[:, : mask.shape[1] // 2] |= rows[:, 1::2]
    return both


def _side(cells: np.ndarray) -> int:
    return min(cells.shape) + 1


def gliding_sizes(side: int) -> Int64[np.ndarray, " sizes"]:
    """Box sizes from 1 to a sixteenth of `side`, about four to the octave."""
    most = max(side // 16, 1)
    octaves = np.arange(0, np.log2(most) + 1e-9, 0.25)
    return np.unique(np.rint(2**octaves).astype(np.int64))


def gliding_counts(
    cells: Bool[np.ndarray, "rows cols"], sizes: Int64[np.ndarray, " sizes"] | None = None
) -> Counts:
    """Box counts averaged over all offsets of the lattice.

    A window of s x s cells is put around every cell; the share of windows that hold both labels
    times rows x cols / s^2 is the mean count of boxes. At the frame the labels are mirrored, which
    comes to judging a window that sticks out by its part inside. A window with a masked cell is
    left out.

    Args:
        sizes: Increasing; left out, `gliding_sizes`.

    Raises:
        Refused: The sizes do not increase from at least 1, or a box is longer than the map.
    """
    sizes = gliding_sizes(_side(cells)) if sizes is None else sizes
    hits, windows = (total.sum(axis=0) for total in gliding_hits(cells, sizes, 1))
    return Counts(sizes, hits / sizes**2, windows / sizes**2, _side(cells))


def gliding_hits(
    cells: Bool[np.ndarray, "rows cols"], sizes: Int64[np.ndarray, " sizes"], blocks: int
) -> tuple[Int64[np.ndarray, "regions sizes"], Int64[np.ndarray, "regions sizes"]]:
    """Windows that hold both labels, and all windows, by the spatial block of their middle.

    "Any cell of the window" at size s is that at a smaller size t, shifted by s - t and joined, for
    s <= 2 t. That gives the counts of a summed-area table from bytes in place of integers, several
    times faster and with a quarter of the memory.
    """
    if sizes[0] < 1 or np.any(np.diff(sizes) < 1) or sizes[-1] > min(cells.shape):
        raise Refused(
            f"box sizes {sizes.tolist()}; choose increasing ones between 1 and {min(cells.shape)}"
        )
    rows, cols = cells.shape
    edges = [np.linspace(0, n, blocks + 1).astype(int) for n in (rows, cols)]
    holes = _holes(cells)
    margin = int(sizes[-1]) // 2
    layers = [np.ma.getdata(cells)] if holes is None else [np.ma.getdata(cells), holes]
    layers = [np.pad(layer, margin, mode="symmetric") for layer in layers]
    hits, windows, now = [], [], 1
    for size in sizes.tolist():
        while now < size:
            step = min(now, size - now)
            layers = [_widened(layer, step) for layer in layers]
            now += step
        first = margin - size // 2
        middle = [layer[first : first + rows, first : first + cols] for layer in layers]
        if holes is None:
            hits.append(_by_block(middle[0], *edges))
            windows.append(np.outer(*(np.diff(edge) for edge in edges)).ravel())
        else:
            windows.append(_by_block(~middle[1], *edges))
            hits.append(_by_block(middle[0] & ~middle[1], *edges))
    return np.stack(hits, axis=1), np.stack(windows, axis=1)


def _widened(mask: np.ndarray, step: int) -> np.ndarray:
    """True where the window beginning here, or one up to `step` further on, holds a True."""
    down = mask[:-step] | mask[step:]
    return down[:, :-step] | down[:, step:]


def _by_block(mask: np.ndarray, row_edges: np.ndarray, col_edges: np.ndarray) -> np.ndarray:
    strips = [
        mask[top:end].sum(axis=0, dtype=np.int32) for top, end in itertools.pairwise(row_edges)
    ]
    totals = np.pad(np.cumsum(strips, axis=1, dtype=np.int64), ((0, 0), (1, 0)))
    return np.diff(totals[:, col_edges], axis=1).ravel()


def minkowski_counts(cells: Bool[np.ndarray, "rows cols"]) -> Counts:
    """The area within s/2 of the boundary, in units of s^2: a cross-check of the box counts.

    Discs in place of boxes, from the Euclidean distance transform: the area falls as s^(2-D), so
    the counts fall as those of boxes do. Odd sizes only, as a disc is put around a cell. The
    frame is a mirror, and a disc that reaches a masked cell is left out.
    """
    even = gliding_sizes(_side(cells))
    sizes = np.unique(even + 1 - even % 2)
    margin = int(sizes[-1]) // 2 + 1
    rows, cols = cells.shape
    inside = np.s_[margin : margin + rows, margin : margin + cols]

    def distance(mask: np.ndarray) -> np.ndarray:
        if not mask.any():
            return np.full(mask.shape, np.inf)
        padded = np.pad(mask, margin, mode="symmetric")
        return np.asarray(ndimage.distance_transform_edt(~padded))[inside]

    to_boundary = distance(np.ma.getdata(cells) & ~np.ma.getmaskarray(cells))
    to_hole = distance(np.ma.getmaskarray(cells))
    free = [to_hole >= size / 2 for size in sizes]
    near = [
        np.count_nonzero(f & (to_boundary < size / 2)) for f, size in zip(free, sizes, strict=True)
    ]
    discs = np.array([np.count_nonzero(f) for f in free])
    return Counts(sizes, np.array(near) / sizes**2, discs / sizes**2, _side(cells))


def edge_density(cells: Bool[np.ndarray, "rows cols"]) -> float:
    """The share of cells that hold both labels; 7/8 for coin flips. Masked cells do not count."""
    measured = ~np.ma.getmaskarray(cells)
    return float((np.ma.getdata(cells) & measured).sum() / max(measured.sum(), 1))


def neighbour_correlation(
    labels: Bool[np.ndarray, "rows cols"], measured_only: bool = False
) -> float:
    """How alike neighbouring labels are near the boundary: 1 smooth, 0 coin flips.

    1 - P(neighbours differ) / P(two points of the same 16 x 16 window differ), over all windows.
    Where all labels agree both are zero, so that only what lies near the boundary counts: noise on
    a smooth curve gives 0 however large the plain areas beside it. Not a number without boundary.

    A straight line reads 0.87, a Koch curve 0.79, coin flips at any rate 0.00.

    Raises:
        Refused: A point is missing.
    """
    values, missing = measured_values(labels, measured_only)
    measured = np.ones(values.shape) if missing is None else (~missing).astype(float)
    pairs = [np.s_[1:], np.s_[:-1]], [np.s_[:, 1:], np.s_[:, :-1]]
    differ = [((values[a] != values[b]) * measured[a] * measured[b]).sum() for a, b in pairs]
    asked = [(measured[a] * measured[b]).sum() for a, b in pairs]
    share = ndimage.uniform_filter(measured, NEIGHBOURHOOD)
    local = ndimage.uniform_filter(values * measured, NEIGHBOURHOOD) / np.maximum(share, 1e-9)
    n = NEIGHBOURHOOD**2
    apart = (2 * local * (1 - local) * measured).mean() / max(measured.mean(), 1e-9) * n / (n - 1)
    if apart < 1e-12 or not sum(asked):
        return float("nan")
    return float(1 - sum(differ) / sum(asked) / apart)


@dataclass(frozen=True)
class BasinEntropy:
    """Mean entropy, in nats, of the outcomes inside a small box.

    Args:
        basin: S_b, over all boxes: how unpredictable the map is.
        boundary: S_bb, over the boxes with more than one outcome, or not a number if there are
            none. Above ln 2 the boundary is fractal; a smooth one between two outcomes reads 0.44 to
            0.49, more with fewer points to a box.
    """

    basin: float
    boundary: float

    @property
    def fractal(self) -> bool:
        """Whether the entropy proves a fractal boundary. It is sufficient, not necessary."""
        return bool(self.boundary > np.log(2) + 1e-9)


def basin_entropy(
    outcomes: Bool[np.ndarray, "rows cols"] | UInt8[np.ndarray, "rows cols"], size: int = 5
) -> BasinEntropy:
    """Basin entropy of a map of labels or outcomes, from boxes of `size` x `size` points.

    With p_j the share of outcome j in a box, its entropy is -sum p_j ln p_j. Two labels can never
    exceed ln 2, so that only the three outcomes of a run can pass the test. Boxes do not overlap;
    the rim that fills no box is left out.

    Source: Daza et al. 2016, Scientific Reports 6:31416.

    Raises:
        Refused: A point is missing, or the map is smaller than a box.
    """
    values, _ = measured_values(outcomes)
    rows, cols = (n // size for n in values.shape)
    if not rows * cols:
        raise Refused(f"the map is smaller than a box of {size} points; choose a smaller box")
    boxes = values[: rows * size, : cols * size].reshape(rows, size, cols, size)
    shares = np.stack([(boxes == kind).mean(axis=(1, 3)) for kind in np.unique(values)])
    entropy = -(shares * np.log(np.where(shares > 0, shares, 1))).sum(axis=0)
    mixed = entropy > 0
    return BasinEntropy(
        float(entropy.mean()), float(entropy[mixed].mean()) if mixed.any() else float("nan")
    )


def boundary_distance(
    labels: Bool[np.ndarray, "rows cols"], pitch: tuple[float, float]
) -> Float64[np.ndarray, "rows cols"]:
    """Distance from every point to the nearest one across the boundary, in decades.

    Positive where the label is True and negative elsewhere; infinite without a boundary. It is too
    long by up to a pitch, as the boundary passes somewhere before that nearest point.

    Args:
        pitch: Decades between neighbouring points along x and along y.

    Raises:
        Refused: A point is missing.
    """
    values, _ = measured_values(labels)
    if values.all() or not values.any():
        return np.where(values, np.inf, -np.inf)
    spacing = pitch[::-1]
    inside, outside = (
        np.asarray(ndimage.distance_transform_edt(side, sampling=spacing), np.float64)
        for side in (values, ~values)
    )
    return inside - outside


@dataclass(frozen=True, eq=False)
class SafetyMargin:
    """How much a hyperparameter may be raised before jitter makes runs fail.

    Args:
        risk: Chance of failing under jitter around every point.
        largest: For every row the column of the largest x with a bearable risk, -1 if none.
    """

    risk: Float64[np.ndarray, "rows cols"]
    largest: Int64[np.ndarray, " rows"]


def safety_margin(
    labels: Bool[np.ndarray, "rows cols"],
    pitch: tuple[float, float],
    jitter: float,
    chance: float = 0.01,
) -> SafetyMargin:
    """The largest x with at most a `chance` of failing when both values jitter by +-`jitter`.

    Both values move independently and evenly over +-log10(1 + jitter) decades; a point stands for
    its whole cell. The risk is 0 where `boundary_distance` exceeds the diagonal of that rectangle.
    What lies outside of the map is taken to fail, as nobody knows it.

    Args:
        labels: True where a run succeeds.
        pitch: Decades between neighbouring points along x and along y, both logarithmic.
        jitter: Relative: 0.1 for +-10 %.

    Raises:
        Refused: A point is missing, or the jitter is less than half a pitch and cannot be seen, or
            wider than the map.
    """
    values, _ = measured_values(labels)
    reach = np.log10(1 + jitter)
    if not reach >= max(pitch) / 2:
        raise Refused(
            f"a jitter of {jitter:.3g} is {reach:.2g} decades, less than half the pitch of "
            f"{max(pitch):.2g}; zoom in, or ask for more jitter"
        )
    widths = values.shape[1] * pitch[0], values.shape[0] * pitch[1]
    if 2 * reach > min(widths):
        raise Refused(
            f"a jitter of +-{jitter:.3g} is {2 * reach:.2g} decades wide and the map only "
            f"{min(widths):.2g}; zoom out, or ask for less jitter"
        )
    risk = (~values).astype(np.float64)
    for axis, step in ((0, pitch[1]), (1, pitch[0])):
        half = reach / step
        offsets = np.arange(-np.floor(half + 0.5), np.floor(half + 0.5) + 1)
        overlap = np.minimum(offsets + 0.5, half) - np.maximum(offsets - 0.5, -half)
        weights = np.clip(overlap, 0, None)
        risk = ndimage.correlate1d(risk, weights / weights.sum(), axis, mode="constant", cval=1.0)
    bearable = risk <= chance + 1e-12
    last = values.shape[1] - 1 - np.argmax(bearable[:, ::-1], axis=1)
    return SafetyMargin(risk, np.where(bearable.any(axis=1), last, -1).astype(np.int64))
