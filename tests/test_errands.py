"""Long commands in the background of a folder."""

import os
from pathlib import Path

import psutil
import pytest
import waiting
from waiting import until, until_gone

from fractal_core import Refused, errands
from fractal_core.errands import Errand

SLEEPS = ["timeit", "-n1", "-r1", "print('begun', flush=True); import time; time.sleep(600)"]


def ended(folder: Path) -> Errand:
    return waiting.ended(lambda: errands.last(folder))


def test_a_command_runs_once_and_says_how_it_ended(tmp_path):
    """In a session of its own; whoever begins it again meanwhile is given the same process."""
    assert errands.last(tmp_path / "new") is None
    first = errands.start(tmp_path / "new", SLEEPS)
    assert os.getsid(first) == first
    assert errands.start(tmp_path / "new", ["timeit", "pass"]) == first
    until(lambda: "begun" in errands.last(tmp_path / "new").log, "its first line")
    found = errands.last(tmp_path / "new")
    assert (found.state, found.process, found.command) == ("running", first, tuple(SLEEPS))
    assert errands.ask_to_stop(tmp_path / "new")
    assert ended(tmp_path / "new").state == "stopped"
    until_gone(first)
    assert not errands.ask_to_stop(tmp_path / "new")


def test_what_failed_says_why_and_what_went_well_is_done(tmp_path):
    """The log is that of the last command alone."""
    errands.start(tmp_path, ["timeit", "-n1", "-r1", "1 / 0"])
    failed = ended(tmp_path)
    assert (failed.state, failed.code) == ("failed", 1)
    assert "ZeroDivisionError" in failed.tail()
    errands.start(tmp_path, ["timeit", "-n1", "-r1", "print('a < b')"])
    done = ended(tmp_path)
    assert (done.state, done.code) == ("done", 0)
    assert "ZeroDivisionError" not in done.log
    assert "a &lt; b" in done.page()


def test_no_secret_reaches_the_disk(tmp_path):
    """Nor by a child of the command, nor in what it says last before it fails."""
    says = "import os, sys; print('mine is', 'hf_' + 'a' * 20, flush=True); "
    says += "os.system('echo WANDB_API_KEY=sword''fish9'); sys.exit('token=sword' + 'fish9')"
    errands.start(tmp_path, ["timeit", "-n1", "-r1", says])
    assert ended(tmp_path).state == "failed"
    said = (tmp_path / errands.LOG).read_text()
    assert said.startswith("mine is [redacted]\nWANDB_API_KEY=[redacted]\n")
    assert said.endswith("token=[redacted]\n")
    assert "swordfish9" not in said
    assert "hf_a" not in said


def test_a_line_that_was_written_over_shows_its_end():
    """As a terminal would; only the last lines are shown."""
    found = Errand(("m",), None, 0, "one\n10%\r20%\r30%\ntwo\n", False)
    assert found.tail() == "one\n30%\ntwo"
    assert found.tail(1) == "two"


def test_a_killed_command_has_failed(tmp_path):
    """It left no code; the folder is free at once."""
    pid = errands.start(tmp_path, SLEEPS)
    psutil.Process(pid).kill()
    assert ended(tmp_path).state == "failed"


def test_what_another_machine_works_on_is_not_stopped_here(tmp_path, monkeypatch):
    """Its process cannot be named."""
    monkeypatch.setattr(errands.duty, "lock_holder", lambda folder: 0)
    with pytest.raises(Refused, match="on that machine"):
        errands.ask_to_stop(tmp_path)
