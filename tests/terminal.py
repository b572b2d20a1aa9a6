"""The command line as a person gives it."""

import subprocess
import sys
from pathlib import Path


def fractal(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """What a command prints, and how it exits."""
    return subprocess.run(
        [sys.executable, "-m", "fractal_core", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
