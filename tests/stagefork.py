"""Stages in processes that are stopped and killed at some step."""

import importlib
import multiprocessing
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from waiting import DEADLINE

PLAN = {0: (3, signal.SIGTERM), 1: (4, signal.SIGKILL)}
"""In the first two processes of a stage, the step that is the last, and what ends it."""


class Stage:
    """A stage in a process of its own that need not import anything; its steps are written down."""

    def __init__(
        self,
        command: Sequence[str],
        start_new_session: bool,
        env: dict[str, str],
        pass_fds: Sequence[int],
    ):
        # Not a copy of this process, in which other tests have begun threads.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch._dynamo", "scripts.speedrun"])
        self.process = context.Process(target=act, args=(command[2], list(command[3:]), dict(env)))
        self.process.start()
        self.pid = self.process.pid

    def wait(self) -> int:
        """Its exit code."""
        self.process.join(5 * DEADLINE)
        assert self.process.exitcode is not None
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        """Tell it."""
        os.kill(self.process.pid or 0, number)


def act(module: str, flags: Sequence[str], environment: dict[str, str]) -> None:
    """Run a stage; where there is a folder `steps` it is ended as planned."""
    os.environ.update(environment)
    import torch
    from nanochat import cli, common

    torch.set_num_threads(1)
    notes = Path(environment["NANOCHAT_BASE_DIR"]) / "steps" / module
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
