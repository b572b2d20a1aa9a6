"""`fractal`: finds the command, hands it the arguments, turns a refusal into one sentence."""

import contextlib
import functools
import importlib
import io
import itertools
import sys
from collections.abc import Callable
from typing import Any

from fractal_core.errors import Refused, require_known
from fractal_core.files import DISK_TROUBLE

COMMANDS = {
    "demo": ("make", "draw a published trainability fractal: the main job"),
    "new": ("make", "make a run folder from a preset"),
    "zoom": ("make", "make a run folder from a part of another"),
    "run": ("work", "train what is missing in a run folder"),
    "status": ("work", "say how far a run is"),
    "stop": ("work", "end the process that works on a run"),
    "verify": ("work", "read every file of a run again"),
    "show": ("look", "draw a run as PNG, PDF or SVG"),
    "plate": ("look", "draw several runs on one page, or the paper's six"),
    "film": ("look", "make a film of a zoom through runs"),
    "export": ("look", "write a run's arrays to one npz file, or its points to a csv"),
    "base": ("tune", "make the small language model that fine-tuning starts from"),
    "finetune": ("tune", "fine-tune a language model at one point, and watch it"),
    "point": ("tune", "train one tiny network at one point, and watch it"),
    "repro": ("tune", "train one point several times and compare the curves bit for bit"),
    "probe-batch": ("tune", "find the largest batch that fits this device"),
    "track": ("track", "send a run to Weights & Biases, or send it again"),
    "pairs": ("rough", "measure the dimension of a boundary from pairs of runs"),
    "seeing": ("rough", "say how far labels can be trusted, and when a zoom ends"),
    "dim": ("dimension", "say how rough a boundary is, next to what is not fractal"),
    "refine": ("dimension", "train a run only where its boundary is, and audit the rest"),
    "table": ("dimension", "measure the six published windows"),
    "data": ("data", "make, fetch, publish or count sets of conversations"),
    "open": ("open", "open a notebook, or the view of a figure, on this machine"),
    "eval": ("evaluate", "say how good a language model is, with intervals"),
    "chat": ("chat", "talk with a language model in a browser"),
    "bench": ("bench", "measure how fast this machine is, against other ways"),
    "doctor": ("health", "say what this machine is and whether a run folder will work on it"),
}


def usage() -> str:
    """The list of commands."""
    lines = [f"  {name:<11} {summary}" for name, (_, summary) in COMMANDS.items()]
    return "usage: fractal COMMAND ... (fractal COMMAND --help tells more)\n" + "\n".join(lines)


def dispatch(arguments: list[str]) -> int:
    """Run the command that `arguments` name; returns its exit code.

    Raises:
        Refused: There is no such command, or its arguments are wrong.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    name, *rest = arguments
    require_known("command", name, COMMANDS)
    module = importlib.import_module(f"fractal_core.commands.{COMMANDS[name][0]}")
    return _parsed(getattr(module, name.replace("-", "_")), name, rest)() or 0


def _parsed(command: Callable[..., int | None], name: str, words: list[str]) -> Callable[[], Any]:
    """A command with the arguments that the words say."""
    import tyro

    @functools.wraps(command)
    def later(*args: Any, **kwargs: Any) -> Callable[[], Any]:
        return functools.partial(command, *args, **kwargs)

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            flags = (tyro.conf.FlagCreatePairsOff,)
            return tyro.cli(later, prog=f"fractal {name}", args=words, config=flags)
    except SystemExit as end:
        if not end.code:
            raise
        # A framed page, whose first paragraph says what is wrong.
        lines = (line.strip("│─ ") for line in said.getvalue().splitlines()[1:])
        reason = " ".join(itertools.takewhile(bool, lines)).rstrip(".")
        raise Refused(f"{reason}; `fractal {name} --help` tells more") from None


def execute(arguments: list[str]) -> int:
    """Run a command and say in one sentence what stopped it.

    Returns:
        The exit code: 0 done, 1 some units failed, 2 refused, 75 and 130 asked to stop.
    """
    try:
        return dispatch(arguments)
    except Refused as error:
        print(f"fractal: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in DISK_TROUBLE:
            raise
        print(
            f"fractal: {error.filename or 'the disk'}: {error.strerror}; nothing that was finished "
            "is lost, so make room, allow writing or choose another name and try again",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print(
            "\nstopped; nothing that was finished is lost, the same command goes on",
            file=sys.stderr,
        )
        return 130


def main() -> None:
    """Entry point of the `fractal` command."""
    sys.exit(execute(sys.argv[1:]))


if __name__ == "__main__":
    main()
