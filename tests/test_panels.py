"""Panels say what the runs came to: every colour its loss or label, nothing missing hidden."""

import dataclasses
import re

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from page import assert_clear, texts_of
from PIL import Image as Picture
from test_figures import VISION, lab, nearest

from fractal_core import panels, sheet
from fractal_core.errors import Refused
from fractal_core.figures import MISSING, save
from fractal_core.panels import LEARNED, LOSSES, edges, panels_figure
from fractal_core.plane import Axis, Grid, Region
from fractal_core.store import Image

NAMES = "matrix learning rate", "unembedding learning rate"
INF = np.inf

# A first loss of 2 everywhere, so that final losses are cut off at 4. Row 0 is the lowest y.
FINAL = [[1.0, 1.5, 1.9, 2.5], [0.5, 1.2, 3.9, 50.0], [0.5, 2.5, INF, INF]]
OUTCOME = [[1, 1, 1, 2], [1, 1, 2, 2], [1, 2, 3, 3]]


def image_of(final, outcome, missing=None, first=2.0, region=None):
    final, outcome = np.asarray(final, float), np.asarray(outcome, np.uint8)
    rows, cols = final.shape
    axes = Axis("matrix_lr", 1e-6, 3e-1, cols), Axis("unembedding_lr", 1e-6, 1e-1, rows)
    mask = np.zeros(final.shape, bool) if missing is None else np.asarray(missing, bool)
    arrays = {
        "outcome": outcome,
        "measure": np.where(outcome == 1, -1.0, 1.0),
        "first_loss": np.full(final.shape, first),
        "tail_loss": final,
        "final_loss": final,
        "steps": np.full(final.shape, 40, np.int32),
        "seconds": np.ones(final.shape),
    }
    arrays = {name: np.ma.masked_array(array, mask) for name, array in arrays.items()}
    return Image(Grid.over(region or Region(*axes)), **arrays)


def sweep_of(rows, cols, missing=None, region=None):
    """A bowl with a wavy rim, beyond which losses rise and then are infinite."""
    y, x = np.indices((rows, cols)) / np.array([rows, cols])[:, None, None]
    rise = 3 * x + 0.4 * np.sin(9 * y) - 1.6
    final = np.where(rise < 0, 2 - 1.5 * np.exp(-20 * (x - 0.3) ** 2), 2 + 6 * rise)
    final[rise > 0.9] = INF
    outcome = np.where(final < 2, 1, np.where(np.isinf(final), 3, 2))
    return image_of(final, outcome, missing, region=region)


def small():
    return image_of(FINAL, OUTCOME)


def rgb(colour):
    return np.round(np.array(to_rgb(colour)) * 255).astype(int).tolist()


def said_in(figure):
    return " | ".join(text.get_text() for text in texts_of(figure))


# Colours


def test_the_trainable_are_blue_by_the_rank_of_their_loss():
    """Of losses 0.5, 1, 1.2, 1.5 and 1.9 the lowest is darkest; equal ones share a colour."""
    panel = panels.trainability(small())
    ladder = {0.5: 1.0, 1.0: 0.75, 1.2: 0.5, 1.5: 0.25, 1.9: 0.0}
    for cell in zip(*np.nonzero(np.array(OUTCOME) == 1), strict=True):
        wanted = LEARNED(ladder[FINAL[cell[0]][cell[1]]], bytes=True)[:3]
        assert panel.colours[cell].tolist() == list(map(int, wanted))
    for cell in zip(*np.nonzero(np.array(OUTCOME) != 1), strict=True):
        assert panel.colours[cell].tolist() == rgb(panels.NOT_TRAINABLE)


def test_the_bar_of_ranks_says_the_losses_at_its_colours():
    """Dark at the lowest loss on the left, light at the highest; a text where its colour is."""
    bar = panels.trainability(small()).bar
    assert sorted(bar.texts) == [
        (0.0, "0.500"), (0.25, "1.00"), (0.5, "1.20"), (0.75, "1.50"), (1.0, "1.90"),
    ]  # fmt: skip
    np.testing.assert_allclose(bar.colours[0, [0, -1]] / 255, LEARNED([1.0, 0.0])[:, :3], atol=0.01)


def test_close_losses_get_the_digits_that_tell_them_apart():
    """Losses that differ in the fifth digit have texts that differ."""
    image = image_of([[1.00001, 1.00002]], [[1, 1]])
    assert [text for _, text in panels.trainability(image).bar.texts] == ["1.00001", "1.00002"]
    tiny = image_of([[3e-12, 2e-3]], [[1, 1]])
    assert panels.trainability(tiny).bar.texts[0][1] == "3.00 × 10⁻¹²"


def test_final_losses_are_linear_up_to_twice_the_first():
    """From 0.5 to 4; what is above is drawn and said as that, and infinite has its own colour."""
    panel = panels.final_loss(small())
    for row, col in np.ndindex(3, 4):
        loss = FINAL[row][col]
        share = (min(loss, 4.0) - 0.5) / 3.5
        wanted = LOSSES(share, bytes=True)[:3] if np.isfinite(loss) else rgb(panels.INFINITE)
        assert panel.colours[row, col].tolist() == list(map(int, wanted))
    assert panel.legend == [(panels.INFINITE, "infinite")]
    places = {text: place for place, text in panel.bar.texts}
    assert places["≥ 4.00"] == 1.0
    assert places["2"] == pytest.approx((2 - 0.5) / 3.5)
    assert "above 4.00, twice the first loss" in panel.note
    assert "linear" in panel.bar.name


def test_nothing_is_cut_off_where_nothing_blew_up():
    """The bar ends at the highest loss, and neither legend nor note speaks of more."""
    panel = panels.final_loss(image_of([[0.5, 1.0], [2.0, 3.0]], [[1, 1], [2, 2]]))
    assert panel.colours[1, 1].tolist() == list(map(int, LOSSES(1.0, bytes=True)[:3]))
    assert not panel.legend
    assert not panel.note
    assert not any("≥" in text for _, text in panel.bar.texts)


def test_losses_of_many_decades_are_drawn_by_their_logarithm():
    """From 1e-8 to 1, 1e-4 is half-way."""
    panel = panels.final_loss(image_of([[1e-8, 1e-4, 1.0]], [[1, 1, 1]]))
    np.testing.assert_allclose(panel.colours[0] / 255, LOSSES([0.0, 0.5, 1.0])[:, :3], atol=1 / 255)
    assert "log" in panel.bar.name
    assert (0.5, "10⁻⁴") in [(pytest.approx(place), text) for place, text in panel.bar.texts]


@pytest.mark.parametrize(
    "final", [[[1.3, 1.3]], [[0.0, 0.0]], [[INF, INF]], [[90.0, 80.0]], [[5e-324, 1.0]]]
)
def test_degenerate_losses_are_drawn_too(final):
    """One value, zero, all infinite, all above the cut, or the smallest float there is."""
    outcome = np.where(np.array(final) < 2, 1, 3)
    assert_clear(panels_figure(image_of(final, outcome)))


def test_labels_take_their_two_colours():
    """Untrainable is not trainable but stable."""
    either, stable = panels.trainable_or_not(small()), panels.stability(small())
    untrainable = (0, 3)
    assert either.colours[untrainable].tolist() == rgb(panels.NOT_TRAINABLE)
    assert stable.colours[untrainable].tolist() == rgb(panels.STABLE)
    assert stable.colours[2, 3].tolist() == rgb(panels.DIVERGED)
    assert either.colours[0, 0].tolist() == rgb(panels.TRAINABLE)
    for panel, words in ((either, "trainable"), (stable, "stable")):
        assert panel.legend[0][1] == words
        assert panel.colours[0, 0].tolist() == rgb(panel.legend[0][0])
        assert panel.colours[2, 3].tolist() == rgb(panel.legend[2][0])


def test_missing_is_grey_in_every_panel_and_moves_no_other_colour():
    """Whatever lies under the mask has no say in ranks and limits."""
    missing = np.zeros((3, 4), bool)
    missing[1] = True
    final = np.array(FINAL)
    hidden = final.copy()
    hidden[1] = np.nan, 1e300, -1e300, INF
    grey = rgb(MISSING)
    for draw in (panels.trainability, panels.final_loss, panels.trainable_or_not, panels.stability):
        colours = draw(image_of(final, OUTCOME, missing)).colours
        assert (colours[1] == grey).all()
        assert not (colours[[0, 2]] == grey).all(axis=-1).any()
        np.testing.assert_array_equal(draw(image_of(hidden, OUTCOME, missing)).colours, colours)


def test_an_inferred_outcome_has_a_label_but_no_loss():
    """It is grey where a loss would be shown, and the share of what was not computed is said."""
    missing = np.zeros((3, 4), bool)
    missing[0, 0] = missing[0, 3] = True
    image = image_of(FINAL, OUTCOME, missing)
    image = dataclasses.replace(image, outcome=np.ma.masked_array(OUTCOME, False, np.uint8))
    learned, either = panels.trainability(image), panels.trainable_or_not(image)
    assert learned.colours[0, 0].tolist() == rgb(MISSING)
    assert learned.colours[0, 3].tolist() == rgb(panels.NOT_TRAINABLE)
    assert panels.final_loss(image).colours[0, 3].tolist() == rgb(MISSING)
    assert either.colours[0, 0].tolist() == rgb(panels.TRAINABLE)
    assert "17 % not computed yet" in said_in(panels_figure(image))


@pytest.mark.parametrize("vision", list(VISION))
def test_colours_that_stand_in_one_panel_differ_for_every_eye(vision):
    """Red from every blue, infinite from every loss, the labels of a pair, and all from grey."""
    grey, red, brown = (
        lab([to_rgb(colour)], vision) for colour in (MISSING, panels.NOT_TRAINABLE, panels.INFINITE)
    )
    blues = lab(LEARNED(np.linspace(0, 1, 99))[:, :3], vision)
    losses = lab(LOSSES(np.linspace(0, 1, 99))[:, :3], vision)
    stable, blue = (lab([to_rgb(c)], vision) for c in (panels.STABLE, panels.TRAINABLE))
    assert nearest(red, blues) > 45
    assert nearest(brown, losses) > 30
    assert nearest(red, blue) > 45
    assert nearest(brown, stable) > 45
    assert min(nearest(grey, some) for some in (blues, red, brown, stable, blue)) > 18
    assert nearest(grey, losses) > 11


def test_both_scales_run_from_dark_to_light():
    """Lightness orders losses, so they survive in grey-scale and for every eye."""
    for vision in VISION:
        assert (np.diff(lab(LEARNED(np.linspace(0, 1, 60))[:, :3], vision)[:, 0]) < 0).all()
        assert (np.diff(lab(LOSSES(np.linspace(0, 1, 60))[:, :3], vision)[:, 0]) > 0).all()


# Boundaries


def test_the_boundary_runs_between_cells_whose_labels_differ():
    """Around a single cell there are its four sides; none where a neighbour is missing."""
    labels = np.ma.masked_array(np.zeros((3, 4), bool), False)
    labels[1, 2] = True
    sides = {tuple(map(tuple, side.astype(int).tolist())) for side in edges(labels)}
    assert sides == {
        ((2, 1), (2, 2)), ((3, 1), (3, 2)), ((2, 1), (3, 1)), ((2, 2), (3, 2)),
    }  # fmt: skip
    labels[1, 3] = np.ma.masked
    assert len(edges(labels)) == 3


def test_each_label_panel_has_its_own_boundary():
    """Drawn as lines, no thicker than a third of a cell."""
    image = sweep_of(256, 256)
    figure = panels_figure(image, panels=4)
    drawn = {
        axes.get_label(): line
        for axes in figure.axes
        for line in axes.collections
        if isinstance(line, LineCollection)
    }
    assert set(drawn) == {"trainable or not", "stability"}
    for name, labels in (
        ("trainable or not", image.outcome == 1),
        ("stability", image.outcome < 3),
    ):
        assert len(drawn[name].get_segments()) == len(edges(labels)) > 100
        cell = figure.axes[-1].get_window_extent().width / figure.dpi * 72 / 256
        assert drawn[name].get_linewidth()[0] == pytest.approx(cell / 3)


# Pages


def maps(figure):
    return {axes.get_label(): axes for axes in figure.axes if axes.get_xlim()[1] > 1}


@pytest.mark.parametrize(
    ("shape", "count", "width"),
    [
        ((16, 16), 3, 183), ((16, 16), 4, 89), ((64, 64), 4, 183), ((64, 64), 3, 89),
        ((256, 256), 3, 183), ((256, 256), 4, 89), ((8, 64), 3, 183), ((64, 8), 4, 89),
    ],
)  # fmt: skip
def test_no_text_touches_another(shape, count, width):
    """At both journal widths, finished or not, with long names, and on a page of 247 mm."""
    missing = np.indices(shape).sum(axis=0) % 3 == 0
    figure = panels_figure(
        sweep_of(*shape, missing),
        panels=count,
        title="Fine-tuning a small language model, which is a title that is rather long",
        labels=NAMES,
        width_mm=width,
    )
    assert figure.get_figwidth() * 25.4 == pytest.approx(width)
    assert figure.get_figheight() * 25.4 < 247
    assert_clear(figure)
    drawn = maps(figure)
    assert len(drawn) == count
    for axes in drawn.values():
        frame = axes.get_window_extent()
        assert frame.width == pytest.approx(frame.height)
        assert frame.width >= max(shape)


@pytest.mark.parametrize(("count", "width"), [(3, 183), (4, 89)])
def test_deep_zooms_and_whole_numbers_have_room(count, width):
    """Long notes of a zoom wrap below the panels, and there are at least two ticks to read by."""
    deep = Region(
        Axis("a", 2.67398835471957e-1, 2.67398835475071e-1, 24),
        Axis("b", 1.74269509700711e2, 1.74269509702741e2, 16),
    )
    whole = Region(
        Axis("batch", 1.0, 10_000.0, 24, "log10", integer=True),
        Axis("depth", 2.0, 17.0, 16, "linear", integer=True),
    )
    for region in (deep, whole):
        picture = sweep_of(*Grid.over(region).shape, region=region)
        figure = panels_figure(picture, panels=count, labels=NAMES, width_mm=width)
        assert_clear(figure)
        last = figure.axes[-1]
        assert sum(bool(tick.get_text()) for tick in last.get_xticklabels()) >= 2


def test_panels_share_their_axes():
    """Ticks stand at the same places; only the bottom row and the left column are labelled."""
    figure = panels_figure(sweep_of(16, 16), panels=4, labels=NAMES)
    drawn = maps(figure)
    assert list(drawn) == ["trainability", "final loss", "trainable or not", "stability"]
    for name, axes in drawn.items():
        np.testing.assert_array_equal(axes.get_xticks(), drawn["stability"].get_xticks())
        np.testing.assert_array_equal(axes.get_yticks(), drawn["stability"].get_yticks())
        bottom, left = name in list(drawn)[2:], name in list(drawn)[::2]
        assert axes.get_xlabel() == (NAMES[0] if bottom else "")
        assert axes.get_ylabel() == (NAMES[1] if left else "")
        assert any(tick.get_text() for tick in axes.get_xticklabels()) == bottom
        assert any(tick.get_text() for tick in axes.get_yticklabels()) == left


def test_the_page_says_how_it_is_read():
    """Titles with letters, the cut, the scale by rank, what is missing, and the caption."""
    image = image_of(FINAL, OUTCOME, np.eye(3, 4))
    said = said_in(panels_figure(image, panels=4, caption="Forty steps.")).replace("\n", " ")
    for words in (
        "a  trainability", "b  final loss", "c  trainable or not", "d  stability", "by rank",
        "≥ 4.00", "not trainable", "infinite", "boundary", "diverged", "25 % not computed yet",
        "losses above 4.00, twice the first loss", "Forty steps.",
    ):  # fmt: skip
        assert words in said
    assert "stability" not in said_in(panels_figure(small()))
    assert "not computed" not in said_in(panels_figure(small()))


def test_an_empty_sweep_is_grey(tmp_path):
    """Nothing computed yet is no error, and no bar pretends otherwise."""
    figure = panels_figure(image_of(FINAL, OUTCOME, np.ones((3, 4))), panels=4)
    save(figure, tmp_path / "empty.png")
    assert "100 % not computed yet" in said_in(figure)
    assert len(figure.axes) == 4


def test_pixels_of_a_png_are_the_cells_of_the_panels(tmp_path):
    """In the middle of every cell of each panel stands its colour."""
    image = small()
    figure = panels_figure(image, panels=4)
    save(figure, tmp_path / "four.png")
    pixels = np.asarray(Picture.open(tmp_path / "four.png").convert("RGB"))
    height, width = pixels.shape[:2]
    assert width == round(183 / 25.4 * 300)
    draws = panels.trainability, panels.final_loss, panels.trainable_or_not, panels.stability
    for draw, axes in zip(draws, maps(figure).values(), strict=True):
        frame = axes.get_position()
        x = (frame.x0 + (np.arange(4) + 0.5) / 4 * frame.width) * width
        y = (1 - frame.y0 - (np.arange(3) + 0.5) / 3 * frame.height) * height
        np.testing.assert_array_equal(
            pixels[np.ix_(y.astype(int), x.astype(int))], draw(image).colours
        )


def test_a_pdf_holds_native_pixels_and_true_type_fonts(tmp_path, monkeypatch):
    """One pixel a cell, text as type 42, no date."""
    monkeypatch.setitem(sheet.STYLE, "pdf.compression", 0)
    save(panels_figure(small()), tmp_path / "a.pdf")
    data = (tmp_path / "a.pdf").read_bytes()
    assert len(re.findall(rb"/Width 4\s+/Height 3\b", data)) == 3
    assert b"/FontFile2" in data
    assert b"/Type3" not in data
    assert b"CreationDate" not in data


def test_an_unreasonable_width_is_refused():
    """Narrower than a column, or wider than a poster."""
    for width in (50, 900):
        with pytest.raises(Refused, match="between 89 and 400"):
            panels_figure(small(), width_mm=width)
