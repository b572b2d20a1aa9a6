"""DocVQA: how a page becomes a conversation, and how a set is made, published and counted."""

import json
import os
from pathlib import Path

import counting
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fractal_core import conversations, docvqa
from fractal_core.__main__ import execute
from fractal_core.errors import Refused

SHARDS = {"train-00000-of-00002": 3, "train-00001-of-00002": 2, "validation-00000-of-00001": 2}


def page(lines: list[str], answers: list[str], number: int = 1, **changes) -> dict:
    words = [{"text": line, "words": [{"text": w} for w in line.split()]} for line in lines]
    return {
        "question_id": number,
        "question": " What is it? ",
        "answers": answers,
        "ocr_results": {"page": 1, "lines": words},
        "other_metadata": {"ucsf_document_id": f"doc{number}", "ucsf_document_page_no": "4"},
    } | changes


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """The files of a small set; scans are nearly all of it."""
    folder = tmp_path_factory.mktemp("source")
    rng = np.random.default_rng(0)
    for shard, count in SHARDS.items():
        rows = [
            page([f"{shard} line {i}", f"It is {i} crowns"], [f"{i} crowns"], i)
            for i in range(count)
        ]
        scans = [{"image": {"bytes": rng.bytes(2_000_000), "path": None}} for _ in rows]
        rows = [row | scan for row, scan in zip(rows, scans, strict=True)]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{shard}.parquet")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.jsonl")}


def test_a_page_becomes_a_conversation():
    """Page number, lines in reading order, question; the first of the accepted answers."""
    row = page(["Dear Sir,", "  ", " It is late. "], ["  late ", "it is late"], 7)
    made = docvqa.example(row, counting.words)
    assert made == {
        "messages": [
            {
                "role": "user",
                "content": "Document:\nPage 4\nDear Sir,\nIt is late.\n\nQuestion: What is it?",
            },
            {"role": "assistant", "content": "late"},
        ],
        "question_id": 7,
        "document": "doc7",
        "page": "4",
        "match": "exact",
        "truncated": False,
    }


def test_long_answers_are_left_out():
    """And so is a question without one; a page of which nothing could be read is not."""
    assert docvqa.example(page(["a"], ["b" * 151]), counting.words) is None
    assert docvqa.example(page(["a"], ["b" * 150]), counting.words) is not None
    assert docvqa.example(page(["a"], []), counting.words) is None
    assert docvqa.example(page(["a"], [" "]), counting.words) is None
    bare = page([], ["b"], ocr_results=None, other_metadata=None)
    made = docvqa.example(bare, counting.words)
    assert made is not None
    assert made["messages"][0]["content"] == "Document:\n\n\nQuestion: What is it?"
    assert (made["page"], made["match"]) == (None, "none")


def test_a_line_without_text_is_put_together_from_its_words():
    """Some readers give the words alone."""
    line = {"text": None, "words": [{"text": "two"}, {"text": "words"}]}
    made = docvqa.example(page([], ["words"], ocr_results={"lines": [line]}), counting.words)
    assert made is not None
    assert "\ntwo words\n" in made["messages"][0]["content"]


@pytest.mark.parametrize(
    ("lines", "answer", "expected"),
    [
        (["a", "The  YEAR is", "b"], "the year", ("exact", range(1, 2))),
        (["a", "of the", "year", "b"], "The Year", ("exact", range(1, 3))),
        (["in 1994", "4"], "4", ("exact", range(1, 2))),
        (["in 1994"], "4", ("none", range(0))),
        (["a", "INTER - OFFICE NOTE", "b"], "inter-office note", ("fuzzy", range(1, 2))),
        (["a", "ExonMobil'"], "Exxonmobil", ("fuzzy", range(1, 2))),
        (["nothing of the kind"], "Zanzibar", ("none", range(0))),
        (["short"], "much longer than the page", ("none", range(0))),
        ([], "a", ("none", range(0))),
        (["cost (in $) 3.50?"], "(in $)", ("exact", range(0, 1))),
    ],
)
def test_an_answer_is_located(lines, answer, expected):
    """Letter case and line ends do not matter; what is read wrongly is found by likeness."""
    assert docvqa.locate(lines, answer) == expected


@pytest.mark.parametrize(
    ("held", "room", "expected"),
    [
        (range(4, 5), 1, "4"),
        (range(4, 5), 3, "345"),
        (range(4, 5), 4, "2345"),
        (range(0, 1), 3, "012"),
        (range(8, 9), 3, "678"),
        (range(0), 3, "012"),
        (range(2, 5), 1, "234"),
        (range(4, 5), 99, "012345678"),
    ],
)
def test_the_lines_around_an_answer_are_kept(held, room, expected):
    """Nearest first, above and below in turn, in reading order; the answer stays in any case."""
    assert "".join(docvqa.within("012345678", held, counting.words, room)) == expected


def test_a_line_without_room_ends_only_its_side():
    """What is below goes on when the line above is too long."""
    lines = ["a", "x " * 50, "answer", "b", "c"]
    kept = docvqa.within(lines, range(2, 3), counting.words, 4)
    assert kept == ["answer", "b", "c"]


@pytest.mark.parametrize("place", [0, 700, 1999])
@pytest.mark.parametrize("long", [False, True])
def test_a_long_page_keeps_its_answer(place, long):
    """Within the limit, neighbours with it, wherever it stands and however the page is broken."""
    lines = [f"line number {i} says something" for i in range(2000)]
    lines[place] = "the treasure lies in Aldermoor"
    row = page([" ".join(lines)] if long else lines, ["Aldermoor"])
    made = docvqa.example(row, counting.words)
    assert made is not None
    question, answer = (message["content"] for message in made["messages"])
    used = counting.words(question) + counting.words(answer) + docvqa.SPECIAL_TOKENS
    assert docvqa.MAX_TOKENS - 50 < used <= docvqa.MAX_TOKENS
    assert "treasure lies in Aldermoor" in question.replace("\n", " ")
    assert (made["match"], made["truncated"]) == ("exact", True)
    numbers = [int(word) for word in question.split() if word.isdecimal() and word != "4"]
    numbers = [number for number in numbers if number != 4]
    assert numbers == sorted(numbers)


def test_a_set_is_prepared_the_same_by_any_number_of_processes(source, tmp_path):
    """All files in their order, and it can be trained on as it is."""
    heard = []
    told = docvqa.prepare(
        tmp_path / "one", counting.words, "w", source=source, tell=lambda *n: heard.append(n)
    )
    again = docvqa.prepare(tmp_path / "two", counting.words, "w", source=source, workers=2)
    assert told == again
    assert told["train"] == docvqa.Summary(rows=5, exact=5, fuzzy=0, none=0, truncated=0)
    assert told["validation"].rows == 2
    assert heard == [(1, 3), (2, 3), (3, 3)]
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    paths = [tmp_path / "one" / f"{split}.jsonl" for split in ("train", "validation")]
    found = conversations.conversations(",".join(map(str, paths)), "train")
    texts = [one["messages"][0]["content"].splitlines()[2] for one in found]
    assert texts == [
        f"{shard} line {i}" for shard in list(SHARDS)[:2] for i in range(SHARDS[shard])
    ]


def test_preparing_goes_on_where_it_was(source, tmp_path, monkeypatch):
    """A finished file is not made again, and a finished set not at all."""
    made = []
    original = docvqa.example

    def watched(row, count):
        made.append(row["ocr_results"]["lines"][0]["text"])
        if len(made) == 4:
            raise KeyboardInterrupt
        return original(row, count)

    monkeypatch.setattr(docvqa, "example", watched)
    with pytest.raises(KeyboardInterrupt):
        docvqa.prepare(tmp_path, counting.words, "w", source=source)
    assert not contents(tmp_path)
    told = docvqa.prepare(tmp_path, counting.words, "w", source=source)
    assert [told[split].rows for split in told] == [5, 2]
    assert len(made) == 4 + 4
    docvqa.prepare(tmp_path, counting.words, "w", source=source)
    assert len(made) == 4 + 4
    with pytest.raises(Refused, match="another source or with another tokenizer"):
        docvqa.prepare(tmp_path, counting.words, "other", source=source)


def test_a_killed_process_is_a_sentence(source, tmp_path):
    """It names what to do; nothing of a set is left that looks finished."""
    with pytest.raises(Refused, match="fewer --workers"):
        docvqa.prepare(tmp_path, counting.fatal, "w", source=source, workers=2)
    assert not contents(tmp_path)


def test_without_a_source_nothing_is_begun(hub_here, tmp_path):
    """No folder is left for a set that never was."""
    with pytest.raises(Refused, match="is not on the Hub"):
        docvqa.prepare(tmp_path / "set", counting.words, "w")
    assert not (tmp_path / "set").exists()


def test_a_source_of_another_kind_is_refused(tmp_path):
    """A missing split or column is named."""
    (tmp_path / "source").mkdir()
    with pytest.raises(Refused, match=r"no file train-\*\.parquet"):
        docvqa.prepare(tmp_path / "a", counting.words, "w", source=tmp_path / "source")
    for split in ("train", "validation"):
        table = pa.table({"question": ["a"], "question_id": [1], "answers": [["b"]]})
        pq.write_table(table, tmp_path / "source" / f"{split}-0.parquet")
    with pytest.raises(Refused, match="no column ocr_results, other_metadata"):
        docvqa.prepare(tmp_path / "b", counting.words, "w", source=tmp_path / "source")


def test_of_the_hub_only_the_text_is_read(hub_here, source, tmp_path):
    """The same set as from files, though the scans stay where they are."""
    files = {f"data/{path.name}": path.read_bytes() for path in source.glob("*.parquet")}
    hub_here.push(docvqa.SOURCE, files, commit=docvqa.COMMIT)
    docvqa.prepare(tmp_path / "hub", counting.words, "w")
    docvqa.prepare(tmp_path / "files", counting.words, "w", source=source)
    assert contents(tmp_path / "hub") == contents(tmp_path / "files")
    assert 0 < hub_here.served < sum(map(len, files.values())) / 2


def test_a_set_is_published_and_read_back(hub_here, source, tmp_path):
    """What comes from the Hub is what was prepared; recipes and parts stay here."""
    docvqa.prepare(tmp_path, counting.words, "w", source=source)
    address = docvqa.publish(tmp_path, "org/mine")
    commit = address.rpartition("/")[2]
    assert set(hub_here.files["org/mine", commit]) == {
        "README.md", "train.jsonl", "validation.jsonl",
    }  # fmt: skip
    found = conversations.conversations(f"hf:org/mine@{commit}", "train")
    assert found == conversations.conversations(
        f"{tmp_path / 'train.jsonl'},{tmp_path / 'validation.jsonl'}", "train"
    )


def test_what_cannot_be_published_is_refused(hub_here, tmp_path):
    """Nothing is sent then."""
    with pytest.raises(Refused, match="fractal data docvqa prepare"):
        docvqa.publish(tmp_path, "org/mine")
    for split in docvqa.COUNTS:
        (tmp_path / f"{split}.jsonl").write_text('{"match": "exact", "truncated": false}\n')
    with pytest.raises(Refused, match="ORGANISATION/NAME"):
        docvqa.publish(tmp_path, "mine")
    assert hub_here.asked == []
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(Refused, match="no file of a prepared set"):
        docvqa.publish(tmp_path, "org/mine")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    from nanochat.tokenizer import RustBPETokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    RustBPETokenizer.train_from_iterator(iter(["some words"]), 270).save(folder)
    return folder


def test_the_command_prepares_and_publishes(
    hub_here, source, tokenizer, tmp_path, store_folder, capsys
):
    """From pages to the Hub with two commands."""
    arguments = ["--source", str(source), "--tokenizer", str(tokenizer), "--workers", "1", "--json"]
    assert execute(["data", "docvqa", "prepare", str(tmp_path / "set"), *arguments]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["train"]["rows"], told["validation"]["exact"]) == (5, 2)
    assert execute(["data", "docvqa", "publish", str(tmp_path / "set")]) == 2
    assert "--repo" in capsys.readouterr().err
    assert execute(["data", "docvqa", "publish", str(tmp_path / "set"), "--repo", "org/mine"]) == 0
    assert "/commit/" in capsys.readouterr().out
    assert execute(["data", "docvqa", "prepare", "--tokenizer", str(tmp_path)]) == 2
    assert "no tokenizer in" in capsys.readouterr().err
    assert not (store_folder / "docvqa").exists()


def test_the_command_fetches_and_counts(hub_here, source, tmp_path, monkeypatch, capsys):
    """Whole or not is the exit code; a file that went missing is fetched, and only that."""
    prepared = tmp_path / "set"
    docvqa.prepare(prepared, counting.words, "w", source=source)
    hub_here.push(conversations.PUBLISHED, contents(prepared))
    assert execute(["data", "docvqa", "download", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert sorted(told["fetched"]) == ["train.jsonl", "validation.jsonl"]
    os.unlink(Path(told["folder"]) / "train.jsonl")  # noqa: PTH108 - a plain loss of a file
    assert execute(["data", "docvqa", "check", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["fetched"] == ["train.jsonl"]
    assert told["train"] == {"rows": 5, "published": 39_455}
    assert told["validation"] == {"rows": 2, "published": 5_349}
    monkeypatch.setattr(docvqa, "COUNTS", {"train": 5, "validation": 2})
    assert execute(["data", "docvqa", "check"]) == 0
    assert "nothing was missing" in capsys.readouterr().out
    assert execute(["data", "docvqa", "check", str(prepared)]) == 0
    assert "rows 5, published 5" in capsys.readouterr().out


def test_published_counts_are_those_of_the_paper():
    """What `check` measures against."""
    assert docvqa.COUNTS == {"train": 39_455, "validation": 5_349}
    assert (docvqa.MAX_TOKENS, docvqa.MAX_ANSWER) == (1_750, 150)
