"""A checkpoint as `transformers` reads it (`NanoChatForCausalLM`), on disk or on the Hugging Face Hub.

    python -m nanochat.hub --source=sft --out=exported
    python -m nanochat.hub --source=sft --out=exported --repo=me/my-nanochat

The port there computes rotary tables in float32, this model rounds them to bfloat16: logits
differ by that rounding and by nothing else.
"""

import itertools
import json
import shutil
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from nanochat import cli
from nanochat.checkpoint_manager import load_model
from nanochat.common import Refused, print0
from nanochat.gpt import GPT, NORM_EPS, ROPE_BASE, SOFTCAP

MATRICES = {
    "attn.c_q": "self_attn.q_proj",
    "attn.c_k": "self_attn.k_proj",
    "attn.c_v": "self_attn.v_proj",
    "attn.c_proj": "self_attn.o_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}

CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- if messages and messages[0].role == 'system' %}"
    "{%- set first = messages[0].content + '\\n\\n' %}{%- set rest = messages[1:] %}"
    "{%- else %}{%- set first = '' %}{%- set rest = messages %}{%- endif %}"
    "{%- for message in rest %}"
    "{%- if message.role == 'user' %}"
    "{{- '<|user_start|>' + (first if loop.first else '') + message.content + '<|user_end|>' }}"
    "{%- else %}"
    "{{- '<|assistant_start|>' + message.content + '<|assistant_end|>' }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant_start|>' }}{%- endif %}"
)


@dataclass(frozen=True)
class Config:
    """Export a checkpoint, and upload it if a repository is named."""

    source: str = "sft"
    model_tag: str | None = None
    step: int | None = None
    out: str = ""
    repo: str = ""


def export(model: GPT, tokenizer: Any, out: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Write model and tokenizer into a new folder, which appears whole or not at all.

    Args:
        model: What is exported.
        tokenizer: Its tokenizer, of as many tokens.
        out: A folder that does not exist yet.
        dtype: Of the weights on disk.

    Raises:
        Refused: The folder exists, or the tokenizer belongs to another model.
    """
    if out.exists():
        raise Refused(f"{out} exists already; name a new folder")
    if tokenizer.get_vocab_size() != model.config.vocab_size:
        raise Refused(
            f"the tokenizer has {tokenizer.get_vocab_size()} tokens and the model "
            f"{model.config.vocab_size}; export it with its own"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".draft-{uuid.uuid4().hex}")
    draft.mkdir()
    try:
        weights = {k: v.to(dtype).contiguous() for k, v in renamed(model).items()}
        save_file(weights, draft / "model.safetensors", {"format": "pt"})
        jsons = {
            "config.json": config_of(model, tokenizer, dtype),
            "tokenizer.json": tokenizer_json(tokenizer),
            "tokenizer_config.json": tokenizer_config(model),
        }
        for name, content in jsons.items():
            (draft / name).write_text(json.dumps(content, indent=2, ensure_ascii=False))
        draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return out


def upload(folder: Path, repo: str, hub: Any = None) -> str:
    """Upload an exported folder to a repository, made private if it is new; its address.

    Raises:
        Refused: The Hub refuses it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    hub = hub or HfApi()
    try:
        hub.create_repo(repo, private=True, exist_ok=True)
        hub.upload_folder(repo_id=repo, folder_path=str(folder))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise Refused(
            f"{repo} cannot be written ({reason[0]}); log in with `hf auth login`"
        ) from None
    return f"https://huggingface.co/{repo}"


def renamed(model: GPT) -> dict[str, Tensor]:
    """The weights under the port's names; tables without the rows that only pad them."""
    state, rows = model.state_dict(), model.config.vocab_size
    weights = {"model.embed_tokens.weight": state["transformer.wte.weight"][:rows]}
    for i in range(model.config.n_layer):
        for ours, theirs in MATRICES.items():
            weights[f"model.layers.{i}.{theirs}.weight"] = state[f"transformer.h.{i}.{ours}.weight"]
    if model.lm_head is not None:
        weights["lm_head.weight"] = state["lm_head.weight"][:rows]
    return weights


def config_of(model: GPT, tokenizer: Any, dtype: torch.dtype) -> dict[str, Any]:
    """The port's `config.json`."""
    config = model.config
    return {
        "architectures": ["NanoChatForCausalLM"],
        "model_type": "nanochat",
        "vocab_size": config.vocab_size,
        "hidden_size": config.n_embd,
        "intermediate_size": 4 * config.n_embd,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "max_position_embeddings": config.sequence_len,
        "hidden_act": "relu2",
        "rms_norm_eps": NORM_EPS,
        "rope_parameters": {"rope_type": "default", "rope_theta": float(ROPE_BASE)},
        "final_logit_softcapping": SOFTCAP,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": tokenizer.encode_special("<|bos|>"),
        "eos_token_id": tokenizer.encode_special("<|assistant_end|>"),
        "pad_token_id": None,
        "dtype": str(dtype).removeprefix("torch."),
    }


def tokenizer_config(model: GPT) -> dict[str, Any]:
    """How `transformers` presents the tokenizer: special tokens and the form of a conversation."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|bos|>",
        "eos_token": "<|assistant_end|>",
        "pad_token": "<|assistant_end|>",
        "model_max_length": model.config.sequence_len,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def tokenizer_json(tokenizer: Any) -> dict[str, Any]:
    """The tokenizer in the format of the `tokenizers` library."""
    encoding = tokenizer.enc
    ranks: dict[bytes, int] = encoding._mergeable_ranks
    special: dict[str, int] = encoding._special_tokens
    letters = byte_letters()

    def spelled(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges = [[spelled(part) for part in parts_of(t, ranks)] for t in ranks if len(t) > 1]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    level = {"add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": encoding._pat_str}, "behavior": "Isolated"}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": id, "content": name, "special": True} | flags for name, id in special.items()
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [split | {"invert": False}, {"type": "ByteLevel"} | level],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel"} | level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {spelled(token): rank for token, rank in ranks.items()},
            "merges": merges,
        },
    }


def byte_letters() -> list[str]:
    """The printable letter that stands for each byte in the `tokenizers` library.

    Printable bytes of Latin-1 stand for themselves, the others for the letters from 256 on.
    """
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


def parts_of(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens whose merge made this one: what earlier merges leave of its bytes."""
    parts, limit = [bytes([byte]) for byte in token], ranks[token]
    while len(parts) > 2:
        pairs = [
            (ranks.get(left + right, limit), i)
            for i, (left, right) in enumerate(itertools.pairwise(parts))
        ]
        rank, i = min(pairs)
        if rank >= limit:
            raise Refused("the tokenizer's merges do not build its tokens; train it again")
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts[0], parts[1]


def main(config: Config) -> dict[str, Any]:
    """Export, and upload if asked to; where it went."""
    if not config.out:
        raise Refused("name a new folder with --out")
    model, tokenizer, _ = load_model(
        config.source, "cpu", "eval", model_tag=config.model_tag, step=config.step
    )
    folder = export(model, tokenizer, Path(config.out))
    print0(f"Exported to {folder}")
    figures = {"folder": str(folder)}
    if config.repo:
        figures["address"] = upload(folder, config.repo)
        print0(f"Uploaded to {figures['address']}")
    return figures


if __name__ == "__main__":
    sys.exit(cli.run(main, Config))
