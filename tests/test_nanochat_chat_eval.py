"""How chat models are evaluated: by letters, by what they write, and what is made of it."""

import dataclasses
import itertools
import random
from types import SimpleNamespace

import pytest
import torch
from nanochat import corpus
from nanochat.cli import config_from
from nanochat.common import Refused
from nanochat.engine import Engine
from nanochat.gpt import GPT, GPTConfig
from nanochat.shares import exact_interval
from nanochat.tokenizer import RustBPETokenizer
from nanochat_golden import alive
from scripts import chat_eval
from scripts.chat_eval import Asking, Config, Score, chat_core, run_chat_eval, score_of, tasks_of
from tasks import humaneval
from tasks.arc import ARC
from tasks.common import Task
from tasks.gsm8k import GSM8K, last_text
from tasks.humaneval import HumanEval
from tasks.mmlu import MMLU

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def single(monkeypatch):
    """A single process."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "WANDB_RUN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def tokenizer() -> RustBPETokenizer:
    return RustBPETokenizer.train_from_iterator(corpus.documents(100), 400)


class Chooser(torch.nn.Module):
    """A model that likes one letter where an answer begins, another elsewhere, and a word most."""

    def __init__(self, tokenizer, letter: str, elsewhere: str = "A", sequence_len: int = 2048):
        super().__init__()
        self.config = SimpleNamespace(sequence_len=sequence_len)
        self.begins = tokenizer.encode_special("<|assistant_start|>")
        self.ids = {name: tokenizer.encode(name)[0] for name in (letter, elsewhere, "bird")}
        self.letter, self.elsewhere = letter, elsewhere
        self.widths: list[int] = []

    def get_device(self) -> torch.device:
        return torch.device("cpu")

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        self.widths.append(len(ids))
        logits = torch.zeros(*ids.shape, 400)
        logits[..., self.ids["bird"]] = 9.0
        here = (ids == self.begins)[..., None]
        for name, where in ((self.elsewhere, ~here), (self.letter, here)):
            logits[..., [self.ids[name]]] += 5.0 * where
        return logits


def engine_of(model, tokenizer, answers=None) -> Engine:
    """An engine whose answers are given, a list of them for each prompt in turn."""
    engine = Engine(model, tokenizer)
    if answers is not None:
        left = iter(answers)

        def generate_batch(prompt, num_samples=1, **sampling):
            rows = [[*prompt, *tokenizer.encode(text)] for text in next(left)]
            assert len(rows) == num_samples
            return rows, []

        engine.generate_batch = generate_batch
    return engine


class Sums(Task):
    """Twelve sums, answered by a number."""

    eval_type = "generative"

    def num_examples(self) -> int:
        return 12

    def get_example(self, index: int):
        turns = [("user", f"{index} + 1"), ("assistant", f"{index + 1}")]
        return {"messages": [{"role": role, "content": text} for role, text in turns]}

    def evaluate(self, problem, completion: str) -> bool:
        return completion == problem["messages"][-1]["content"]


# Choices


@pytest.mark.parametrize("batch_size", [1, 3, 8, 100])
def test_the_likeliest_letter_is_the_answer(tokenizer, batch_size):
    """Where the answer begins, among the letters of the question: of eight, two are B."""
    model = Chooser(tokenizer, "B")
    score = score_of(
        MMLU("all", "test", "builtin"), engine_of(model, tokenizer), Asking(batch_size)
    )
    assert (score.passed, len(score.right), score.unanswered) == (2, 8, 0)
    assert max(model.widths) == min(batch_size, 8)
    assert score.limits == exact_interval(2, 8)


def test_only_letters_of_the_question_are_chosen_from(tokenizer):
    """E and 4 answer what has them; of letters that are alike the first is taken."""
    arc = ARC("ARC-Easy", "test", "builtin")
    assert [answer_of(problem) for problem in arc] == ["A", "C", "4", "B", "E", "B"]
    for letter, right in (("E", [1, 0, 0, 0, 1, 0]), ("4", [1, 0, 1, 0, 0, 0])):
        engine = engine_of(Chooser(tokenizer, letter), tokenizer)
        assert score_of(arc, engine, Asking(4)).right == right


def answer_of(problem) -> str:
    return problem["messages"][-1]["content"]


def test_batches_change_no_answer(tokenizer):
    """Of a model that reads what it is given, whatever stands in the rows beside."""
    shape = GPTConfig(256, 400, n_layer=2, n_head=2, n_kv_head=1, n_embd=32)
    model = alive(GPT(shape))
    task = ARC("ARC-Easy", "test", "builtin")
    found = [
        score_of(task, Engine(model, tokenizer), Asking(batch_size)).right
        for batch_size in (1, 2, 4, 6)
    ]
    assert found == [found[0]] * 4
    assert model.training


def test_what_does_not_fit_is_wrong_and_counted(tokenizer):
    """Of choices and of what is written; the others are answered."""
    mmlu = MMLU("all", "test", "builtin")
    lengths = [len(tokenizer.render_for_completion(problem)) for problem in mmlu]
    room = sorted(lengths)[3]
    model = Chooser(tokenizer, "B", sequence_len=room)
    score = score_of(mmlu, engine_of(model, tokenizer), Asking(3))
    assert len(score.right) == 8
    assert score.unanswered == sum(length > room for length in lengths) > 0
    fitting = [p for p, n in zip(mmlu, lengths, strict=True) if n <= room]
    assert score.passed == sum(answer_of(p) == "B" for p in fitting)
    said = chat_eval.table({"MMLU": score}, {})
    assert f"| {score.passed} of 8, {score.unanswered} too long |" in said
    gsm = GSM8K("main", "test", "builtin")
    assert score_of(
        gsm, engine_of(Chooser(tokenizer, "B", sequence_len=8), tokenizer), Asking()
    ) == (Score([0] * 4, 1, 4))


def test_an_answer_is_one_token():
    """Another tokenizer is refused rather than half a letter taken."""
    small = SimpleNamespace(
        encode=lambda text: [1, 2],
        encode_special=lambda name: 0,
        render_for_completion=lambda problem: [0],
        get_bos_token_id=lambda: 0,
    )
    model = SimpleNamespace(
        config=SimpleNamespace(sequence_len=8),
        get_device=lambda: torch.device("cpu"),
        logits_at=lambda ids, rows, places: torch.zeros(len(rows), 9),
        training=False,
        eval=lambda: None,
        train=lambda mode: None,
    )
    with pytest.raises(Refused, match="2 tokens and must be one"):
        score_of(MMLU("all", "test", "builtin"), Engine(model, small), Asking())


# Writing


def test_an_answer_is_right_if_any_sample_is(tokenizer):
    """All of a question are drawn at once; only the first questions are asked if told so."""
    answers = [[str(i + 1 if (i + n) % 3 == 0 else 0) for n in range(2)] for i in range(5)]
    engine = engine_of(Chooser(tokenizer, "B"), tokenizer, answers)
    score = score_of(Sums(), engine, Asking(num_samples=2, max_problems=5))
    assert score == Score([1, 0, 1, 1, 0], 2)
    assert score.accuracy == 0.6


def test_solutions_are_right_as_the_tasks_have_them(tokenizer, sandbox):
    """What each task holds for right is, as a model would write it; programs are run."""
    model = Chooser(tokenizer, "B")
    for task, say in (
        (GSM8K("main", "test", "builtin"), last_text),
        (HumanEval("builtin"), answer_of),
    ):
        engine = engine_of(model, tokenizer, [[say(problem)] for problem in task])
        assert score_of(task, engine, Asking()).accuracy == 1.0
        engine = engine_of(model, tokenizer, [["I do not know."] for _ in task])
        assert score_of(task, engine, Asking()).accuracy == 0.0


def test_passes_are_those_of_all_ways_to_draw():
    """pass@k is how often k of the samples, drawn without replacement, hold a right one."""
    rng = random.Random(0)
    drawn = [[rng.random() < 0.3 for _ in range(6)] for _ in range(5)]
    found = Score([sum(row) for row in drawn], 6).passes()
    assert list(found) == [f"pass@{k}" for k in range(1, 6)]
    for k in range(1, 6):
        ways = [any(pick) for row in drawn for pick in itertools.combinations(row, k)]
        mean, low, high = found[f"pass@{k}"]
        assert mean == pytest.approx(sum(ways) / len(ways))
        assert low < mean < high
    assert Score([1, 0]).passes() == {}


def test_processes_share_the_questions(tokenizer, monkeypatch):
    """Each asks its own, of both kinds, and all together ask every one."""
    model, parts = Chooser(tokenizer, "B"), []
    for rank in range(3):
        for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", 3)):
            monkeypatch.setenv(name, str(value))
        mmlu = score_of(MMLU("all", "test", "builtin"), engine_of(model, tokenizer), Asking(2))
        own = range(rank, 12, 3)
        engine = engine_of(model, tokenizer, [[str(i + 1)] for i in own])
        parts.append((len(mmlu.right), mmlu.passed, score_of(Sums(), engine, Asking()).passed))
    assert [sum(column) for column in zip(*parts, strict=True)] == [8, 2, 12]


# What is made of it


def test_chat_core_is_the_mean_above_guessing():
    """Only where all six were asked; a quarter is nothing in three of them."""
    half = {name: Score([1, 0, 1, 0]) for name in chat_eval.TASKS}
    core, limits = chat_core(half)
    assert core == pytest.approx((3 * (0.5 - 0.25) / 0.75 + 3 * 0.5) / 6)
    assert limits[0] < core < limits[1]
    guessed = {n: Score([1, 0, 0, 0]) if n in chat_eval.CHANCE else Score([0] * 4) for n in half}
    assert chat_core(guessed)[0] == 0
    assert chat_core({n: s for n, s in half.items() if n != "MMLU"}) is None


ASK = Config(
    source="sft", data="builtin", device_type="cpu", max_problems=2, max_new_tokens=4, batch_size=2
)


def test_a_model_is_asked_everything_offline(base, sandbox, capsys):
    """A table with the limits of every accuracy, and a section for each source of the report."""
    figures = chat_eval.main(ASK)
    assert {*chat_eval.TASKS, "ChatCORE"} <= figures.keys()
    said = capsys.readouterr().out
    for name in chat_eval.TASKS:
        low, high = exact_interval(round(2 * figures[name]), 2)
        assert f"| {name} | {figures[name]:.4f} | {low:.4f} to {high:.4f} |" in said
    section = (base / "report" / "chat-evaluation-sft.md").read_text()
    assert f"- ChatCORE (builtin): {figures['ChatCORE']:.4f}" in section
    assert "| ChatCORE |" in section


def test_some_tasks_make_no_chat_core(base, capsys):
    """And a model from elsewhere goes into no report."""
    some = dataclasses.replace(ASK, source="base", task_name="ARC-Easy|SpellingBee", num_samples=3)
    figures = chat_eval.main(dataclasses.replace(some, temperature=1.0))
    assert set(figures) - {"ARC-Easy unanswered", "SpellingBee unanswered"} == {
        *("ARC-Easy", "SpellingBee", "SpellingBee pass@1", "SpellingBee pass@2")
    }
    report = base / "report"
    assert (report / "chat-evaluation-base.md").exists()
    (report / "chat-evaluation-base.md").unlink()
    before = sorted(report.iterdir())
    folder = str(base / "chatsft_checkpoints")
    chat_eval.main(dataclasses.replace(some, source=folder))
    assert sorted(report.iterdir()) == before


def test_one_task_is_asked_from_elsewhere(tokenizer):
    """As the reference's function is called, with the model, its tokenizer and their engine."""
    model = Chooser(tokenizer, "C")
    engine = Engine(model, tokenizer)
    found = run_chat_eval(
        "MMLU", model, tokenizer, engine, batch_size=4, max_problems=6, data="builtin"
    )
    assert found == pytest.approx(2 / 6)
    with pytest.raises(Refused, match="unknown task 'MMLU2'"):
        run_chat_eval("MMLU2", model, tokenizer, engine)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"source": ""}, "which model"),
        ({"task_name": "ARC-Easy|Riddles"}, "unknown task 'Riddles', choose among ARC-Easy,"),
        ({"data": "mine"}, "no questions are called 'mine'"),
        ({"max_problems": 0}, "at least 1"),
        ({"num_samples": 0}, "at least 1"),
        ({"device_type": "abacus", "task_name": "MMLU"}, "unknown device"),
        ({"source": "rl", "task_name": "MMLU"}, "no checkpoint under"),
        ({"step": 9, "task_name": "MMLU"}, "no step 9"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(base, flags, sentence):
    """And nothing is written."""
    with pytest.raises(Refused, match=sentence) as caught:
        chat_eval.main(Config(**vars(ASK) | flags))
    assert "\n" not in str(caught.value)
    assert not list((base / "report").glob("chat-*"))


@pytest.mark.parametrize("names", [None, "GSM8K|HumanEval"])
def test_without_a_sandbox_no_model_is_loaded(base, monkeypatch, names):
    """Programs are not run outside of one, and nobody waits for the other tasks first."""

    def none() -> None:
        raise Refused("there is no sandbox here")

    monkeypatch.setattr(humaneval, "require_sandbox", none)
    monkeypatch.setattr(chat_eval, "load_model", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(Refused, match="no sandbox"):
        chat_eval.main(Config(**vars(ASK) | {"task_name": names}))
    assert set(tasks_of("ARC-Easy|MMLU", "builtin")) == {"ARC-Easy", "MMLU"}


def test_the_flags_are_the_references():
    """Letters, names and values."""
    assert {k: v for k, v in vars(Config()).items() if k != "data"} == {
        "source": "",
        "task_name": None,
        "dtype": "bfloat16",
        "temperature": 0.0,
        "max_new_tokens": 512,
        "num_samples": 1,
        "top_k": 50,
        "batch_size": 8,
        "model_tag": None,
        "step": None,
        "max_problems": None,
        "device_type": "",
    }
    words = "-i rl -a GSM8K|MMLU -d float32 -t 0.5 -m 9 -n 3 -k 7 -b 2 -g d4 -s 5 -x 6"
    assert config_from(Config, [*words.split(), "--device-type=cpu", "--data=hf"]) == Config(
        *("rl", "GSM8K|MMLU", "float32", 0.5, 9, 3, 7, 2, "d4", 5, 6, "cpu", "hf")
    )
