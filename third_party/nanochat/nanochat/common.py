"""What every stage shares."""

import os
from pathlib import Path
from typing import Any

import torch


class Refused(ValueError):
    """Something asked for cannot be done; one sentence that names the remedy."""


def get_base_dir() -> str:
    folder = Path(os.environ.get("NANOCHAT_BASE_DIR") or Path.home() / ".cache" / "nanochat")
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder)


def get_dist_info() -> tuple[bool, int, int, int]:
    return False, 0, 0, 1


def print0(text: str = "", **kwargs: Any) -> None:
    print(text, **kwargs)


def autodetect_device_type() -> str:
    return "cpu"


def compute_init(device_type: str = "cpu") -> tuple[bool, int, int, int, torch.device]:
    torch.manual_seed(42)
    return (*get_dist_info(), torch.device(device_type))


def compute_cleanup() -> None:
    return
