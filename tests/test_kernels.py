"""The CPU kernel against the contract, bit for bit."""

import os
import re
import subprocess
import sys
from dataclasses import fields, replace
from fractions import Fraction
from math import copysign, inf, isfinite, isnan, nan, ulp

import mpmath
import numba
import numpy as np
import pytest
from numba import types
from numba.extending import intrinsic

from fractal_core.kernels import cpu
from fractal_core.kernels.contract import ROOT, TANH, Problem, tanh_table

ACTIVATIONS = ["tanh", "relu", "identity"]
DTYPES = ["float64", "float32"]


# Arithmetic by exact fractions, in which every operation of the contract rounds once. Numbers are
# Python floats also in float32, of which they hold every value.


class Exact:
    def __init__(self, dtype):
        self.digits, self.low, self.high = (
            (24, -126, 127) if dtype == "float32" else (53, -1022, 1023)
        )

    def round(self, value):
        """The nearest number, ties to even, of a fraction that is not zero."""
        scale = value.numerator.bit_length() - value.denominator.bit_length()
        scale -= abs(value) < Fraction(2) ** scale
        unit = Fraction(2) ** (max(scale, self.low) - self.digits + 1)
        value = round(value / unit) * unit
        if abs(value) >= Fraction(2) ** (self.high + 1):
            return inf if value > 0 else -inf
        return float(value)

    def fma(self, a, b, c):
        if not (isfinite(a) and isfinite(b) and isfinite(c)):
            return a * b + c
        exact = Fraction(a) * Fraction(b) + Fraction(c)
        if exact:
            return self.round(exact)
        return a * b + c if 0 in (a, b) else 0.0

    def mul(self, a, b):
        return self.fma(a, b, copysign(0.0, copysign(1, a) * copysign(1, b)))

    def add(self, a, b):
        return self.fma(a, 1.0, b)


class Emulator:
    """One run of the contract, one number at a time."""

    def __init__(self, problem):
        self.problem = problem
        self.real = Exact(problem.dtype)
        self.width = len(problem.w2)
        self.cast = lambda value: float(np.dtype(problem.dtype).type(value))
        gain = ROOT[problem.activation] / np.sqrt(self.width)
        self.x = [[self.cast(value) for value in row] for row in problem.inputs * gain]
        self.y = [self.cast(value) for value in problem.targets]

    def tanh(self, x):
        recipe, real = TANH[self.problem.dtype], self.real
        if isnan(x):
            return x
        y = min(abs(x), recipe.limit)
        index = round(Fraction(y) * recipe.cells)
        with mpmath.workdps(50):
            t = self.cast(float(mpmath.tanh(mpmath.mpf(index) / recipe.cells)))
        if y == recipe.limit:
            t = 1.0
        h = y - index / recipe.cells
        q = real.mul(h, h)
        odd = self.horner(q, recipe.odd)
        th = real.fma(odd, real.mul(h, q), h)
        w = real.mul(t, th)
        f = self.horner(w, [(-1.0) ** power for power in range(recipe.terms + 1)])
        return copysign(real.fma(real.mul(real.fma(-t, t, 1.0), th), f, t), x)

    def horner(self, x, coefficients):
        total = self.cast(coefficients[-1])
        for coefficient in reversed(coefficients[:-1]):
            total = self.real.fma(total, x, self.cast(coefficient))
        return total

    def forward(self, i):
        """The hidden units of sample i, and its residual."""
        units, real = range(self.width), self.real
        u = [real.mul(self.x[i][0], self.w1[0][j]) for j in units]
        for k in range(1, self.width):
            u = [real.fma(self.x[i][k], self.w1[k][j], u[j]) for j in units]
        if self.problem.activation == "tanh":
            u = [self.tanh(value) for value in u]
        elif self.problem.activation == "relu":
            u = [0.0 if value < 0 else value for value in u]
        p = [real.mul(u[j], self.w2[j]) for j in units]
        half = 32
        while half >= 1:
            for j in range(half):
                if j + half < self.width:
                    p[j] = real.add(p[j], p[j + half])
            half //= 2
        return u, real.fma(p[0], self.cast(1 / self.width), -self.y[i])

    def gradient(self, rows):
        units, real = range(self.width), self.real
        scale = self.cast(2 / (len(rows) * self.width))
        g1, g2 = [[0.0] * self.width for _ in units], [0.0] * self.width
        for i in rows:
            a, r = self.forward(i)
            e = real.mul(r, scale)
            for j in units:
                g2[j] = real.fma(e, a[j], g2[j])
                d = real.mul(e, self.w2[j])
                if self.problem.activation == "tanh":
                    d = real.mul(d, real.fma(-a[j], a[j], 1.0))
                elif self.problem.activation == "relu" and not a[j] > 0:
                    d = 0.0
                for k in units:
                    g1[k][j] = real.fma(self.x[i][k], d, g1[k][j])
        return g1, g2

    def run(self, hyper):
        """The losses up to the first that is not finite."""
        problem, units, real = self.problem, range(self.width), self.real
        lr1, lr2, offset, drift = (self.cast(value) for value in hyper)
        self.w1 = [[real.add(self.cast(w), offset) for w in row] for row in problem.w1]
        self.w2 = [self.cast(w) for w in problem.w2]
        losses = []
        for step in range(problem.steps):
            if drift:
                self.w1 = [[real.add(w, drift) for w in row] for row in self.w1]
            total = 0.0
            for i in range(len(self.y)):
                _, r = self.forward(i)
                total = real.fma(r, r, total)
            loss = real.mul(total, self.cast(1 / len(self.y)))
            if not isfinite(loss):
                break
            losses.append(loss)
            everything = range(len(self.y))
            rows = everything if problem.batch_index is None else problem.batch_index[step]
            g1, g2 = self.gradient(rows)
            self.w1 = [[real.fma(-lr1, g1[k][j], self.w1[k][j]) for j in units] for k in units]
            self.w2 = [real.fma(-lr2, g2[j], self.w2[j]) for j in units]
        return losses


def problem_of(
    activation="tanh", dtype="float64", *, width=3, samples=5, steps=6, batch=None, **rest
):
    """Normal weights and data, as the experiment draws them."""
    draw = np.random.default_rng(width + samples)
    return Problem(
        inputs=draw.standard_normal((samples, width)),
        targets=draw.standard_normal(samples),
        w1=draw.standard_normal((width, width)),
        w2=draw.standard_normal(width),
        activation=activation,
        batch_index=None if batch is None else draw.integers(0, samples, (steps, batch)),
        dtype=dtype,
        steps=steps,
        window=min(rest.pop("window", 20), steps),
        **rest,
    )


def points_of(count, high=1.5, seed=0):
    """Learning rates on a log scale, without offset or drift."""
    draw = np.random.default_rng(seed)
    return np.column_stack([10 ** draw.uniform(-1, high, (count, 2)), np.zeros((count, 2))])


def assert_same(left, right):
    for field in fields(left):
        a, b = getattr(left, field.name), getattr(right, field.name)
        assert a.dtype == b.dtype, field.name
        np.testing.assert_array_equal(a, b, err_msg=field.name)


def subset(curves, rows):
    return replace(curves, **{f.name: getattr(curves, f.name)[rows] for f in fields(curves)})


# tanh


@intrinsic(prefer_literal=True)
def _tanh(typing, key, first, table, memory):
    """Put tanh in the place of one vector, with the code that the kernel runs."""
    if not isinstance(key, types.StringLiteral):
        return None
    variant = cpu.Variant.read(key.literal_value)

    def generate(context, builder, signature, args):
        first, table, memory = cpu._pointers(context, builder, signature, args)
        lanes = cpu.Lanes(builder, variant)
        lanes.store(lanes.tanh(lanes.load(memory, first), table), memory, first)
        return context.get_dummy_value()

    return types.void(key, first, table, memory), generate


def tanh_of(dtype):
    variant = cpu.variant_for(problem_of("tanh", dtype))
    key = variant.key

    @numba.njit
    def apply(count, table, memory):
        for index in range(count):
            _tanh(key, index, table, memory)

    def tanh(values):
        padded = np.zeros(-(-len(values) // variant.lanes) * variant.lanes, dtype)
        padded[: len(values)] = values
        apply(len(padded) // variant.lanes, tanh_table(dtype), padded)
        return padded[: len(values)]

    return tanh


@pytest.fixture(scope="module", params=DTYPES)
def tanh(request):
    return request.param, tanh_of(request.param)


def sample_arguments(dtype, count=24_000):
    """Arguments of every size, and both sides of every edge of the table."""
    recipe, draw = TANH[dtype], np.random.default_rng(0)
    middles = (np.arange(1, int(recipe.limit * recipe.cells)) + 0.5) / recipe.cells
    edges = np.concatenate([np.nextafter(middles, 0, dtype=dtype), middles])
    spread = [draw.uniform(0, limit, count // 4) for limit in (0.02, 0.7, 4.0, recipe.limit)]
    tiny = 10 ** draw.uniform(-300 if dtype == "float64" else -37, -1, count // 8)
    return np.unique(np.concatenate([edges, *spread, tiny]).astype(dtype))


def test_tanh_is_accurate(tanh):
    """No argument is off by more than the error the contract states."""
    dtype, function = tanh
    x = sample_arguments(dtype)
    unit = np.spacing(np.tanh(x.astype(np.float64)).astype(dtype)).astype(np.float64)
    with mpmath.workdps(40):
        error = [
            abs(float((mpmath.mpf(float(got)) - mpmath.tanh(mpmath.mpf(float(at)))) / float(one)))
            for got, at, one in zip(function(x), x, unit, strict=True)
        ]
    worst = int(np.argmax(error))
    print(f"{dtype}: {error[worst]:.3f} ulp at {x[worst]!r}")
    assert error[worst] <= {"float64": 2.0, "float32": 2.0}[dtype]


def test_tanh_is_odd_and_bounded(tanh):
    """A sign moves through tanh untouched, and no result passes one."""
    dtype, function = tanh
    x = sample_arguments(dtype)
    y = function(x)
    np.testing.assert_array_equal(function(-x), -y)
    assert y.max() == 1


def test_tanh_saturates_for_good(tanh):
    """Once tanh is one it stays one."""
    dtype, function = tanh
    y = function(np.linspace(TANH[dtype].limit / 2, TANH[dtype].limit * 2, 50_000, dtype=dtype))
    assert y[0] < 1
    assert np.all(y[np.argmax(y == 1) :] == 1)


def test_tanh_of_special_values(tanh):
    """Infinities saturate, nan passes, and the smallest numbers are their own tanh."""
    dtype, function = tanh
    info = np.finfo(dtype)
    tiny = np.array([0.0, info.smallest_subnormal, info.tiny, 1e-30], dtype)
    np.testing.assert_array_equal(function(tiny), tiny)
    assert np.signbit(function(np.array([-0.0], dtype)))
    large = np.array([inf, info.max, 100], dtype)
    np.testing.assert_array_equal(function(np.concatenate([large, -large])), [1] * 3 + [-1] * 3)
    assert np.isnan(function(np.array([nan], dtype)))


def test_the_table_is_correctly_rounded():
    """The table holds the nearest numbers to tanh."""
    table, recipe = tanh_table("float64"), TANH["float64"]
    with mpmath.workdps(50):
        for index in range(0, int(recipe.limit * recipe.cells), 7):
            exact = mpmath.tanh(mpmath.mpf(index) / recipe.cells)
            assert abs(mpmath.mpf(float(table[index])) - exact) <= ulp(table[index]) / 2
    assert table[-1] == 1


# The kernel


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("batch", [None, 5])
def test_losses_equal_the_contract(activation, dtype, batch):
    """Every loss has the bits that exact fractions give, diverging runs included."""
    problem = problem_of(activation, dtype, batch=batch, samples=6, steps=7)
    hyper = points_of(9, high=1)
    hyper[1] = 1e160 if dtype == "float64" else 1e20, 1e160 if dtype == "float64" else 1e20, 0, 0
    hyper[2:5, 2] = 0.1, -0.3, 2.0
    hyper[4:7, 3] = 0.1, -0.01, 1e-17
    curves = cpu.train(problem, hyper, record=range(problem.steps))
    for point, got, length in zip(hyper, curves.losses, curves.steps, strict=True):
        wanted = Emulator(problem).run(point)
        assert length == len(wanted)
        assert got.tolist() == wanted + [inf] * (problem.steps - length)
    assert set(curves.steps) > {problem.steps}


@pytest.mark.parametrize("width", [1, 2, 5, 16])
def test_any_width_equals_the_contract(width):
    """Widths that do not fill a tile or a tree are summed in the stated order too."""
    problem = problem_of(width=width, samples=9, steps=3)
    curves = cpu.train(problem, points_of(2), record=range(3))
    for point, got in zip(points_of(2), curves.losses, strict=True):
        assert got.tolist() == Emulator(problem).run(point)


def test_a_single_sample_equals_the_contract():
    """One sample is the loop that no block of samples enters."""
    problem = problem_of(samples=1, steps=5)
    curves = cpu.train(problem, points_of(3), record=range(5))
    for point, got in zip(points_of(3), curves.losses, strict=True):
        assert got.tolist() == Emulator(problem).run(point)


SUMS = "first", "final", "tail_v", "sum_v", "sum_inverse_v"


def sums_of(losses, steps, window, ceiling):
    """What the contract keeps of a curve."""
    first = losses[0] if isfinite(losses[0]) else inf
    sum_v = sum_inverse_v = tail_v = 0.0
    final = 0.0
    for step, loss in enumerate(losses):
        if not isfinite(loss) or (ceiling < inf and not loss <= ceiling * first):
            return first, final, tail_v / window, sum_v, sum_inverse_v, step
        v, final = loss / first, loss
        tail_v += v if step >= steps - window else 0
        sum_v += min(v, 1e6)
        sum_inverse_v += 1 / min(v, 1e6)
    return first, final, tail_v / window, sum_v, sum_inverse_v, steps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ceiling", [inf, 1e3])
def test_sums_follow_from_the_losses(dtype, ceiling):
    """The running sums are those of the whole curve, cut where the run ends."""
    problem = problem_of("relu", dtype, steps=40)
    hyper = points_of(100, high=2)
    free = cpu.train(problem, hyper, record=range(40))
    kept = cpu.train(replace(problem, ceiling=ceiling), hyper, record=range(40))
    ended = 0
    for index, losses in enumerate(free.losses.tolist()):
        *wanted, length = sums_of(losses, 40, 20, ceiling)
        row = [getattr(kept, name)[index] for name in SUMS]
        assert row == wanted
        assert kept.steps[index] == length
        assert kept.losses[index].tolist() == losses[:length] + [inf] * (40 - length)
        ended += length < 40
    assert 10 < ended < 90


def test_a_run_may_end_at_its_first_loss():
    """Weights too large for any loss leave no losses at all, and infinities."""
    hyper = np.array([[0.1, 0.1, 1e200, 0.0], [0.1, 0.1, 0.0, 0.0]])
    curves = cpu.train(problem_of("identity"), hyper, record=[0, 5])
    assert curves.steps.tolist() == [0, 6]
    assert curves.first[0] == inf
    assert (curves.sum_v[0], curves.sum_inverse_v[0]) == (0, 0)
    assert curves.losses[0].tolist() == [inf, inf]
    assert np.all(np.isfinite(curves.losses[1]))


def test_a_first_loss_of_zero_ends_nothing():
    """Without a ceiling only a loss that is not finite ends a run."""
    problem = replace(problem_of(), inputs=np.zeros((5, 3)), targets=np.zeros(5))
    curves = cpu.train(problem, points_of(2))
    assert curves.steps.tolist() == [6, 6]
    assert curves.final.tolist() == [0, 0]
    assert curves.sum_v.tolist() == [6e6, 6e6]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [None, 6])
def test_neighbours_change_no_bit(dtype, batch):
    """Batch size, order, threads and what is recorded leave every bit in place.

    A third of the runs blow up, so lanes that have ended sit beside lanes that go on.
    """
    problem = problem_of("relu", dtype, width=16, samples=18, steps=30, batch=batch)
    hyper = points_of(333, high=3.5)
    whole = cpu.train(problem, hyper)
    assert 0.1 < np.mean(whole.steps < 30) < 0.9
    for size in (1, 7):
        rows = np.arange(0, 333, 1 if size == 7 else 16)
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            assert_same(cpu.train(problem, hyper[some]), subset(whole, some))
    order = np.random.default_rng(1).permutation(333)
    assert_same(cpu.train(problem, hyper[order]), subset(whole, order))
    for threads in (1, 2, 3):
        assert_same(cpu.train(problem, hyper, threads=threads), whole)
    recorded = cpu.train(problem, hyper, record=range(30))
    assert_same(replace(recorded, losses=whole.losses), whole)
    some = cpu.train(problem, hyper, record=np.array([0, 3, 29]))
    np.testing.assert_array_equal(some.losses, recorded.losses[:, [0, 3, 29]])
    ran = whole.steps == 30
    np.testing.assert_array_equal(recorded.losses[ran, -1], whole.final[ran])


@pytest.mark.parametrize("dtype", DTYPES)
def test_width_of_the_registers_changes_no_bit(dtype, monkeypatch):
    """Processors with other vector registers, and other tiles, find the same bits."""
    problem = problem_of("tanh", dtype, width=5, samples=11, steps=20)
    variant = cpu.variant_for(problem)
    known = cpu.train(problem, points_of(21))
    for lanes, tile in [(2, 4), (4, 3), (8, 8)]:
        other = variant._replace(lanes=lanes, tile=tile)
        monkeypatch.setattr(cpu, "variant_for", lambda _, other=other: other)
        assert_same(cpu.train(problem, points_of(21)), known)


def test_a_point_without_drift_ignores_the_drift_of_others():
    """Adding a drift of zero changes no result."""
    problem = problem_of("tanh", steps=10)
    hyper = points_of(4)
    drifting = hyper.copy()
    drifting[::2, 3] = 0.01
    alone, mixed = cpu.train(problem, hyper), cpu.train(problem, drifting)
    assert_same(subset(mixed, np.s_[1::2]), subset(alone, np.s_[1::2]))
    assert np.all(mixed.final[::2] != alone.final[::2])


def test_no_points_give_no_curves():
    """An empty call returns empty arrays."""
    curves = cpu.train(problem_of(), np.zeros((0, 4)), record=[0])
    assert curves.first.shape == (0,)
    assert curves.losses.shape == (0, 1)


def test_layout_of_the_arrays_changes_nothing():
    """Views, other orders and read-only arrays train the same."""
    problem = problem_of(width=5)
    other = replace(problem, w1=np.asfortranarray(problem.w1), inputs=problem.inputs[:, ::1])
    other.inputs.setflags(write=False)
    hyper = points_of(3)
    assert_same(cpu.train(other, np.asfortranarray(hyper)), cpu.train(problem, hyper))


def test_a_compile_is_announced_and_happens_once(tmp_path):
    """The first process says that it compiles and for how long, the next finds the code on disk."""
    code = (
        "import logging, numpy as np\n"
        "from fractal_core import TinyNetworks\n"
        "from fractal_core.kernels import cpu\n"
        "logging.basicConfig(level=logging.INFO, format='%(message)s')\n"
        "network = TinyNetworks(activation='identity', width=1, samples=2, steps=21)\n"
        "print(cpu.is_compiled(network.problem(0)))\n"
        "network.run(np.ones((1, 2)), seed=0)\n"
        "print(cpu.is_compiled(network.problem(0)))"
    )
    answers = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        for _ in range(2)
    ]
    assert [answer.stdout.split() for answer in answers] == [["False", "True"], ["True", "True"]]
    assert re.search(r"took \d+\.\d s", answers[0].stderr)
    assert answers[1].stderr == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "gelu"}, "no kernel"),
        ({"dtype": "float16"}, "no kernel"),
        ({"window": 7}, "window"),
        ({"ceiling": 0.5}, "ceiling"),
        ({"ceiling": nan}, "ceiling"),
        ({"inputs": np.zeros((0, 3)), "targets": np.zeros(0)}, "at least one"),
        ({"batch_index": np.zeros((5, 2), np.int64)}, "minibatches"),
        ({"batch_index": np.full((6, 2), 5)}, "outside"),
    ],
)
def test_a_problem_that_does_not_fit_is_refused(change, message):
    """Parts that contradict each other never reach the kernel."""
    with pytest.raises(ValueError, match=message):
        replace(problem_of(), **change)


@pytest.mark.parametrize("record", [[1, 0], [0, 0], [6], [-1]])
def test_steps_to_record_must_rise(record):
    """Steps out of order or out of range are refused."""
    with pytest.raises(ValueError, match="rise"):
        cpu.train(problem_of(), points_of(1), record=record)
