"""Sets of rows on the Hugging Face Hub: which commit, which files, which rows; and the way back.

A set is fetched file by file into a folder of its own for every commit. A seal beside the folder
lists the files and their sizes and is written last: where it holds, nobody asks the Hub, so a set
that was fetched once is there without a network.
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fractal_core.errors import Refused, first_line

ATTEMPTS = 5
"""How often the Hub is asked before it counts as out of reach; pauses grow to half a minute."""

COMMIT = re.compile(r"[0-9a-f]{40}")
NAME = re.compile(r"[\w.-]+/[\w.-]+")

DATA_FILES = re.compile(r".*\.(parquet|arrow|jsonl?|csv|tsv|txt)(\.(gz|zst|xz|bz2))?|README\.md")
"""What is fetched of a set: its rows, and the card, which may say which file is which split."""

T = TypeVar("T")


def client() -> Any:
    """The Hub's own client; HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are obeyed."""
    import huggingface_hub

    return huggingface_hub.HfApi()


def commit_of(repo: str, revision: str) -> str:
    """The commit that a branch or tag of a data set stands at now.

    Raises:
        Refused: There is no such set or revision, or the Hub is out of reach.
    """
    if COMMIT.fullmatch(revision):
        return revision
    return asked(f"{repo}@{revision}", lambda: client().dataset_info(repo, revision=revision).sha)


def files_of(repo: str, commit: str) -> dict[str, int]:
    """The files of a data set at a commit, and how many bytes each has.

    Raises:
        Refused: As above, or a name would leave the folder that it is fetched into.
    """
    info = asked(
        f"{repo}@{commit}",
        lambda: client().dataset_info(repo, revision=commit, files_metadata=True),
    )
    names = [file.rfilename for file in info.siblings]
    for name in names:
        if ".." in name.split("/") or name.startswith("/") or "\\" in name:
            raise Refused(f"{repo} holds the path {name!r}, which leaves its folder")
    return {file.rfilename: file.size or 0 for file in info.siblings}


def fetch(repo: str, commit: str, folder: Path) -> list[str]:
    """Fetch what is missing of a data set at a commit; returns the names of what was fetched.

    A file whose size is wrong counts as missing. What was fetched before an interruption stays.

    Raises:
        Refused: As above.
    """
    if not missing(folder):
        return []
    listed = files_of(repo, commit)
    wanted = {name: size for name, size in listed.items() if DATA_FILES.fullmatch(name)}
    absent = [name for name, size in wanted.items() if _size(folder / name) != size]
    for name in absent:
        (folder / name).unlink(missing_ok=True)
        load = partial(
            client().hf_hub_download,
            *(repo, name),
            repo_type="dataset",
            revision=commit,
            local_dir=str(folder),
        )
        asked(f"{repo}@{commit}", load)
    _seal(folder).write_text(json.dumps(wanted, indent=1))
    return absent


def missing(folder: Path) -> bool:
    """Whether a set was never fetched whole, or a file of it has not its size any more."""
    try:
        sizes = json.loads(_seal(folder).read_text())
        return any(_size(folder / name) != size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return True


def open_file(repo: str, commit: str, name: str) -> Any:
    """A file of a data set, open for reading; what is read of it is fetched, and nothing else."""
    import huggingface_hub

    there = huggingface_hub.HfFileSystem(endpoint=client().endpoint)
    return there.open(f"datasets/{repo}@{commit}/{name}", "rb", block_size=2**20)


def splits(folder: Path) -> list[str]:
    """The splits of a fetched set, as its card or the names of its files have them."""
    return list(_opened(folder))


def rows(folder: Path, split: str, column: str) -> Iterator[Any]:
    """One column of a split of a fetched set, row by row.

    Raises:
        Refused: There is no such column, or a file cannot be read.
    """
    dataset = _opened(folder)[split]
    with _readable(folder):
        known = dataset.column_names or list(next(iter(dataset), {}))
        if column not in known:
            raise Refused(f"there is no column {column!r} in {folder}, but {', '.join(known)}")
        for row in dataset.select_columns([column]):
            yield row[column]


def publish(folder: Path, repo: str, message: str) -> str:
    """Put the data files of a folder into a data set on the Hub; returns the address of the commit.

    The set is made, private, if it does not exist.

    Raises:
        Refused: The Hub is out of reach or does not allow it.
    """
    if not NAME.fullmatch(repo):
        raise Refused(f"{repo!r} is no name of a data set; write ORGANISATION/NAME")

    def upload() -> Any:
        client().create_repo(repo, repo_type="dataset", private=True, exist_ok=True)
        return client().upload_folder(
            repo_id=repo,
            repo_type="dataset",
            folder_path=folder,
            commit_message=message,
            allow_patterns=["*.jsonl", "README.md"],
        )

    return asked(repo, upload).commit_url


def asked(what: str, question: Callable[[], T]) -> T:
    """The answer of the Hub, asked again with growing pauses while that may help.

    Raises:
        Refused: What the Hub, or the way to it, complains of, in one sentence.
    """
    import tenacity
    from huggingface_hub import errors

    # The client reports a lost way to the Hub as a missing local file; the part that moves large
    # files raises RuntimeError for everything.
    http = errors.HTTPError  # pyright: ignore[reportPrivateImportUsage] - of whichever HTTP library
    troubles = (http, ConnectionError, TimeoutError, errors.LocalEntryNotFoundError)

    def offline(error: BaseException) -> bool:
        # The client may hide it behind another error, as it does a lost way to the Hub.
        chain = (error, error.__cause__, error.__context__)
        return any(isinstance(one, errors.OfflineModeIsEnabled) for one in chain)

    def passing(error: BaseException) -> bool:
        if offline(error):
            return False
        if isinstance(error, errors.HfHubHTTPError):
            status = error.response.status_code
            return status in (408, 429) or status >= 500
        return isinstance(error, (*troubles, RuntimeError))

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(passing),
        stop=tenacity.stop_after_attempt(ATTEMPTS),
        wait=tenacity.wait_random_exponential(multiplier=1, max=30),
        reraise=True,
    )
    try:
        return retrying(question)
    except errors.RevisionNotFoundError:
        raise Refused(f"{what}: the Hub has no such revision; check what stands after @") from None
    except errors.RepositoryNotFoundError:
        raise Refused(
            f"{what} is not on the Hub, or not for everyone; check the name, or log in with "
            "`hf auth login`"
        ) from None
    except (*troubles, RuntimeError, errors.HFValidationError) as error:
        if offline(error):
            raise Refused(
                f"{what} is not stored here and HF_HUB_OFFLINE is set; fetch it once without"
            ) from None
        raise Refused(
            f"{what} is not stored here and the Hub does not give it ({first_line(error)}); try again with "
            "a network, what was fetched is kept"
        ) from None


def require_datasets() -> Any:
    """The package `datasets`, or a refusal that says how to install it."""
    try:
        import datasets
    except ModuleNotFoundError:
        raise Refused(
            "sets from the Hub are read with the package datasets; run `uv sync --extra data`"
        ) from None
    return datasets


def _opened(folder: Path) -> Any:
    datasets = require_datasets()
    with _readable(folder):
        return datasets.load_dataset(
            str(folder), streaming=True, cache_dir=str(folder.parent / ".datasets")
        )


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Turn what is wrong with the files of a set into one sentence."""
    errors = (OSError, ValueError, require_datasets().exceptions.DatasetsError)
    try:
        yield
    except Refused:
        raise
    except errors as error:
        raise Refused(
            f"{folder} does not read as a data set ({first_line(error)}); remove it to fetch it anew"
        ) from None


def _seal(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
