"""The table of the published windows, small."""

import json
import re
import subprocess
import sys

from fractal_core import published


def test_the_windows_are_those_with_a_published_dimension():
    """Six, as in the paper."""
    assert sorted(published.NAMES) == ["init", "linear", "minibatch", "relu", "single", "tanh"]


def test_one_command_makes_the_table(tmp_path):
    """A row with all columns, and the same again from what is there."""
    command = "table runs --only single --grid 40 40 --steps 200"
    first, second = (
        subprocess.run(
            [sys.executable, "-m", "fractal_core", *command.split(), *more],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        for more in ([], ["--json"])
    )
    assert first.returncode == 0, first.stderr
    (row,) = re.findall(r"^\| `single` .*$", first.stdout, re.MULTILINE)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1] == "1.41"
    assert float(cells[2]) > 0.5
    assert re.fullmatch(r"none|\d\.\d\d \(\d\.\d\d to \d\.\d\d\)", cells[4])
    assert "40 x 40 points, 200 steps" in first.stdout
    (window,) = json.loads(second.stdout)["windows"]
    assert window["verdict"]["text"] == cells[5]
    assert window["pairs"]["eps"][0] > window["pairs"]["eps"][-1]
    assert "single: map 0/1,600 runs" in first.stderr
    assert "single: map 1,600/1,600 runs" in second.stderr
    assert " 0/" not in second.stderr
