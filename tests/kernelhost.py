"""The GPU kernel's own text, compiled by the machine's C++ compiler and run without a GPU.

`train` runs its host's part, in which one thread plays all the lanes of a group: the arithmetic,
operation by operation, with `std::fma` for the processor's fused multiply-add. `train_in_warps` runs
the part that a GPU gets, exchange between threads and queue included, with a thread of the operating
system for each of a GPU's (`warp.h`), which is slow.
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
    *("-pthread", "-shared", "-fPIC", "-x", "c++", "-"),
)

MEMORY = "static Chunk memory[1 << 14];\n"

PLAYED = """
static const Job *job;
extern "C" void played(const Job *told, int blocks) {
    job = told;
    play(blocks, THREADS, memory, sizeof memory, [] { train(*job); });
}
"""


@functools.cache
def built(code: Layout, resident: bool = False, warps: bool = False) -> ctypes.CDLL:
    """The library of one layout."""
    text = layout.SOURCE.read_text()
    if warps:
        # All threads of a block share what is static, as blocks take turns.
        text = text.replace("extern __shared__ Chunk memory[];", "")
        text = text.replace("__shared__ Score", "static Score")
        text = text.replace('extern "C" __global__', MEMORY + 'extern "C" __global__')
        text = (Path(__file__).parent / "warp.h").read_text() + text + PLAYED
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "tiny.so"
        subprocess.run(
            [*COMPILER, *code.constants(resident), "-o", str(library)],
            input=text.encode(),
            check=True,
        )
        return ctypes.CDLL(str(library))


def train(problem: Problem, hyper: np.ndarray, record=(), code: Layout | None = None) -> Curves:
    """What the GPU would return, by its arithmetic."""
    code = code or Layout.of(problem)
    return _called(problem, hyper, record, code, built(code).train)


def train_in_warps(
    problem: Problem, hyper: np.ndarray, record, code: Layout, blocks: int, resident: bool
) -> Curves:
    """What the GPU would return, by its threads."""
    library = built(code, resident, warps=True)
    return _called(problem, hyper, record, code, lambda job: library.played(job, blocks))


def _called(problem, hyper, record, code, call) -> Curves:
    steps = layout.rising(problem, record)
    mine = layout.point_arrays(problem, hyper, len(steps))
    mine["scores"][:], mine["losses"][:], mine["ends"][:] = np.nan, np.nan, -1
    job = layout.numbers(problem, len(hyper), len(steps), bool(np.any(hyper[:, 3])))
    every = mine | layout.shared_arrays(problem, code, steps)
    for name, array in every.items():
        setattr(job, name, array.ctypes.data)
    call(ctypes.byref(job))
    return layout.curves(problem, mine["scores"], mine["ends"], mine["losses"])


def tanh(x: np.ndarray) -> np.ndarray:
    """The kernel's tanh of some numbers."""
    code = Layout("tanh", str(x.dtype), 1, False, units=1, samples=1, threads=32)
    y, table = np.array(x), tanh_table(str(x.dtype))
    built(code).tanh_of(ctypes.c_void_p(y.ctypes.data), len(y), ctypes.c_void_p(table.ctypes.data))
    return y
