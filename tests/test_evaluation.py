"""How good a language model is: likelihoods, answers, scores, and the harness."""

import json
import math
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import tuning
from nanochat.checkpoint_manager import load_model
from nanochat.engine import Engine

from fractal_core import evaluation
from fractal_core.__main__ import execute
from fractal_core.errors import Refused
from fractal_core.evaluation import Prompt, Reader, Score, harness_scores, ratio, share

pytestmark = pytest.mark.usefixtures("one_thread")

PAIRS = [
    ("The bill is", " paid"),
    ("The bill is ", "paid"),
    ("", "An invoice of 12 euros"),
    ("Who signed it? " * 3, "Nobody did."),
    ("x", "y"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A checkpoint with weights by chance, of 32 positions."""
    return tuning.checkpoint(tmp_path_factory.mktemp("model"), sequence_len=32)


@pytest.fixture(scope="module")
def reader(folder) -> Reader:
    model, tokenizer, _ = load_model(folder, "cpu", "eval")
    return Reader(model, tokenizer, rows=3)


def direct(reader: Reader, ids: list[int], scored: int) -> tuple[float, bool]:
    """Likelihood of the last ids and whether they are greedy, one position after the other."""
    total, greedy = 0.0, True
    for end in range(len(ids) - scored, len(ids)):
        with torch.no_grad():
            logits = reader.model(torch.tensor([ids[max(0, len(ids) - 33) : end]]))[0, -1]
        total += float(logits.double().log_softmax(-1)[ids[end]])
        greedy &= int(logits.argmax()) == ids[end]
    return total, greedy


def test_likelihoods_are_those_of_a_direct_computation(reader):
    """In batches of unlike lengths, with and without a context, cut off on the left if too long."""
    bos = reader.tokenizer.get_bos_token_id()
    found = reader.likelihoods(PAIRS)
    lengths = []
    for (context, continuation), (nats, greedy) in zip(PAIRS, found, strict=True):
        whole = reader.tokenizer.encode(context + continuation, prepend=bos)
        before = reader.tokenizer.encode(context.rstrip(), prepend=bos)
        assert whole[: len(before)] == before
        expected = direct(reader, whole, len(whole) - len(before))
        assert nats == pytest.approx(expected[0], abs=1e-4)
        assert greedy == expected[1]
        lengths.append(len(whole))
    assert max(lengths) > 33
    assert found[0] == pytest.approx(found[1], abs=1e-5)


def test_what_the_model_would_say_is_greedy(reader):
    """The flag is true of its own answer and of no other."""
    prompt = "The bill"
    ids = reader.tokenizer.encode(prompt, prepend=reader.tokenizer.get_bos_token_id())
    answers = Engine(reader.model, reader.tokenizer).generate(ids, max_tokens=3, temperature=0)
    said = [column[0] for column, _ in answers]
    inputs = [*ids, *said]
    assert reader._scored([(inputs[:-1], said)])[0][1]
    other = [*said[:-1], (said[-1] + 1) % 400]
    assert not reader._scored([([*ids, *other][:-1], other)])[0][1]


@pytest.mark.parametrize("text", ["", "A bill.", "Who paid the bill of 12 euros? " * 9])
def test_each_token_of_a_text_is_predicted_once(reader, text):
    """In windows of the whole context, the last of which counts only what was left."""
    ids = reader.tokenizer.encode(text, prepend=reader.tokenizer.get_bos_token_id())
    expected = 0.0
    for start in range(0, len(ids) - 1, 32):
        end = min(start + 32, len(ids) - 1)
        expected += direct(reader, ids[max(0, end - 32) : end + 1], end - start)[0]
    (found,) = reader.text_likelihoods([text])
    assert found == pytest.approx(expected, abs=1e-4)
    assert reader.text_likelihoods(["A bill.", text, "x"])[1] == pytest.approx(found, abs=1e-4)


def test_answers_are_those_of_the_engine(reader):
    """Prompts of unlike lengths in one batch get what each gets alone."""
    bos = reader.tokenizer.get_bos_token_id()
    texts = ["A bill", "Who paid the bill?", "x", "", "Nobody signed", "12 euros"]
    prompts = [Prompt(reader.tokenizer.encode(text, prepend=bos), 9) for text in texts]
    engine = Engine(reader.model, reader.tokenizer)
    alone = []
    for prompt in prompts:
        rows, _ = engine.generate_batch(prompt.tokens, max_tokens=9, temperature=0)
        alone.append(reader.tokenizer.decode(rows[0][len(prompt.tokens) :]))
    assert reader.answers(prompts) == alone
    assert len(set(alone)) > 1


def test_answers_end_where_they_should(reader):
    """At a text that ends them, at the end of their room, and within the context."""
    tokenizer = reader.tokenizer
    ids = tokenizer.encode("A bill", prepend=tokenizer.get_bos_token_id())
    (whole,) = reader.answers([Prompt(ids, 8)])
    stop = whole[2:4]
    assert reader.answers([Prompt(ids, 8, ("never said", stop))]) == [whole[: whole.find(stop)]]
    assert whole.startswith(reader.answers([Prompt(ids, 2)])[0])
    long = [*ids, *tokenizer.encode("Who paid the bill? " * 9)]
    assert reader.answers([Prompt(long, 8)]) == reader.answers([Prompt(long[-24:], 8)])
    assert reader.answers([Prompt(long, 500)]) == reader.answers([Prompt(long[-16:], 500)])


def test_shares_have_the_exact_interval():
    """Known values: none, all, and a half right."""
    assert share("t", "m", 0, 10).low == 0.0
    assert share("t", "m", 0, 10).high == pytest.approx(1 - 0.025**0.1)
    assert share("t", "m", 10, 10).high == 1.0
    half = share("t", "m", 5, 10, chance=0.25)
    assert (half.value, half.chance) == (0.5, 0.25)
    assert (half.low, half.high) == pytest.approx((0.18709, 0.81291), abs=1e-5)


def test_intervals_of_ratios_are_as_wide_as_they_should_be():
    """1.96 standard errors of the mean, where all sizes are alike."""
    parts = np.random.default_rng(1).normal(5.0, 1.0, 400)
    found = ratio("t", "m", parts, np.ones(400))
    assert found.value == pytest.approx(parts.mean())
    error = parts.std() / 20
    assert found.high - found.value == pytest.approx(1.96 * error, rel=0.1)
    assert found.value - found.low == pytest.approx(1.96 * error, rel=0.1)


def test_few_logits_exist_at_a_time(reader, monkeypatch):
    """However many rows are allowed; the numbers stay the same."""
    whole, seen = reader.likelihoods(PAIRS), []
    monkeypatch.setattr(evaluation, "LOGITS", 400 * 40)
    model = reader.model

    class Counted:
        config, get_device = model.config, model.get_device

        def __call__(self, ids):
            seen.append(ids.shape)
            return model(ids)

    found = Reader(Counted(), reader.tokenizer, rows=16).likelihoods(PAIRS)
    assert max(rows * width for rows, width in seen) <= 40
    assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in whole], abs=1e-4)


def test_built_in_tasks_are_scored_with_intervals(folder, capsys):
    """One JSON object, and a table of the same numbers; no network."""
    assert execute(["eval", folder, "--limit", "4", "--device", "cpu", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["step"], told["device"], told["dtype"]) == (0, "cpu", "float32")
    assert told["model"]["sequence_len"] == 32
    names = [(score["task"], score["count"]) for score in told["scores"]]
    assert names == [("kinds", 4), ("sums", 4), ("texts", 4)]
    for score in told["scores"]:
        assert score["low"] <= score["value"] <= score["high"]
        assert score["low"] < score["high"]
    assert execute(["eval", folder, "--limit", "4", "--tasks", "texts", "--device", "cpu"]) == 0
    heading, line = capsys.readouterr().out.splitlines()
    assert "95 % interval" in heading
    assert f"{told['scores'][2]['value']:.4g}" in line


def test_bits_per_byte_are_of_the_whole_text(reader):
    """Likelihood of all texts over their bytes."""
    from nanochat import corpus

    texts = corpus.documents(3, seed=evaluation.TEXTS_SEED)
    (score,) = evaluation.evaluate(reader, ("texts",), limit=3)
    bits = -sum(reader.text_likelihoods(texts)) / math.log(2)
    assert score.value == pytest.approx(bits / sum(len(text.encode()) for text in texts))


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--tasks", "kinds", "--limit", "0"], "a limit of at least 1"),
        (["--batch-size", "0"], "--batch-size is at least 1"),
        (["--tag", "d9"], "no checkpoint 'd9'"),
        (["--tasks", "hellaswag"], "run `uv sync --extra eval`"),
    ],
)
def test_what_cannot_be_asked_is_refused(folder, flags, sentence, capsys, monkeypatch):
    """In one sentence, the missing harness too."""
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    assert execute(["eval", folder, "--device", "cpu", *flags]) == 2
    (said,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("fractal: ")]
    assert sentence in said


RESULTS = {
    "group_subtasks": {"both": ["one", "two"], "one": [], "two": []},
    "results": {
        "both": {"acc,none": 0.5, "acc_stderr,none": 0.1},
        "one": {"alias": "one", "acc,none": 0.75, "acc_stderr,none": 0.25, "odd,none": 3.0},
        "two": {
            "ter,none": 8.0,
            "ter_stderr,none": 0.5,
            "f1,strict": 2.0,
            "f1_stderr,strict": "N/A",
        },
        "texts": {"bits,none": 1.5, "perplexity,none": 2**1.5, "odd,none": 7.0},
    },
    "samples": {
        "one": [{"filter": "none", "acc": float(i != 0), "odd": 3.0} for i in range(4)],
        "two": [{"filter": "none", "ter": 8.0}, {"filter": "strict", "f1": 2.0}],
        "texts": [
            {"filter": "none"} | dict.fromkeys(("bits", "perplexity", "odd"), (nats, 2))
            for nats in (-2 * math.log(2), -4 * math.log(2))
        ],
    },
}


def test_no_number_of_the_harness_is_without_its_interval():
    """Shares get the exact one, others that of the standard error, and what has none is left out."""
    assert harness_scores(RESULTS, "one") == [share("one", "acc", 3, 4)]
    assert harness_scores(RESULTS, "two") == [Score("two", "ter", 8.0, 7.02, 8.98, 1)]
    assert len(harness_scores(RESULTS, "both")) == 2
    bits, perplexity = harness_scores(RESULTS, "texts")
    assert (bits.value, bits.low, bits.high) == pytest.approx((1.5, 1.0, 2.0))
    ends = perplexity.value, perplexity.low, perplexity.high
    assert ends == pytest.approx((2**1.5, 2.0, 4.0))


def stand_in(monkeypatch, ask) -> None:
    """A harness that knows the tasks one and two, and calls `ask` with the model."""
    api, tasks = ModuleType("lm_eval.api.model"), ModuleType("lm_eval.tasks")
    api.LM = object
    tasks.TaskManager = lambda include_path: SimpleNamespace(all_tasks=["one", "two"])
    package = ModuleType("lm_eval")
    package.evaluator = SimpleNamespace(simple_evaluate=ask)
    for name, module in {"": package, ".api.model": api, ".tasks": tasks}.items():
        monkeypatch.setitem(sys.modules, f"lm_eval{name}", module)


def test_the_harness_asks_the_model(reader, monkeypatch):
    """Its three kinds of requests, by a stand-in for it; built-in tasks beside them."""

    def ask(model, tasks, limit, **options):
        requests = [SimpleNamespace(args=pair) for pair in PAIRS]
        assert model.loglikelihood(requests) == reader.likelihoods(PAIRS)
        texts = [SimpleNamespace(args=("A bill.",))]
        assert model.loglikelihood_rolling(texts) == reader.text_likelihoods(["A bill."])
        wishes = [{"until": "e", "max_gen_toks": 5}, {"until": ["e", "x"], "do_sample": False}, {}]
        said = model.generate_until([SimpleNamespace(args=("A bill", wish)) for wish in wishes])
        assert len(said[0]) <= len(said[2])
        assert "e" not in said[0] + said[1]
        assert (tasks, limit) == (["one", "two"], 2)
        return RESULTS

    stand_in(monkeypatch, ask)
    scores = evaluation.evaluate(reader, ("one", "sums", "two"), limit=2)
    assert [score.task for score in scores] == ["sums", "one", "two"]
    with pytest.raises(Refused, match="did you mean one"):
        evaluation.evaluate(reader, ("onee",))


def test_what_the_harness_cannot_do_is_said_in_a_sentence(reader, monkeypatch):
    """A network that is not there, and answers at random."""

    def fails(**options):
        raise ConnectionError("no route\nand more")

    stand_in(monkeypatch, fails)
    with pytest.raises(Refused, match=r"one could not be asked \(no route\); check the network"):
        evaluation.evaluate(reader, ("one",))

    def draws(model, **options):
        wishes = {"do_sample": True, "temperature": 0.7}
        return model.generate_until([SimpleNamespace(args=("A bill", wishes))])

    stand_in(monkeypatch, draws)
    with pytest.raises(Refused, match="draws answers at random"):
        evaluation.evaluate(reader, ("one",))


TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
"""
KINDS = {
    "choose": 'output_type: multiple_choice\ndoc_to_choice: "{{choices}}"\ndoc_to_target: "{{gold}}"\n'
    "metric_list: [{metric: acc}, {metric: acc_norm}]\n",
    "say": 'output_type: generate_until\ndoc_to_target: "{{choices[0]}}"\n'
    'generation_kwargs: {until: ["."], max_gen_toks: 4}\nmetric_list: [{metric: exact_match}]\n',
    "read": 'output_type: loglikelihood_rolling\ndoc_to_target: "{{question}}"\n'
    "metric_list: [{metric: bits_per_byte}]\n",
}


def test_the_real_harness_asks_a_checkpoint(folder, reader, tmp_path, monkeypatch, capsys):
    """Local tasks of all three kinds, without a network, from the command line."""
    pytest.importorskip("lm_eval", reason="the harness (uv sync --extra eval) is 150 MB more")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    rows = [
        {"question": f"Who paid bill {i}?", "choices": [" Ada", " Bo", " nobody"], "gold": i % 3}
        for i in range(6)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in rows))
    for name, rest in KINDS.items():
        (tmp_path / f"{name}.yaml").write_text(TASK.format(name=name, data=data) + rest)
    flags = ["--tasks", *KINDS, "--task-folder", str(tmp_path), "--limit", "5", "--json"]
    assert execute(["eval", folder, "--device", "cpu", *flags]) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    found = {(score["task"], score["metric"]): score for score in scores}
    pairs = [(row["question"], choice) for row in rows[:5] for choice in row["choices"]]
    nats = np.reshape([nats for nats, _ in reader.likelihoods(pairs)], (5, 3))
    right = int((nats.argmax(1) == np.arange(5) % 3).sum())
    assert found["choose", "acc"] == vars(share("choose", "acc", right, 5))
    assert ("choose", "acc_norm") in found
    assert found["say", "exact_match"]["count"] == 5
    texts = [row["question"] for row in rows[:5]]
    bits = -sum(reader.text_likelihoods(texts)) / math.log(2)
    bytes_ = sum(len(text.encode()) for text in texts)
    assert found["read", "bits_per_byte"]["value"] == pytest.approx(bits / bytes_)
    for score in scores:
        assert score["low"] <= score["value"] <= score["high"]


def test_published_tasks_are_asked_as_the_harness_defines_them(reader, monkeypatch):
    """HellaSwag and ARC with made-up rows in the form of theirs: context, spaces, right answer."""
    reason = "the harness (uv sync --extra eval) is 150 MB more"
    datasets = pytest.importorskip("datasets", reason="reads the rows; uv sync --extra data")
    pytest.importorskip("lm_eval", reason=reason)
    ends = ["pays the bill.", "signs it.", "leaves.", "sleeps."]
    swag = [
        {"ind": i, "activity_label": "Bills", "ctx_a": "A man reads.", "ctx_b": "he", "label": "2"}
        | {"ctx": "A man reads. he", "endings": ends, "split": "val", "source_id": f"{i}"}
        for i in range(3)
    ]
    arc = [
        {"id": f"{i}", "question": "Who pays?", "answerKey": "B"}
        | {"choices": {"text": ["Ada", "Bo", "nobody"], "label": ["A", "B", "C"]}}
        for i in range(3)
    ]

    def load(path, name=None, **options):
        rows = datasets.Dataset.from_list(swag if "hellaswag" in path else arc)
        return datasets.DatasetDict(dict.fromkeys(("train", "validation", "test"), rows))

    monkeypatch.setattr(datasets, "load_dataset", load)
    tasks = ("hellaswag", "arc_easy", "arc_challenge")
    found = {(s.task, s.metric): s for s in evaluation.evaluate(reader, tasks, limit=2)}
    assert set(found) == {(task, metric) for task in tasks for metric in ("acc", "acc_norm")}
    assert {score.count for score in found.values()} == {2}
    asked = {
        "hellaswag": [("Bills: A man reads. He", f" {end}") for end in ends],
        "arc_easy": [("Question: Who pays?\nAnswer:", f" {x}") for x in ("Ada", "Bo", "nobody")],
    }
    for task, right in (("hellaswag", 2), ("arc_easy", 1)):
        nats = [nats for nats, _ in reader.likelihoods(asked[task])]
        assert found[task, "acc"].value == float(np.argmax(nats) == right)
