"""Takes out of a text what looks like a secret, before it reaches a file; and logs written so.

Workers get their environment from an allow-list, so there should be nothing to take out. This is
the second line: libraries print what they were given, and a run folder is made to be shared.
`python -I redact.py LOG` writes what it reads: a filter for a process that must not have a thread.
"""

import collections
import contextlib
import os
import re
import sys
from pathlib import Path
from typing import IO

LOG_BYTES = 64 * 2**20
TAIL_BYTES = 2**16

_WORDS = ("api_key", "api-key", "apikey", "token", "secret", "password", "passwd", "credential")
# A name is looked at once and taken whole. To try it from each of its letters would take minutes
# for a long line without a space, and nothing else goes on meanwhile.
_NAMED = re.compile(
    rf"""(?ix)
    (?<![\w.-]) (?= [\w.-]*? (?: {"|".join(_WORDS)} ) )
    ( [\w.-]*+ ["']? \s* [=:] \s* ["']? )
    [^\s"',;&]+
    """
)
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}")
_SHAPED = re.compile(
    r"\b(?:hf_\w{16,}|sk-[\w-]{16,}|gh[pousr]_\w{16,}|wandb_v\d+_\w{16,}|AKIA[A-Z0-9]{16}|"
    r"[0-9a-f]{40})\b"
)
_IN_ADDRESS = re.compile(r"(?<=://)[^\s/@:]*+:[^\s/@]++(?=@)")


def redact(text: str) -> str:
    """`text` with every value that is named, or shaped, like a secret replaced.

    Forty hexadecimal digits are taken for a Weights & Biases key even where they are a commit.

    Example:
        >>> redact("WANDB_API_KEY=0123 and hf_abcdefghijklmnopqrst")
        'WANDB_API_KEY=[redacted] and [redacted]'
    """
    lower = text.lower()
    if any(word in lower for word in _WORDS):  # most of what is said is free of them
        text = _NAMED.sub(r"\1[redacted]", text)
    text = _BEARER.sub(r"\1 [redacted]", text)
    text = _IN_ADDRESS.sub("[redacted]", text)
    return _SHAPED.sub("[redacted]", text)


class CappedLog:
    """A log file that keeps the beginning and the end of a flood, without secrets.

    Args:
        path: The file; it is made when there is something to write.
        most: Bytes that are written as they come. Of what follows the end is kept.
    """

    def __init__(self, path: Path, most: int = LOG_BYTES):
        self.path, self._most = path, most
        self._written = self._skipped = 0
        self._rest = b""
        self._tail: collections.deque[bytes] = collections.deque()
        self._tail_bytes = 0
        self._file: IO[bytes] | None = None

    def write(self, data: bytes) -> None:
        """Take in what was said; whole lines at a time, so that no secret is cut in two."""
        lines, end, self._rest = (self._rest + data).rpartition(b"\n")
        if end:
            self._lines(lines + end)
        if len(self._rest) > TAIL_BYTES:
            self._lines(self._rest)
            self._rest = b""

    def _lines(self, lines: bytes) -> None:
        self._tail.append(lines)
        self._tail_bytes += len(lines)
        while self._tail_bytes - len(self._tail[0]) >= TAIL_BYTES:
            self._tail_bytes -= len(self._tail.popleft())
        if self._skipped or self._written + len(lines) > self._most:
            self._skipped += len(lines)
            return
        lines = _clean(lines)
        self._written += len(lines)
        with contextlib.suppress(OSError):  # a full disk must not end the work that is logged
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("ab", buffering=0)
            self._file.write(lines)

    @property
    def end(self) -> str:
        """The last 4 KB of what was said."""
        return _clean(b"".join(self._tail)).decode()[-4096:]

    def close(self) -> None:
        """Write the end of what did not fit."""
        if self._rest:
            self._lines(self._rest)
            self._rest = b""
        if self._file is None:
            return
        with contextlib.suppress(OSError), self._file:
            if self._skipped:
                tail = b"".join(self._tail)
                left_out = max(0, self._skipped - len(tail))
                self._file.write(b"\n[%d bytes left out]\n\n" % left_out + _clean(tail))
        self._file = None


def _clean(said: bytes) -> bytes:
    return redact(said.decode(errors="replace")).encode()


def main() -> None:
    """Write what comes on standard input to the log that is named, until it ends."""
    log = CappedLog(Path(sys.argv[1]))
    while said := os.read(sys.stdin.fileno(), TAIL_BYTES):
        log.write(said)
    log.close()


if __name__ == "__main__":
    main()
