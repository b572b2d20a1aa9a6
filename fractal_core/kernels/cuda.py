"""Train many tiny networks on an NVIDIA GPU, to the bits of the CPU kernel.

The kernel is CUDA C++ (`tiny.cu`), compiled by NVRTC for the very GPU at hand in about a second, kept on
disk, and launched through the driver; both come with the packages of torch on Linux. Of the other routes,
Triton's float64 products run at half rate and its sums have an order that depends on their layout, and
numba's CUDA would be one more large package for the same instructions. In C++ every operation can be
named, which the contract needs, and the text compiles for a processor too, where tests run it.

How a network is laid out over threads changes no bit, so that the card decides: the first time it meets a
kind of network it trains with each layout for a moment (`quickest`), and keeps which was the quickest.

One launch trains some of a call's points to their ends. In go the hyperparameters, out come five sums, a
length and the recorded losses of each point. The next launch is under way before that is fetched, so that
the card does not wait for it.
"""

import collections
import contextlib
import ctypes
import functools
import hashlib
import importlib
import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from time import perf_counter, sleep
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from fractal_core import pulse
from fractal_core.errors import Refused
from fractal_core.files import Files
from fractal_core.kernels import layout
from fractal_core.kernels.contract import Curves, Problem, rising
from fractal_core.kernels.layout import Layout
from fractal_core.storage import storage

OPERATIONS = 2e13
"""Of one launch, at most: seconds on a large GPU. Longer calls are cut, so that they show a pulse."""

PACE = 3e6
"""Operations per second of a thread on a slow card: an eighth of a full T4's peak in float64."""

SIGN = 60.0
"""Seconds that a launch is waited for between signs of progress; one that takes less shows none."""

ASKING = 0.002
"""Seconds between questions whether a launch has ended: the other one keeps the card busy."""

TRIAL, TRIALS = 2e11, 5
"""Operations of a launch that is timed, a hundredth of a second on a large GPU; and how many there are."""

RECORDED = 2**26
"""Losses that one launch keeps, at most: half a gigabyte."""

AT_A_TIME = 2
"""Launches under way: one that trains, and one that moves in where it runs out of points."""

FLAGS = ("--std=c++17", "--fmad=false", "--ptxas-options=-v")
"""Of the compiler: no multiplication and addition is fused that the text does not fuse."""

ELSEWHERE = (
    "; `--devices cpu`, or for pages CUDA_VISIBLE_DEVICES= before the command that opens them, "
    "trains to the same bits without it"
)

UNREADABLE = (
    *("INVALID_IMAGE", "INVALID_SOURCE", "INVALID_PTX", "NO_BINARY_FOR_GPU"),
    *("UNSUPPORTED_PTX_VERSION", "JIT_COMPILER_NOT_FOUND", "JIT_COMPILATION_DISABLED"),
)
"""What a driver answers to machine code of a compiler that is newer than it."""


class Binary(NamedTuple):
    """Machine code for one kind of GPU, and what the assembler said about it."""

    code: bytes
    log: str


def compiled(source: bytes, options: Sequence[str], arch: str) -> Binary:
    """Compile CUDA C++ to machine code; no GPU is needed.

    Args:
        source: The text.
        options: Of NVRTC, beside `FLAGS`.
        arch: The kind of GPU, for example sm_90.

    Raises:
        Refused: NVRTC is missing.
    """
    nvrtc = _module("nvrtc")
    every = [*options, f"--gpu-architecture={arch}", *FLAGS]
    program = _checked(nvrtc.nvrtcCreateProgram(source, b"tiny.cu", 0, [], []))
    (failed,) = nvrtc.nvrtcCompileProgram(program, len(every), [o.encode() for o in every])
    log = b" " * _checked(nvrtc.nvrtcGetProgramLogSize(program))
    _checked(nvrtc.nvrtcGetProgramLog(program, log))
    said = log.rstrip(b" \0").decode()
    if int(failed):
        raise RuntimeError(f"NVRTC could not compile for {arch}: {said}")
    code = b" " * _checked(nvrtc.nvrtcGetCUBINSize(program))
    _checked(nvrtc.nvrtcGetCUBIN(program, code))
    _checked(nvrtc.nvrtcDestroyProgram(program))
    return Binary(code, said)


@functools.cache
def kept(source: bytes, options: tuple[str, ...], arch: str) -> bytes:
    """The machine code of `compiled`, from the disk if this compiler has left it there."""
    recipe = source, options, arch, FLAGS
    return _kept(recipe, lambda: compiled(source, options, arch).code)


def _kept(recipe: tuple, make: Callable[[], bytes]) -> bytes:
    """What was made of a recipe by this compiler, from the disk if it was left there.

    In `storage`, under a hash of all that it was made of and behind a hash of itself: what is
    damaged is made again.
    """
    whole = *recipe, _module("nvrtc").nvrtcVersion()[1:]
    name = hashlib.sha256(repr(whole).encode()).hexdigest()
    files = Files(storage() / "kernels")
    with contextlib.suppress(OSError):
        found = files.get(name)
        if hashlib.sha256(found[32:]).digest() == found[:32]:
            return found[32:]
    made = make()
    with contextlib.suppress(OSError):  # a disk that takes nothing costs every process a second
        files.put_latest(name, hashlib.sha256(made).digest() + made)
    return made


def _module(name: str) -> Any:
    try:
        return importlib.import_module(f"cuda.bindings.{name}")
    except ImportError:
        raise Refused(
            "training on a GPU needs NVIDIA's compiler and driver bindings: `uv sync --extra cuda` "
            f"installs them{ELSEWHERE}"
        ) from None


def _checked(answer: tuple) -> Any:
    """What a call of NVIDIA's libraries returned, unless it failed."""
    failed, *values = answer
    if int(failed):
        raise RuntimeError(f"the GPU's driver answered {failed.name.replace('_', ' ')}")
    return values[0] if values else None


class Gpu:
    """The first GPU that this process may see.

    Raises:
        Refused: There is none, or none that the compiler knows.
    """

    def __init__(self):
        self.driver = driver = _module("driver")
        try:
            _checked(driver.cuInit(0))
            device = _checked(driver.cuDeviceGet(0))
        except RuntimeError:
            raise Refused(f"there is no NVIDIA GPU with a working driver here{ELSEWHERE}") from None
        self._context = _checked(driver.cuDevicePrimaryCtxRetain(device))
        self.name = _checked(driver.cuDeviceGetName(128, device)).decode().strip(" \0")
        kinds = driver.CUdevice_attribute
        asked = {
            "processors": kinds.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
            "room": kinds.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
            "major": kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            "minor": kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        }
        found = {n: _checked(driver.cuDeviceGetAttribute(a, device)) for n, a in asked.items()}
        self.processors: int = found["processors"]
        self.room: int = found["room"]
        self.arch = _arch(found["major"], found["minor"], self.name)
        self.quickest: dict[tuple, Layout] = {}
        self._functions: dict[tuple[bytes, bytes], Any] = {}

    def enter(self) -> None:
        """Make this the GPU of the calling thread."""
        _checked(self.driver.cuCtxSetCurrent(self._context))

    def function(self, code: bytes, name: bytes, shared: int) -> Any:
        """A kernel of some machine code, allowed so many bytes of shared memory.

        Raises:
            Refused: The driver cannot read the code.
        """
        if (code, name) not in self._functions:
            image = np.frombuffer(code, np.uint8)
            answer = self.driver.cuModuleLoadData(image.ctypes.data)
            if int(answer[0]) and answer[0].name.removeprefix("CUDA_ERROR_") in UNREADABLE:
                version = ".".join(map(str, _module("nvrtc").nvrtcVersion()[1:]))
                raise Refused(
                    f"the driver of the {self.name} cannot read what NVRTC {version} compiles: "
                    f"update the driver{ELSEWHERE}"
                )
            found = _checked(self.driver.cuModuleGetFunction(_checked(answer), name))
            self._functions[code, name] = found
        function = self._functions[code, name]
        most = self.driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        _checked(self.driver.cuFuncSetAttribute(function, most, shared))
        return function


def _arch(major: int, minor: int, name: str) -> str:
    """The newest kind of GPU that the compiler knows and whose code this one runs."""
    known = _checked(_module("nvrtc").nvrtcGetSupportedArchs())
    fitting = [kind for kind in known if kind // 10 == major and kind % 10 <= minor]
    if not fitting:
        raise Refused(f"NVRTC does not know the {name} (sm_{major}{minor}){ELSEWHERE}")
    return f"sm_{max(fitting)}"


class Stream:
    """Work on the GPU, in order and beside that of other streams, and memory for it.

    Both are there for as long as a context lasts. Nothing has happened until somebody waits for it.

    Args:
        gpu: Where.
        arrays: What the memory is for; as large, and with these names.
    """

    def __init__(self, gpu: Gpu, arrays: Mapping[str, np.ndarray]):
        self._driver, self.places = gpu.driver, {}
        self._sizes = {name: array.nbytes for name, array in arrays.items()}

    def __enter__(self) -> "Stream":
        driver = self._driver
        # One that "blocks" would take turns with work that is in no stream; sleep while waiting.
        apart = driver.CUstream_flags.CU_STREAM_NON_BLOCKING
        asleep = driver.CUevent_flags.CU_EVENT_BLOCKING_SYNC
        with contextlib.ExitStack() as held:
            self._stream = _checked(driver.cuStreamCreate(apart))
            held.callback(driver.cuStreamDestroy, self._stream)
            self._done = _checked(driver.cuEventCreate(asleep))
            held.callback(driver.cuEventDestroy, self._done)
            for name, size in self._sizes.items():
                self.places[name] = _checked(driver.cuMemAlloc(max(size, 1)))
                held.callback(driver.cuMemFree, self.places[name])
            self._held = held.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def send(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Copy these to the GPU."""
        copy = self._driver.cuMemcpyHtoDAsync
        for name, array in arrays.items():
            if array.nbytes:
                _checked(copy(self.places[name], array.ctypes.data, array.nbytes, self._stream))

    def launch(
        self, function: Any, blocks: int, threads: int, shared: int, told: ctypes.Structure
    ) -> None:
        """Run a kernel whose only argument is a structure."""
        told_at = np.array([ctypes.addressof(told)], np.uint64)
        grid = (blocks, 1, 1, threads, 1, 1)
        _checked(
            self._driver.cuLaunchKernel(
                function, *grid, shared, self._stream, told_at.ctypes.data, 0
            )
        )

    def fetch(self, arrays: Mapping[str, np.ndarray], most: float) -> None:
        """Wait for all that was asked for, as `wait`, and copy these back."""
        copy = self._driver.cuMemcpyDtoHAsync
        self.wait(most)  # a copy would keep this processor busy until its turn comes
        for name, array in arrays.items():
            if array.nbytes:
                _checked(copy(array.ctypes.data, self.places[name], array.nbytes, self._stream))
        self.wait()

    def wait(self, most: float = 0.0) -> None:
        """Wait until all that was asked for has happened.

        A launch of very long runs tells nothing before the first of them ends, so that it is a sign of
        progress that the driver knows it to be under way. But that is true of one that hangs as well:
        after so many seconds there are no more signs, and whoever watches ends it.

        Args:
            most: Seconds that it may honestly take.
        """
        _checked(self._driver.cuEventRecord(self._done, self._stream))
        begun = shown = perf_counter()
        while most > SIGN and self._under_way() and (now := perf_counter()) < begun + most:
            if now >= shown + SIGN:
                pulse.tick()
                shown = now
            sleep(ASKING)
        _checked(self._driver.cuEventSynchronize(self._done))

    def _under_way(self) -> bool:
        (answer,) = self._driver.cuEventQuery(self._done)
        return bool(int(answer)) and answer.name == "CUDA_ERROR_NOT_READY"


gpu = functools.cache(Gpu)
"""The GPU, found once in a process."""


def at_once(problem: Problem, points: int, recorded: int, filling: int) -> int:
    """Points of one launch.

    Args:
        problem: What is trained.
        points: How many there are.
        recorded: Losses kept of each.
        filling: Points that the GPU trains at the same time; no launch but the last has fewer.
    """
    each = _operations(problem) * problem.steps
    most = min(OPERATIONS / each, RECORDED / max(recorded, 1), points)
    return max(1, filling, int(most))


def at_most(problem: Problem, points: int, filling: int, lanes: int) -> float:
    """Seconds that a launch of `at_once` takes on a slow card if every run makes all its steps."""
    return -(-points // filling) * _operations(problem) * problem.steps / (lanes * PACE)


def _operations(problem: Problem) -> float:
    """Of a step of one point, about."""
    samples, width = problem.inputs.shape
    batch = 0 if problem.batch_index is None else problem.batch_index.shape[1]
    return (samples + batch) * (4.0 * width**2 + 16 * width)


def quickest(problem: Problem) -> Layout:
    """Of a problem's layouts the one that trains most steps per second on this GPU.

    All give the same bits. It is found once for a kind of GPU and of network, and kept on the disk;
    if something else disturbs the moment, that costs speed alone. Without the folder `kernels` in the
    storage folder it is measured anew.

    Raises:
        Refused, RuntimeError: As `train`.
    """
    choices, here = Layout.choices(problem), gpu()
    if len(choices) == 1:
        return choices[0]
    kind = choices, tuple(code.resident(len(problem.targets), here.room) for code in choices)
    if kind not in here.quickest:
        recipe = layout.SOURCE.read_bytes(), FLAGS, kind, here.name, here.processors
        made = _kept(recipe, lambda: b"%d" % np.argmax(_rates(problem, choices)))
        here.quickest[kind] = choices[int(made)]
    return here.quickest[kind]


def _rates(problem: Problem, choices: Sequence[Layout]) -> list[float]:
    """Steps per second of each layout, in turns, on points that move nowhere and so never end.

    Each has weights of its own: those that share a warp would else read the same entries of tanh's
    table, and not get in each other's way as they do in earnest.
    """
    trials = []
    for code in choices:
        points = 2 * gpu().processors * code.groups
        steps = int(np.clip(TRIAL / (points * _operations(problem)), 1, problem.steps))
        rows = None if problem.batch_index is None else problem.batch_index[:steps]
        short = replace(problem, steps=steps, window=1, batch_index=rows)
        hyper = np.zeros((points, 4))
        hyper[:, 2] = np.random.default_rng(0).normal(0, 0.1, points)
        trials.append((short, hyper, code))
    turns = [[_rate(*trial) for trial in trials] for _ in range(1 + TRIALS)]
    return [statistics.median(each) for each in zip(*turns[1:], strict=True)]  # the first compiles


def _rate(problem: Problem, hyper: Float64[np.ndarray, "points 4"], code: Layout) -> float:
    """Steps per second of all points together, once."""
    begun = perf_counter()
    train(problem, hyper, code=code)
    return problem.steps * len(hyper) / (perf_counter() - begun)


def train(
    problem: Problem,
    hyper: Float64[np.ndarray, "points 4"],
    record: Sequence[int] | Int64[np.ndarray, " recorded"] = (),
    code: Layout | None = None,
) -> Curves:
    """Train one network per row of `hyper`, with the arithmetic of `contract`.

    Args:
        problem: What all networks share.
        hyper: Learning rate of the input weights and of the output weights, offset added to the
            initial input weights, drift added to the input weights at every step.
        record: Steps whose losses to return, in rising order.
        code: How the network is laid out over threads, which changes no bit; `quickest` if None.

    Raises:
        ValueError: The recorded steps do not rise from 0 to at most `problem.steps` - 1.
        Refused: There is no GPU that could be used, its driver is older than the compiler, or
            NVIDIA's packages are missing.
        RuntimeError: The GPU failed, or has not enough memory.
    """
    steps = rising(problem, record)
    code = code or quickest(problem)
    here = gpu()
    here.enter()
    samples = len(problem.targets)
    resident = code.resident(samples, here.room)
    shared = code.shared(samples if resident else 0)
    machine_code = kept(layout.SOURCE.read_bytes(), code.constants(resident), here.arch)
    function = here.function(machine_code, b"train", shared)
    filling = here.processors * code.groups
    size = at_once(problem, len(hyper), len(steps), filling)
    parts = [slice(first, first + size) for first in range(0, len(hyper), size)]
    every = layout.shared_arrays(problem, code, steps)
    points = layout.point_arrays(problem, hyper, len(steps))
    queue = {"queue": points.pop("queue")}
    drifting = bool(np.any(hyper[:, 3]))

    def some(part: slice, *names: str) -> dict[str, np.ndarray]:
        return {name: points[name][part] for name in names or points}

    def launch(stream: Stream, part: slice) -> None:
        mine = some(part, "hyper")
        told = layout.numbers(problem, len(mine["hyper"]), len(steps), drifting)
        for name, place in (common.places | stream.places).items():
            setattr(told, name, int(place))
        stream.send(mine | queue)
        stream.launch(function, here.processors, code.threads, shared, told)

    def finish(stream: Stream, part: slice) -> None:
        found = some(part, "scores", "ends", "losses")
        stream.fetch(found, at_most(problem, len(found["ends"]), filling, code.lanes))
        pulse.tick()

    with contextlib.ExitStack() as held:
        common = held.enter_context(Stream(here, every))
        common.send(every)
        common.wait()
        streams = [held.enter_context(Stream(here, some(p) | queue)) for p in parts[:AT_A_TIME]]
        begun: collections.deque[tuple[Stream, slice]] = collections.deque()
        for turn in zip(itertools.cycle(streams), parts):
            if len(begun) == len(streams):
                finish(*begun.popleft())
            launch(*turn)
            begun.append(turn)
        for turn in begun:
            finish(*turn)
    return layout.curves(problem, points["scores"], points["ends"], points["losses"])
