"""The one place that says what it takes for torch to give the same bits twice."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch

memory: Any = torch.utils.deterministic
"""Its one setting is made when torch is imported, so a checker of types does not know it."""


def determined(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """For as long as it lasts, sums have one order: the same work gives the same bits.

    On a CPU that takes a single thread, so that bits do not depend on how many there are.
    """
    if device.type == "cuda":
        # cuBLAS reads it when it is first used, which is later than here.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return _determined()


@contextlib.contextmanager
def _determined() -> Iterator[None]:
    before = (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.deterministic,
        torch.get_float32_matmul_precision(),
        memory.fill_uninitialized_memory,
    )
    # Nothing here reads what it has not written, so new memory need not be filled.
    _determine(1, True, True, "highest", False)
    try:
        yield
    finally:
        _determine(*before)


def _determine(threads: int, algorithms: bool, cudnn: bool, precision: str, fill: bool) -> None:
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(algorithms)
    torch.backends.cudnn.deterministic = cudnn
    torch.set_float32_matmul_precision(precision)
    memory.fill_uninitialized_memory = fill
