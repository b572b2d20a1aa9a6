"""Checkpoints on disk, in the reference's layout.

    TAG/model_000010.pt         the weights: names to tensors
    TAG/meta_000010.json        the shape of the model, the step, where data and loop were
    TAG/optim_000010_rank0.pt   a list of the optimizers' states

A file appears whole or not at all, and the weights come last: a step whose weights are there is
complete. Files are read with `weights_only`, so none can run code.
"""

import contextlib
import json
import os
import pickle
import re
import uuid
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nanochat.common import Refused, get_base_dir, print0
from nanochat.gpt import GPT, GPTConfig

FOLDERS = {
    "base": "base_checkpoints",
    "mid": "mid_checkpoints",
    "sft": "chatsft_checkpoints",
    "rl": "chatrl_checkpoints",
}
"""The folder, under the base folder, of each stage."""

COMPILED = "_orig_mod."
NEWER = (
    "window_pattern",
    "resid_lambdas",
    "x0_lambdas",
    "smear_",
    "backout_",
    "value_embeds",
    "ve_gate",
)
"""What only later versions of nanochat write into a checkpoint."""

Weights = dict[str, Tensor]
Meta = dict[str, Any]


def save_checkpoint(
    checkpoint_dir: str | os.PathLike,
    step: int,
    model_data: Weights | None,
    optimizer_data: Any,
    meta_data: Meta | None,
    rank: int = 0,
) -> None:
    """Write a step: the optimizers' states of this rank and, on rank 0, shape and weights.

    With several processes all of them must call it: rank 0 waits for the others before it writes
    the weights.
    """
    folder = Path(checkpoint_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if optimizer_data is not None:
        _write(folder / f"optim_{step:06d}_rank{rank}.pt", optimizer_data)
    if dist.is_initialized():
        dist.barrier()
    if rank != 0:
        return
    meta = dict(meta_data or {})
    if "model_config" in meta:
        meta["model_config"] = _model_config(meta["model_config"])
    _write(folder / f"meta_{step:06d}.json", meta)
    _write(folder / f"model_{step:06d}.pt", model_data)
    print0(f"Saved step {step} to {folder}")


def load_checkpoint(
    checkpoint_dir: str | os.PathLike,
    step: int,
    device: str | torch.device = "cpu",
    load_optimizer: bool = False,
    rank: int = 0,
) -> tuple[Weights, Any, Meta]:
    """Weights, optimizer states (None unless asked for) and meta of a step, as they are on disk.

    Every process may load the optimizers of rank 0 when its own file is missing: ours are alike.

    Raises:
        Refused: The step is not there, or a file is torn.
    """
    folder = Path(checkpoint_dir)
    meta = _read_meta(folder, step)
    weights = _read(folder / f"model_{step:06d}.pt", device)
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise Refused(f"{folder / f'model_{step:06d}.pt'} holds no weights; use another file")
    if not load_optimizer:
        return weights, None, meta
    own = folder / f"optim_{step:06d}_rank{rank}.pt"
    return (
        weights,
        _read(own if own.exists() else own.with_name(f"optim_{step:06d}_rank0.pt"), device),
        meta,
    )


def load_gpt(
    checkpoint_dir: str | os.PathLike, step: int, device: str | torch.device = "cpu"
) -> tuple[GPT, Meta]:
    """The model of a step. Weights keep the dtype of the file; on a CPU all become float32.

    Raises:
        Refused: The files are torn, do not fit each other, or a newer nanochat wrote them.
    """
    weights, _, meta = load_checkpoint(checkpoint_dir, step, device)
    return model_from(weights, meta, f"step {step} in {checkpoint_dir}"), meta


def model_from(weights: Weights, meta: Meta, origin: str) -> GPT:
    """A model that holds these tensors; `origin` says where they are from, should they not fit."""
    weights = {key.removeprefix(COMPILED): value for key, value in weights.items()}
    config = _config_of(weights, meta, origin)
    with torch.device("meta"):
        model = GPT(config)
    wanted = {key: value.shape for key, value in model.state_dict().items()}
    missing, surplus = sorted(wanted.keys() - weights), sorted(weights.keys() - wanted)
    if missing or surplus:
        what = f"lacks {missing[0]}" if missing else f"holds the unknown {surplus[0]}"
        raise Refused(
            f"{origin} {what} ({len(missing)} keys missing, {len(surplus)} unknown); "
            "fetch the checkpoint again or use another"
        )
    for key, shape in wanted.items():
        if weights[key].shape != shape:
            raise Refused(
                f"{origin}: {key} is {tuple(weights[key].shape)} and its model_config says "
                f"{tuple(shape)}; fetch the checkpoint again or use another"
            )
    device = next(iter(weights.values())).device
    if device.type in ("cpu", "mps"):
        weights = {k: v.float() if v.dtype == torch.bfloat16 else v for k, v in weights.items()}
    model.load_state_dict(weights, assign=True)
    model.fill_rotary_tables()
    return model


def load_optimizers(optimizers: Sequence[torch.optim.Optimizer], states: Any, origin: str) -> None:
    """Put saved states into optimizers; `origin` says where they are from, should they not fit.

    Raises:
        Refused: They belong to another model, or to the sharded optimizers of the reference.
    """
    fits = isinstance(states, list) and len(states) == len(optimizers)
    if fits:
        try:
            for optimizer, state in zip(optimizers, states, strict=True):
                optimizer.load_state_dict(state)
        except (ValueError, KeyError, TypeError):
            fits = False
    if not fits or not all(map(_is_of_its_weights, optimizers)):
        raise Refused(
            f"the optimizer states of {origin} are of another model or of another number of "
            "processes; start a new run from its weights instead"
        )


def _is_of_its_weights(optimizer: torch.optim.Optimizer) -> bool:
    """Whether every saved tensor that is not one number has the shape of its weight."""
    return all(
        value.shape == weight.shape
        for weight, state in optimizer.state.items()
        for value in state.values()
        if isinstance(value, Tensor) and value.numel() > 1
    )


def find_last_step(checkpoint_dir: str | os.PathLike) -> int:
    """The largest step whose weights and meta are there; other files are passed over.

    Raises:
        Refused: There is none.
    """
    steps = find_steps(checkpoint_dir)
    if not steps:
        raise Refused(f"no checkpoint in {checkpoint_dir}; train one or name another place")
    return steps[-1]


def find_steps(checkpoint_dir: str | os.PathLike) -> list[int]:
    """The complete steps of a folder, by number."""
    folder = Path(checkpoint_dir)
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    found = [re.fullmatch(r"model_(\d{6,})\.pt", name) for name in names]
    steps = [match[1] for match in found if match and f"meta_{match[1]}.json" in names]
    return sorted(map(int, steps))


def find_largest_model(checkpoints_dir: str | os.PathLike) -> str:
    """The tag to use when none is named: the deepest d<number>, else the newest with a checkpoint.

    Raises:
        Refused: No folder in it holds a checkpoint.
    """
    root = Path(checkpoints_dir)
    tags = [p for p in root.iterdir() if find_steps(p)] if root.is_dir() else []
    if not tags:
        raise Refused(f"no checkpoint under {root}; train one or name another place")
    depths = {p.name: re.match(r"d(\d+)", p.name) for p in tags}
    deep = [(int(match[1]), name) for name, match in depths.items() if match]
    return max(deep)[1] if deep else max(tags, key=lambda p: p.stat().st_mtime).name


def build_model(
    checkpoint_dir: str | os.PathLike, step: int, device: str | torch.device, phase: str
) -> tuple[GPT, Any, Meta]:
    """Model, tokenizer and meta of a step, ready to `train` or to `eval`.

    The tokenizer is the one that lies with the checkpoint, else that of the base folder.

    Raises:
        Refused: As `load_gpt`, or the tokenizer is of another vocabulary.
    """
    if phase not in ("train", "eval"):
        raise Refused(f"unknown phase {phase!r}, choose train or eval")
    model, meta = load_gpt(checkpoint_dir, step, device)
    return model.train(phase == "train"), load_tokenizer(checkpoint_dir, step), meta


def load_tokenizer(checkpoint_dir: str | os.PathLike, step: int) -> Any:
    """The tokenizer of a step: the one that lies with it or above, else that of the base folder.

    Raises:
        Refused: There is none, or it is of another vocabulary than the model.
    """
    folder = Path(checkpoint_dir)
    tokenizer = _tokenizer_near(folder)
    known = tokenizer.get_vocab_size()
    wanted = _read_meta(folder, step).get("model_config", {}).get("vocab_size")
    if known != wanted:
        raise Refused(
            f"the tokenizer has {known} tokens and the model {wanted}; put the model's own "
            f"tokenizer.pkl into {folder}"
        )
    return tokenizer


def load_model_from_dir(
    checkpoints_dir: str | os.PathLike,
    device: str | torch.device,
    phase: str,
    model_tag: str | None = None,
    step: int | None = None,
) -> tuple[GPT, Any, Meta]:
    """`build_model` of a tag and step, by default the largest of both, and say which."""
    folder, step = locate(checkpoints_dir, model_tag, step)
    print0(f"Loading step {step} of {folder}")
    return build_model(folder, step, device, phase)


def locate(
    root: str | os.PathLike, model_tag: str | None = None, step: int | None = None
) -> tuple[Path, int]:
    """The folder and step meant by a tag and a step, either of which may be left open.

    Raises:
        Refused: What was named is not there; it is never replaced by something else.
    """
    root = Path(root)
    if model_tag is None:
        holders = [root, root / "checkpoints"]
        folder = next((p for p in holders if find_steps(p)), None)
        folder = folder or root / find_largest_model(root)
    else:
        folder = root / model_tag
        if Path(model_tag).name != model_tag or not find_steps(folder):
            tags = sorted(p.name for p in root.iterdir() if find_steps(p)) if root.is_dir() else []
            raise Refused(f"no checkpoint {model_tag!r} in {root}; there are: {', '.join(tags)}")
    if step is None:
        return folder, find_last_step(folder)
    if step not in find_steps(folder):
        there = ", ".join(map(str, find_steps(folder)))
        raise Refused(f"no step {step} in {folder}; there are: {there}")
    return folder, step


def load_model(
    source: str,
    device: str | torch.device,
    phase: str,
    model_tag: str | None = None,
    step: int | None = None,
) -> tuple[GPT, Any, Meta]:
    """Model, tokenizer and meta from a stage (base, mid, sft, rl), a folder, hf: or wandb:."""
    return load_model_from_dir(source_folder(source), device, phase, model_tag, step)


def source_folder(source: str) -> Path:
    """The folder of a stage or of anything that `nanochat.sources.fetch` understands."""
    if source in FOLDERS:
        return Path(get_base_dir()) / FOLDERS[source]
    from nanochat.sources import fetch

    return fetch(source)


def _model_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The reference's six keys; `tie_embeddings`, which it does not know, only where it is true."""
    return {k: v for k, v in config.items() if k != "tie_embeddings" or v}


def _config_of(weights: Weights, meta: Meta, origin: str) -> GPTConfig:
    given = meta.get("model_config")
    if not isinstance(given, dict):
        raise Refused(f"{origin} has no model_config in its meta file; fetch it again")
    newer = [name for name in NEWER if name in given or any(name in key for key in weights)]
    if newer:
        raise Refused(
            f"{origin} was written by a newer nanochat (it has {newer[0].rstrip('_')}); this one "
            "reads those of December 2025 (commit 8f979a8)"
        )
    known = {field.name: field.type for field in fields(GPTConfig)}
    unknown = sorted(given.keys() - known)
    missing = sorted(known.keys() - given.keys() - {"tie_embeddings"})
    wrong = [k for k, v in given.items() if k in known and type(v) is not known[k]]
    for what, keys in (("has the unknown", unknown), ("lacks", missing), ("has a wrong", wrong)):
        if keys:
            raise Refused(f"{origin}: its model_config {what} {', '.join(keys)}")
    return GPTConfig(**given)


def _tokenizer_near(folder: Path) -> Any:
    from nanochat.tokenizer import RustBPETokenizer, get_tokenizer

    above = [ancestor / "tokenizer" for ancestor in (folder, *folder.parents[:2])]
    for place in (folder, *above):  # the last is that of the base folder which it lies in
        if (place / "tokenizer.pkl").exists() or (place / "tokenizer.json").exists():
            return RustBPETokenizer.from_directory(str(place))
    return get_tokenizer()


def _read_meta(folder: Path, step: int) -> Meta:
    path = folder / f"meta_{step:06d}.json"
    if not path.exists():
        there = ", ".join(map(str, find_steps(folder))) or "none"
        raise Refused(f"no step {step} in {folder}; there are: {there}")
    try:
        meta = json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError):
        meta = None
    if not isinstance(meta, dict):
        raise Refused(f"{path} is torn or no JSON object; use another step or fetch it again")
    return meta


def _read(path: Path, device: str | torch.device) -> Any:
    """A file of tensors, on a device."""
    if not path.exists():
        raise Refused(f"{path} is missing; use another step or fetch it again")
    torn = Refused(f"{path} is torn; use another step or fetch it again")
    if not zipfile.is_zipfile(path):  # its directory is at the end
        raise torn
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError:
        raise Refused(f"{path} holds more than tensors and was not loaded") from None
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, EOFError, ValueError, KeyError):
        raise torn from None


def _write(path: Path, data: Any) -> None:
    """Write a file so that it appears whole: beside its name, flushed, then renamed."""
    draft = path.with_name(f".draft-{uuid.uuid4().hex}")
    try:
        with draft.open("xb") as file:
            if path.suffix == ".json":
                file.write(json.dumps(data, indent=2).encode())
            else:
                torch.save(data, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # some file systems cannot flush a folder
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
