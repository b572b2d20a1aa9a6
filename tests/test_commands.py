"""The command line: what it writes, and what it refuses with one sentence and exit code 2."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture
from terminal import fractal
from waiting import DEADLINE, until

SMALL = ("--steps", "30", "--set", "samples=8", "arrays=seeded", "--grid", "16", "24")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with a finished run named `done`."""
    folder = tmp_path_factory.mktemp("runs")
    assert fractal("new", "done", *SMALL, cwd=folder).returncode == 0
    answer = fractal("run", "done", cwd=folder)
    assert answer.returncode == 0, answer.stderr
    return folder


def test_a_run_from_new_to_export(finished):
    """The exported arrays are whole, named and oriented as promised."""
    assert fractal("export", "done", "out.npz", cwd=finished).returncode == 0
    with np.load(finished / "out.npz") as arrays:
        assert set(arrays) == {
            "x", "y", "outcome", "measure", "first_loss", "tail_loss", "final_loss", "steps",
        }  # fmt: skip
        assert arrays["x"].shape == (24,)
        assert arrays["y"].shape == (16,)
        assert arrays["outcome"].shape == arrays["measure"].shape == (16, 24)
        assert arrays["outcome"].dtype == np.uint8
        assert set(np.unique(arrays["outcome"])) <= {1, 2, 3}
        assert np.array_equal(arrays["outcome"] == 1, arrays["measure"] < 0)
        assert arrays["outcome"][0, 0] == 1
        assert arrays["outcome"][-1, -1] != 1


def test_running_again_computes_nothing(finished):
    """A finished run is finished: no file changes but its log of events."""
    before = contents(finished / "done" / "units")
    answer = fractal("run", "done", cwd=finished)
    assert answer.returncode == 0
    assert contents(finished / "done" / "units") == before


def test_status_and_verify_print_one_json_object(finished):
    """A script can read them."""
    state = json.loads(fractal("status", "done", "--json", cwd=finished).stdout)
    assert (state["done"], state["points"], state["failed"], state["process"]) == (
        384,
        384,
        0,
        None,
    )
    report = json.loads(fractal("verify", "done", "--json", cwd=finished).stdout)
    assert report == {"intact": state["units"], "moved": []}
    assert json.loads(fractal("doctor", "--json", ".", cwd=finished).stdout)["commit_ms"] > 0


@pytest.mark.parametrize(
    "wrong",
    [
        ("--slots", "0"),
        ("--devices", "cuda:9"),
        ("--devices", "abacus"),
        ("--shard", "3/2"),
        ("--shard", "half"),
        ("--engine", "ray", "--devices", "cuda:0"),
    ],
)
def test_a_run_on_what_is_not_there_is_refused(finished, wrong):
    """One sentence and exit 2, before anything is touched."""
    before = contents(finished / "done")
    answer = fractal("run", "done", *wrong, cwd=finished)
    assert answer.returncode == 2
    assert answer.stderr.startswith("fractal: ")
    assert answer.stderr.count("\n") == 1
    assert contents(finished / "done") == before


def test_a_folder_that_cannot_hold_a_run_is_refused(finished, monkeypatch):
    """There must be twice the room that the results will take."""
    from fractal_core import store as module
    from fractal_core.errors import Refused
    from fractal_core.experiments import open_run

    store = open_run(finished / "done")
    units = list(store.units.values())
    store.require_room(units)
    usage = module.shutil.disk_usage(finished)._replace(free=10_000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(Refused, match="make room"):
        store.require_room(units)


def test_status_tells_what_the_slots_do(finished):
    """While a run is worked on: who, how fast, how long still, and what each slot has in hand."""
    assert fractal("new", "long", "--grid", "128", "128", cwd=finished).returncode == 0
    command = [sys.executable, "-m", "fractal_core", "run", "long", "--slots", "2"]
    running = subprocess.Popen(command, cwd=finished, stderr=subprocess.DEVNULL)
    try:

        def told() -> dict | None:
            state = json.loads(fractal("status", "long", "--json", cwd=finished).stdout)
            return state if state["seconds_remaining"] else None

        state = until(told, "an estimate")
        assert state["process"] == running.pid
        assert state["points_per_second"] > 0
        assert [slot["device"] for slot in state["slots"]] == ["cpu", "cpu"]
        assert len({slot["process"] for slot in state["slots"]}) == 2
        assert any(slot["unit"] for slot in state["slots"])
        words = fractal("status", "long", cwd=finished).stdout
        assert f"process {running.pid} works on it" in words
        assert "to go" in words
        assert "slot 1 on cpu" in words
        assert "stopped" in fractal("stop", "long", cwd=finished).stdout
        assert running.wait(timeout=DEADLINE) == 75
    finally:
        running.kill()
        running.wait()


def test_panels_and_the_table_of_points(finished):
    """`--panels` draws at the width of two columns, and `export` writes a row a point."""
    answer = fractal("show", "done", "--panels", "4", "--out", "four.png", cwd=finished)
    assert answer.returncode == 0, answer.stderr
    with Picture.open(finished / "four.png") as picture:
        assert picture.width == round(183 / 25.4 * 300)
    answer = fractal(
        "show", "done", "--panels", "3", "--quantity", "steps", "--out", "x.png", cwd=finished
    )
    assert (answer.returncode, answer.stderr.count("\n")) == (2, 1)
    assert "leave out" in answer.stderr
    assert not (finished / "x.png").exists()
    assert fractal("export", "done", "out.csv", cwd=finished).returncode == 0
    header, *rows = (finished / "out.csv").read_text().splitlines()
    assert header.startswith("x,y,outcome,")
    assert len(rows) == 16 * 24
    assert rows[0].split(",")[2] == "TRAINABLE"
    answer = fractal("export", "done", "out.txt", cwd=finished)
    assert answer.returncode == 2
    assert ".npz or .csv" in answer.stderr


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_show_draws(finished, suffix):
    """Each kind of file, with a child marked in it."""
    assert fractal("zoom", "done", "inner", "--cells", "4:8", "6:18", cwd=finished).returncode == 0
    answer = fractal("show", "done", "--out", f"map.{suffix}", "--child", "inner", cwd=finished)
    assert answer.returncode == 0, answer.stderr
    assert (finished / f"map.{suffix}").stat().st_size > 5000


def test_zoom_takes_cells_or_values(finished):
    """Both ways of saying where give the region that was asked for."""
    from fractal_core.experiments import open_run

    parent = open_run(finished / "done").sweep
    assert fractal("zoom", "done", "cells", "--cells", "4:8", "6:18", cwd=finished).returncode == 0
    child = open_run(finished / "cells").sweep
    assert child.region == parent.grid.zoom_cells((4, 8), (6, 18))
    low, high = repr(child.region.x.low), repr(child.region.x.high)
    answer = fractal("zoom", "done", "values", "--x", low, high, "--grid", "8", "16", cwd=finished)
    assert answer.returncode == 0, answer.stderr
    again = open_run(finished / "values").sweep
    assert (again.region.x.low, again.region.x.high) == (child.region.x.low, child.region.x.high)
    assert again.region.y == parent.region.zoom((1e-2, 1.0), (1e-3, 1e6), rows=8).y
    assert again.grid.shape == (8, 16)


def test_detached_runs_finish_by_themselves(finished):
    """The process is its own session, so closing the terminal does not end it."""
    slow = ("--steps", "60000", *SMALL[2:])
    assert fractal("new", "away", *slow, "--seed", "5", cwd=finished).returncode == 0
    answer = fractal("run", "away", "--detach", cwd=finished)
    assert answer.returncode == 0, answer.stderr
    pid = int(re.search(r"process (\d+) works", answer.stdout)[1])
    assert os.getsid(pid) == pid != os.getsid(0)

    def over() -> dict | None:
        state = json.loads(fractal("status", "away", "--json", cwd=finished).stdout)
        assert state["process"] in (pid, 0, None)  # at its end it has no name for an instant
        return state if state["process"] is None else None

    assert until(over, "its end")["done"] == 384


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("new r --x 1 1e-3", "below"),
        ("new r --x 1 1", "below"),
        ("new r --y 0 1", "positive"),
        ("new r --y -1 1", "positive"),
        ("new r --grid 0 16", "between 1 and"),
        ("new r --grid 16 999999999", "between 1 and"),
        ("new r --grid 32768 32768", "over 268435456"),
        ("new r --preset tahn", "did you mean tanh"),
        ("new r --axes lr_inptu lr_output", "did you mean lr_input"),
        ("new r --set stesp=4", "did you mean steps"),
        ("new r --set steps", "NAME=VALUE"),
        ("new r --set steps=many", "number"),
        ("new r --set activation=tanhh", "did you mean tanh"),
        ("new r --steps 5", "at least 21"),
        ("new r --x 1 1.0000000000000004", "units in the last place"),
        ("new r --dtype float32 --published", "last place of float32"),
        ("new done --steps 77", "another recipe"),
        ("new done/sweep.json", "is a file"),
        ("zoom done r --x 1e-9 1", "not inside"),
        ("zoom done r", "say where"),
        ("zoom done r --cells 3:99 0:4", "not a part of"),
        ("zoom done r --cells a:b 0:4", "FIRST:PAST_LAST"),
        ("run nowhere", "not a run folder"),
        ("show done --out map.gif", "svg"),
        ("export done out.txt", "npz or .csv"),
        ("shwo done", "did you mean show"),
        ("show done --out a.png --bogus", "--bogus; `fractal show --help` tells more"),
        ("new", "Missing from fractal new: PATH Folder to make"),
        ("zoom done r --x 1", "--x"),
        ("pairs done --which none", "'trainable'"),
        ("status done/sweep.json", "not a run folder"),
        ("export done done/plan.json/x.npz", "another name"),
        ("new r --seed -1", "seed"),
        ("new r --set arrays=seeded samples=1000000000000", "at most"),
        ("new r --set axes=lr,offset", "unknown setting"),
        ("new r --axes offset drift --set lr_input=nan", "finite"),
        ("zoom done r --cells ²:4 0:4", "FIRST:PAST_LAST"),
    ],
)
def test_bad_input_is_one_sentence(finished, arguments, says):
    """Exit code 2, one line that names the remedy, and not a byte written."""
    before = contents(finished)
    answer = fractal(*arguments.split(), cwd=finished)
    assert answer.returncode == 2
    assert answer.stderr.count("\n") == 1, answer.stderr
    assert answer.stderr.startswith("fractal: ")
    assert says in answer.stderr
    assert answer.stdout == ""
    assert contents(finished) == before


def test_force_draws_rounding(finished):
    """Whoever wants the picture of rounding can have it."""
    arguments = ("new", "rounding", "--x", "1", "1.0000000000000004", "--grid", "8", "8")
    assert fractal(*arguments, "--force", cwd=finished).returncode == 0


def test_a_full_disk_is_one_sentence_and_loses_nothing(finished):
    """A disk that fills up in the middle of a run: exit 2, and the rest comes when there is room."""
    assert fractal("new", "full", *SMALL, "--seed", "9", cwd=finished).returncode == 0
    code = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
sys.argv = ["fractal", "run", "full"]
from fractal_core.__main__ import main
main()
"""
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=finished, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 2, answer.stderr
    assert "nothing that was finished is lost" in answer.stderr
    assert fractal("verify", "full", cwd=finished).returncode == 0
    assert fractal("run", "full", cwd=finished).returncode == 0
    state = json.loads(fractal("status", "full", "--json", cwd=finished).stdout)
    assert state["done"] == state["points"]
