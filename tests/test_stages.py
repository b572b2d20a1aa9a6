"""The stages of a base folder: what the page says of them."""

import json
from pathlib import Path

import pytest
import waiting

from fractal_core import Refused, errands, stages


def write(path: Path, *rows: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def train(*steps: int, loss: float = 1.0) -> list[dict]:
    return [{"step": step, "train/loss": loss} for step in steps]


def test_an_attempt_takes_the_place_of_what_came_after_its_first_step(tmp_path):
    """One that began anew takes the place of all; a line that is not whole is left out."""
    metrics = tmp_path / "metrics"
    write(metrics / "base.1.jsonl", *train(1, 2, 3, 4))
    write(metrics / "base.2.jsonl", *train(3, 4, 5, loss=2.0))
    write(metrics / "base.10.jsonl", *train(5, loss=3.0), {"step": 6, "val/bpb": 1.5})
    write(metrics / "mid.1.jsonl", *train(1, 2))
    write(metrics / "mid.2.jsonl", *train(1, loss=7.0))
    with (metrics / "mid.2.jsonl").open("a") as file:
        file.write('{"step": 1, "train/l\n{"step": 1, "train/loss": null}\n')
        file.write('{"step": 2, "train/l')
    found = stages.curves(tmp_path)
    base = found[found.stage == "base"]
    assert base.step.tolist() == [1, 2, 3, 4, 5, 6]
    assert base.value.tolist() == [1, 1, 2, 2, 3, 1.5]
    assert base.measure.iloc[-1] == "validation, bits per byte"
    assert found[found.stage == "mid"].value.tolist() == [7.0]
    assert [chart.title for chart in stages.charts(found)] == ["base", "mid"]
    assert stages.charts(stages.curves(tmp_path / "none")) == []


def test_a_long_curve_is_thinned_and_keeps_its_ends(tmp_path):
    """What is drawn stays small however long a stage trains."""
    write(tmp_path / "metrics" / "base.1.jsonl", *train(*range(5000)))
    (chart,) = stages.charts(stages.curves(tmp_path))
    steps = chart.data.step
    assert len(steps) == stages.MOST_POINTS
    assert (steps.iloc[0], steps.iloc[-1]) == (0, 4999)


def test_the_state_of_every_stage_is_read_from_the_disk(tmp_path, monkeypatch):
    """Done, failed where the last command ended, and not begun."""
    planned = stages.plan("smoke")
    names = [stage.name for stage in planned]
    assert stages.size_of(tmp_path) is None
    states = {s.name: s.state for s in stages.progress(tmp_path, "smoke")}
    assert set(states.values()) == {"not begun"}
    done = {s.name: {"flags": list(s.flags), "seconds": 1.5} for s in planned[:2]}
    (tmp_path / "speedrun.json").write_text(json.dumps(done))
    assert stages.size_of(tmp_path) == "smoke"
    write(tmp_path / "metrics" / "base.1.jsonl", *train(1, 2))
    log = f"--- {names[0]}: complete\n--- base\nerror: no room\n"
    last = errands.Errand(("scripts.speedrun", "--size=smoke"), None, 2, log, False)
    monkeypatch.setattr(errands, "last", lambda folder: last)
    found = {s.name: s for s in stages.progress(tmp_path, "smoke")}
    assert [found[name].state for name in names[:3]] == ["done", "done", "failed"]
    assert found[names[0]].seconds == 1.5
    assert (found["base"].step, found["base"].measured) == (2, "training loss 1.0000")
    assert found["rl"].state == "not begun"
    shown = stages.table(list(found.values()))
    assert shown.count("<tr") == len(names) + 1
    assert "failed" in shown


def test_there_is_news_when_a_file_changes(tmp_path):
    """And none as long as nothing does."""
    before = stages.news(tmp_path)
    assert stages.news(tmp_path) == before
    write(tmp_path / "metrics" / "base.1.jsonl", *train(1))
    assert stages.news(tmp_path) != before


def test_news_bears_files_that_go(tmp_path, monkeypatch):
    """One that was asked to stop is begun again: the note of it goes at any moment."""
    write(tmp_path / "state" / "STOP")
    stat, looks = Path.stat, []

    def vanishing(path, **options):
        found = stat(path, **options)
        if path.name == "STOP" and not looks:
            looks.append(path.unlink())
        return found

    monkeypatch.setattr(Path, "stat", vanishing)
    assert "STOP" in str(stages.news(tmp_path))
    assert looks
    assert "STOP" not in str(stages.news(tmp_path))


def test_a_file_is_no_folder_to_work_in(tmp_path):
    """Looking at it tells nothing, and beginning there is refused in a sentence."""
    for folder in (tmp_path / "file", tmp_path / "file" / "inside"):
        (tmp_path / "file").touch()
        assert stages.news(folder) == (str(folder), None)
        assert stages.progress(folder, "smoke")[0].state == "not begun"
        with pytest.raises(Refused, match="is no folder to work in"):
            stages.start(folder, "smoke")


def test_the_command_is_one_that_a_shell_reads(tmp_path):
    """A folder may have a space in its name."""
    words = stages.command(tmp_path / "two words", "smoke")
    assert words[:3] == ["python", "-m", "scripts.speedrun"]
    assert f"--base_dir={tmp_path}/two words" in words


def test_a_stage_is_run_alone_and_again(tmp_path):
    """The real first stage, complete for whoever runs all of them; again it finds its texts."""
    folder = tmp_path / "lm"
    found = []
    for _ in range(2):
        stages.start(folder, "smoke", "texts")
        errand = waiting.ended(lambda: errands.last(folder))
        found.append((errand.state, stages.progress(folder, "smoke")[0].state))
    assert found == [("done", "done")] * 2
    assert "are there already" in errand.tail()
    assert "texts" in json.loads((folder / "speedrun.json").read_text())
    assert stages.size_of(folder) == "smoke"
    with pytest.raises(Refused, match="unknown stage 'text'"):
        stages.again(folder, "smoke", "text")
    with pytest.raises(Refused, match="unknown size"):
        stages.start(folder, "huge")
