"""Named bytes under one folder, written whole or not at all; and files that grow line by line."""

import contextlib
import errno
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fractal_core.errors import Refused

DISK_TROUBLE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG),
    *(errno.EISDIR, errno.ENOTDIR, errno.EEXIST),
)
"""What may be wrong with a place to write to; not the fault of the program."""

NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class Files:
    """Named bytes under one folder: the whole of what a run needs from a file system.

    `put_once` and `put_latest` are atomic and durable: a file is written beside its final name,
    flushed to the disk and then linked or renamed, and the folder is flushed after it.
    """

    def __init__(self, root: Path):
        self.root = root

    def put_once(self, key: str, data: bytes) -> bool:
        """Write `data` unless the key is taken; True for the writer that won."""
        with self._written(key, data) as (draft, target):
            try:
                os.link(draft, target)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                raise Refused(
                    f"{target.parent} is on a file system without hard links, which a run folder "
                    "needs so that the first commit wins; choose another place"
                ) from None
        self._flush_folder(target.parent)
        return True

    def put_latest(self, key: str, data: bytes) -> None:
        """Write `data` in place of whatever the key held."""
        with self._written(key, data) as (draft, target):
            draft.replace(target)
        self._flush_folder(target.parent)

    def get(self, key: str) -> bytes:
        """The bytes of a key."""
        return (self.root / key).read_bytes()

    def list(self, folder: str) -> list[str]:
        """The keys in a folder, sorted; drafts of a write under way are not among them."""
        try:
            names = os.listdir(self.root / folder)
        except FileNotFoundError:
            return []
        return sorted(f"{folder}/{name}" for name in names if not name.startswith("."))

    def drop(self, key: str) -> None:
        """Forget a key; it need not exist."""
        (self.root / key).unlink(missing_ok=True)

    def sweep_drafts(self, *folders: str) -> None:
        """Remove what writers that were killed left in folders that only the caller writes to."""
        for folder in folders:
            for draft in (self.root / folder).glob(".draft-*"):
                draft.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _written(self, key: str, data: bytes) -> Iterator[tuple[Path, Path]]:
        target = self.root / key
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.parent / f".draft-{uuid.uuid4().hex}"
        try:
            with draft.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield draft, target
        finally:
            draft.unlink(missing_ok=True)

    @staticmethod
    def _flush_folder(folder: Path) -> None:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read_json(path: Path, default: Any) -> Any:
    """What a JSON file holds, or the default while it is not there or not whole."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return default


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file that may be growing, see `objects`; none if it is not there."""
    try:
        return objects(path.read_bytes())
    except FileNotFoundError:
        return []


def objects(data: bytes) -> list[dict[str, Any]]:
    """The JSON objects of whole lines; one that was torn by a crash is left out."""
    found = []
    for line in data[: data.rfind(b"\n") + 1].splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return [each for each in found if isinstance(each, dict)]
