"""Checkpoints from elsewhere: a folder, a Hugging Face repository, a Weights & Biases artifact.

    /some/folder                        used where it is
    hf:org/repo, hf:org/repo@rev        a branch, tag or commit
    wandb:entity/project/name:version   a version or an alias

What is fetched lies under `sources` in the base folder, one folder for each immutable version. It
appears there only when it is complete and has been looked through; one process at a time fetches.
"""

import json
import re
import shutil
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock

from nanochat.checkpoint_manager import find_largest_model, find_steps
from nanochat.common import Refused, get_base_dir, print0

SEAL = "complete.json"
"""Names and sizes of everything in a fetched folder; written last."""

WANTED = re.compile(r"(model_\d+\.pt|meta_\d+\.json|tokenizer\.(pkl|json)|token_bytes\.pt)")
HF = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<rev>[\w./-]+))?")
WANDB = re.compile(r"[\w.-]+/[\w. -]+/[\w.-]+:[\w.-]+")


def fetch(source: str, *, hub: Any = None, wandb_api: Any = None) -> Path:
    """The folder with a source's files, fetched now or earlier.

    Args:
        source: As above.
        hub: Stands in for `huggingface_hub.HfApi()`.
        wandb_api: Stands in for `wandb.Api()`.

    Raises:
        Refused: The source is no such thing, cannot be had, or names a path outside its folder.
    """
    kind, colon, name = source.partition(":")
    if colon and kind == "hf":
        return _from_hub(name, hub)
    if colon and kind == "wandb":
        return _from_wandb(name, wandb_api)
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise Refused(
            f"{source!r} is neither a stage (base, mid, sft, rl) nor a folder; elsewhere is "
            "hf:org/repo@rev or wandb:entity/project/name:version"
        )
    return folder


def _from_hub(name: str, hub: Any) -> Path:
    match = HF.fullmatch(name)
    if match is None:
        raise Refused(f"hf:{name} does not look like hf:org/repo or hf:org/repo@rev")
    if hub is None:
        import huggingface_hub

        hub = huggingface_hub.HfApi()
    repo = match["repo"]
    commit = match["rev"]
    if commit is None or not re.fullmatch(r"[0-9a-f]{40}", commit):
        commit = _asked(f"hf:{name}", lambda: hub.model_info(repo, revision=commit).sha)

    def names() -> list[str]:
        return hub.list_repo_files(repo, revision=commit)

    def download(wanted: list[str], folder: Path) -> None:
        for file in wanted:
            hub.hf_hub_download(repo, file, revision=commit, local_dir=str(folder))

    return _cached(f"hf:{name}", Path("hf", repo.replace("/", "--"), commit), names, download)


def _from_wandb(name: str, api: Any) -> Path:
    if WANDB.fullmatch(name) is None:
        raise Refused(f"wandb:{name} does not look like wandb:entity/project/name:version")
    if api is None:
        import wandb

        api = _asked(f"wandb:{name}", wandb.Api)
    artifact = _asked(f"wandb:{name}", lambda: api.artifact(name))
    place = Path("wandb", *name.rpartition(":")[0].split("/"), artifact.version)

    def names() -> list[str]:
        return list(artifact.manifest.entries)

    def download(wanted: list[str], folder: Path) -> None:
        for file in wanted:
            artifact.get_entry(file).download(root=str(folder))

    return _cached(f"wandb:{name}", place, names, download)


def _cached(
    source: str,
    place: Path,
    names: Callable[[], list[str]],
    download: Callable[[list[str], Path], None],
) -> Path:
    """The folder of an immutable version, fetched if it is not there whole."""
    target = Path(get_base_dir(), "sources", place)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if _is_whole(target):
            return target
        listed = _asked(source, names)
        refuse_escapes(source, listed)
        wanted = [name for name in listed if WANTED.fullmatch(PurePosixPath(name).name)]
        draft = target.with_name(f".draft-{uuid.uuid4().hex}")
        draft.mkdir()
        try:
            print0(f"Fetching {len(wanted)} files of {source}")
            _asked(source, lambda: download(wanted, draft))
            _require_checkpoint(source, draft)
            sizes = {name: (draft / name).stat().st_size for name in wanted}
            (draft / SEAL).write_text(json.dumps(sizes, indent=2))
            shutil.rmtree(target, ignore_errors=True)
            draft.replace(target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return target


def refuse_escapes(source: str, names: Iterable[str]) -> None:
    """Refuse a list of files of which one would be written outside its folder.

    Raises:
        Refused: A name is absolute, empty, or goes up by `..`; nothing was written.
    """
    for name in names:
        parts = re.split(r"[/\\]", name)
        if ".." in parts or "" in parts or ":" in parts[0] or "\0" in name:
            raise Refused(
                f"{source} holds the path {name!r}, which leaves its folder; nothing was fetched"
            )


def _is_whole(folder: Path) -> bool:
    """Whether every file that was fetched is there in its full size."""
    try:
        sizes = json.loads((folder / SEAL).read_text())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def _require_checkpoint(source: str, folder: Path) -> None:
    if not find_steps(folder) and not find_steps(folder / "checkpoints"):
        try:
            find_largest_model(folder)
        except Refused:
            raise Refused(
                f"{source} holds no model_*.pt with its meta_*.json; name another version"
            ) from None
    for path in folder.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
            raise Refused(f"{source} holds the link {path.name}, which leaves its folder")


def _asked(source: str, question: Callable[[], Any]) -> Any:
    """The answer of someone else's service; what it complains of, in one sentence."""
    try:
        return question()
    except Refused:
        raise
    except Exception as error:  # noqa: BLE001 - clients raise whatever their transport does
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise Refused(
            f"{source} cannot be had ({reason[0]}); check the name, network and login"
        ) from None
