"""A language model so small that it is fine-tuned within a test."""

import os
from pathlib import Path

import torch
from nanochat.checkpoint_manager import save_checkpoint
from nanochat.gpt import GPT, GPTConfig
from nanochat.tokenizer import RustBPETokenizer
from nanochat_golden import alive

from fractal_core import memos


def checkpoint(folder: Path, **shape: int | bool) -> str:
    """A checkpoint with weights by chance that are nowhere zero, and its tokenizer."""
    texts = (
        turn["content"] for talk in memos.conversations("validation") for turn in talk["messages"]
    )
    tokenizer = RustBPETokenizer.train_from_iterator(texts, 400)
    tokenizer.save(folder)
    size = {"sequence_len": 256, "vocab_size": tokenizer.get_vocab_size(), "n_layer": 2}
    config = GPTConfig(**size | {"n_head": 2, "n_kv_head": 1, "n_embd": 16} | shape)
    model = alive(GPT(config))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.5)
    save_checkpoint(folder, 0, model.state_dict(), None, {"step": 0, "model_config": vars(config)})
    return str(folder)


def isolated(folder: Path, patch) -> None:
    """Have everything big lie below a folder, here and in processes begun from here."""
    patch.setenv("FRACTAL_STORAGE", str(folder))
    assert os.environ["FRACTAL_STORAGE"] == str(folder)
