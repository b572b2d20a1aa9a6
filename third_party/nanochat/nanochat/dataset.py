"""The pretraining texts: parquet shards in `base_data` of the base folder, fetched or made here.

FineWeb-Edu comes in 1823 shuffled shards of about 100 MB, one column `text`. The last shard on the
disk, in order of names, is for validation, so it changes with how many shards there are.

    python -m nanochat.dataset --num-files=8        fetch the first eight
    python -m nanochat.dataset --builtin=4000       make shards of the built-in corpus instead
"""

import contextlib
import http.client
import itertools
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock
from tqdm import tqdm

from nanochat import cli, corpus
from nanochat.common import Refused, Unavailable, get_base_dir

BASE_URL = "https://huggingface.co/datasets/karpathy/fineweb-edu-100b-shuffle/resolve/main"
MAX_SHARD = 1822
ATTEMPTS = 5
TIMEOUT = 30.0
PIECE = 1 << 20
ROW_GROUP = 1024


@dataclass(frozen=True)
class Config:
    """Fetch or make the pretraining texts."""

    SHORT: ClassVar = {"-n": "--num_files", "-w": "--num_workers"}

    num_files: int = -1
    num_workers: int = 4
    builtin: int = 0


def index_to_filename(index: int) -> str:
    """What a shard is called."""
    return f"shard_{index:05d}.parquet"


def data_folder() -> Path:
    """Where the shards are."""
    return Path(get_base_dir()) / "base_data"


def list_parquet_files(data_dir: str | Path | None = None) -> list[str]:
    """The shards on the disk in the order of their names; none that is still being fetched."""
    folder = data_folder() if data_dir is None else Path(data_dir)
    return sorted(str(path) for path in folder.glob("*.parquet") if path.is_file())


def split_files(split: str, data_dir: str | Path | None = None) -> list[str]:
    """The shards of a split: `val` is the last one, `train` all others.

    Raises:
        Refused: There are fewer than two shards, or one of the split is damaged.
    """
    if split not in ("train", "val"):
        raise Refused(f"unknown split {split!r}, choose train or val")
    files = list_parquet_files(data_dir)
    if len(files) < 2:
        raise Refused(
            f"{data_dir or data_folder()} holds {len(files)} shard(s) and the last one is for "
            "validation; get more with `python -m nanochat.dataset --num-files=2`"
        )
    chosen = files[-1:] if split == "val" else files[:-1]
    for path in chosen:  # now, rather than when hours of training come to it
        with open_shard(path):
            pass
    return chosen


@contextlib.contextmanager
def open_shard(path: str) -> Iterator[pq.ParquetFile]:
    """A shard, to read from.

    Raises:
        Refused: It is damaged, or holds no texts.
    """
    try:
        with pq.ParquetFile(path) as file:
            if "text" not in file.schema_arrow.names:
                raise Refused(f"{path} has no column `text`; remove it")
            yield file
    except (pa.ArrowException, OSError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise Refused(
            f"{path} is damaged ({reason[0]}); remove it and fetch it again with "
            "`python -m nanochat.dataset`"
        ) from None


def parquets_iter_batched(split: str, start: int = 0, step: int = 1) -> Iterator[list[str]]:
    """The texts of a split, one row group after the other.

    Args:
        split: train or val.
        start: The first row group of each shard to read, which is the rank of this process.
        step: Read every so many, which is the number of processes.
    """
    for path in split_files(split):
        with open_shard(path) as file:
            for group in range(start, file.num_row_groups, step):
                yield read_group(file, group)


def read_group(file: pq.ParquetFile, group: int) -> list[str]:
    """The texts of one row group."""
    return file.read_row_group(group, columns=["text"]).column("text").to_pylist()


def write_shards(
    documents: Sequence[str], shards: int, folder: Path, row_group: int = ROW_GROUP
) -> list[Path]:
    """Spread texts over so many shards, in order; the last one will be for validation."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for shard in range(shards):
        part = documents[len(documents) * shard // shards : len(documents) * (shard + 1) // shards]
        path = folder / index_to_filename(shard)
        draft = path.with_suffix(".part")
        pq.write_table(
            pa.table({"text": list(part)}),
            draft,
            row_group_size=row_group,
            compression="zstd",
            compression_level=3,
        )
        draft.replace(path)
        paths.append(path)
    return paths


def fetch(
    url: str, path: Path, *, attempts: int = ATTEMPTS, pause: Callable[[float], Any] = time.sleep
) -> None:
    """Fetch a file over HTTP; it appears whole or not at all.

    What arrived before a connection broke is kept beside it and asked for no more: the next
    attempt, in this process or a later one, starts where it ends. Between attempts 2, 4, 8 ...
    seconds pass.

    Raises:
        Refused: The file is not there.
        Unavailable: No attempt succeeded.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    reason = ""
    for attempt in range(1, attempts + 1):
        try:
            _continue(url, part)
            part.replace(path)
            return
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (401, 403, 404, 410):
                raise Refused(f"{url} cannot be had ({error.code} {error.reason})") from None
            reason = f"{error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
        if attempt < attempts:
            pause(2.0**attempt)
    raise Unavailable(
        f"{url} could not be fetched in {attempts} attempts ({reason}); try again later"
    )


def fetch_once(url: str, path: Path) -> Path:
    """A file that is fetched by the first process to ask for it; all others wait.

    Raises:
        Refused: As `fetch`.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():
                fetch(url, path)
    return path


def _continue(url: str, part: Path) -> None:
    """Fetch what is missing of a file; an OSError if the connection ends before the file does."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url)
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # there is nothing after what we have, or it is another file
            whole = error.headers.get("Content-Range", "").rpartition("/")[2]
            error.close()
            if whole == str(have):
                return
            part.unlink()
            raise OSError("what was there before belongs to another file") from None
        raise
    with response:
        partial = response.status == 206
        expected = response.headers.get("Content-Length")
        have = have if partial else 0
        with part.open("ab" if partial else "wb") as file:
            while piece := response.read(PIECE):
                file.write(piece)
            size = file.tell()
    if expected is not None and size != have + int(expected):
        raise OSError(f"the connection ended after {size} of {have + int(expected)} bytes")


def download_single_file(
    index: int, *, base_url: str = BASE_URL, pause: Callable[[float], Any] = time.sleep
) -> bool:
    """Fetch a shard unless it is there; whether it is there now."""
    path = data_folder() / index_to_filename(index)
    if path.exists():
        return True
    arrived = path.with_suffix(".fetched")  # not a shard until it has been opened
    try:
        fetch(f"{base_url}/{path.name}", arrived, pause=pause)
        pq.read_metadata(arrived)
    except (Refused, pa.ArrowInvalid) as error:
        arrived.unlink(missing_ok=True)
        tqdm.write(f"{path.name}: {error}", file=sys.stderr)
        return False
    arrived.replace(path)
    return True


def main(config: Config) -> dict[str, int]:
    """Fetch shards, several at a time, or write the built-in corpus as four shards.

    What is there already is not touched.

    Raises:
        Refused: Other texts than the built-in corpus are there.
        Unavailable: Not all shards could be fetched.
    """
    if config.builtin:
        if config.builtin < 8:
            raise Refused("four shards take at least 8 documents")
        documents = corpus.documents(config.builtin)
        if list_parquet_files():
            groups = itertools.chain(parquets_iter_batched("train"), parquets_iter_batched("val"))
            if [text for group in groups for text in group] != documents:
                raise Refused(
                    f"{data_folder()} already holds other shards; remove them or choose another base"
                )
            print(f"{len(documents)} documents are there already")
            return {"shards": 4, "documents": len(documents)}
        draft = data_folder().with_name("base_data.draft")
        shutil.rmtree(draft, ignore_errors=True)
        write_shards(documents, 4, draft, row_group=128)
        draft.replace(data_folder())  # all shards at once, so that an interrupted run leaves none
        print(f"{len(documents)} documents, sha256 {corpus.digest(documents)[:16]}")
        return {"shards": 4, "documents": len(documents)}
    count = MAX_SHARD + 1 if config.num_files == -1 else min(config.num_files, MAX_SHARD + 1)
    if count < 1 or config.num_workers < 1:
        raise Refused("ask for at least one file and one worker")
    with ThreadPoolExecutor(config.num_workers) as pool:
        arrived = sum(
            tqdm(pool.map(download_single_file, range(count)), total=count, desc="shards")
        )
    if arrived < count:
        raise Unavailable(
            f"{count - arrived} of {count} shards did not arrive; run the command again"
        )
    return {"shards": arrived}


if __name__ == "__main__":
    sys.exit(cli.run(main, Config))
