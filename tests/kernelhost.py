"""The GPU kernel's own text, compiled by the machine's C++ compiler and run without a GPU.

One thread plays all the lanes of a group, and `std::fma` is the processor's fused multiply-add. The
file is the one that a GPU gets, so that what is run here is its arithmetic, operation by operation;
what is not is its exchange between threads and its queue.
"""

import ctypes
import functools
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from fractal_core.kernels import layout
from fractal_core.kernels.contract import Curves, Problem, tanh_table
from fractal_core.kernels.layout import Layout

COMPILER = (
    *("g++", "-std=c++17", "-O2", "-march=native", "-ffp-contract=off", "-Wno-unknown-pragmas"),
    *("-shared", "-fPIC", "-x", "c++", "-"),
)


@functools.cache
def built(code: Layout) -> ctypes.CDLL:
    """The library of one layout."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "tiny.so"
        subprocess.run(
            [*COMPILER, *code.constants(), "-o", str(library)],
            input=layout.SOURCE.read_bytes(),
            check=True,
        )
        return ctypes.CDLL(str(library))


def train(problem: Problem, hyper: np.ndarray, record=(), code: Layout | None = None) -> Curves:
    """What the GPU would return."""
    code = code or Layout.of(problem)
    steps = layout.rising(problem, record)
    mine = layout.point_arrays(problem, hyper, len(steps))
    every = mine | layout.shared_arrays(problem, code, steps)
    job = layout.numbers(problem, len(hyper), len(steps), bool(np.any(hyper[:, 3])))
    for name, array in every.items():
        setattr(job, name, array.ctypes.data)
    built(code).train(ctypes.byref(job))
    return layout.curves(problem, mine["scores"], mine["ends"], mine["losses"])


def tanh(x: np.ndarray) -> np.ndarray:
    """The kernel's tanh of some numbers."""
    code = Layout("tanh", str(x.dtype), 1, False, units=1, samples=1, threads=32)
    y = np.array(x)
    table = tanh_table(str(x.dtype))
    built(code).tanh_of(ctypes.c_void_p(y.ctypes.data), len(y), ctypes.c_void_p(table.ctypes.data))
    return y
