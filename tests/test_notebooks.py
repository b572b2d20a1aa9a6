"""Every notebook where nobody sits before it: as a script and as an export."""

import json
import subprocess
import sys

import pytest
from serving import NOTEBOOKS

from fractal_core.bench import zoom

EXPORT = ("-m", "marimo", "-q", "export")


@pytest.mark.parametrize("notebook", sorted(NOTEBOOKS.glob("*.py")), ids=lambda path: path.stem)
def test_a_notebook_that_nobody_watches_starts_nothing(notebook, tmp_path):
    """As a script, as a page and as a Jupyter notebook it has its pictures; no process, no run."""
    page, jupyter = tmp_path / "page.html", tmp_path / "page.ipynb"
    for command in (
        (str(notebook),),
        (*EXPORT, "html", str(notebook), "-o", str(page)),
        (*EXPORT, "ipynb", str(notebook), "-o", str(jupyter), "--include-outputs"),
    ):
        answer = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env=zoom.environment(tmp_path, control=True),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        assert answer.returncode == 0, answer.stdout + answer.stderr
        assert zoom.offspring(tmp_path) == []
        assert not (tmp_path / "runs").exists()
    cells = json.loads(jupyter.read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert outputs
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert "marimo" in page.read_text()
