"""The small base model that runs start from when no checkpoint is named; made here, kept in storage.

A tokenizer of a thousand tokens and a model of two layers learn from nanochat's built-in texts and
from the documents of `memos`, without a network, in a minute or two on a CPU. Weights are only the
same on machines that round alike, so a recipe holds their hash.
"""

import shutil
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path

from fractal_core import memos
from fractal_core.errors import Refused
from fractal_core.storage import storage


@dataclass(frozen=True)
class Base:
    """How the base model is made.

    Args:
        documents: Texts of nanochat's corpus; the memos come in addition.
        vocab_size: Tokens.
        depth: Layers, 64 channels each.
        sequence_length: Positions.
        batch_size: Rows of a step.
        steps: Training steps.
    """

    documents: int = 1500
    vocab_size: int = 1024
    depth: int = 2
    sequence_length: int = 256
    batch_size: int = 8
    steps: int = 300


def folder() -> Path:
    """The folder of the base model.

    Raises:
        Refused: It was not made yet.
    """
    place = storage() / "base" / "d2"
    if not place.exists():
        raise Refused(
            "there is no base model here yet; make it once with `fractal base` (a minute or two), "
            "or name a checkpoint with --set checkpoint=..."
        )
    return place


def make(base: Base) -> tuple[Path, float]:
    """Train the base model and put it into storage, whole or not at all.

    Returns:
        Its folder, and bits per byte of text that it has not seen.
    """
    import torch
    from nanochat import corpus, dataset
    from scripts import base_train, tok_train
    from scripts.tiny import base_folder

    from fractal_core.determinism import determined

    place = storage() / "base" / "d2"
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fractal-base-") as name:
        # One thread: it is hardly slower for so small a model, and repeats its bits.
        with base_folder(name), determined(torch.device("cpu")):
            documents = corpus.documents(base.documents)
            documents += [_text(conversation) for conversation in memos.conversations("train")]
            dataset.write_shards(_mixed(documents), 4, dataset.data_folder(), row_group=128)
            tok_train.main(tok_train.Config(vocab_size=base.vocab_size))
            tokens = base.batch_size * base.sequence_length
            figures = base_train.main(
                base_train.Config(
                    device_type="cpu",
                    depth=base.depth,
                    max_seq_len=base.sequence_length,
                    device_batch_size=base.batch_size,
                    total_batch_size=tokens,
                    num_iterations=base.steps,
                    eval_every=base.steps,
                    eval_tokens=16 * tokens,
                    core_metric_every=-1,
                    sample_every=-1,
                    model_tag="d2",
                )
            )
        draft = place.with_name(f".draft-{uuid.uuid4().hex}")
        try:
            shutil.copytree(Path(name) / "base_checkpoints" / "d2", draft)
            for file in ("tokenizer.json", "tokenizer.pkl", "token_bytes.pt"):
                shutil.copy(Path(name) / "tokenizer" / file, draft)
            for optimizer in draft.glob("optim_*"):
                optimizer.unlink()
            shutil.rmtree(place, ignore_errors=True)
            draft.rename(place)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return place, figures["val_bpb"]


def _text(conversation: memos.Conversation) -> str:
    """The turns of a conversation as a text to read."""
    return "\n".join(message["content"] for message in conversation["messages"])


def _mixed(documents: list[str]) -> list[str]:
    """The documents in an order in which every shard holds all kinds."""
    return [documents[at] for start in range(4) for at in range(start, len(documents), 4)]
