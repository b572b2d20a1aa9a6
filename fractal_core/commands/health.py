"""Commands about the machine: doctor."""

import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import psutil
import tyro

from fractal_core import machine
from fractal_core.commands import Json
from fractal_core.errors import Refused
from fractal_core.files import Files


def doctor(folder: tyro.conf.Positional[Path] = Path("runs"), /, *, as_json: Json = False) -> None:
    """Say what this machine is, and whether run folders will work where they are to be.

    Args:
        folder: Where the run folders are to be.
        as_json: One JSON object and nothing else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    report = {**machine.describe(), **_gpus(), "folder": str(folder), **_disk(folder)}
    if as_json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        shown = (
            ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        )
        print(f"{name:<16} {shown}")


def _gpus() -> dict[str, object]:
    """Every GPU, and whose processes hold memory on it: those in the way of a run are named."""
    report: dict[str, object] = {}
    for gpu in machine.gpus():
        foreign = [name for pid in gpu.processes if (name := _foreign(pid))]
        held = f"; held by {', '.join(foreign)}" if foreign else ""
        report[f"cuda:{gpu.index}"] = (
            f"{gpu.name}, {gpu.memory + ' used' if gpu.memory else 'does not tell its memory'}, "
            f"{gpu.used_percent:.0f} % busy{held}"
        )
    return report or {"gpus": "none"}


def _foreign(pid: int) -> str:
    """A process as one would ask for it; empty if it is a worker of ours."""
    try:
        process = psutil.Process(pid)
        ours = "fractal_core.worker" in process.cmdline()
        return "" if ours else f"{process.name()} ({pid}, {process.username()})"
    except psutil.Error:
        return f"process {pid}"


def _disk(folder: Path) -> dict[str, object]:
    """Free space, kind of file system, time of a commit, and that the first commit wins."""
    mounts = {part.mountpoint: part.fstype for part in psutil.disk_partitions(all=True)}
    above = [str(parent) for parent in (folder.resolve(), *folder.resolve().parents)]
    with tempfile.TemporaryDirectory(dir=folder, prefix=".doctor-") as scratch:
        files = Files(Path(scratch))
        times = []
        for trial in range(9):
            started = time.perf_counter()
            files.put_once(f"{trial}", os.urandom(4096))
            times.append(time.perf_counter() - started)
        if files.put_once("0", b"second"):
            raise Refused(f"{folder}: this file system lets a second writer win; choose another")
    return {
        "free_gigabytes": round(shutil.disk_usage(folder).free / 1e9, 1),
        "file_system": next((mounts[path] for path in above if path in mounts), "unknown"),
        "commit_ms": round(1e3 * statistics.median(times), 2),
    }
