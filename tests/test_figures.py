"""Figures say what the map says: every cell its colour, every tick its value, nothing hidden."""

import base64
import io
import re
import subprocess
import sys
from decimal import Decimal, localcontext

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, Rectangle
from page import assert_clear, texts_of
from PIL import Image as Picture

from fractal_core import sheet
from fractal_core.errors import Refused
from fractal_core.figures import MISSING, PALETTES, equalise, map_figure, paint, save
from fractal_core.plane import Axis, Grid, Region
from fractal_core.store import Image
from fractal_core.ticks import brief, ticks

WIDE = Region(Axis("input", 1e-3, 1e6, 24), Axis("output", 1e-3, 1e6, 16))
TANH = Region(
    Axis("input", 1.329976231e1, 1.329978604e1, 96),
    Axis("output", 2.003582269e2, 2.003585844e2, 96),
)
INIT = Region(
    Axis("offset", 1.960618282403e-1, 1.960618285243e-1, 96, "linear"),
    Axis("rate", 3.90254607863e1, 3.90254608429e1, 96),
)
DEEPEST = Region(
    Axis("input", 2.67398835471957e-1, 2.67398835475071e-1, 24),
    Axis("output", 1.74269509700711e2, 1.74269509702741e2, 16),
)
NARROW = Region(Axis("a", 0.11, 99.0, 24), Axis("b", 2e-5, 4e-4, 16))
SIGNED = Region(Axis("a", -3e-9, 4e-9, 24, "linear"), Axis("b", 123456.0, 123999.0, 16, "linear"))
WHOLE = Region(
    Axis("batch", 1.0, 10_000.0, 3000, "log10", integer=True),
    Axis("depth", 2.0, 6.0, 5, "linear", integer=True),
)
REGIONS = {
    "wide": WIDE,
    "tanh": TANH,
    "init": INIT,
    "deepest": DEEPEST,
    "narrow": NARROW,
    "signed": SIGNED,
    "whole": WHOLE,
}


def picture_of(region, missing=None, outcome=None):
    """A map of both signs with inf and ties in it: waves whose sign is the side."""
    grid = Grid.over(region)
    rows, cols = np.indices(grid.shape) / np.array(grid.shape)[:, None, None]
    measure = np.sin(7 * cols + 2 * rows) + np.cos(5 * rows * cols) - 0.4
    measure[0, 0], measure[-1, -1] = np.inf, measure[0, -1]
    mask = np.zeros(grid.shape, bool) if missing is None else missing
    outcome = (
        np.where(measure < 0, 1, np.where(measure > 0.5, 3, 2)) if outcome is None else outcome
    )
    whole = np.ma.masked_array(np.zeros(grid.shape, np.int32), mask)
    return Image(
        grid,
        outcome=np.ma.masked_array(outcome.astype(np.uint8), mask),
        measure=np.ma.masked_array(measure, mask),
        first_loss=whole * 1.0,
        tail_loss=whole * 1.0,
        final_loss=whole * 1.0,
        steps=whole,
        seconds=whole * 1.0,
    )


def masked(values):
    return np.ma.masked_array(values, np.zeros(np.shape(values), bool))


def said_in(figure):
    return " | ".join(text.get_text() for text in texts_of(figure))


# Colours


def test_ranks_fill_both_sides_evenly_and_keep_the_sign():
    """Three values a side lie at both ends and the middle of their side; inf is the largest."""
    drawn = equalise(masked([[-5.0, 1.0, -900.0], [np.inf, 3.5, -1.0]]))
    np.testing.assert_allclose(drawn, [[-0.625, 0.25, -1.0], [1.0, 0.625, -0.25]])
    assert not np.ma.getmaskarray(drawn).any()


def test_equal_measures_share_the_mean_of_their_ranks():
    """Two of four are equal, so both stand between rank 1 and 2 of 0 to 3."""
    drawn = equalise(masked([[1.0, 2.0, 2.0, 7.0]]))
    np.testing.assert_allclose(drawn, [[0.25, 0.625, 0.625, 1.0]])


def test_missing_cells_stay_missing_and_count_for_no_rank():
    """What lies under the mask, or is nan, does not move the ranks of the others."""
    measure = np.ma.masked_array([[-2.0, -1.0, -50.0, np.nan, 4.0]], [[0, 0, 1, 0, 0]])
    drawn = equalise(measure)
    assert np.ma.getmaskarray(drawn).tolist() == [[False, False, True, True, False]]
    np.testing.assert_allclose(drawn.compressed(), [-1.0, -0.25, 0.625])


@pytest.mark.parametrize("value", [-3.0, 3.0, np.inf])
def test_a_map_of_a_single_value_takes_the_middle_colour(value):
    """One value, once or everywhere, has no rank to differ by."""
    for shape in ((1, 1), (2, 3)):
        drawn = equalise(masked(np.full(shape, value)))
        np.testing.assert_allclose(drawn, np.sign(value) * 0.625)


def test_a_reference_freezes_the_ranks():
    """A value has the colour that it has in the reference, whatever else its own map holds."""
    reference = masked([[-4.0, -3.0, -2.0, -1.0, 1.0, 2.0]])
    drawn = equalise(masked([[-2.0, -9.0, -3.5, 1.5, 99.0]]), [reference[:, :3], reference[:, 3:]])
    np.testing.assert_allclose(drawn, [[-0.5, -1.0, -0.875, 0.625, 1.0]])
    one_sided = equalise(masked([[-2.0, 5.0]]), [masked([[1.0, 2.0]])])
    np.testing.assert_allclose(one_sided, [[-0.625, 1.0]])


# Machado, Oliveira and Fernandes 2009, "A physiologically-based model for simulation of color
# vision deficiency", severity 1: matrices that act on linear RGB.
VISION = {
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def lab(colours, vision="normal"):
    """CIE 1976 L*a*b* (D65) of sRGB colours as seen with a vision; distances are CIE76."""
    colours = np.asarray(colours, float)
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.transpose(VISION[vision]), 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(seen @ np.transpose(to_xyz) / [0.9505, 1.0, 1.089]).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def nearest(these, those):
    return np.linalg.norm(these[:, None] - those[None], axis=-1).min()


def side(palette, sign):
    """Colours of one side, from far from the boundary to near it."""
    return PALETTES[palette].sides((sign * np.linspace(0.25, 1, 60) + 1) / 2)[:, :3]


@pytest.mark.parametrize("vision", list(VISION))
def test_the_sides_of_split_and_grey_differ_for_every_eye(vision):
    """No colour of one side comes near any of the other or the grey of missing cells."""
    trained, failed = (lab(side("split", sign), vision) for sign in (-1, 1))
    grey = lab([to_rgb(MISSING)], vision)
    assert nearest(trained, failed) > 24
    assert nearest(trained, grey) > 18
    assert nearest(failed, grey) > 18
    outcomes = lab([to_rgb(colour) for colour in (*PALETTES["split"].outcomes, MISSING)], vision)
    assert min(nearest(outcomes[[i]], np.delete(outcomes, i, 0)) for i in range(4)) > 24


@pytest.mark.parametrize("vision", list(VISION))
def test_split_darkens_steadily_towards_the_boundary(vision):
    """Lightness orders each side, so rank survives in grey-scale and for every eye."""
    for sign in (-1, 1):
        assert (np.diff(lab(side("split", sign), vision)[:, 0]) < 0).all()
    dark = [lab(side("split", sign))[-1, 0] for sign in (-1, 1)]
    assert dark[0] + 15 < dark[1]


def test_paper_is_blue_green_where_trainable_and_red_orange_where_not():
    """Far from the boundary it is paler than near it, on both sides, and grey is neither."""
    trained, failed = side("paper", -1), side("paper", 1)
    assert (trained[:, 1:].max(axis=1) > trained[:, 0]).all()
    assert (failed[:, 0] > failed[:, 1:].max(axis=1)).all()
    for colours in (trained, failed):
        assert lab(colours)[0, 0] > lab(colours)[-1, 0] + 40
        assert nearest(lab(colours), lab([to_rgb(MISSING)])) > 18


@pytest.mark.parametrize("palette", list(PALETTES))
def test_cells_are_painted_by_their_own_values(palette):
    """Trainable cells come from the trainable side, missing ones are grey, row 0 comes first."""
    missing = np.zeros((16, 24), bool)
    missing[3, 5:9] = True
    image = picture_of(WIDE, missing)
    colours = paint(image, palette=palette)
    assert colours.shape == (16, 24, 3)
    grey = np.round(np.array(to_rgb(MISSING)) * 255).astype(np.uint8)
    assert ((colours == grey).all(axis=-1) == missing).all()
    for sign in (-1, 1):
        mine = colours[(np.sign(image.measure.filled(0)) == sign)] / 255
        known = PALETTES[palette].sides(np.arange(1024) if palette == "split" else np.arange(256))
        known = known[: len(known) // 2] if sign < 0 else known[len(known) // 2 :]
        assert max(nearest(mine[[i]], known[:, :3]) for i in range(len(mine))) < 0.01


def test_the_outcome_view_has_one_colour_a_label():
    """TRAINABLE, UNTRAINABLE and DIVERGED take the three colours, missing grey."""
    outcome = np.tile([1, 2, 3, 3], (16, 6))
    missing = np.zeros((16, 24), bool)
    missing[:, 3] = True
    colours = paint(picture_of(WIDE, missing, outcome), quantity="outcome")
    wanted = [to_rgb(colour) for colour in (*PALETTES["split"].outcomes, MISSING)]
    np.testing.assert_allclose(colours[7, :4] / 255, wanted, atol=0.003)


# Ticks


def number(text):
    """The exact value of a printed number: 13.29, −2, 10⁻³ or 1.5 × 10⁻⁷."""
    text = text.replace("\N{MINUS SIGN}", "-")
    mantissa, _, power = text.rpartition(" × ")
    found = re.fullmatch(r"10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)", power)
    if not found:
        return Decimal(text)
    exponent = int(found[1].translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")))
    return Decimal(mantissa or 1) * Decimal(10) ** exponent


def reading(label, note):
    """The value that a reader takes from a tick label and the note beside the axis."""
    if not note:
        return number(label)
    found = re.fullmatch(r"(?:(.+) \+ )?tick × (10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)", note)
    return number(found[1] or "0") + number(label) * number(found[2])


def place(axis, value):
    """Where a value lies on an axis, 0 to 1, in sixty-digit arithmetic."""
    with localcontext() as context:
        context.prec = 60
        low, high = Decimal(axis.low), Decimal(axis.high)
        if axis.scale == "log10":
            low, high, value = low.ln(), high.ln(), value.ln()
        return float((value - low) / (high - low))


@given(
    st.floats(1e-9, 1e9),
    st.floats(-11, 14),
    st.sampled_from(["log10", "linear"]),
    st.sampled_from([1, -1]),
)
def test_labels_are_short_exact_and_enough(low, depth, scale, sign):
    """On any axis, wide or deep, at least two short labels read back as the very tick values."""
    ends = sorted(sign * end for end in (low, low * (1 + 10.0**depth)))
    if sign < 0 and scale == "log10":
        return
    axis = Axis("lr", *ends, 100, scale)
    marks = ticks(axis)
    assert 2 <= len(marks.values) <= 8
    assert len(set(marks.labels)) == len(marks.values)
    for value, label in zip(marks.values, marks.labels, strict=True):
        assert reading(label, marks.note) == value
        assert len(label) <= 6
        assert -0.005 <= place(axis, value) <= 1.005


def test_an_axis_keeps_the_round_ends_that_were_typed():
    """0.1, whose float lies above one tenth, still carries its tick, as do powers of ten."""
    assert ticks(Axis("a", 0.1, 0.6, 8, "linear")).labels[0] == "0.1"
    assert list(ticks(WIDE.x).labels) == ["10⁻³", "10⁰", "10³", "10⁶"]
    assert list(ticks(Axis("a", 0.1, 1.0, 8)).labels) == ["0.1", "0.2", "0.5", "1"]


def test_a_deep_zoom_says_the_common_digits_once():
    """The published windows carry one round number and small whole steps from it."""
    marks = ticks(TANH.x)
    assert marks.note == "13.29978 + tick × 10⁻⁶"
    assert list(marks.labels) == ["−15", "−10", "−5", "0", "+5"]
    marks = ticks(INIT.y)
    assert marks.note.startswith("39.0254608")
    assert ticks(WIDE.x).note == ticks(Axis("a", 13.2, 13.4, 8)).note == ""


def test_ticks_of_whole_numbers_are_whole_and_in_the_middle_of_their_cells():
    """An integer axis from 2 to 6 has five cells, marked 2 to 6 at their centres."""
    axes = map_figure(picture_of(WHOLE)).axes[-1]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["2", "3", "4", "5", "6"]
    np.testing.assert_allclose(axes.get_yticks(), np.arange(5) + 0.5)


@pytest.mark.parametrize("name", ["wide", "tanh", "init", "deepest", "narrow", "signed"])
def test_printed_labels_stand_where_their_values_lie(name):
    """Read off the figure, every label is within a twentieth of a cell of its tick."""
    region = REGIONS[name]
    axes = map_figure(picture_of(region)).axes[-1]
    for axis, drawn in ((region.x, axes.xaxis), (region.y, axes.yaxis)):
        first, *note = drawn.get_label_text().split("\n= ")
        assert first == axis.name
        texts = [label.get_text() for label in drawn.get_ticklabels()]
        assert len(texts) >= 3
        for at, text in zip(drawn.get_ticklocs(), texts, strict=True):
            low, high = drawn.get_view_interval()
            share = place(axis, reading(text, note[0] if note else ""))
            assert abs(share - (at - low) / (high - low)) * axis.points < 0.05


# Figures

CAPTION = (
    "Trainable: mean of the last 20 losses below the first, 1000 steps, float64, seed 0. "
    "Colours are ranks within each side; $5 and 50 % are text, not mathematics. "
) * 3


@pytest.mark.parametrize("name", list(REGIONS))
@pytest.mark.parametrize(
    ("width", "quantity"), [(70, "outcome"), (89, "measure"), (183, "measure")]
)
def test_no_text_touches_another_or_leaves_the_page(name, width, quantity):
    """At the printed size every text is at least 6 pt, inside the page and clear of the others."""
    if width == 183 and name != "deepest":
        return
    missing = np.indices(Grid.over(REGIONS[name]).shape)[0] == 1
    figure = map_figure(
        picture_of(REGIONS[name], missing),
        quantity=quantity,
        title="A title that is rather long for a figure of a single column, so that it wraps",
        caption=CAPTION,
        labels=("learning rate of the input layer", "learning rate of the output layer"),
        width_mm=width,
    )
    assert figure.get_figwidth() * 25.4 == pytest.approx(width)
    assert_clear(figure)


def test_every_cell_fills_its_place_in_a_square(tmp_path):
    """In the PNG the corners of every cell of a 16 x 24 map have its colour: no half-cell shift."""
    image = picture_of(WIDE)
    figure = map_figure(image)
    save(figure, tmp_path / "map.png")
    pixels = np.asarray(Picture.open(tmp_path / "map.png").convert("RGB"))
    height, width = pixels.shape[:2]
    assert width == round(89 / 25.4 * 300)
    frame = figure.axes[-1].get_position()
    assert frame.width * width == pytest.approx(frame.height * height, abs=1)
    colours = paint(image)
    for inside in (0.12, 0.88):
        x = (frame.x0 + (np.arange(24) + inside) / 24 * frame.width) * width
        y = (1 - frame.y0 - (np.arange(16) + inside) / 16 * frame.height) * height
        seen = pixels[np.ix_(y.astype(int), x.astype(int))]
        np.testing.assert_array_equal(seen, colours)


def test_a_pdf_holds_the_map_at_one_pixel_a_cell(tmp_path, monkeypatch):
    """The bytes of the painted cells lie in the file as they are, beside a TrueType font."""
    monkeypatch.setitem(sheet.STYLE, "pdf.compression", 0)
    image = picture_of(WIDE)
    save(map_figure(image), tmp_path / "map.pdf")
    data = (tmp_path / "map.pdf").read_bytes()
    assert re.search(rb"/Width 24\s+/Height 16\b", data)
    assert paint(image)[::-1].tobytes() in data
    assert b"/FontFile2" in data
    assert b"/Type3" not in data
    assert b"CreationDate" not in data


def test_an_svg_holds_the_map_at_one_pixel_a_cell(tmp_path):
    """The picture inside is 24 x 16, is to be shown unsmoothed, and no text needs a font."""
    image = picture_of(WIDE)
    save(map_figure(image), tmp_path / "map.svg")
    text = (tmp_path / "map.svg").read_text()
    pictures = [
        np.asarray(Picture.open(io.BytesIO(base64.b64decode(found))).convert("RGB"))
        for found in re.findall(r"data:image/png;base64,([^\"]+)", text)
    ]
    (mine,) = [pixels for pixels in pictures if pixels.shape == (16, 24, 3)]
    np.testing.assert_array_equal(mine, paint(image))
    assert text.count("image-rendering:pixelated") == len(pictures)
    assert "<text" not in text
    assert "<dc:date>" not in text


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".SVG"])
def test_the_same_map_is_the_same_file(tmp_path, suffix):
    """Bytes depend neither on the day, nor on the folder, nor on the user's matplotlib settings."""
    first, second = tmp_path / f"a{suffix}", tmp_path / "new" / "folder" / f"b{suffix}"
    save(
        map_figure(picture_of(TANH), child=TANH.zoom((13.29977, 13.29978), (200.3583, 200.3585))),
        first,
    )
    odd = {
        "font.family": "serif",
        "axes.linewidth": 3,
        "svg.fonttype": "none",
        "xtick.direction": "in",
    }
    with matplotlib.rc_context(odd):
        again = map_figure(
            picture_of(TANH), child=TANH.zoom((13.29977, 13.29978), (200.3583, 200.3585))
        )
        save(again, second)
    assert first.read_bytes() == second.read_bytes()


def test_a_file_is_replaced_in_one_step(tmp_path):
    """Who has the old file open goes on reading it; nobody sees a half of the new one."""
    path = tmp_path / "map.png"
    path.write_bytes(b"old")
    with path.open("rb") as old:
        save(map_figure(picture_of(WIDE)), path)
        assert old.read() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["map.png"]
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    """Neither half a figure nor a draft stays behind."""
    path = tmp_path / "map.png"
    path.write_bytes(b"old")

    def die(_, target, **options):
        target.write(b"half")
        raise RuntimeError("no")

    monkeypatch.setattr(Figure, "savefig", die)
    with pytest.raises(RuntimeError, match="no"):
        save(Figure(), path)
    assert [item.name for item in tmp_path.iterdir()] == ["map.png"]
    assert path.read_bytes() == b"old"


def test_save_refuses_what_it_cannot_write(tmp_path):
    """Another suffix, or a file in place of the folder, is refused in one sentence."""
    for name in ("map.jpg", "map", "map.tif"):
        with pytest.raises(Refused, match=r"\.png, \.pdf, \.svg"):
            save(Figure(), tmp_path / name)
    (tmp_path / "file").touch()
    with pytest.raises(Refused, match=r"cannot write .*map.png"):
        save(Figure(), tmp_path / "file" / "map.png")
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_a_fine_map_gets_the_dots_that_it_needs():
    """300 dots an inch are too few for 2000 columns in 70 mm, so that no column is left out."""
    fine = Region(Axis("a", 1e-3, 1.0, 2000), Axis("b", 1e-3, 1.0, 2))
    figure = map_figure(picture_of(fine), width_mm=70)
    dots = figure.axes[-1].get_window_extent().width
    assert figure.dpi % 300 == 0
    assert 2000 <= dots < 4000
    assert map_figure(picture_of(WIDE)).dpi == 300


@pytest.mark.parametrize(
    ("cells", "said"), [(0, None), (1, "< 1 %"), (48, "12 %"), (383, "> 99 %")]
)
def test_the_share_of_missing_cells_is_said(cells, said):
    """In words beside a grey square, and only where something is missing."""
    missing = (np.arange(384) < cells).reshape(16, 24)
    for quantity in ("measure", "outcome"):
        spoken = said_in(map_figure(picture_of(WIDE, missing), quantity=quantity))
        assert ("not computed yet" in spoken) == (said is not None)
        assert said is None or f"{said} not computed yet" in spoken


def test_an_empty_picture_is_grey(tmp_path):
    """Nothing computed yet is no error, in either quantity and whatever lies under the mask."""
    image = picture_of(WIDE, np.ones((16, 24), bool))
    for quantity in ("measure", "outcome"):
        assert len(np.unique(paint(image, quantity=quantity).reshape(-1, 3), axis=0)) == 1
        figure = map_figure(image, quantity=quantity)
        save(figure, tmp_path / "empty.png")
        assert "100 % not computed yet" in said_in(figure)


def test_the_colour_bar_says_which_side_is_trainable():
    """Left to right it goes from trained fast over the boundary to blown up fast."""
    figure = map_figure(picture_of(WIDE))
    said = {text.get_text(): text.get_window_extent().x0 for text in texts_of(figure)}
    assert said["trained faster"] < said["slower"] < said["blew up faster"]
    (bar,) = figure.axes[0].images
    colours = np.asarray(bar.get_array())[0] / 255
    np.testing.assert_allclose(colours[[0, 255]], side("split", -1)[[0, -1]], atol=0.01)
    np.testing.assert_allclose(colours[[256, -1]], side("split", 1)[[-1, 0]], atol=0.01)


def test_the_outcome_legend_pairs_colours_with_labels():
    """Each square stands left of its own word, and the colour bar is gone."""
    figure = map_figure(picture_of(WIDE), quantity="outcome")
    squares = [patch for patch in figure.findobj(Rectangle) if patch in figure.artists]
    colours = [matplotlib.colors.to_hex(square.get_facecolor()) for square in squares]
    assert colours == list(PALETTES["split"].outcomes)
    words = [text for text in figure.texts if text.get_text().strip()]
    assert [word.get_text() for word in words] == ["trainable", "untrainable", "diverged"]
    for square, word in zip(squares, words, strict=True):
        gap = word.get_window_extent().x0 - square.get_window_extent().x1
        assert 0 < gap < 20
    assert len(figure.axes) == 1


def test_a_child_is_boxed_where_it_lies():
    """The box stands on the child's own bounds, in black and white; a ring is not needed."""
    child = WIDE.zoom((1e0, 1e3), (1e-3, 1e0))
    axes = map_figure(picture_of(WIDE), child=child).axes[-1]
    (box,) = axes.patches
    assert isinstance(box, Rectangle)
    np.testing.assert_allclose(box.get_bbox().extents, [8, 0, 16, 16 / 3], atol=1e-9)
    assert to_rgb(box.get_edgecolor()) == (1, 1, 1)
    assert box.get_path_effects()


@pytest.mark.parametrize("palette", list(PALETTES))
def test_a_tiny_child_gets_a_ring(tmp_path, palette):
    """The published window, 10^-7 of the overview wide, is found by a ring that shows up."""
    image = picture_of(Region(Axis("input", 1e-3, 1e6, 24), Axis("output", 1e-3, 1e6, 16)))
    figure = map_figure(image, palette=palette, child=TANH)
    _, ring = figure.axes[-1].patches
    assert isinstance(ring, Ellipse)
    assert ring.center == pytest.approx(
        [place(WIDE.x, Decimal("13.29977")) * 24, place(WIDE.y, Decimal("200.3584")) * 16], abs=1e-3
    )
    save(figure, tmp_path / "map.png")
    pixels = np.asarray(Picture.open(tmp_path / "map.png").convert("RGB")).astype(int)
    frame = ring.get_window_extent()
    patch = pixels[::-1][int(frame.y0) : int(frame.y1) + 2, int(frame.x0) : int(frame.x1) + 2]
    assert frame.width == pytest.approx(frame.height)
    assert (patch.max(axis=-1) < 40).sum() > 100
    assert (patch.min(axis=-1) > 215).sum() > 100


@pytest.mark.parametrize(
    "child",
    [
        Region(Axis("input", 1e-4, 1e2, 8), WIDE.y),
        Region(WIDE.x, Axis("output", 1.0, 1.1e6, 8)),
        Region(Axis("weight_decay", 1.0, 2.0, 8), WIDE.y),
        Region(Axis("input", 1.0, 2.0, 8, "linear"), WIDE.y),
    ],
)
def test_a_child_elsewhere_is_refused(child):
    """A box that sticks out, or lies on another axis, would be a lie."""
    with pytest.raises(Refused, match=r"child .* choose a zoom of this map"):
        map_figure(picture_of(WIDE), child=child)


@pytest.mark.parametrize(
    ("wish", "match"),
    [
        ({"palette": "jet"}, "split, paper"),
        ({"quantity": "loss"}, "measure, outcome"),
        ({"width_mm": 20.0}, "between 70 and"),
    ],
)
def test_unknown_wishes_are_refused(wish, match):
    """A palette, quantity or width that does not exist is refused by naming those that do."""
    # Called past the run-time type check, which would name the type before the choice.
    with pytest.raises(Refused, match=match):
        getattr(map_figure, "__wrapped__", map_figure)(picture_of(WIDE), **wish)


def test_nothing_here_starts_a_gui(tmp_path):
    """A map is made and saved in a process that never imports pyplot, nor so a GUI backend."""
    code = """
import sys, pathlib, numpy as np
from fractal_core.figures import map_figure, save
from fractal_core.plane import Axis, Grid, Region
from fractal_core.store import Image
grid = Grid.over(Region(Axis("a", 1.0, 2.0, 3), Axis("b", 1.0, 2.0, 2)))
some = np.ma.ones(grid.shape, np.uint8)
save(map_figure(Image(grid, *[some] * 7)), pathlib.Path(sys.argv[1]))
sys.exit("matplotlib.pyplot" in sys.modules)
"""
    command = [sys.executable, "-W", "error", "-c", code, tmp_path / "map.png"]
    assert subprocess.run(command, check=False).returncode == 0
    assert (tmp_path / "map.png").exists()


@pytest.mark.parametrize(
    ("ends", "texts"),
    [
        ((1e-3, 1e6), ("0.001", "1000000")),
        ((0.5011876576579224, 1995.260626873883), ("0.501188", "1995.26")),
        ((13.29976231, 13.29978604), ("13.29976231", "13.29978604")),
        ((0.1, 0.1 + 2**-50), ("0.1", "0.1000000000000009")),
    ],
)
def test_ends_in_a_sentence_have_the_digits_that_matter(ends, texts):
    """Exact where that is short; a rectangle that was dragged has no sixteen digits."""
    assert brief(*ends) == texts
