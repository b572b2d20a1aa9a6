"""Let a base model go on with a text.

python -m scripts.base_complete --prompt="The robin is a"
"""

import sys
from dataclasses import dataclass

from nanochat import cli
from nanochat.checkpoint_manager import load_model
from nanochat.common import Refused, compute_init
from nanochat.engine import Engine

from scripts.base_train import PROMPTS


@dataclass(frozen=True)
class Config:
    """Continue texts with a base model; greedy unless a temperature is given."""

    prompt: str = ""
    source: str = "base"
    model_tag: str | None = None
    step: int | None = None
    device_type: str = ""
    max_tokens: int = 16
    num_samples: int = 1
    temperature: float = 0.0
    top_k: int = 50
    seed: int = 42


def main(config: Config) -> dict[str, list[str]]:
    """Print the completions; the completed texts by prompt."""
    if config.num_samples < 1 or config.max_tokens < 1:
        raise Refused("ask for at least one sample and one token")
    *_, device = compute_init(config.device_type)
    model, tokenizer, _ = load_model(
        config.source, device, phase="eval", model_tag=config.model_tag, step=config.step
    )
    engine = Engine(model, tokenizer)
    completed: dict[str, list[str]] = {}
    for prompt in [config.prompt] if config.prompt else PROMPTS:
        rows, _ = engine.generate_batch(
            tokenizer.encode(prompt, prepend="<|bos|>"),
            num_samples=config.num_samples,
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            top_k=config.top_k,
            seed=config.seed,
        )
        completed[prompt] = [tokenizer.decode(row[1:]) for row in rows]
        print("\n".join(completed[prompt]))
    return completed


if __name__ == "__main__":
    sys.exit(cli.run(main, Config))
