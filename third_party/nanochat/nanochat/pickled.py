"""`tokenizer.pkl` without the danger of a pickle.

The file holds one `tiktoken.Encoding`, created without arguments and given a dictionary of its
name, split pattern, merge ranks and special tokens. Nothing else is needed to read it, so nothing
else is admitted: other operations and other classes are refused before anything is built.
"""

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

import tiktoken

from nanochat.common import Refused

OPERATIONS = frozenset(
    (
        *("PROTO", "FRAME", "STOP", "MEMOIZE", "MARK", "STACK_GLOBAL", "NEWOBJ", "BUILD"),
        *("EMPTY_TUPLE", "EMPTY_DICT", "SETITEM", "SETITEMS"),
        *("SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES", "BINBYTES"),
        *("BININT", "BININT1", "BININT2"),
    )
)
"""What writing one Encoding takes."""

FIELDS = {"name": str, "pat_str": str, "mergeable_ranks": dict, "special_tokens": dict}


class _Encoding:
    """Stands in for tiktoken's class and keeps what it was given."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> type:
        if (module_name, global_name) != ("tiktoken.core", "Encoding"):
            raise Refused(f"it names {module_name}.{global_name}")
        return _Encoding


def pickle_of(encoding: tiktoken.Encoding) -> bytes:
    """The file that upstream reads."""
    return pickle.dumps(encoding, protocol=4)


def state_of(path: Path) -> dict[str, Any]:
    """The arguments of the Encoding in a `tokenizer.pkl`, but for its name.

    Raises:
        Refused: The file holds anything else; nothing of it was run.
    """
    data = path.read_bytes()
    try:
        for operation, argument, _ in pickletools.genops(data):
            if operation.name not in OPERATIONS:
                raise Refused(f"it uses {operation.name} ({argument!r:.60})")
        loaded = _Unpickler(io.BytesIO(data)).load()
        return _checked(loaded.state if isinstance(loaded, _Encoding) else None)
    except Refused as error:
        raise Refused(f"{path} is not a plain tokenizer and was not loaded: {error}") from None
    except Exception as error:  # noqa: BLE001 - damaged bytes raise whatever they run into
        raise Refused(f"{path} is damaged and was not loaded ({error!r:.80})") from None


def _checked(state: Any) -> dict[str, Any]:
    if not isinstance(state, dict) or state.keys() != FIELDS.keys():
        raise Refused("it does not hold the four fields of an Encoding")
    if any(not isinstance(state[name], kind) for name, kind in FIELDS.items()):
        raise Refused("a field of the Encoding has the wrong type")
    ranks, special = state["mergeable_ranks"], state["special_tokens"]
    ids = sorted([*ranks.values(), *special.values()])
    if ids != list(range(len(ids))):
        raise Refused("its ids are not the numbers from 0 on, each once")
    if not all(isinstance(key, bytes) for key in ranks) or not all(
        isinstance(key, str) for key in special
    ):
        raise Refused("its tokens are not bytes and names")
    return {name: state[name] for name in FIELDS if name != "name"}
