"""All stages with one command: order, what is complete, and going on."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from nanochat.checkpoint_manager import FOLDERS
from nanochat.cli import config_from
from nanochat.common import Refused
from nanochat.report import get_report
from scripts import (
    base_eval,
    base_loss,
    base_train,
    chat_eval,
    chat_rl,
    chat_sft,
    mid_train,
    speedrun,
    tok_train,
)
from scripts.speedrun import Record, Stage, resumed, stages_of
from waiting import until, until_gone


@pytest.fixture(autouse=True)
def base(tmp_path, monkeypatch) -> Path:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "WANDB_RUN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    return tmp_path / "base"


def scripted(monkeypatch, programs: dict[str, str]) -> None:
    """Stages run these programs in place of their modules; each can `note` what it does."""
    note = "import os, sys, time, signal\ndef note(w): open('notes', 'a').write(w + chr(10))\n"
    monkeypatch.setattr(
        Stage,
        "command",
        lambda self, gpus: [sys.executable, "-c", note + programs[self.name], *self.flags],
    )


def perform(stages: list[Stage], record: Record, gpus: int) -> None:
    with speedrun.only_one(record.path.parent) as lock:
        speedrun.perform(stages, record, gpus, lock)


def notes() -> list[str]:
    return Path("notes").read_text().split()


def saved(base: Path, stage: str, step: int, meta: dict) -> None:
    folder = base / FOLDERS[stage] / "d2"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"model_{step:06d}.pt").touch()
    (folder / f"meta_{step:06d}.json").write_text(json.dumps(meta))


def no_sandbox() -> None:
    raise Refused("there is no sandbox here")


@pytest.mark.parametrize("size", ["tiny", "smoke", "d20"])
def test_the_flags_of_every_stage_are_known(size):
    """To the script that they are for; the stages are in order."""
    from nanochat import core_bundle, dataset

    kinds = {
        "nanochat.core_bundle": core_bundle.Config,
        "nanochat.dataset": dataset.Config,
        "scripts.tok_train": tok_train.Config,
        "scripts.base_train": base_train.Config,
        "scripts.base_loss": base_loss.Config,
        "scripts.base_eval": base_eval.Config,
        "scripts.chat_eval": chat_eval.Config,
        "scripts.mid_train": mid_train.Config,
        "scripts.chat_sft": chat_sft.Config,
        "scripts.chat_rl": chat_rl.Config,
    }
    stages = stages_of(size)
    for stage in stages:
        if stage.module in kinds:
            config_from(kinds[stage.module], stage.flags)
    trained = [stage.source for stage in stages if stage.source]
    assert trained == ["base", "mid", "sft", "rl"]
    names = [stage.name for stage in stages if stage.name in ("base", "mid", "sft", "rl")]
    after = [stages[[s.name for s in stages].index(name) + 1].name for name in names[1:]]
    assert after == ["evaluation-mid", "evaluation-sft", "evaluation-rl"]
    assert "base-evaluation" in [stage.name for stage in stages]
    with pytest.raises(Refused, match="choose among tiny, smoke, d20"):
        stages_of("huge")


@pytest.mark.parametrize("size", ["smoke", "d20"])
def test_without_a_sandbox_everything_else_is_asked(size, monkeypatch, capsys):
    """It is said at the start, and the run does not end at its first evaluation."""
    monkeypatch.setattr(speedrun, "require_sandbox", no_sandbox)
    found = {stage.name: stage.command(1) for stage in stages_of(size)}
    asked = "--task_name=ARC-Easy|ARC-Challenge|MMLU|GSM8K|SpellingBee"
    assert asked in found["evaluation-mid"]
    assert asked in found["evaluation-sft"]
    assert capsys.readouterr().out == "HumanEval is left out: there is no sandbox here\n"


@pytest.mark.parametrize("size", ["smoke", "d20"])
def test_a_run_goes_on_at_a_machine_with_another_sandbox(size, base, monkeypatch):
    """What was asked where there was none, or one, need not be asked again."""
    found = []
    for way in (no_sandbox, lambda: ""):
        monkeypatch.setattr(speedrun, "require_sandbox", way)
        found.append(stages_of(size))
    assert [s.command(1) for s in found[0]] != [s.command(1) for s in found[1]]
    for before, after in (found, found[::-1]):
        record = Record(base)
        for stage in before:
            record.add(stage, 1.0)
        assert all(Record(base).has(stage) for stage in after)


def test_several_gpus_are_used_by_torchrun():
    """Only where a stage is for them."""
    stage = Stage("mid", "scripts.mid_train", ("--a=1",), "mid", True)
    assert stage.command(8)[1:] == [
        *("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=8"),
        *("-m", "scripts.mid_train", "--", "--a=1"),
    ]
    assert stage.command(1)[1:] == ["-m", "scripts.mid_train", "--a=1"]


def test_two_runs_do_not_share_a_folder(tmp_path):
    """The second is refused before it does anything."""
    (tmp_path / "one").mkdir()
    with speedrun.only_one(tmp_path / "one"), pytest.raises(Refused, match="another run works"):
        speedrun.main(speedrun.Config(size="smoke", base_dir=str(tmp_path / "one")))
    assert not (tmp_path / "one" / "speedrun.json").exists()


def test_what_a_killed_run_leaves_behind_keeps_others_out(tmp_path):
    """A stage that still trains; when it has ended, the same command goes on."""
    folder = tmp_path / "one"
    folder.mkdir()
    stage = "import time; open('begun', 'w').close(); time.sleep(600)"
    program = (
        "import sys\nfrom pathlib import Path\nfrom scripts import speedrun\n"
        f"speedrun.Stage.command = lambda *_: [sys.executable, '-c', {stage!r}]\n"
        f"folder = Path({str(folder)!r})\n"
        "with speedrun.only_one(folder) as lock:\n"
        "    speedrun.perform([speedrun.Stage('a', 'm')], speedrun.Record(folder), 1, lock)\n"
    )
    run = subprocess.Popen([sys.executable, "-c", program])
    until((tmp_path / "begun").exists, "the stage")
    (left,) = (child.pid for child in psutil.Process(run.pid).children())
    until(lambda: (folder / "speedrun.lock").read_text().strip() == str(left), "its name")
    run.kill()
    run.wait()
    refused = pytest.raises(Refused, match=f"another run works in .*, process {left}; ")
    with refused, speedrun.only_one(folder):
        pass
    os.kill(left, signal.SIGKILL)
    until_gone(left)
    with speedrun.only_one(folder):
        assert speedrun.Record(folder).done == {}


@pytest.mark.parametrize("gpus", [1, 2])
@pytest.mark.parametrize(("error", "end"), [("Refused", Refused), ("Unavailable", SystemExit)])
def test_what_may_go_well_another_time_is_no_refusal(base, monkeypatch, gpus, error, end):
    """Also where torchrun ends with a code of its own."""
    (base / "fails.py").write_text(
        "import sys\nfrom dataclasses import dataclass\nfrom nanochat import cli, common\n"
        "@dataclass(frozen=True)\nclass Config:\n    x: int = 0\n"
        f"def main(config):\n    raise common.{error}('so it is')\n"
        "if __name__ == '__main__':\n    sys.exit(cli.run(main, Config))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(base))
    with pytest.raises(end, match="the stage a"):
        perform([Stage("a", "fails", parallel=True)], Record(base), gpus)


def test_a_complete_stage_is_not_done_again(base, monkeypatch):
    """One that failed is, and nothing after it was begun; other flags are refused."""
    stages = [Stage("a", "m"), Stage("b", "m"), Stage("c", "m")]
    scripted(monkeypatch, {"a": "note('a')", "b": "note('b'); sys.exit(3)", "c": "note('c')"})
    with pytest.raises(SystemExit, match="stage b ended with code 3"):
        perform(stages, Record(base), 1)
    scripted(monkeypatch, {name: f"note('{name}')" for name in "abc"})
    perform(stages, Record(base), 1)
    assert notes() == ["a", "b", "b", "c"]
    with pytest.raises(Refused, match=r"stage a .* was done with other flags"):
        perform([Stage("a", "m", ("--x",))], Record(base), 1)


def test_what_is_fetched_beside_is_awaited_before_the_gpus(base, monkeypatch):
    """The tokenizer does not wait for it."""
    stages = [Stage("f", "m", beside=True), Stage("t", "m"), Stage("b", "m", parallel=True)]
    late = "while 't' not in open('notes').read(): time.sleep(0.02)\nnote('f')"
    scripted(monkeypatch, {"f": late, "t": "note('t')", "b": "note('b')"})
    Path("notes").touch()
    perform(stages, Record(base), 8)
    assert notes() == ["t", "f", "b"]
    assert set(Record(base).done) == {"f", "t", "b"}


def test_a_wish_to_stop_is_handed_on_once(base, monkeypatch):
    """The stage saves and ends, and is not complete."""
    hears = (
        "signal.signal(signal.SIGTERM, lambda *a: (note('heard'), sys.exit(130)))\n"
        "note('ready')\ntime.sleep(60)"
    )
    scripted(monkeypatch, {"a": hears, "b": "note('b')"})

    Path("notes").touch()

    def stop() -> None:
        until(lambda: notes() == ["ready"], "its note")
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        perform([Stage("a", "m"), Stage("b", "m")], Record(base), 1)
    thread.join()
    assert notes() == ["ready", "heard"]
    assert Record(base).done == {}


def test_an_interrupted_stage_resumes(base):
    """From its last step that can be gone on from; a step that ends a run is none."""
    stage = Stage("mid", "scripts.mid_train", ("--a=1",), "mid")
    assert resumed(stage) == stage
    saved(base, "mid", 9, {"step": 9})
    assert resumed(stage) == stage
    for step in (4, 7):
        saved(base, "mid", step, {"step": step, "dataloader_state_dicts": [{}]})
    assert resumed(stage).flags == ("--a=1", "--resume_from_step=7", "--model_tag=d2")
    assert resumed(Stage("texts", "nanochat.dataset")).flags == ()


def test_the_command_ends_with_a_report(base, monkeypatch, tmp_path, capsys):
    """In the folder that was named, of what the stages reported; the base folder is put back."""
    stages = [Stage("a", "m")]
    monkeypatch.setattr(speedrun, "stages_of", lambda size: stages)
    said = "from nanochat.report import get_report; get_report().log('Chat RL', [{'x': 1}])"
    scripted(monkeypatch, {"a": said})
    figures = speedrun.main(speedrun.Config(base_dir=str(tmp_path / "run")))
    assert set(figures["seconds"]) == {"a"}
    assert "- x: 1" in (tmp_path / "run" / "report" / "report.md").read_text()
    assert get_report().folder == base / "report"
    assert "scripts.chat_cli --source=rl" in capsys.readouterr().out
    with pytest.raises(Refused, match="--gpus"):
        speedrun.main(speedrun.Config(gpus=0))
