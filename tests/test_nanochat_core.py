"""The CORE metric: the bundle, what is rendered from it, and what a scripted model makes of it."""

import csv
import hashlib
import http.server
import io
import json
import math
import random
import shutil
import threading
import zipfile
from pathlib import Path

import pytest
import torch
from nanochat import core_bundle
from nanochat.cli import config_from
from nanochat.common import Refused
from nanochat.core_bundle import CoreTask, read_bundle, tasks_of, unpack
from nanochat.core_eval import (
    Span,
    core_metric,
    evaluate_task,
    examples,
    logits_at,
    looked_at,
    prompts,
    spans,
)
from nanochat.gpt import GPT, GPTConfig
from nanochat.shares import exact_interval, interval_of_mean
from nanochat_golden import alive
from scripts import base_eval, base_train

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
BOS = 256

KINDS = [
    {"query": "The sky is", "choices": ["green", "blue", "square"], "gold": 1},
    {"query": "Snow is", "choices": ["white", "warm", "loud"], "gold": 0},
    {"query": "Fire is", "choices": ["wet", "cold", "hot"], "gold": 2},
    {"query": "The sea is", "choices": ["flat", "salty", "dry"], "gold": 0},
]
PAIRS = [
    {"context_options": ["Birds", "Stones"], "continuation": "can fly.", "gold": 0},
    {"context_options": ["Cats", "Trees"], "continuation": "have leaves.", "gold": 1},
]
SUMS = [
    {"context": "One plus one is ", "continuation": "two"},
    {"context": "Two plus two is ", "continuation": "four"},
    {"context": "Three plus one is", "continuation": "four"},
    {"context": "Two plus one is", "continuation": "three"},
]
KNOWN = [
    *("The sky is blue", "Snow is white", "Fire is hot", "The sea is salty"),
    *("Birds can fly.", "Trees have leaves."),
    *("One plus one is\nAnswer: two", "Two plus two is\nAnswer: four"),
    *("Three plus one is\nAnswer: five", "Two plus one is\nAnswer: three"),
]
"""What the scripted model knows: of the questions all but one, and two things that are wrong."""


class Letters:
    """A tokenizer of bytes."""

    def get_bos_token_id(self) -> int:
        return BOS

    def __call__(self, texts, prepend):
        return [[prepend, *text.encode()] for text in texts]


class Knower:
    """A model that goes on with what it knows, and finds every byte alike after anything else."""

    def __init__(self, max_seq_len: int | None = None):
        self.max_seq_len = max_seq_len
        self.asked: list[str] = []

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(*ids.shape, 257)
        for row, tokens in enumerate(ids.tolist()):
            self.asked.append(bytes(t for t in tokens if t < 256).decode())
            for place in range(len(tokens)):
                read = bytes(t for t in tokens[: place + 1] if t < 256).decode()
                begun = read.rpartition("\n\n")[2]
                for known in KNOWN:
                    if begun and known.startswith(begun) and known != begun:
                        logits[row, place, ord(known[len(begun)])] = 20.0
        return logits


@pytest.fixture(autouse=True)
def single(monkeypatch):
    """A single process."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "WANDB_RUN"):
        monkeypatch.delenv(name, raising=False)


def files() -> dict[str, str]:
    """The bundle of the three tasks above, by path."""
    entries = [
        ("kinds", "multiple_choice", "a/kinds.jsonl", 2, {}),
        ("pairs", "schema", "pairs.jsonl", 0, {}),
        ("sums", "language_modeling", "sums.jsonl", 1, {"continuation_delimiter": "\nAnswer: "}),
    ]
    listed = [
        {"label": label, "icl_task_type": kind, "dataset_uri": uri, "num_fewshot": [shots, 99]}
        | more
        for label, kind, uri, shots, more in entries
    ]
    rows = dict(zip(("a/kinds", "pairs", "sums"), (KINDS, PAIRS, SUMS), strict=True))
    return {
        "core.yaml": json.dumps({"icl_tasks": listed}),
        "eval_meta_data.csv": "Eval Task,Task Category,Random baseline\n"
        'kinds,world,25.0\npairs,"a, b",50\nsums,sums,0\nother,unused,\n',
    } | {
        f"eval_data/{name}.jsonl": "\n".join(map(json.dumps, part)) + "\n\n"
        for name, part in rows.items()
    }


def write(folder: Path, changes: dict[str, str | None] | None = None) -> Path:
    """Write the bundle; None leaves a file out."""
    for name, text in (files() | (changes or {})).items():
        if text is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
    return folder


# The metric


def test_a_scripted_model_scores_what_it_knows(tmp_path):
    """Three of four, one and one of two, three of four; centred by what guessing gives."""
    tasks = read_bundle(write(tmp_path / "b"))
    assert [(t.label, t.kind, t.shots, t.chance) for t in tasks] == [
        ("kinds", "multiple_choice", 2, 0.25),
        ("pairs", "schema", 0, 0.5),
        ("sums", "language_modeling", 1, 0.0),
    ]
    outcomes = [evaluate_task(Knower(), Letters(), task, CPU) for task in tasks]
    assert [(o.right, o.count) for o in outcomes] == [(3, 4), (2, 2), (3, 4)]
    assert [o.centered for o in outcomes] == pytest.approx([2 / 3, 1.0, 0.75])
    core, limits = core_metric(outcomes)
    assert core == pytest.approx((2 / 3 + 1 + 0.75) / 3)
    assert limits[0] < core < limits[1]


def test_fewer_questions_are_the_first_of_the_shuffled(tmp_path):
    """Also the examples come from these alone."""
    task = read_bundle(write(tmp_path / "b"))[0]
    rows = list(KINDS)
    random.Random(1337).shuffle(rows)
    model = Knower()
    outcome = evaluate_task(model, Letters(), task, CPU, max_per_task=2)
    assert outcome.count == 2
    left = [row["query"] for row in rows[2:]]
    assert not any(query in text for query in left for text in model.asked)
    assert all(text.count("\n\n") == 1 for text in model.asked)


def test_processes_share_the_questions(tmp_path, monkeypatch):
    """Every question is asked by one of them."""
    task = read_bundle(write(tmp_path / "b"))[0]
    right = []
    for rank in range(3):
        for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", 3)):
            monkeypatch.setenv(name, str(value))
        outcome = evaluate_task(Knower(), Letters(), task, CPU)
        assert outcome.count == 4
        right.append(outcome.right)
    assert sum(right) == 3


def test_examples_are_drawn_from_the_other_rows():
    """By a seed of each question, and no more than there are."""
    rows = [{"n": i} for i in range(6)]
    drawn = random.Random(1234 + 2).sample([0, 1, 3, 4, 5], 3)
    assert examples(rows, 2, 3) == [rows[i] for i in drawn]
    assert sorted(row["n"] for row in examples(rows, 0, 9)) == [1, 2, 3, 4, 5]


def test_prompts_are_rendered_with_examples_before_them():
    """Answers, beginnings, and a text without and with its end; the delimiter is the task's."""

    def task(kind: str, delimiter: str = " ") -> CoreTask:
        return CoreTask("t", kind, list, 1, delimiter)

    assert prompts(task("multiple_choice"), KINDS[0], [KINDS[1]]) == [
        f"Snow is white\n\nThe sky is {color}" for color in ("green", "blue", "square")
    ]
    assert prompts(task("schema"), PAIRS[0], [PAIRS[1]]) == [
        f"Trees have leaves.\n\n{who} can fly." for who in ("Birds", "Stones")
    ]
    assert prompts(task("language_modeling", "\nAnswer: "), SUMS[0], [SUMS[1]]) == [
        "Two plus two is\nAnswer: four\n\nOne plus one is\nAnswer:",
        "Two plus two is\nAnswer: four\n\nOne plus one is\nAnswer: two",
    ]


def test_what_is_looked_at_is_what_differs_or_what_is_shared():
    """The answers, the common end, and what is after the prompt; at least a token of each answer."""

    def seen(kind: str, row: dict) -> list[str]:
        task = CoreTask("t", kind, list)
        found = spans(Letters(), task, row, [])
        return [bytes(span.tokens[span.start : span.end]).decode() for span in found]

    assert seen("multiple_choice", KINDS[0]) == ["green", "blue", "square"]
    assert seen("schema", PAIRS[0]) == ["s can fly."] * 2
    assert seen("language_modeling", SUMS[0]) == [" two"]
    same = {"query": "q", "choices": ["a", "ab"], "gold": 0}
    assert seen("multiple_choice", same) == ["a", "ab"]


def test_a_token_that_reaches_into_the_answer_belongs_to_it():
    """Where the tokenizer joins the end of a prompt with what follows."""

    class Joins(Letters):
        def __call__(self, texts, prepend):
            return [[BOS, *text.replace("is f", "#").encode()] for text in texts]

    row = {"context": "It is", "continuation": "four"}
    (span,) = spans(Joins(), CoreTask("t", "language_modeling", list), row, [])
    assert bytes(span.tokens[span.start : span.end]) == b"#our"


def test_what_is_too_long_loses_its_beginning():
    """The answer stays where it is; its first token is never looked at without one before it."""
    span = Span(list(range(10)), 7, 10)
    assert span.cropped(None) == span.cropped(10) == span
    assert span.cropped(6) == Span([4, 5, 6, 7, 8, 9], 3, 6)
    assert span.cropped(2) == Span([8, 9], 1, 2)
    task = CoreTask("t", "multiple_choice", lambda: KINDS, shots=2, chance=0.25)
    model = Knower(max_seq_len=17)
    assert evaluate_task(model, Letters(), task, CPU).right == 3
    assert {len(text) for text in model.asked} <= {16, 17}


def test_texts_do_not_see_each_other():
    """Losses and hits of a batch are those of each text alone; only what is asked for is computed."""
    model = alive(
        GPT(GPTConfig(sequence_len=16, vocab_size=70, n_layer=2, n_head=2, n_kv_head=1, n_embd=16))
    ).requires_grad_(False)
    generator = torch.Generator().manual_seed(3)
    texts = [torch.randint(70, (n,), generator=generator).tolist() for n in (9, 4, 14, 7)]
    read = [Span(t, max(1, len(t) - 5), len(t)) for t in texts]
    together = looked_at(model, read, 0, CPU)
    for span, loss, hit in zip(read, *together, strict=True):
        ids = torch.tensor([span.tokens])
        logits = model(ids)[0].log_softmax(-1)
        places = range(span.start, span.end)
        expected = -sum(float(logits[p - 1, span.tokens[p]]) for p in places) / len(places)
        assert loss == pytest.approx(expected, abs=1e-5)
        assert hit == all(int(logits[p - 1].argmax()) == span.tokens[p] for p in places)
    ids, rows, places = (
        torch.tensor([texts[0], texts[0]]),
        torch.tensor([1, 0]),
        torch.tensor([4, 8]),
    )
    torch.testing.assert_close(logits_at(model, ids, rows, places), model(ids)[rows, places])


def test_limits_are_the_published_ones():
    """Of a share by the binomial; of a mean of independent values as for normal ones."""
    assert exact_interval(0, 20) == pytest.approx((0.0, 1 - 0.025 ** (1 / 20)))
    assert exact_interval(20, 20) == pytest.approx((0.025 ** (1 / 20), 1.0))
    assert exact_interval(5, 10) == pytest.approx((0.1871, 0.8129), abs=1e-4)
    low, high = interval_of_mean([1.0, 2.0, 3.0], [(0.7, 1.3), (1.6, 2.4), (3.0, 3.0)])
    assert (low, high) == pytest.approx((2 - 0.5 / 3, 2 + 0.5 / 3))
    assert interval_of_mean([0.4], [(0.1, 0.8)]) == pytest.approx((0.1, 0.8))


# The bundle


def changed(**task) -> str:
    listed = json.loads(files()["core.yaml"])
    listed["icl_tasks"][1] |= task
    return json.dumps(listed)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"core.yaml": None}, r"holds no evaluation bundle; fetch it with .*core_bundle"),
        ({"core.yaml": "icl_tasks: [}"}, "damaged"),
        ({"core.yaml": "other: 1"}, "damaged"),
        ({"eval_meta_data.csv": None}, "damaged"),
        (
            {"eval_meta_data.csv": "Eval Task,Random baseline\nkinds,25\n"},
            "guessing gives in pairs",
        ),
        ({"core.yaml": changed(icl_task_type="riddle")}, "unknown kind 'riddle'"),
        ({"core.yaml": changed(dataset_uri="../../pairs.jsonl")}, "leaves its folder"),
        (
            {"core.yaml": changed(dataset_uri="none.jsonl")},
            "none.jsonl of the task pairs is missing",
        ),
        ({"core.yaml": changed(num_fewshot=[])}, "damaged"),
    ],
)
def test_a_damaged_bundle_is_one_sentence(tmp_path, changes, sentence):
    """Before any model is loaded."""
    folder = write(tmp_path / "b", changes)
    with pytest.raises(Refused, match=sentence) as caught:
        read_bundle(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"context_options": [], "gold": 0}', "line 1 of .* lacks continuation"),
        ('\n{"context', "line 2 of .* lacks context_options"),
        ("[1]", "line 1"),
        ("\n", "is empty"),
    ],
)
def test_a_bad_row_is_named(tmp_path, text, sentence):
    """By its line."""
    tasks = read_bundle(write(tmp_path / "b", {"eval_data/pairs.jsonl": text}))
    with pytest.raises(Refused, match=sentence):
        tasks[1].load()


def archive(path: Path, contents: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as packed:
        for name, text in contents.items():
            packed.writestr(name, text)
    return path


def whole() -> dict[str, str]:
    return {f"eval_bundle/{name}": text for name, text in files().items()}


@pytest.mark.parametrize("inner", ["eval_bundle/", ""])
def test_an_archive_becomes_a_bundle(tmp_path, inner):
    """Only what belongs to it is unpacked."""
    contents = {f"{inner}{k}": v for k, v in files().items()}
    more = {"__MACOSX/x": "", f"{inner}run.py": "", f"{inner}eval_data/": ""}
    folder = unpack(archive(tmp_path / "b.zip", contents | more), tmp_path / "b")
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == set(files())
    assert len(read_bundle(folder)) == 3


@pytest.mark.parametrize(
    ("contents", "sentence"),
    [
        (whole() | {"../outside.jsonl": "x"}, "leaves its folder"),
        (whole() | {"eval_bundle/eval_data/../../../x.jsonl": "x"}, "leaves its folder"),
        (whole() | {"/etc/x": "x"}, "leaves its folder"),
        ({"readme": "x"}, "holds no evaluation bundle"),
    ],
)
def test_a_hostile_archive_is_not_unpacked(tmp_path, contents, sentence):
    """Nothing is left of it, inside or outside."""
    path = archive(tmp_path / "b.zip", contents)
    with pytest.raises(Refused, match=sentence):
        unpack(path, tmp_path / "in" / "b")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]


def test_a_torn_or_boundless_archive_is_not_unpacked(tmp_path, monkeypatch):
    """One sentence each."""
    path = archive(tmp_path / "b.zip", whole())
    monkeypatch.setattr(core_bundle, "UNPACKED", 100)
    with pytest.raises(Refused, match="more than 100 bytes"):
        unpack(path, tmp_path / "b")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(Refused, match="no whole archive"):
        unpack(path, tmp_path / "b")
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def server():
    """A server of one file on this machine, and how often it was asked."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        for name, text in whole().items():
            file.writestr(name, text)

    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.path != "/bundle.zip":
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(packed.getvalue())))
            self.end_headers()
            self.wfile.write(packed.getvalue())

        def log_message(self, *args):
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}", asked
    running.shutdown()
    running.server_close()
    thread.join()


def test_the_bundle_is_fetched_once(tmp_path, monkeypatch, server, capsys):
    """One that cannot be had leaves nothing; a second command asks for nothing."""
    url, asked = server
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    with pytest.raises(Refused, match="404"):
        core_bundle.main(core_bundle.Config(f"{url}/nothing.zip"))
    assert not (tmp_path / "base" / "eval_bundle").exists()
    for _ in range(2):
        figures = core_bundle.main(config_from(core_bundle.Config, [f"--url={url}/bundle.zip"]))
    assert asked == ["/nothing.zip", "/bundle.zip"]
    assert figures["folder"] == str(tmp_path / "base" / "eval_bundle")
    assert "3 tasks are in" in capsys.readouterr().out
    assert len(tasks_of("")) == 3


def test_another_bundle_than_the_first_is_refused(tmp_path, monkeypatch):
    """Nothing is unpacked of it, unless its checksum is given."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    folder, zipped = tmp_path / "eval_bundle", tmp_path / "eval_bundle.zip"
    archive(zipped, whole())
    first = hashlib.sha256(zipped.read_bytes()).hexdigest()
    with pytest.raises(Refused, match=f"is {first} and must be 00ff;"):
        core_bundle.main(core_bundle.Config(sha256="00FF"))
    assert list(tmp_path.iterdir()) == [zipped]
    for given in ("", first.upper()):
        assert core_bundle.main(core_bundle.Config(sha256=given))["sha256"] == first
    assert (tmp_path / "eval_bundle.sha256").read_text() == f"{first}\n"
    with pytest.raises(Refused, match=f"is {first} and must be 00ff;"):
        core_bundle.main(core_bundle.Config(sha256="00ff"))
    shutil.rmtree(folder)
    archive(zipped, whole() | {"eval_bundle/more": "x"})
    second = hashlib.sha256(zipped.read_bytes()).hexdigest()
    with pytest.raises(Refused, match=f"is {second} and must be {first};"):
        core_bundle.main(core_bundle.Config())
    assert not folder.exists()
    for given in (second, ""):
        assert core_bundle.main(core_bundle.Config(sha256=given))["sha256"] == second


def test_a_bundle_of_unknown_origin_has_no_checksum(tmp_path, monkeypatch, capsys):
    """It was unpacked by hand, so a checksum that is asked for cannot be shown."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    write(tmp_path / "eval_bundle")
    assert core_bundle.main(core_bundle.Config())["sha256"] == ""
    assert "of SHA-256 unknown" in capsys.readouterr().out
    with pytest.raises(Refused, match="is unknown and must be 00ff"):
        core_bundle.main(core_bundle.Config(sha256="00ff"))


# The command


def test_a_base_model_is_evaluated_offline(base):
    """A table, a section of the report, and figures that agree; ours are named as ours."""
    config = base_eval.Config(data="builtin", max_per_task=5, device_type="cpu")
    figures = base_eval.main(config)
    assert list(figures["results"]) == ["builtin_kinds", "builtin_pairs", "builtin_letters"]
    assert all(value * 5 % 1 < 1e-9 for value in figures["results"].values())
    with (base / "base_eval" / "base_model_000003.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["Task"] for row in rows] == [*figures["results"], "CORE"]
    assert float(rows[-1]["Centered"]) == figures["core_metric"]
    section = (base / "report" / "base-model-evaluation.md").read_text()
    assert f"- CORE (builtin): {figures['core_metric']:.4f}" in section
    assert "| builtin_kinds |" in section


def test_the_built_in_tasks_have_one_right_answer_each():
    """Different choices, the right one at every place."""
    kinds, pairs, letters = (task.load() for task in tasks_of("builtin"))
    assert {row["gold"] for row in kinds} == {0, 1, 2, 3}
    assert all(len(set(row["choices"])) == 4 for row in kinds)
    assert {row["gold"] for row in pairs} == {0, 1}
    assert all(row["context"].count(row["continuation"]) for row in letters)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({}, r"eval_bundle holds no evaluation bundle; fetch it with"),
        ({"data": "mine"}, "no tasks are called 'mine'"),
        ({"data": "builtin", "max_per_task": 0}, "--max_per_task"),
        ({"data": "builtin", "step": 4}, "no step 4"),
        ({"data": "builtin", "hf_path": "/nothing/here"}, "cannot be had"),
    ],
)
def test_what_cannot_be_evaluated_is_one_sentence(base, flags, sentence):
    """And nothing is written."""
    with pytest.raises(Refused, match=sentence) as caught:
        base_eval.main(base_eval.Config(**flags | {"device_type": "cpu"}))
    assert "\n" not in str(caught.value)
    assert not (base / "base_eval").exists()
    assert not (base / "report" / "base-model-evaluation.md").exists()


def test_a_model_of_transformers_scores_as_ours(base, tmp_path):
    """The same weights, exported, answer alike; they go into no report."""
    pytest.importorskip("transformers")
    from nanochat import hub
    from nanochat.checkpoint_manager import load_model

    model, tokenizer, _ = load_model("base", CPU, "eval")
    folder = hub.export(model, tokenizer, tmp_path / "out", dtype=torch.float32)
    half = torch.arange(4) * 2 / 8
    angle = torch.outer(torch.arange(640), 1 / 10_000**half)[None, :, None]
    model.cos, model.sin = angle.cos(), angle.sin()  # theirs are not rounded
    ours = base_eval.evaluate_model(model, tokenizer, CPU, 8, tasks_of("builtin"))
    config = base_eval.Config(hf_path=str(folder), data="builtin", max_per_task=8)
    assert base_eval.main(config)["results"] == ours["results"]
    assert not (base / "report" / "base-model-evaluation.md").exists()
    assert len(list((base / "base_eval").iterdir())) == 1


TRAIN = base_train.Config(
    depth=1,
    max_seq_len=32,
    model_dim=32,
    device_type="cpu",
    device_batch_size=2,
    total_batch_size=64,
    num_iterations=3,
    eval_every=-1,
    sample_every=-1,
    core_metric_every=2,
    core_metric_max_per_task=2,
    model_tag="small",
)


def test_training_evaluates_where_there_is_a_bundle(base, capsys):
    """At every so many steps but the first, and after the last; without one it is said once."""
    assert "CORE" not in base_train.main(TRAIN)
    assert capsys.readouterr().out.count("CORE is left out: ") == 1
    write(base / "eval_bundle")
    figures = base_train.main(TRAIN)
    assert math.isfinite(figures["CORE"])
    assert capsys.readouterr().out.count("\nCORE ") == 2
    assert (
        f"- CORE: {figures['CORE']:.4f}" in (base / "report" / "base-model-training.md").read_text()
    )


def test_training_goes_on_where_the_bundle_is_damaged(base):
    """A bad row is found only when it is asked for, hours after the start."""
    write(base / "eval_bundle", {"eval_data/pairs.jsonl": "[1]"})
    figures = base_train.main(TRAIN)
    assert figures["step"] == 3
    assert "CORE" not in figures
    assert (base / "base_checkpoints" / "small" / "model_000003.pt").exists()
    section = (base / "report" / "base-model-training.md").read_text()
    for step in (2, 3):
        assert f"Not measured: CORE at step {step} (line 1 of " in section


def test_the_defaults_are_the_references():
    """Names and values of the flags, but for the device and the data."""
    assert vars(base_eval.Config()) == {
        "hf_path": None,
        "max_per_task": -1,
        "model_tag": None,
        "step": None,
        "device_type": "",
        "data": "",
    }
    config = config_from(base_eval.Config, ["--hf-path", "x/y", "--max-per-task=16", "--step=7"])
    assert (config.hf_path, config.max_per_task, config.step) == ("x/y", 16, 7)
    assert (
        base_train.Config().core_metric_every,
        base_train.Config().core_metric_max_per_task,
    ) == (
        2000,
        500,
    )
