"""The old way of fine-tuning at one point: a process of its own, and nanochat's own loop.

`python -P afresh.py FOLDER` loads weights and tokens, trains with nanochat's own pieces - rows
filled up to the longest of their batch, logits of every token of them, Muon and AdamW as they are,
the loss fetched at every step - and prints one JSON object. It is run by its path and imports
nothing of fractal_core, so that it starts as fast as it can. It is also faster than what it stands
for: nothing is tokenised, logged, sampled or saved.

    task.json    checkpoint [folder, step], device, dtype, settings (of a run, see `tuner`), began
                 (when the process was asked for), permuted (null, or a seed by which the rows of
                 every batch are put in another order)
    rows.npz     ids, learned, starts: the rows, in the order of their use
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nanochat.checkpoint_manager import load_gpt
from nanochat.dataloader import collate
from nanochat.gpt import GPT


def main(folder: Path) -> dict[str, Any]:
    """Train at one point.

    Returns:
        start: Seconds from when the process was asked for to its first step.
        steps: Seconds of every step.
        curve: The loss before every step.
    """
    task = json.loads((folder / "task.json").read_text())
    settings, device = task["settings"], torch.device(task["device"])
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.set_float32_matmul_precision("highest")
    checkpoint, step = task["checkpoint"]
    model, _ = load_gpt(checkpoint, step, device)
    model.set_compute_dtype(getattr(torch, task["dtype"]))
    optimizers = _optimizers(model, settings)
    rows = _rows(folder, settings["batch_size"], task["permuted"])
    start, seconds, curve = time.time() - task["began"], [], []
    for step, multiplier in enumerate(settings["multipliers"]):
        began = time.perf_counter()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * multiplier
        first = step * settings["accumulation"]
        micro = rows[first : first + settings["accumulation"]]
        curve.append(_step(model, optimizers, micro, device))
        seconds.append(time.perf_counter() - began)
    return {"start": start, "steps": seconds, "curve": curve}


def _step(
    model: GPT, optimizers: list[torch.optim.Optimizer], micro: list, device: torch.device
) -> float:
    total = 0.0
    for rows in micro:
        inputs, targets = collate(rows, 0, device)
        loss = model(inputs, targets) / len(micro)
        loss.backward()
        total += loss.item()
    for optimizer in optimizers:
        optimizer.step()
    model.zero_grad(set_to_none=True)
    return total


def _optimizers(model: GPT, settings: dict[str, Any]) -> list[torch.optim.Optimizer]:
    rates = {name: settings[name] for name in ("unembedding_lr", "embedding_lr", "matrix_lr")}
    optimizers = model.setup_optimizers(**rates, weight_decay=settings["weight_decay"])
    for group in optimizers[1].param_groups:
        group["momentum"] = settings["momentum"]
    groups = {"embedding": [model.wte.weight]}
    groups["matrix"] = [p for block in model.blocks for p in block.parameters()]
    if model.lm_head is not None:
        groups["unembedding"] = [model.lm_head.weight]
    for name, params in groups.items():
        for p in params:
            p.requires_grad_(name in settings["trainable"])
    return optimizers


def _rows(folder: Path, size: int, permuted: int | None) -> list[list[tuple]]:
    """Batches of ids and masks."""
    with np.load(folder / "rows.npz") as kept:
        ends = kept["starts"][1:-1]
        ids, learned = (np.split(kept[name], ends) for name in ("ids", "learned"))
    rows = [(a.tolist(), b.tolist()) for a, b in zip(ids, learned, strict=True)]
    batches = [rows[at : at + size] for at in range(0, len(rows), size)]
    if permuted is not None:
        draw = np.random.default_rng(permuted)
        batches = [[batch[at] for at in draw.permutation(size)] for batch in batches]
    return batches


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
