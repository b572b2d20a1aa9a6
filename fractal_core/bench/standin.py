"""A language model and conversations by chance: of real sizes, but with nothing to say.

They stand in for a checkpoint and a data set where none can be fetched. What a step costs depends
on shapes, lengths and the share of learned tokens, and on nothing else.
"""

import dataclasses
import itertools
import json
import string
from dataclasses import dataclass
from pathlib import Path

import numpy as np

OVERHEAD = 5
"""Tokens of a conversation that are no words: its beginning, and where the turns begin and end."""


@dataclass(frozen=True)
class Shape:
    """Sizes of the model and of its texts.

    Args:
        depth: Layers, 64 channels each.
        vocab_size: Tokens that there are.
        longest: Tokens of a text at most, and of the model's context.
        mean: Tokens of a text, about.
        learned: Share of them that is learned.
    """

    depth: int
    vocab_size: int
    longest: int
    mean: int
    learned: float = 0.03


def write(folder: Path, shape: Shape, texts: int) -> tuple[str, str]:
    """Put a checkpoint, its tokenizer and a file of conversations into a folder.

    Returns:
        What a `FineTune` names as its checkpoint and as its data.
    """
    from nanochat.tokenizer import SPECIAL_TOKENS

    folder.mkdir(parents=True)
    letters = itertools.product(string.ascii_lowercase, repeat=4)
    words = [f" {''.join(four)}" for four in letters][
        : shape.vocab_size - 256 - len(SPECIAL_TOKENS)
    ]
    _write_model(folder, shape, words)
    data = folder / "texts.jsonl"
    data.write_text("".join(_conversations(shape, words, texts)))
    return str(folder), str(data)


def _conversations(shape: Shape, words: list[str], texts: int) -> list[str]:
    """Lines of JSON; lengths are drawn from a gamma distribution and cut off."""
    draw = np.random.default_rng(0)
    lines = []
    for length in draw.gamma(2.5, shape.mean / 2.5, texts):
        length = int(np.clip(length, 4 * OVERHEAD, shape.longest))
        # The end of the assistant's turn is learned like a word.
        answer = max(1, round(shape.learned * length) - 1)
        said = draw.choice(words, length - OVERHEAD)
        turns = {"user": said[answer:], "assistant": said[:answer]}
        messages = [{"role": role, "content": "".join(of)} for role, of in turns.items()]
        lines.append(json.dumps({"messages": messages}) + "\n")
    return lines


def _write_model(folder: Path, shape: Shape, words: list[str]) -> None:
    import tiktoken
    import torch
    from nanochat.checkpoint_manager import save_checkpoint
    from nanochat.gpt import GPT, GPTConfig
    from nanochat.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, RustBPETokenizer

    pieces = [bytes([value]) for value in range(256)] + [word.encode() for word in words]
    ranks = {piece: rank for rank, piece in enumerate(pieces)}
    special = {name: len(ranks) + at for at, name in enumerate(SPECIAL_TOKENS)}
    encoding = tiktoken.Encoding(
        "words", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens=special
    )
    RustBPETokenizer(encoding, "<|bos|>").save(folder)
    config = GPTConfig.from_depth(
        shape.depth, sequence_len=shape.longest, vocab_size=shape.vocab_size
    )
    model, draw = GPT(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            # A fresh model has zeros, which give most of the others no gradient.
            p.normal_(std=1.0 if "wte" in name else p.size(1) ** -0.5, generator=draw)
    meta = {"step": 0, "model_config": dataclasses.asdict(config)}
    save_checkpoint(folder, 0, model.state_dict(), None, meta)
