"""The whole way from texts to a chat on two cores, without a network, in a few minutes.

    python -m scripts.tiny
    python -m scripts.tiny --documents=400 --max_seq_len=64 --base_steps=100 --sft_steps=300      a smaller one

The built-in corpus is written, a tokenizer learned from it, a base model trained and fine-tuned,
and a question asked. Two things must come out: the base model predicts held-out texts better than
the frequencies of their tokens could, and the chat model says what kind of thing something is,
asked in a way that it never was asked about that thing, surely more often than twice by chance.
"""

import itertools
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nanochat import cli, dataset
from nanochat.checkpoint_manager import load_model
from nanochat.common import Refused, get_base_dir
from nanochat.engine import Engine
from nanochat.shares import lower_bound
from nanochat.tokenizer import get_token_bytes, get_tokenizer
from tasks.builtin import Kinds

from scripts import base_train, chat_cli, chat_eval, chat_sft, tok_train

QUESTION = "What is a heron?"


@dataclass(frozen=True)
class Config:
    """Train and chat at the smallest scale; `base_dir` is where, by default `tiny` in the base."""

    base_dir: str = ""
    device_type: str = "cpu"
    documents: int = 4000
    vocab_size: int = 768
    depth: int = 2
    max_seq_len: int = 128
    device_batch_size: int = 16
    base_steps: int = 300
    sft_steps: int = 300


@contextmanager
def base_folder(path: str) -> Iterator[Path]:
    """Another base folder, for as long as it lasts."""
    before = os.environ.get("NANOCHAT_BASE_DIR")
    folder = Path(path or Path(get_base_dir()) / "tiny")
    os.environ["NANOCHAT_BASE_DIR"] = str(folder)
    try:
        yield folder
    finally:
        if before is None:
            del os.environ["NANOCHAT_BASE_DIR"]
        else:
            os.environ["NANOCHAT_BASE_DIR"] = before


def unigram_bpb() -> float:
    """The entropy of the tokens of the validation texts, in bits per byte of text.

    No model that knows only how frequent each token is can predict them better.
    """
    tokenizer, sizes = get_tokenizer(), get_token_bytes()
    texts = itertools.chain(*dataset.parquets_iter_batched("val"))
    counts = Counter(itertools.chain(*tokenizer.encode(list(texts))))
    total = sum(counts.values())
    bits = -sum(n * math.log2(n / total) for n in counts.values())
    return bits / sum(n * int(sizes[token]) for token, n in counts.items())


def main(config: Config) -> dict[str, Any]:
    """Run every stage; the figures.

    Raises:
        Refused: The folder is in use, or one of the two things did not come out.
    """
    began = time.monotonic()
    with base_folder(config.base_dir) as folder:
        if folder.exists() and any(folder.iterdir()):
            raise Refused(f"{folder} is not empty; remove it or name another --base_dir")
        figures = _stages(config)
    figures["seconds"] = time.monotonic() - began
    for name, value in figures.items():
        print(f"{name:20} {value:.4f}" if isinstance(value, float) else f"{name:20} {value}")
    if figures["base_bpb"] >= figures["unigram_bpb"]:
        raise Refused("the base model learned nothing; raise --base_steps")
    if figures["kinds_lower_bound"] <= 2 * figures["kinds_chance"]:
        raise Refused("the chat model did not learn the kinds of things; raise --sft_steps")
    return figures


def _stages(config: Config) -> dict[str, Any]:
    dataset.main(dataset.Config(builtin=config.documents))
    tok_train.main(tok_train.Config(vocab_size=config.vocab_size))
    base = base_train.main(
        base_train.Config(
            device_type=config.device_type,
            depth=config.depth,
            max_seq_len=config.max_seq_len,
            device_batch_size=config.device_batch_size,
            total_batch_size=config.device_batch_size * config.max_seq_len,
            num_iterations=config.base_steps,
            eval_every=config.base_steps,
            eval_tokens=32 * config.device_batch_size * config.max_seq_len,
            core_metric_every=-1,
            sample_every=-1,
        )
    )
    chat_sft.main(
        chat_sft.Config(
            device_type=config.device_type,
            source="base",
            data="builtin",
            device_batch_size=config.device_batch_size,
            target_examples_per_step=config.device_batch_size,
            num_iterations=config.sft_steps,
            init_lr_frac=0.5,
            eval_every=-1,
            eval_steps=4,
            eval_metrics_every=-1,
            eval_metrics_max_problems=0,
        )
    )
    model, tokenizer, _ = load_model("sft", torch.device(config.device_type), phase="eval")
    asking = chat_eval.Asking(max_new_tokens=chat_sft.METRICS_TOKENS)
    score = chat_eval.score_of(Kinds("test"), Engine(model, tokenizer), asking)
    right, count = score.passed, len(score.right)
    answer = chat_cli.main(
        chat_cli.Config(prompt=QUESTION, temperature=0.0, device_type=config.device_type)
    )
    return {
        "unigram_bpb": unigram_bpb(),
        "base_bpb": base["val_bpb"],
        "kinds_right": right,
        "kinds_asked": count,
        "kinds_lower_bound": lower_bound(right, count),
        "kinds_chance": Kinds.chance,
        "question": QUESTION,
        "answer": answer["answer"],
    }


if __name__ == "__main__":
    sys.exit(cli.run(main, Config))
