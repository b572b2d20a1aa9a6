"""Train many tiny networks on the CPU, one network per SIMD lane.

Every lane of a vector register belongs to another point, and all lanes meet the samples in the
same order. So no sum ever runs across lanes: the strict order of `contract` costs nothing, and a
point's bits cannot depend on its neighbours. All the weights and gradients of a group of points
(37 kB at width 16) stay in the first-level cache.

The arithmetic is written once, in Python that emits LLVM vector instructions (`Lanes`, `Block`),
since LLVM's own vectoriser neither keeps the accumulators in registers nor uses whole 512-bit
registers. Numba compiles it, together with the loop over steps, and keeps the result on disk.
Several samples are taken at a time, so that a weight loaded once serves them all; that does not
change the order within any sum.
"""

import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import numba
import numpy as np
from jaxtyping import Float64, Int64
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic
from numpy.typing import DTypeLike

from fractal_core.kernels.contract import CONTRACT, TANH, Curves, Problem, tanh_table

log = logging.getLogger(__name__)

SAMPLES = 4
"""Samples taken at a time."""

I64 = ir.IntType(64)


class Plan(NamedTuple):
    """Which code to emit. Numba sees it as a string, the only constant that reaches an intrinsic.

    The working memory holds vectors: W1 and W2, their gradients, the loss with three numbers per
    lane (both rates and the drift), then the hidden units of the samples at hand.
    """

    activation: str
    dtype: str
    width: int
    lanes: int
    tile: int
    loss: int = 1
    gradient: int = 1

    @property
    def key(self) -> str:
        """The plan as a string; with the constants of tanh, or stale code might be found on disk."""
        return " ".join(map(str, (*self, CONTRACT, *TANH[self.dtype])))

    @classmethod
    def read(cls, key: str) -> "Plan":
        activation, dtype, *numbers = key.split()[: len(cls._fields)]
        return cls(activation, dtype, *map(int, numbers))

    @property
    def weights(self) -> int:
        return self.width * (self.width + 1)

    @property
    def hidden(self) -> int:
        return 2 * self.weights + 4

    @property
    def memory(self) -> int:
        return (self.hidden + SAMPLES * self.width) * self.lanes


def plan_for(problem: Problem) -> Plan:
    """The plan for this processor: whole registers, and tiles that leave none of them spilled."""
    target: Any = cpu_target.target_context
    features = target.codegen().magic_tuple()[-1].split(",")
    bits = 512 if "+avx512f" in features else 256 if "+avx2" in features else 128
    lanes = bits // np.dtype(problem.dtype).itemsize // 8
    tile = 2 if bits == 256 else 4
    return Plan(problem.activation, problem.dtype, len(problem.w2), lanes, tile)


class Lanes:
    """Arithmetic on one number per lane, emitted as LLVM vector instructions."""

    def __init__(self, builder, plan):
        self.builder, self.plan = builder, plan
        self.scalar = ir.DoubleType() if plan.dtype == "float64" else ir.FloatType()
        self.bits = ir.IntType(64 if plan.dtype == "float64" else 32)
        self.vector = ir.VectorType(self.scalar, plan.lanes)
        self.suffix = f"v{plan.lanes}f{self.bits.width}"
        self.add, self.sub, self.mul = builder.fadd, builder.fsub, builder.fmul
        self.neg = builder.fneg

    def repeat(self, kind, value):
        return ir.Constant(
            ir.VectorType(kind, self.plan.lanes), [ir.Constant(kind, value)] * self.plan.lanes
        )

    def number(self, value):
        """A constant, the same in every lane."""
        return self.repeat(self.scalar, value)

    def call(self, name, *args):
        """An operation that LLVM has a name for."""
        kind = ir.FunctionType(self.vector, [arg.type for arg in args])
        name = f"llvm.{name}.{self.suffix}"
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(function, args)

    def fma(self, a, b, c):
        return self.call("fma", a, b, c)

    def polynomial(self, x, coefficients):
        """The polynomial in x, by Horner's rule; the constant coefficient comes first."""
        total = self.number(coefficients[-1])
        for coefficient in coefficients[-2::-1]:
            total = self.fma(total, x, self.number(coefficient))
        return total

    def choose(self, relation, a, b, then, otherwise):
        """`then` where the relation holds, which it never does for nan."""
        return self.builder.select(self.builder.fcmp_ordered(relation, a, b), then, otherwise)

    def place(self, pointer, index, more=0):
        """The address of vector number `index + more`."""
        base = self.builder.bitcast(pointer, self.vector.as_pointer())
        index = I64(index) if isinstance(index, int) else index
        return self.builder.gep(base, [self.builder.add(index, I64(more))])

    def load(self, *place):
        return self.builder.load(self.place(*place), align=self.bits.width // 8)

    def store(self, value, *place):
        self.builder.store(value, self.place(*place), align=self.bits.width // 8)

    def broadcast(self, pointer, index=0):
        """The number at `pointer[index]`, in every lane."""
        value = self.builder.load(self.builder.gep(pointer, [I64(index)]))
        nothing = ir.Constant(self.vector, ir.Undefined)
        first = self.builder.insert_element(nothing, value, ir.IntType(32)(0))
        return self.builder.shuffle_vector(first, nothing, self.repeat(ir.IntType(32), 0))

    def gather(self, table, index):
        """`table[index]`, with an index per lane."""
        places = self.builder.gep(table, [index], source_etype=self.scalar)
        # llvmlite types this address as scalar, though a vector of indices makes a vector of it.
        places.type = ir.VectorType(ir.PointerType(), self.plan.lanes)
        every, align = self.repeat(ir.IntType(1), 1), ir.IntType(32)(self.bits.width // 8)
        kind = ir.FunctionType(self.vector, [places.type, align.type, every.type, self.vector])
        name = f"llvm.masked.gather.{self.suffix}.v{self.plan.lanes}p0"
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(function, [places, align, every, self.number(0.0)])

    @contextmanager
    def loop(self, start, stop, step):
        """A loop that runs in the compiled code; yields its index."""
        bounds = [I64(n) if isinstance(n, int) else n for n in (start, stop, step)]
        with cgutils.for_range_slice(self.builder, *bounds, intp=I64) as (index, _):
            yield index

    def tanh(self, x, table):
        """tanh, by the recipe and with the names of `contract`."""
        recipe = TANH[self.plan.dtype]
        magic = 1.5 * 2.0 ** (52 if self.plan.dtype == "float64" else 23) / recipe.cells
        magic, limit, one = map(self.number, (magic, recipe.limit, 1.0))
        y = self.call("fabs", x)
        y = self.choose(">", y, limit, limit, y)
        z = self.add(y, magic)
        h = self.sub(y, self.sub(z, magic))
        bits = self.builder.bitcast(z, ir.VectorType(self.bits, self.plan.lanes))
        t = self.gather(table, self.builder.and_(bits, self.repeat(self.bits, recipe.entries - 1)))
        q = self.mul(h, h)
        tanh_h = self.fma(self.polynomial(q, recipe.odd), self.mul(h, q), h)
        w = self.mul(t, tanh_h)
        f = self.sub(one, w)
        for _ in range(recipe.terms - 1):
            f = self.fma(self.neg(w), f, one)
        slope = self.fma(self.neg(t), t, one)
        return self.call("copysign", self.fma(self.mul(slope, tanh_h), f, t), x)


class Block(Lanes):
    """Forward and backward pass of a few samples, for all lanes."""

    def __init__(self, builder, plan, memory, table):
        super().__init__(builder, plan)
        self.memory, self.table = memory, table

    def tiles(self, emit):
        """Emit `emit(first, count)` for tiles of hidden units, of which one may be smaller."""
        width, tile = self.plan.width, self.plan.tile
        whole = width // tile * tile
        if whole:
            with self.loop(0, whole, tile) as first:
                emit(first, tile)
        if width > whole:
            emit(I64(whole), width - whole)

    def forward(self, rows):
        """Store the hidden units, before their activation."""
        width, memory = self.plan.width, self.memory

        def emit(first, count):
            u = [[None] * count for _ in rows]
            for k in range(width):
                weights = [self.load(memory, first, k * width + j) for j in range(count)]
                for s, row in enumerate(rows):
                    x = self.broadcast(row, k)
                    for j, w in enumerate(weights):
                        u[s][j] = self.fma(x, w, u[s][j]) if k else self.mul(x, w)
            for s in range(len(rows)):
                for j in range(count):
                    self.store(u[s][j], memory, first, self.plan.hidden + s * width + j)

        self.tiles(emit)

    def activate(self, samples):
        """Put every hidden unit through the activation, in place."""
        if self.plan.activation == "identity":
            return
        width, zero = self.plan.width, self.number(0.0)
        # Enough at a time that loading the constants of tanh does not count.
        several = 1 if samples == 1 else samples * (2 - width % 2)
        with self.loop(self.plan.hidden, self.plan.hidden + samples * width, several) as first:
            for more in range(several):
                u = self.load(self.memory, first, more)
                tanh = self.plan.activation == "tanh"
                a = self.tanh(u, self.table) if tanh else self.choose("<", u, zero, zero, u)
                self.store(a, self.memory, first, more)

    def residual(self, s, target, inv_width):
        """Output less target of sample s, from the hidden units in memory."""
        width, memory = self.plan.width, self.memory
        p = [
            self.mul(
                self.load(memory, self.plan.hidden + s * width + j),
                self.load(memory, width * width + j),
            )
            for j in range(width)
        ]
        half = 1 << (width - 1).bit_length() >> 1
        while half:
            for j in range(min(half, width - half)):
                p[j] = self.add(p[j], p[j + half])
            half >>= 1
        return self.fma(p[0], inv_width, self.neg(target))

    def count(self, residuals):
        """Add to the loss."""
        total = self.load(self.memory, 2 * self.plan.weights)
        for r in residuals:
            total = self.fma(r, r, total)
        self.store(total, self.memory, 2 * self.plan.weights)

    def backward(self, rows, errors):
        """Add to the gradients."""
        width, memory = self.plan.width, self.memory
        one, zero = self.number(1.0), self.number(0.0)

        def slope(a, d):
            if self.plan.activation == "tanh":
                return self.mul(d, self.fma(self.neg(a), a, one))
            return self.choose(">", a, zero, d, zero) if self.plan.activation == "relu" else d

        def emit(first, count):
            d = [[None] * count for _ in rows]
            for j in range(count):
                w2 = self.load(memory, first, width * width + j)
                place = first, self.plan.weights + width * width + j
                g2 = self.load(memory, *place)
                for s, e in enumerate(errors):
                    a = self.load(memory, first, self.plan.hidden + s * width + j)
                    g2 = self.fma(e, a, g2)
                    d[s][j] = slope(a, self.mul(e, w2))
                self.store(g2, memory, *place)
            for k in range(width):
                x = [self.broadcast(row, k) for row in rows]
                for j in range(count):
                    place = first, self.plan.weights + k * width + j
                    g1 = self.load(memory, *place)
                    for s in range(len(rows)):
                        g1 = self.fma(x[s], d[s][j], g1)
                    self.store(g1, memory, *place)

        self.tiles(emit)


def _pointers(context, builder, signature, args):
    """The data of all arguments that are arrays, and the values of all that are integers."""
    for kind, value in zip(signature.args, args, strict=True):
        if isinstance(kind, types.Array):
            yield context.make_array(kind)(context, builder, value).data
        elif isinstance(kind, types.Integer):
            yield context.cast(builder, value, kind, types.int64)


@intrinsic(prefer_literal=True)
def _rows(typing, key, begin, end, index, inputs, targets, factors, table, memory):
    """Pass the samples index[begin:end] forward, and backward if the plan says so."""
    if not isinstance(key, types.StringLiteral):
        return None
    plan = Plan.read(key.literal_value)

    def generate(context, builder, signature, args):
        begin, end, index, inputs, targets, factors, table, memory = _pointers(
            context, builder, signature, args
        )
        block = Block(builder, plan, memory, table)

        def emit(first, samples):
            places = [builder.gep(index, [builder.add(first, I64(s))]) for s in range(samples)]
            numbers = [builder.load(place) for place in places]
            rows = [builder.gep(inputs, [builder.mul(n, I64(plan.width))]) for n in numbers]
            block.forward(rows)
            block.activate(samples)
            wanted = [block.broadcast(builder.gep(targets, [n])) for n in numbers]
            inv_width, scale = block.broadcast(factors, 0), block.broadcast(factors, 1)
            residuals = [block.residual(s, y, inv_width) for s, y in enumerate(wanted)]
            if plan.loss:
                block.count(residuals)
            if plan.gradient:
                block.backward(rows, [block.mul(r, scale) for r in residuals])

        rest = builder.srem(builder.sub(end, begin), I64(SAMPLES))
        whole = builder.sub(end, rest)
        with block.loop(begin, whole, SAMPLES) as first:
            emit(first, SAMPLES)
        with block.loop(whole, end, 1) as first:
            emit(first, 1)
        return context.get_dummy_value()

    return types.void(key, begin, end, index, inputs, targets, factors, table, memory), generate


@intrinsic(prefer_literal=True)
def _update(typing, key, memory):
    """Step down the gradient, and clear it."""
    if not isinstance(key, types.StringLiteral):
        return None
    plan = Plan.read(key.literal_value)

    def generate(context, builder, signature, args):
        (memory,) = _pointers(context, builder, signature, args)
        lanes, inner = Lanes(builder, plan), plan.width * plan.width
        for first, last, rate in ((0, inner, 1), (inner, plan.weights, 2)):
            minus = lanes.neg(lanes.load(memory, 2 * plan.weights + rate))
            with lanes.loop(first, last, 1) as weight:
                g = lanes.load(memory, weight, plan.weights)
                lanes.store(lanes.fma(minus, g, lanes.load(memory, weight)), memory, weight)
                lanes.store(lanes.number(0.0), memory, weight, plan.weights)
        return context.get_dummy_value()

    return types.void(key, memory), generate


@numba.njit(nogil=True)
def _begin(memory, lanes, hyper, w1, w2, first):
    """Lay out the start of a group of points; the last point fills the lanes past the end."""
    inner, weights = len(w1), len(w1) + len(w2)
    for lane in range(lanes):
        lr_input, lr_output, offset, drift = hyper[min(first + lane, len(hyper) - 1)]
        mine = memory[lane::lanes]
        for i in range(inner):
            mine[i] = w1[i] + offset
        mine[inner:weights] = w2
        mine[weights : 2 * weights + 1] = 0
        mine[2 * weights + 1] = lr_input
        mine[2 * weights + 2] = lr_output
        mine[2 * weights + 3] = drift


@numba.njit(nogil=True)
def _drift(memory, lanes, inner, at):
    """Move the input weights by each lane's drift."""
    for i in range(inner):
        for lane in range(lanes):
            memory[i * lanes + lane] += memory[at + lane]


@numba.njit(nogil=True, error_model="numpy")
def _account(step, schedule, loss, scores, ends, losses, slot):
    """Add a step's losses to what is kept; returns how many lanes still run."""
    steps, window, ceiling = schedule
    running = 0
    for lane in range(len(ends)):
        if ends[lane] < steps:
            continue
        score = scores[lane]
        value = np.float64(loss[lane])
        if step == 0:
            score[0] = value if np.isfinite(value) else np.inf
        limit = np.inf if ceiling == np.inf else ceiling * score[0]
        if not np.isfinite(value) or not value <= limit:
            ends[lane] = step
            continue
        running += 1
        v = value / score[0]
        if not v <= 1e6:
            v = 1e6
        score[1] = value
        score[2] += value if step >= steps - window else 0.0
        score[3] += v
        score[4] += 1 / v
        if slot >= 0 and lane < len(losses):
            losses[lane, slot] = value
    return running


@numba.njit(nogil=True)
def _finish(steps, scores, ends):
    """Count the losses that a run which ended did not have."""
    for lane in range(len(ends)):
        missing = steps - ends[lane]
        if missing:
            scores[lane, 1] = np.inf
            scores[lane, 2] = np.inf
            scores[lane, 3] += missing * 1e6
            scores[lane, 4] += missing * 1e-6


@cache
def _kernel(plan: Plan, minibatch: bool) -> tuple[Any, tuple]:
    """The training loop for one plan, not compiled yet, and the types of its arguments."""
    lanes, inner, at = plan.lanes, plan.width**2, 2 * plan.weights * plan.lanes
    update = plan.key
    every = plan._replace(gradient=int(not minibatch)).key
    some = plan._replace(loss=0).key

    def kernel(
        begin, end, schedule, record, drifting, hyper, w1, w2, inputs, targets, factors, table,
        samples, batches, batch, memory, scores, ends, losses,
    ):  # fmt: skip
        loss = memory[at : at + lanes]
        for first in range(begin, end, lanes):
            score, mine = scores[first : first + lanes], ends[first : first + lanes]
            _begin(memory, lanes, hyper, w1, w2, first)
            slot = 0
            for step in range(schedule[0]):
                if drifting:
                    _drift(memory, lanes, inner, at + 3 * lanes)
                loss[:] = 0
                _rows(  # pyright: ignore[reportCallIssue]
                    every, 0, len(samples), samples, inputs, targets, factors, table, memory
                )
                loss *= factors[2]
                now = slot < len(record) and record[slot] == step
                running = _account(
                    step, schedule, loss, score, mine, losses[first:], slot if now else -1
                )
                if not running or step == schedule[0] - 1:
                    break
                slot += now
                if minibatch:
                    to = (step + 1) * batch
                    _rows(some, to - batch, to, batches, inputs, targets, factors, table, memory)
                _update(update, memory)
            _finish(schedule[0], score, mine)

    real, whole, curves = numba.from_dtype(np.dtype(plan.dtype)), types.int64, types.float64[:, ::1]
    schedule = types.Tuple((whole, whole, types.float64))
    kinds = (
        *(whole, whole, schedule, whole[::1], types.boolean, real[:, ::1], *6 * (real[::1],)),
        *(whole[::1], whole[::1], whole, real[::1], curves, whole[::1], curves),
    )
    return numba.njit(nogil=True, cache=True, error_model="numpy")(kernel), kinds


def _shared(problem: Problem, record: np.ndarray, hyper: np.ndarray) -> tuple:
    """The arguments that all calls of the kernel share, copied to the types it was compiled for."""
    batches = np.zeros((1, 0)) if problem.batch_index is None else problem.batch_index

    def own(array, dtype: DTypeLike = problem.dtype):
        return np.array(array, dtype).ravel()

    return (
        (problem.steps, problem.window, float(problem.ceiling)),
        own(record, np.int64),
        bool(np.any(hyper[:, 3])),
        np.array(hyper, problem.dtype, order="C"),
        *map(own, (problem.w1, problem.w2, problem.scaled, problem.targets, problem.factors)),
        own(tanh_table(problem.dtype)),
        np.arange(len(problem.targets)),
        own(batches, np.int64),
        batches.shape[1],
    )


def is_compiled(problem: Problem) -> bool:
    """Whether `train` would start at once, with its code in memory or on disk."""
    kernel, kinds = _kernel(plan_for(problem), problem.batch_index is not None)
    on_disk = kernel._cache.load_overload
    return kinds in kernel.overloads or on_disk(kinds, kernel.targetctx) is not None


def _ready(problem: Problem):
    """The compiled kernel; says so in the log if it had to be compiled first."""
    kernel, kinds = _kernel(plan_for(problem), problem.batch_index is not None)
    if not is_compiled(problem):
        log.info("compiling the kernel for %s (once)", problem.activation)
        began = time.perf_counter()
        kernel.compile(kinds)
        log.info("compiling the kernel (once) took %.1f s", time.perf_counter() - began)
    return kernel


def train(
    problem: Problem,
    hyper: Float64[np.ndarray, "points 4"],
    record: Sequence[int] | Int64[np.ndarray, " recorded"] = (),
    threads: int | None = None,
) -> Curves:
    """Train one network per row of `hyper`, with the arithmetic of `contract`.

    Args:
        problem: What all networks share.
        hyper: Learning rate of the input weights and of the output weights, offset added to the
            initial input weights, drift added to the input weights at every step.
        record: Steps whose losses to return, in rising order.
        threads: Threads to use; all processors this process may use if None. Bits do not depend
            on it, nor on which points share a call.

    Raises:
        ValueError: The recorded steps do not rise from 0 to at most `problem.steps` - 1.
    """
    steps = np.asarray(record, np.int64)
    if np.any(np.diff(steps, prepend=-1, append=problem.steps) < 1):
        raise ValueError(f"recorded steps must rise, within 0 to {problem.steps - 1}")
    kernel, plan = _ready(problem), plan_for(problem)
    lanes, dtype = plan.lanes, np.dtype(problem.dtype)
    points, threads = len(hyper), threads or _processors()
    padded = -(-points // lanes) * lanes
    shared = _shared(problem, steps, hyper)
    scores, ends = np.zeros((padded, 5)), np.full(padded, problem.steps, np.int64)
    losses = np.full((points, len(steps)), np.inf)
    # Enough tasks to even out runs that end early, but none so short that it would wait for Python.
    share = max(1, padded // lanes // (16 * threads)) * lanes

    def run(first):
        # Vectors that straddle two 64-byte lines of the cache would take twice as long.
        space = np.empty(plan.memory + 64, dtype)
        memory = space[-space.ctypes.data % 64 // dtype.itemsize :][: plan.memory]
        kernel(first, min(first + share, padded), *shared, memory, scores, ends, losses)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, range(0, padded, share)))
    first, final, tail, sum_v, sum_inv = scores[:points].T.copy()
    length = ends[:points].astype(np.int32)
    return Curves(first, final, tail / problem.window, sum_v, sum_inv, length, losses)


def _processors() -> int:
    """How many processors this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
