"""Exported checkpoints, read by the port in transformers."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from nanochat import hub
from nanochat.checkpoint_manager import load_gpt
from nanochat.common import Refused
from nanochat.gpt import GPT, GPTConfig
from nanochat_golden import DATA, alive, relative, worst

GOLDEN = DATA / "nanochat_checkpoint"


def letters(vocab: int = 266) -> SimpleNamespace:
    """A tokenizer of bytes, one merge and nine special tokens."""
    names = ["<|bos|>", "<|assistant_end|>", *(f"<|{i}|>" for i in range(7))]
    ranks = {bytes([i]): i for i in range(256)} | {b"ab": 256}
    special = {name: 257 + i for i, name in enumerate(names)}
    return SimpleNamespace(
        get_vocab_size=lambda: vocab,
        encode_special=special.__getitem__,
        enc=SimpleNamespace(_mergeable_ranks=ranks, _special_tokens=special, _pat_str=r"\w+|\W+"),
    )


def model(**changes) -> GPT:
    shape = {"sequence_len": 32, "vocab_size": 266, "n_layer": 2, "n_head": 4, "n_kv_head": 2}
    return alive(GPT(GPTConfig(**shape | {"n_embd": 32} | changes)))


@pytest.fixture(scope="module")
def port():
    """The class of transformers that reads the exported folder."""
    return pytest.importorskip("transformers").NanoChatForCausalLM


@pytest.mark.parametrize("tied", [False, True])
def test_the_port_gives_our_logits(tmp_path, port, tied):
    """But for the rounding of the rotary tables, which the port does not do."""
    ours = model(tie_embeddings=tied)
    folder = hub.export(ours, letters(), tmp_path / "out", dtype=torch.float32)
    theirs = port.from_pretrained(folder)
    idx = torch.arange(20).view(2, 10) * 13
    with torch.no_grad():
        logits = theirs(idx).logits
        assert logits.shape == (2, 10, 266)
        assert relative(ours(idx), logits) < 2e-2
        half = torch.arange(4) * 2 / 8
        angle = torch.outer(torch.arange(320), 1 / 10_000**half)[None, :, None]
        ours.cos, ours.sin = angle.cos(), angle.sin()
        assert worst(ours(idx), logits) < 1e-4


def test_weights_are_bfloat16_unless_asked_otherwise(tmp_path, port):
    """Half the size, and what the reference computes with."""
    folder = hub.export(model(), letters(), tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["NanoChatForCausalLM"]
    assert config["dtype"] == "bfloat16"
    assert config["intermediate_size"] == 4 * config["hidden_size"]
    found = port.from_pretrained(folder, dtype="auto")
    assert {p.dtype for p in found.parameters()} == {torch.bfloat16}


def test_exported_tokenizer_gives_the_same_ids(tmp_path):
    """Texts and conversations, through transformers and through our own."""
    pytest.importorskip("nanochat.tokenizer")
    transformers = pytest.importorskip("transformers")
    from nanochat.tokenizer import RustBPETokenizer

    ours = RustBPETokenizer.from_directory(GOLDEN)
    folder = hub.export(load_gpt(GOLDEN, 10)[0], ours, tmp_path / "out")
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    for text in (
        "Hello, world!\n\n  It's 12345 o'clock.",
        "naïve – 日本語 🙂\t\r\n x  ",
        "a  b   ",
    ):
        assert theirs.encode(text, add_special_tokens=False) == ours.encode(text)
        assert theirs.decode(ours.encode(text)) == text
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Yes."},
    ]
    ids, _ = ours.render_conversation({"messages": messages})
    assert theirs.apply_chat_template(messages, return_dict=False) == ids


def test_merges_are_recovered_from_the_ranks():
    """A token comes from the two parts that earlier merges leave of it."""
    ranks = {b"a": 0, b"b": 1, b"c": 2, b"bc": 3, b"abc": 4, b"abcabc": 5}
    assert hub.parts_of(b"abc", ranks) == (b"a", b"bc")
    assert hub.parts_of(b"abcabc", ranks) == (b"abc", b"abc")
    with pytest.raises(Refused, match="do not build"):
        hub.parts_of(b"abc", ranks | {b"bc": 9})


def test_letters_of_bytes_are_distinct_and_printable():
    """One for each byte; a space is the letter that vocabularies show as Ġ."""
    found = hub.byte_letters()
    assert len(set(found)) == 256
    assert all(letter.isprintable() and letter != " " for letter in found)
    assert (found[ord("a")], found[ord(" ")], found[ord("\n")]) == ("a", "Ġ", "Ċ")


def test_nothing_is_overwritten_and_no_stranger_exported(tmp_path):
    """An existing folder stays as it is; a foreign tokenizer would make gibberish."""
    with pytest.raises(Refused, match="exists already"):
        hub.export(model(), letters(), tmp_path)
    with pytest.raises(Refused, match="267 tokens and the model 266"):
        hub.export(model(), letters(267), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_upload_makes_a_private_repository_and_says_where(tmp_path):
    """And passes on in one sentence what the Hub complains of."""
    calls: list = []
    api = SimpleNamespace(
        create_repo=lambda repo, **options: calls.append((repo, options)),
        upload_folder=lambda **options: calls.append(options),
    )
    assert hub.upload(Path("out"), "me/mine", api) == "https://huggingface.co/me/mine"
    assert calls == [
        ("me/mine", {"private": True, "exist_ok": True}),
        {"repo_id": "me/mine", "folder_path": "out"},
    ]

    def refuse(repo, **options):
        raise ValueError("no token\nat all")

    with pytest.raises(Refused, match=r"me/mine cannot be written \(no token\)"):
        hub.upload(Path("out"), "me/mine", SimpleNamespace(create_repo=refuse))
