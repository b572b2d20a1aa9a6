"""The commands that draw: plates, films, proofs, and the way back from a figure."""

import os
import re
import socket
from pathlib import Path

import pytest
from PIL import Image as Picture
from small import region, run

import fractal_core.commands.open as opening
from fractal_core import machine, published, recipe
from fractal_core.__main__ import execute


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with two runs, one zoomed out of the other."""
    folder = tmp_path_factory.mktemp("look")
    run(folder / "runs", "wide", region())
    run(folder / "runs", "near", region().zoom((1.0, 10.0), (1.0, 10.0)))
    return folder


@pytest.fixture
def here(made, monkeypatch):
    monkeypatch.chdir(made)
    return made


def test_a_plate_of_runs_with_its_proof(here, capsys):
    """Two files, both with the recipe of both runs."""
    command = "plate runs/wide runs/near --out plate.pdf --caption --proof proof.png"
    assert execute(command.split()) == 0
    assert capsys.readouterr().out.split() == ["plate.pdf", "proof.png"]
    for name in ("plate.pdf", "proof.png"):
        assert [shown.name for shown in recipe.read(here / name).runs] == ["wide", "near"]
    assert execute(["show", "runs/wide", "--out", "a.pdf", "--proof", "proof.pdf"]) == 2
    assert "end in .png" in capsys.readouterr().err


def test_the_plate_of_the_paper_is_one_command(here, capsys, monkeypatch):
    """Windows that are missing are trained, in the folders of the table; then it only draws."""
    monkeypatch.setattr(published, "NAMES", ("single", "linear"))
    command = ["plate", "--grid", "8", "8", "--steps", "21", "--out", "paper.svg"]
    assert execute(command) == 0
    assert "linear: map 64/64 runs" in capsys.readouterr().err
    shown = recipe.read(here / "paper.svg").runs
    assert [each.name for each in shown] == ["single-8x8-21", "linear-8x8-21"]
    assert (here / "runs/published/single-8x8-21/sweep.json").exists()
    text = (here / "paper.svg").read_bytes()
    assert execute(command) == 0
    assert (here / "paper.svg").read_bytes() == text


def test_keyframes_are_priced_and_made_and_the_film_goes_through_them(here, capsys):
    """The commands that are printed are those that follow."""
    assert execute(["film", "runs/near", "runs/wide", "--make"]) == 0
    first, *folders, train, roll = capsys.readouterr().out.splitlines()
    runs = f"{3 * 16 * 24:,} runs to train, "
    assert re.match(f"3 keyframes, {runs}(about .* s|under 1 s) on this machine$", first)
    assert train == f"next: for run in {' '.join(folders)}; do fractal run $run; done"
    command = roll.removeprefix("then: fractal ").replace("ZOOM.mp4", "zoom.gif")
    assert execute([*command.split(), "--size", "96", "--per-factor", "2"]) == 0
    with Picture.open(here / "zoom.gif") as film:
        assert film.n_frames > 8
    assert len(recipe.read(here / "zoom.gif").runs) == 5


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("film runs/wide", "say what to write"),
        ("film runs/wide --out film.avi", "choose .mp4 or .gif"),
        ("film runs/wide --make", "between two runs"),
        ("open zooom", "did you mean zoom?"),
        ("open zoom --port 99999", "not between 1 and 65535"),
        ("open zoom --port 0", "not between 1 and 65535"),
        ("open nothing.pdf", "name a figure that is there"),
    ],
)
def test_what_cannot_be_is_one_sentence(here, capsys, command, said):
    """And nothing is written."""
    before = sorted(path.name for path in here.iterdir())
    assert execute(command.split()) == 2
    answer = capsys.readouterr()
    assert answer.err.startswith("fractal: ")
    assert answer.err.count("\n") == 1
    assert said in answer.err
    assert sorted(path.name for path in here.iterdir()) == before


def test_a_figure_opens_the_zoom_notebook_at_its_run(here, capsys, monkeypatch):
    """The address that is said names the run, the port and the token that the server will have."""
    execs = []
    monkeypatch.setattr(os, "execve", lambda *given: execs.append(given))
    assert execute(["show", "runs/wide", "--out", "map.pdf", "--child", "runs/near"]) == 0
    capsys.readouterr()
    port = machine.free_port()
    assert execute(["open", "map.pdf", "--port", str(port)]) == 0
    wide, near = capsys.readouterr().out.splitlines()
    assert wide.startswith(f"map.pdf shows http://127.0.0.1:{port}/?run=wide&access_token=")
    assert "run=near" in near
    (_, command, environment) = execs[0]
    assert command[4].endswith("zoom.py")
    assert command[command.index("--port") + 1] == str(port)
    assert environment["FRACTAL_ALLOW_CONTROL"] == "0"
    token = wide.rpartition("=")[2]
    pipe = command[command.index("--token-password-file") + 1]
    assert Path(pipe).read_text() == token


def test_a_busy_port_is_refused_before_an_address_is_said(here, capsys, monkeypatch):
    """Or the token would be sent to whoever listens there."""
    monkeypatch.setattr(os, "execve", lambda *given: pytest.fail("started"))
    assert execute(["show", "runs/wide", "--out", "map.pdf"]) == 0
    capsys.readouterr()
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert execute(["open", "map.pdf", "--port", str(other.getsockname()[1])]) == 2
    answer = capsys.readouterr()
    assert answer.out == ""
    assert "cannot be listened on: Address already in use" in answer.err


def test_a_notebook_that_is_not_there_is_refused(here, capsys, monkeypatch):
    """All seven names are known; one whose file is missing says so."""
    assert len(opening.NOTEBOOKS) == 7
    monkeypatch.setattr(opening.fractal_core, "__file__", str(here / "package" / "__init__.py"))
    for name in opening.NOTEBOOKS:
        assert execute(["open", name]) == 2
        assert f"{name}.py is not there" in capsys.readouterr().err
