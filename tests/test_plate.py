"""Plates and proofs: several maps on a page, and a page for every eye."""

import errno
import re

import numpy as np
import pytest
from page import assert_clear, texts_of
from PIL import Image as Picture
from small import region, run
from test_figures import DEEPEST, INIT, TANH, WIDE, lab, nearest, picture_of

from fractal_core import (
    Refused,
    TinyNetworks,
    calibration,
    engine,
    figures,
    plate,
    press,
    proof,
    recipe,
    sheet,
)
from fractal_core.plate import Tile, plate_figure

NAMES = ("input layer learning rate", "output layer learning rate")


def tiles(*regions):
    return [
        Tile(picture_of(one), NAMES, f"condition number {k}", "128 × 128 runs of 1000 steps")
        for k, one in enumerate(regions)
    ]


SIX = tiles(WIDE, TANH, INIT, DEEPEST, TANH.zoom((13.29977, 13.29978), (200.3583, 200.3585)), INIT)


@pytest.mark.parametrize(("count", "width"), [(6, 183), (6, 165), (4, 183), (1, 89), (5, 183)])
@pytest.mark.parametrize("quantity", ["measure", "outcome"])
def test_a_plate_is_clear(count, width, quantity):
    """At the printed size every text is at least 6 pt, on the page and clear of the others."""
    figure = plate_figure(
        SIX[:count], quantity=quantity, title="A plate", caption="Some words. " * 40, width_mm=width
    )
    assert figure.get_figwidth() * 25.4 == pytest.approx(width)
    assert_clear(figure)


def test_six_maps_stand_in_two_rows_of_three(tmp_path, monkeypatch):
    """Each at one pixel a cell, with its title and the exact ends of its axes."""
    monkeypatch.setitem(sheet.STYLE, "pdf.compression", 0)
    figure = plate_figure(SIX)
    maps = [axes for axes in figure.axes if axes.get_label().startswith("condition")]
    corners = [tuple(np.round(axes.get_position().p0, 3)) for axes in maps]
    assert [len({corner[side] for corner in corners}) for side in (0, 1)] == [3, 2]
    said = {text.get_text() for text in texts_of(figure)}
    assert {"13.29976231", "13.29978604", "200.3582269", "a condition number 0"} <= said
    figures.save(figure, tmp_path / "plate.pdf")
    data = (tmp_path / "plate.pdf").read_bytes()
    for tile in SIX:
        assert figures.paint(tile.image)[::-1].tobytes() in data
    assert b"/FontFile2" in data
    assert b"/Type3" not in data


def test_ends_that_do_not_fit_are_marked_as_rounded():
    """Seventeen digits at both ends of a narrow map are too many; what is printed says so."""
    axis = DEEPEST.x
    assert plate.ends_of(axis, 100) == ("0.267398835471957", "0.267398835475071")
    low, high = plate.ends_of(axis, 45)
    assert low.startswith("≈ 0.2673988354")
    assert low != high


@pytest.mark.parametrize(
    ("count", "width", "match"),
    [(0, 183, "0 runs"), (13, 183, "13 runs"), (6, 120, "choose between"), (1, 500, "choose")],
)
def test_an_impossible_plate_is_refused(count, width, match):
    """Too many maps, or too little room for them."""
    with pytest.raises(Refused, match=match):
        plate_figure((SIX * 3)[:count], width_mm=width)


def test_runs_of_one_condition_go_by_their_names(tmp_path):
    """Titles tell the maps apart; the recipe holds all runs in order."""
    stores = [run(tmp_path, name, region()) for name in ("one", "two")]
    printed = press.draw("plate", stores)
    said = {text.get_text() for text in texts_of(printed.figure)}
    assert {"a one", "b two"} <= said
    other = run(tmp_path, "three", region(), TinyNetworks(samples=1, steps=60), whole=False)
    said = {text.get_text() for text in texts_of(press.draw("plate", [stores[0], other]).figure)}
    assert {"a tanh, full batch", "b tanh, one sample"} <= said
    printed.save(tmp_path / "plate.svg")
    assert [shown.name for shown in recipe.read(tmp_path / "plate.svg").runs] == ["one", "two"]


def test_a_proof_shows_the_figure_to_every_eye(tmp_path):
    """Grey has no colour, the first page is the figure itself, and neutral tones stay neutral."""
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    assert np.abs(proof.seen(picture, "as printed").astype(int) - picture).max() <= 1
    grey = proof.seen(picture, "grey")
    assert (grey == grey[..., :1]).all()
    neutral = np.repeat(np.arange(0, 256, 5, dtype=np.uint8)[None, :, None], 3, axis=2)
    for vision in proof.VISIONS:
        assert np.abs(proof.seen(neutral, vision).astype(int) - neutral).max() <= 1
    figure = figures.map_figure(picture_of(WIDE))
    before = figure.dpi
    page = proof.proof_figure(figure)
    assert figure.dpi == before
    assert [axes.get_label() for axes in page.axes] == list(proof.VISIONS)
    figures.save(page, tmp_path / "proof.png")
    with Picture.open(tmp_path / "proof.png") as found:
        assert found.width > 1500


def test_red_and_green_are_alike_to_some_and_not_to_others():
    """A pair of equal lightness that deuteranopia confuses stays apart for tritanopia."""
    pair = np.array([[[200, 90, 60], [120, 130, 30]]], np.uint8)

    def apart(vision):
        one, other = lab(proof.seen(pair, vision)[0] / 255)
        return np.linalg.norm(one - other)

    assert apart("deuteranopia") < apart("as printed") / 3
    assert apart("tritanopia") > apart("as printed") / 2


def test_the_sides_of_the_palette_stay_apart_under_every_proof():
    """`split` for every eye and in grey; `paper` not, and the proof says so."""
    split, paper = proof.separation("split"), proof.separation("paper")
    assert min(split.values()) > 18
    assert min(paper["protanopia"], paper["deuteranopia"]) < 6
    walk = (np.linspace(0.25, 1, 30)[:, None] * [[-1, 1]] + 1) / 2
    colours = figures.PALETTES["split"].sides(walk, bytes=True)[..., :3]
    for vision in list(proof.VISIONS)[:4]:
        trained, failed = (lab(proof.seen(colours[:, [k]], vision)[:, 0] / 255) for k in (0, 1))
        assert nearest(trained, failed) > 20


def test_headless_writes_what_it_can(tmp_path, capsys):
    """Map and panels as PDF with the recipe; of a figure that cannot be drawn the reason."""
    run(tmp_path, "done", region())
    next(iter(engine.run_here(run(tmp_path, "begun", region(rows=64, cols=64), whole=False))))
    run(tmp_path, "empty", region(), whole=False)
    folder = tmp_path / "out"
    names = [str(tmp_path / name) for name in ("done", "begun", "empty")]
    assert press.headless(names, str(folder)) == 0
    written = {path.name for path in folder.iterdir()}
    assert {"done-map.pdf", "done-panels3.pdf", "done-panels4.pdf", "plate.pdf"} <= written
    assert "done-dimension.pdf" in written
    assert "begun-dimension.pdf" not in written
    said = capsys.readouterr().err
    assert re.search(r"no .*begun-dimension\.pdf: ", said)
    assert said.count("nothing of empty is trained yet; `fractal run ") == 1
    assert not [name for name in written if name.startswith("empty")]
    assert recipe.read(folder / "done-panels4.pdf").kind == "4 panels"
    assert press.headless([str(tmp_path / "none")], str(folder)) == 2
    assert press.headless([str(tmp_path / "done")], "") == 2


@pytest.mark.parametrize(("known", "resolved"), [("Koch snowflake", True), ("coin flips", False)])
def test_the_caption_of_a_dimension_says_why_it_lies_above_its_slopes(
    known, resolved, tmp_path, monkeypatch
):
    """Where there is one; the title says it with its interval, the chart draws the fit."""
    found = calibration.judged(known, 1)
    monkeypatch.setattr(press, "measured", lambda *_: found)
    drawn = press.draw("dimension", [run(tmp_path, "done", region())])
    assert ("small boxes read low" in drawn.caption) == resolved
    named = {text.get_text() for text in drawn.figure.axes[1].get_legend().get_texts()}
    assert ({"its fit", "D of the fit"} <= named) == resolved


def test_runs_of_one_name_become_files_of_their_own(tmp_path, monkeypatch):
    """The folders that they lie in tell them apart, on a plate as well; other names stay short."""
    monkeypatch.setattr(press, "FILES", {"map": "map"})
    stores = [
        run(tmp_path / place, name, region(rows=rows))
        for place, name, rows in (("one", "tanh", 8), ("two", "tanh", 9), ("two", "relu", 10))
    ]
    paths = [store.path for store in stores]
    assert press.headless([str(path) for path in paths], str(tmp_path / "out")) == 0
    written = {path.name: recipe.read(path).runs for path in (tmp_path / "out").iterdir()}
    assert [shown.id for shown in written.pop("plate.pdf")] == [each.sweep.id for each in stores]
    names = "one-tanh-map.pdf", "two-tanh-map.pdf", "relu-map.pdf"
    assert {name: shown[0].id for name, shown in written.items()} == {
        name: store.sweep.id for name, store in zip(names, stores, strict=True)
    }
    assert press.name_of("map", paths[:1]) == "tanh-map"
    assert press.name_of("film", paths[::2], paths) == "one-tanh-to-relu-film"
    said = {text.get_text() for text in texts_of(press.draw("plate", stores).figure)}
    assert {"a one-tanh", "b two-tanh", "c relu"} <= said


def test_headless_says_in_a_sentence_what_cannot_be_written_or_read(tmp_path, capsys, monkeypatch):
    """A file in place of the folder, a full disk, a run that may not be read, nothing to draw."""
    store = run(tmp_path, "begun", region(rows=64, cols=64), whole=False)
    next(iter(engine.run_here(store)))
    begun = str(store.path)
    (tmp_path / "file").touch()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def locked(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    for target, name, broken, said in (
        ("file", None, None, "fractal: cannot write .*begun-map.pdf: .*; choose another folder"),
        ("out", (figures.Files, "put_latest"), full, "fractal: cannot write .*: No space left"),
        ("out", (press.experiments, "read_run"), locked, "fractal: .*begun: Permission denied"),
        ("out", (press, "FILES"), {"dimension": "dimension"}, "no .*begun-dimension.pdf: "),
    ):
        with monkeypatch.context() as patch:
            if name:
                patch.setattr(*name, broken)
            assert press.headless([begun], str(tmp_path / target)) == 2
        error = capsys.readouterr().err
        assert re.match(said, error)
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", press.KINDS)
def test_nothing_but_grey_is_not_drawn(kind, tmp_path):
    """Of a run without a single point there is no figure, but the sentence that says what to do."""
    empty = run(tmp_path, "empty", region(), whole=False)
    with pytest.raises(Refused, match="nothing of empty is trained yet; `fractal run "):
        press.draw(kind, [empty])


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("", 2, "say which run to draw, --run FOLDER"),
        ("--out there", 2, "say which run to draw, --run FOLDER"),
        ("--run one", 2, "say where to write, --out FOLDER"),
        ("--run", 2, "--run: expected one argument"),
        ("--runs one --out there", 2, "there is no option --runs; --help tells"),
        ("--ru one --out there", 2, "there is no option --ru; --help tells"),
        ("--run one two --out there", 2, "'two' belongs to no option; give --run again for each"),
        ("--run one --help", 0, ""),
    ],
)
def test_the_notebook_as_a_script_takes_no_word_that_it_does_not_know(
    words, code, said, capsys, monkeypatch
):
    """It says in one sentence what is wrong, and what there is when it is asked."""
    assert press.script(words.split()) == code
    answer = capsys.readouterr()
    assert said in answer.err
    assert answer.err.count("\n") == (code == 2)
    assert ("usage: " in answer.out) == (code == 0)
    monkeypatch.setattr(press, "headless", lambda *given: 7 * (given == (["a", "b"], "c")))
    assert press.script(["--run", "a", "--run", "b", "--out", "c"]) == 7


def test_an_address_of_a_run_that_is_not_there_chooses_none(tmp_path):
    """It is named in a sentence, and no other run takes its place; no address is the newest."""
    known = {"new": tmp_path / "new", "old": tmp_path / "old"}
    assert press.chosen(known, "") == (["new"], "")
    assert press.chosen(known, "old,new") == (["old", "new"], "")
    names, said = press.chosen(known, "old,nope")
    assert names == []
    assert said.startswith("nope: not among the maps")
    assert press.chosen({}, "") == ([], "")


def test_a_notebook_writes_below_its_folder_only(tmp_path, monkeypatch):
    """Not beside it, and nowhere else on the machine."""
    monkeypatch.chdir(tmp_path)
    assert press.inside("figures", "a.pdf").name == "a.pdf"
    for folder in ("..", "/etc", "figures/../.."):
        with pytest.raises(Refused, match="not below"):
            press.inside(folder, "a.pdf")
