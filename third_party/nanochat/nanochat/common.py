"""What every stage needs: where files live, which process this is, on what device, and its record.

Importing it changes nothing; `compute_init` does what has effects.
"""

import contextlib
import json
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

SEED = 42
T = TypeVar("T")


class Refused(ValueError):
    """Something asked for cannot be done; the message is one sentence that names the remedy."""


class Unavailable(Refused):
    """Someone else's service did not give it now; the same may be had later."""


def get_base_dir() -> str:
    """The folder of data, tokenizer and checkpoints: $NANOCHAT_BASE_DIR or ~/.cache/nanochat."""
    base = Path(os.environ.get("NANOCHAT_BASE_DIR") or Path.home() / ".cache" / "nanochat")
    base.mkdir(parents=True, exist_ok=True)
    return str(base)


def get_dist_info() -> tuple[bool, int, int, int]:
    """Whether torchrun started this process, its rank, its rank on this machine, how many there are."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    if not all(name in os.environ for name in names):
        return False, 0, 0, 1
    rank, local_rank, world_size = (int(os.environ[name]) for name in names)
    return True, rank, local_rank, world_size


def print0(text: str = "", **options: Any) -> None:
    """Print on the first process only."""
    if get_dist_info()[1] == 0:
        print(text, **options)


def autodetect_device_type() -> str:
    """The best device that this machine has."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def compute_init(device_type: str = "") -> tuple[bool, int, int, int, torch.device]:
    """Seed, choose the device, join the other processes: (under torchrun, rank, local rank, count, device).

    Sums of float32 products may use TF32 on a GPU, as in the reference.

    Raises:
        Refused: The device is not there.
    """
    device_type = device_type or autodetect_device_type()
    if device_type not in ("cuda", "mps", "cpu"):
        raise Refused(f"unknown device type {device_type!r}, choose among cuda, mps, cpu")
    there = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if device_type in there and not there[device_type]():
        raise Refused(f"this machine has no {device_type} device; leave --device_type out")
    torch.manual_seed(SEED)
    parallel, rank, local_rank, world_size = get_dist_info()
    device = torch.device(device_type)
    if device_type == "cuda":
        torch.cuda.manual_seed(SEED)
        torch.set_float32_matmul_precision("high")
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    if parallel and not dist.is_initialized():
        dist.init_process_group("nccl" if device_type == "cuda" else "gloo")
    return parallel, rank, local_rank, world_size, device


def set_dtype(model: Any, name: str) -> None:
    """Compute in `bfloat16` or `float32` on a GPU; elsewhere it is float32 whatever is asked for.

    Raises:
        Refused: The name is another.
    """
    if name not in ("bfloat16", "float32"):
        raise Refused(f"unknown dtype {name!r}, choose bfloat16 or float32")
    if model.get_device().type == "cuda":
        model.set_compute_dtype(getattr(torch, name))


def compute_cleanup() -> None:
    """Leave the group of processes, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def of_all(value: Any) -> list[Any]:
    """The values of all processes, by rank; all of them must call it."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """The model in the mode for evaluation, and afterwards in the one it was in."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def done_by_all(act: Callable[[], T]) -> list[T]:
    """What `act` gives in each process, by rank; all of them must call it.

    If it fails in one it fails in all of them, which otherwise would wait for that one for ever.
    """
    if world_size() == 1:
        return [act()]
    value = failure = None
    try:
        value = act()
    except (Refused, torch.OutOfMemoryError) as error:
        failure = type(error), str(error)
    except Exception as error:  # noqa: BLE001 - whatever it is, the others must hear of it
        traceback.print_exc()
        failure = RuntimeError, f"{type(error).__name__}: {error}"
    parts = of_all((value, failure))
    for _, failed in parts:
        if failed:
            kind, reason = failed
            raise kind(reason)
    return [value for value, _ in parts]


class StopRequest:
    """Whether the user (Ctrl-C) or the machine (SIGTERM) has asked to stop; ask between steps.

    The first signal is only remembered, so that a step is never left half done; the second one
    interrupts at once. Outside the main thread signals stay as they are.
    """

    def __init__(self):
        self._asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def asked(self, device: torch.device) -> bool:
        """Whether any process was asked to stop; all processes must ask together."""
        if world_size() == 1:
            return self._asked
        flag = torch.tensor(int(self._asked), device=device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag)

    def _hear(self, _number: int, _frame: object) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        print0("Stopping after this step; once more to stop at once.")


@dataclass
class Tracker:
    """The record of one stage: a file of JSON lines, and Weights & Biases unless `run` is None.

    `start` is the step that the stage begins with here, `failed` says what could not be measured.
    """

    stage: str
    run: Any = None
    file: Path | None = None
    start: int = 0
    failed: list[str] = field(default_factory=list)

    def log(self, figures: dict[str, Any]) -> None:
        """Add figures to the record; `step` among them is their place on the axis."""
        if self.file is not None:
            with self.file.open("a") as file:
                file.write(json.dumps(figures, default=float) + "\n")
        if self.run is not None:
            self.run.log(figures)

    def attempt(self, what: str, step: int, act: Callable[[], T]) -> T | None:
        """Measure something before a step; None if that fails, which must not cost the training.

        At the start there is none to lose yet, and what fails there is raised.
        """
        try:
            return act()
        except Exception as error:
            if step == self.start:
                raise
            reason = " ".join(str(error).split()) or type(error).__name__
            self.failed.append(f"Not measured: {what} at step {step} ({reason}).")
            self.log({"step": step, "failed": what, "reason": reason})
            print0(self.failed[-1])
            return None

    def artifact(self, files: dict[str, Path]) -> None:
        """Upload the stage's model, as one artifact: its name in the artifact -> file or folder.

        It is called RUN-artifact and carries the aliases of the stage, of the run and `latest`.
        """
        if self.run is None:
            return
        import wandb

        name = self.run.name or self.run.id
        artifact = wandb.Artifact(f"{_plain(name)}-artifact", type="model")
        for inside, path in files.items():
            add = artifact.add_dir if path.is_dir() else artifact.add_file
            add(str(path), name=inside)
        self.run.log_artifact(artifact, aliases=[self.stage, _plain(name), "latest"])

    def finish(self) -> None:
        """End the record and wait until it is written."""
        if self.run is not None:
            self.run.finish()


def tracker(stage: str, run: str, config: dict[str, Any], project: str = "nanochat") -> Tracker:
    """The record of a stage: a file, and W&B but for the run `dummy`; offline unless told a key.

    WANDB_RUN, WANDB_PROJECT and WANDB_ENTITY go before the arguments; the run's name ends in the
    stage. The file is a new one in `metrics` of the base folder, STAGE.ATTEMPT.jsonl; what went on
    from a saved step begins with that step. Only the first process keeps a record.
    """
    run = os.environ.get("WANDB_RUN") or run
    if get_dist_info()[1] != 0:
        return Tracker(stage)
    file = _next_file(stage)
    if run == "dummy":
        return Tracker(stage, file=file)
    import wandb

    known = bool(os.environ.get("WANDB_API_KEY"))
    mode = os.environ.get("WANDB_MODE") or ("online" if known else "offline")
    return Tracker(
        stage,
        wandb.init(
            project=os.environ.get("WANDB_PROJECT") or project,
            entity=os.environ.get("WANDB_ENTITY") or None,
            name=f"{run}-{stage}",
            config=config,
            mode=mode,  # type: ignore[arg-type] - the environment's word, which wandb checks
            dir=get_base_dir(),
        ),
        file,
    )


def _next_file(stage: str) -> Path:
    """The file of a stage's next attempt: none is ever added to by another one."""
    folder = Path(get_base_dir()) / "metrics"
    folder.mkdir(exist_ok=True)
    numbers = [file.name.split(".")[-2] for file in folder.glob(f"{stage}.*.jsonl")]
    latest = max((int(number) for number in numbers if number.isdecimal()), default=0)
    return folder / f"{stage}.{latest + 1}.jsonl"


def _plain(name: str) -> str:
    """A name that artifacts and aliases allow."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
