"""Tiny networks: one hidden layer, trained by the million, one network per grid point.

The network of width n and its loss over N samples are, in mean-field scaling,

    Z = X W1 / sqrt(n)      A = tanh(sqrt(2) Z) or sqrt(2) relu(Z) or Z
    F = (A W2 / sqrt(n)) / sqrt(n)      loss = mean((F - Y)^2) over all samples, before the step

trained by plain gradient descent with one learning rate per layer.

Source: Sohl-Dickstein 2024, arXiv:2402.06184. Departures: a run ends at its first loss that is not
finite (see `outcome`), and the sums have a stated order (see `kernels.contract`).
"""

import functools
import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from importlib import resources
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float64

from fractal_core import machine
from fractal_core.errors import Refused, require_known
from fractal_core.kernels.contract import CONTRACT, Curves, Problem
from fractal_core.outcome import WINDOW, Outcomes

Activation = Literal["tanh", "relu", "identity"]
Dtype = Literal["float64", "float32"]
Arrays = Literal["seeded", "full", "linear", "single"]

AXES = {
    "lr_input": "input layer learning rate",
    "lr_output": "output layer learning rate",
    "lr": "learning rate",
    "offset": "initial offset of the input weights",
    "drift": "drift of the input weights per step",
}
EXITS = {"nonfinite": np.inf, "1e12": 1e12}
GPU_BLOCK = 256
MAX_WIDTH = 32
MAX_ROWS = 2**20
MAX_STEPS = 10**7


@dataclass(frozen=True)
class TinyNetworks:
    """Settings of the tiny-network experiment.

    Args:
        activation: Of the hidden layer.
        width: Hidden units, and inputs.
        samples: Size of the data set.
        batch: Rows in a step's gradient, drawn with replacement; None takes all samples. The loss
            that is judged is over all samples either way.
        steps: Losses per run; the first is before any step.
        window: Last losses whose mean decides between trainable and not.
        dtype: Precision of the training.
        axes: The settings that x and y replace, two of `AXES`; `lr` is both learning rates.
        lr_input: Learning rate of the input layer, unless an axis moves it.
        lr_output: Learning rate of the output layer.
        offset: Added to every input weight once, before training.
        drift: Added to every input weight before every step, which is what the paper's code does
            where its text speaks of an offset.
        exit: When a run may end early: at its first loss that is not finite (exact), or once its
            loss is 1e12 times the first. The second has never changed a label in what was tried,
            but it is a rule of thumb; deep in a map of blown-up runs it saves up to half the work.
        arrays: `seeded` draws weights and data, standard normal, from the sweep's seed; `full`,
            `linear` and `single` are the paper's own (width 16; 272, 16 and 1 samples), and with
            them a batch of 16 for up to 1000 steps takes the paper's own rows.

    Raises:
        Refused: A setting is out of range, or two of them contradict each other.
    """

    activation: Activation = "tanh"
    width: int = 16
    samples: int = 272
    batch: int | None = None
    steps: int = 1000
    window: int = WINDOW
    dtype: Dtype = "float64"
    axes: tuple[str, str] = ("lr_input", "lr_output")
    lr_input: float = 1.0
    lr_output: float = 1.0
    offset: float = 0.0
    drift: float = 0.0
    exit: Literal["nonfinite", "1e12"] = "nonfinite"
    arrays: Arrays = "seeded"

    def __post_init__(self):
        require_known("activation", self.activation, get_args(Activation))
        require_known("dtype", self.dtype, get_args(Dtype))
        require_known("exit", self.exit, tuple(EXITS))
        require_known("arrays", self.arrays, get_args(Arrays))
        for axis in self.axes:
            require_known("axis", axis, tuple(AXES))
        self._require_distinct_axes()
        if not all(map(math.isfinite, (self.lr_input, self.lr_output, self.offset, self.drift))):
            raise Refused("learning rates, offset and drift must be finite numbers")
        if not 1 <= self.width <= MAX_WIDTH:
            raise Refused(
                f"a width of {self.width}; the kernels hold 1 to {MAX_WIDTH} hidden units"
            )
        if not (1 <= self.samples <= MAX_ROWS and 1 <= (self.batch or 1) <= MAX_ROWS):
            raise Refused(f"samples and batch must be at least 1 and at most {MAX_ROWS}")
        if self.batch == 0:
            raise Refused("batch must be at least 1, or none for all samples")
        if not 1 <= self.window < self.steps:
            raise Refused(
                f"{self.steps} steps are too few to judge by the last {self.window} losses; "
                f"train for at least {self.window + 1} steps or set a smaller window"
            )
        if self.steps > MAX_STEPS:
            raise Refused(f"{self.steps} steps; the most that a run may have are {MAX_STEPS}")
        if self.arrays != "seeded":
            shape = _paper()[f"{self.arrays}_inputs"].shape
            if (self.samples, self.width) != shape:
                raise Refused(
                    f"the paper's {self.arrays} arrays have {shape[0]} samples and width "
                    f"{shape[1]}; choose those, or --set arrays=seeded"
                )

    def _require_distinct_axes(self) -> None:
        moved = [
            name
            for axis in self.axes
            for name in (("lr_input", "lr_output") if axis == "lr" else (axis,))
        ]
        defaults = {f.name: f.default for f in fields(self)}
        for name in moved:
            if moved.count(name) > 1:
                raise Refused(f"both axes move {name}; choose two that do not overlap")
            if getattr(self, name) != defaults[name]:
                raise Refused(f"{name} is moved by an axis; do not set it as well")

    @property
    def precision(self) -> str:
        """In which axis values are used."""
        return self.dtype

    @property
    def other_dtype(self) -> str:
        """The other precision."""
        return "float32" if self.dtype == "float64" else "float64"

    @property
    def devices(self) -> tuple[str, ...]:
        """Kinds of device that it trains on, to the same bits."""
        return ("cuda", "cpu")

    @property
    def serial(self) -> bool:
        """It uses all threads: no sum is shared between them."""
        return False

    @property
    def block(self) -> int | None:
        """Units that fill a GPU many times over where there is one, or else follow from the map."""
        return GPU_BLOCK if machine.gpus() else None

    def label(self, axis: str) -> str:
        """The words for an axis in a figure."""
        return AXES[axis]

    def whole(self, axis: str) -> bool:
        """No axis takes whole numbers only."""
        return False

    def review(self, points: Float64[np.ndarray, "n 2"], seed: int) -> list[str]:
        """All that could be said is said when the settings are made."""
        return []

    def magnitude(self, axis: str, seed: int) -> float:
        """The size of what an axis is added to: the largest input weight, for offset and drift."""
        if axis not in ("offset", "drift"):
            return 0.0
        return float(np.abs(self.problem(seed).w1).max())

    def contract(self, seed: int) -> dict[str, str]:
        """Hash of the weights and data, the arithmetic, and where the minibatches come from."""
        problem = self.problem(seed)
        digest = hashlib.sha256()
        for array in (problem.w1, problem.w2, problem.inputs, problem.targets):
            digest.update(array.astype("<f8").tobytes())
        contract = {"arithmetic": CONTRACT}
        if problem.batch_index is not None:
            digest.update(problem.batch_index.astype("<i8").tobytes())
            contract["minibatches"] = self._stream()
        return contract | {"data_sha256": digest.hexdigest()}

    def _stream(self) -> str:
        stream = _paper()["minibatches"]
        if self.arrays == "seeded" or self.batch != stream.shape[1] or self.steps > len(stream):
            return "drawn from the seed"
        if self.steps == len(stream):
            return f"the paper's, for {self.steps} steps"
        return (
            f"the first {self.steps} of the paper's, which belong to a run of {len(stream)} steps"
        )

    def problem(self, seed: int) -> Problem:
        """The arrays that all runs of a sweep share, as the kernels take them."""
        return _problem(self, seed)

    def run(
        self,
        points: Float64[np.ndarray, "n 2"],
        *,
        seed: int,
        record: Sequence[int] = (),
    ) -> Outcomes:
        """Train one network per point, on the device of this process; see `sweep.Experiment.run`."""
        if record and not 0 <= min(record) <= max(record) < self.steps:
            raise Refused(f"only the losses of steps 0 to {self.steps - 1} can be recorded")
        started = time.perf_counter()
        train = _kernel(machine.device())
        curves = train(self.problem(seed), self.hyperparameters(points), record=record)
        each = (time.perf_counter() - started) / max(len(points), 1)
        return self.judge(curves, each)

    def judge(self, curves: Curves, each: float) -> Outcomes:
        """What runs came to, given what a kernel kept of them and the seconds that each took."""
        return Outcomes.judge(
            planned=self.steps,
            steps=curves.steps,
            first_loss=curves.first,
            final_loss=curves.final,
            tail_v=curves.tail_v,
            sum_v=curves.sum_v,
            sum_inverse_v=curves.sum_inverse_v,
            seconds=np.full(len(curves.steps), each),
            extras={"losses": curves.losses} if curves.losses.size else {},
        )

    def hyperparameters(self, points: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, "n 4"]:
        """lr_input, lr_output, offset and drift of every point: the axes over the settings."""
        columns = {
            name: np.full(len(points), getattr(self, name))
            for name in ("lr_input", "lr_output", "offset", "drift")
        }
        for axis, values in zip(self.axes, points.T, strict=True):
            for name in ("lr_input", "lr_output") if axis == "lr" else (axis,):
                columns[name] = values
        return np.stack(list(columns.values()), axis=1)


def _kernel(device: str) -> Callable[..., Curves]:
    """What trains on a kind of device; imported here, because it is large."""
    if device == "cuda":
        from fractal_core.kernels import cuda

        return cuda.train
    from fractal_core.kernels import cpu

    return cpu.train


@functools.cache
def _paper() -> dict[str, np.ndarray]:
    path = resources.files("fractal_core").joinpath("data/paper.npz")
    with path.open("rb") as file, np.load(file) as archive:
        return {name: archive[name] for name in archive.files}


@functools.lru_cache(maxsize=16)
def _problem(experiment: TinyNetworks, seed: int) -> Problem:
    width, samples = experiment.width, experiment.samples
    if experiment.arrays == "seeded":
        draw = np.random.default_rng([seed, 0]).standard_normal
        w1, w2 = draw((width, width)), draw(width)
        inputs, targets = draw((samples, width)), draw(samples)
    else:
        paper = _paper()
        w1, w2 = paper["w1"], paper["w2"]
        inputs = paper[f"{experiment.arrays}_inputs"]
        targets = paper[f"{experiment.arrays}_targets"]
    batch_index = None
    if experiment.batch is not None:
        if experiment._stream() == "drawn from the seed":
            stream = np.random.default_rng([seed, 1])
            batch_index = stream.integers(0, samples, (experiment.steps, experiment.batch))
        else:
            batch_index = _paper()["minibatches"][: experiment.steps].astype(np.int64)
    return Problem(
        inputs=inputs,
        targets=targets,
        w1=w1,
        w2=w2,
        activation=experiment.activation,
        batch_index=batch_index,
        dtype=experiment.dtype,
        steps=experiment.steps,
        window=experiment.window,
        ceiling=EXITS[experiment.exit],
    )
