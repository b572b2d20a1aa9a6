"""Commands that open notebooks: open."""

import os
import secrets
import sys
from pathlib import Path
from typing import Literal

import tyro

import fractal_core
from fractal_core.errors import Refused


def open(
    notebook: tyro.conf.Positional[Literal["zoom"]] = "zoom",
    /,
    *,
    allow_control: bool = False,
    port: int | None = None,
    browser: bool = False,
) -> None:
    """Open a notebook as an app, on 127.0.0.1 only and behind a token.

    Args:
        notebook: Which.
        allow_control: Let the app start and stop runs; without it, it only looks.
        port: Where to listen; a free one if left out.
        browser: Open a browser, too.
    """
    file = Path(fractal_core.__file__).parent.parent / "notebooks" / f"{notebook}.py"
    if not file.exists():
        raise Refused(f"{file} is not there; open notebooks from a checkout of the repository")
    # A pipe, because the arguments of a process can be read by every user of the machine; and no
    # process beside marimo's own, so that whatever ends this command ends the server.
    reading, writing = os.pipe()
    os.write(writing, secrets.token_urlsafe(24).encode())
    os.close(writing)
    os.set_inheritable(reading, True)
    command = [sys.executable, "-m", "marimo", "run", str(file), "--host", "127.0.0.1"]
    command += ["--token", "--token-password-file", f"/dev/fd/{reading}", "--session-ttl", "60"]
    command += ["--port", str(port)] if port else []
    command += [] if browser else ["--headless"]
    environment = os.environ | {"FRACTAL_ALLOW_CONTROL": "1" if allow_control else "0"}
    os.execve(sys.executable, command, environment)
