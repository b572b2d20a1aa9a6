"""Run programs that a model wrote, in a sandbox or not at all.

The sandbox is made of Linux namespaces, by Bubblewrap where it is installed and works, and else by
ourselves (see `jail`). A program sees the interpreter and the system's libraries, read-only, and an
empty folder of its own in memory; no network, no process but its own, no variable of the
environment. Its time, memory, processes, files and output are limited, and when one limit of them
is passed all of its processes are killed. What this rests on is the kernel; against a fault in it
there is no second wall.

A program says itself that it ran to its end, so one that sets out to can claim success. It gains
a point by that, and nothing else.
"""

import contextlib
import functools
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from nanochat.common import Refused

MAX_PROGRAM = 60_000
"""Bytes of a program: it must fit into a pipe that nobody reads yet."""

MAX_OUTPUT = 64 * 1024
"""Bytes of each of a program's outputs; with more it is killed."""

START = 60.0
"""Seconds that a sandbox may take to start, which are none of the program's."""

READY = b"ready"

_RUNNER = r"""
import json, os, sys
source = sys.stdin.buffer.read()
setup, out = map(int, sys.argv[1:])
del sys.argv[1:]
os.set_inheritable(out, False)
os.write(setup, b"ready")
os.close(setup)
report = {"error": None}
try:
    exec(compile(source, "program.py", "exec"), {"__name__": "__main__"})
except BaseException as error:
    report["error"] = f"{type(error).__name__}: {error}"[:2000]
    report["memory"] = isinstance(error, MemoryError)
for stream in (sys.stdout, sys.stderr):
    try:
        stream.flush()
    except (OSError, ValueError, AttributeError):
        pass
os.write(out, json.dumps(report).encode())
os._exit(0)
"""


@dataclass(frozen=True)
class ExecutionResult:
    """What became of a program; `success` if it ran to its end and raised nothing."""

    success: bool
    stdout: str
    stderr: str
    error: str | None = None
    timeout: bool = False
    memory_exceeded: bool = False


@dataclass(frozen=True)
class Limits:
    """What a program may use. Memory is that of one process, so in all it is four times that.

    What the kernel keeps for open pipes and sockets comes on top; it is bounded by their number.
    """

    seconds: float = 5.0
    memory: int = 256 * 1024 * 1024
    disk: int = 16 * 1024 * 1024
    processes: int = 4


def execute_code(
    code: str, timeout: float = 5.0, maximum_memory_bytes: int | None = 256 * 1024 * 1024
) -> ExecutionResult:
    """Run a program in the sandbox.

    Args:
        code: Python.
        timeout: Seconds by the clock, from when the program starts.
        maximum_memory_bytes: Address space of one process; None is the default, not boundless.

    Raises:
        Refused: This machine allows no sandbox; the program did not run.
    """
    bwrap = require_sandbox()
    memory = maximum_memory_bytes or Limits.memory
    return _run(code, Limits(seconds=timeout, memory=memory), bwrap)


@functools.cache
def require_sandbox() -> str:
    """Try the sandboxes once; the path of Bubblewrap if that makes it, else nothing.

    Raises:
        Refused: This machine allows none; the sentence says what to allow.
    """
    bwrap = shutil.which("bwrap")
    if bwrap:
        with contextlib.suppress(Refused):
            _try(bwrap)
            return bwrap
    _try("")
    return ""


def _try(bwrap: str) -> None:
    result = _run("import math\nprint(math.pi)", Limits(), bwrap)
    if result.stdout != "3.141592653589793\n":
        raise _refusal(result.error or "the interpreter does not start in it")


def _refusal(why: str) -> Refused:
    return Refused(
        "programs that a model wrote run only in a sandbox, which this machine does not allow "
        f"({why}); use Linux 5.14 or later, of x86_64 or aarch64, with user namespaces allowed "
        "(sysctl user.max_user_namespaces; in a container also --security-opt seccomp=unconfined "
        "and, where there is AppArmor, --security-opt apparmor=unconfined), "
        "or where only some programs are, install bubblewrap 0.5 or later"
    )


def _run(code: str, limits: Limits, bwrap: str = "") -> ExecutionResult:
    if not sys.platform.startswith("linux"):
        raise _refusal(f"it is made of Linux namespaces and this is {sys.platform}")
    source = code.encode("utf-8", "replace")
    if len(source) > MAX_PROGRAM:
        return ExecutionResult(False, "", "", f"the program has more than {MAX_PROGRAM} bytes")
    program, setup, report = os.pipe(), os.pipe(), os.pipe()
    os.write(program[1], source)
    os.close(program[1])
    with tempfile.TemporaryDirectory() as folder:
        settings = _settings(folder, setup[1], report[1], limits) | {"bwrap": bwrap}
        jail = str(Path(__file__).with_name("jail.py"))
        process = subprocess.Popen(
            [os.path.realpath(sys.executable), "-I", "-S", "-B", jail, json.dumps(settings)],
            stdin=program[0],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={},
            pass_fds=(setup[1], report[1]),
            start_new_session=True,
        )
        for fd in (program[0], setup[1], report[1]):
            os.close(fd)
        assert process.stdout
        assert process.stderr
        fds = {
            "stdout": process.stdout.fileno(),
            "stderr": process.stderr.fileno(),
            "setup": setup[0],
            "report": report[0],
        }
        stopped: str | None = "interrupted"
        try:
            read, stopped = _read(fds, limits.seconds)
        finally:
            _end(process, at_once=stopped is not None)
            for fd in (setup[0], report[0]):
                os.close(fd)
            process.stdout.close()
            process.stderr.close()
    if stopped == "start":
        raise Refused(
            f"the sandbox of a program did not start in {START:g} seconds; let this machine do "
            "less at a time"
        )
    if read["setup"] != READY:
        raise _refusal(read["setup"].decode(errors="replace") or _last_line(read["stderr"]))
    return _result(read, stopped, process.returncode)


def _settings(folder: str, setup: int, report: int, limits: Limits) -> dict:
    python = os.path.realpath(sys.executable)
    return {
        "folder": folder,
        "setup": setup,
        "report": report,
        "visible": _visible(python),
        "disk": limits.disk,
        "argv": [python, "-I", "-S", "-B", "-c", _RUNNER, str(setup), str(report)],
        "environment": {"HOME": "/work", "TMPDIR": "/work", "LANG": "C.UTF-8"},
        "limits": {
            "RLIMIT_CPU": int(limits.seconds) + 1,
            "RLIMIT_AS": limits.memory,
            "RLIMIT_FSIZE": limits.disk,
            "RLIMIT_NPROC": limits.processes,
            "RLIMIT_NOFILE": 64,
            "RLIMIT_CORE": 0,
        },
    }


def _visible(python: str) -> list[str]:
    """Folders and files that the interpreter needs, outer ones first and none within another."""
    paths = {"/lib", "/lib64", "/usr/lib", "/usr/lib64", "/dev/null"}
    if sys.base_prefix in ("/usr", "/usr/local"):
        paths |= {python, sysconfig.get_path("stdlib"), f"{sys.base_prefix}/lib"}
    else:
        paths |= {os.path.realpath(sys.base_prefix), python}
    chosen: list[str] = []
    for path in sorted(filter(os.path.exists, paths)):
        if not any(Path(path).is_relative_to(outer) for outer in chosen):
            chosen.append(path)
    return chosen


def _read(fds: dict[str, int], seconds: float) -> tuple[dict[str, bytes], str | None]:
    """Everything that comes until all ends are closed or a limit is passed, and which limit."""
    read = {name: b"" for name in fds}
    running, deadline = False, time.monotonic() + START
    with selectors.DefaultSelector() as selector:
        for name, fd in fds.items():
            selector.register(fd, selectors.EVENT_READ, name)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if time.monotonic() >= deadline:
                return read, "timeout" if running else "start"
            for key, _ in ready:
                piece = os.read(key.fd, 1 << 16)
                if not piece:
                    selector.unregister(key.fd)
                read[key.data] = (read[key.data] + piece)[: MAX_OUTPUT + 1]
                if len(read[key.data]) > MAX_OUTPUT:
                    return read, "output"
            if not running and read["setup"] == READY:
                running, deadline = True, time.monotonic() + seconds
    return read, None


def _end(process: subprocess.Popen, at_once: bool) -> None:
    """Kill all who stand between here and the program; the program dies with the last of them."""
    if not at_once:  # all ends are closed: it is ending, let it say how
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _result(read: dict[str, bytes], stopped: str | None, code: int) -> ExecutionResult:
    stdout, stderr = (read[n][:MAX_OUTPUT].decode(errors="replace") for n in ("stdout", "stderr"))
    if stopped == "timeout" or code == 128 + signal.SIGXCPU:
        return ExecutionResult(False, stdout, stderr, "it took too long", timeout=True)
    if stopped == "output":
        return ExecutionResult(False, stdout, stderr, f"it wrote more than {MAX_OUTPUT} bytes")
    try:
        report = json.loads(read["report"])
        error, memory = report["error"], bool(report.get("memory"))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return ExecutionResult(False, stdout, stderr, f"it ended early, with status {code}")
    if error is not None:
        return ExecutionResult(False, stdout, stderr, str(error), memory_exceeded=memory)
    return ExecutionResult(True, stdout, stderr)


def _last_line(text: bytes) -> str:
    return (text.decode(errors="replace").strip().splitlines() or ["no reason was given"])[-1]
