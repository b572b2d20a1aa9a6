"""Signs of progress: what trains ticks here, so that whoever watches can tell slow from stuck."""

_ticks = 0


def tick() -> None:
    """Say that another piece of the work is done.

    A call that is lost between two threads does no harm: it is change that is looked for.
    """
    global _ticks
    _ticks += 1


def ticks() -> int:
    """How often this process has ticked."""
    return _ticks
