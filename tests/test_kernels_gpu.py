"""The GPU kernel without a GPU: its arithmetic and its launches on this processor, its machine code."""

import functools
import json
from dataclasses import replace
from math import inf
from types import SimpleNamespace

import fakegpu
import kernelhost
import numpy as np
import pytest
from cuda.bindings import nvrtc
from cuda.bindings.driver import CUresult
from fakegpu import machine_code
from test_contract import DIGESTS, digest, windows
from test_kernels import (
    ACTIVATIONS,
    DTYPES,
    assert_same,
    points_of,
    problem_of,
    sample_arguments,
    subset,
    tanh_of,
)

from fractal_core import PRESETS, Refused, TinyNetworks, machine, pulse, worker
from fractal_core.bench import cuda as bench_cuda
from fractal_core.bench import machinecode, tiny
from fractal_core.bench.rounds import Rates
from fractal_core.commands.bench import bench
from fractal_core.experiments import GOLDEN
from fractal_core.kernels import cpu, cuda
from fractal_core.kernels.contract import TANH
from fractal_core.kernels.layout import SOURCE, Layout
from fractal_core.sweep import shared_out


@pytest.fixture(params=["host", pytest.param("gpu", marks=pytest.mark.gpu)])
def equal(request):
    """Asserts that the GPU kernel, on this processor or on a GPU, gives the bits of the CPU kernel."""
    train = {"host": kernelhost.train, "gpu": cuda.train}[request.param]

    def assert_equal(problem, hyper, record=(), code=None):
        wanted = cpu.train(problem, hyper, record=record)
        assert_same(train(problem, hyper, record, code), wanted)
        return wanted

    return assert_equal


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [None, 5])
def test_every_loss_has_the_bits_of_the_cpu_kernel(equal, activation, dtype, batch):
    """Runs that end, runs with offsets and runs with drifts, at an odd number of samples."""
    problem = problem_of(activation, dtype, width=16, samples=19, steps=30, batch=batch, window=7)
    hyper = points_of(60, high=3.5)
    hyper[:6, 2] = np.linspace(-1, 1, 6)
    hyper[3:9, 3] = np.linspace(-0.02, 0.02, 6)
    hyper[9, :2] = 1e20 if dtype == "float32" else 1e160
    wanted = equal(problem, hyper, range(30))
    assert set(wanted.steps) > {30}


@pytest.mark.parametrize("width", [1, 3, 8, 11, 32])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_width_has_the_bits_of_the_cpu_kernel(equal, width, dtype):
    """Also widths that leave some of a group's units unused."""
    problem = problem_of(dtype=dtype, width=width, samples=5, steps=8)
    equal(problem, points_of(8), range(8))


@pytest.mark.parametrize(
    ("name", "experiment", "points"), list(windows()), ids=lambda v: str(v)[:24]
)
def test_golden_windows_have_the_bits_of_the_cpu_kernel(equal, name, experiment, points):
    """Points spread over every golden window, and over every preset in both precisions."""
    hyper = experiment.hyperparameters(points[:: len(points) // 12])
    equal(experiment.problem(0), hyper)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_layout_changes_no_bit(equal, dtype):
    """Units of a thread and samples at a time say who adds, not in which order."""
    problem = problem_of(dtype=dtype, width=13, samples=11, steps=12)
    code = Layout.of(problem)
    for units, samples in [(1, 3), (4, 1), (16, 2)]:
        equal(problem, points_of(9), code=replace(code, units=units, samples=samples))


def test_ends_and_edges_are_those_of_the_cpu_kernel(equal):
    """A ceiling, a first loss that is not finite, one of zero, one sample, recorded steps."""
    problem = problem_of("relu", steps=40)
    equal(replace(problem, ceiling=1e3), points_of(40, high=2), [0, 7, 39])
    huge = np.array([[0.1, 0.1, 1e200, 0.0], [0.1, 0.1, 0.0, 0.0]])
    assert equal(problem_of("identity"), huge, [0, 5]).first[0] == inf
    still = replace(problem_of(), inputs=np.zeros((5, 3)), targets=np.zeros(5))
    equal(still, points_of(2))
    equal(problem_of(samples=1, steps=5), points_of(3), range(5))


def test_tanh_is_that_of_the_cpu_kernel():
    """For arguments of every size, at every edge, infinite and nan."""
    for dtype in DTYPES:
        info, limit = np.finfo(dtype), TANH[dtype].limit
        near = np.linspace(limit - 1e-3, limit + 1e-3, 2001, dtype=dtype)
        odd = np.array([0, info.tiny, info.max, np.inf, np.nan, limit], dtype)
        x = np.concatenate([sample_arguments(dtype), near, odd])
        x = np.concatenate([x, -x])
        np.testing.assert_array_equal(kernelhost.tanh(x), tanh_of(dtype)(x))


@pytest.mark.parametrize(
    ("activation", "dtype", "batch", "width", "points", "blocks", "resident"),
    [
        ("tanh", "float64", None, 16, 21, 1, True),
        ("relu", "float32", 3, 16, 21, 2, True),
        ("tanh", "float64", 3, 5, 70, 2, False),
        ("tanh", "float32", None, 32, 5, 1, True),
        ("relu", "float64", None, 16, 3, 3, True),
    ],
)
def test_threads_exchange_and_queue_as_they_should(
    activation, dtype, batch, width, points, blocks, resident
):
    """Groups that take the next point while others go on; groups and blocks that never get one."""
    problem = problem_of(activation, dtype, width=width, samples=5, steps=6, batch=batch, window=4)
    hyper = points_of(points, high=3.5)
    hyper[::5, 2], hyper[::7, 3] = 0.1, 0.01
    hyper[::4, :2] = 1e20 if dtype == "float32" else 1e160
    code = replace(Layout.of(problem), threads=64)
    found = kernelhost.train_in_warps(problem, hyper, [0, 2, 5], code, blocks, resident)
    wanted = cpu.train(problem, hyper, [0, 2, 5])
    assert_same(found, wanted)
    assert 0.1 < np.mean(wanted.steps < 6) < 0.9


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "experiment", "points"), list(windows()), ids=lambda v: str(v)[:24]
)
def test_whole_golden_windows_on_a_gpu(name, experiment, points, monkeypatch):
    """An experiment in a process that was given a GPU has the digests of the contract."""
    monkeypatch.setenv("FRACTAL_DEVICE", "cuda")
    assert digest(experiment, points) == json.loads(DIGESTS.read_text())["windows"][name]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_neighbours_change_no_bit_on_a_gpu(dtype):
    """Neither does how many points there are, more or fewer than the GPU trains at a time."""
    problem = problem_of("relu", dtype, width=16, samples=18, steps=30, batch=6)
    hyper = points_of(20_000, high=3.5)
    whole = cuda.train(problem, hyper)
    assert_same(whole, cpu.train(problem, hyper))
    for some in (np.arange(1), np.arange(7, 300), np.random.default_rng(1).permutation(20_000)):
        assert_same(cuda.train(problem, hyper[some]), subset(whole, some))


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [None, 5])
def test_samples_that_do_not_fit_on_a_gpu(batch):
    """Samples in the memory of the whole GPU train as those of a processor do."""
    problem = problem_of(width=16, samples=5001, steps=5, batch=batch)
    assert_same(cuda.train(problem, points_of(50)), cpu.train(problem, points_of(50)))


# Its way to a GPU


@pytest.fixture
def played(monkeypatch):
    """Has a driver played by this process train, launches cut to what its GPU holds."""

    def train_there(problem, hyper, record=(), choose=False, **driver):
        choices = Layout.choices(problem)
        fake = fakegpu.Driver(choices, **driver)
        modules = {"driver": fake, "nvrtc": nvrtc}
        monkeypatch.setattr(cuda, "_module", modules.get)
        monkeypatch.setattr(cuda, "kept", lambda source, options, arch: machine_code(options))
        monkeypatch.setattr(cuda, "gpu", functools.cache(cuda.Gpu))
        monkeypatch.setattr(cuda, "OPERATIONS", 1)
        monkeypatch.setattr(cuda, "perf_counter", lambda: fake.clock)
        monkeypatch.setattr(cuda, "sleep", lambda seconds: None)
        try:
            return fake, cuda.train(problem, hyper, record, None if choose else choices[0])
        finally:
            assert fake.memory == fake.streams == fake.events == {}

    return train_there


@pytest.mark.parametrize("points", [0, 1, 64, 65, 300])
@pytest.mark.parametrize("dtype", DTYPES)
def test_launches_are_put_together(played, dtype, points):
    """Of any number, the last one smaller, with recorded losses; each shows a sign of progress."""
    problem = problem_of(dtype=dtype, width=16, samples=5, steps=8, batch=3)
    hyper, record = points_of(points, high=3.5), [0, 7]
    before = pulse.ticks()
    driver, found = played(problem, hyper, record, processors=2 if dtype == "float64" else 1)
    assert len(driver.log) / 3 == pulse.ticks() - before == -(-points // 64)
    assert_same(found, cpu.train(problem, hyper, record))


def test_the_gpu_goes_on_while_results_are_fetched(played):
    """Two launches are under way until the last has begun, on two streams, and end in their order."""
    problem = problem_of(width=16, samples=5, steps=8)
    driver, _ = played(problem, points_of(300), processors=2)
    events = [event for event in driver.log if event[0] != "layout"]
    first, second = (stream for _, stream in events[:2])
    log = [f"{what} {'ab'[stream == second]}" for what, stream in events]
    assert first != second
    assert log[:4] == ["launch a", "launch b", "end a", "launch a"]
    assert log[4:] == ["end b", "launch b", "end a", "launch a", "end b", "end a"]


@pytest.mark.parametrize(("needed", "signs"), [(0, 0), (59, 0), (100, 1), (599, 9), (10**5, 9)])
def test_a_long_launch_shows_signs_of_progress(played, monkeypatch, needed, signs):
    """One a minute, but not for longer than the 600 s that it may honestly take."""
    problem = problem_of(width=16, samples=5, steps=8)
    usual = cuda.at_most(problem, 1, 1, Layout.of(problem).lanes)
    monkeypatch.setattr(cuda, "PACE", cuda.PACE * usual / 600)
    before = pulse.ticks()
    driver, found = played(problem, points_of(40), unready=needed)
    assert pulse.ticks() - before == signs + 1  # and the end
    assert driver.unready == max(0, needed - 600)
    assert_same(found, cpu.train(problem, points_of(40)))


def test_a_failed_launch_ends_the_waiting(played, monkeypatch):
    """What the driver says of a launch is heard at once, however long that might have taken."""
    illegal, asked = (CUresult.CUDA_ERROR_ILLEGAL_ADDRESS,), []

    def query(driver, event):
        asked.append(event)
        driver.clock += 1
        return illegal

    monkeypatch.setattr(cuda, "PACE", 1.0)
    monkeypatch.setattr(fakegpu.Driver, "cuEventQuery", query)
    monkeypatch.setattr(
        fakegpu.Driver, "cuEventSynchronize", lambda driver, event: illegal if asked else (0,)
    )
    with pytest.raises(RuntimeError, match="ILLEGAL ADDRESS"):
        played(problem_of(width=16, samples=5, steps=8), points_of(1))
    assert len(asked) == 1


def test_a_launch_may_take_as_long_as_a_slow_card_would():
    """Of long runs it fills the card at least, which may take hours; of usual ones, minutes."""
    problem = problem_of(width=16, samples=272, steps=500)
    assert cuda.at_most(problem, 4001, 4000, 8) == 2 * cuda.at_most(problem, 1, 4000, 8)
    usual = cuda.at_once(problem, 10**6, 0, 4000)
    assert 60 < cuda.at_most(problem, usual, 4000, 8) < 300
    assert cuda.at_most(replace(problem, steps=10**7), 4000, 4000, 8) > 3600


def test_a_full_gpu_is_out_of_memory_and_gives_all_back(played):
    """Wherever it happens, in words that a worker understands."""
    problem = problem_of(width=16, samples=5, steps=8)
    for allocations in range(17):
        with pytest.raises(RuntimeError, match="OUT OF MEMORY") as raised:
            played(problem, points_of(100), allocations=allocations)
        assert worker.code_of(raised.value) == worker.MEMORY


@pytest.mark.parametrize("why", cuda.UNREADABLE)
def test_a_driver_that_is_too_old_is_refused(played, why):
    """In one sentence that says what to do; a worker hands it on, and does not try again."""
    answer = getattr(CUresult, f"CUDA_ERROR_{why}")
    with pytest.raises(Refused, match=r"update the driver; `--devices cpu`") as raised:
        played(problem_of(width=16, samples=5, steps=8), points_of(1), loading=answer)
    assert worker.code_of(raised.value) == worker.WRONG
    assert worker.in_words(raised.value) == str(raised.value)


@pytest.mark.parametrize("why", ["OUT_OF_MEMORY", "ILLEGAL_ADDRESS"])
def test_other_trouble_with_machine_code_is_no_refusal(played, why):
    """It has nothing to do with the driver's age."""
    answer = getattr(CUresult, f"CUDA_ERROR_{why}")
    with pytest.raises(RuntimeError, match=why.replace("_", " ")):
        played(problem_of(width=16, samples=5, steps=8), points_of(1), loading=answer)


@pytest.mark.parametrize("seconds", [(1.0, 2.0), (2.0, 1.0)])
def test_the_card_chooses_the_layout(played, store_folder, seconds):
    """It is measured once, in turns, and kept; the bits are the same either way."""
    problem = problem_of(width=16, samples=5, steps=40, batch=3)
    hyper = points_of(100, high=3.5)
    wanted, best = cpu.train(problem, hyper), np.argmin(seconds)
    for trials, each in [(1 + cuda.TRIALS, seconds), (0, seconds[::-1])]:
        driver, found = played(problem, hyper, choose=True, seconds=each)
        assert_same(found, wanted)
        used = [layout for what, layout in driver.log if what == "layout"]
        assert used[: 4 * trials] == trials * [0, 0, 1, 1]
        assert set(used[4 * trials :]) == {best}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_layouts_are_timed_on_runs_of_full_length(
    played, monkeypatch, store_folder, activation, dtype
):
    """No two of them have the same weights, and none ends before its last step."""
    trials, timed = [], cuda._rate
    monkeypatch.setattr(cuda, "_rate", lambda *trial: trials.append(trial) or timed(*trial))
    whole = problem_of(activation, dtype, width=16, samples=5, steps=40)
    played(replace(whole, ceiling=1e12), points_of(3), choose=True)
    assert len(trials) == 2 * (1 + cuda.TRIALS)
    for problem, hyper, _ in trials[:2]:
        assert len(np.unique(hyper[:, 2])) == len(hyper)
        assert (cpu.train(problem, hyper).steps == problem.steps).all()
        assert problem.steps > 1


# Its machine code

CHAINED = [("float64", "double", "__fma_rn", 8), ("float32", "float", "__fmaf_rn", 4)]
"""Of a dtype: its name in C++, its fused multiply-add, and the cycles that this takes on an H100."""


@pytest.mark.parametrize("arch", machinecode.ARCHS)
@pytest.mark.parametrize(
    ("activation", "dtype", "batch"),
    [
        ("tanh", "float64", None),
        ("tanh", "float32", None),
        ("tanh", "float64", 16),
        ("relu", "float64", None),
        ("identity", "float32", None),
    ],
)
def test_the_machine_code_is_what_the_contract_says(arch, activation, dtype, batch):
    """Nothing is spilled, a processor holds the warps it should, and no operation is added or fused."""
    problem = problem_of(activation, dtype, width=16, samples=272, batch=batch)
    choices = Layout.choices(problem)
    assert [code.threads // 32 for code in choices] == ([8, 12] if dtype == "float64" else [16, 24])
    for code in choices:
        found = machinecode.report(code, arch)
        print(found)
        assert found.spilled == 0
        assert found.registers * code.threads <= 2**16
        if batch is None:
            assert found.loop.operations == machinecode.wanted(code)


@pytest.mark.parametrize("width", [1, 8, 24, 32])
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_width_is_spilled(width, dtype):
    """Weights and gradients of every width stay in registers on an H100."""
    for code in Layout.choices(problem_of(dtype=dtype, width=width, batch=3)):
        assert machinecode.report(code, "sm_90").spilled == 0


@pytest.mark.parametrize(
    ("dtype", "asked", "most_warps"), [("float64", 55e6, 12), ("float32", 95e6, 24)]
)
def test_the_first_layout_promises_most_on_an_h100(dtype, asked, most_warps):
    """Its bounds are above what is asked, and more warps of one unit a thread promise less.

    They fit, without spills; but reading and waiting bound them more, and so does arithmetic.
    """
    usual, narrow, *others = (
        machinecode.report(code, "sm_90")
        for code in bench_cuda.layouts(problem_of(dtype=dtype, width=16))
    )
    mine, theirs = (one.rates(272, 132, 1.755e9) for one in (usual, narrow))
    assert min(mine.values()) == mine["expected"]
    assert min(rate for what, rate in mine.items() if what != "expected") > asked
    assert (narrow.code.units, narrow.warps, narrow.spilled) == (1, most_warps, 0)
    assert all(theirs[what] < mine[what] for what in mine)
    assert theirs["expected"] < 0.88 * mine["expected"]
    rivals = [other.rates(272, 132, 1.755e9)["expected"] for other in others]
    assert max(rivals) < 1.05 * mine["expected"]


def test_waiting_is_read_from_the_machine_code():
    """A sum that goes on with its own result waits for it, each time: 8 cycles, or 4 in float32."""
    one = bench_cuda.PEAK.replace(f"[{bench_cuda.CHAINS}]", "[1]")
    one = one.replace(f"< {bench_cuda.CHAINS}", "< 1").replace(
        "#pragma unroll 1", "#pragma unroll 64"
    )
    for dtype, real, fma, cycles in CHAINED:
        code = cuda.compiled(one.encode(), [f"-DREAL={real}", f"-DFMA={fma}"], "sm_90").code
        loop = machinecode.innermost(code, dtype)
        assert loop.operations == machinecode.Operations(64, 0, 0)
        assert loop.alone == pytest.approx(64 * cycles, abs=20)


def test_the_command_reports_the_machine_code(capsys):
    """One JSON object, in which every loop has the operations that the contract wants."""
    bench("code", only=("tanh-full-float64",), as_json=True)
    kernels = json.loads(capsys.readouterr().out)["kernels"]
    assert [one["arch"] for one in kernels] == [*2 * machinecode.ARCHS, *2 * ["sm_90"]]
    assert all(one["loop"]["operations"] == one["wanted"] for one in kernels)
    assert [bool(one["h100"]) for one in kernels] == [one["arch"] == "sm_90" for one in kernels]


def test_what_does_not_fit_stays_in_global_memory():
    """Samples that are too many for a processor's memory are read from the GPU's; tables always fit."""
    code = Layout.of(problem_of(width=16))
    assert code.resident(272, 227 * 2**10)
    assert not code.resident(4000, 227 * 2**10)
    assert code.resident(0, 64 * 2**10)
    source, (there, here) = SOURCE.read_bytes(), map(code.constants, (False, True))
    assert cuda.compiled(source, there, "sm_90").code != cuda.compiled(source, here, "sm_90").code


def test_machine_code_is_kept(monkeypatch, store_folder):
    """Another process does not compile it again, unless it was made of something else."""
    made, compiled = [], cuda.compiled
    monkeypatch.setattr(cuda, "compiled", lambda *of: made.append(of) or compiled(*of))
    anew = cuda.kept.__wrapped__
    source = b'extern "C" __global__ void f(int *a) { *a = X; }'
    first = anew(source, ("-DX=1",), "sm_90")
    assert first == anew(source, ("-DX=1",), "sm_90") == compiled(*made[0]).code
    assert len(made) == 1
    for other in [(source + b" ", ("-DX=1",), "sm_90"), (source, ("-DX=2",), "sm_90")]:
        anew(*other)
        assert made[-1] == other
    anew(source, ("-DX=1",), "sm_80")
    monkeypatch.setattr(cuda, "FLAGS", (*cuda.FLAGS, "--use_fast_math"))
    anew(source, ("-DX=1",), "sm_90")
    assert len(made) == 5


@pytest.mark.parametrize("at", [0, 40, -1])
def test_damaged_machine_code_is_compiled_again(monkeypatch, store_folder, at):
    """A bit that is wrong anywhere, an end that is missing; and then it is whole again."""
    args = b'extern "C" __global__ void f() {}', (), "sm_90"
    anew = cuda.kept.__wrapped__
    code = anew(*args)
    (file,) = (store_folder / "kernels").iterdir()
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[at] ^= 1
    for damaged in (bytes(flipped), whole[:at], b""):
        file.write_bytes(damaged)
        assert anew(*args) == code
        assert file.read_bytes() == whole
    monkeypatch.setattr(cuda, "compiled", None)
    assert anew(*args) == code


def test_machine_code_that_cannot_be_kept_is_used(monkeypatch, tmp_path):
    """A storage folder that takes nothing is no reason not to train."""
    monkeypatch.setenv("FRACTAL_STORAGE", str(tmp_path / "file"))
    (tmp_path / "file").touch()
    args = b'extern "C" __global__ void f() {}', (), "sm_90"
    assert cuda.kept.__wrapped__(*args) == cuda.compiled(*args).code


def test_the_peak_is_that_of_multiply_adds():
    """The loop that measures a card has nothing but fused multiply-adds to wait for."""
    source = bench_cuda.PEAK.encode()
    for dtype, real, fma, _ in CHAINED:
        binary = cuda.compiled(source, [f"-DREAL={real}", f"-DFMA={fma}"], "sm_90")
        loop = machinecode.innermost(binary.code, dtype).operations
        assert loop.total == loop.fused
        assert loop.fused % bench_cuda.CHAINS == 0


# What can be said where there is no GPU


@pytest.mark.parametrize("case", list(tiny.cases()), ids=str)
def test_the_step_by_hand_trains_the_same_networks(case):
    """The contender under `torch.compile` gives the losses of the kernel."""
    experiment = case.experiment(21)
    losses = experiment.run(tiny.points(32), seed=0, record=range(21)).extras["losses"]
    tolerance = 1e-10 if case.dtype == "float64" else 2e-3
    by_hand = bench_cuda.compiled(case, 32, 21, device="cpu", eager=True)()
    np.testing.assert_allclose(by_hand, losses, rtol=tolerance)


def test_one_bit_is_seen():
    """A comparison that misses a bit would find any kernel equal."""
    curves = cpu.train(problem_of(), points_of(4), record=[0, 5])
    assert bench_cuda.differing(curves, curves) == 0
    losses = curves.losses.copy()
    losses[2, 1] = np.nextafter(losses[2, 1], 0)
    assert bench_cuda.differing(curves, replace(curves, losses=losses)) == 1


def test_every_condition_is_compared(monkeypatch):
    """The golden windows and all presets in both precisions, to the bit; the host plays the GPU."""
    monkeypatch.setattr(bench_cuda.cuda, "train", kernelhost.train)
    small = {name: replace(window, side=2, steps=21) for name, window in GOLDEN.items()}
    monkeypatch.setattr(bench_cuda, "GOLDEN", small)
    found = list(bench_cuda.equalities(4, steps=21))
    assert [one.name for one in found[: len(GOLDEN)]] == list(GOLDEN)
    assert len(found) == len(GOLDEN) + 2 * len(PRESETS)
    assert all(one.points == 4 and one.differing == 0 for one in found)
    assert any(one.ended for one in found)


def test_a_bit_on_a_golden_window_is_told(monkeypatch):
    """A GPU that is wrong in one run of one window is found there, whatever else is equal."""

    def wrong(problem, hyper, record):
        curves = cpu.train(problem, hyper, record=record)
        if problem.steps == 22:
            curves.sum_v[3] = np.nextafter(curves.sum_v[3], 0)
        return curves

    monkeypatch.setattr(bench_cuda.cuda, "train", wrong)
    small = {n: replace(w, side=2, steps=21 + (n == "single_tile_96")) for n, w in GOLDEN.items()}
    monkeypatch.setattr(bench_cuda, "GOLDEN", small)
    found = bench_cuda.equalities(2, steps=21)
    assert {one.name: one.differing for one in found if one.differing} == {"single_tile_96": 1}


@pytest.mark.parametrize("seen", [True, False])
def test_a_contender_that_cannot_take_part_is_named(monkeypatch, capsys, seen):
    """Its absence is no result: one line says why and what adds it, and the JSON says it too."""
    took_part = []

    def take_turns(contenders, rounds):
        took_part.append(set(contenders))
        return Rates({name: [1.0] for name in contenders})

    monkeypatch.setattr(bench_cuda, "jax_sees_a_gpu", lambda: seen)
    monkeypatch.setattr(bench_cuda, "take_turns", take_turns)
    for module, name in [(bench_cuda, "kernel"), (bench_cuda, "peak"), (tiny, "kernel")]:
        monkeypatch.setattr(module, name, lambda *_: None)
    monkeypatch.setattr(tiny, "sized", lambda *_: None)
    monkeypatch.setattr(cuda, "gpu", lambda: SimpleNamespace(name="played"))
    assert bench("tiny", device="cuda", only=("tanh-full-float64",), as_json=True) == 0
    told = capsys.readouterr()
    report = json.loads(told.out)
    assert ("vmap" in took_part[0]) == ("vmap" in report["cases"][0]["times_faster"]) == seen
    assert report["left_out"].keys() == (set() if seen else {"vmap"})
    assert told.err.count("jax[cuda13]") == (not seen)


def test_a_worker_is_told_where_to_train(monkeypatch):
    """A slot of the CPU never touches a GPU that is there, and one of a GPU never trains elsewhere."""
    assert machine.Slot(0, "cpu", 1).environment["FRACTAL_DEVICE"] == "cpu"
    assert TinyNetworks().devices == ("cuda", "cpu")
    trained = []
    monkeypatch.setattr(cuda, "train", lambda *args, **_: trained.append(args) or cpu.train(*args))
    for device in ("cpu", "cuda"):
        monkeypatch.setenv("FRACTAL_DEVICE", device)
        TinyNetworks(samples=3, steps=21).run(np.ones((2, 2)), seed=0)
    assert len(trained) == 1


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


def test_units_fill_a_gpu_that_is_there(monkeypatch):
    """Where there is one a unit has many times the points that it trains at once."""
    monkeypatch.setattr(machine, "gpus", list)
    assert TinyNetworks().block is None
    monkeypatch.setattr(machine, "gpus", lambda: ["one"])
    assert TinyNetworks().block == 256


@pytest.mark.parametrize(("edge", "block"), [(64, 32), (256, 64), (512, 128), (4096, 256)])
def test_a_smaller_map_is_still_shared_out(edge, block):
    """Among several devices, and with little lost when one dies; runs of their own stay so."""
    assert shared_out((edge, edge), 256) == block
    assert shared_out((edge, edge), 1) == 1
    assert shared_out((edge, edge), None) is None
