"""All stages, each of them stopped once and killed once, against a run that nothing happened to."""

from pathlib import Path
from types import SimpleNamespace

import stagefork
import torch
from nanochat.checkpoint_manager import FOLDERS, find_steps
from scripts import speedrun
from stagebase import weights


def finished(base: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The weights that each stage ended with."""
    found = {}
    for stage in FOLDERS:
        (folder,) = (base / FOLDERS[stage]).iterdir()
        found[stage] = weights(folder, find_steps(folder)[-1])
    return found


def test_every_stage_goes_on_from_what_it_saved(tmp_path, monkeypatch):
    """None of them from its start, and the end is the same to the bit."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "WANDB_RUN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(speedrun, "subprocess", SimpleNamespace(Popen=stagefork.Stage))
    learning = [stage for stage in speedrun.stages_of("smoke") if "eval" not in stage.module]
    monkeypatch.setattr(speedrun, "stages_of", lambda size: learning)
    straight = tmp_path / "straight"
    speedrun.main(speedrun.Config(size="smoke", base_dir=str(straight)))
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
    for stage in FOLDERS:
        assert expected[stage].keys() == found[stage].keys()
        assert all(torch.equal(w, found[stage][key]) for key, w in expected[stage].items()), stage
