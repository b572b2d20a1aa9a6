"""The report card: sections, summary, and what must not be in it."""

import platform
import socket
from pathlib import Path

import pytest
from nanochat import report
from nanochat.common import Refused
from nanochat.report import curve, get_report


@pytest.fixture(autouse=True)
def base(tmp_path, monkeypatch) -> Path:
    """A base folder, and another folder to stand in."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "base"


def test_a_section_says_its_figures(base):
    """Four decimals, commas from ten thousand on, texts as they are; a second one replaces it."""
    get_report().log("Chat SFT", [{"old": 1}])
    path = get_report().log(
        "Chat SFT", [{"loss": 1.23456, "tokens": 12345, "rows": 999, "lr": 2e-5}, "said: *hello*"]
    )
    assert path == base / "report" / "chat-sft.md"
    lines = path.read_text().splitlines()
    assert lines[0] == "## Chat SFT"
    assert lines[1].startswith("timestamp: 2")
    for line in ("- loss: 1.2346", "- tokens: 12,345", "- rows: 999", "- lr: 2e-05"):
        assert line in lines
    assert "said: *hello*" in lines
    assert "- old: 1" not in lines


def test_a_curve_is_drawn_with_bars():
    """The lowest and the highest, in means of equal shares; what is not finite is marked."""
    assert curve([1.0, 2.0, 3.0]) == "▁▅█" or curve([1.0, 2.0, 3.0]) == "▁▄█"
    assert curve([5.0, 5.0]) == "▁▁"
    assert len(curve([float(i) for i in range(1000)])) == 60
    assert curve([1.0, float("nan"), 2.0]) == "▁x█"
    assert curve([]) == ""
    text = get_report().log("Base model training", [{"losses": [3.0, 2.5, 2.0, 1.0]}]).read_text()
    assert "- losses: 3.0000 to 1.0000 in 4" in text
    assert curve([3.0, 2.5, 2.0, 1.0]) in text


def test_the_card_is_in_the_order_of_the_stages(base):
    """Header first, then the stages however they were written, then the summary and the time."""
    get_report().reset()
    get_report().log("Chat RL", [{"GSM8K": 0.0758}])
    get_report().log("Chat evaluation SFT", [{"ARC-Easy": 0.3876, "ChatCORE": 0.0884}])
    get_report().log("Base model training", [{"val_bpb": 0.81, "CORE": 0.2219}])
    assert report.main(["generate"]) == 0
    text = (base / "report" / "report.md").read_text()
    assert (Path.cwd() / "report.md").read_text() == text
    titles = [line for line in text.splitlines() if line.startswith(("# ", "## "))]
    assert titles == [
        *("# Report of a run", "## Base model training", "## Chat evaluation SFT"),
        *("## Chat RL", "## Summary"),
    ]
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert rows == [
        "| Metric | BASE | MID | SFT | RL |",
        "| CORE | 0.2219 | - | - | - |",
        "| ARC-Easy | - | - | 0.3876 | - |",
        "| GSM8K | - | - | - | 0.0758 |",
        "| val_bpb | 0.8100 | - | - | - |",
        "| ChatCORE | - | - | 0.0884 | - |",
    ]
    assert "Wall clock until the last stage before RL: 0 h 0 min" in text


def test_an_evaluation_goes_before_what_training_said(base):
    """Where both report a metric."""
    get_report().log("Base model training", [{"CORE": 0.1, "val_bpb": 0.9}])
    get_report().log("Base model evaluation", [{"CORE": 0.2}])
    text = get_report().generate().read_text()
    assert "| CORE | 0.2000 | - | - | - |" in text
    assert "| val_bpb | 0.9000 | - | - | - |" in text


def test_figures_of_our_own_questions_are_named_as_such(base):
    """Beside those of the published ones, and never in their place; the loss has a column too."""
    get_report().log("Base model evaluation", [report.marked({"CORE": 0.9}, "builtin")])
    get_report().log("Base model loss", [{"train_bpb": 0.8, "val_bpb": 0.7}])
    get_report().log("Chat evaluation base", [{"MMLU": 0.3}])
    get_report().log("Chat evaluation mid", [report.marked({"MMLU": 0.25}, "")])
    get_report().log("Chat evaluation sft", [report.marked({"MMLU": 0.5}, "builtin")])
    text = get_report().generate().read_text()
    assert [line for line in text.splitlines() if line.startswith("| ")][1:] == [
        "| CORE (builtin) | 0.9000 | - | - | - |",
        "| MMLU | 0.3000 | 0.2500 | - | - |",
        "| MMLU (builtin) | - | - | 0.5000 | - |",
        "| val_bpb | 0.7000 | - | - | - |",
    ]


def test_a_reset_forgets_what_was(base, capsys):
    """And then there is nothing to put together."""
    get_report().log("Chat RL", [{"a": 1}])
    assert report.main(["reset"]) == 0
    assert [path.name for path in (base / "report").iterdir()] == ["header.md"]
    assert report.main([]) == 2
    assert "no stage has reported" in capsys.readouterr().err
    with pytest.raises(Refused, match="run one first"):
        get_report().generate()
    assert report.main(["remove"]) == 2


def test_nothing_secret_is_reported(base, monkeypatch):
    """Neither keys nor the names of machine, user and folders."""
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setattr(socket, "gethostname", lambda: "machine-of-someone")
    monkeypatch.setattr(platform, "node", lambda: "machine-of-someone")
    data = {"wandb_api_key": "abc123", "password": "abc123", "num_tokens": 5}
    figures = {"checkpoint": f"{base}/mid_checkpoints/d2", "data": "/home/someone/own.jsonl"}
    get_report().log("Midtraining", [data, figures])
    get_report().reset()
    get_report().log("Midtraining", [data, figures])
    text = get_report().generate().read_text()
    assert "- checkpoint: $NANOCHAT_BASE_DIR/mid_checkpoints/d2" in text
    assert "- data: ~/own.jsonl" in text
    assert "- num_tokens: 5" in text
    for word in ("abc123", "someone", str(base)):
        assert word not in text


def test_only_the_first_process_writes(base, monkeypatch):
    """The others are silent."""
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    get_report().log("Chat SFT", [{"a": 1}])
    get_report().reset()
    assert not (base / "report").exists()
