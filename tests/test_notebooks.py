"""Every notebook where nobody sits before it: as a script and as an export."""

import ast
import base64
import io
import json
import re
import subprocess
import sys

import pytest
from PIL import Image as Picture
from serving import NOTEBOOKS
from small import region, run
from waiting import until

from fractal_core.bench import zoom

EXPORT = ("-m", "marimo", "-q", "export")
BUTTONS = ("mo.ui.run_button(", "forms.beginning(")
MAPS = ("zoom", "sweep")
"""Notebooks whose map is a widget, which an export replaces by a picture."""


@pytest.mark.parametrize("notebook", sorted(NOTEBOOKS.glob("*.py")), ids=lambda path: path.stem)
def test_a_notebook_that_nobody_watches_starts_nothing(notebook, tmp_path):
    """As a script, as a page and as a Jupyter notebook it has its pictures; no process, no run."""
    page, jupyter = tmp_path / "page.html", tmp_path / "page.ipynb"
    _quietly(tmp_path, str(notebook))
    _quietly(tmp_path, *EXPORT, "html", str(notebook), "-o", str(page))
    assert not (tmp_path / "runs").exists()
    wanted = ()
    if notebook.stem in MAPS:
        run(tmp_path / "runs", "small", region())
        wanted = ("--", "--run", "runs/small")
    _quietly(
        tmp_path,
        *(*EXPORT, "ipynb", str(notebook), "-o", str(jupyter), "--include-outputs"),
        *wanted,
    )
    cells = json.loads(jupyter.read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert outputs
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert "marimo" in page.read_text()
    if wanted:
        shown = "".join("".join(each.get("data", {}).get("text/html", "")) for each in outputs)
        (coded,) = re.findall(r"<img src='data:image/png;base64,([^']+)' alt='small'", shown)
        assert Picture.open(io.BytesIO(base64.b64decode(coded))).width > 1000
        assert "marimo-anywidget" not in shown


@pytest.mark.parametrize("notebook", sorted(NOTEBOOKS.glob("*.py")), ids=lambda path: path.stem)
def test_what_is_typed_makes_no_button_anew(notebook):
    """It would lose a click that reaches a busy kernel together with the change."""
    cells = _cells(notebook)
    elements = {
        name for cell in cells for name in _given(cell, "mo.ui.", "forms.crew(", "forms.beginning(")
    }
    # A drag in the map comes by a way of its own, before a click that follows it.
    elements -= {"heat"}
    changed = _below(cells, [cell for cell in cells if _named(cell) & elements])
    for cell in changed:
        assert not _given(cell, *BUTTONS), cell.name


@pytest.mark.parametrize("notebook", sorted(NOTEBOOKS.glob("*.py")), ids=lambda path: path.stem)
def test_a_click_is_taken_once(notebook):
    """A button counts as clicked until no cell has anything to do: if what it did has a state run
    again who waits for it, it must have been made anew before.
    """
    cells = _cells(notebook)
    for button in {name for cell in cells for name in _given(cell, *BUTTONS)}:
        for state in {name for cell in cells for name in _given(cell, "mo.state(")}:
            if not state.startswith("get_"):  # nobody runs again for the name of what sets it
                continue
            again = _below(cells, [cell for cell in cells if state in _named(cell)])
            waits = [cell.name for cell in again if f"{button}.value" in ast.unparse(cell)]
            made = [cell.name for cell in again if button in _given(cell, *BUTTONS)]
            assert made or not waits, (button, state)


def _cells(notebook):
    module = ast.parse(notebook.read_text())
    return [each for each in module.body if isinstance(each, ast.FunctionDef)]


def _named(cell):
    """What a cell takes from others."""
    return {each.arg for each in cell.args.args}


def _given(cell, *makers):
    """Names that a cell gives to what comes from some function, and to parts of it."""
    return {
        part.id
        for each in ast.walk(cell)
        if isinstance(each, ast.Assign)
        and any(maker in ast.unparse(each.value) for maker in makers)
        for part in ast.walk(each.targets[0])
        if isinstance(part, ast.Name)
    }


def _below(cells, first):
    """Cells, and all that run when they do."""
    given = {
        cell.name: {part.id for part in ast.walk(cell.body[-1]) if isinstance(part, ast.Name)}
        for cell in cells
    }
    found, news = [], first
    while news:
        found += news
        names = set().union(*(given[cell.name] for cell in news))
        news = [cell for cell in cells if cell not in found and _named(cell) & names]
    return found


def _quietly(folder, *command):
    """Run Python in a folder; no process is left and no run was touched."""
    before = _kept(folder)
    answer = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=zoom.environment(folder, control=True),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    until(lambda: not zoom.offspring(folder), "the end of its last process")
    assert _kept(folder) == before


def _kept(folder):
    """All files below `runs`, with what they hold; a folder holds nothing."""
    inside = [folder / "runs", *(folder / "runs").rglob("*")]
    return {path: path.is_file() and path.read_bytes() for path in inside if path.exists()}
