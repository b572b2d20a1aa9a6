"""How long a run is, and how its rates and momenta change with the step."""

from typing import Any

from nanochat.common import Refused

MOMENTUM_START, MOMENTUM_END, MOMENTUM_STEPS = 0.85, 0.95, 300


def iterations(config: Any, params: int, flops_per_token: int) -> int:
    """How many steps a base model is trained: as given, else by operations, else by parameters.

    Raises:
        Refused: No flag says.
    """
    if config.num_iterations > 0:
        return config.num_iterations
    if config.target_flops > 0:
        return round(config.target_flops / (flops_per_token * config.total_batch_size))
    if config.target_param_data_ratio > 0:
        return config.target_param_data_ratio * params // config.total_batch_size
    raise Refused("give --num_iterations, --target_flops or --target_param_data_ratio")


def lr_multiplier(config: Any, step: int, last: int) -> float:
    """Of a base model: linear warm-up, constant, linear warm-down to `final_lr_frac` in the end."""
    warmup, warmdown = (round(r * last) for r in (config.warmup_ratio, config.warmdown_ratio))
    if step < warmup:
        return (step + 1) / warmup
    if step <= last - warmdown:
        return 1.0
    progress = (last - step) / warmdown
    return progress + (1 - progress) * config.final_lr_frac


def muon_momentum(step: int) -> float:
    """From 0.85 to 0.95 over the first 300 steps."""
    part = min(step / MOMENTUM_STEPS, 1.0)
    return (1 - part) * MOMENTUM_START + part * MOMENTUM_END


def accumulation(config: Any, world: int) -> int:
    """Micro-batches a step, of any stage whose batches are counted in tokens.

    Raises:
        Refused: They do not add up to the total batch size.
    """
    tokens = config.device_batch_size * config.max_seq_len * world
    if tokens < 1 or config.total_batch_size % tokens:
        raise Refused(
            f"--total_batch_size={config.total_batch_size} is no multiple of the {tokens} tokens of "
            f"a micro-batch (device_batch_size x max_seq_len x {world} processes); change one"
        )
    return config.total_batch_size // tokens
