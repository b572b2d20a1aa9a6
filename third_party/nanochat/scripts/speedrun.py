"""From nothing to a chat with one command: every stage, and a report of them.

    python -m scripts.speedrun --size=tiny     offline, on two cores, in minutes
    python -m scripts.speedrun --size=smoke    ten steps of each, to see that all of it works
    python -m scripts.speedrun --size=d20      on a machine with eight GPUs

Stages: texts, tokenizer, base model, mid-training, fine-tuning, learning from rewards, and an
evaluation after each of the models. The same command again goes on where it was stopped: a stage
that is complete is not done again, and one that was interrupted resumes from what it saved.
"""

import contextlib
import dataclasses
import fcntl
import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat import cli
from nanochat.checkpoint_manager import FOLDERS, find_steps
from nanochat.common import Refused, get_base_dir
from nanochat.execution import require_sandbox
from nanochat.report import get_report

from scripts.chat_eval import TASKS
from scripts.tiny import base_folder


@dataclass(frozen=True)
class Config:
    """Make a chat model; `base_dir` is where, by default a folder of the size's name in the base.

    `run` names the record at Weights & Biases; `gpus` is for d20 alone.
    """

    size: str = "tiny"
    base_dir: str = ""
    run: str = "dummy"
    gpus: int = 8


@dataclass(frozen=True)
class Stage:
    """A command and how it is run.

    Args:
        name: What it is called.
        module: What is run.
        flags: With what.
        source: The checkpoints that it writes, if it can resume: base, mid, sft or rl.
        parallel: Whether one process per GPU runs it; those begin when nothing is fetched any more.
        beside: Whether what follows does not wait for it.
        local: Further flags, for what this machine cannot do; without them it is the same stage.
    """

    name: str
    module: str
    flags: tuple[str, ...] = ()
    source: str = ""
    parallel: bool = False
    beside: bool = False
    local: tuple[str, ...] = ()

    def command(self, gpus: int) -> list[str]:
        """What is executed."""
        flags = (*self.flags, *self.local)
        if self.parallel and gpus > 1:
            torchrun = ("torch.distributed.run", "--standalone", f"--nproc_per_node={gpus}")
            return [sys.executable, "-m", *torchrun, "-m", self.module, "--", *flags]
        return [sys.executable, "-m", self.module, *flags]


SAVING = 540
"""Seconds that a stage on GPUs has to save itself after it was asked to stop."""


def kept(steps: int) -> tuple[str, ...]:
    """The flag by which a run that is killed loses a third of its steps at most."""
    return (f"--save_every={-(-steps // 3)}",)


def small(
    base: int, tuned: int, rewarded: int, held_out: int, documents: int, vocabulary: int
) -> list[Stage]:
    """The stages of a small model on a CPU, from what is built in; the first numbers are steps.

    `held_out` is how many questions a model is measured by at most.
    """
    shape = ("--device_batch_size=16", "--device_type=cpu")
    own = ("--data=builtin", "--device_type=cpu")
    offline = ("--core_metric_every=-1",)  # the tasks of our own are asked afterwards
    known = (*own, f"--max_per_task={min(32, tuned)}")
    tested = (*own, f"--max_problems={min(32, tuned)}")
    able = what_can_be_asked()
    measured = f"--eval_tokens={min(16384, 2048 * tuned // 10)}"
    length = ("--max_seq_len=128", "--total_batch_size=2048", measured)
    base_flags = (
        *("--depth=2", f"--num_iterations={base}", f"--eval_every={base}"),
        *("--sample_every=-1", *kept(base)),
    )
    tuned_flags = (
        *("--source=mid", "--target_examples_per_step=16", f"--num_iterations={tuned + 1}"),
        *("--init_lr_frac=0.5", "--eval_every=-1", "--eval_steps=4", "--eval_metrics_every=-1"),
        *(f"--eval_metrics_max_problems={held_out}", *kept(tuned)),
    )
    rewarded_flags = (
        *(f"--num_iterations={rewarded}", f"--examples_per_step={min(8, held_out // 4)}"),
        *("--num_samples=16", f"--eval_examples={held_out}"),
        *("--max_new_tokens=32", "--init_lr_frac=0.1", "--eval_every=-1", *kept(rewarded)),
    )
    talked = max(10, tuned // 3)
    mid_flags = (f"--num_iterations={talked + 1}", f"--eval_every={talked + 1}", *kept(talked))
    return [
        Stage("texts", "nanochat.dataset", (f"--builtin={documents}",)),
        Stage("tokenizer", "scripts.tok_train", (f"--vocab_size={vocabulary}",)),
        Stage("base", "scripts.base_train", (*base_flags, *offline, *shape, *length), "base"),
        Stage("base-evaluation", "scripts.base_eval", known),
        Stage("mid", "scripts.mid_train", (*mid_flags, "--data=builtin", *shape, *length), "mid"),
        asked("mid", tested, able),
        Stage("sft", "scripts.chat_sft", (*tuned_flags, "--device_batch_size=16", *own), "sft"),
        asked("sft", tested, able),
        Stage("rl", "scripts.chat_rl", (*rewarded_flags, "--device_batch_size=16", *own), "rl"),
        asked("rl", tested, able),
    ]


def asked(source: str, flags: tuple[str, ...], able: tuple[str, ...] = ()) -> Stage:
    """The evaluation of a chat model, with what this machine is able to ask it."""
    flags = (f"--source={source}", *flags)
    name = f"evaluation-{source}"
    return Stage(name, "scripts.chat_eval", flags, parallel=True, local=able)


def what_can_be_asked() -> tuple[str, ...]:
    """The flags of an evaluation: where no program can be run, it is not about programs."""
    try:
        require_sandbox()
    except Refused as refusal:
        print(f"HumanEval is left out: {refusal}")
        return (f"--task_name={'|'.join(name for name in TASKS if name != 'HumanEval')}",)
    return ()


def large(depth: int) -> list[Stage]:
    """The stages of the reference's run; shards are fetched while the tokenizer is learned."""
    able = what_can_be_asked()
    return [
        Stage("first-shards", "nanochat.dataset", ("--num_files=8",)),
        Stage("shards", "nanochat.dataset", ("--num_files=240",), beside=True),
        Stage("tasks", "nanochat.core_bundle", beside=True),
        Stage("tokenizer", "scripts.tok_train", ("--max_chars=2000000000",)),
        Stage("tokenizer-evaluation", "scripts.tok_eval"),
        Stage("identity", "tasks.identity"),
        Stage(
            "base", "scripts.base_train", (f"--depth={depth}", "--save_every=1000"), "base", True
        ),
        Stage("base-loss", "scripts.base_loss", parallel=True),
        Stage("base-evaluation", "scripts.base_eval", parallel=True),
        Stage("mid", "scripts.mid_train", ("--save_every=250",), "mid", True),
        asked("mid", (), able),
        Stage("sft", "scripts.chat_sft", ("--save_every=250",), "sft", True),
        asked("sft", (), able),
        Stage("rl", "scripts.chat_rl", (), "rl", True),
        asked("rl", ("--task_name=GSM8K",)),
    ]


def stages_of(size: str) -> list[Stage]:
    """The stages of a size, without those whose module is not there.

    Raises:
        Refused: There is no such size.
    """
    sizes = {
        "tiny": lambda: small(300, 300, 64, 384, 4000, 768),
        "smoke": lambda: small(10, 10, 10, 8, 40, 400),
        "d20": lambda: large(20),
    }
    if size not in sizes:
        raise Refused(f"unknown size {size!r}, choose among {', '.join(sizes)}")
    return [s for s in sizes[size]() if importlib.util.find_spec(s.module) is not None]


class Record:
    """Which stages are complete, with the flags they were done with and their seconds."""

    def __init__(self, folder: Path):
        self.path = folder / "speedrun.json"
        self.done: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}

    def has(self, stage: Stage) -> bool:
        """Whether a stage is complete.

        Raises:
            Refused: It was done with other flags.
        """
        if stage.name not in self.done:
            return False
        if self.done[stage.name]["flags"] != list(stage.flags):
            raise Refused(
                f"the stage {stage.name} in {self.path.parent} was done with other flags; name "
                "another --base_dir"
            )
        return True

    def add(self, stage: Stage, seconds: float) -> None:
        """Note that a stage is complete."""
        self.done[stage.name] = {"flags": list(stage.flags), "seconds": round(seconds, 1)}
        self._write()

    def forget(self, stage: Stage) -> bool:
        """A stage is complete no longer; whether it was."""
        was = self.done.pop(stage.name, None) is not None
        if was:
            self._write()
        return was

    def _write(self) -> None:
        draft = self.path.with_suffix(".draft")
        draft.write_text(json.dumps(self.done, indent=2))
        draft.replace(self.path)


def resumed(stage: Stage) -> Stage:
    """The stage, told to go on from the last step that it saved to be gone on from."""
    if not stage.source:
        return stage
    root = Path(get_base_dir()) / FOLDERS[stage.source]
    for folder in root.iterdir() if root.is_dir() else ():
        for step in reversed(find_steps(folder)):
            meta = json.loads((folder / f"meta_{step:06d}.json").read_text())
            if "dataloader_state_dicts" in meta:
                flags = (*stage.flags, f"--resume_from_step={step}", f"--model_tag={folder.name}")
                return dataclasses.replace(stage, flags=flags)
    return stage


@dataclass(frozen=True)
class Lock:
    """What keeps others out of a folder, for as long as any process has the descriptor open.

    So it is handed down to the stages, which outlive a run that is killed; FileLock keeps its own.

    Args:
        folder: Where they work.
        descriptor: Of the locked file, in which stands who works.
    """

    folder: Path
    descriptor: int

    def verdict(self, stage: str) -> Path:
        """Where a stage that is refused writes its exit code."""
        return self.folder / f"{stage}.verdict"

    def note(self, process: int) -> None:
        """Write down who works."""
        os.pwrite(self.descriptor, f"{process:<20}".encode(), 0)


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[Lock]:
    """Keep others out of a folder.

    Raises:
        Refused: Another one works there, or a stage that one left behind when it was killed.
    """
    path = folder / "speedrun.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(
                f"another run works in {folder}, process {path.read_text().strip()}; wait for it, stop "
                "it, or name another --base_dir"
            ) from None
        lock = Lock(folder, descriptor)
        lock.note(os.getpid())
        yield lock
    finally:
        os.close(descriptor)  # not unlocked, for a stage may still be at work


class Processes:
    """Commands in processes of their own, to which a wish to stop is handed on once.

    Args:
        lock: The lock of a folder. They hold it, too: killed, this process leaves them behind.
    """

    def __init__(self, lock: Lock):
        self.lock = lock
        self.running: dict[str, tuple[Stage, subprocess.Popen, float]] = {}
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Processes":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._hear()
        for process in [process for _, process, _ in self.running.values()]:
            process.wait()

    def start(self, stage: Stage, command: Sequence[str]) -> None:
        """Run a command; the terminal's Ctrl-C does not reach it but through here."""
        environment = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(SAVING), **os.environ}
        verdict = self.lock.verdict(stage.name)
        verdict.unlink(missing_ok=True)
        environment[cli.VERDICT] = str(verdict)
        process = subprocess.Popen(
            command, start_new_session=True, env=environment, pass_fds=(self.lock.descriptor,)
        )
        self.lock.note(process.pid)
        self.running[stage.name] = (stage, process, time.monotonic())
        if self.asked:  # between the two lines before
            process.send_signal(signal.SIGTERM)

    def wait(self, name: str) -> tuple[Stage, float]:
        """Wait for a command; the stage and its seconds.

        Raises:
            KeyboardInterrupt: It was stopped, and saved what it could.
            Refused: It was refused, as it would be again.
            SystemExit: It failed, with code 1.
        """
        stage, process, began = self.running[name]
        code = process.wait()
        del self.running[name]
        if self.asked or code == 130:
            raise KeyboardInterrupt
        if code and self.lock.verdict(name).exists():  # torchrun's own code does not tell
            code = int(self.lock.verdict(name).read_text())
        if code == cli.REFUSED:
            raise Refused(f"the stage {name} was refused, see above")
        if code:
            raise SystemExit(
                f"the stage {name} ended with code {code}, see above; the same command again goes "
                "on from there"
            )
        return stage, time.monotonic() - began

    def _hear(self, number: int = signal.SIGTERM, _frame: object = None) -> None:
        self.asked = True
        for process in [process for _, process, _ in self.running.values()]:
            # A stage that nobody watches any more shall save itself, too.
            process.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)


def spare_threads(size: str) -> None:
    """One thread for a small model, for which two mostly wait for each other; other bits, too."""
    if size != "d20":
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def set_aside(folder: Path, stage: Stage) -> None:
    """Give a stage's checkpoints another name, so that it begins at its start."""
    place = folder / FOLDERS[stage.source]
    if place.exists():
        names = (place.with_name(f"{place.name}.{number}") for number in itertools.count(1))
        place.rename(next(name for name in names if not name.exists()))


def main(config: Config) -> dict[str, Any]:
    """Run what is not complete; the seconds of every stage and where the report is.

    Raises:
        Refused: A stage failed, or an earlier run had other flags.
        KeyboardInterrupt: It was asked to stop; the same command goes on.
    """
    if config.gpus < 1:
        raise Refused("--gpus must be at least 1")
    stages = stages_of(config.size)
    with base_folder(config.base_dir or str(Path(get_base_dir()) / config.size)) as folder:
        folder.mkdir(parents=True, exist_ok=True)
        if config.run != "dummy":
            os.environ["WANDB_RUN"] = config.run
        spare_threads(config.size)
        with only_one(folder) as lock:
            record = Record(folder)
            if not record.done:
                get_report().reset()
            gpus = config.gpus if config.size == "d20" else 1
            perform(stages, record, gpus, lock)
            seconds = {name: row["seconds"] for name, row in record.done.items()}
            report = get_report().generate()
    for name, value in seconds.items():
        print(f"{name:22} {value:9.1f} s")
    print(f"The report is {report}; talk to the model with:")
    print(f"    NANOCHAT_BASE_DIR={folder} python -m scripts.chat_cli --source=rl")
    return {"seconds": seconds, "report": str(report)}


def perform(stages: Sequence[Stage], record: Record, gpus: int, lock: Lock) -> None:
    """Each stage that is not complete, in order; what runs beside others is awaited in time."""
    with Processes(lock) as processes:
        for stage in stages:
            if processes.asked:
                raise KeyboardInterrupt
            if record.has(stage):
                print(f"--- {stage.name}: complete", flush=True)
                continue
            if stage.parallel:
                for name in list(processes.running):
                    record.add(*processes.wait(name))
            print(f"--- {stage.name}", flush=True)
            told = resumed(stage)
            processes.start(stage, told.command(gpus))
            if not stage.beside:
                record.add(*processes.wait(stage.name))
        for name in list(processes.running):
            record.add(*processes.wait(name))


if __name__ == "__main__":
    sys.exit(cli.run(main, Config))
