"""Mid-training: conversations end to end, its schedules, and resuming."""

import dataclasses
import itertools
import json

import pytest
import torch
from nanochat.common import Refused
from nanochat.dataloader import mid_data_loader
from nanochat.tokenizer import get_tokenizer
from scripts import chat_sft, mid_train
from stagebase import assert_resumes
from tasks.identity import TOPICS, Identity
from tasks.identity import Config as IdentityConfig
from tasks.identity import main as write_identity

pytestmark = pytest.mark.usefixtures("one_thread")

MID = mid_train.Config(
    device_type="cpu",
    data="builtin",
    max_seq_len=32,
    device_batch_size=2,
    total_batch_size=128,
    num_iterations=11,
    eval_every=3,
    eval_tokens=64,
)


# Batches


def test_conversations_lie_end_to_end(base):
    """Every token is a target except the first of each batch, and a new epoch follows the last."""
    tokenizer, rows = get_tokenizer(), Identity(7)
    stream = list(itertools.chain(*(tokenizer.render_conversation(row)[0] for row in rows)))
    ring = itertools.cycle(stream)
    states = []
    for inputs, targets, state in itertools.islice(mid_data_loader(rows, tokenizer, 2, 16), 60):
        window = list(itertools.islice(ring, 33))
        assert inputs.flatten().tolist() == window[:-1]
        assert targets.flatten().tolist() == window[1:]
        states.append(state)
    assert [state["batches"] for state in states] == list(range(1, 61))
    ends = [state["ended"] for state in states]
    first = ends.index(True)
    assert ends == sorted(ends)
    assert first <= len(stream) // 33 <= first + 4
    assert max(state["read"] for state in states) < 1


def test_a_state_goes_on_token_for_token(base):
    """From any batch."""
    tokenizer, rows = get_tokenizer(), Identity(5)
    batches = list(itertools.islice(mid_data_loader(rows, tokenizer, 1, 20), 40))
    for number in (0, 7, 30):
        state = json.loads(json.dumps(batches[number][2]))
        rest = mid_data_loader(rows, tokenizer, 1, 20, resume_state_dict=state)
        for old, new in zip(batches[number + 1 :], rest, strict=False):
            assert torch.equal(old[0], new[0])
            assert torch.equal(old[1], new[1])
            assert old[2] == new[2]


def test_processes_share_the_conversations(base, monkeypatch):
    """Each takes every second one."""
    tokenizer, rows = get_tokenizer(), Identity(6)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        own = [tokenizer.render_conversation(rows[i])[0] for i in (rank, rank + 2, rank + 4)]
        inputs, _, _ = next(mid_data_loader(rows, tokenizer, 1, 24))
        assert inputs[0].tolist() == list(itertools.chain(*own))[:24]
    with pytest.raises(Refused, match="no conversations"):
        next(mid_data_loader([], tokenizer, 1, 8))


# Training


def test_the_rate_falls_over_the_last_fifth():
    """Constant before."""
    rates = [mid_train.lr_multiplier(p) for p in (0.0, 0.5, 0.79, 0.8, 0.9, 1.0)]
    assert rates == pytest.approx([1, 1, 1, 1, 0.5, 0])


def test_micro_batches_are_counted(base, monkeypatch):
    """Eleven, one read ahead and two a step, are five steps; momentum and rates are of the stage."""
    seen = []
    update = chat_sft.update

    def watched(model, optimizers, batches, multiplier):
        momentum = optimizers[1].param_groups[0]["momentum"]
        seen.append((len(batches), multiplier, momentum))
        return update(model, optimizers, batches, multiplier)

    monkeypatch.setattr(chat_sft, "update", watched)
    figures = mid_train.main(MID)
    assert figures["step"] == 5
    read = [3, 5, 7, 9, 11]
    assert [row[0] for row in seen] == [2] * 5
    assert [row[1] for row in seen] == pytest.approx(
        [mid_train.lr_multiplier(n / 11) for n in read]
    )
    assert [row[2] for row in seen] == pytest.approx([0.85 + 0.1 * i / 300 for i in range(5)])
    folder = base / "mid_checkpoints" / "d2"
    assert {path.name for path in folder.iterdir()} == {
        *("model_000005.pt", "meta_000005.json", "optim_000005_rank0.pt"),
        *("tokenizer.json", "tokenizer.pkl"),
    }
    meta = json.loads((folder / "meta_000005.json").read_text())
    assert list(meta) == ["step", "val_bpb", "model_config", "user_config"]
    assert meta["val_bpb"] == figures["val_bpb"]
    assert meta["model_config"]["sequence_len"] == 32
    assert "model_tag" not in meta["user_config"]
    assert "- val_bpb: " in (base / "report" / "midtraining.md").read_text()


def test_one_epoch_is_the_default_and_a_dry_run_saves_nothing(base, tmp_path):
    """The run ends when a process has read its last conversation."""
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(json.dumps(row["messages"]) for row in Identity(40)))
    config = dataclasses.replace(MID, data=str(path), num_iterations=-1, dry_run=1)
    figures = mid_train.main(config)
    rows = chat_sft.mixtures(str(path))[0]
    count = sum(len(get_tokenizer().render_conversation(row)[0]) for row in rows)
    assert figures["step"] == pytest.approx(count / 65 / 2, abs=2)
    assert not (base / "mid_checkpoints").exists()


def test_it_learns(base):
    """Bits per byte fall."""
    before = mid_train.main(dataclasses.replace(MID, num_iterations=1, dry_run=1))
    after = mid_train.main(dataclasses.replace(MID, num_iterations=60, dry_run=1))
    assert before["step"] == 0
    assert after["val_bpb"] < 0.8 * before["val_bpb"]


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(base, monkeypatch, capsys):
    """Ctrl-C saves after the step it came in; resuming ends with the same bits."""
    assert_resumes(mid_train, MID, base / "mid_checkpoints" / "d2", monkeypatch, capsys)


def test_what_does_not_fit_is_refused(base, monkeypatch):
    """Batches that do not add up, and a model that does not fit into memory."""
    with pytest.raises(Refused, match="no multiple of the 64 tokens"):
        mid_train.main(dataclasses.replace(MID, total_batch_size=100))
    long = {"max_seq_len": 2048, "total_batch_size": 2 * 2048}
    with pytest.raises(
        Refused, match="is more than the 640 positions of the model; say --max_seq_len=64"
    ):
        mid_train.main(dataclasses.replace(MID, **long))

    def fails(*args):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(chat_sft, "update", fails)
    with pytest.raises(Refused, match="lower --device_batch_size, which is 2"):
        mid_train.main(MID)


def test_the_defaults_are_the_references():
    """Names and values of the flags."""
    own = {"data", "resume_from_step", "save_every"}
    assert {k: v for k, v in vars(mid_train.Config()).items() if k not in own} == {
        **{"run": "dummy", "device_type": "", "model_tag": None, "step": None},
        **{"dtype": "bfloat16", "num_iterations": -1, "max_seq_len": 2048},
        **{"device_batch_size": 32, "unembedding_lr": 0.004, "embedding_lr": 0.2},
        **{"matrix_lr": 0.02, "init_lr_frac": 1.0, "weight_decay": 0.0, "eval_every": 150},
        **{"eval_tokens": 10_485_760, "total_batch_size": 524_288, "dry_run": 0},
    }


# Who the model is


def test_conversations_about_itself_are_the_same_every_time(base):
    """They alternate, answer what was asked, and the splits are drawn apart."""
    train, test = Identity(200), Identity(200, "test")
    assert list(train) == list(Identity(200))
    assert list(train) != list(test)
    assert len({json.dumps(row) for row in train}) > 150
    answers = {a.format(name="Ada") for _, said in TOPICS.values() for a in said}
    for row in Identity(50, name="Ada"):
        roles = [message["role"] for message in row["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert row["messages"][1]["content"] in answers


def test_conversations_about_itself_become_the_file_of_the_mixtures(base):
    """Once; another one is not written over it, and whoever asks for no other is content with it."""
    assert write_identity(IdentityConfig(size=30))["conversations"] == 30
    assert len(chat_sft.mixtures(str(base / "identity_conversations.jsonl"))[0]) == 28
    file = base / "identity_conversations.jsonl"
    own = file.read_text()
    assert write_identity(IdentityConfig(size=30)) == write_identity(IdentityConfig())
    with pytest.raises(Refused, match="is there already"):
        write_identity(IdentityConfig(size=30, name="Ada"))
    assert file.read_text() == own
