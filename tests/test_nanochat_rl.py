"""Learning from rewards: what is drawn, what is learned, how it is measured, and resuming."""

import dataclasses
import json
import math
import os
import shutil
import signal
from pathlib import Path
from random import Random

import pytest
import torch
from nanochat.checkpoint_manager import load_model
from nanochat.cli import run
from nanochat.common import Refused
from nanochat.engine import Engine
from scripts import chat_rl
from scripts.chat_rl import gain_interval, interval, objective, pass_at, rollout, seed_of
from stagebase import weights
from tasks.builtin import KINDS, Lists
from tasks.common import Task

pytestmark = pytest.mark.usefixtures("one_thread")

RL = chat_rl.Config(
    device_type="cpu",
    data="builtin",
    device_batch_size=4,
    num_samples=8,
    examples_per_step=2,
    max_new_tokens=6,
    num_iterations=4,
    init_lr_frac=0.5,
    eval_every=2,
    save_every=-1,
    eval_examples=3,
)


class Vowels(Task):
    """Answers that hold a letter; about half of what an untrained model says does."""

    eval_type = "generative"

    def num_examples(self) -> int:
        return 6

    def get_example(self, index: int):
        turns = [("user", f"Say {index}."), ("assistant", "a")]
        return {"messages": [{"role": role, "content": text} for role, text in turns]}

    def evaluate(self, problem, completion: str) -> int:
        return int("e" in completion)


@pytest.fixture
def base(base, monkeypatch) -> Path:
    monkeypatch.setattr(chat_rl, "tasks", lambda data: (Vowels(), Vowels()))
    return base


# Answers


def test_answers_are_drawn_with_seeds_of_their_own(base):
    """Known values of the seeds; other answers in each round, step and question, and again the same."""
    assert [seed_of(0, 0, 0), seed_of(1, 2, 3)] == [
        hash((0, 0, 0)) & 0x7FFFFFFF,
        hash((1, 2, 3)) & 0x7FFFFFFF,
    ]
    assert len({seed_of(s, e, t) for s in range(5) for e in range(5) for t in range(5)}) == 125
    model, tokenizer, _ = load_model("sft", "cpu", phase="eval")
    engine = Engine(model, tokenizer)
    rows = chat_rl.answers(engine, Vowels(), 1, 0, RL)[0]
    assert rows == chat_rl.answers(engine, Vowels(), 1, 0, RL)[0]
    assert rows[:4] != rows[4:]
    assert rows != chat_rl.answers(engine, Vowels(), 1, 1, RL)[0]


def test_only_what_the_model_said_is_learned(base):
    """The targets are the answers' tokens, neither the prompt nor the filling nor the end."""
    model, tokenizer, _ = load_model("sft", "cpu", phase="eval")
    engine = Engine(model, tokenizer)
    drawn = rollout(engine, Vowels(), 0, 0, RL)
    rows, masks, rewards = chat_rl.answers(engine, Vowels(), 0, 0, RL)
    assert drawn.rewards.tolist() == rewards
    for row, mask, inputs, targets in zip(rows, masks, drawn.inputs, drawn.targets, strict=True):
        said = [token for token, spoken in zip(row, mask, strict=True) if spoken]
        assert [t for t in targets.tolist() if t >= 0] == said
        assert inputs.tolist()[: len(row) - 1] == row[: drawn.inputs.size(1)][: len(row) - 1]
    end = tokenizer.encode_special("<|assistant_end|>")
    assert not (drawn.targets == end).any()


def test_the_objective_is_the_policy_gradient(base):
    """Summed over its passes it is the formula worked out answer by answer."""
    model, tokenizer, _ = load_model("sft", "cpu", phase="train")
    drawn = rollout(Engine(model, tokenizer), Vowels(), 2, 0, RL)
    assert 0 < drawn.rewards.mean() < 1
    expected = 0.0
    mean = float(drawn.rewards.mean())
    for part in (slice(0, 4), slice(4, 8)):
        tokens = int((drawn.targets[part] >= 0).sum())
        for inputs, targets, reward in zip(
            drawn.inputs[part], drawn.targets[part], drawn.rewards[part], strict=True
        ):
            with torch.no_grad():
                log_p = model.forward(inputs[None])[0].log_softmax(-1)
            for place, token in enumerate(targets.tolist()):
                if token >= 0:
                    worth = float(reward) - mean
                    expected -= float(log_p[place, token]) * worth / (tokens * 2 * 3)
    losses = [loss.detach() for loss in objective(model, drawn, passes=2, questions=3)]
    assert len(losses) == 2
    assert float(sum(losses)) == pytest.approx(expected, abs=1e-5)
    alike = dataclasses.replace(drawn, rewards=torch.ones(8))
    assert all(float(loss.detach()) == 0 for loss in objective(model, alike, 2, 3))


# Measures


def test_a_pass_is_counted_without_favour():
    """Against all ways to choose k of the answers."""
    assert pass_at(0, 8, 3) == 0
    assert pass_at(8, 8, 3) == 1
    assert pass_at(2, 8, 1) == pytest.approx(0.25)
    assert pass_at(2, 8, 8) == 1
    assert pass_at(1, 4, 2) == pytest.approx(0.5)


def test_intervals_are_the_published_ones():
    """Newcombe's example, 81 of 263; nothing right; and no gain lies in the middle of its own."""
    assert interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    low, high = interval(0.0, 20)
    assert low == 0
    assert high == pytest.approx(0.1611, abs=1e-4)


def test_a_gain_is_that_of_the_same_questions():
    """Its limits are narrow where all gain alike, never meet, and hold nineteen of twenty truths."""
    unlike = [i / 49 for i in range(50)]
    low, high = gain_interval([0.5 * x for x in unlike], [0.5 * x + 0.3 for x in unlike])
    assert 0.2 < low < 0.3 < high < 0.36
    low, high = gain_interval([0.0] * 8, [0.0] * 8)
    assert -low == pytest.approx(high, abs=0.05)
    assert high > 0.2
    rng, held = Random(1), 0
    for _ in range(200):
        before = [rng.choice((0.0, 0.1, 0.5)) for _ in range(60)]
        after = [min(1.0, x + (rng.random() < 0.4) * 0.5) for x in before]
        low, high = gain_interval(before, after)
        held += low <= 0.4 * 0.5 <= high
    assert held >= 190


def test_intervals_hold_the_mean_they_are_of():
    """At least nineteen of twenty do, with several answers a question of unlike difficulty."""
    rng, held = Random(0), 0
    for _ in range(400):
        chances = [rng.choice((0.05, 0.2, 0.6)) for _ in range(40)]
        mean = sum(sum(rng.random() < p for _ in range(8)) / 8 for p in chances) / 40
        low, high = interval(mean, 40)
        held += low <= (0.05 + 0.2 + 0.6) / 3 <= high
    assert held >= 380


def test_any_things_of_the_right_kinds_are_right():
    """In their order, as a list; what is shown is right itself."""
    for row in Lists("test", stop=20):
        kinds, answer = row["kinds"], row["messages"][1]["content"]
        others = [KINDS[kind].split()[-1] for kind in kinds]
        first, second, third = (f"{'an' if w[0] in 'aeiou' else 'a'} {w}" for w in others)
        said = f"A{first[1:]}, {second} and {third}."
        judge = Lists("test").evaluate
        assert judge(row, answer) == judge(row, said) == 1
        wrong = (said[:-1], said.replace(others[0], others[1]), f"{said} {said}", "", "A list.")
        assert not any(judge(row, text) for text in wrong)


# Learning


def test_rewards_rise(base):
    """Also on what is measured with the same seeds before and after."""
    config = dataclasses.replace(RL, num_iterations=25, eval_every=-1, eval_examples=6)
    figures = chat_rl.main(config)
    assert figures["reward_after"] > figures["reward_before"] + 0.2
    low, high = figures["gain_limits"]
    assert low < figures["gain"] == figures["reward_after"] - figures["reward_before"] < high
    assert len(figures["rewards"]) == 25
    assert sum(figures["rewards"][-5:]) > sum(figures["rewards"][:5])
    passes = [figures[f"pass@{k}"] for k in range(1, 5)]
    assert passes == sorted(passes)
    assert passes[0] == pytest.approx(figures["reward_after"])


def test_the_last_step_is_saved(base):
    """With the shape alone in its meta file, as the reference does; the stage is reported."""
    figures = chat_rl.main(dataclasses.replace(RL, save_every=2))
    folder = base / "chatrl_checkpoints" / "d2"
    assert figures["step"] == 3
    assert list(json.loads((folder / "meta_000003.json").read_text())) == ["model_config"]
    assert {path.name for path in folder.glob("*.pt")} == {
        *("model_000002.pt", "model_000003.pt", "optim_000002_rank0.pt")
    }
    assert "- reward_after: " in (base / "report" / "chat-rl.md").read_text()
    model, _, _ = load_model("rl", "cpu", phase="eval")
    assert not math.isnan(float(model.lm_head.weight.detach().sum()))


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(base, monkeypatch, capsys):
    """Ctrl-C saves after the step it came in; resuming ends with the same bits and figures."""
    folder = base / "chatrl_checkpoints" / "d2"
    straight = chat_rl.main(RL)
    expected = weights(folder, 3)
    shutil.rmtree(folder)
    update, calls = chat_rl.Learning.update, []

    def pressed(self, steps):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(self, steps)

    with monkeypatch.context() as patch:
        patch.setattr(chat_rl.Learning, "update", pressed)
        flags = [f"--{k}={v}" for k, v in vars(RL).items() if v is not None]
        assert run(chat_rl.main, chat_rl.Config, flags) == 130
    assert "--resume_from_step=1" in capsys.readouterr().out
    assert len(calls) == 2
    figures = chat_rl.main(dataclasses.replace(RL, resume_from_step=1))
    assert figures == straight
    resumed = weights(folder, 3)
    assert all(torch.equal(resumed[key], expected[key]) for key in expected)
    with pytest.raises(Refused, match="no interrupted run"):
        chat_rl.main(dataclasses.replace(RL, resume_from_step=3))


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"num_samples": 6}, "--num_samples=6 is no multiple of 4"),
        ({"device_batch_size": 0}, "is no multiple of 0"),
        ({"examples_per_step": 0}, "--examples_per_step=0"),
        ({"num_iterations": 0}, "there is no step to make"),
        ({"max_new_tokens": 0}, "must be at least 1"),
        ({"source": "mid"}, "no checkpoint under .*mid_checkpoints"),
    ],
)
def test_flags_that_do_not_fit_are_refused(base, flags, sentence):
    """Before anything is written."""
    with pytest.raises(Refused, match=sentence):
        chat_rl.main(dataclasses.replace(RL, **flags))
    assert not (base / "chatrl_checkpoints").exists()


def test_out_of_memory_names_the_flag(base, monkeypatch):
    """The one that lowers what a batch takes."""

    def fails(*args):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(chat_rl, "rollout", fails)
    with pytest.raises(Refused, match="lower --device_batch_size, which is 4"):
        chat_rl.main(RL)


def test_lists_are_the_questions_offline():
    """Others are learned from than are held out, and than settings are chosen by."""
    learned, held_out = chat_rl.tasks("builtin")
    sets = (learned, Lists("validation"), held_out)
    parts = [{row["messages"][0]["content"] for row in task} for task in sets]
    assert [len(part) for part in parts] == [912, 384, 384]
    assert len(set.union(*parts)) == 1680
    with pytest.raises(Refused, match="say builtin"):
        chat_rl.tasks("other")


def test_the_defaults_are_the_references():
    """Names and values of the flags."""
    own = {"data", "resume_from_step", "device_type", "num_iterations"}
    assert {k: v for k, v in vars(chat_rl.Config()).items() if k not in own} == {
        **{"run": "dummy", "source": "sft", "model_tag": None, "step": None},
        **{"dtype": "bfloat16", "device_batch_size": 8, "examples_per_step": 16},
        **{"num_samples": 16, "max_new_tokens": 256, "temperature": 1.0, "top_k": 50},
        **{"unembedding_lr": 0.004, "embedding_lr": 0.2, "matrix_lr": 0.02},
        **{"weight_decay": 0.0, "init_lr_frac": 0.05, "num_epochs": 1, "save_every": 60},
        **{"eval_every": 60, "eval_examples": 400},
    }
