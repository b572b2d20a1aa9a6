"""The GPU kernel without a GPU: its arithmetic on this processor, its machine code for three others."""

from dataclasses import replace
from math import inf

import kernelhost
import numpy as np
import pytest
from test_contract import windows
from test_kernels import ACTIVATIONS, DTYPES, assert_same, points_of, problem_of

from fractal_core.kernels import cpu
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
