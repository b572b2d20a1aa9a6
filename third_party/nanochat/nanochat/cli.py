"""Flags into a frozen dataclass, and a script's way in and out.

A script's `Config` is the whole description of its flags: names, defaults, types. Both
`--name=value` and `--name value` are understood, with dashes or underscores. Flags of one letter
are in the class variable `SHORT`, as in {"-n": "--num_files"}.
"""

import ast
import dataclasses
import difflib
import inspect
import os
import sys
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from nanochat.common import Refused, Unavailable, compute_cleanup

C = TypeVar("C")
TRUE, FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


class HelpAsked(Exception):
    """The user asked which flags there are; the message lists them."""


def config_from(kind: type[C], argv: Sequence[str] | None = None) -> C:
    """A `kind` with the flags of `argv` (default: the command line) in place of its defaults.

    Raises:
        Refused: A flag is unknown, lacks its value, or the value is of another type.
        HelpAsked: `--help` is among the flags.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type] - `type[C]` does not say that it is a dataclass
    given: dict[str, object] = {}
    while words:
        word = words.pop(0)
        word = getattr(kind, "SHORT", {}).get(word, word)
        if word in ("-h", "--help"):
            raise HelpAsked(_help(kind, fields))
        if word == "--":  # torchrun's separator
            continue
        if not word.startswith("--"):
            raise Refused(f"{word!r} is no flag; flags look like --name=value")
        name, equals, text = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if name not in fields:
            close = difflib.get_close_matches(name, fields, n=1)
            hint = f", did you mean --{close[0]}?" if close else "; --help lists them"
            raise Refused(f"unknown flag --{name}{hint}")
        if not equals:
            text = _next_value(words, name, hints[name])
        given[name] = _read(name, text, hints[name])
    return kind(**given)


REFUSED, TEMPORARY = 2, 75
"""The exit codes of what would be refused again, and of what may go well another time."""

VERDICT = "NANOCHAT_VERDICT"
"""The variable that names a file for the exit code of a refusal: torchrun ends with one of its own."""


def run(main: Callable[[C], object], kind: type[C], argv: Sequence[str] | None = None) -> int:
    """Call `main` with the flags; the exit code.

    0, 2 after a refusal, 75 if what is elsewhere could not be had, 130 after an interruption.
    """
    try:
        main(config_from(kind, argv))
    except HelpAsked as help_text:
        print(help_text)
    except Refused as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        code = TEMPORARY if isinstance(refusal, Unavailable) else REFUSED
        if verdict := os.environ.get(VERDICT):
            Path(verdict).write_text(str(code))
        return code
    except KeyboardInterrupt:
        return 130
    finally:
        compute_cleanup()
    return 0


def _next_value(words: list[str], name: str, hint: object) -> str:
    bare = bool in _kinds(hint)
    if (
        words
        and not words[0].startswith("--")
        and not (bare and words[0].lower() not in TRUE + FALSE)
    ):
        return words.pop(0)
    if bare:
        return "true"
    raise Refused(f"--{name} lacks its value, as in --{name}=...")


def _kinds(hint: object) -> tuple[object, ...]:
    """The types that a hint allows, None included."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return typing.get_args(hint)
    return (hint,)


def _read(name: str, text: str, hint: object) -> object:
    kinds = _kinds(hint)
    if types.NoneType in kinds and text == "None":
        return None
    if bool in kinds:
        if text.lower() in TRUE + FALSE:
            return text.lower() in TRUE
        raise Refused(f"--{name} is yes or no (true or false), not {text!r}")
    if int in kinds or float in kinds:
        number = _number(text)
        if number is not None and float in kinds:
            return float(number)
        if number is not None and int in kinds and float(number).is_integer():
            return int(number)
        kind = "a number" if float in kinds else "a whole number"
        raise Refused(f"--{name} is {kind}, not {text!r}")
    return text


def _number(text: str) -> int | float | None:
    """The finite number that a text spells, or None."""
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) < float("inf") else None


def _help(kind: type, fields: dict[str, dataclasses.Field]) -> str:
    short = {name: letter for letter, name in getattr(kind, "SHORT", {}).items()}
    lines = [inspect.getdoc(kind) or "", ""]
    for name, field in fields.items():
        letter = short.get(f"--{name}")
        lines.append(f"  --{name}={field.default!r}" + (f"   or {letter}" if letter else ""))
    return "\n".join(lines)
