"""What this machine and this code are, for provenance: no environment variables, no host names."""

import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = ("numpy", "numba", "llvmlite", "torch", "jax", "matplotlib")


def cpu_threads() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_name() -> str:
    """The processor's own name where the system tells it, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


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
