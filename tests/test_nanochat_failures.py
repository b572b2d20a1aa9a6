"""Evaluations that fail between the steps of a stage: they are told of, and cost no training."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
from nanochat import common
from nanochat.common import Refused, of_all
from scripts import base_train, chat_rl, chat_sft, mid_train
from test_nanochat_core import TRAIN
from test_nanochat_mid import MID
from test_nanochat_rl import RL
from test_nanochat_stages import TUNE
from test_nanochat_world import both

pytestmark = pytest.mark.usefixtures("one_thread")

EVALUATED = {"eval_every": 2, "eval_tokens": 64}
STAGES = {
    "base": (base_train, dataclasses.replace(TRAIN, **EVALUATED), "evaluate_bpb", 2, 3),
    "mid": (mid_train, MID, "evaluate_bpb", 2, 3),
    "sft": (chat_sft, dataclasses.replace(TUNE, eval_every=2), "mean_loss", 2, 4),
    "rl": (chat_rl, RL, "evaluate", 3, 4),
}
"""What is run, with what, by what it evaluates, and which calls of that are between its steps."""


def failing(monkeypatch, stage, name: str, number: int, error: Exception) -> None:
    """One call of an evaluation fails."""
    evaluate, calls = getattr(stage, name), []

    def fails(*args):
        calls.append(1)
        if len(calls) == number:
            raise error
        return evaluate(*args)

    monkeypatch.setattr(stage, name, fails)


@pytest.mark.parametrize("source", STAGES)
def test_a_failed_evaluation_costs_no_training(source, base, monkeypatch, capsys):
    """All steps are made and the last is saved; record and report say what is missing."""
    stage, config, name, number, _ = STAGES[source]
    failing(monkeypatch, stage, name, number, OSError("the disk\nis gone"))
    figures = stage.main(config)
    assert Path(figures["checkpoint"], f"model_{figures['step']:06d}.pt").exists()
    lines = (base / "metrics" / f"{source}.1.jsonl").read_text().splitlines()
    (failed,) = (row for row in map(json.loads, lines) if "failed" in row)
    assert failed["reason"] == "the disk is gone"
    said = f"Not measured: {failed['failed']} at step {failed['step']} (the disk is gone)."
    assert said in capsys.readouterr().out
    assert any(said in path.read_text() for path in (base / "report").iterdir())


@pytest.mark.parametrize("source", STAGES)
def test_one_that_fails_at_the_start_is_raised(source, base, monkeypatch):
    """There is no training to lose yet, and it would fail again."""
    stage, config, name, *_ = STAGES[source]
    failing(monkeypatch, stage, name, 1, Refused("there is nothing to ask"))
    with pytest.raises(Refused, match="nothing to ask"):
        stage.main(config)


@pytest.mark.parametrize("source", ["base", "mid", "sft"])
def test_what_fails_at_the_end_is_missing(source, base, monkeypatch):
    """It is not what was measured before."""
    stage, config, name, _, last = STAGES[source]
    failing(monkeypatch, stage, name, last, OSError("gone"))
    figures = stage.main(config)
    assert figures.get("val_bpb", figures.get("val_loss")) in (None, math.inf)


def test_what_fails_after_learning_is_missing(base, monkeypatch):
    """What was learned is there, and what else was measured."""
    stage, config, name, _, last = STAGES["rl"]
    failing(monkeypatch, stage, name, last, OSError("gone"))
    figures = stage.main(config)
    assert Path(figures["checkpoint"], f"model_{figures['step']:06d}.pt").exists()
    assert {"reward_before", "learned_reward_after", "learned_gain"} <= figures.keys()
    assert not {"reward_after", "gain"} & figures.keys()
    said = "Not measured: mean reward held out at step 4 (gone)."
    assert any(said in path.read_text() for path in (base / "report").iterdir())


def test_what_fails_in_one_process_fails_in_both(base):
    """So that none waits for the other for ever; they go on together."""

    def act(rank: int) -> None:
        for error, kind in (
            (Refused("no such question"), Refused),
            (KeyError("x"), RuntimeError),
        ):

            def measure(error=error):
                if rank:
                    raise error
                return rank

            with pytest.raises(kind, match=r"no such question|KeyError: 'x'"):
                common.done_by_all(measure)
        assert common.done_by_all(lambda: rank) == [0, 1] == of_all(rank)

    both(base, act)
