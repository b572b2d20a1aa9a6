"""Bits per byte of a base model on training and validation texts, and how it completes prompts.

python -m scripts.base_loss --model_tag=d12
"""

import sys
from dataclasses import dataclass
from typing import Any

from nanochat import cli
from nanochat.checkpoint_manager import load_gpt, locate, source_folder
from nanochat.common import Refused, compute_init, print0
from nanochat.loss_eval import evaluate_bpb
from nanochat.report import get_report

from scripts.base_train import Data, texts


@dataclass(frozen=True)
class Config:
    """Evaluate a base model; flags and defaults are the reference's."""

    device_batch_size: int = 32
    split_tokens: int = 20 * 524288
    model_tag: str | None = None
    model_step: int | None = None
    device_type: str = ""


def main(config: Config, data: Data | None = None) -> dict[str, Any]:
    """Bits per byte of both splits. `data` stands in for the pretraining texts.

    Raises:
        Refused: There is no such model, or the tokens do not divide into batches.
    """
    _, _, _, world, device = compute_init(config.device_type)
    folder, step = locate(source_folder("base"), config.model_tag, config.model_step)
    model, _ = load_gpt(folder, step, device)
    model.eval()
    print0(f"Evaluating step {step} of {folder}")
    tokens = config.device_batch_size * model.config.sequence_len * world
    if tokens < 1 or config.split_tokens % tokens:
        raise Refused(
            f"--split_tokens={config.split_tokens} is no multiple of the {tokens} tokens of a batch "
            f"(device_batch_size x {model.config.sequence_len} x {world} processes); change one"
        )
    data = data or texts(config.device_batch_size, model.config.sequence_len, device)
    figures: dict[str, Any] = {"step": step, "checkpoint": str(folder)}
    for split in ("train", "val"):
        bpb = evaluate_bpb(
            model, data.split(split), config.split_tokens // tokens, data.token_bytes
        )
        print0(f"{split}: {bpb:.4f} bits per byte")
        figures[f"{split}_bpb"] = bpb
    get_report().log("Base model loss", [vars(config), figures])
    return figures


if __name__ == "__main__":
    sys.exit(cli.run(main, Config))
