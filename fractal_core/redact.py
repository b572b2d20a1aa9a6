"""Takes out of a text what looks like a secret, before it reaches a file.

Workers get their environment from an allow-list, so there should be nothing to take out. This is
the second line: libraries print what they were given, and a run folder is made to be shared.
"""

import re

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
