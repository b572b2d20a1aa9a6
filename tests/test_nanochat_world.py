"""Two processes that train one model: the same as one process, and going on where they stopped."""

import dataclasses
import importlib
import itertools
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from nanochat import dataloader
from scripts import chat_rl, chat_sft, mid_train
from stagebase import weights
from tasks.common import Task
from test_nanochat_mid import MID
from test_nanochat_rl import RL, Vowels
from waiting import DEADLINE

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked"),
]

SECONDS = 5 * DEADLINE
HALVES = dataclasses.replace(MID, total_batch_size=128, num_iterations=6)
"""Two processes of a micro-batch each make one step."""


@pytest.fixture
def base(base, monkeypatch) -> Path:
    monkeypatch.setattr(chat_rl, "tasks", lambda data: (Vowels(), Vowels()))
    return base


def both(base: Path, act: Callable[[int], None]) -> None:
    """Let two processes do it, under what torchrun sets."""

    def one(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        torch.set_num_threads(1)
        meet = f"file://{base}/meet"
        dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=2)
        act(rank)
        dist.destroy_process_group()

    importlib.import_module("torch._dynamo")  # with the first optimizer each copy would load it
    context = multiprocessing.get_context("fork")
    crew = [context.Process(target=one, args=(rank,)) for rank in range(2)]
    for process in crew:
        process.start()
    for process in crew:
        process.join(SECONDS)
    codes = [process.exitcode for process in crew]
    for process in crew:
        process.kill()
    assert codes == [0, 0]


def stopped_at(count: int, act: Callable) -> Callable:
    """What does the same, and the first process is asked to stop during call number `count`."""
    calls = itertools.count(1)

    def pressed(*args):
        if next(calls) == count and not dist.get_rank():
            os.kill(os.getpid(), signal.SIGTERM)
        return act(*args)

    return pressed


def run_and_go_on(stage, config, owner, name: str, folder: Path, resume: int) -> Callable:
    """Run to the end, again but stopped in the second step, and on from there: the same bits."""

    def act(rank: int) -> None:
        figures = stage.main(config)
        last = figures["step"]
        dist.barrier()
        straight = weights(folder, last)
        dist.barrier()
        if not rank:
            shutil.move(folder, folder.with_name("straight"))
        dist.barrier()
        own = getattr(owner, name)
        setattr(owner, name, stopped_at(2, own))
        with pytest.raises(KeyboardInterrupt):
            stage.main(dataclasses.replace(config, model_tag=folder.name))
        setattr(owner, name, own)
        dist.barrier()
        assert not (folder / f"model_{last:06d}.pt").exists()
        again = dataclasses.replace(config, model_tag=folder.name, resume_from_step=resume)
        assert stage.main(again) == figures
        dist.barrier()
        resumed = weights(folder, last)
        assert all(torch.equal(resumed[key], straight[key]) for key in straight)

    return act


def interleaved(self, task: Task, state=None):
    """The batches that two processes would have, in turn."""
    loaders = []
    for rank in range(2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dataloader, "get_dist_info", lambda rank=rank: (True, rank, rank, 2))
            rows = dataloader.mid_data_loader(task, self.tokenizer, 2, self.config.max_seq_len)
            loaders.append(list(itertools.islice(rows, 8)))
    return itertools.chain(*zip(*loaders, strict=True))


def assert_close(folder: Path, other: Path, step: int) -> None:
    """Sums in another order, and so a little rounding; Muon rounds to bfloat16."""
    one, two = weights(folder, step), weights(other, step)
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(one[key], two[key], atol=2e-3, rtol=0)


def test_two_processes_train_on_conversations_as_one_and_go_on(base, monkeypatch):
    """With every second conversation each; one process with both their batches ends the same."""
    folder = base / "mid_checkpoints" / "d2"
    both(base, run_and_go_on(mid_train, HALVES, chat_sft, "update", folder, resume=2))
    shutil.move(folder, base / "two")
    before = weights(base / "base_checkpoints" / "d2", 3)
    monkeypatch.setattr(mid_train.Training, "batches", interleaved)
    assert mid_train.main(HALVES)["step"] == 5
    assert_close(folder, base / "two", 5)
    moved = (weights(folder, 5)["lm_head.weight"] - before["lm_head.weight"]).abs()
    assert float(moved.max()) > 0.01


def test_two_processes_learn_from_rewards_as_one(base):
    """From every second question each; one process answers the same and learns the same.

    For a step: afterwards a little rounding now and then makes another token of an answer.
    """
    folder, config = base / "chatrl_checkpoints" / "d2", dataclasses.replace(RL, num_iterations=1)
    both(base, lambda rank: chat_rl.main(config))
    together = (base / "report" / "chat-rl.md").read_text().splitlines()
    shutil.move(folder, base / "two")
    figures = chat_rl.main(config)
    assert_close(folder, base / "two", 0)
    alone = (base / "report" / "chat-rl.md").read_text().splitlines()
    told = ("- reward_before", "- learned_reward_before", "- rewards:")
    said = [[line for line in lines if line.startswith(told)] for lines in (together, alone)]
    assert len(said[0]) == 5
    assert said[0] == said[1]
    before = weights(base / "chatsft_checkpoints" / "d2", 3)
    moved = (weights(folder, 0)["lm_head.weight"] - before["lm_head.weight"]).abs()
    assert float(moved.max()) > 0.001
    assert 0 < figures["rewards"][0] < 1


def test_two_processes_go_on_learning_from_rewards(base):
    """Stopped and resumed they end with the same bits."""
    folder = base / "chatrl_checkpoints" / "d2"
    both(base, run_and_go_on(chat_rl, RL, chat_rl.Learning, "update", folder, resume=1))
