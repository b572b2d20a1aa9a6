"""Train many tiny networks on the CPU, one network per SIMD lane.

Every lane of a vector register belongs to another point, and all lanes meet the samples in the
same order. So no sum ever runs across lanes: the strict order of `contract` costs nothing, and a
point's bits cannot depend on its neighbours. All the weights and gradients of a group of points
(37 kB at width 16) stay in the first-level cache.

The arithmetic is emitted as vector instructions (`lanes`). Numba compiles it, together with the
loop over steps, and keeps the result on disk.
"""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numba
import numpy as np
from jaxtyping import Float64, Int64
from numba import types
from numba.core.registry import cpu_target
from numba.extending import intrinsic
from numpy.typing import DTypeLike

from fractal_core import machine, pulse
from fractal_core.kernels.contract import Curves, Problem, rising, tanh_table
from fractal_core.kernels.lanes import I64, SAMPLES, Lanes, Pass, Variant
from fractal_core.outcome import V_MOST

log = logging.getLogger(__name__)


def variant_for(problem: Problem) -> Variant:
    """The variant for this processor: whole registers, and tiles that leave none of them spilled."""
    target: Any = cpu_target.target_context
    features = target.codegen().magic_tuple()[-1].split(",")
    bits = 512 if "+avx512f" in features else 256 if "+avx2" in features else 128
    lanes = bits // np.dtype(problem.dtype).itemsize // 8
    tile = 2 if bits == 256 else 4
    return Variant(problem.activation, problem.dtype, len(problem.w2), lanes, tile)


def _pointers(context, builder, signature, args):
    """The data of all arguments that are arrays, and the values of all that are integers."""
    for kind, value in zip(signature.args, args, strict=True):
        if isinstance(kind, types.Array):
            yield context.make_array(kind)(context, builder, value).data
        elif isinstance(kind, types.Integer):
            yield context.cast(builder, value, kind, types.int64)


@intrinsic(prefer_literal=True)
def _rows(typing, key, begin, end, index, inputs, targets, factors, table, memory):
    """Pass the samples index[begin:end] forward, and backward if the variant says so."""
    if not isinstance(key, types.StringLiteral):
        return None
    variant = Variant.read(key.literal_value)

    def generate(context, builder, signature, args):
        begin, end, index, inputs, targets, factors, table, memory = _pointers(
            context, builder, signature, args
        )
        block = Pass(builder, variant, memory, table)

        def emit(first, samples):
            places = [builder.gep(index, [builder.add(first, I64(s))]) for s in range(samples)]
            numbers = [builder.load(place) for place in places]
            rows = [builder.gep(inputs, [builder.mul(n, I64(variant.width))]) for n in numbers]
            block.forward(rows)
            block.activate(samples)
            wanted = [block.broadcast(builder.gep(targets, [n])) for n in numbers]
            inv_width, scale = block.broadcast(factors, 0), block.broadcast(factors, 1)
            residuals = [block.residual(s, y, inv_width) for s, y in enumerate(wanted)]
            if variant.loss:
                block.count(residuals)
            if variant.gradient:
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
    variant = Variant.read(key.literal_value)

    def generate(context, builder, signature, args):
        (memory,) = _pointers(context, builder, signature, args)
        lanes, inner = Lanes(builder, variant), variant.width * variant.width
        for first, last, rate in ((0, inner, 1), (inner, variant.weights, 2)):
            minus = lanes.neg(lanes.load(memory, 2 * variant.weights + rate))
            with lanes.loop(first, last, 1) as weight:
                g = lanes.load(memory, weight, variant.weights)
                lanes.store(lanes.fma(minus, g, lanes.load(memory, weight)), memory, weight)
                lanes.store(lanes.number(0.0), memory, weight, variant.weights)
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
        score[1] = value
        score[2] += v if step >= steps - window else 0.0
        if not v <= V_MOST:
            v = V_MOST
        score[3] += v
        score[4] += 1 / v
        if slot >= 0 and lane < len(losses):
            losses[lane, slot] = value
    return running


@cache
def _kernel(variant: Variant, minibatch: bool) -> tuple[Any, tuple]:
    """The training loop for one variant, not compiled yet, and the types of its arguments."""
    lanes, inner, at = variant.lanes, variant.width**2, 2 * variant.weights * variant.lanes
    update = variant.key
    every = variant._replace(gradient=int(not minibatch)).key
    some = variant._replace(loss=0).key

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
                _rows(  # pyright: ignore[reportCallIssue] - an intrinsic leaves the context out
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

    real, whole, curves = (
        numba.from_dtype(np.dtype(variant.dtype)),
        types.int64,
        types.float64[:, ::1],
    )
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
    kernel, kinds = _kernel(variant_for(problem), problem.batch_index is not None)
    on_disk = kernel._cache.load_overload
    return kinds in kernel.overloads or on_disk(kinds, kernel.targetctx) is not None


def _ready(problem: Problem):
    """The compiled kernel; says so in the log if it had to be compiled first."""
    kernel, kinds = _kernel(variant_for(problem), problem.batch_index is not None)
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
    losses: Float64[np.ndarray, "points recorded"] | None = None,
) -> Curves:
    """Train one network per row of `hyper`, with the arithmetic of `contract`.

    Args:
        problem: What all networks share.
        hyper: Learning rate of the input weights and of the output weights, offset added to the
            initial input weights, drift added to the input weights at every step.
        record: Steps whose losses to return, in rising order.
        threads: Threads to use; all processors this process may use if None. Bits do not depend
            on it, nor on which points share a call.
        losses: Where to write the recorded losses; another thread may look on while they come.
            What a run does not reach stays as it is. A new array that is +inf there if None.

    Raises:
        ValueError: The recorded steps do not rise from 0 to at most `problem.steps` - 1.
    """
    steps = rising(problem, record)
    kernel, variant = _ready(problem), variant_for(problem)
    lanes, dtype = variant.lanes, np.dtype(problem.dtype)
    points, threads = len(hyper), threads or machine.cpu_threads()
    padded = -(-points // lanes) * lanes
    shared = _shared(problem, steps, hyper)
    scores, ends = np.zeros((padded, 5)), np.full(padded, problem.steps, np.int64)
    if losses is None:
        losses = np.full((points, len(steps)), np.inf)
    # Enough tasks to even out runs that end early, but none so short that it would wait for Python.
    share = max(1, padded // lanes // (16 * threads)) * lanes

    def run(first):
        # Vectors that straddle two 64-byte lines of the cache would take twice as long.
        space = np.empty(variant.memory + 64, dtype)
        memory = space[-space.ctypes.data % 64 // dtype.itemsize :][: variant.memory]
        kernel(first, min(first + share, padded), *shared, memory, scores, ends, losses)
        pulse.tick()

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, range(0, padded, share)))
    first, final, tail_v, sum_v, sum_inverse_v = scores[:points].T.copy()
    length = ends[:points].astype(np.int32)
    return Curves(first, final, tail_v / problem.window, sum_v, sum_inverse_v, length, losses)
