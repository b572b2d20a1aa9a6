"""All stages, each of them stopped once and killed once, against a run that nothing happened to."""

import importlib
import multiprocessing
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from nanochat import cli, common
from nanochat.checkpoint_manager import FOLDERS, find_steps
from nanochat.common import Refused
from scripts import speedrun
from stagebase import weights

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked"),
]

PLAN = {0: (3, signal.SIGTERM), 1: (4, signal.SIGKILL)}
"""In the first two processes of a stage, the step that is the last, and what ends it."""


class Forked:
    """A stage in a copy of this process, which spares it the imports; steps are written down."""

    def __init__(self, command: Sequence[str], start_new_session: bool, env: dict):
        module, flags = command[2], command[3:]
        notes = Path(env["NANOCHAT_BASE_DIR"]) / "steps" / module
        context = multiprocessing.get_context("fork")
        self.process = context.Process(target=self.act, args=(module, flags, notes))
        self.process.start()

    @staticmethod
    def act(module: str, flags: Sequence[str], notes: Path) -> None:
        torch.set_num_threads(1)
        before = sorted(notes.parent.glob(f"{notes.name}.*"))
        own = notes.with_name(f"{notes.name}.{len(before)}")
        last, number = PLAN.get(len(before), (0, 0)) if notes.parent.exists() else (0, 0)
        asked, steps = common.StopRequest.asked, []

        def counted(self, device):
            steps.append(1)
            if notes.parent.exists():
                own.write_text(str(len(steps)))
            if len(steps) == last:
                os.kill(os.getpid(), number)
            return asked(self, device)

        common.StopRequest.asked = counted
        stage = importlib.import_module(module)
        os._exit(cli.run(stage.main, stage.Config, flags))

    def wait(self) -> int:
        self.process.join(120)
        assert self.process.exitcode is not None
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.process.pid or 0, number)


def finished(base: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The weights that each stage ended with."""
    found = {}
    for stage in FOLDERS:
        (folder,) = (base / FOLDERS[stage]).iterdir()
        found[stage] = weights(folder, find_steps(folder)[-1])
    return found


def test_every_stage_goes_on_from_what_it_saved(tmp_path, monkeypatch):
    """None of them from its start, and the end is the same to the bit."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "WANDB_RUN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    importlib.import_module("torch._dynamo")  # with the first optimizer each copy would load it
    monkeypatch.setattr(speedrun, "subprocess", SimpleNamespace(Popen=Forked))
    learning = [stage for stage in speedrun.stages_of("smoke") if "eval" not in stage.module]
    monkeypatch.setattr(speedrun, "stages_of", lambda size: learning)
    straight = tmp_path / "straight"
    speedrun.main(speedrun.Config(size="smoke", base_dir=str(straight)))
    troubled = tmp_path / "troubled"
    (troubled / "steps").mkdir(parents=True)
    ends = []
    while len(ends) < 20:
        try:
            speedrun.main(speedrun.Config(size="smoke", base_dir=str(troubled)))
            break
        except (Refused, KeyboardInterrupt) as end:
            ends.append(type(end))
    assert ends == [KeyboardInterrupt, Refused] * 4
    steps: dict[str, list[int]] = {}
    for path in sorted((troubled / "steps").iterdir()):
        steps.setdefault(path.stem.rpartition(".")[2], []).append(int(path.read_text()))
    saved_at_four = [3, 4, 6]
    assert steps == {
        "base_train": saved_at_four,
        "mid_train": saved_at_four,
        "chat_sft": saved_at_four,
        "chat_rl": [3, 4, 5],  # its step four is the one after which it saves
    }
    expected, found = finished(straight), finished(troubled)
    for stage in FOLDERS:
        assert expected[stage].keys() == found[stage].keys()
        assert all(torch.equal(w, found[stage][key]) for key, w in expected[stage].items()), stage
