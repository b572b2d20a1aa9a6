"""Questions that stand in for data sets without a network, and how answers to them are judged."""

import itertools
import sys
from types import SimpleNamespace

import pytest
from nanochat.common import Refused
from tasks import common, humaneval
from tasks.arc import ARC
from tasks.gsm8k import GSM8K, extract_answer, last_text
from tasks.humaneval import HumanEval
from tasks.mmlu import MMLU


def choices() -> list[common.Task]:
    return [MMLU("all", "test", source="builtin"), ARC("ARC-Easy", "train", source="builtin")]


@pytest.mark.parametrize("task", choices(), ids=["mmlu", "arc"])
def test_a_choice_is_judged_by_its_letter(task):
    """The right letter is one of those offered, every other one is wrong, and all differ."""
    for problem in task:
        question, answer = (message["content"] for message in problem["messages"])
        assert answer in problem["letters"]
        assert all(f"={letter}" in question for letter in problem["letters"])
        right = [letter for letter in problem["letters"] if task.evaluate(problem, letter)]
        assert right == [answer]


def test_the_worked_solutions_come_out_right():
    """The calculator's results are those of the solution, and its last number is the answer."""
    task = GSM8K("main", "test", source="builtin")
    assert len(task) > 3
    for problem in task:
        parts = problem["messages"][-1]["content"]
        for asked, given in itertools.pairwise(parts):
            if asked["type"] == "python":
                assert eval(asked["text"]) == float(given["text"])
        text = last_text(problem)
        assert task.evaluate(problem, text) == 1
        assert task.evaluate(problem, text.replace(extract_answer(text) or "", "-1")) == 0


def test_a_program_is_judged_by_the_tests_of_its_problem(sandbox):
    """Every solution of ours passes, fenced or bare; one that does nothing passes none."""
    task = HumanEval(source="builtin")
    for problem in task:
        program = problem["messages"][-1]["content"]
        assert task.evaluate(problem, program)
        assert task.evaluate(problem, f"Here you are.\n```python\n{program}\n```\nGood luck.")
        assert not task.evaluate(problem, problem["messages"][0]["content"] + "    pass\n")


def test_only_the_imports_at_the_top_are_taken():
    """What the prompt imports may be left out of an answer."""
    prompt = "# a comment\nimport math\nfrom typing import Any\n\n\ndef f():\n    import os\n"
    assert humaneval.imports_of(prompt) == "import math\nfrom typing import Any"
    assert humaneval.code_of("no fence at all ") == "no fence at all"


def test_without_a_sandbox_no_program_is_asked_for(monkeypatch):
    """The task refuses as a whole, before a model has answered anything."""

    def none() -> None:
        raise Refused("there is no sandbox here")

    monkeypatch.setattr(humaneval, "require_sandbox", none)
    with pytest.raises(Refused, match="no sandbox"):
        HumanEval(source="builtin")


def test_rows_of_the_hub_are_read_as_they_lie(monkeypatch):
    """Those of auxiliary_train are one level deeper than the others."""
    row = {"question": "Which?", "choices": ["a", "b", "c", "d"], "answer": 2, "subject": "s"}
    asked = []

    def load_rows(*where):
        asked.append(where)
        return [{"train": row}] if where[1] == "auxiliary_train" else [row]

    monkeypatch.setattr(common, "load_rows", load_rows)
    for subset, split in (("auxiliary_train", "train"), ("all", "test")):
        assert MMLU(subset, split)[0]["messages"][-1]["content"] == "C"
    assert asked == [("cais/mmlu", "auxiliary_train", "train"), ("cais/mmlu", "all", "test")]


def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch):
    """It says what can be done without."""

    def load_dataset(*where, split):
        raise ConnectionError("no route\nto the host")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(
        Refused, match=r"openai/gsm8k cannot be had .no route.; .*builtin"
    ) as caught:
        GSM8K("main", "test")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MMLU("some", "test"), "unknown subset"),
        (lambda: MMLU("auxiliary_train", "test"), "train"),
        (lambda: ARC("ARC-Easy", "train", source="memory"), "hub or builtin"),
    ],
)
def test_what_is_not_there_is_named(make, words):
    """One sentence, before anything is read."""
    with pytest.raises(Refused, match=words):
        make()
