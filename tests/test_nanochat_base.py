"""Base training as a user runs it: schedules, resuming, interruptions, records."""

import dataclasses
import json
import math
import multiprocessing
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
import torch.distributed as dist
from nanochat import checkpoint_manager, cli
from nanochat.common import Refused, StopRequest, tracker
from nanochat.gpt import GPT, GPTConfig
from nanochat.loss_eval import evaluate_bpb
from scripts import base_loss, base_train
from scripts.base_train import Config, Data, iterations, lr_multiplier, muon_momentum
from waiting import until

VOCAB = 70
SMALL = Config(
    depth=1,
    max_seq_len=8,
    model_dim=32,
    device_type="cpu",
    device_batch_size=2,
    total_batch_size=32,
    num_iterations=6,
    save_every=1,
    eval_every=3,
    eval_tokens=32,
    weight_decay=0.1,
    warmup_ratio=0.2,
    model_tag="small",
)


@pytest.fixture(autouse=True)
def base(tmp_path, monkeypatch) -> Path:
    """A base folder of its own, one thread, and no torchrun."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "WANDB_RUN", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path / "base"
    torch.set_num_threads(threads)


def tokens(rows: int = 2, length: int = 8, rank: int = 0, before=lambda number: None) -> Data:
    """Batches that follow from their number; `before` sees each number that is asked for."""

    def batch(number: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1000 * rank + number)
        return torch.randint(VOCAB, (rows, length + 1), generator=generator)

    def train(state):
        number = 0 if state is None else state["batch"] + 1
        while True:
            before(number)
            both = batch(number)
            yield both[:, :-1], both[:, 1:], {"batch": number}
            number += 1

    def split(name):
        number = 10_000 if name == "val" else 0
        while True:
            both = batch(number)
            yield both[:, :-1], both[:, 1:]
            number += 1

    return Data(VOCAB, torch.ones(VOCAB, dtype=torch.int32), train, split)


def final(base: Path, tag: str = "small", step: int = 6) -> dict:
    return torch.load(base / "base_checkpoints" / tag / f"model_{step:06d}.pt", weights_only=True)


def same(left: dict, right: dict) -> bool:
    return all(torch.equal(left[key], right[key]) for key in left | right)


def test_training_learns_and_reports(base):
    """Losses start at ln V and fall; figures, checkpoint and meta agree."""
    config = dataclasses.replace(SMALL, num_iterations=30, save_every=-1)
    constant = torch.arange(9).repeat(2, 1)
    data = tokens()
    always = dataclasses.replace(
        data, train=lambda state: iter(lambda: (constant[:, :-1], constant[:, 1:], {}), None)
    )
    figures = base_train.main(config, always)
    assert figures["losses"][0] == pytest.approx(math.log(VOCAB), abs=1e-4)
    assert figures["losses"][-1] < 1
    folder = base / "base_checkpoints" / "small"
    assert figures["checkpoint"] == str(folder)
    assert sorted(p.name for p in folder.iterdir()) == [
        "meta_000030.json",
        "model_000030.pt",
        "optim_000030_rank0.pt",
    ]
    meta = json.loads((folder / "meta_000030.json").read_text())
    assert meta["val_bpb"] == figures["val_bpb"]
    assert meta["user_config"]["depth"] == 1
    assert set(meta) >= {"step", "device_batch_size", "max_seq_len", "dataloader_state_dict"}
    assert set(meta["loop_state"]) == {"min_val_bpb", "smooth_train_loss", "total_training_time"}
    assert list(meta["model_config"]) == [
        *("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd")
    ]


def killed_in(where: str, count: int):
    """Kill this process for good at the n-th batch, or in the n-th writing of a file."""

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def before(number: int) -> None:
        if where == "batch" and number == count:
            die()

    def child() -> None:
        written = []
        write = torch.save

        def save(data, file):
            written.append(1)
            if where == "write" and len(written) == count:
                file.write(b"PK half of a file")
                file.flush()
                die()
            write(data, file)

        torch.save = save
        base_train.main(SMALL, tokens(before=before))

    return child


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the run is a forked process")
@pytest.mark.parametrize(
    ("where", "count"),
    [("batch", 3), ("batch", 6), ("batch", 11), ("write", 3), ("write", 4), ("write", 9)],
)
def test_killed_and_resumed_training_ends_with_the_same_weights(base, where, count):
    """SIGKILL in the middle of a step or of a file costs time and not one bit."""
    base_train.main(dataclasses.replace(SMALL, model_tag="whole"), tokens())
    process = multiprocessing.get_context("fork").Process(target=killed_in(where, count))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    step = checkpoint_manager.find_last_step(base / "base_checkpoints" / "small")
    assert 0 < step < 6
    base_train.main(dataclasses.replace(SMALL, resume_from_step=step), tokens())
    assert same(final(base), final(base, "whole"))
    states = [
        torch.load(base / "base_checkpoints" / tag / "optim_000006_rank0.pt", weights_only=True)
        for tag in ("small", "whole")
    ]
    for left, right in zip(
        states[0][0]["state"].values(), states[1][0]["state"].values(), strict=True
    ):
        assert same(left, right)


def test_ctrl_c_saves_the_step_and_training_goes_on_from_there(base):
    """The step under way is finished and saved; resumed, the run ends as if never stopped."""
    base_train.main(dataclasses.replace(SMALL, model_tag="whole"), tokens())

    def interrupt(number: int) -> None:
        if number == 5:  # in the middle of the third step
            os.kill(os.getpid(), signal.SIGINT)

    config = dataclasses.replace(SMALL, save_every=-1)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        base_train.main(config, tokens(before=interrupt))
    assert signal.getsignal(signal.SIGINT) is handler
    assert checkpoint_manager.find_steps(base / "base_checkpoints" / "small") == [3]
    base_train.main(dataclasses.replace(config, resume_from_step=3), tokens())
    assert same(final(base), final(base, "whole"))


def test_second_ctrl_c_does_not_wait():
    """Who asks twice is not kept until the step ends."""
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked(torch.device("cpu"))
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def two_processes(rank: int, base: str) -> None:
    """Base training under what torchrun sets, on half of the rows each."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "NANOCHAT_BASE_DIR": base}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{base}/meet", rank=rank, world_size=2)
    config = dataclasses.replace(SMALL, num_iterations=4, save_every=2)
    base_train.main(config, tokens(rank=rank))
    config = dataclasses.replace(config, resume_from_step=2, model_tag="small")
    dist.barrier()
    first = final(Path(base), step=4)
    dist.barrier()
    figures = base_train.main(config, tokens(rank=rank))
    dist.barrier()
    assert same(first, final(Path(base), step=4))
    assert figures["step"] == 4
    dist.destroy_process_group()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_two_processes_train_and_resume_as_one(base):
    """Each goes on with its own batches; the weights of rank 0 are everyone's."""
    base.mkdir(parents=True)
    context = multiprocessing.get_context("fork")
    crew = [context.Process(target=two_processes, args=(rank, str(base))) for rank in range(2)]
    for process in crew:
        process.start()
    for process in crew:
        process.join()
    assert [process.exitcode for process in crew] == [0, 0]
    meta = json.loads((base / "base_checkpoints" / "small" / "meta_000004.json").read_text())
    assert len(meta["dataloader_state_dicts"]) == 2


def test_out_of_memory_says_which_flag_to_lower(monkeypatch):
    """And by how much."""

    def full(*_args, **_options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(GPT, "forward", full)
    with pytest.raises(Refused, match="--device_batch_size=1; accumulation"):
        base_train.main(SMALL, tokens())


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"total_batch_size": 33}, "no multiple of the 16 tokens"),
        ({"num_iterations": -1, "target_param_data_ratio": 0}, "give --num_iterations"),
        ({"resume_from_step": 4}, "no step 4"),
        ({"device_type": "abacus"}, "unknown device"),
        ({"model_dim": 30, "head_dim": 16}, "heads of 16"),
    ],
)
def test_flags_that_cannot_work_are_refused(base, changes, why):
    """Before anything is written."""
    with pytest.raises(Refused, match=why):
        base_train.main(dataclasses.replace(SMALL, **changes), tokens())
    assert not list(base.rglob("*.pt"))


def test_resuming_with_another_shape_is_refused(base):
    """The flags of a run are given again when it goes on."""
    base_train.main(dataclasses.replace(SMALL, num_iterations=1), tokens())
    with pytest.raises(Refused, match="another shape"):
        base_train.main(dataclasses.replace(SMALL, depth=2, resume_from_step=1), tokens())
    shorter = dataclasses.replace(SMALL, num_iterations=-1, target_flops=1e5, resume_from_step=1)
    with pytest.raises(Refused, match="beyond the last"):
        base_train.main(shorter, tokens())


@pytest.mark.parametrize(
    ("depth", "steps"), [(4, 1400), (12, 7080), (20, 21400), (26, 41275), (32, 71680), (34, 84575)]
)
def test_iterations_are_the_published_ones(depth, steps):
    """Twenty tokens a parameter; explicit numbers go before operations, these before the ratio."""
    with torch.device("meta"):
        model = GPT(GPTConfig.from_depth(depth))
    params, flops = sum(model.num_params().values()), model.estimate_flops()
    assert iterations(Config(depth=depth), params, flops) == steps
    budget = 10.4 * flops * 524288
    assert iterations(Config(target_flops=budget), params, flops) == 10
    assert iterations(Config(target_flops=budget, num_iterations=3), params, flops) == 3


def test_schedules():
    """Warm-up, plateau and warm-down of the rate; momentum rises over 300 steps."""
    config = Config(warmup_ratio=0.2, warmdown_ratio=0.4, final_lr_frac=0.1)
    found = [lr_multiplier(config, step, 10) for step in range(10)]
    assert found == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.775, 0.55, 0.325])
    assert [lr_multiplier(Config(), i, 100) for i in (0, 80, 90, 99)] == [1, 1, 0.5, 0.05]
    momenta = [muon_momentum(step) for step in (0, 150, 300, 9000)]
    assert momenta == pytest.approx([0.85, 0.9, 0.95, 0.95])


def test_base_loss_evaluates_both_splits(base):
    """Of the named tag and step, and it says which."""
    figures = base_train.main(dataclasses.replace(SMALL, eval_tokens=64), tokens())
    config = base_loss.Config(
        device_batch_size=2, split_tokens=64, model_tag="small", model_step=6, device_type="cpu"
    )
    found = base_loss.main(config, tokens())
    assert found["val_bpb"] == pytest.approx(figures["val_bpb"], abs=1e-6)
    assert found["step"] == 6
    assert found["train_bpb"] > 0
    with pytest.raises(Refused, match="no multiple of the 16 tokens"):
        base_loss.main(dataclasses.replace(config, split_tokens=20), tokens())
    with pytest.raises(Refused, match="there are: small"):
        base_loss.main(dataclasses.replace(config, model_tag="d4"), tokens())


def test_bits_per_byte_counts_only_targets_that_stand_for_bytes():
    """Special and ignored targets count neither as nats nor as bytes."""
    targets = torch.tensor([[0, 1, 2, -1]])
    losses = torch.tensor([1.0, 2.0, 4.0, 8.0])
    bytes_of = torch.tensor([0, 3, 1], dtype=torch.int32)
    found = evaluate_bpb(
        lambda x, y, loss_reduction: losses, iter([(targets, targets)]), 1, bytes_of
    )
    assert found == pytest.approx((2 + 4) / (math.log(2) * 4))
    nothing = evaluate_bpb(
        lambda x, y, loss_reduction: losses,
        iter([(targets, torch.full_like(targets, -1))]),
        1,
        bytes_of,
    )
    assert nothing == math.inf


class FakeWandb:
    """What a stage tells W&B."""

    class Artifact:
        def __init__(self, name, type):
            self.name, self.type, self.files = name, type, []

        def add_file(self, path, name):
            self.files.append(name)

        def add_dir(self, path, name):
            self.files.append(name)

    def init(self, **options):
        self.options, self.logged, self.artifacts, self.finished = options, [], [], 0
        return SimpleNamespace(
            name=options["name"],
            id="0",
            log=self.logged.append,
            log_artifact=lambda artifact, aliases: self.artifacts.append((artifact, aliases)),
            finish=lambda: setattr(self, "finished", self.finished + 1),
        )


def test_a_stage_is_recorded_with_one_model_artifact(base, monkeypatch):
    """Name, place and mode of the run, figures of each step, and the artifact with its aliases."""
    fake = FakeWandb()
    monkeypatch.setitem(__import__("sys").modules, "wandb", fake)
    monkeypatch.setenv("WANDB_RUN", "speed run")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    (base / "tokenizer").mkdir(parents=True)
    base_train.main(SMALL, tokens())
    assert fake.options["name"] == "speed run-base"
    assert (fake.options["project"], fake.options["mode"]) == ("mine", "offline")
    assert fake.options["config"]["depth"] == 1
    steps = [figures["step"] for figures in fake.logged if "train/loss" in figures]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert [f["step"] for f in fake.logged if "val/bpb" in f] == [0, 3, 6]
    ((artifact, aliases),) = fake.artifacts
    assert (artifact.name, artifact.type) == ("speed-run-base-artifact", "model")
    assert aliases == ["base", "speed-run-base", "latest"]
    assert artifact.files == [
        *("checkpoints/model_000006.pt", "checkpoints/meta_000006.json", "tokenizer")
    ]
    assert fake.finished == 1


def test_an_offline_run_stays_on_the_disk(base, monkeypatch):
    """The real client, without network or login, keeps record and artifact in the base folder."""
    for name in ("WANDB_SILENT", "WANDB_DISABLE_CODE", "WANDB_DISABLE_GIT"):
        monkeypatch.setenv(name, "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(base / "wandb-own"))
    base_train.main(dataclasses.replace(SMALL, run="quiet"), tokens())
    (record,) = (base / "wandb").glob("offline-run-*/*.wandb")
    # Its service writes the end of the file a moment later.
    until(lambda: b"quiet-base-artifact" in record.read_bytes(), "the artifact")
    assert b"train/loss" in record.read_bytes()


def test_a_dummy_run_keeps_a_file_alone(base, monkeypatch):
    """The default: W&B is not even imported; each attempt writes a file of its own."""
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    for attempt in (1, 2):
        record = tracker("base", "dummy", {})
        record.log({"step": attempt, "loss": torch.tensor(0.5)})
        record.artifact({})
        record.finish()
    files = sorted((base / "metrics").iterdir())
    assert [file.name for file in files] == ["base.1.jsonl", "base.2.jsonl"]
    assert files[1].read_text() == '{"step": 2, "loss": 0.5}\n'


def test_prompts_longer_than_the_context_are_left_out(base, capsys):
    """The samples of a short context do not end the training."""

    class Words:
        """One token a word."""

        encode_special = staticmethod(lambda name: VOCAB - 1)
        decode = staticmethod(lambda ids: f"{len(ids)} tokens")

        def __call__(self, text, prepend):
            return [VOCAB - 1, *(len(word) for word in text.split())]

    data = dataclasses.replace(tokens(), tokenizer=Words())
    base_train.main(dataclasses.replace(SMALL, sample_every=6), data)
    assert 0 < capsys.readouterr().out.count(" tokens\n") < len(base_train.PROMPTS)


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of every kind.

    A second paragraph.
    """

    SHORT: ClassVar = {"-d": "--depth"}

    depth: int = 4
    rate: float = 0.5
    name: str = "x"
    tied: bool = False
    step: int | None = None


def test_flags_are_read_in_every_form():
    """With or without `=`, dashes or underscores, whole numbers in any notation."""
    words = ["--", "--depth", "1e2", "--rate=2", "--name=a=b", "--tied", "--step", "-1"]
    assert cli.config_from(Flags, words) == Flags(100, 2.0, "a=b", True, -1)
    assert cli.config_from(Flags, ["--tied=false", "--step=None", "--name=5"]) == Flags(name="5")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--dept=3"], "did you mean --depth"),
        (["--depth=2.5"], "--depth is a whole number"),
        (["--rate=fast"], "--rate is a number"),
        (["--tied=maybe"], "yes or no"),
        (["--depth"], "lacks its value"),
        (["config.py"], "no flag"),
    ],
)
def test_wrong_flags_are_one_sentence_and_exit_code_2(words, why, capsys):
    """Nothing is run."""
    assert cli.run(pytest.fail, Flags, words) == 2
    errors = capsys.readouterr().err
    assert why in errors
    assert errors.count("\n") == 1


def test_interruption_and_help_have_their_exit_codes(capsys):
    """130 as shells expect, and 0 after a list of flags with their defaults."""

    def interrupted(_config: Flags) -> None:
        raise KeyboardInterrupt

    assert cli.run(interrupted, Flags, []) == 130
    assert cli.run(pytest.fail, Flags, ["--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Flags of every kind.\n\nA second paragraph.\n\n")
    assert "--rate=0.5\n" in out
    assert "--depth=4   or -d\n" in out
