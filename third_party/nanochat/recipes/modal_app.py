"""On eight GPUs of Modal, from the root of the repository, after `uv sync --extra modal`:

    modal run --detach third_party/nanochat/recipes/modal_app.py
    modal run third_party/nanochat/recipes/modal_app.py --smoke          ten steps of each stage
    python third_party/nanochat/recipes/modal_app.py --smoke             the same command here

What is made goes into the volume `nanochat`. A machine that is to be taken away is told so half a
minute before, and saves; the next one goes on from there.
"""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

INSIDE, RESULTS = "/fractal-llm", "/results"
LEFT_OUT = [".git", ".venv", "**/__pycache__", "runs", "report.md"]


def command(smoke: bool, python: str = sys.executable) -> list[str]:
    """What is run, wherever that is."""
    return [python, "-m", "scripts.speedrun", "--size=smoke" if smoke else "--size=d20"]


def train(smoke: bool = False) -> None:
    """What a machine of Modal does; when it is interrupted, the command saves first."""
    environment = os.environ | {"NANOCHAT_BASE_DIR": RESULTS}
    words = command(smoke, f"{INSIDE}/.venv/bin/python")
    for word in (signal.SIGINT, signal.SIGTERM):  # Modal's own is the first
        signal.signal(word, signal.default_int_handler)
    # In a session of its own, so that it hears of it once: a second word to stop saves nothing.
    process = subprocess.Popen(words, cwd=INSIDE, env=environment, start_new_session=True)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    if code:
        raise subprocess.CalledProcessError(code, words)


def launch(smoke: bool = False) -> None:
    """What `modal run` does."""
    machine: Any = train_on_cpu if smoke else train_on_gpus
    machine.remote(smoke)


if importlib.util.find_spec("modal"):  # an extra: the command is run here without it
    import modal

    app = modal.App("nanochat")
    image = modal.Image.debian_slim(python_version="3.12").pip_install("uv")
    if modal.is_local():
        image = image.add_local_dir(Path(__file__).parents[3], INSIDE, copy=True, ignore=LEFT_OUT)
        image = image.run_commands(f"cd {INSIDE} && uv sync --extra data")
    shared: dict[str, Any] = {
        "image": image,
        "volumes": {RESULTS: modal.Volume.from_name("nanochat", create_if_missing=True)},
        "timeout": 24 * 3600,
        "retries": modal.Retries(max_retries=10, initial_delay=10.0),
    }
    train_on_gpus = app.function(name="train", gpu="H100:8", cpu=32.0, **shared)(train)
    train_on_cpu = app.function(name="smoke", cpu=2.0, **shared)(train)
    app.local_entrypoint(name="main")(launch)


if __name__ == "__main__":
    os.execv(sys.executable, command("--smoke" in sys.argv))
