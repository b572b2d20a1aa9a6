"""A base folder with texts, a tokenizer and a base model that was never trained."""

import dataclasses
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from nanochat import dataset
from nanochat.checkpoint_manager import save_checkpoint
from nanochat.cli import run
from nanochat.common import Refused
from nanochat.gpt import GPT, GPTConfig
from nanochat.tokenizer import get_tokenizer
from scripts import chat_sft, tiny, tok_train


def make(folder: Path) -> Path:
    """Write one: a model of two narrow layers with weights that are zero nowhere, as step 3."""
    with tiny.base_folder(str(folder)):
        dataset.main(dataset.Config(builtin=40))
        tok_train.main(tok_train.Config(vocab_size=400))
        torch.manual_seed(0)
        vocabulary = get_tokenizer().get_vocab_size()
        model = GPT(GPTConfig(64, vocabulary, n_layer=2, n_head=4, n_kv_head=2, n_embd=32))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        meta = {"step": 3, "model_config": dataclasses.asdict(model.config)}
        for stage in ("base", "chatsft"):
            place = folder / f"{stage}_checkpoints" / "d2"
            save_checkpoint(place, 3, model.state_dict(), None, meta)
    return folder


def use(made: Path, folder: Path, monkeypatch) -> Path:
    """Make a copy the base folder of this process."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "WANDB_RUN"):
        monkeypatch.delenv(name, raising=False)
    shutil.copytree(made, folder)
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(folder))
    return folder


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """The weights of a step."""
    return torch.load(folder / f"model_{step:06d}.pt", weights_only=True)


def assert_resumes(stage, config, folder: Path, monkeypatch, capsys) -> None:
    """Ctrl-C in the second of a stage's five steps saves after it; resuming ends with the same bits."""
    stage.main(config)
    straight = weights(folder, 5)
    shutil.rmtree(folder)
    update, calls = chat_sft.update, []

    def pressed(*args):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return update(*args)

    with monkeypatch.context() as patch:
        patch.setattr(chat_sft, "update", pressed)
        flags = [f"--{k}={v}" for k, v in vars(config).items() if v is not None]
        assert run(stage.main, stage.Config, flags) == 130
    assert "--resume_from_step=2" in capsys.readouterr().out
    assert len(calls) == 2
    assert (folder / "optim_000002_rank0.pt").exists()
    stage.main(dataclasses.replace(config, resume_from_step=2))
    resumed = weights(folder, 5)
    assert all(torch.equal(resumed[key], straight[key]) for key in straight)
    with pytest.raises(Refused, match="no interrupted run"):
        stage.main(dataclasses.replace(config, resume_from_step=5))
