"""What looks like a secret does not reach a file; what does not stays as it is."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fractal_core.redact import redact

HEX = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("HF_TOKEN=swordfish9", "swordfish9"),
        ("{'AWS_SECRET_ACCESS_KEY': 'wJalrXUtnFEMI/K7MDENG'}", "wJalr"),
        ('{"api-key" : "swordfish9"}', "swordfish9"),
        ("--password=swordfish9 --steps 3", "swordfish9"),
        ("https://example.org/?a=1&token=swordfish9&b=2", "swordfish9"),
        ("my.db.passwd: swordfish9", "swordfish9"),
        ("Authorization: Bearer abcdefgh.ijkl", "abcdefgh"),
        ("user hf_abcdefghijklmnopqrst logged in", "hf_"),
        ("sk-abcdefghijklmnopqrst", "abcdefgh"),
        ("ghp_abcdefghijklmnopqrst", "abcdefgh"),
        ("AKIAQQQQWWWWEEEERRRR", "AKIA"),
        (f"wandb: {HEX}", HEX),
        ("logged in as wandb_v1_abcDEF0123456789_abcdef", "abcDEF"),
        ("postgres://owner:swordfish9@host/db", "swordfish9"),
        ("redis://:swordfish9@host", "swordfish9"),
        ("https://owner:sword:fish9@host", "fish9"),
    ],
)
def test_a_secret_is_taken_out(text, secret):
    """By its name, by its shape, or by its place."""
    assert secret in text
    assert secret not in redact(text)
    assert "[redacted]" in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "step 17: loss 0.25, lr 1e-3, 4,096 tokens in 0.1 s",
        "the tokenizer has 65536 tokens",
        "https://example.org:8080/path@2",
        "commit 0123456789ab",
        "x" * 100,
        "",
    ],
)
def test_other_words_stay(text):
    """A log that says nothing is no log."""
    assert redact(text) == text


@pytest.mark.parametrize("text", ["x", "token", "token ", "a.-", "://:", ":", "hf_", "token = "])
def test_a_long_line_is_read_once(text):
    """Nothing is tried again from each letter: this would take hours if it were."""
    redact(text * (2**20 // len(text)))


@settings(deadline=None)
@given(st.text(), st.text())
def test_anything_may_stand_around_a_secret(before, after):
    """No neighbour on another line hides it, and nothing makes the search fail."""
    assert "swordfish9" not in redact(f"{before}\nMY_SECRET=swordfish9\n{after}")
