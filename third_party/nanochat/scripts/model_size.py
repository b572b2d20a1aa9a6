"""What a model of some shape holds, costs and needs, without making it.

python -m scripts.model_size --depth 4 --model_dim 512 --head_dim 64 --vocab_size 24576
"""

import sys
from dataclasses import dataclass
from typing import Any

import torch
from nanochat import cli
from nanochat.common import Refused
from nanochat.footprint import GIB, footprint
from nanochat.gpt import GPT, GPTConfig

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Config:
    """Print parameters, operations per token and memory of a shape; the card is in GiB."""

    depth: int = 20
    model_dim: int | None = None
    head_dim: int | None = None
    vocab_size: int = 65536
    max_seq_len: int = 2048
    tie_embeddings: bool = False
    dtype: str = "bfloat16"
    card: float = 80.0


def main(config: Config) -> dict[str, Any]:
    """The figures of a shape, also as tables on the screen.

    Raises:
        Refused: There is no such shape or dtype.
    """
    if config.dtype not in DTYPES:
        raise Refused(f"unknown dtype {config.dtype!r}, choose among {', '.join(DTYPES)}")
    shape = GPTConfig.from_depth(
        config.depth,
        sequence_len=config.max_seq_len,
        vocab_size=config.vocab_size,
        model_dim=config.model_dim,
        head_dim=config.head_dim,
        tie_embeddings=config.tie_embeddings,
    )
    with torch.device("meta"):
        model = GPT(shape)
    parts = parameters(model)
    total = sum(parts.values())
    need = footprint(shape, DTYPES[config.dtype])
    largest = need.largest_batch(config.card * GIB)
    print(f"depth {shape.n_layer}, width {shape.n_embd}, {shape.n_head} heads of {shape.head_dim}")
    print(f"\n{'part':<20} {'parameters':>15} {'share':>7}")
    for name, count in (parts | {"total": total}).items():
        print(f"{name:<20} {count:>15,} {count / total:>7.1%}")
    flops = model.estimate_flops()
    print(f"\n{flops:,} floating-point operations per token of training")
    print(f"\nMemory of eager training, {config.dtype}, {config.max_seq_len} positions, in GiB:")
    print(f"{'batch':>7} {'tensors':>10} {'with run time':>14}")
    batches = {2**i for i in range(7)} | ({largest} if largest else set())
    memory = {rows: (need.total(rows), need.total(rows, runtime=True)) for rows in sorted(batches)}
    for rows, (bare, whole) in memory.items():
        print(f"{rows:>7} {bare / GIB:>10.2f} {whole / GIB:>14.2f}")
    fits = f"at most {largest} rows at a time fit" if largest else "not even one row fits"
    print(f"\nOn a card of {config.card:g} GiB {fits}.")
    return {
        "parameters": total,
        "parts": parts,
        "flops_per_token": flops,
        "memory": memory,
        "largest_batch": largest,
    }


def parameters(model: GPT) -> dict[str, int]:
    """Parameters by part of the model."""
    count = model.num_params()
    attention = sum(p.numel() for block in model.blocks for p in block.attn.parameters())
    parts = {
        "embedding": count["embedding"],
        "attention": attention,
        "MLP": count["matrices"] - attention,
        "unembedding": count["unembedding"],
    }
    return {name: n for name, n in parts.items() if n}


if __name__ == "__main__":
    sys.exit(cli.run(main, Config))
