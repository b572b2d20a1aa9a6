"""Weights & Biases as a mirror of what a run folder holds, never as its record.

A sweep is one run there, named by its content id, so that whatever is sent again goes on in the same
one; so is a single run. Nothing is sent that the folder does not hold, and no secret that it may.
What is said of it with no proof is not believed: every send ends with an artifact, and the server's
word that it has that is the receipt.

Without a key for a server all is written into the folder, and nothing leaves this machine.
"""

import importlib.util
import io
import json
import math
import netrc
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np

from fractal_core.errors import Refused
from fractal_core.files import objects, read_lines
from fractal_core.outcome import Outcome
from fractal_core.redact import redact
from fractal_core.store import Image
from fractal_core.sweep import Sweep

PROJECT = "fractal-llm"
PATIENCE = 60.0
HOSTED = ("api.wandb.ai", "api.forge.coreweave.com")
"""The names of the public server: a key for one of them is a key for the other."""

QUIET = {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
"""Reports of its own errors would be sent with their surroundings, and delay the end when the server
is down."""

MOST_ROWS = 2**15
COLUMNS = (
    *("x", "y", "outcome", "measure", "first_loss", "tail_loss", "final_loss", "steps", "seconds"),
)
SAMPLES = ("question", "expected", "before", "after")
SLOWEST = 2**20
"""Bytes per second that an upload may take as its right."""

STEP = "global_step"
RENAMED = {"step": STEP, "val_loss": "val/loss"}


class Unsent(Refused):
    """The server did not take it; all of it is still in the run folder."""


@dataclass(frozen=True)
class Subject:
    """What is mirrored.

    Args:
        path: The run folder.
        id: Content id of its sweep.
        kind: Whether it is a map or one run with its curve.
        config: Its recipe, for reading.
    """

    path: Path
    id: str
    kind: Literal["sweep", "finetune"]
    config: Mapping[str, Any]

    @classmethod
    def of(cls, path: Path, sweep: Sweep) -> "Subject":
        """What a run folder and its recipe say."""
        region = sweep.region
        config = {
            "experiment": type(sweep.experiment).__name__,
            "settings": sweep.experiment,
            "x": region.x,
            "y": region.y,
            "seed": sweep.seed,
            "contract": sweep.recipe["contract"],
            "sweep": sweep.id,
        }
        return cls(path, sweep.id, "finetune" if single(sweep) else "sweep", clean(config))

    @property
    def name(self) -> str:
        """What the run is called there: `WANDB_RUN`, or the name of the folder."""
        name = redact(os.environ.get("WANDB_RUN") or self.path.resolve().name)
        return f"{name}-ft" if self.kind == "finetune" else name

    @property
    def again(self) -> str:
        """The command that sends it again."""
        return f"fractal track {self.path}"


def clean(value: Any) -> Any:
    """Plain data without secrets: what is not a number, a list or a dictionary is text."""
    if is_dataclass(value) and not isinstance(value, type):
        return clean(asdict(value))
    if isinstance(value, Mapping):
        return {redact(str(key)): clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return value if value is None or isinstance(value, bool | int | float) else redact(str(value))


def cleaned(data: bytes) -> bytes:
    """A file of JSON, or of a line of it for every record, without secrets."""
    try:
        whole = json.loads(data)
    except ValueError:
        lines = [json.dumps(clean(line)) for line in objects(data)]
        return "".join(f"{line}\n" for line in lines).encode()
    return data if clean(whole) == whole else json.dumps(clean(whole), indent=1).encode()


def single(sweep: Sweep) -> bool:
    """Whether a sweep is one run with its curve, not a map."""
    return sweep.grid.shape == (1, 1)


def curve(path: Path, after: int = -1) -> list[dict[str, Any]]:
    """The steps of a single run after one, as they go to the server; a torn last line is left out."""
    return [
        {RENAMED.get(name, name): value for name, value in row.items() if value is not None}
        for row in read_lines(path / "single" / "metrics.jsonl")
        if isinstance(row.get("step"), int) and row["step"] > after
    ]


def size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def points(image: Image) -> tuple[list[list[Any]], int]:
    """A row of `COLUMNS` for every point that is computed; what is not finite is empty.

    Returns:
        The rows, and of which lattice: 1 for all points, 2 for every second row and column of a
        map of more than `MOST_ROWS` points, and so on. The artifact holds all.
    """
    known = ~np.ma.getmaskarray(image.outcome)
    stride = 1
    while np.count_nonzero(known[::stride, ::stride]) > MOST_ROWS:
        stride *= 2
    rows, cols = (stride * index for index in np.nonzero(known[::stride, ::stride]))
    arrays = [np.ma.getdata(getattr(image, name))[rows, cols].tolist() for name in COLUMNS[2:]]
    arrays[0] = [Outcome(label).name for label in arrays[0]]
    places = image.grid.x[cols].tolist(), image.grid.y[rows].tolist()
    return [[_finite(value) for value in row] for row in zip(*places, *arrays, strict=True)], stride


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def counts(image: Image) -> dict[str, Any]:
    """How many points of a map ended how, and the share that trained of those that are computed."""
    ended = np.bincount(image.outcome.compressed(), minlength=len(Outcome) + 1)
    done = int(ended.sum())
    told: dict[str, Any] = {label.name.lower(): int(ended[label]) for label in Outcome}
    told |= {"points": image.outcome.size, "done": done, "missing": image.outcome.size - done}
    return told | ({"share_trainable": told["trainable"] / done} if done else {})


def require_client() -> None:
    """Refuse to promise what cannot be kept.

    Raises:
        Refused: Weights & Biases is not installed, or switched off.
    """
    if importlib.util.find_spec("wandb") is None:
        raise Refused("Weights & Biases is not installed here; `uv sync` installs it")
    if os.environ.get("WANDB_MODE") == "disabled":
        raise Refused("WANDB_MODE is disabled, so nothing is sent; unset it")


class Record:
    """A run at Weights & Biases that is being written.

    In trouble every method raises `Unsent`, and the record is over: make another one.

    Args:
        subject: What it mirrors; a run that is there already goes on.
        patience: Seconds that the server may take for each of three things: to begin, to confirm
            files (and a second more for every MB), to take the rest.
        scratch: Where the client may write what is of no use once the server has it.
    """

    def __init__(self, subject: Subject, patience: float, scratch: Path):
        self.subject, self.patience = subject, patience
        self._lost = threading.Event()
        self._wandb: Any = None
        self._run: Any = None
        os.environ.update(QUIET)
        with self._asking("begin a run"):
            import wandb

            self._wandb = wandb
            settings = wandb.setup().settings
            offline = settings.mode in ("offline", "dryrun")
            self.online = not offline and (_has_key(settings) or "WANDB_MODE" in os.environ)
            folder = scratch if self.online else subject.path
            for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
                os.environ.setdefault(name, str(folder / "wandb"))
            self._run = wandb.init(
                project=settings.project or PROJECT,
                id=subject.id,
                name=subject.name,
                job_type=subject.kind,
                tags=[subject.kind, subject.id],
                config=dict(subject.config),
                dir=str(folder),
                mode="online" if self.online else "offline",
                resume="allow",
                reinit="create_new",
                settings=self._settings(),
            )
            self.sent = int(self._run.summary.get(STEP, -1))
            if subject.kind == "finetune":
                self._run.define_metric(STEP)
                self._run.define_metric("*", step_metric=STEP)

    def _settings(self) -> Any:
        """No code, no output, no machine, no environment; no wait without an end."""
        return self._wandb.Settings(
            console="off",
            save_code=False,
            disable_git=True,
            disable_job_creation=True,
            program="fractal",
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
            init_timeout=self.patience,
            finish_timeout=self.patience,
            finish_timeout_raises=True,
            # The client's own way to stop is an interrupt, even when it only cannot send any more.
            stop_on_fatal_error=True,
            stop_fn=self._lost.set,
        )

    @property
    def place(self) -> str:
        """Where it can be seen, or where it is kept."""
        return self._run.url if self.online else f"{self.subject.path}/wandb"

    def log(self, figures: Mapping[str, Any]) -> None:
        """Add figures to the history."""
        with self._asking("take figures"):
            self._run.log(dict(figures))

    def steps(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add the steps of a curve that are not there yet."""
        for row in rows:
            if row[STEP] > self.sent:
                self.log(row)
                self.sent = row[STEP]

    def picture(self, name: str, png: bytes) -> None:
        """Add a picture."""
        from PIL import Image as Picture

        with self._asking("take a picture"):
            self._run.log({name: self._wandb.Image(Picture.open(io.BytesIO(png)))})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Add a table."""
        with self._asking("take a table"):
            table = self._wandb.Table(columns=list(columns), data=[list(row) for row in rows])
            self._run.log({name: table})

    def summary(self, figures: Mapping[str, Any]) -> None:
        """Set figures that stand for the whole run."""
        with self._asking("take a summary"):
            self._run.summary.update(clean(figures))

    def artifact(self, name: str, kind: str, files: Mapping[str, bytes] | Path) -> None:
        """Upload files, or a folder as it is, and wait until the server says that it has them."""
        with self._asking("take files"):
            artifact = self._wandb.Artifact(name, type=kind)
            patience = self.patience
            if isinstance(files, Path):
                # Neither copied nor cached: it may be large, and nobody changes it.
                artifact.add_dir(str(files), skip_cache=True, policy="immutable")
                patience += size(files) / SLOWEST
            else:
                for inside, data in files.items():
                    with artifact.new_file(inside, mode="wb") as file:
                        file.write(data)
            logged = self._run.log_artifact(artifact)
            if self.online:
                logged.wait(timeout=math.ceil(patience))

    def close(self) -> None:
        """End the run and wait until the rest is sent as well."""
        with self._asking("take the rest"):
            self._run.finish()
            if self._lost.is_set():
                raise RuntimeError("it ended the run")

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the client raises anything, and nothing of it is ours to mend
            # Or the client would refuse the same run a second time, as being in use.
            with suppress(Exception):
                self._wandb.teardown()
            words = " ".join(redact(str(error)).split())[:300] or type(error).__name__
            raise Unsent(self._sentence(what, words)) from error

    def _sentence(self, what: str, reason: str) -> str:
        return (
            f"Weights & Biases did not {what} ({reason}); the run folder holds everything, and "
            f"`{self.subject.again}` sends it again"
        )


def _has_key(settings: Any) -> bool:
    """Whether the client has, or will find, a key for its server."""
    if settings.api_key or settings.identity_token_file:
        return True
    host = urlsplit(settings.base_url).netloc
    told = os.environ.get("NETRC")
    files = [Path(told).expanduser()] if told else [Path.home() / n for n in (".netrc", "_netrc")]
    for file in files:
        with suppress(OSError, netrc.NetrcParseError):
            known = netrc.netrc(file)
            return any(known.authenticators(h) for h in (HOSTED if host in HOSTED else (host,)))
    return False
