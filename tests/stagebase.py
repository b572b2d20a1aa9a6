"""A base folder with texts, a tokenizer and a base model that was never trained."""

import dataclasses
import shutil
from pathlib import Path

import torch
from nanochat import dataset
from nanochat.checkpoint_manager import save_checkpoint
from nanochat.gpt import GPT, GPTConfig
from nanochat.tokenizer import get_tokenizer
from scripts import tiny, tok_train


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
