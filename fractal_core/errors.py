"""The one exception that a user is meant to read, and the remedy that most of them name."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator


class Refused(ValueError):
    """Something asked for cannot be done; the message is one sentence that names the remedy.

    It is raised before work starts and changes nothing on disk. The command prints it and exits
    with 2; anything else that reaches the top is a bug and keeps its traceback.
    """


@contextlib.contextmanager
def as_ours(theirs: type[Exception]) -> Iterator[None]:
    """Raise what a library refuses, in its own words, as `Refused`.

    Args:
        theirs: How the library says that something cannot be done.
    """
    try:
        yield
    except theirs as error:
        raise Refused(str(error)) from None


def first_line(error: BaseException) -> str:
    """What an error of somebody else's says, as a part of a sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def require_known(what: str, given: str, known: Iterable[str]) -> None:
    """Refuse a name that is not one of `known`, and say which was probably meant.

    Raises:
        Refused: The name is unknown.
    """
    known = list(known)
    if given not in known:
        close = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise Refused(f"unknown {what} {given!r}, choose among {', '.join(known)}{hint}")
