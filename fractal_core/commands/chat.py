"""Commands that talk with a language model: chat."""

from typing import Literal

import tyro

from fractal_core.errors import as_ours


def chat(
    checkpoint: tyro.conf.Positional[str] = "sft",
    /,
    *,
    tag: str | None = None,
    step: int | None = None,
    temperature: float = 0.8,
    top_k: int = 50,
    max_tokens: int = 512,
    num_gpus: int = 1,
    device: Literal["cuda", "mps", "cpu"] | None = None,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    host: str = "127.0.0.1",
    port: int = 0,
) -> None:
    """Talk with a language model in a browser, served on this machine only.

    Args:
        checkpoint: A folder, `hf:org/repo@revision`, `wandb:entity/project/name:version`, or a
            stage (base, mid, sft, rl) of $NANOCHAT_BASE_DIR.
        tag: Which folder of one model, as in d20; the deepest model if left out.
        step: Which step; the last one if left out.
        temperature: How freely answers are drawn; 0 always takes the likeliest token.
        top_k: Among how many tokens.
        max_tokens: How long an answer may get.
        num_gpus: On how many GPUs a replica answers.
        device: Where to compute; the best there is if left out.
        dtype: In what to compute on a GPU.
        host: Where to listen; anything but 127.0.0.1 lets others in, without a password.
        port: Where to listen; 0 is a free one.
    """
    # Here, because torch takes seconds to load and no other command needs these.
    from nanochat import common
    from scripts import chat_web

    config = chat_web.Config(
        source=checkpoint,
        model_tag=tag,
        step=step,
        temperature=temperature,
        top_k=top_k,
        max_tokens=max_tokens,
        num_gpus=num_gpus,
        device_type=device or "",
        dtype=dtype,
        host=host,
        port=port,
    )
    with as_ours(common.Refused):
        chat_web.main(config)
