"""What this machine and this code are, for provenance: no environment variables, no host names."""

import contextlib
import functools
import itertools
import os
import platform
import secrets
import socket
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from fractal_core.errors import Refused

ALLOWED = (
    *("PATH", "HOME", "USER", "LOGNAME", "LANG", "TZ", "TMPDIR", "SHELL", "VIRTUAL_ENV"),
    *("PYTHONPATH", "PYTHONHASHSEED", "LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_DEVICE_ORDER"),
    *("XDG_CACHE_HOME", "FRACTAL_STORAGE", "HF_HOME", "HF_HUB_OFFLINE", "NANOCHAT_BASE_DIR"),
    "SSL_CERT_FILE",
)
ALLOWED_STEMS = ("LC_", "NUMBA_", "NVIDIA_", "NCCL_", "PYTORCH_", "TORCHINDUCTOR_")

PACKAGES = ("numpy", "numba", "llvmlite", "torch", "jax", "matplotlib")


def cpu_threads() -> int:
    """Cores that this process may use; `FRACTAL_THREADS` gives a worker its share of them."""
    if share := os.environ.get("FRACTAL_THREADS"):
        return max(1, int(share))
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def inherited() -> dict[str, str]:
    """What a worker is given of this process's environment; no key or token is among it."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in ALLOWED or name.startswith(ALLOWED_STEMS)
    }


def device() -> str:
    """Kind of device that this process was given to train on; `FRACTAL_DEVICE` tells a worker."""
    return os.environ.get("FRACTAL_DEVICE", "cpu")


def cpu_name() -> str:
    """The processor's own name where the system tells it, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU, as its driver describes it.

    Args:
        index: The driver's number, which is that of `CUDA_VISIBLE_DEVICES`.
        name: What it is.
        used_percent: Share of the time in which something ran on it lately; nan if it is not told.
        memory_used: Bytes in use, whoever uses them.
        memory_total: Bytes that it has; 0 if it is not told, as where they are the CPU's as well.
        processes: Ids of the processes that hold memory on it.
    """

    index: int
    name: str
    used_percent: float
    memory_used: int
    memory_total: int
    processes: tuple[int, ...]

    @property
    def memory(self) -> str:
        """How much of its memory is in use, in words; empty where it does not tell."""
        if not self.memory_total:
            return ""
        return f"{self.memory_used / 2**30:.1f} of {self.memory_total / 2**30:.1f} GiB"


def gpus() -> list[Gpu]:
    """The NVIDIA GPUs of this machine; none where there is no driver to ask."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        return [_gpu(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()


def _gpu(nvml, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    percent, used, total, held = float("nan"), 0, 0, []
    # Not every GPU answers every question: a partitioned one, or one that shares the CPU's memory.
    untold = functools.partial(contextlib.suppress, nvml.NVMLError)
    with untold():
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        used, total = int(memory.used), int(memory.total)
    with untold():
        percent = float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    with untold():
        held = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    return Gpu(
        index=index,
        name=nvml.nvmlDeviceGetName(handle),
        used_percent=percent,
        memory_used=used,
        memory_total=total,
        processes=tuple(sorted({process.pid for process in held})),
    )


@dataclass(frozen=True)
class Slot:
    """A place where one worker process trains.

    Args:
        index: Which, from 0.
        device: `cpu`, or `cuda:K` with K counted among the GPUs that this process may see.
        threads: CPU threads that are its share.
    """

    index: int
    device: str
    threads: int

    @property
    def environment(self) -> dict[str, str]:
        """What a worker in this slot must find in its environment."""
        threads = str(self.threads)
        kind, _, number = self.device.partition(":")
        visible = _visible()[int(number)] if kind == "cuda" else ""
        return {
            "FRACTAL_DEVICE": kind,
            "FRACTAL_THREADS": threads,
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "CUDA_VISIBLE_DEVICES": visible,
        }


def _visible() -> list[str]:
    """Names of the GPUs that this process may see, as `CUDA_VISIBLE_DEVICES` takes them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return [str(gpu.index) for gpu in gpus()]
    return [name.strip() for name in given.split(",") if name.strip()] if gpus() else []


def slots(
    kinds: tuple[str, ...],
    count: int | None = None,
    devices: tuple[str, ...] = (),
    serial: bool = False,
) -> list[Slot]:
    """The slots of a run on this machine; the CPU's threads are divided between them.

    Args:
        kinds: Kinds of device that the experiment can train on, the fastest first.
        count: Slots that share the CPU, or each GPU.
        devices: One slot each; left out, every device of the first kind that is here.
        serial: A run uses a single thread; left out, `count` is then one slot per core of the CPU.

    Raises:
        Refused: A device is not here, or not of a kind that the experiment can use.
    """
    asked = any(device.startswith("cuda") for device in devices) or "cuda" in kinds
    gpus_here = [f"cuda:{index}" for index in range(len(_visible()))] if asked else []
    here = {"cpu": ["cpu"], "cuda": gpus_here}
    if count is not None and count < 1:
        raise Refused(f"{count} slots; a run needs at least one")
    for device in devices:
        kind = device.partition(":")[0]
        if kind not in here:
            raise Refused(f"unknown device {device}; write cpu, or cuda:0, cuda:1 and so on")
        if kind not in kinds:
            raise Refused(
                f"{device}: this experiment trains on {' or '.join(kinds)} only; leave --devices "
                f"out or name one of those"
            )
        if device not in here[kind]:
            known = ", ".join(itertools.chain.from_iterable(here.values()))
            raise Refused(f"{device} is not on this machine, which has {known}; choose among them")
    found = list(devices) or next((here[kind] for kind in kinds if here[kind]), [])
    if not found:
        raise Refused(
            f"this experiment trains on {' or '.join(kinds)} and this machine has none; run it where "
            "there is one, or make the run anew with --set device=cpu"
        )
    each = {"cpu": cpu_threads() if serial else 1}
    places = [d for d in found for _ in range(count or each.get(d, 1))]
    if len(places) > 1024:
        raise Refused(f"{len(places)} slots; no machine has use for more than 1024")
    threads = max(1, cpu_threads() // len(places))
    return [Slot(index, device, threads) for index, device in enumerate(places)]


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on just now.

    One of those that no system lends to a connection, or it could be taken by the time that a
    server has begun.
    """
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@functools.cache
def commit() -> str:
    """The commit of this checkout with `+` for local changes; empty for an installed package."""
    package = Path(__file__).parent
    command = ["git", "-C", str(package), "describe", "--always", "--abbrev=12", "--dirty=+"]
    if not (package.parent / ".git").exists():
        return ""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that compute or draw."""
    found = {"python": platform.python_version(), "fractal-llm": metadata.version("fractal-llm")}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def describe() -> dict[str, object]:
    """Provenance of a run: commit, versions, system, processor."""
    return {
        "commit": commit(),
        "versions": versions(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "threads": cpu_threads(),
    }
