"""Commands that open notebooks: open."""

import os
import secrets
import socket
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import webbrowser
from pathlib import Path

import tyro

import fractal_core
from fractal_core import machine
from fractal_core.errors import Refused, require_known

NOTEBOOKS = ("zoom", "single_run", "sweep", "dimension", "figures", "chat", "pipeline")
ROOT = Path("runs")
PATIENCE = 60
LAST_PORT = 65535


def open(
    what: tyro.conf.Positional[str] = "zoom",
    /,
    *,
    allow_control: bool = False,
    port: int | None = None,
    browser: bool = False,
) -> None:
    """Open a notebook as an app, on 127.0.0.1 only and behind a token; or the view of a figure.

    Args:
        what: A notebook: zoom, single_run, sweep, dimension, figures, chat or pipeline. Or the file
            of a figure or film that was drawn here: the zoom notebook opens at what it shows, from
            the run folder in `runs` if it is there.
        allow_control: Let the app start and stop runs; without it, it only looks.
        port: Where to listen; a free one if left out.
        browser: Open a browser, too.
    """
    queries = _views(Path(what))
    notebook = "zoom" if queries else what
    require_known("notebook", notebook, NOTEBOOKS)
    file = Path(fractal_core.__file__).parent.parent / "notebooks" / f"{notebook}.py"
    if not file.exists():
        raise Refused(f"{file} is not there; open notebooks from a checkout of the repository")
    if port is not None:
        _require_port(port)
    token = secrets.token_urlsafe(24)
    if queries:
        port = port or machine.free_port()
        urls = [_url(port, query, token) for query in queries]
        print("\n".join(f"{what} shows {url}" for url in urls), flush=True)
        if browser:
            _browse(urls[0], port)
    # A pipe, because the arguments of a process can be read by every user of the machine; and no
    # lasting process beside marimo's own, so that whatever ends this command ends the server.
    reading, writing = os.pipe()
    os.write(writing, token.encode())
    os.close(writing)
    os.set_inheritable(reading, True)
    command = [sys.executable, "-m", "marimo", "run", str(file), "--host", "127.0.0.1"]
    command += ["--token", "--token-password-file", f"/dev/fd/{reading}", "--session-ttl", "60"]
    command += ["--port", str(port)] if port else []
    command += [] if browser and not queries else ["--headless"]
    environment = os.environ | {"FRACTAL_ALLOW_CONTROL": "1" if allow_control else "0"}
    os.execve(sys.executable, command, environment)


def _views(path: Path) -> list[dict[str, str]]:
    """Where the zoom notebook shows what a figure shows; nothing if it is no file of a figure.

    Raises:
        Refused: The figure tells nothing, or none of its runs can be shown.
    """
    from fractal_core import recipe

    if path.suffix.lower() not in recipe.SUFFIXES:
        return []
    found, reason = [], None
    for run in recipe.read(path).runs:
        try:
            found.append(recipe.address(ROOT, run))
        except Refused as refusal:
            reason = reason or refusal
    if reason and not found:
        raise reason
    return found


def _url(port: int, query: dict[str, str], token: str) -> str:
    return f"http://127.0.0.1:{port}/?{urllib.parse.urlencode(query | {'access_token': token})}"


def _require_port(port: int) -> None:
    """Refuse a port that cannot be listened on, before an address with a token is printed.

    Raises:
        Refused: There is no such port, it is in use, or only an administrator may use it.
    """
    if not 1 <= port <= LAST_PORT:
        raise Refused(
            f"--port {port} is not between 1 and {LAST_PORT}; leave it out for a free one"
        )
    with socket.socket() as probe:
        # As marimo's own, or a port would seem busy for a minute after its last server has ended.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise Refused(
                f"--port {port} cannot be listened on: {error.strerror}; leave it out for a free one"
            ) from None


def _browse(url: str, port: int) -> None:
    """Open a browser once the server that this process becomes answers; marimo would show its
    first page, and not the view.
    """
    if os.fork():
        return
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
            continue
        webbrowser.open(url)
        break
    os._exit(0)
