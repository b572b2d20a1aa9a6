"""On a Ray cluster and off it again: its address, its token, and nothing of it left behind."""

import contextlib
import logging
import os
import secrets
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from fractal_core import machine, worker
from fractal_core.errors import Refused

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else Ray copies the folder we are in to every node
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # we hear of them in other ways
    "RAY_TQDM_PATCH_PRINT": "0",  # `print` is not Ray's to replace
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # of the native part, which writes to the standard error
}
STORE_BYTES = 80 * 2**20


@contextlib.contextmanager
def joined() -> Iterator[ModuleType]:
    """Be on the cluster that `RAY_ADDRESS` names, or on one that is begun here and ended again.

    One that is begun here takes calls with a token only, on the loopback interface only, and has
    no dashboard. What was there before is left as it was.

    Yields:
        The module `ray`.

    Raises:
        Refused: The cluster cannot be reached, or does not take our token.
    """
    address = os.environ.get("RAY_ADDRESS") or "local"
    os.environ.update(QUIET)
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with contextlib.ExitStack() as ours:
        if address == "local":
            require_token()
            # Ray keeps logs and sockets where all users may read; the path of a socket is short.
            folder = ours.enter_context(tempfile.TemporaryDirectory(dir="/tmp", prefix="fractal-"))
            settings |= {
                "num_cpus": machine.cpu_threads(),
                "include_dashboard": False,
                "object_store_memory": STORE_BYTES,
                "_temp_dir": f"{folder}/ray",
            }
            # By that Ray listens on the loopback interface only, on any system.
            os.environ |= {"RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
        else:
            # A cluster without tokens runs the code of anyone who reaches it; that must be meant.
            os.environ.setdefault("RAY_AUTH_MODE", "token")
            os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "3")
            _require_answer(address)
        import ray

        if not ray.is_initialized():
            _join(ray, address, settings)
            ours.callback(ray.shutdown)
        yield ray


def _join(ray: Any, address: str, settings: dict[str, Any]) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        with _hushed():
            ray.init(address=address, **settings)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        why = str(error.__cause__ or error)
        if "auth" in why.lower():
            raise Refused(
                f"the cluster at {address} does not take our token; copy ~/.ray/auth_token from "
                "its head (readable by you alone), or set RAY_AUTH_MODE=disabled if it has none"
            ) from None
        raise Refused(
            f"Ray cannot work at {address} ({worker.in_words(error)}); see that it runs there, "
            "with this version of Ray and Python"
        ) from None
    except SystemExit:
        # Its own handler for SIGTERM, before there was anything to stop.
        raise SystemExit(worker.TEMPORARY) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Keep off the standard error what native code writes there before it can be told not to."""
    kept = os.dup(2)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _require_answer(address: str) -> None:
    """Refuse at once where nothing listens; Ray would try for a quarter of an hour."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if "//" in address or not host or not port.isdecimal():
        raise Refused(
            f"RAY_ADDRESS={address}: write HOST:PORT of the head, for example 10.0.0.1:6379"
        )
    if not answers(address):
        raise Refused(
            f"RAY_ADDRESS={address}: no cluster answers there; begin one with `ray start --head`, "
            "or unset RAY_ADDRESS to begin one for this run only"
        )


def answers(address: str) -> bool:
    """Whether anybody listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError:
        return False
    return True


def require_token() -> None:
    """See that there is a token, where Ray looks for it and nobody else can."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    path = Path.home() / ".ray" / "auth_token"
    if path.exists():
        return
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = path.with_name(f".{secrets.token_hex(8)}")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
        draft.unlink()
    except OSError as error:
        raise Refused(
            f"cannot keep a token in {path} ({error.strerror}); put one in a file of your own "
            "and name that in RAY_AUTH_TOKEN_PATH"
        ) from None
