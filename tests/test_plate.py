"""Plates and proofs: several maps on a page, and a page for every eye."""

import re

import numpy as np
import pytest
from page import assert_clear, texts_of
from PIL import Image as Picture
from small import QUICK, region, run
from test_figures import DEEPEST, INIT, TANH, WIDE, lab, nearest, picture_of

from fractal_core import Refused, TinyNetworks, figures, plate, press, proof, recipe, sheet
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
    stores = [run(tmp_path, name, region(), whole=False) for name in ("one", "two")]
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
    run(tmp_path, "begun", region(), QUICK, whole=False)
    folder = tmp_path / "out"
    assert press.headless([str(tmp_path / "done"), str(tmp_path / "begun")], str(folder)) == 0
    written = {path.name for path in folder.iterdir()}
    assert {"done-map.pdf", "done-panels3.pdf", "done-panels4.pdf", "plate.pdf"} <= written
    assert "done-dimension.pdf" in written
    assert "begun-dimension.pdf" not in written
    assert re.search(r"no .*begun-dimension\.pdf: ", capsys.readouterr().err)
    assert recipe.read(folder / "done-panels4.pdf").kind == "4 panels"
    assert press.headless([str(tmp_path / "none")], str(folder)) == 2
    assert press.headless([str(tmp_path / "done")], "") == 2


def test_a_notebook_writes_below_its_folder_only(tmp_path, monkeypatch):
    """Not beside it, and nowhere else on the machine."""
    monkeypatch.chdir(tmp_path)
    assert press.inside("figures", "a.pdf").name == "a.pdf"
    for folder in ("..", "/etc", "figures/../.."):
        with pytest.raises(Refused, match="not below"):
            press.inside(folder, "a.pdf")


def test_keyframes_become_run_folders_once(tmp_path):
    """Made with the outer run's recipe, found again the second time, and priced before."""
    wide = run(tmp_path, "wide", region())
    near = run(tmp_path, "near", region().zoom((1.0, 10.0), (1.0, 10.0)), whole=False)
    views = press.keyframes(tmp_path, [near, wide])
    assert len(views) == 3
    like = press.explore.open_view(tmp_path, "wide")
    assert press.price(views, like).startswith(f"3 keyframes, {3 * 16 * 24:,} runs to train, about")
    made = press.make(views)
    assert [store.path.name.rpartition("-")[0] for store in made] == [
        "near-key01",
        "near-key02",
        "near-key03",
    ]
    assert all(store.sweep.experiment == wide.sweep.experiment for store in made)
    again = press.keyframes(tmp_path, [wide, near])
    assert [view.path for view in again] == [store.path for store in made]
    with pytest.raises(Refused, match="between two runs"):
        press.keyframes(tmp_path, [wide])
