"""A warm process: it has imported what a run needs, and forks a worker whenever one is asked for.

Starting Python and its libraries takes longer than the first level of a picture. So the first
detached run leaves this process behind; it listens on a socket that only its user can reach, and
the runs after it begin within milliseconds. It holds no results and no locks, and goes by itself
when nobody has asked for anything for a while.
"""

import contextlib
import fcntl
import hashlib
import importlib
import json
import os
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fractal_core import duty, machine

IDLE_SECONDS = 900.0
INHERITED = (
    *("FRACTAL_THREADS", "CUDA_VISIBLE_DEVICES", "HF_TOKEN"),
    *("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"),
)
"""Beside what workers are given."""


def address() -> Path:
    """Where the warm process of this user, this Python and this very code listens.

    The name holds a hash of the package's files and their times, and of what a child would
    inherit: a process that has imported older code, or is bound to other cores, is never asked.
    """
    package = Path(__file__).parent
    files = sorted(package.rglob("*.py"))
    inherited = [f"{name}={os.environ.get(name)}" for name in INHERITED]
    inherited += [f"{name}={value}" for name, value in sorted(machine.inherited().items())]
    if hasattr(os, "sched_getaffinity"):
        inherited.append(str(sorted(os.sched_getaffinity(0))))
    stamps = [f"{file}{file.stat().st_mtime_ns}" for file in files]
    text = "|".join([sys.executable, *inherited, *stamps])
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"fractal-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o077:
        raise PermissionError(f"{folder} is open to other users")
    return folder / f"{name}.socket"


def start(path: Path, options: Sequence[str] = (), command: str = "run") -> int:
    """Begin a command on a run folder, with options, in a session of its own; returns its id.

    A warm process does it if there is one. If not, it is begun cold, and a warm process is left
    for the next.
    """
    (path / "state").mkdir(exist_ok=True)
    pid = ask(path, options, command)
    if pid is None:
        duty.detach(["-m", "fractal_core.warm"], Path(os.devnull))
        words = ["-m", "fractal_core", command, str(path), *options]
        pid = duty.detach(words, path / "state" / "log.txt").pid
    return pid


def ask(path: Path, options: Sequence[str] = (), command: str = "run") -> int | None:
    """Have the warm process fork a command on `path`; None if there is no warm process."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(10.0)
            client.connect(str(address()))
            request = {"command": command, "run": str(path.resolve()), "options": list(options)}
            request["folder"] = str(Path.cwd())
            client.sendall(json.dumps(request).encode() + b"\n")
            return json.loads(client.makefile().readline())["pid"]
    except (OSError, ValueError, KeyError):
        return None


def serve(prepare: Callable[[], Callable[[list[str]], int]], idle: float = IDLE_SECONDS) -> None:
    """Fork a child for every request, until none has come for `idle` seconds.

    Args:
        prepare: Loads what children will need, and returns what a child does with the arguments
            of a command; that returns its exit code.
        idle: Seconds to wait for a request.
    """
    place = address()
    with place.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # another process serves this place, or is about to
        work = prepare()
        place.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
            server.bind(str(place))
            server.listen(16)
            server.settimeout(idle)
            # Children are nobody's to wait for; the system forgets them when they end.
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            with contextlib.suppress(TimeoutError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        _answer(connection, (server, lock), work)
            place.unlink(missing_ok=True)


def _answer(
    connection: socket.socket, mine: tuple[Any, ...], work: Callable[[list[str]], int]
) -> None:
    connection.settimeout(5.0)
    try:
        request = json.loads(connection.makefile().readline())
        command, path, options = request["command"], Path(request["run"]), request["options"]
        folder = request["folder"]
    except (OSError, ValueError, KeyError):
        return
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for owned in (connection, *mine):
                owned.close()
            os.setsid()
            os.chdir(folder)  # what a recipe names without its whole path lies there
            os.nice(5)  # whoever watches comes first
            log = os.open(path / "state" / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(log, 1)
            os.dup2(log, 2)
            code = work([command, str(path), *options])
        except BaseException:  # noqa: BLE001 - a fork must end here, or it would serve as well
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    try:
        connection.sendall(json.dumps({"pid": pid}).encode() + b"\n")
    except OSError:
        return


def _prepare() -> Callable[[list[str]], int]:
    """Import what a run needs and load the compiled kernels, so that no child has to.

    Imported by name: commands stand on a higher floor, and only this process needs both.
    """
    importlib.import_module("fractal_core.commands.work")
    kernels = importlib.import_module("fractal_core.kernels.cpu")
    for preset in importlib.import_module("fractal_core.experiments").PRESETS.values():
        # Never compiles: that takes long, and the run that wants it does so itself.
        if kernels.is_compiled(preset.experiment.problem(0)):
            preset.experiment.run(np.full((1, 2), 1e6), seed=0)
    return importlib.import_module("fractal_core.__main__").execute


if __name__ == "__main__":
    serve(_prepare)
