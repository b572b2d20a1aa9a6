"""Golden numbers of the model, for the tests that compare with them."""

import json
from pathlib import Path

import numpy as np
import torch
from nanochat.gpt import GPT, GPTConfig

DATA = Path(__file__).parent / "data"


def golden(name: str) -> dict:
    """Every array of a golden file."""
    with np.load(DATA / f"nanochat_tiny_{name}.npz") as file:
        return {key: file[key] for key in file.files}


def tensors(numbers: dict, prefix: str) -> dict[str, torch.Tensor]:
    """The arrays under a prefix, as a state dict."""
    return {
        key.removeprefix(f"{prefix}/"): torch.from_numpy(array)
        for key, array in numbers.items()
        if key.startswith(f"{prefix}/")
    }


def golden_model(numbers: dict) -> GPT:
    """The model of a golden file, in float32."""
    model = GPT(GPTConfig(**json.loads(str(numbers["config"]))))
    model.load_state_dict(tensors(numbers, "w"))
    return model


def alive(model: GPT) -> GPT:
    """The model with weights that are nowhere zero, as those it begins with partly are."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
    return model


def batch(numbers: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Its tokens and targets."""
    return torch.from_numpy(numbers["idx"]), torch.from_numpy(numbers["targets"])


def worst(left, right) -> float:
    """The largest absolute difference."""
    left, right = (torch.as_tensor(x).detach().double() for x in (left, right))
    return float((left - right).abs().max())


def relative(left, right) -> float:
    """The norm of the difference over the norm of the right one."""
    left, right = (torch.as_tensor(x).detach().double() for x in (left, right))
    return float((left - right).norm() / right.norm())
