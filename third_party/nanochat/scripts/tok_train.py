"""Learn a tokenizer from the train shards.

    python -m scripts.tok_train --max_chars=2e9

Writes `tokenizer/` in the base folder: the tokenizer in both forms, and the bytes of each token.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from nanochat import cli
from nanochat.common import Refused, get_base_dir
from nanochat.dataset import parquets_iter_batched
from nanochat.report import get_report
from nanochat.tokenizer import RustBPETokenizer
from tqdm import tqdm

ROUND_TRIP = (
    "It's 1999: 12,345 runs?!\tYes -  naïve café, 東京, 🙂 <|bos|>\r\n\r\n  def f(x): return x**2"
)


@dataclass(frozen=True)
class Config:
    """Train the tokenizer."""

    max_chars: int = 10_000_000_000
    doc_cap: int = 10_000
    vocab_size: int = 65536


def texts(max_chars: int, doc_cap: int) -> Iterator[str]:
    """Texts of the train split, each cut to `doc_cap`, until they exceed `max_chars` together."""
    total = 0
    for batch in parquets_iter_batched("train"):
        for text in batch:
            text = text[:doc_cap]
            total += len(text)
            yield text
            if total > max_chars:
                return


def main(config: Config) -> dict[str, float]:
    """Train, check and save; the size of the vocabulary, the texts and characters read, seconds."""
    if config.max_chars < 1 or config.doc_cap < 1:
        raise Refused("--max_chars and --doc_cap must be at least 1")
    began, read = time.monotonic(), [0, 0]
    with tqdm(desc="reading", unit="char", unit_scale=True) as bar:

        def counted() -> Iterator[str]:
            for text in texts(config.max_chars, config.doc_cap):
                read[0] += 1
                read[1] += len(text)
                bar.update(len(text))
                yield text

        tokenizer = RustBPETokenizer.train_from_iterator(counted(), config.vocab_size)
    if tokenizer.decode(tokenizer.encode(ROUND_TRIP)) != ROUND_TRIP:
        raise RuntimeError("the tokenizer does not give a text back as it was")
    folder = Path(get_base_dir()) / "tokenizer"
    tokenizer.save(folder)
    torch.save(tokenizer.token_bytes(), folder / "token_bytes.pt")
    size = tokenizer.get_vocab_size()
    print(f"{size} tokens from {read[0]:,} texts ({read[1]:,} characters), in {folder}")
    if size < config.vocab_size:
        print(f"The texts have no more pairs to merge: {config.vocab_size} were asked for")
    figures = {
        "vocab_size": size,
        "documents": read[0],
        "characters": read[1],
        "seconds": time.monotonic() - began,
    }
    get_report().log("Tokenizer training", [vars(config), figures])
    return figures


if __name__ == "__main__":
    sys.exit(cli.run(main, Config))
