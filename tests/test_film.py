"""A film shows what the maps say, moves evenly, and changes no colour at a stroke."""

import io
import itertools
import sys

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image as Picture
from PIL import ImageSequence

from fractal_core import film
from fractal_core.errors import Refused
from fractal_core.figures import MISSING, paint
from fractal_core.film import EDGE, box_of, chain, encode, frames, keyframes
from fractal_core.plane import Axis, Grid, Region
from fractal_core.store import Image

WIDE = Region(Axis("input", 1e-3, 1e6, 48), Axis("output", 1e-3, 1e6, 48))
DEEP = Region(
    Axis("input", 1.329976231e1, 1.329978604e1, 48),
    Axis("output", 2.003582269e2, 2.003585844e2, 48),
)
SIZE, STEPS = 96, 8
NAMES = ("x", "y")


def map_of(region, field=None, missing=None):
    """A map of a smooth field of both signs, the same field wherever one looks."""
    grid = Grid.over(region)
    x, y = np.log10(grid.x)[None, :], np.log10(grid.y)[:, None]
    value = (field or (lambda x, y: np.sin(x) + 0.5 * np.cos(2 * y) + 0 * x))(x, y)
    mask = np.zeros(grid.shape, bool) if missing is None else missing
    empty = Image.empty(grid)
    arrays = {name: getattr(empty, name) for name in vars(empty) if name != "grid"}
    arrays |= {"measure": np.ma.masked_array(value, mask)}
    return Image(grid, **arrays)


def seen(images, **options):
    """The square of the map in every frame."""
    made = frames(images, NAMES, size=SIZE, per_factor=STEPS, **options)
    return [frame[EDGE : EDGE + SIZE, EDGE : EDGE + SIZE] for frame in made]


def part(factor):
    """The middle of the wide region, by so much smaller."""
    half = 4.5 / factor
    ends = (10 ** (1.5 - half), 10 ** (1.5 + half))
    return WIDE.zoom(ends, ends)


def away_from_the_bar(picture):
    return picture[: SIZE * 3 // 4]


def test_a_frame_on_a_keyframe_is_the_map_itself():
    """First and last frame have the very colours of the printed maps, cell by cell."""
    wide, near = map_of(WIDE), map_of(part(2))
    shown = seen([near, wide])
    for frame, image in ((shown[0], wide), (shown[-1], near)):
        colours = np.repeat(np.repeat(paint(image)[::-1], 2, axis=0), 2, axis=1)
        apart = np.abs(away_from_the_bar(frame).astype(int) - away_from_the_bar(colours))
        assert apart.max() <= 2


def test_every_factor_of_two_takes_the_same_time():
    """One link of a factor four lasts as long as two of two, and both rest at their ends."""
    two = seen([map_of(WIDE), map_of(part(2)), map_of(part(4))])
    one = seen([map_of(WIDE), map_of(part(4))])
    assert len(two) == len(one) == 2 * STEPS + 2 * film.HOLD - 1
    for pause in (two[: film.HOLD], two[-film.HOLD :]):
        assert all((frame == pause[0]).all() for frame in pause)


def test_the_view_shrinks_evenly_about_a_place_that_stays():
    """Windows of a link go from the whole to the part by equal factors, and their fixed point rests."""
    box = (0.1, 0.6, 0.25, 0.25)
    windows = [film._view(box, share) for share in np.linspace(0, 1, 9)]
    np.testing.assert_allclose(windows[0], (0, 0, 1, 1), atol=1e-12)
    np.testing.assert_allclose(windows[-1], box, atol=1e-12)
    widths = np.array([window[2] for window in windows])
    np.testing.assert_allclose(widths[1:] / widths[:-1], 0.25 ** (1 / 8))
    fixed = 0.1 / 0.75
    np.testing.assert_allclose([(fixed - w[0]) / w[2] for w in windows], fixed)


def test_no_colour_jumps():
    """Neighbouring frames of a smooth field differ little everywhere, also where maps change over."""
    chain_of_three = [map_of(WIDE), map_of(part(2)), map_of(part(4))]
    shown = [away_from_the_bar(frame).astype(float) for frame in seen(chain_of_three)]
    steps = [np.abs(b - a).mean() for a, b in itertools.pairwise(shown)]
    moving = steps[film.HOLD - 1 : -film.HOLD + 1]
    assert min(moving) > 0
    # Within a factor three of the typical step: a hand-over is no more than any other frame.
    assert max(moving) < 3 * np.median(moving)


def test_a_value_keeps_its_side_of_the_boundary():
    """However ranks are blended, a place where both maps trained is never orange."""

    def field(x, y):
        return -1.5 - np.sin(3 * x) * np.cos(y)

    for frame in seen([map_of(WIDE, field), map_of(part(2), field)]):
        shown = away_from_the_bar(frame).astype(int)
        assert (shown[..., 2] >= shown[..., 0]).all()


def test_what_is_missing_in_one_map_is_taken_from_the_other():
    """A hole of the inner map shows the outer one; what neither knows is grey."""
    half = np.zeros((48, 48), bool)
    half[:, 24:] = True
    grey = (np.array(to_rgb(MISSING)) * 255).round()
    shown = seen([map_of(WIDE), map_of(part(2), missing=half)])
    middle = away_from_the_bar(shown[film.HOLD + STEPS // 2].astype(int))
    assert not (np.abs(middle - grey).max(axis=-1) <= 1).any()
    assert (np.abs(shown[-1][10, -10] - grey) <= 1).all()


def test_keyframes_are_a_factor_two_apart_on_the_path_of_the_film():
    """From the overview to the published window each holds the next, and none is far larger."""
    between = keyframes(WIDE, DEEP)
    whole = [WIDE, *between, DEEP]
    for outer, inner in itertools.pairwise(whole):
        _, _, width, height = box_of(outer, inner)
        assert 0.45 < width < 0.75
        assert 0.45 < height < 0.75
    # The place that stays is the same one in all links, or the film would swerve.
    first = box_of(WIDE, DEEP)
    fixed = first[0] / (1 - first[2]), first[1] / (1 - first[3])
    for outer in whole[:8]:
        left, low, width, height = box_of(outer, DEEP)
        np.testing.assert_allclose((left / (1 - width), low / (1 - height)), fixed, atol=1e-6)
    assert len(between) == len(whole) - 2 == int(np.ceil(-np.log2(min(first[2:])))) - 1


def test_keyframes_reach_the_deepest_window():
    """Between ends that agree in thirteen digits the frames still nest, in linear axes too."""
    outer = Region(Axis("a", -1.0, 3.0, 8, "linear"), Axis("b", 1e-3, 1e3, 8))
    inner = Region(
        Axis("a", 0.123456789012, 0.123456789013, 8, "linear"),
        Axis("b", 1.74269509700711, 1.74269509702741, 8),
    )
    whole = [outer, *keyframes(outer, inner), inner]
    assert len(whole) > 40
    for one, other in itertools.pairwise(whole):
        assert max(box_of(one, other)[2:]) < 0.9


def test_a_region_next_to_its_double_needs_no_keyframe():
    """There is nothing between them."""
    assert keyframes(WIDE, part(2)) == []


@pytest.mark.parametrize(
    ("regions", "match"),
    [
        ([], "needs a run"),
        ([WIDE, WIDE], "same region"),
        ([part(2), WIDE.zoom((1e-3, 1e-1), (1e-3, 1e-1))], "is not inside"),
        (
            [
                Region(Axis("n", 1.0, 9.0, 9, integer=True), WIDE.y),
                Region(Axis("n", 2.0, 5.0, 4, integer=True), WIDE.y),
            ],
            "whole numbers",
        ),
    ],
)
def test_what_is_no_zoom_is_refused(regions, match):
    """Before a frame is drawn."""
    with pytest.raises(Refused, match=match):
        chain([map_of(region) for region in regions])


def test_frames_say_where_they_are():
    """Below the map the page changes as the ends do; it is even-sized for every player."""
    made = list(frames([map_of(WIDE), map_of(part(2))], NAMES, size=SIZE, per_factor=STEPS))
    height, width, _ = made[0].shape
    assert (height % 2, width % 2) == (0, 0)
    strips = {frame[EDGE + SIZE :].tobytes() for frame in made}
    assert len(strips) == STEPS + 1
    assert film.ends_in_words(13.29976231, 13.29978604) == "13.2997623 to 13.2997860"
    assert film.ends_in_words(1e-3, 1e6) == "0.001000 to 1.000 × 10⁶"


def test_a_gif_plays_the_frames_for_ever():
    """All of them, at the rate that was asked for, in nearly their colours."""
    made = list(frames([map_of(WIDE), map_of(part(2))], NAMES, size=SIZE, per_factor=2))
    data = encode(made, ".gif", rate=20, recipe="said")
    with Picture.open(io.BytesIO(data)) as found:
        assert found.info["loop"] == 0
        assert found.info["comment"] == b"said"
        pages = [
            (page.info["duration"], page.convert("RGB")) for page in ImageSequence.Iterator(found)
        ]
    assert sum(duration for duration, _ in pages) == 50 * len(made)
    assert np.abs(np.asarray(pages[0][1]).astype(int) - made[0]).mean() < 6


def test_an_mp4_plays_the_frames():
    """As many as went in, at their rate and size, in nearly their colours."""
    av = pytest.importorskip("av", reason="an extra")
    made = list(frames([map_of(WIDE), map_of(part(2))], NAMES, size=SIZE, per_factor=2))
    with av.open(io.BytesIO(encode(made, ".mp4", rate=20, recipe="said"))) as found:
        stream = found.streams.video[0]
        assert stream.average_rate == 20
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert found.metadata["comment"] == "said"
        pages = [page.to_ndarray(format="rgb24") for page in found.decode(stream)]
    assert len(pages) == len(made)
    assert pages[0].shape == made[0].shape
    assert np.abs(pages[0].astype(int) - made[0]).mean() < 8


@pytest.mark.parametrize(
    ("options", "match"),
    [({"suffix": ".avi"}, "choose .mp4 or .gif"), ({"suffix": ".gif", "rate": 0}, "1 to 60")],
)
def test_other_films_are_refused(options, match):
    """By naming those that can be made."""
    with pytest.raises(Refused, match=match):
        encode([], **options)


def test_without_the_encoder_the_sentence_says_what_to_install(monkeypatch):
    """And that a GIF needs nothing."""
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(Refused, match=r"uv sync --extra film.*\.gif"):
        film.require_encoder(".mp4")
    film.require_encoder(".gif")
