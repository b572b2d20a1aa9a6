"""What is fine-tuned on: where it comes from, what a row keeps, and that it is kept whole."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fractal_core import conversations, hub, memos, messages
from fractal_core.conversations import TokenSet, digest_of, pinned, tokenised
from fractal_core.errors import Refused

LIMIT = 400


def talk(number: int) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": f"question {number}"},
        {"role": "assistant", "content": f"answer {number}"},
    ]


def lines(*numbers: int) -> bytes:
    return "".join(json.dumps({"messages": talk(i)}) + "\n" for i in numbers).encode()


def answers(source: str, split: conversations.Split) -> list[str]:
    found = conversations.conversations(source, split)
    return [one["messages"][-1]["content"] for one in found]


def by_bytes(conversation: messages.Conversation, limit: int) -> tuple[list[int], list[int]]:
    """A byte is a token; a zero stands before everything."""
    ids, mask = [0], [0]
    for message in conversation["messages"]:
        text = list(message["content"].encode())
        ids += text
        mask += [int(message["role"] == "assistant")] * len(text)
    return ids[:limit], mask[:limit]


def forbidden(conversation: messages.Conversation, limit: int) -> tuple[list[int], list[int]]:
    pytest.fail("something was tokenised again")


def test_generated_conversations_are_pinned():
    """The same ones everywhere: a changed text changes what every recorded sweep was trained on."""
    assert memos.digest() == "51616819e6a2d29d8bd49234c5fed1403b6ada1e5b6dbbab1ae104c2fa58fe82"
    assert pinned("builtin") == f"builtin@{memos.digest()}"


def test_a_generated_conversation_depends_on_nothing_but_its_number_and_split():
    """Number 7 is the same alone and among the others, and training says nothing of validation."""
    train, validation = (conversations.conversations("builtin", s) for s in memos.SIZES)
    assert (len(train), len(validation)) == (2000, 200)
    assert train[7] == memos.conversation(7, "train")
    assert memos.conversation(7, "train") != memos.conversation(7, "validation")
    texts = [one["messages"][0]["content"] for one in train + validation]
    assert len(set(texts)) == len(texts)


def test_generated_answers_stand_in_their_documents():
    """Nobody has to know or to compute anything: the answer is copied."""
    kinds = set()
    for one in conversations.conversations("builtin", "train"):
        assert messages.checked(one["messages"]) == one
        document, _, question = one["messages"][0]["content"].partition("\n\nQuestion: ")
        assert document.startswith("Document:\n")
        assert question.endswith("?")
        assert one["messages"][1]["content"] in document
        kinds.add(question)
    assert len(kinds) > 50


def test_generated_conversations_suit_a_tiny_model(store_folder):
    """With 768 tokens that were learned from other texts rows fit into 256, and few are learned."""
    from nanochat import corpus
    from nanochat.tokenizer import RustBPETokenizer

    tokenizer = RustBPETokenizer.train_from_iterator(iter(corpus.documents(500)), 768)
    tokens = tokenised("builtin", "train", tokenizer.render_conversation, "tiny", 256)
    assert (tokens.rows, tokens.passed_over) == (2000, 0)
    assert tokens.truncated < 20
    assert 0.02 < tokens.supervised.sum() / len(tokens.ids) < 0.06


def test_rows_give_the_targets_of_nanochat(store_folder):
    """What is learned of a row is what the loader of nanochat has as targets."""
    from nanochat.dataloader import collate
    from nanochat.tokenizer import RustBPETokenizer

    texts = (str(i) for i in range(2000))
    tokenizer = RustBPETokenizer.train_from_iterator(texts, 300)
    tokens = tokenised("builtin", "validation", tokenizer.render_conversation, "tiny", 2048)
    for i in range(5):
        ids, learned = tokens.row(i)
        rendered = tokenizer.render_conversation(memos.conversation(i, "validation"))
        _, targets = collate([rendered], pad=0)
        assert np.where(learned[1:], ids[1:], -1).tolist() == targets[0].tolist()


def test_a_set_knows_its_rows():
    """Rows, what is learned in each and their digest, which every single change moves."""
    ids = np.array([5, 6, 7, 8, 9], np.int32)
    learned = np.array([True, True, False, False, True])
    starts = np.array([0, 2, 5], np.int64)
    tokens = TokenSet(ids, learned, starts)
    assert tokens.rows == 2
    assert [part.tolist() for part in tokens.row(1)] == [[7, 8, 9], [False, False, True]]
    assert tokens.supervised.tolist() == [1, 1]  # nothing predicts the first of a row
    others = [
        TokenSet(ids + np.int32(1), learned, starts),
        TokenSet(ids, ~learned, starts),
        TokenSet(ids, learned, np.array([0, 3, 5])),
    ]
    assert len({tokens.digest, *(other.digest for other in others)}) == 4
    assert TokenSet(ids.copy(), learned.copy(), starts.copy(), 3, 2).digest == tokens.digest
    with pytest.raises(ValueError, match="read-only"):
        tokens.ids[0] = 1


@pytest.mark.parametrize(
    ("limit", "rows", "passed_over", "truncated"),
    [(30, 3, 0, 0), (21, 3, 0, 0), (20, 3, 0, 1), (12, 2, 1, 1), (11, 1, 2, 0)],
)
def test_a_row_keeps_only_what_a_step_can_use(
    store_folder, tmp_path, limit, rows, passed_over, truncated
):
    """What is too long loses its end; with nothing left to learn the conversation is passed over."""
    path, other = tmp_path / "talk.jsonl", tmp_path / "other.jsonl"
    short = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "yes"}]
    texts = [json.dumps(one) for one in (talk(1), talk(22), short)]
    path.write_text("\n".join(texts))
    other.write_bytes(lines(1))
    tokens = tokenised(f"{path},{other}", "train", by_bytes, "bytes", limit)
    assert (tokens.rows, tokens.passed_over, tokens.truncated) == (rows, passed_over, truncated)
    assert all(len(tokens.row(i)[0]) <= limit for i in range(tokens.rows))
    assert tokens.supervised.min() > 0


def test_nothing_to_learn_is_refused(store_folder):
    """A limit below every answer leaves no row, and that is said before anything is trained."""
    with pytest.raises(Refused, match="within 5 tokens"):
        tokenised("builtin", "train", by_bytes, "bytes", 5)
    with pytest.raises(Refused, match="at least 2"):
        tokenised("builtin", "train", by_bytes, "bytes", 1)


def test_what_the_renderer_refuses_is_named(store_folder):
    """The sentence says which conversation it was."""

    def picky(conversation, limit):
        raise ValueError("too odd")

    with pytest.raises(Refused, match="builtin, conversation 0 of train: too odd"):
        tokenised("builtin", "train", picky, "bytes", LIMIT)


def test_tokens_are_made_once(store_folder):
    """The second time nothing is rendered, and the digest is known without reading tokens."""
    assert digest_of("builtin", "validation", "bytes", LIMIT) is None
    made = tokenised("builtin", "validation", by_bytes, "bytes", LIMIT)
    kept = tokenised("builtin", "validation", forbidden, "bytes", LIMIT)
    assert kept.digest == made.digest == digest_of("builtin", "validation", "bytes", LIMIT)
    assert (kept.passed_over, kept.truncated) == (made.passed_over, made.truncated)
    for name in ("ids", "learned", "starts"):
        assert np.array_equal(getattr(kept, name), getattr(made, name))
    assert not kept.ids.flags.writeable


def test_another_recipe_is_another_set(store_folder, tmp_path):
    """Tokenizer, limit, split and content of the files: whatever changes tokens changes the key."""
    path = tmp_path / "talk.jsonl"
    path.write_bytes(lines(*range(30)))
    tokenised(str(path), "train", by_bytes, "bytes", LIMIT)
    assert digest_of(str(path), "train", "bytes", LIMIT) is not None
    assert digest_of(str(path), "train", "others", LIMIT) is None
    assert digest_of(str(path), "train", "bytes", LIMIT - 1) is None
    assert digest_of(str(path), "validation", "bytes", LIMIT) is None
    moved = path.rename(tmp_path / "moved.jsonl")
    assert digest_of(str(moved), "train", "bytes", LIMIT) is not None
    moved.write_bytes(lines(*range(31)))
    assert digest_of(str(moved), "train", "bytes", LIMIT) is None


def test_damaged_tokens_are_made_anew(store_folder):
    """Wherever a bit flips or the file ends, the same tokens come out, and none that are wrong."""
    made = tokenised("builtin", "validation", by_bytes, "bytes", LIMIT)
    (path,) = (store_folder / "tokens").glob("*.npz")
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    places = [
        *range(0, 120, 7),
        *rng.integers(0, len(whole), 20),
        *range(len(whole) - 60, len(whole), 7),
    ]
    for place in places:
        broken = bytearray(whole)
        broken[place] ^= 0x10
        path.write_bytes(broken)
        digest_of("builtin", "validation", "bytes", LIMIT)  # may not know, may not stumble
        kept = conversations._read(conversations.Files(path.parent), path.name)
        assert kept is None or kept.digest == made.digest
    for end in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        assert digest_of("builtin", "validation", "bytes", LIMIT) is None
        assert tokenised("builtin", "validation", by_bytes, "bytes", LIMIT).digest == made.digest
        assert path.read_bytes() == whole


def test_of_several_processes_one_makes_the_tokens(store_folder, tmp_path):
    """Workers that begin together wait for the first, and all have the same."""
    code = (
        "import sys, pathlib; sys.path[:0] = sys.argv[1:2];"
        "import test_conversations as t\n"
        "def told(conversation, limit):\n"
        "    pathlib.Path(sys.argv[2]).open('a').write('x')\n"
        "    return t.by_bytes(conversation, limit)\n"
        "print(t.tokenised('builtin', 'validation', told, 'bytes', 400).digest)"
    )
    trace = tmp_path / "trace"
    arguments = [sys.executable, "-c", code, str(Path(__file__).parent), str(trace)]
    workers = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    digests = {worker.communicate()[0] for worker in workers}
    assert all(worker.returncode == 0 for worker in workers)
    assert len(digests) == 1
    assert len(trace.read_text()) == 200


def test_lines_of_both_forms(tmp_path):
    """A list, or an object with more in it; parts, a system message, blank lines and a mark."""
    parts = [{"type": "python", "text": "1+1"}, {"type": "python_output", "text": "2"}]
    rows = [
        json.dumps(talk(1)),
        "",
        json.dumps({"page": 3, "messages": [{"role": "system", "content": "Be kind."}, *talk(2)]}),
        json.dumps([talk(3)[0], {"role": "assistant", "content": parts}]),
    ]
    path = tmp_path / "talk.jsonl"
    path.write_text("\ufeff" + "\n".join(rows))
    found = messages.read_lines(path)
    assert [len(one["messages"]) for one in found] == [2, 3, 2]
    assert found[2]["messages"][1]["content"] == parts


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ("3", "no list"),
        ('{"text": "a"}', "no member `messages`"),
        ("[]", "no user turn"),
        ('[{"role": "user"}]', "a role and a content"),
        ('[{"role": "user", "content": 3}]', "is no text"),
        ('[{"role": "assistant", "content": "a"}]', "turn 1 is of role 'assistant'"),
        ('[{"role": "user", "content": "a"}]', "no assistant turn"),
        ("[" * 100_000, "recursion"),
        (
            '[{"role": "user", "content": "a"}, {"role": "assistant", "content": [{"text": "b"}]}]',
            "a part of a content",
        ),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(tmp_path, line, reason):
    """File, line and reason, so that it can be mended."""
    path = tmp_path / "talk.jsonl"
    bad = line if isinstance(line, bytes) else line.encode()
    path.write_bytes(lines(1) + b"\n" + bad + b"\n")
    with pytest.raises(Refused) as refusal:
        conversations.conversations(str(path), "train")
    assert str(refusal.value).startswith(f"{path}, line 3: ")
    assert reason in str(refusal.value)


def test_every_twentieth_conversation_is_for_validation(tmp_path):
    """At least one, none is in both, and none is lost."""
    path = tmp_path / "talk.jsonl"
    for count, held in ((2, [1]), (19, [18]), (20, [19]), (45, [19, 39])):
        path.write_bytes(lines(*range(count)))
        assert answers(str(path), "validation") == [f"answer {i}" for i in held]
        kept = [i for i in range(count) if i not in held]
        assert answers(str(path), "train") == [f"answer {i}" for i in kept]
    path.write_bytes(lines(1))
    with pytest.raises(Refused, match="one conversation"):
        conversations.conversations(str(path), "train")


def test_a_second_file_is_for_validation(tmp_path):
    """Then nothing is taken from the first."""
    (tmp_path / "a.jsonl").write_bytes(lines(*range(40)))
    (tmp_path / "b.jsonl").write_bytes(lines(99))
    source = f"{tmp_path / 'a.jsonl'},{tmp_path / 'b.jsonl'}"
    assert len(answers(source, "train")) == 40
    assert answers(source, "validation") == ["answer 99"]


@pytest.mark.parametrize("source", ["nowhere.jsonl", "docvqua", "hf:one", "hf:a/b/c", "", "hf:"])
def test_what_is_no_source_is_refused(source, store_folder):
    """The sentence lists what is one."""
    with pytest.raises(Refused, match="hf:org/name"):
        conversations.conversations(source, "train")


def test_a_set_from_the_hub_is_fetched_once(hub_here, store_folder):
    """Then it is there without a network, for conversations and for tokens."""
    files = {"train.jsonl": lines(1, 2), "validation.jsonl": lines(3), "model.bin": b"big"}
    commit = hub_here.push("org/talk", files)
    assert pinned("hf:org/talk") == f"hf:org/talk@{commit}"
    assert answers("hf:org/talk", "train") == ["answer 1", "answer 2"]
    assert hub_here.fetched == ["train.jsonl", "validation.jsonl"]
    asked = list(hub_here.asked)
    assert answers("hf:org/talk", "validation") == ["answer 3"]
    tokens = tokenised("hf:org/talk", "train", by_bytes, "bytes", LIMIT)
    assert digest_of("hf:org/talk", "train", "bytes", LIMIT) == tokens.digest
    assert hub_here.asked == asked
    for folder in store_folder.glob("hub/*/*/"):  # tokens are enough
        for file in folder.glob("*.jsonl"):
            file.unlink()
    assert tokenised("hf:org/talk", "train", forbidden, "bytes", LIMIT).rows == 2
    assert hub_here.asked == asked


def test_what_is_stored_is_only_read(hub_here, store_folder, monkeypatch):
    """A full storage folder may be read-only: nobody locks or writes in it."""
    hub_here.push("org/talk", {"train.jsonl": lines(1, 2)})
    made = tokenised("hf:org/talk", "train", by_bytes, "bytes", LIMIT)
    monkeypatch.setattr(conversations, "FileLock", lambda path: pytest.fail(f"{path} was locked"))
    monkeypatch.setattr(conversations.Files, "put_latest", lambda *_: pytest.fail("written"))
    assert answers("hf:org/talk", "train") == ["answer 1"]
    assert tokenised("hf:org/talk", "train", forbidden, "bytes", LIMIT).digest == made.digest


def test_a_branch_keeps_the_commit_first_met(hub_here):
    """A sweep's data do not change under it; another revision has to be named."""
    old = hub_here.push("org/talk", {"train.jsonl": lines(1, 2), "test.jsonl": lines(3)})
    assert answers("hf:org/talk", "train") == ["answer 1", "answer 2"]
    new = hub_here.push("org/talk", {"train.jsonl": lines(4), "test.jsonl": lines(5)})
    assert pinned("hf:org/talk") == f"hf:org/talk@{old}"
    assert answers("hf:org/talk", "validation") == ["answer 3"]
    assert answers(f"hf:org/talk@{new}", "train") == ["answer 4"]
    assert pinned(f"hf:org/talk@{new}") == f"hf:org/talk@{new}"


def test_the_published_set_is_the_one_on_the_hub(hub_here):
    """`docvqa` is its short name."""
    commit = hub_here.push("morgan/docvqa-nanochat", {"train.jsonl": lines(1, 2)})
    assert pinned("docvqa") == f"hf:morgan/docvqa-nanochat@{commit}"
    assert answers("docvqa", "validation") == ["answer 2"]


def test_a_busy_hub_is_asked_again(hub_here):
    """A passing fault is no refusal."""
    hub_here.push("org/talk", {"train.jsonl": lines(1, 2)})
    hub_here.troubles = 1
    assert answers("hf:org/talk", "train") == ["answer 1"]


def test_an_interrupted_fetch_goes_on(hub_here):
    """What came is kept; what did not, or was damaged since, is fetched and nothing else."""
    files = {"train.jsonl": lines(1, 2), "validation.jsonl": lines(3)}
    hub_here.push("org/talk", files)
    hub_here.broken = {"validation.jsonl"}
    with pytest.raises(Refused, match="what was fetched is kept"):
        conversations.conversations("hf:org/talk", "train")
    hub_here.broken = set()
    hub_here.fetched.clear()
    source = conversations.OnHub("org/talk", "main")
    assert source.fetch() == ["validation.jsonl"]
    (source.folder() / "train.jsonl").write_bytes(b"{")
    assert source.fetch() == ["train.jsonl"]
    assert source.fetch() == []
    assert hub_here.fetched == ["validation.jsonl", "train.jsonl"]
    assert answers("hf:org/talk", "train") == ["answer 1", "answer 2"]


@pytest.mark.parametrize(
    ("source", "reason"),
    [("hf:org/none", "is not on the Hub"), ("hf:org/talk@nope", "no such revision")],
)
def test_what_the_hub_does_not_have_is_refused(hub_here, source, reason):
    """Without a second try, and the name is in the sentence."""
    hub_here.push("org/talk", {"train.jsonl": lines(1, 2)})
    with pytest.raises(Refused, match=reason) as refusal:
        conversations.conversations(source, "train")
    assert source.removeprefix("hf:") in str(refusal.value)
    assert len(hub_here.asked) == 1


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"train.jsonl": b'{"text": "a"}\n'}, "no column 'messages' in .* but text"),
        ({"train.jsonl": b'{"messages": "a"}\n'}, "row 0 of train: the messages are no list"),
        ({"train.jsonl": b"junk\n"}, "does not read as a data set"),
        ({"test.jsonl": lines(1)}, "no split train but test"),
        ({"model.bin": b"1"}, "does not read as a data set"),
        ({"../train.jsonl": lines(1)}, "leaves its folder"),
    ],
)
def test_a_set_without_conversations_is_refused(hub_here, files, reason):
    """One sentence says what is wrong with it."""
    hub_here.push("org/talk", files)
    with pytest.raises(Refused, match=reason):
        conversations.conversations("hf:org/talk", "train")


def test_rows_of_a_set_without_an_answer_are_passed_over(hub_here):
    """In somebody else's set they are counted, not complained of."""
    row = json.dumps({"messages": talk(5)[:1]}).encode() + b"\n"
    hub_here.push("org/talk", {"train.jsonl": lines(1) + row, "validation.jsonl": lines(3)})
    tokens = tokenised("hf:org/talk", "train", by_bytes, "bytes", LIMIT)
    assert (tokens.rows, tokens.passed_over) == (1, 1)


def test_without_a_network_what_is_not_stored_is_refused(hub_here, monkeypatch):
    """With HF_HUB_OFFLINE nobody is asked at all."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(Refused, match="HF_HUB_OFFLINE is set"):
        pinned("hf:org/talk")
    assert digest_of("hf:org/talk", "train", "bytes", LIMIT) is None
    assert hub_here.asked == []
    hub_here.push("org/talk", {"train.jsonl": lines(1, 2)}, commit="1" * 40)
    with pytest.raises(Refused, match="HF_HUB_OFFLINE is set"):
        conversations.conversations(f"hf:org/talk@{'1' * 40}", "train")
    assert hub_here.asked == []


def test_a_hub_that_is_down_is_refused(store_folder, monkeypatch):
    """A closed port is a sentence too."""
    import time

    import huggingface_hub

    nobody = huggingface_hub.HfApi(endpoint="http://127.0.0.1:9", token=False)
    monkeypatch.setattr(hub, "client", lambda: nobody)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(Refused, match="the Hub does not give it"):
        pinned("hf:org/talk")


def test_without_the_package_the_remedy_is_named(hub_here, monkeypatch):
    """Who needs no set from the Hub does not install it."""
    hub_here.push("org/talk", {"train.jsonl": lines(1, 2)})
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(Refused, match="uv sync --extra data"):
        conversations.conversations("hf:org/talk", "train")


def test_everything_big_lies_in_one_folder(monkeypatch, tmp_path):
    """One setting moves it all."""
    monkeypatch.setenv("FRACTAL_STORAGE", str(tmp_path / "big"))
    assert conversations.storage() == tmp_path / "big"
    monkeypatch.delenv("FRACTAL_STORAGE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if sys.platform == "linux":
        assert conversations.storage() == tmp_path / "fractal-llm"


def test_importing_it_loads_no_torch():
    """What is fine-tuned on can be looked at without waiting for it."""
    code = "import fractal_core.conversations, sys; print({'torch', 'datasets'} & set(sys.modules))"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "set()"
