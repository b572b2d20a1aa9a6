"""The GPU kernel on the GPU: the CPU's bits, its rate, and what else that card can be made to do.

`peak` is what the card really multiplies and adds, with nothing else to do. `vmap` is the stand-in for
the paper's method (see `bench.tiny`) and `compiled` a step written out by hand under `torch.compile`;
both train as many points at a time as the card likes. Rates are executed point-steps per second of wall
time, from learning rates in memory to sums in memory.
"""

import ctypes
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace

import numpy as np

from fractal_core.bench import tiny
from fractal_core.bench.rounds import Work, take_turns
from fractal_core.bench.tiny import Case, Train
from fractal_core.experiments import GOLDEN, PRESETS
from fractal_core.kernels import cpu, cuda
from fractal_core.kernels.contract import Curves, Problem
from fractal_core.kernels.layout import Layout
from fractal_core.plane import Region
from fractal_core.tiny import TinyNetworks

AT_ONCE = {"compiled": 8192, "vmap": 16_384}
"""Points that the others train at a time: enough that no launch is waited for."""

CHAINS, PEAK_THREADS = 16, 512

PEAK = f"""
struct Told {{ REAL *out; int rounds; }};
extern "C" __global__ void peak(const __grid_constant__ Told told) {{
    REAL chain[{CHAINS}], a = REAL(threadIdx.x) * REAL(1e-9), b = REAL(0.999);
#pragma unroll
    for (int i = 0; i < {CHAINS}; ++i) chain[i] = REAL(i);
#pragma unroll 1
    for (int round = 0; round < told.rounds; ++round)
#pragma unroll
        for (int i = 0; i < {CHAINS}; ++i) chain[i] = FMA(chain[i], b, a);
    REAL sum = 0;
#pragma unroll
    for (int i = 0; i < {CHAINS}; ++i) sum += chain[i];
    if (sum == REAL(-1)) *told.out = sum;  // never, but the compiler cannot know
}}
"""


class _Told(ctypes.Structure):
    _fields_ = (("out", ctypes.c_void_p), ("rounds", ctypes.c_int))


@dataclass(frozen=True)
class Equality:
    """Whether a condition has the same bits on both devices.

    Args:
        name: Of the golden window, or of the preset with the precision.
        points: How many were compared.
        ended: How many of them ended early.
        differing: How many differ, in any bit of anything that is kept of them.
    """

    name: str
    points: int
    ended: int
    differing: int


def equalities(points: int, steps: int) -> Iterator[Equality]:
    """Compare the kernels on the golden windows, and on random points of every condition.

    Of a golden window every point is compared, at its own steps; all of them take two cores of a CPU
    half a minute. Of the random points half are from the overview and half from the published
    window, in both precisions. Some losses of every run are compared beside its sums.
    """
    for name, window in GOLDEN.items():
        yield _compared(name, window.experiment, window.points())
    draw = np.random.default_rng(0)
    for name, preset in PRESETS.items():
        windows = [preset.region(published, 2, 2) for published in (False, True)]
        where = 10 ** np.concatenate([_inside(draw, region, points // 2) for region in windows])
        for dtype in ("float64", "float32"):
            experiment = replace(preset.experiment, dtype=dtype, steps=steps)
            yield _compared(f"{name}-{dtype}", experiment, where)


def _compared(name: str, experiment: TinyNetworks, where: np.ndarray) -> Equality:
    """Both kernels at the same points of an experiment."""
    problem, hyper = experiment.problem(0), experiment.hyperparameters(where)
    record = [0, problem.steps // 2, problem.steps - 1]
    here = cpu.train(problem, hyper, record=record)
    there = cuda.train(problem, hyper, record=record)
    ended = int(np.sum(here.steps < problem.steps))
    return Equality(name, len(hyper), ended, differing(here, there))


def _inside(draw: np.random.Generator, region: Region, count: int) -> np.ndarray:
    """Random points of a window, as powers of ten."""
    low = np.log10([region.x.low, region.y.low])
    high = np.log10([region.x.high, region.y.high])
    return draw.uniform(low, high, (count, 2))


def differing(one: Curves, other: Curves) -> int:
    """Points that differ in any bit of anything that is kept of them."""
    found = np.zeros(len(one.first), bool)
    for field in fields(one):
        a, b = (np.ascontiguousarray(getattr(curves, field.name)) for curves in (one, other))
        rows = (len(found), -1)
        found |= (a.reshape(rows).view(np.uint8) != b.reshape(rows).view(np.uint8)).any(axis=1)
    return int(found.sum())


def peak(dtype: str, seconds: float) -> Work:
    """Floating-point operations of chains of fused multiply-adds that depend on nothing else."""
    gpu = cuda.gpu()
    gpu.enter()
    real, fma = ("double", "__fma_rn") if dtype == "float64" else ("float", "__fmaf_rn")
    code = cuda.compiled(PEAK.encode(), [f"-DREAL={real}", f"-DFMA={fma}"], gpu.arch).code
    function = gpu.function(code, b"peak", 0)
    blocks = 4 * gpu.processors
    each = 2.0 * CHAINS * PEAK_THREADS * blocks

    def work(rounds: int) -> float:
        with cuda.Stream(gpu, {}) as stream:
            stream.launch(function, blocks, PEAK_THREADS, 0, _Told(None, rounds))
            stream.wait()
        return each * rounds

    per_second = take_turns({"peak": lambda: work(10_000)}, 1).median("peak")
    rounds = int(np.clip(per_second * seconds / each, 1000, 10**8))
    return lambda: work(rounds)


def kernel(case: Case, seconds: float, code: Layout | None = None) -> Work:
    """This package's kernel on enough points to fill the card many times, for about `seconds`."""
    problem = case.experiment(50).problem(0)
    code = code or cuda.quickest(problem)
    where = tiny.points(16 * cuda.gpu().processors * code.groups)
    hyper = case.experiment(50).hyperparameters(where)
    per_second = take_turns({"kernel": _work(problem, hyper, code)}, 1).median("kernel")
    steps = int(np.clip(per_second * seconds / len(where), 50, 5000))
    return _work(case.experiment(steps).problem(0), hyper, code)


def _work(problem: Problem, hyper: np.ndarray, code: Layout) -> Work:
    def work() -> float:
        return float(cuda.train(problem, hyper, code=code).steps.sum())

    return work


def layouts(problem: Problem) -> list[Layout]:
    """The layouts of a problem that a card chooses from, and others that it might like better."""
    choices = Layout.choices(problem)
    if choices[0].width != 16:
        return [*choices]
    others = {
        "float64": [(1, 4, 256), (2, 1, 256)],
        "float32": [(2, 4, 384), (4, 2, 256)],
    }[problem.dtype]
    return [*choices, *(replace(choices[0], units=u, samples=s, threads=t) for u, s, t in others)]


def compiled(case: Case, n: int, steps: int, device: str = "cuda", eager: bool = False) -> Train:
    """A step of many networks with its gradient written out by hand, under `torch.compile`."""
    import torch

    experiment = case.experiment(21)
    problem = experiment.problem(0)
    dtype = getattr(torch, problem.dtype)
    width = experiment.width
    gain = (2**0.5 if problem.activation != "identity" else 1.0) / width**0.5
    x = torch.tensor(problem.inputs * gain, dtype=dtype, device=device)
    y = torch.tensor(problem.targets, dtype=dtype, device=device)
    (w1, w2), rates = tiny._stacked(problem, tiny.points(n))
    start = [torch.tensor(w, device=device) for w in (w1, w2)]
    rate1, rate2 = (torch.tensor(rate, device=device)[:, None] for rate in rates)
    activate = {"tanh": torch.tanh, "relu": torch.relu, "identity": lambda u: u}[problem.activation]

    def slope(a):
        if problem.activation == "tanh":
            return 1 - a * a
        return (a > 0).to(dtype) if problem.activation == "relu" else torch.ones_like(a)

    def step(w1, w2, batch):
        a = activate(x @ w1)
        r = (a @ w2[:, :, None])[..., 0] / width - y
        loss = (r * r).mean(dim=1)
        rows = x
        if batch is not None:
            a, r, rows = a[:, batch], r[:, batch], x[batch]
        e = r * (2 / (r.shape[1] * width))
        slope2 = (e[:, None, :] @ a)[:, 0]
        slope1 = rows.T @ (e[:, :, None] * w2[:, None, :] * slope(a))
        return w1 - rate1[:, :, None] * slope1, w2 - rate2 * slope2, loss

    advance = step if eager else torch.compile(step)
    batches = [
        None if rows is None else torch.tensor(rows, device=device)
        for rows in tiny._batches(problem, steps)
    ]

    def train() -> np.ndarray:
        w1, w2 = start
        kept = []
        with torch.no_grad():
            for rows in batches:
                w1, w2, loss = advance(w1, w2, rows)
                kept.append(loss)
        return torch.stack(kept, dim=1).cpu().numpy()

    return train


@dataclass(frozen=True)
class Result(tiny.Result):
    """The same on the GPU, and the rates of other layouts of the kernel."""

    layouts: dict[str, float]

    def report(self) -> dict:
        """All of it as plain JSON data."""
        others = [name for name in self.rates.by_name if name not in ("kernel", "peak")]
        return {
            "case": "-".join(asdict(self.case).values()),
            "flops_per_point_step": self.flops,
            "rates": self.rates.by_name,
            "share_of_peak": self.share_of_peak("kernel"),
            "times_faster": {who: self.rates.ratio("kernel", who) for who in others},
            "layouts": self.layouts,
        }


def measure(case: Case, rounds: int, seconds: float) -> Result:
    """All contenders on one case but those of `left_out`, each turn taking about `seconds`."""
    problem = case.experiment(50).problem(0)
    contenders = {
        "kernel": kernel(case, seconds),
        "cpu": tiny.kernel(case, seconds),
        "compiled": tiny.sized(lambda n: compiled(case, AT_ONCE["compiled"], n), seconds),
        "peak": peak(case.dtype, seconds),
    }
    if "vmap" not in left_out():
        contenders["vmap"] = tiny.sized(lambda n: tiny.paper(case, AT_ONCE["vmap"], n), seconds)
    rates = take_turns(contenders, rounds)
    others = {
        f"{code.units} units, {code.samples} samples, {code.threads} threads": take_turns(
            {"kernel": kernel(case, seconds, code)}, 1
        ).median("kernel")
        for code in layouts(problem)
    }
    return Result(case, rates, tiny.flops(problem), others)


def left_out() -> dict[str, str]:
    """Contenders that cannot take part here, each with the reason and the remedy."""
    if jax_sees_a_gpu():
        return {}
    # The extra `bench` has a JAX for processors; CUDA 13 is that of torch and NVRTC.
    return {
        "vmap": "JAX sees no GPU here, so jit(vmap(step)) is left out; "
        "`uv run --with 'jax[cuda13]' fractal bench ...` adds it"
    }


def jax_sees_a_gpu() -> bool:
    """Whether JAX is installed with what it takes to use this card."""
    if importlib.util.find_spec("jax") is None:
        return False
    # It would take most of the card's memory for itself, and the others need some.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    return jax.default_backend() == "gpu"
