"""The arithmetic every kernel repeats to the last bit, so that devices can be checked by equality.

The network (Sohl-Dickstein 2024, arXiv:2402.06184) has n inputs, n hidden units, one output and no
biases; N samples are shared by all points, and every point trains its own copy of the weights by
plain gradient descent. Near the boundary of trainability one changed rounding changes the run, so
the order of every sum and the place of every fused multiply-add is fixed here. Change any of it
and `CONTRACT` must change too.

All operations are IEEE 754, round to nearest even, with subnormals, in the dtype of the problem;
`fma` rounds once, and nothing else is fused. "Rounded" constants are computed in float64 in the
order written, then rounded to the dtype.

Setting up, once
    x[i,k]  = inputs[i,k] * (root / sqrt(n)), rounded; root = sqrt(2) for tanh and relu, else 1
    targets, w1, w2, lr_input, lr_output, offset, drift: rounded
    W1[k,j] = w1[k,j] + offset;  W2[j] = w2[j]

Every step t = 0, 1, ..., steps - 1
    drift     W1 = W1 + drift, if any point of the call drifts (adding zero changes no result)
    forward   for every sample i:
        u[j] = x[i,0] * W1[0,j], then u[j] = fma(x[i,k], W1[k,j], u[j]) for k = 1, ..., n - 1
        a[j] = tanh(u[j])  |  (u[j] < 0 ? 0 : u[j]), so nan passes  |  u[j]
        p[j] = a[j] * W2[j], summed by halving: m = the least power of two >= n; while m > 1:
               m = m / 2, then p[j] = p[j] + p[j+m] for every j < m with j + m < n
        r[i] = fma(p[0], 1/n, -y[i]), with 1/n rounded
    loss      S = 0, then S = fma(r[i], r[i], S) for i = 0, ..., N - 1; loss = S * (1/N rounded)
    gradient  over B rows in order, i = 0, ..., N - 1 or batch_index[t] as it stands (repeats and
              all), from G1 = G2 = 0, with the same forward pass and the same weights:
        e       = r[i] * (2 / (B * n) rounded)
        G2[j]   = fma(e, a[j], G2[j])
        d[j]    = e * W2[j];  tanh: d[j] * fma(-a[j], a[j], 1);  relu: a[j] > 0 ? d[j] : 0
        G1[k,j] = fma(x[i,k], d[j], G1[k,j])
    update    W1 = fma(-lr_input, G1, W1);  W2 = fma(-lr_output, G2, W2)

tanh(x), from a table of tanh at the multiples of 1/cells (`tanh_table`) and the addition theorem
tanh(c + h) = t + (1 - t*t) * T / (1 + t*T), where t = tanh(c) and T = tanh(h):
    y = |x|;  y = y > limit ? limit : y, so nan passes
    c = y rounded to a multiple of 1/cells, ties to even: (y + M) - M, with M = 1.5 * 2**52 / cells
        (2**23 in float32); the last bits of y + M are the index c * cells
    h = y - c (exact);  q = h * h
    T = fma(o, h * q, h), with o = odd[0] in float32 and fma(odd[1], q, odd[0]) in float64
    w = t * T;  f = 1 - w, then f = fma(-w, f, 1) another terms - 1 times: close to 1 / (1 + w)
    result = fma(fma(-t, t, 1) * T, f, t), with the sign bit of x
Worst error: 1.67 ulp in float64 (of 5e8 arguments, against 80-bit floats), 1.55 ulp in float32 (of
all arguments from 1e-4 on). Exactly odd, never above 1 and exactly 1 from `limit` on; x itself for
tiny x; nan gives nan. Not monotone in the last bit.

What is kept of a run, in float64 whatever the dtype (a loss converts exactly)
    A run ends at its first step t with a loss that is not finite, or, with a finite `ceiling`,
    not <= ceiling * first. It has t losses; `first` is loss 0, or inf where that is not finite.
    v = loss / first
    tail_v        = (sum of the last `window` v, in order from 0) / window, if the run did not end
    sum_v         = w + w + ... over its losses, in order from 0, with w = v, or 1e6 where v is not
                    <= 1e6 (nan too)
    sum_inverse_v = 1/w + 1/w + ... likewise
    final         = its last loss
    losses        = those of the recorded steps; inf from step t on
`outcome` makes a label and a measure of these, and knows what an ended run counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import cache
from math import inf, sqrt
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int32, Int64

CONTRACT = "tiny-1"

ROOT = {"tanh": sqrt(2), "relu": sqrt(2), "identity": 1.0}
"""The gain that keeps signals at unit scale, for every activation."""


class TanhRecipe(NamedTuple):
    """The constants of tanh in one dtype (see the module)."""

    cells: int
    limit: float
    odd: tuple[float, ...]
    terms: int

    @property
    def entries(self) -> int:
        """Length of the table: a power of two, so that a mask keeps any index inside."""
        return 1 << int(self.limit * self.cells).bit_length()


# Taylor coefficients of tanh, economised: the first one left out is spread over the others.
TANH = {
    "float64": TanhRecipe(
        cells=256, limit=19.0625, odd=(-0.33333333333289156, 0.13333302452450707), terms=4
    ),
    "float32": TanhRecipe(cells=32, limit=9.03125, odd=(-0.33330076932907104,), terms=2),
}


@cache
def tanh_table(dtype: str) -> Float[np.ndarray, " entries"]:
    """tanh at 0, 1 / cells, 2 / cells, ..., and ones from `limit` on.

    Rounded to float64 from 40 decimal digits, because libm differs between machines; the float32
    table is the float64 one, rounded.
    """
    recipe = TANH[dtype]
    table = np.ones(recipe.entries)
    with localcontext() as digits:
        digits.prec = 40
        for index in range(int(recipe.limit * recipe.cells)):
            decay = (Decimal(-2 * index) / recipe.cells).exp()
            table[index] = float((1 - decay) / (1 + decay))
    return table.astype(dtype)


@dataclass(frozen=True, eq=False)
class Problem:
    """What all points of a call share.

    Args:
        inputs: One row per sample, not yet scaled.
        targets: One number per sample.
        w1: Input weights before the offset; row k holds the weights of input k.
        w2: Output weights.
        activation: "tanh", "relu" or "identity".
        batch_index: Rows of the minibatch of every step; None for the full batch.
        dtype: "float64" or "float32", the precision of the training.
        steps: Losses of a run that does not end early.
        window: Losses at the end of a run that `Curves.tail_v` averages.
        ceiling: A run ends once its loss passes this multiple of its first loss.

    Raises:
        ValueError: The parts do not fit each other.
    """

    inputs: Float64[np.ndarray, "samples width"]
    targets: Float64[np.ndarray, " samples"]
    w1: Float64[np.ndarray, "width width"]
    w2: Float64[np.ndarray, " width"]
    activation: str
    batch_index: Int64[np.ndarray, "steps batch"] | None
    dtype: str
    steps: int
    window: int = 20
    ceiling: float = inf

    def __post_init__(self):
        samples, width = self.inputs.shape
        if not samples or not width:
            raise ValueError("there must be at least one sample and one hidden unit")
        if self.targets.shape != (samples,):
            raise ValueError(f"{samples} samples but targets of shape {self.targets.shape}")
        if self.w1.shape != (width, width) or self.w2.shape != (width,):
            raise ValueError(f"weights {self.w1.shape} and {self.w2.shape} for width {width}")
        if self.activation not in ROOT or self.dtype not in TANH:
            raise ValueError(f"no kernel for {self.activation} in {self.dtype}")
        if not 1 <= self.window <= self.steps:
            raise ValueError(f"a window of {self.window} of {self.steps} steps")
        if not self.ceiling >= 1:
            raise ValueError(f"a ceiling of {self.ceiling} ends every run at once")
        rows = self.batch_index
        if rows is not None:
            if rows.ndim != 2 or len(rows) != self.steps or not rows.shape[1]:
                raise ValueError(f"minibatches of shape {rows.shape} for {self.steps} steps")
            if rows.min() < 0 or rows.max() >= samples:
                raise ValueError(f"a minibatch names a row outside 0 to {samples - 1}")

    @property
    def scaled(self) -> Float[np.ndarray, "samples width"]:
        """x of the contract, in the dtype of the problem."""
        gain = ROOT[self.activation] / np.sqrt(self.inputs.shape[1])
        return (self.inputs * gain).astype(self.dtype)

    @property
    def factors(self) -> Float[np.ndarray, " 3"]:
        """The rounded constants 1/n, 2 / (B * n) and 1/N."""
        samples, width = self.inputs.shape
        rows = samples if self.batch_index is None else self.batch_index.shape[1]
        return np.array([1 / width, 2 / (rows * width), 1 / samples], self.dtype)


@dataclass(frozen=True, eq=False)
class Curves:
    """What is kept of the loss curve of every point (see the module for the exact sums)."""

    first: Float64[np.ndarray, " points"]
    final: Float64[np.ndarray, " points"]
    tail_v: Float64[np.ndarray, " points"]
    sum_v: Float64[np.ndarray, " points"]
    sum_inverse_v: Float64[np.ndarray, " points"]
    steps: Int32[np.ndarray, " points"]
    losses: Float64[np.ndarray, "points recorded"]


def rising(problem: Problem, record: Sequence[int] | Int64[np.ndarray, " recorded"]) -> np.ndarray:
    """The steps to record, once it is known that they rise.

    Raises:
        ValueError: They do not, from 0 to at most `problem.steps` - 1.
    """
    steps = np.asarray(record, np.int64)
    if np.any(np.diff(steps, prepend=-1, append=problem.steps) < 1):
        raise ValueError(f"recorded steps must rise, within 0 to {problem.steps - 1}")
    return steps
