"""How fast points are: the kernel against the paper's method, a tuned one, and PyTorch.

`paper` is a stand-in of our own for the way the paper's notebook works: one network's step under
`jit(vmap(...))`, called from Python once per step for all points, every loss kept. `tuned` is the
best we know to make of it: `lax.scan` over the steps on 16 points at a time, one thread per core.
`torch` is autograd over stacked weights, 256 points at a time.
"""

import importlib.util
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import get_args

import numpy as np

from fractal_core import machine
from fractal_core.bench.rounds import Rates, Work, matrix_peak, take_turns
from fractal_core.errors import Refused
from fractal_core.kernels.contract import Problem
from fractal_core.tiny import Activation, Dtype, TinyNetworks

Train = Callable[[], np.ndarray]
"""Trains some points and returns the loss of each before every step, (points, steps)."""

WORTHY = 0.02
"""Share of the matrix peak below which a stand-in for the paper's method is too slow to count."""


@dataclass(frozen=True)
class Case:
    """One way of training.

    Args:
        activation: Of the hidden layer.
        mode: `full`, `minibatch` or `single`.
        dtype: Precision.
    """

    activation: Activation
    mode: str
    dtype: Dtype

    def experiment(self, steps: int) -> TinyNetworks:
        """The paper's shapes: 272 samples, 16 for the identity, or a single one."""
        samples = {"single": 1}.get(self.mode, 16 if self.activation == "identity" else 272)
        return TinyNetworks(
            activation=self.activation,
            samples=samples,
            batch=16 if self.mode == "minibatch" else None,
            dtype=self.dtype,
            steps=steps,
        )


def cases() -> Iterator[Case]:
    """Every activation, batch mode and precision that is benchmarked."""
    modes = ("full", "minibatch", "single")
    ways = itertools.product(get_args(Activation), modes, get_args(Dtype))
    for activation, mode, dtype in ways:
        if (activation, mode) != ("identity", "minibatch"):
            yield Case(activation, mode, dtype)


def flops(problem: Problem) -> float:
    """Floating-point operations of one step of one network, a tanh counting as none."""
    samples, width = problem.inputs.shape
    batch = samples if problem.batch_index is None else problem.batch_index.shape[1]
    forward = 2 * width**2 + 2 * width + 4
    backward = 2 * width**2 + 2 * width + (5 * width if problem.activation != "identity" else width)
    again = 0 if problem.batch_index is None else batch * forward
    return samples * forward + again + batch * backward + 2 * (width**2 + width)


def points(n: int) -> np.ndarray:
    """Learning rates with which everything trains, so that every step of every point is executed."""
    return 10 ** np.random.default_rng(0).uniform(-3, -1, (n, 2))


def kernel(case: Case, seconds: float) -> Work:
    """This package's kernel, sized to take about `seconds`."""
    trial = case.experiment(50)
    where = points(2048)
    per_second = take_turns({"kernel": _kernel_work(trial, where)}, 1).median("kernel")
    steps = int(np.clip(per_second * seconds / len(where), 21, 20_000))
    return _kernel_work(case.experiment(steps), where)


def _kernel_work(experiment: TinyNetworks, where: np.ndarray) -> Work:
    def work() -> float:
        return float(experiment.run(where, seed=0).steps.sum())

    return work


def jax_step(problem: Problem):
    """One step of one network in JAX: weights and rates in, new weights and the loss out."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    x, y = (jnp.asarray(a, problem.dtype) for a in (problem.inputs, problem.targets))
    root = float(np.sqrt(problem.inputs.shape[1]))
    activate = {
        "tanh": lambda z: jnp.tanh(jnp.sqrt(jnp.asarray(2, z.dtype)) * z),
        "relu": lambda z: jnp.sqrt(jnp.asarray(2, z.dtype)) * jax.nn.relu(z),
        "identity": lambda z: z,
    }[problem.activation]

    def loss(weights, x, y):
        w1, w2 = weights
        return jnp.mean((activate(x @ w1 / root) @ w2 / root / root - y) ** 2)

    def step(weights, rates, rows):
        if rows is None:
            value, slopes = jax.value_and_grad(loss)(weights, x, y)
        else:
            value, slopes = loss(weights, x, y), jax.grad(loss)(weights, x[rows], y[rows])
        return tuple(w - r * g for w, r, g in zip(weights, rates, slopes, strict=True)), value

    return step


def _stacked(problem: Problem, where: np.ndarray):
    """Weights of many points, and their learning rates, as arrays of the problem's dtype."""
    weights = tuple(
        np.broadcast_to(w, (len(where), *w.shape)).astype(problem.dtype)
        for w in (problem.w1, problem.w2)
    )
    return weights, tuple(where.T.astype(problem.dtype))


def _batches(problem: Problem, steps: int):
    index = problem.batch_index
    return [None] * steps if index is None else [index[t % len(index)] for t in range(steps)]


def paper(case: Case, n: int, steps: int) -> Train:
    """`jit(vmap(step))` called once per step over the whole batch, losses kept."""
    import jax

    problem = case.experiment(21).problem(0)
    advance = jax.jit(jax.vmap(jax_step(problem), in_axes=(0, 0, None)))
    weights, rates = _stacked(problem, points(n))
    batches = _batches(problem, steps)

    def train() -> np.ndarray:
        state, losses = weights, []
        for rows in batches:
            state, loss = advance(state, rates, rows)
            losses.append(loss)
        return np.stack([np.asarray(loss) for loss in losses], axis=1)

    return train


def tuned(case: Case, n: int, steps: int, at_once: int = 16) -> Train:
    """`lax.scan` over the steps, a few points at a time, one thread per core."""
    import jax
    import jax.numpy as jnp

    problem = case.experiment(21).problem(0)
    step = jax.vmap(jax_step(problem), in_axes=(0, 0, None))
    batches = None if problem.batch_index is None else jnp.asarray(_batches(problem, steps))

    @jax.jit
    def scan(weights, rates):
        return jax.lax.scan(
            lambda state, rows: step(state, rates, rows), weights, batches, length=steps
        )[1]

    weights, rates = _stacked(problem, points(n))

    def part(first: int) -> np.ndarray:
        mine = slice(first, first + at_once)
        return np.asarray(scan(tuple(w[mine] for w in weights), tuple(r[mine] for r in rates)))

    def train() -> np.ndarray:
        with ThreadPoolExecutor(machine.cpu_threads()) as pool:
            return np.concatenate(list(pool.map(part, range(0, n, at_once))), axis=1).T

    return train


def torch_stacked(case: Case, n: int, steps: int) -> Train:
    """Autograd over the stacked weights of many networks, whose losses are summed."""
    import torch

    problem = case.experiment(21).problem(0)
    x, y = (torch.tensor(np.asarray(a, problem.dtype)) for a in (problem.inputs, problem.targets))
    root = float(np.sqrt(problem.inputs.shape[1]))
    activate = {
        "tanh": lambda z: torch.tanh(2**0.5 * z),
        "relu": lambda z: 2**0.5 * torch.relu(z),
        "identity": lambda z: z,
    }[problem.activation]
    weights, rates = _stacked(problem, points(n))
    start = [torch.tensor(w) for w in weights]
    rate1, rate2 = (torch.tensor(r)[:, None] for r in rates)
    batches = _batches(problem, steps)

    def losses(w1, w2, x, y):
        hidden = activate(x @ w1 / root)
        return (((hidden @ w2[:, :, None])[..., 0] / root / root - y) ** 2).mean(dim=1)

    def train() -> np.ndarray:
        w1, w2 = (w.clone().requires_grad_() for w in start)
        kept = []
        for rows in batches:
            loss = losses(w1, w2, x, y)
            kept.append(loss.detach())
            of_batch = loss if rows is None else losses(w1, w2, x[rows], y[rows])
            slope1, slope2 = torch.autograd.grad(of_batch.sum(), (w1, w2))
            with torch.no_grad():
                w1 -= rate1[:, :, None] * slope1
                w2 -= rate2 * slope2
        return torch.stack(kept, dim=1).numpy()

    return train


@dataclass(frozen=True)
class Result:
    """What was measured for one case; rates are executed point-steps per second."""

    case: Case
    rates: Rates
    flops: float

    def share_of_peak(self, name: str) -> float:
        """Median over the rounds of a contender's floating-point rate over the matrix peak's."""
        return self.rates.ratio(name, "peak")[1] * self.flops

    def void(self) -> bool:
        """Whether the stand-in for the paper's method was too slow to be compared with."""
        return self.case.dtype == "float64" and self.share_of_peak("paper") < WORTHY


def measure(case: Case, rounds: int, seconds: float) -> Result:
    """All contenders on one case, each turn taking about `seconds`.

    Raises:
        Refused: JAX, which two of the contenders need, is not installed.
    """
    if importlib.util.find_spec("jax") is None:
        raise Refused("the benchmark needs JAX: `uv sync --extra bench` installs it")
    contenders = {
        "kernel": kernel(case, seconds),
        "paper": sized(lambda steps: paper(case, 4096, steps), seconds),
        "tuned": sized(lambda steps: tuned(case, 512, steps), seconds),
        "torch": sized(lambda steps: torch_stacked(case, 256, steps), seconds),
        "peak": matrix_peak(case.dtype),
    }
    return Result(case, take_turns(contenders, rounds), flops(case.experiment(21).problem(0)))


def sized(build: Callable[[int], Train], seconds: float) -> Work:
    """A contender with so many steps that a turn takes about `seconds`."""

    def working(train: Train) -> Work:
        return lambda: float(train().size)

    trial = working(build(4))
    seconds_per_step = trial() / 4 / take_turns({"trial": trial}, 1).median("trial")
    return working(build(int(np.clip(seconds / seconds_per_step, 4, 5000))))
