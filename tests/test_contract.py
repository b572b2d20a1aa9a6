"""The numerical contract: these bits, on any machine, until it gets another name.

`python tests/test_contract.py` writes the digests anew, for a change of the contract that is meant.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fractal_core import TinyNetworks
from fractal_core.experiments import GOLDEN, PRESETS
from fractal_core.kernels.contract import CONTRACT

DATA = Path(__file__).parent / "data"
DIGESTS = DATA / "contract.json"


def windows() -> Iterator[tuple[str, TinyNetworks, np.ndarray]]:
    """Every golden window at its own points, and every preset and precision besides.

    Golden points are read, and the further ones come from `linspace`, which every machine computes
    alike; powers are not.
    """
    for name, window in GOLDEN.items():
        golden = np.load(DATA / f"{name}.npz")
        yield name, window.experiment, cross(golden["x"], golden["y"])
    for name, preset in PRESETS.items():
        for dtype in ("float64", "float32"):
            experiment = replace(preset.experiment, steps=100, dtype=dtype)
            axes = np.linspace(*preset.x, 12), np.linspace(0, 2 * preset.y[1], 16)
            yield f"{name}-{dtype}", experiment, cross(*axes)
    early = replace(PRESETS["tanh"].experiment, steps=100, exit="1e12")
    yield "exit-1e12", early, cross(np.linspace(1, 1e4, 12), np.linspace(1, 1e4, 16))


def cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.stack([grid.ravel() for grid in np.meshgrid(x, y)], axis=1)


def digest(experiment: TinyNetworks, points: np.ndarray) -> str:
    """SHA-256 of outcomes, measures, tail losses and steps, as little-endian bytes."""
    outcomes = experiment.run(points, seed=0)
    sha = hashlib.sha256(outcomes.outcome.tobytes())
    for array in (outcomes.measure, outcomes.tail_loss):
        sha.update(array.astype("<f8").tobytes())
    sha.update(outcomes.steps.astype("<i4").tobytes())
    return sha.hexdigest()


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_windows_are_where_the_published_code_was_run(name):
    """Its points, but for what a power of ten may differ by on another machine, and its steps."""
    golden = np.load(DATA / f"{name}.npz")
    points = cross(golden["x"], golden["y"])
    np.testing.assert_allclose(GOLDEN[name].points(), points, rtol=1e-15)
    assert GOLDEN[name].steps == golden["steps"]


def test_the_contract_kept_its_name():
    """Digests belong to one contract; a new one needs new digests, and all old runs are refused."""
    assert json.loads(DIGESTS.read_text())["contract"] == CONTRACT


@pytest.mark.parametrize(
    ("name", "experiment", "points"), list(windows()), ids=lambda v: str(v)[:24]
)
def test_bits_are_those_of_the_contract(name, experiment, points):
    """One changed bit anywhere in a window changes its digest."""
    assert digest(experiment, points) == json.loads(DIGESTS.read_text())["windows"][name]


@pytest.mark.parametrize("cpu", ["haswell", "skylake-avx512"])
def test_bits_are_those_of_other_processors(cpu, tmp_path):
    """Registers of 256 or of 512 bits: code compiled for another processor gives the same bits."""
    features = {
        "haswell": "+avx,+avx2,+fma,+bmi,+bmi2,+f16c",
        "skylake-avx512": "+avx,+avx2,+fma,+bmi,+bmi2,+f16c,+avx512f,+avx512dq,+avx512vl,+avx512bw",
    }[cpu]
    code = (
        "import test_contract as t\n"
        "for name, experiment, points in t.windows():\n"
        "    if name in ('relu-float32', 'minibatch-float64', 'linear_overview_48'):\n"
        "        print(name, t.digest(experiment, points))"
    )
    missing = [f for f in features.split(",") if f[1:] not in processor_flags()]
    if missing:  # its code would be an illegal instruction here
        pytest.skip(f"this processor cannot run code with {', '.join(missing)}")
    answer = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        env=os.environ
        | {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    found = dict(line.split() for line in answer.stdout.splitlines())
    assert len(found) == 3
    assert found.items() <= json.loads(DIGESTS.read_text())["windows"].items()


def processor_flags() -> set[str]:
    """What the processor says it can do, in the names that LLVM uses."""
    from llvmlite import binding

    return {name for name, there in binding.get_host_cpu_features().items() if there}


def test_ending_early_changes_no_label():
    """`1e12` ends runs sooner than `nonfinite`; on the golden overview and tile no label differs."""
    for name in ("tanh_overview_48", "tanh_tile_48"):
        golden = np.load(DATA / f"{name}.npz")
        exact = replace(PRESETS["tanh"].experiment, steps=int(golden["steps"]))
        points = cross(golden["x"], golden["y"])
        full, early = (e.run(points, seed=0) for e in (exact, replace(exact, exit="1e12")))
        assert np.array_equal(full.outcome, early.outcome)
        assert early.steps.sum() < full.steps.sum()


if __name__ == "__main__":
    found = {name: digest(experiment, points) for name, experiment, points in windows()}
    DIGESTS.write_text(json.dumps({"contract": CONTRACT, "windows": found}, indent=1) + "\n")
