"""Texts, shards, loaders and tasks: what is read, in which order, and from where again."""

import http.server
import io
import itertools
import json
import random
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from nanochat import corpus, dataset
from nanochat.cli import config_from
from nanochat.common import Refused
from nanochat.dataloader import (
    collate,
    sft_data_loader,
    tokenizing_distributed_data_loader,
    tokenizing_distributed_data_loader_with_state,
)
from nanochat.tokenizer import RustBPETokenizer
from tasks.arc import ARC
from tasks.builtin import Kinds, Sums, Talk
from tasks.common import TaskMixture, TaskSequence, render_mc
from tasks.customjson import CustomJSON
from tasks.gsm8k import GSM8K, extract_answer
from tasks.smoltalk import SmolTalk
from tasks.spellingbee import TEMPLATES, SimpleSpelling, SpellingBee


@pytest.fixture(autouse=True)
def base(tmp_path, monkeypatch):
    """A base folder of its own, and a single process."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def tokenizer() -> RustBPETokenizer:
    return RustBPETokenizer.train_from_iterator(corpus.documents(100), 400)


def as_rank(monkeypatch, rank: int, world: int) -> None:
    for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", world)):
        monkeypatch.setenv(name, str(value))


# The built-in corpus


def test_the_corpus_is_the_same_everywhere():
    """A text depends on its number and the seed alone; the digest pins the wording."""
    texts = corpus.documents(50)
    assert texts[17] == corpus.document(17) != corpus.document(17, seed=1)
    assert corpus.digest(texts) == DIGEST
    assert corpus.digest(["ab"]) != corpus.digest(["a", "b"])


DIGEST = "84ad65b8c8bb51ec736a43a51eb422f4c9423b9c10533731f634f8fa95c471a7"


# Shards


def test_the_last_shard_is_for_validation(base):
    """Splits follow the order of names; one shard alone cannot be split."""
    texts = [f"text {i}" for i in range(10)]
    with pytest.raises(Refused, match=r"holds 0 shard.*--num-files=2"):
        dataset.split_files("train")
    dataset.write_shards(texts, 3, base / "base_data", row_group=2)
    (base / "base_data" / "shard_00009.parquet.part").write_bytes(b"half")
    assert list(itertools.chain(*dataset.parquets_iter_batched("train"))) == texts[:6]
    assert list(dataset.parquets_iter_batched("val")) == [texts[6:8], texts[8:]]
    assert list(dataset.parquets_iter_batched("val", start=1, step=2)) == [texts[8:]]
    with pytest.raises(Refused, match="unknown split"):
        dataset.split_files("test")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "is damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"?"), "is damaged"),
        (lambda path: path.write_bytes(b""), "is damaged"),
        (lambda path: pq.write_table(pa.table({"words": ["a"]}), path), "no column `text`"),
    ],
)
def test_a_damaged_shard_is_named_before_anything_is_read(base, tokenizer, spoil, sentence):
    """With what to do about it, by every reader of its split; the other split can be read."""
    tokenizer.save(base / "tokenizer")
    paths = dataset.write_shards([f"text {i}" for i in range(9)], 3, base / "base_data", 2)
    spoil(paths[1])
    loader = tokenizing_distributed_data_loader(1, 4, "train", device="cpu")
    for read in (lambda: list(dataset.parquets_iter_batched("train")), lambda: next(loader)):
        with pytest.raises(Refused, match=f"{paths[1]} .*{sentence}.* remove it") as caught:
            read()
        assert "\n" not in str(caught.value)
    assert list(dataset.parquets_iter_batched("val")) == [["text 6", "text 7"], ["text 8"]]


def test_damage_inside_a_shard_is_named_where_it_is_met(base):
    """The footer is whole, so it is found by reading."""
    path = dataset.write_shards([f"text {i}" * 99 for i in range(90)], 3, base / "base_data", 30)[0]
    data = path.read_bytes()
    path.write_bytes(data[:4] + bytes(200) + data[204:])
    with pytest.raises(Refused, match=f"{path} is damaged"):
        list(dataset.parquets_iter_batched("train"))


def test_the_built_in_corpus_becomes_shards(base, capsys):
    """One command writes it; shards that are there are not touched."""
    dataset.main(config_from(dataset.Config, ["--builtin=40"]))
    assert corpus.digest(corpus.documents(40))[:16] in capsys.readouterr().out
    read = [*dataset.parquets_iter_batched("train"), *dataset.parquets_iter_batched("val")]
    assert list(itertools.chain(*read)) == corpus.documents(40)
    before = {path: path.stat().st_mtime_ns for path in (base / "base_data").iterdir()}
    assert dataset.main(dataset.Config(builtin=40)) == {"shards": 4, "documents": 40}
    assert "are there already" in capsys.readouterr().out
    with pytest.raises(Refused, match="already holds other shards"):
        dataset.main(dataset.Config(builtin=8))
    assert before == {path: path.stat().st_mtime_ns for path in (base / "base_data").iterdir()}


class Shelf(http.server.BaseHTTPRequestHandler):
    """A server of files that breaks connections, refuses, and remembers what it was asked."""

    files: dict[str, bytes]
    troubles: list[str]
    asked: list[str | None]

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.asked.append(wanted)
        data = self.files.get(self.path.strip("/"))
        trouble = self.troubles.pop(0) if self.troubles else ""
        if data is None or trouble == "503":
            self.send_error(404 if data is None else 503)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if trouble == "no ranges":
            start, wanted = 0, None
        if wanted and start >= len(data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(data)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        part = data[start:]
        self.wfile.write(part[: len(part) // 2] if trouble == "broken" else part)

    def log_message(self, *args):
        pass


@pytest.fixture
def shelf():
    """A server on this machine and its address."""
    handler = type("ThisShelf", (Shelf,), {"files": {}, "troubles": [], "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield SimpleNamespace(handler=handler, url=f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    thread.join()
    server.server_close()


def parquet(texts: list[str]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), buffer)
    return buffer.getvalue()


def fetch(shelf, base, *troubles: str) -> list[float]:
    waits: list[float] = []
    shelf.handler.files["x"] = bytes(range(256)) * 20
    shelf.handler.troubles[:] = troubles
    dataset.fetch(f"{shelf.url}/x", base / "x", pause=waits.append)
    assert (base / "x").read_bytes() == shelf.handler.files["x"]
    assert [path.name for path in base.iterdir()] == ["x"]
    return waits


def test_a_broken_download_goes_on_where_it_ended(shelf, base):
    """What arrived is not asked for again, and waits double."""
    assert fetch(shelf, base, "broken", "503", "broken") == [2.0, 4.0, 8.0]
    assert shelf.handler.asked == [None, "bytes=2560-", "bytes=2560-", "bytes=3840-"]


def test_a_later_process_goes_on_too(shelf, base):
    """What an earlier one left is used, also when it was already whole."""
    for left in (1000, 5120):
        (base / "x.part").write_bytes((bytes(range(256)) * 20)[:left])
        assert fetch(shelf, base) == []
        assert shelf.handler.asked[-1] == f"bytes={left}-"


def test_leftovers_of_another_file_are_not_kept(shelf, base):
    """Neither where they are longer, nor where the server sends the file from its start."""
    (base / "x.part").write_bytes(b"?" * 9999)
    assert fetch(shelf, base) == [2.0]
    (base / "x.part").write_bytes(b"?" * 99)
    assert fetch(shelf, base, "no ranges") == []


def test_a_download_gives_up_in_a_sentence(shelf, base):
    """After five attempts, or at once if the file does not exist."""
    with pytest.raises(Refused, match=r"in 5 attempts .*try again later"):
        fetch(shelf, base, *["503"] * 5)
    waits: list[float] = []
    with pytest.raises(Refused, match=r"cannot be had .404"):
        dataset.fetch(f"{shelf.url}/y", base / "y", pause=waits.append)
    assert waits == []
    assert not (base / "y").exists()


def test_shards_are_fetched_once_and_checked(shelf, base, capsys):
    """A shard on the disk is left alone; what is no parquet file does not become one."""
    shelf.handler.files["shard_00000.parquet"] = parquet(["a", "b"])
    shelf.handler.files["shard_00001.parquet"] = b"<html>busy</html>"
    get = dataset.download_single_file
    assert get(0, base_url=shelf.url)
    assert get(0, base_url="http://127.0.0.1:9")
    assert not get(1, base_url=shelf.url)
    assert "shard_00001.parquet" in capsys.readouterr().err
    assert [path.name for path in (base / "base_data").iterdir()] == ["shard_00000.parquet"]


def test_the_command_fetches_the_first_shards(shelf, base, monkeypatch):
    """As many as asked for, and a sentence if one is missing."""
    monkeypatch.setattr(dataset, "download_single_file", lambda index, url=shelf.url: index != 2)
    assert dataset.main(config_from(dataset.Config, ["-n", "2", "-w", "1"])) == {"shards": 2}
    with pytest.raises(Refused, match="1 of 4 shards did not arrive"):
        dataset.main(dataset.Config(num_files=4))
    with pytest.raises(Refused, match="at least one"):
        dataset.main(dataset.Config(num_files=0))
    with pytest.raises(Refused, match="at least 8 documents"):
        dataset.main(dataset.Config(builtin=7))


# The pretraining loader


@pytest.fixture
def shards(base, tokenizer) -> list[str]:
    """Three shards of fourteen texts, in row groups of four, and a tokenizer."""
    texts = [f"Text {i}. {corpus.document(i)[: 40 + 7 * i]}" for i in range(42)]
    dataset.write_shards(texts, 3, base / "base_data", row_group=4)
    tokenizer.save(base / "tokenizer")
    return texts


def stream(tokenizer, texts: list[str]) -> list[int]:
    return list(itertools.chain(*tokenizer.encode(texts, prepend="<|bos|>")))


def load(count: int, split: str = "train", state=None, B: int = 2, T: int = 15) -> list:
    loader = tokenizing_distributed_data_loader_with_state(
        B, T, split, tokenizer_batch_size=3, device="cpu", resume_state_dict=state
    )
    return list(itertools.islice(loader, count))


def same(batches: list, expected: list) -> bool:
    return all(
        torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and a[2] == b[2]
        for a, b in zip(batches, expected, strict=True)
    )


def test_batches_are_the_texts_end_to_end(shards, tokenizer):
    """Every batch takes B T + 1 tokens of the stream, whose epochs follow each other."""
    tokens = stream(tokenizer, shards[:28]) * 3
    count = 2 * len(tokens) // 3 // 31
    for i, (inputs, targets, _) in enumerate(load(count)):
        window = tokens[31 * i : 31 * i + 31]
        assert inputs.tolist() == [window[:15], window[15:30]]
        assert targets.tolist() == [window[1:16], window[16:]]
    loader = tokenizing_distributed_data_loader(2, 15, "val", device="cpu")
    assert next(loader)[0].flatten().tolist() == stream(tokenizer, shards[28:])[:30]


@pytest.mark.parametrize(("rank", "world"), [(0, 1), (0, 2), (1, 2)])
def test_processes_share_the_row_groups(shards, tokenizer, monkeypatch, rank, world):
    """Each reads every second one of every shard."""
    as_rank(monkeypatch, rank, world)
    groups = [shards[s + g : min(s + g + 4, s + 14)] for s in (0, 14) for g in (0, 4, 8, 12)]
    mine = [text for i, group in enumerate(groups) if i % 4 % world == rank for text in group]
    tokens = stream(tokenizer, mine) * 2
    got = torch.cat([inputs.flatten() for inputs, _, _ in load(20)]).tolist()
    assert got == list(itertools.chain(*(tokens[31 * i : 31 * i + 30] for i in range(20))))


@pytest.mark.parametrize(("rank", "world"), [(0, 1), (1, 2)])
def test_a_loader_goes_on_token_for_token(shards, monkeypatch, rank, world):
    """From any state, through JSON, the batches after it come, into the next epoch."""
    as_rank(monkeypatch, rank, world)
    straight = load(60)
    assert straight[-1][2]["next"]["epoch"] > 0
    for stop in range(0, 55, 3):
        state = json.loads(json.dumps(straight[stop][2]))
        assert same(load(4, state=state), straight[stop + 1 : stop + 5])


def test_a_state_of_the_reference_is_understood(shards, tokenizer, monkeypatch):
    """The rest of its row group is skipped; past the last group the next shard begins."""
    state = {"pq_idx": 0, "rg_idx": 1}
    assert load(1, state=state)[0][0].flatten().tolist() == stream(tokenizer, shards[8:14])[:30]
    state = {"pq_idx": 0, "rg_idx": 3}
    assert load(1, state=state)[0][0].flatten().tolist() == stream(tokenizer, shards[14:])[:30]
    as_rank(monkeypatch, 1, 2)
    state = {"pq_idx": 0, "rg_idx": 0, "next": load(1)[0][2]["next"] | {"rank": 0}}
    assert (
        load(1, state=state)[0][0].flatten().tolist()[:20] == stream(tokenizer, shards[12:14])[:20]
    )


def test_a_state_of_other_shards_is_refused(shards, monkeypatch):
    """And so is a process for which nothing is left to read."""
    with pytest.raises(Refused, match="in shard 5 and there are 2"):
        load(1, state={"pq_idx": 5, "rg_idx": 0})
    as_rank(monkeypatch, 7, 8)
    with pytest.raises(Refused, match="no shard has a row group for process 7 of 8"):
        load(1)


# Conversations


class Rows(list):
    """Conversations whose answers have these lengths."""

    def __init__(self, *lengths: int):
        super().__init__(conversation("?", "x" * length) for length in lengths)


def conversation(question: str, answer: str) -> dict:
    turns = (("user", question), ("assistant", answer))
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def test_a_batch_is_as_wide_as_its_longest_row():
    """Targets are the next ids where they are learned; padding is neither."""
    rows = [([9, 1, 2, 3], [0, 0, 1, 1]), ([9, 4], [0, 1])]
    inputs, targets = collate(rows, pad=7)
    assert inputs.tolist() == [[9, 1, 2], [9, 7, 7]]
    assert targets.tolist() == [[-1, 2, 3], [4, -1, -1]]
    assert inputs.dtype == targets.dtype == torch.long


def test_conversations_come_in_order_and_again(tokenizer, monkeypatch):
    """Rows wrap around the end; each process has its own; a state goes on after its batch."""
    rows = Rows(*range(1, 8))
    batches = list(itertools.islice(sft_data_loader(rows, tokenizer, 2), 9))
    order = [(targets != -1).sum(1).tolist() for _, targets, _ in batches]
    lengths = [sum(tokenizer.render_conversation(row)[1]) for row in rows]
    assert list(itertools.chain(*order)) == (lengths * 3)[:18]
    for stop in range(8):
        resumed = sft_data_loader(rows, tokenizer, 2, resume_state_dict=batches[stop][2])
        assert same([next(resumed)], [batches[stop + 1]])
    as_rank(monkeypatch, 1, 2)
    _, targets, _ = next(sft_data_loader(rows, tokenizer, 3))
    assert (targets != -1).sum(1).tolist() == lengths[1::2]


def test_rows_with_nothing_to_learn_are_passed_over(tokenizer):
    """A question that fills the context leaves no answer; if all do, a sentence says so."""
    long = conversation("why? " * 300, "Because.")
    _, targets, state = next(sft_data_loader([long, *Rows(3)], tokenizer, 1, max_tokens=64))
    assert (targets != -1).any()
    assert state == {"row": 2}
    with pytest.raises(Refused, match="anything to learn within 64 tokens"):
        next(sft_data_loader([long, long], tokenizer, 1, max_tokens=64))
    user = {"messages": [{"role": "user", "content": "Hello?"}]}
    with pytest.raises(Refused, match=r"conversation 1: .* no assistant turn"):
        next(sft_data_loader([*Rows(1), user], tokenizer, 2))


# Tasks


def test_mixtures_are_shuffled_once_by_their_seed():
    """The order is Random(42)'s; a sequence keeps it; a view takes every so many."""
    one, two = Sums("test"), Kinds("test", stop=5)
    pairs = [(one, i) for i in range(20)] + [(two, i) for i in range(5)]
    random.Random(42).shuffle(pairs)
    assert list(TaskMixture([one, two])) == [task[i] for task, i in pairs]
    assert list(TaskSequence([one, two])) == [*one, *two]
    assert list(TaskMixture([one, two], start=3, stop=20, step=4)) == [
        task[i] for task, i in pairs[3:20:4]
    ]
    assert len(TaskMixture([one, one])) == 40
    with pytest.raises(IndexError):
        one[20]
    with pytest.raises(Refused, match="0 <= start <= stop"):
        Sums("test", step=0)


@pytest.mark.parametrize("task", [Kinds, Sums])
def test_built_in_tests_are_held_out(task):
    """No test question is asked in training; its own answer is right, and another is not."""

    def questions(split: str) -> set[str]:
        return {row["messages"][0]["content"] for row in task(split)}

    assert len(questions("test")) == len(task("test")) >= 20
    assert not questions("test") & questions("train")
    problem = task("test")[0]
    assert task("test").evaluate(problem, problem["messages"][1]["content"]) == 1
    assert task("test").evaluate(problem, task("test")[7]["messages"][1]["content"]) == 0


def test_generated_conversations_render(tokenizer):
    """Whatever is generated is a conversation, and a function of its row."""
    words = corpus.WORDS
    tasks = [
        Kinds(),
        Sums(),
        Talk(30),
        SpellingBee(30, words=words),
        SimpleSpelling(30, words=words),
    ]
    for row in TaskSequence(tasks):
        tokenizer.render_conversation(row)
    assert list(Talk(5)) == list(Talk(9))[:5] != list(Talk(5, "test"))


def test_spelling_follows_the_order_of_draws():
    """Word, letter, template, case and quotes are drawn by Random(row) in this order."""
    words = ["robin", "magpie", "van"]
    assert len(set(TEMPLATES)) == 51
    for split, offset in (("train", 0), ("test", 10_000_000)):
        for index, row in enumerate(SpellingBee(40, split, words)):
            rng = random.Random(offset + index)
            word = rng.choice(words)
            letter = (
                rng.choice(word) if rng.random() < 0.9 else rng.choice("abcdefghijklmnopqrstuvwxyz")
            )
            template = rng.choice(TEMPLATES)
            template = template.lower() if rng.random() < 0.3 else template
            q, p = rng.choice(["", "'", '"']), rng.choice(["", "'", '"'])
            question = template.format(letter=q + letter + q, word=p + word + p)
            question += "?" if rng.random() < 0.5 else ""
            user, assistant = row["messages"]
            assert user["content"] == question
            parts = assistant["content"]
            assert parts[1]["text"] == f"'{word}'.count('{letter}')"
            assert parts[2]["text"] == str(word.count(letter))
            assert SpellingBee(1, words=words).evaluate(row, f"#### {word.count(letter)}") == 1
    shuffled = list(words)
    random.Random(42).shuffle(shuffled)
    asked = SimpleSpelling(1, words=words)[0]["messages"]
    word = random.Random(0).choice(shuffled)
    assert asked[0]["content"] == f"How is {word} spelled?"
    assert asked[1]["content"] == f"{word}: {' '.join(word)}"


def test_the_word_list_is_read_from_the_base_folder(base):
    """It is fetched only if it is not there."""
    (base / "words_alpha.txt").write_text("alpha\r\nbeta\r\n")
    assert SpellingBee(1).words == ["alpha", "beta"]


class FakeSet(list):
    """A data set as `datasets` has it."""

    def shuffle(self, seed: int) -> "FakeSet":
        return FakeSet(self[i] for i in np.random.default_rng(seed).permutation(len(self)))


@pytest.fixture
def hub(monkeypatch) -> dict:
    """What the package `datasets` would find, by path, name and split."""
    shelf: dict = {}
    loaded = SimpleNamespace(
        load_dataset=lambda path, name, split: FakeSet(shelf[path, name, split])
    )
    monkeypatch.setitem(sys.modules, "datasets", loaded)
    return shelf


def test_smoltalk_and_arc_read_their_rows(hub):
    """In the order of the seeded shuffle; choices stand before their letters."""
    rows = [{"messages": [i]} for i in range(10)]
    hub["HuggingFaceTB/smol-smoltalk", None, "test"] = rows
    order = np.random.default_rng(42).permutation(10).tolist()
    assert list(SmolTalk("test", stop=4)) == [rows[i] for i in order[:4]]
    hub["allenai/ai2_arc", "ARC-Easy", "train"] = [
        {
            "question": "Is it?",
            "choices": {"text": ["yes", "no"], "label": ["1", "2"]},
            "answerKey": "2",
        }
    ]
    task = ARC("ARC-Easy", "train")
    assert "\n- yes=1\n- no=2\n\n" in task[0]["messages"][0]["content"]
    assert task[0]["letters"] == ["1", "2"]
    assert task.evaluate(task[0], "2")
    assert not task.evaluate(task[0], "1")
    assert render_mc("Q", "AB", ["x", "y"]).count("\n") == 4


def test_gsm8k_calls_the_calculator(hub):
    """Calculations become calls and what they gave; the answer is the number behind ####."""
    answer = "She has <<2*3=6>>6 and <<6==6=1>>more.\n#### 1,006"
    hub["openai/gsm8k", "main", "train"] = [{"question": "How many?", "answer": answer}]
    task = GSM8K("main", "train")
    parts = task[0]["messages"][1]["content"]
    assert [(part["type"], part["text"]) for part in parts] == [
        ("text", "She has "),
        ("python", "2*3"),
        ("python_output", "6"),
        ("text", "6 and "),
        ("python", "6==6"),
        ("python_output", "1"),
        ("text", "more.\n#### 1,006"),
    ]
    assert task.evaluate(task[0], "So #### 1006 it is.") == 1
    assert task.evaluate(task[0], "So #### 1007, not #### 1006.") == 0
    assert extract_answer("1006") is None


def test_without_the_package_the_remedy_is_named(monkeypatch):
    """Data sets of the hub are an extra."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(Refused, match=r"uv sync --extra data"):
        SmolTalk("train")
    with pytest.raises(Refused, match="unknown split"):
        SmolTalk("val")


def test_own_conversations_come_in_two_forms(tmp_path, capsys):
    """A list of messages a line, or an object with them; no file means no rows, and says so."""
    row = conversation("Hi", "Ho")
    system = {"messages": [{"role": "system", "content": "Be brief."}, *row["messages"]]}
    path = tmp_path / "own.jsonl"
    lines = [json.dumps(row["messages"]), "", json.dumps(row), json.dumps(system)]
    path.write_text("\n".join(lines))
    assert list(CustomJSON(path)) == [row, row, system]
    assert len(CustomJSON(tmp_path / "none.jsonl")) == 0
    assert "none.jsonl is not there" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b"{", "not JSON"),
        (b'"\xff"', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"3", "neither a list"),
        (b'{"turns": []}', "neither a list"),
        (b"[]", "needs a user and an assistant turn"),
        (b'[{"role": "user", "content": "Hi"}]', "needs a user and an assistant turn"),
        (b'[{"role": "user"}, 3]', "content that is text"),
        (b'[{"role": "user", "content": "a"}, {"content": "b"}]', "turn 1 is of role None"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, sentence):
    """By file and number, counting blank lines."""
    path = tmp_path / "own.jsonl"
    good = json.dumps(conversation("Hi", "Ho")).encode()
    path.write_bytes(good + b"\n\n" + line + b"\n" + good)
    with pytest.raises(Refused, match=rf"own.jsonl, line 3: .*{sentence}") as refused:
        CustomJSON(path)
    assert "\n" not in str(refused.value)
