"""What pages are built of, without a page."""

import html
import re

import pytest
from marimo._runtime.params import CLIArgs

from fractal_core import Refused, experiments, forms, sizes


def test_what_cannot_be_done_is_told_in_a_sentence():
    """A refusal and trouble with the disk; a fault of the program is not hidden."""
    told = []
    attempt = forms.attempting(told.append)
    attempt(lambda: told.append("done"))
    assert told == ["", "done"]

    def fails(error: Exception):
        raise error

    attempt(lambda: fails(Refused("not here")))
    attempt(lambda: fails(OSError("no room")))
    assert told[2:] == ["", "not here", "", "no room"]
    with pytest.raises(ZeroDivisionError):
        attempt(lambda: 1 / 0)


@pytest.mark.parametrize(
    ("address", "line", "shown"),
    [
        ({"run": "near"}, {"run": "runs/wide"}, {"run": "near"}),
        ({"preset": "relu"}, {"run": "runs/wide"}, {"preset": "relu"}),
        ({}, {"run": "runs/wide/"}, {"run": "wide"}),
        ({}, {"run": ["runs/wide", "runs/paper/tanh"]}, {"run": "wide,paper/tanh"}),
        ({}, {"run": "elsewhere/wide"}, {"run": "elsewhere/wide"}),
        ({}, {"run": ""}, {}),
        ({}, {}, {}),
    ],
)
def test_an_export_is_told_its_run_on_the_command_line(address, line, shown, tmp_path, monkeypatch):
    """By its folder, and only where the address is empty; no other folder is taken for it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(forms.mo, "query_params", lambda: CLIArgs(address))
    monkeypatch.setattr(forms.mo, "cli_args", lambda: CLIArgs(line))
    assert forms.address(tmp_path / "runs") == shown


def test_every_setting_has_a_field():
    """A list where only some values are allowed; those that an axis moves can be left out."""
    experiment = experiments.preset("tanh").experiment
    fields = forms.settings(experiment, lambda _: None, without=experiment.axes)
    assert fields.value["activation"] == "tanh"
    assert set(fields["exit"].options) == {"nonfinite", "1e12"}
    assert not set(experiment.axes) & set(fields)


def test_grids_of_charts_are_faint_on_any_ground():
    """Lines that are pale on white would be bright on black."""
    shown = forms.shown(sizes.bars({"weights": 1.0}, "GiB"))
    assert re.search(r"gridOpacity\W+0\.3\b", html.unescape(shown.text))


def test_a_heading_says_just_what_it_is_given():
    """The name of a folder is neither Markdown nor HTML, whoever chose it."""
    shown = forms.heading("*a*_b_ <img src=x> `c` #")
    assert "<h2" in shown.text
    assert not re.search(r"<(img|em|strong|code)", shown.text)
    said = html.unescape(re.sub("<[^>]+>", "", shown.text)).strip()
    assert said == "*a*_b_ <img src=x> `c` #"
