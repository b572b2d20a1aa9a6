"""How a tiny network is laid out over the threads of a GPU, and what a call of the kernel is told.

Nothing here needs a GPU. `tiny.cu` is the kernel; this says with which constants it is compiled, and
packs a problem into the arrays and the structure that it takes. The layout changes no bit: it says
who computes a sum, never in which order.
"""

import ctypes
from dataclasses import dataclass, replace
from importlib import resources

import numpy as np
from jaxtyping import Float64, Int32

from fractal_core.kernels.contract import TANH, Curves, Problem, tanh_table
from fractal_core.outcome import V_MOST

SOURCE = resources.files("fractal_core").joinpath("kernels/tiny.cu")

LOAD_BYTES = 16
"""What a thread reads at a time; rows of inputs begin at multiples of it."""

HELD = 32
"""Weights that a thread holds at most, with as many gradients: half its registers in float64."""

SCORE_BYTES = {"float64": 72, "float32": 64}
"""What a run's account takes in shared memory."""


@dataclass(frozen=True)
class Layout:
    """Which code to compile.

    Args:
        activation: Of the hidden layer.
        dtype: Precision of the training.
        width: Hidden units, and inputs.
        minibatch: The gradient is over rows of its own.
        units: Hidden units of one thread, a power of two. A sample that is loaded once serves them
            all; with two of width 16, shared memory keeps up with the arithmetic of an H100.
        samples: Samples taken at a time: what one waits for, another fills.
        threads: Threads of a block, of which a processor of the GPU holds one.
    """

    activation: str
    dtype: str
    width: int
    minibatch: bool
    units: int
    samples: int
    threads: int

    @classmethod
    def choices(cls, problem: Problem) -> tuple["Layout", ...]:
        """The layouts for a problem, without spills all of them; first the one that promises most.

        That has as many units of a thread as its registers hold. With half of them half as many warps
        more fit, at width 16 in float64 12 instead of 8, in float32 24 instead of 16. Each has half the
        sums under way and reads as much for half the work; on an H100 16 and 27 % less are to be
        expected of them (`fractal bench code`), but another card may think otherwise.
        """
        most = cls.of(problem)
        if most.units == 1:
            return (most,)
        return most, replace(most, units=most.units // 2, threads=3 * most.threads // 2)

    @classmethod
    def of(cls, problem: Problem) -> "Layout":
        """The layout with as many units of a thread as its registers hold."""
        width = len(problem.w2)
        padded = 1 << (width - 1).bit_length()
        units = min(padded, 1 << (HELD // width).bit_length() - 1)
        return cls(
            activation=problem.activation,
            dtype=problem.dtype,
            width=width,
            minibatch=problem.batch_index is not None,
            units=units,
            samples=2 if width <= 16 else 1,
            threads=256 if problem.dtype == "float64" else 512,
        )

    @property
    def lanes(self) -> int:
        """Threads that train a point together."""
        return (1 << (self.width - 1).bit_length()) // self.units

    @property
    def groups(self) -> int:
        """Points that a block trains at a time."""
        return self.threads // self.lanes

    @property
    def stride(self) -> int:
        """Numbers from one row of inputs to the next."""
        chunk = LOAD_BYTES // np.dtype(self.dtype).itemsize
        return -(-self.width // chunk) * chunk

    def shared(self, samples: int) -> int:
        """Bytes of shared memory that a block takes beside its accounts.

        Args:
            samples: Those that it keeps there; 0 if they do not fit.
        """
        chunk = LOAD_BYTES // np.dtype(self.dtype).itemsize
        table = 0
        if self.activation == "tanh":
            recipe = TANH[self.dtype]
            table = -(-(int(recipe.limit * recipe.cells) + 1) // chunk) * chunk
        return (table + samples * (self.stride + 1)) * np.dtype(self.dtype).itemsize

    def resident(self, samples: int, room: int) -> bool:
        """Whether so many samples fit into a block's shared memory of `room` bytes."""
        return self.shared(samples) + self.groups * SCORE_BYTES[self.dtype] <= room

    def constants(self, resident: bool) -> tuple[str, ...]:
        """What the compiler is told, the same for a GPU and for a host.

        Args:
            resident: The samples are in shared memory.
        """
        recipe = TANH[self.dtype]
        odd = ", ".join(f"Real({value.hex()})" for value in recipe.odd)
        magic = 1.5 * 2.0 ** (52 if self.dtype == "float64" else 23) / recipe.cells
        named = {
            "REAL": "double" if self.dtype == "float64" else "float",
            "WIDTH": self.width,
            "LANES": self.lanes,
            "UNITS": self.units,
            "SAMPLES": self.samples,
            "THREADS": self.threads,
            "V_MOST": float(V_MOST),
            "CELLS": recipe.cells,
            "LIMIT": recipe.limit,
            "ODD": f"{{{odd}}}",
            "TERMS": recipe.terms,
            "MAGIC": magic,
            "MASK": f"{recipe.entries - 1}u",
        }
        chosen = {self.activation.upper(): True, "MINIBATCH": self.minibatch, "RESIDENT": resident}
        flags = (f"-D{name}" for name, so in chosen.items() if so)
        return *(f"-D{name}={value}" for name, value in named.items()), *flags


class Job(ctypes.Structure):
    """The `Job` of `tiny.cu`."""

    POINTERS = (
        *("hyper", "w1", "w2", "inputs", "targets", "table", "batches", "record"),
        *("scores", "losses", "ends", "queue"),
    )
    _fields_ = (
        *((name, ctypes.c_void_p) for name in POINTERS),
        *((n, ctypes.c_double) for n in ("ceiling", "inv_width", "scale", "inv_samples")),
        *((n, ctypes.c_int) for n in ("points", "samples", "batch", "steps", "window")),
        *((n, ctypes.c_int) for n in ("recorded", "drifting")),
    )


def numbers(problem: Problem, points: int, recorded: int, drifting: bool) -> Job:
    """A call's structure, its pointers still to be filled in."""
    inv_width, scale, inv_samples = map(float, problem.factors)
    return Job(
        ceiling=problem.ceiling,
        inv_width=inv_width,
        scale=scale,
        inv_samples=inv_samples,
        points=points,
        samples=len(problem.targets),
        batch=0 if problem.batch_index is None else problem.batch_index.shape[1],
        steps=problem.steps,
        window=problem.window,
        recorded=recorded,
        drifting=drifting,
    )


def shared_arrays(problem: Problem, layout: Layout, record: np.ndarray) -> dict[str, np.ndarray]:
    """What all points of a problem share, by the names of `Job`."""
    real = np.dtype(problem.dtype)
    inputs = np.zeros((len(problem.targets), layout.stride), real)
    inputs[:, : layout.width] = problem.scaled
    batches = np.zeros(1) if problem.batch_index is None else problem.batch_index
    return {
        "w1": np.array(problem.w1, real, order="C"),
        "w2": np.array(problem.w2, real),
        "inputs": inputs,
        "targets": np.array(problem.targets, real),
        "table": tanh_table(problem.dtype),
        "batches": np.array(batches, np.int32, order="C"),
        "record": np.array(record, np.int32),
    }


def point_arrays(
    problem: Problem, hyper: Float64[np.ndarray, "points 4"], recorded: int
) -> dict[str, np.ndarray]:
    """What belongs to the points of a call, to read and to write, by the names of `Job`."""
    return {
        "hyper": np.array(hyper, problem.dtype, order="C"),
        "scores": np.empty((len(hyper), 5)),
        "losses": np.empty((len(hyper), recorded)),
        "ends": np.empty(len(hyper), np.int32),
        "queue": np.zeros(1, np.int32),
    }


def curves(
    problem: Problem,
    scores: Float64[np.ndarray, "points 5"],
    ends: Int32[np.ndarray, " points"],
    losses: Float64[np.ndarray, "points recorded"],
) -> Curves:
    """What the kernel wrote, as every kernel returns it."""
    first, final, tail_v, sum_v, sum_inverse_v = scores.T.copy()
    return Curves(first, final, tail_v / problem.window, sum_v, sum_inverse_v, ends, losses)
