"""The tasks that the CORE metric is the mean of: the reference's bundle, or a small built-in one.

    python -m nanochat.core_bundle        fetch and unpack the bundle (162 MB)

The bundle lies in `eval_bundle` of the base folder: `core.yaml` lists the tasks, each with a file
of JSON lines under `eval_data`; `eval_meta_data.csv` says what guessing gives.

Nobody publishes a checksum of the archive. The SHA-256 of the first that was unpacked is kept beside
it in `eval_bundle.sha256`, and another one is refused from then on, since its figures would not
compare; whoever knows the right one gives it as `--sha256`.
"""

import csv
import hashlib
import json
import shutil
import sys
import uuid
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from random import Random
from typing import Any

import yaml

from nanochat import cli
from nanochat.common import Refused, get_base_dir, print0
from nanochat.corpus import KINDS, THINGS, WORDS, a, spelled
from nanochat.dataset import fetch_once
from nanochat.sources import refuse_escapes

URL = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"
LIST, CHANCES, DATA = "core.yaml", "eval_meta_data.csv", "eval_data"
UNPACKED = 4 * 2**30
"""Bytes that a bundle may take; more is no bundle."""

KEYS = {
    "multiple_choice": ("query", "choices", "gold"),
    "schema": ("context_options", "continuation", "gold"),
    "language_modeling": ("context", "continuation"),
}
"""The kinds of tasks, and what each row of one must say."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Config:
    """Fetch the bundle; `sha256` is what its archive must have, by default what the first one had."""

    url: str = URL
    sha256: str = ""


@dataclass(frozen=True)
class CoreTask:
    """A task of the bundle.

    Args:
        label: What it is called.
        kind: `multiple_choice`, `schema` or `language_modeling`.
        load: Reads its rows.
        shots: How many solved examples stand before a question.
        delimiter: What stands between a question and its answer.
        chance: The share of right answers that guessing gives.
    """

    label: str
    kind: str
    load: Callable[[], Sequence[Row]]
    shots: int = 0
    delimiter: str = " "
    chance: float = 0.0


def bundle_folder() -> Path:
    """Where the bundle is."""
    return Path(get_base_dir()) / "eval_bundle"


def tasks_of(data: str) -> list[CoreTask]:
    """The tasks of the bundle, or with `builtin` those that need none.

    Raises:
        Refused: There is no bundle, or it is damaged.
    """
    if data not in ("", "hf", "builtin"):
        raise Refused(f"no tasks are called {data!r}; leave --data out or say builtin")
    return builtin() if data == "builtin" else read_bundle(bundle_folder())


def read_bundle(folder: Path) -> list[CoreTask]:
    """The tasks of a folder; their rows are read when they are asked for.

    Raises:
        Refused: There is no bundle there, or it is damaged.
    """
    if not (folder / LIST).exists():
        raise Refused(
            f"{folder} holds no evaluation bundle; fetch it with `python -m nanochat.core_bundle`, "
            "or unpack eval_bundle.zip there"
        )
    try:
        listed = yaml.safe_load((folder / LIST).read_text())["icl_tasks"]
        with (folder / CHANCES).open(newline="") as file:
            chances = {row["Eval Task"]: row["Random baseline"] for row in csv.DictReader(file)}
        return [_task(folder, entry, chances) for entry in listed]
    except Refused:
        raise
    except (yaml.YAMLError, OSError, LookupError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise _damaged(folder, f"{LIST} or {CHANCES} cannot be read: {reason}") from None


def builtin(seed: int = 1) -> list[CoreTask]:
    """Three tasks of our own, one of each kind: facts of the built-in corpus, to be remembered."""
    rng = Random(seed)
    kinds, pairs, letters = [], [], []
    for thing in WORDS:
        kind = THINGS[thing]
        offered = rng.sample([other for other in KINDS if other != kind], 3)
        offered.insert(rng.randrange(4), kind)
        kinds.append(
            {
                "query": f"{a(thing).capitalize()} is",
                "choices": [a(other) for other in offered],
                "gold": offered.index(kind),
            }
        )
        other = rng.choice([word for word in WORDS if THINGS[word] != kind])
        both = [thing, other] if rng.random() < 0.5 else [other, thing]
        pairs.append(
            {
                "context_options": [f"{a(word).capitalize()} is" for word in both],
                "continuation": f"{a(kind)}.",
                "gold": both.index(thing),
            }
        )
        said = f"The word {thing} is spelled {spelled(thing)}."
        letters.append(
            {
                "context": f"{said} It has {len(thing)} letters and begins with ",
                "continuation": thing[0],
            }
        )
    return [
        CoreTask("builtin_kinds", "multiple_choice", lambda: kinds, shots=2, chance=0.25),
        CoreTask("builtin_pairs", "schema", lambda: pairs, chance=0.5),
        CoreTask("builtin_letters", "language_modeling", lambda: letters, shots=1),
    ]


def unpack(archive: Path, folder: Path) -> Path:
    """The bundle of an archive as a folder, which appears whole or not at all.

    Raises:
        Refused: It is no archive or no bundle, is too large, or names a path outside the folder.
    """
    draft = folder.with_name(f".draft-{uuid.uuid4().hex}")
    try:
        with zipfile.ZipFile(archive) as packed:
            files = [info for info in packed.infolist() if not info.is_dir()]
            refuse_escapes(archive.name, [info.filename for info in files])
            if sum(info.file_size for info in files) > UNPACKED:
                raise Refused(f"{archive} unpacks to more than {UNPACKED} bytes; it is no bundle")
            for info in files:
                if place := _place(info.filename):
                    (draft / place).parent.mkdir(parents=True, exist_ok=True)
                    with packed.open(info) as inside, (draft / place).open("xb") as outside:
                        shutil.copyfileobj(inside, outside)
        read_bundle(draft)
        draft.rename(folder)
    except (
        *(zipfile.BadZipFile, zlib.error, EOFError),
        *(NotImplementedError, RuntimeError, FileExistsError),  # ways to pack that are not known
    ) as error:
        raise Refused(
            f"{archive} is no whole archive ({error}); remove it and fetch it again"
        ) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def main(config: Config) -> dict[str, str]:
    """Fetch and unpack the bundle unless it is there; where it is.

    Raises:
        Refused: It cannot be had, or is none; the folder is then as it was.
    """
    folder = bundle_folder()
    archive, note = folder.with_suffix(".zip"), folder.with_suffix(".sha256")
    kept = note.read_text().strip() if note.exists() else ""
    fetched = folder.exists()
    digest = kept if fetched else digest_of(fetch_once(config.url, archive))
    wanted = config.sha256.lower() or kept
    if wanted and digest != wanted:
        raise Refused(
            f"the SHA-256 of {archive} is {digest or 'unknown'} and must be {wanted}; remove it and "
            f"{folder} to fetch it again, or give --sha256={digest} if it is meant"
        )
    if not fetched:
        unpack(archive, folder)
        note.write_text(f"{digest}\n")
    print0(f"{len(read_bundle(folder))} tasks are in {folder}, of SHA-256 {digest or 'unknown'}")
    return {"folder": str(folder), "sha256": digest}


def digest_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _place(name: str) -> str:
    """Where in the bundle a file of the archive goes; empty if it is no part of one."""
    path = PurePosixPath(name)
    inner = path.relative_to("eval_bundle") if path.is_relative_to("eval_bundle") else path
    wanted = str(inner) in (LIST, CHANCES) or (
        inner.parts[:1] == (DATA,) and inner.suffix == ".jsonl"
    )
    return str(inner) if wanted else ""


def _task(folder: Path, entry: Any, chances: Mapping[str, str]) -> CoreTask:
    label, kind, uri = (str(entry[k]) for k in ("label", "icl_task_type", "dataset_uri"))
    if kind not in KEYS:
        raise _damaged(folder, f"the task {label} is of the unknown kind {kind!r}")
    refuse_escapes(str(folder / LIST), [uri])
    path = folder / DATA / uri
    if not path.is_file():
        raise _damaged(folder, f"{uri} of the task {label} is missing")
    if label not in chances:
        raise _damaged(folder, f"{CHANCES} does not say what guessing gives in {label}")
    delimiter = entry.get("continuation_delimiter", " ")
    shots, chance = int(entry["num_fewshot"][0]), 0.01 * float(chances[label])
    return CoreTask(label, kind, lambda: _rows(path, kind), shots, delimiter, chance)


def _rows(path: Path, kind: str) -> list[Row]:
    """The rows of a file of JSON lines."""
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            found = row if isinstance(row, dict) else {}
            lacks = next((key for key in KEYS[kind] if key not in found), None)
            if lacks:
                raise Refused(f"line {number} of {path} lacks {lacks}; fetch the bundle again")
            rows.append(found)
    if not rows:
        raise Refused(f"{path} is empty; fetch the bundle again")
    return rows


def _damaged(folder: Path, what: str) -> Refused:
    return Refused(
        f"the bundle in {folder} is damaged ({what}); remove the folder and fetch it with "
        "`python -m nanochat.core_bundle`"
    )


if __name__ == "__main__":
    sys.exit(cli.run(main, Config))
