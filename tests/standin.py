"""Stands in for the client of Weights & Biases, and writes down what it is told.

What becomes of it is read from `mode` in the folder that `STANDIN` names: nothing special, or the
trouble that the real client has with a server that is down, slow, busy or does not know the key.
"""

import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

TROUBLE = {
    "down": ("init", "connect: connection refused"),
    "bad key": ("init", "returned error 401"),
    "busy": ("wait", "HTTP 429"),
    "slow": ("finish", "Timed out finishing run."),
    "ended": ("finish", ""),
    "hangs": ("init", ""),
}


in_use: set[str] = set()
"""Runs that are being written; even one that could not begin, until the client is torn down."""


def install(folder: Path) -> None:
    """Write the module that Python imports in place of the client."""
    here = str(Path(__file__).parent)
    code = f"import sys; sys.path.append({here!r}); from standin import *\n"
    (folder / "wandb.py").write_text(code)


def folder() -> Path:
    """Where it is told what to do, and writes down what it hears."""
    return Path(os.environ["STANDIN"])


def heard(what: str | None = None, where: Path | None = None) -> list[dict]:
    """What it was told, in order."""
    file = (where or folder()) / "heard.jsonl"
    text = file.read_text() if file.exists() else ""
    # Whoever writes may be in the middle of the last line.
    told = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return [line for line in told if what is None or line["what"] == what]


def hear(what: str, **told: Any) -> None:
    """Write down what it is told, by whom, and have the trouble that was asked for."""
    line = json.dumps({"what": what, "process": os.getpid(), **told}, default=repr)
    with (folder() / "heard.jsonl").open("a") as file:
        file.write(line + "\n")
    file = folder() / "mode"
    mode = file.read_text() if file.exists() else ""
    where, words = TROUBLE.get(mode, ("", ""))
    if mode == "hangs" and what == where:
        time.sleep(600)
    if words and what == where:
        raise ValueError(words)


class Summary(dict):
    """What stands for the whole run; kept for when it goes on."""

    def __init__(self):
        file = folder() / "summary.json"
        super().__init__(json.loads(file.read_text()) if file.exists() else {})

    def update(self, told: dict) -> None:
        hear("summary", told=told)
        super().update(told)


class Run:
    """A run that is being written."""

    def __init__(self, id: str, settings: Any):
        self.id, self.settings = id, settings
        self.summary, self.url = Summary(), "https://example.org/run"

    def define_metric(self, name: str, **options: Any) -> None:
        hear("metric", name=name, **options)

    def log(self, told: dict) -> None:
        hear("log", told=told)
        dict.update(self.summary, {k: v for k, v in told.items() if isinstance(v, int | float)})
        (folder() / "summary.json").write_text(json.dumps(self.summary))

    def log_artifact(self, artifact: "Artifact") -> "Artifact":
        files = {
            str(path.relative_to(artifact.place)): path.stat().st_size for path in artifact.files
        }
        hear(
            "artifact", name=artifact.name, type=artifact.type, files=files, at=str(artifact.place)
        )
        return artifact

    def finish(self) -> None:
        hear("finish")
        in_use.discard(self.id)
        if (folder() / "mode").exists() and (folder() / "mode").read_text() == "ended":
            self.settings.stop_fn()


class Artifact:
    """Files that are uploaded together; they lie in a folder of their own."""

    def __init__(self, name: str, type: str):
        self.name, self.type = name, type
        self.place = folder() / f"{name}-{time.monotonic_ns()}"

    @property
    def files(self) -> list[Path]:
        return [path for path in self.place.rglob("*") if path.is_file()]

    def new_file(self, name: str, mode: str):
        self.place.mkdir(exist_ok=True)
        return (self.place / name).open(mode)

    def add_dir(self, path: str, **options: Any) -> None:
        self.place = Path(path)

    def wait(self, timeout: int) -> None:
        hear("wait", timeout=timeout)


def Table(columns: list, data: list) -> dict:
    return {"columns": columns, "data": data}


def Image(picture: Any) -> dict:
    return {"size": picture.size}


def Settings(**given: Any) -> SimpleNamespace:
    return SimpleNamespace(**given)


def setup() -> SimpleNamespace:
    """As the real one: the environment, over what it would take from files of settings."""
    told = os.environ.get
    return SimpleNamespace(
        settings=SimpleNamespace(
            mode=told("WANDB_MODE", "online"),
            api_key=told("WANDB_API_KEY"),
            base_url=told("WANDB_BASE_URL", "https://api.wandb.ai"),
            identity_token_file=None,
            project=told("WANDB_PROJECT"),
        )
    )


def teardown() -> None:
    in_use.clear()


def init(id: str, settings: Any, **given: Any) -> Run:
    if id in in_use:
        raise ValueError(f"run ID {id} is in use")
    in_use.add(id)
    environment = {name: os.environ.get(name) for name in ("WANDB_ERROR_REPORTING", "WANDB_SILENT")}
    kept = {name: v for name, v in vars(settings).items() if not callable(v)}
    hear("init", id=id, settings=kept, environment=environment, argv=sys.argv, **given)
    return Run(id, settings)
