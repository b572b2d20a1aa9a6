"""Talk with a model in a browser.

python -m scripts.chat_web                       at http://127.0.0.1:8000
python -m scripts.chat_web --host=0.0.0.0        for whoever reaches this machine; there is no password
"""

import sys
from dataclasses import dataclass
from typing import ClassVar

import torch
from nanochat import cli, server
from nanochat.checkpoint_manager import load_model
from nanochat.common import Refused, compute_init, set_dtype
from nanochat.engine import Engine
from nanochat.questions import Sampling
from nanochat.workers import Workers


@dataclass(frozen=True)
class Config:
    """Serve a chat with a model: one replica for each of `num_gpus` GPUs, or one without a GPU."""

    SHORT: ClassVar = {
        "-n": "--num_gpus",
        "-i": "--source",
        "-t": "--temperature",
        "-k": "--top_k",
        "-m": "--max_tokens",
        "-g": "--model_tag",
        "-s": "--step",
        "-p": "--port",
        "-d": "--dtype",
    }

    num_gpus: int = 1
    source: str = "sft"
    temperature: float = 0.8
    top_k: int = 50
    max_tokens: int = 512
    model_tag: str | None = None
    step: int | None = None
    port: int = 8000
    dtype: str = "bfloat16"
    device_type: str = ""
    host: str = "127.0.0.1"
    allow_origin: str = ""


def main(config: Config) -> dict[str, int]:
    """Serve until Ctrl-C; how many questions were answered to their end."""
    defaults = Sampling(config.temperature, config.top_k, config.max_tokens)
    local = server.is_local(config.host)
    with server.listen(config.host, config.port) as listener:
        engines, name = load(config)
        workers = Workers(engines)
        chat = server.Chat(
            workers, defaults, name=name, local=local, allow_origin=config.allow_origin
        )
        port = listener.getsockname()[1]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.host, config.host)
        print(f"Chat with {name} at http://{f'[{host}]' if ':' in host else host}:{port}/")
        if not local:
            print("Whoever reaches this machine can use it; there is no password.")
        print("Ctrl-C ends it.", flush=True)
        server.serve(chat, listener)
    return {"answered": workers.answered}


def load(config: Config) -> tuple[list[Engine], str]:
    """An engine for each replica, and what to call the model.

    Raises:
        Refused: There are fewer GPUs, or the model cannot be had.
    """
    *_, device = compute_init(config.device_type)
    there = torch.cuda.device_count() if device.type == "cuda" else 1
    if not 1 <= config.num_gpus <= there:
        raise Refused(f"this machine has room for 1 to {there} replicas; change --num_gpus")
    engines, meta = [], {}
    for place in range(config.num_gpus):
        target = torch.device("cuda", place) if device.type == "cuda" else device
        model, tokenizer, meta = load_model(
            config.source, target, phase="eval", model_tag=config.model_tag, step=config.step
        )
        set_dtype(model, config.dtype)
        engines.append(Engine(model, tokenizer))
    name = " ".join(filter(None, (config.source, config.model_tag)))
    return engines, f"{name}, step {meta['step']}" if "step" in meta else name


if __name__ == "__main__":
    sys.exit(cli.run(main, Config))
