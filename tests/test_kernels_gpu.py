"""The GPU kernel without a GPU: its arithmetic on this processor, its machine code for three others."""

from dataclasses import replace
from math import inf

import kernelhost
import numpy as np
import pytest
from test_contract import windows
from test_kernels import (
    ACTIVATIONS,
    DTYPES,
    assert_same,
    points_of,
    problem_of,
    sample_arguments,
    tanh_of,
)

from fractal_core import Refused, machine
from fractal_core.bench import machinecode
from fractal_core.kernels import cpu, cuda
from fractal_core.kernels.contract import TANH
from fractal_core.kernels.layout import Layout


def assert_equal_here(problem, hyper, record=(), code=None):
    """The text of the GPU kernel and the CPU kernel give the same bits."""
    wanted = cpu.train(problem, hyper, record=record)
    assert_same(kernelhost.train(problem, hyper, record, code), wanted)
    return wanted


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [None, 5])
def test_every_loss_has_the_bits_of_the_cpu_kernel(activation, dtype, batch):
    """Runs that end, runs with offsets and runs with drifts, at an odd number of samples."""
    problem = problem_of(activation, dtype, width=16, samples=19, steps=30, batch=batch, window=7)
    hyper = points_of(60, high=3.5)
    hyper[:6, 2] = np.linspace(-1, 1, 6)
    hyper[3:9, 3] = np.linspace(-0.02, 0.02, 6)
    hyper[9, :2] = 1e20 if dtype == "float32" else 1e160
    wanted = assert_equal_here(problem, hyper, range(30))
    assert set(wanted.steps) > {30}


@pytest.mark.parametrize("width", [1, 3, 8, 11, 32])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_width_has_the_bits_of_the_cpu_kernel(width, dtype):
    """Also widths that leave some of a group's units unused."""
    problem = problem_of(dtype=dtype, width=width, samples=5, steps=8)
    assert_equal_here(problem, points_of(8), range(8))


@pytest.mark.parametrize(
    ("name", "experiment", "points"), list(windows()), ids=lambda v: str(v)[:24]
)
def test_golden_windows_have_the_bits_of_the_cpu_kernel(name, experiment, points):
    """Points spread over every golden window, and over every preset in both precisions."""
    hyper = experiment.hyperparameters(points[:: len(points) // 12])
    assert_equal_here(experiment.problem(0), hyper)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_layout_changes_no_bit(dtype):
    """Units of a thread and samples at a time say who adds, not in which order."""
    problem = problem_of(dtype=dtype, width=13, samples=11, steps=12)
    code = Layout.of(problem)
    for units, samples in [(1, 3), (4, 1), (16, 2)]:
        assert_equal_here(problem, points_of(9), code=replace(code, units=units, samples=samples))


def test_ends_and_edges_are_those_of_the_cpu_kernel():
    """A ceiling, a first loss that is not finite, one of zero, one sample, recorded steps."""
    problem = problem_of("relu", steps=40)
    assert_equal_here(replace(problem, ceiling=1e3), points_of(40, high=2), [0, 7, 39])
    huge = np.array([[0.1, 0.1, 1e200, 0.0], [0.1, 0.1, 0.0, 0.0]])
    assert assert_equal_here(problem_of("identity"), huge, [0, 5]).first[0] == inf
    still = replace(problem_of(), inputs=np.zeros((5, 3)), targets=np.zeros(5))
    assert_equal_here(still, points_of(2))
    assert_equal_here(problem_of(samples=1, steps=5), points_of(3), range(5))


def test_tanh_is_that_of_the_cpu_kernel():
    """For arguments of every size, at every edge, infinite and nan."""
    for dtype in DTYPES:
        info, limit = np.finfo(dtype), TANH[dtype].limit
        near = np.linspace(limit - 1e-3, limit + 1e-3, 2001, dtype=dtype)
        odd = np.array([0, info.tiny, info.max, np.inf, np.nan, limit], dtype)
        x = np.concatenate([sample_arguments(dtype), near, odd])
        x = np.concatenate([x, -x])
        np.testing.assert_array_equal(kernelhost.tanh(x), tanh_of(dtype)(x))


# Its machine code


@pytest.mark.parametrize("arch", machinecode.ARCHS)
@pytest.mark.parametrize(
    ("activation", "dtype", "batch", "registers"),
    [
        ("tanh", "float64", None, 255),
        ("tanh", "float32", None, 128),
        ("tanh", "float64", 16, 255),
        ("relu", "float64", None, 255),
        ("identity", "float32", None, 128),
    ],
)
def test_the_machine_code_is_what_the_contract_says(arch, activation, dtype, batch, registers):
    """Nothing is spilled, a processor holds the warps it should, and no operation is added or fused."""
    problem = problem_of(activation, dtype, width=16, samples=272, batch=batch)
    found = machinecode.report(Layout.of(problem), arch)
    print(found)
    assert found.spilled == 0
    assert found.registers <= registers
    assert found.registers * found.code.threads <= 2**16
    if batch is None:
        assert found.loop == machinecode.wanted(found.code)


@pytest.mark.parametrize("width", [1, 8, 24, 32])
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_width_is_spilled(width, dtype):
    """Weights and gradients of every width stay in registers on an H100."""
    found = machinecode.report(Layout.of(problem_of(dtype=dtype, width=width, batch=3)), "sm_90")
    assert found.spilled == 0


def test_the_bound_of_an_h100():
    """What its arithmetic allows at the clock that it sustains is well above what is asked of it."""
    for dtype, asked in [("float64", 55e6), ("float32", 95e6)]:
        code = Layout.of(problem_of(dtype=dtype, width=16))
        assert machinecode.report(code, "sm_90").bound(272, 132, 1.755e9) > asked


def test_what_does_not_fit_stays_in_global_memory():
    """Samples that are too many for a processor's memory are read from the GPU's; tables always fit."""
    code = Layout.of(problem_of(width=16))
    assert code.resident(272, 227 * 2**10)
    assert not code.resident(4000, 227 * 2**10)
    assert code.resident(0, 64 * 2**10)
    assert cuda.binary(code, False, "sm_90").code != cuda.binary(code, True, "sm_90").code


# What can be said where there is no GPU


def test_long_calls_are_cut():
    """A launch fills the GPU, and ends before it would look like one that hangs."""
    problem = problem_of(width=16, samples=272, steps=500)
    assert cuda.at_once(problem, 10**6, 0, 4000) == pytest.approx(115_000, rel=0.1)
    assert cuda.at_once(problem, 50, 0, 4000) == 4000
    assert cuda.at_once(replace(problem, steps=10**6), 10**6, 0, 4000) == 4000
    assert cuda.at_once(problem, 10**6, 10**4, 4000) == 2**26 // 10**4


@pytest.mark.skipif(bool(machine.gpus()), reason="says what happens where there is no GPU")
def test_without_a_gpu_training_there_is_refused():
    """In one sentence that says what to do instead."""
    with pytest.raises(Refused, match="--devices cpu"):
        cuda.train(problem_of(), points_of(1))
