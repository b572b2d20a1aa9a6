"""Commands of fine-tuning: base, finetune, repro, probe-batch."""

import time

from fractal_core import base as base_model


def base(*, steps: int = 300) -> None:
    """Make the small language model that fine-tuning starts from when no checkpoint is named.

    Two layers and a thousand tokens, trained on built-in texts without a network; kept in the
    storage folder (FRACTAL_STORAGE, or the user's cache) for all runs to come. Runs that were
    begun from the one before it cannot be gone on with.

    Args:
        steps: Training steps.
    """
    started = time.perf_counter()
    folder, bits = base_model.make(base_model.Base(steps=steps))
    print(f"{bits:.3f} bits per byte of texts that it has not seen")
    print(f"{time.perf_counter() - started:.0f} s in all")
    print(f"model    {folder}")
    print("\nNext: fine-tune it once, or over a plane of learning rates")
    print("  fractal finetune runs/one")
    print("  fractal demo runs/plane --preset matrix-unembedding")
