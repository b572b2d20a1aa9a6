"""The tokenizer against the reference's numbers, and against files that mean harm."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import tiktoken
import torch
from nanochat.common import Refused
from nanochat.tokenizer import SPECIAL_TOKENS, RustBPETokenizer, get_token_bytes, get_tokenizer

DATA = Path(__file__).parent / "data"
GOLDEN = json.loads((DATA / "nanochat_tokenizer.json").read_text())


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> RustBPETokenizer:
    """As read from the file that the reference wrote."""
    folder = tmp_path_factory.mktemp("tokenizer")
    shutil.copy(DATA / "nanochat_tokenizer.pkl", folder / "tokenizer.pkl")
    return RustBPETokenizer.from_directory(folder)


def ranks(tokenizer: RustBPETokenizer) -> list[str]:
    return [tokenizer.enc.decode_single_token_bytes(i).hex() for i in range(691)]


def test_training_gives_the_reference_tokenizer(capfd):
    """The same documents give the same merges in the same order, and nothing is printed."""
    trained = RustBPETokenizer.train_from_iterator(
        iter(GOLDEN["training_documents"]), GOLDEN["vocab_size"]
    )
    assert ranks(trained) == GOLDEN["mergeable_ranks_hex"]
    assert {name: trained.encode_special(name) for name in SPECIAL_TOKENS} == GOLDEN["special"]
    assert capfd.readouterr() == ("", "")


def test_the_reference_pickle_is_read(tokenizer):
    """What the reference wrote is read without running anything in it."""
    assert ranks(tokenizer) == GOLDEN["mergeable_ranks_hex"]
    assert tokenizer.get_special_tokens() == set(GOLDEN["special"])
    assert tokenizer.get_vocab_size() == GOLDEN["vocab_size"]


@pytest.mark.parametrize("golden", GOLDEN["texts"], ids=lambda golden: repr(golden["text"])[:20])
def test_texts_encode_as_the_reference_does(tokenizer, golden):
    """One by one, several at once and behind a special token; and decoding gives the text back."""
    assert tokenizer.encode(golden["text"]) == golden["ids"]
    assert tokenizer.encode([golden["text"]], prepend="<|bos|>") == [golden["with_bos"]]
    assert tokenizer(golden["text"], prepend=tokenizer.get_bos_token_id()) == golden["with_bos"]
    assert tokenizer.decode(golden["ids"]) == golden["text"]


@pytest.mark.parametrize("golden", GOLDEN["conversations"], ids=range(4))
def test_conversations_render_as_the_reference_does(tokenizer, golden):
    """Ids, masks and prompts for completion; the conversation itself is not changed."""
    before = json.dumps(golden["conversation"])
    ids, mask = tokenizer.render_conversation(golden["conversation"])
    assert (ids, mask) == (golden["ids"], golden["mask"])
    assert tokenizer.render_for_completion(golden["conversation"]) == golden["completion_ids"]
    assert json.dumps(golden["conversation"]) == before


def test_a_long_conversation_loses_its_end(tokenizer):
    """It is cut after so many tokens, mask and all; a prompt may be one longer."""
    turns = [{"role": "user", "content": "why? " * 3000}, {"role": "assistant", "content": "Well."}]
    ids, mask = tokenizer.render_conversation({"messages": turns})
    assert len(ids) == len(mask) == 2048
    assert len(tokenizer.render_for_completion({"messages": turns})) == 2049
    assert len(tokenizer.render_conversation({"messages": turns}, max_tokens=7)[0]) == 7


def test_text_never_becomes_a_special_token(tokenizer):
    """A user who writes the name of a special token has written ordinary characters."""
    for name in SPECIAL_TOKENS:
        ids = tokenizer.encode(name)
        assert max(ids) < min(GOLDEN["special"].values())
        assert tokenizer.decode(ids) == name


def test_bytes_per_token_are_the_reference_table(tokenizer):
    """Special tokens count nothing; half a character counts as the sign it reads as."""
    sizes = tokenizer.token_bytes()
    assert sizes.dtype == torch.int32
    assert sizes[tokenizer.encode_special("<|bos|>")] == 0
    assert sizes[ord("a")] == 1
    assert sizes[128] == 3


def test_a_tokenizer_is_written_in_both_forms(tokenizer, tmp_path, monkeypatch):
    """Ours and upstream's read back the same, and upstream's is the reference's to the byte."""
    tokenizer.save(tmp_path / "tokenizer")
    torch.save(tokenizer.token_bytes(), tmp_path / "tokenizer" / "token_bytes.pt")
    written = (tmp_path / "tokenizer" / "tokenizer.pkl").read_bytes()
    assert written == (DATA / "nanochat_tokenizer.pkl").read_bytes()
    assert isinstance(pickle.loads(written), tiktoken.Encoding)
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    assert ranks(get_tokenizer()) == ranks(tokenizer)
    torch.testing.assert_close(get_token_bytes(), tokenizer.token_bytes())
    (tmp_path / "tokenizer" / "tokenizer.pkl").unlink()
    assert ranks(get_tokenizer()) == ranks(tokenizer)


def test_two_different_tokenizers_in_one_folder_are_refused(tokenizer, tmp_path):
    """Which of them a checkpoint was trained with cannot be known."""
    RustBPETokenizer.train_from_iterator(["no merges"], 265).save(tmp_path)
    shutil.copy(DATA / "nanochat_tokenizer.pkl", tmp_path / "tokenizer.pkl")
    with pytest.raises(Refused, match="different tokenizers; remove one"):
        RustBPETokenizer.from_directory(tmp_path)


class Harm:
    """What makes a pickle run a command."""

    def __reduce__(self):
        return os.mkdir, ("harmed",)


def hostile_pickles() -> dict[str, bytes]:
    good = (DATA / "nanochat_tokenizer.pkl").read_bytes()
    return {
        "a call": pickle.dumps(Harm(), protocol=4),
        "another class": good.replace(b"\x8c\x08Encoding", b"\x8c\x08Encodinh"),
        "another module": good.replace(b"tiktoken.core", b"tiktoken.load"),
        "no encoding": pickle.dumps({"a": 1}, protocol=4),
        "half of it": good[: len(good) // 2],
        "no pickle": b"tokenizer",
        "an id twice": good.replace(b"K\x07", b"K\x06", 1),
    }


@pytest.mark.parametrize("data", hostile_pickles().values(), ids=hostile_pickles().keys())
def test_a_hostile_pickle_is_refused_in_a_sentence(tmp_path, monkeypatch, data):
    """Nothing of it runs, and the file is named."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tokenizer.pkl").write_bytes(data)
    with pytest.raises(Refused, match=r"tokenizer.pkl .* was not loaded") as refused:
        RustBPETokenizer.from_directory(tmp_path)
    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.pkl"]


USER, SAYS = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([], "no messages"),
        ([USER], "no assistant turn"),
        ([{"role": "system", "content": "Be brief."}, USER], "no assistant turn"),
        ([SAYS, USER], "turn 0 of the conversation is 'assistant' where 'user' is due"),
        ([USER, USER], "turn 1 .* where 'assistant' is due"),
        ([{"role": "system", "content": "x"}, SAYS], "must be followed by a user message"),
        ([USER, {"role": "assistant"}], "message 1 .* lacks a role or a content"),
        ([USER, {"role": "assistant", "content": [{"type": "image"}]}], "list of parts"),
        ([{"role": "user", "content": ["Hi"]}, SAYS], "must be text"),
    ],
)
def test_a_malformed_conversation_is_refused(tokenizer, messages, sentence):
    """The sentence says which turn is wrong and how."""
    with pytest.raises(Refused, match=sentence):
        tokenizer.render_conversation({"messages": messages})


def test_a_prompt_needs_a_turn_to_complete(tokenizer):
    """The last turn is the one that is asked for."""
    with pytest.raises(Refused, match="must be the assistant's"):
        tokenizer.render_for_completion({"messages": [USER]})


@pytest.mark.parametrize("id", [-1, 700])
def test_an_id_outside_the_vocabulary_is_refused(tokenizer, id):
    """It is named, with the size of the vocabulary."""
    with pytest.raises(Refused, match=f"token id {id} is outside the vocabulary of 700"):
        tokenizer.decode([65, id])


def test_what_is_not_there_is_refused(tokenizer, tmp_path):
    """No folder, no such special token, no room for the bytes, a file that is something else."""
    with pytest.raises(Refused, match="train one with"):
        RustBPETokenizer.from_directory(tmp_path)
    with pytest.raises(Refused, match="no special token"):
        tokenizer.encode_special("<|pad|>")
    with pytest.raises(Refused, match="ask for 265 or more"):
        RustBPETokenizer.train_from_iterator(["text"], 264)
    (tmp_path / "tokenizer.json").write_text('{"format": "x"}')
    with pytest.raises(Refused, match=r"tokenizer.json is a tokenizer of another kind"):
        RustBPETokenizer.from_directory(tmp_path)
