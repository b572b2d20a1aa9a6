"""Measurements that train, in processes of their own: begun from a notebook, watched and stopped.

They are the commands `pairs` and `seeing`, at work on a run folder. What they train they train
under the lock of the folder, like anybody. As errands they have a folder of their own below it,
whose lock says that they are there also while they only calculate.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fractal_core import control, errands

Command = Literal["pairs", "seeing"]

FOLDER = "state/measuring"


@dataclass(frozen=True)
class Measurement:
    """The last measurement of a run folder.

    Args:
        command: Which.
        process: Who works on it; None once it has ended.
        said: The last line that it said.
        done: Whether it came to its end.
    """

    command: str
    process: int | None
    said: str
    done: bool

    @property
    def trouble(self) -> str:
        """Why it ended before it was done; empty if it did not."""
        if self.process is not None or self.done:
            return ""
        if self.said.startswith("fractal: "):
            return self.said.removeprefix("fractal: ")
        return f"{self.command} ended before it was done; what it trained is kept, begin it again"

    def __str__(self) -> str:
        """One line for a person."""
        if self.process is not None:
            return f"{self.command} is being measured: {self.said or 'it begins'}"
        return self.trouble or f"{self.command} is measured: {self.said}"


def begin(path: Path, command: Command, options: Sequence[str] = ()) -> int:
    """Have a process of its own session measure a run; returns its id.

    A folder that is being measured keeps the process that does so; beginning twice is beginning
    once.

    Args:
        path: The run folder.
        command: Which measurement.
        options: Of `fractal pairs` or `fractal seeing`.

    Raises:
        Refused: It ended at once; the sentence carries its last line.
    """
    return errands.start(path / FOLDER, ["fractal_core", command, str(path), *options])


def last(path: Path) -> Measurement | None:
    """The measurement that was last begun on a run folder, or None."""
    found = errands.last(path / FOLDER)
    if found is None:
        return None
    return Measurement(found.command[1], found.process, found.tail(1), found.code == 0)


def stop(path: Path, patience: float = 5.0) -> bool:
    """End the measurement of a run folder; what it has trained stays. True if there was one.

    Raises:
        Refused: It is measured on another machine.
    """
    return control.stop(path / FOLDER, patience)
