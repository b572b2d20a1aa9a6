"""All stages: to the report, stopped once and killed once each, and one of them done again."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import stagefork
import torch
from nanochat.checkpoint_manager import FOLDERS, find_steps
from scripts import speedrun
from stagebase import weights

from fractal_core import stages


def finished(base: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The weights that each stage ended with."""
    found = {}
    for stage in FOLDERS:
        (folder,) = (base / FOLDERS[stage]).iterdir()
        found[stage] = weights(folder, find_steps(folder)[-1])
    return found


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """To the bit."""
    assert one.keys() == other.keys()
    return all(torch.equal(weight, other[key]) for key, weight in one.items())


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A folder with all stages, one after the other."""
    folder = tmp_path_factory.mktemp("all") / "straight"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "WANDB_RUN"):
            patch.delenv(name, raising=False)
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.chdir(folder.parent)
        patch.setattr(speedrun, "subprocess", SimpleNamespace(Popen=stagefork.Stage))
        speedrun.main(speedrun.Config(size="smoke", base_dir=str(folder)))
        yield folder


def test_the_whole_pipeline_ends_in_its_report(straight):
    """Every stage is complete, and has its section and its figures there."""
    record = speedrun.Record(straight)
    assert all(record.has(stage) for stage in speedrun.stages_of("smoke"))
    card = (straight / "report" / "report.md").read_text()
    sections = re.findall("^## (.*)$", card, re.MULTILINE)
    evaluations = {f"Chat evaluation {source}" for source in ("mid", "sft", "rl")}
    assert {"Midtraining", "Chat SFT", "Chat RL", "Summary", *evaluations} <= set(sections)
    rows = {row[0]: row[1:] for row in re.findall(4 * r"\| (.*?) " + r"\| (.*?) \|", card)}
    assert rows["Metric"] == ("BASE", "MID", "SFT", "RL")
    filled = {name: [cell != "-" for cell in cells] for name, cells in rows.items()}
    assert filled["CORE (builtin)"] == [True, False, False, False]
    assert filled["ChatCORE (builtin)"] == filled["GSM8K (builtin)"] == [False, True, True, True]
    assert filled["val_bpb"] == [True, True, False, False]
    assert filled["reward_after"] == [False, False, False, True]
    assert "learned_gain_limits" in card


def test_every_stage_goes_on_from_what_it_saved(straight, tmp_path, monkeypatch):
    """None of them from its start, and the end is the same to the bit."""
    learning = [stage for stage in speedrun.stages_of("smoke") if "eval" not in stage.module]
    monkeypatch.setattr(speedrun, "stages_of", lambda size: learning)
    troubled = tmp_path / "troubled"
    (troubled / "steps").mkdir(parents=True)
    ends = []
    while len(ends) < 20:
        try:
            speedrun.main(speedrun.Config(size="smoke", base_dir=str(troubled)))
            break
        except (SystemExit, KeyboardInterrupt) as end:
            ends.append(type(end))
    assert ends == [KeyboardInterrupt, SystemExit] * 4
    steps: dict[str, list[int]] = {}
    for path in sorted((troubled / "steps").iterdir()):
        steps.setdefault(path.stem.rpartition(".")[2], []).append(int(path.read_text()))
    saved_at_four = [3, 4, 6]
    assert steps == {
        "base_train": saved_at_four,
        "mid_train": saved_at_four,
        "chat_sft": saved_at_four,
        "chat_rl": [3, 4, 5],  # its step four is the one after which it saves
    }
    expected, found = finished(straight), finished(troubled)
    assert all(same(expected[stage], found[stage]) for stage in FOLDERS)


def test_a_stage_is_done_again_from_its_start(straight):
    """The same again if what it begins from is the same; what there was is kept."""
    before, kept = finished(straight), straight / "chatsft_checkpoints.1" / "d2"
    stages.again(straight, "smoke", "sft")
    assert same(finished(straight)["sft"], before["sft"])
    assert same(weights(kept, find_steps(kept)[-1]), before["sft"])
    (folder,) = (straight / "mid_checkpoints").iterdir()
    changed = folder / f"model_{find_steps(folder)[-1]:06d}.pt"
    torch.save({key: 1.01 * weight for key, weight in before["mid"].items()}, changed)
    card = (straight / "report" / "report.md").read_text()
    stages.again(straight, "smoke", "sft")
    assert not same(finished(straight)["sft"], before["sft"])
    assert (straight / "report" / "report.md").read_text() != card
