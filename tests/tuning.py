"""A language model so small that it is fine-tuned within a test."""

import itertools
from pathlib import Path
from typing import Any

import torch
from nanochat.checkpoint_manager import save_checkpoint
from nanochat.gpt import GPT, GPTConfig
from nanochat.tokenizer import RustBPETokenizer
from nanochat_golden import alive

from fractal_core import Axis, Region, Store, Sweep, memos
from fractal_core.engine import run_here
from fractal_core.finetune import FineTune


def checkpoint(folder: Path, **shape: Any) -> str:
    """A folder with weights by chance that are nowhere zero, and a tokenizer of the memos."""
    talks = memos.conversations("validation")
    texts = (turn["content"] for talk in talks for turn in talk["messages"])
    tokenizer = RustBPETokenizer.train_from_iterator(texts, 400)
    tokenizer.save(folder)
    size = {"sequence_len": 256, "vocab_size": tokenizer.get_vocab_size(), "n_layer": 2}
    model = alive(GPT(GPTConfig(**size | {"n_head": 2, "n_kv_head": 1, "n_embd": 16} | shape)))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.5)
    meta = {"step": 0, "model_config": vars(model.config)}
    save_checkpoint(folder, 0, model.state_dict(), None, meta)
    return str(folder)


def plane(model: Path, run: Path, seed: int = 0, units: int | None = None) -> Store:
    """A map of 4 x 4 short fine-tuning runs with both outcomes in it, or its first units."""
    if not model.exists():
        model.mkdir(parents=True)
        checkpoint(model)
    quick = FineTune(str(model), num_steps=6, window=2, batch_size=2, sequence_length=128)
    axes = Axis("matrix_lr", 1e-4, 1e40, 4), Axis("unembedding_lr", 1e-6, 1e-1, 4)
    run.parent.mkdir(exist_ok=True)
    store = Store.create(run, Sweep.over(quick, Region(*axes), seed))
    for _ in itertools.islice(run_here(store), units):
        pass
    return store
