"""The one exception that a user is meant to read, and the remedy that most of them name."""

import difflib
from collections.abc import Iterable


class Refused(ValueError):
    """Something asked for cannot be done; the message is one sentence that names the remedy.

    It is raised before work starts and changes nothing on disk. The command prints it and exits
    with 2; anything else that reaches the top is a bug and keeps its traceback.
    """


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
