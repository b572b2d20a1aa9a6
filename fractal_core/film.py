"""A film of a zoom: a smooth journey through a chain of maps, each a part of the one before.

The view shrinks by the same factor in every frame and moves about the point that both maps of a
link show at the same place of theirs, so nothing jerks. Positions are fractions of the map at hand
and never values, so that the last digits of a deep zoom do not tremble.

*Blended by rank.* Between map k and map k + 1, at a share s of the way, a measure v is drawn at

    (1 - s) rank of v in map k  +  s rank of v in map k + 1

with the ranks of `figures.equalise`, which stay on their side of the boundary. A value so changes
its colour slowly, and none jumps where one map hands over to the next. Where both maps know a
place the finer one fades in. A frame on a keyframe itself is that map as it is printed.

Source: the cross-fade and the zoom about a fixed point are those of the films beside Sohl-Dickstein
2024, arXiv:2402.06184. It fades the ranks of two images, each ranked by itself; here one value has
one colour in both, and light is faded, since half-way between the ranks of two sides lies the
palest colour, which would outline the boundary in white.
"""

import importlib.util
import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt8
from matplotlib.colors import to_rgb
from matplotlib.font_manager import FontProperties, findfont
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont

from fractal_core.errors import Refused, require_known
from fractal_core.figures import MISSING, PALETTES, equalise, light_of, printed
from fractal_core.plane import Axis, Region
from fractal_core.sheet import DOTS, INCH
from fractal_core.store import Image
from fractal_core.ticks import digits_of, number, power_of_ten

SIZE, SIZES = 480, (96, 2160)
SUFFIXES = ".mp4", ".gif"
RATE, PER_FACTOR, HOLD = 24, 24, 12
EDGE, LEVELS = 10, 1024
FINEST = 4
"""Samples across a pixel, at most."""

Window = tuple[float, float, float, float]
"""Left and lower end, width and height of what is seen, in fractions of a map."""


class Link(NamedTuple):
    """A map, the next one, and where that lies in it; the last map has no next one."""

    here: Image
    there: Image | None
    box: Window


def keyframes(outer: Region, inner: Region) -> list[Region]:
    """The regions between two, each at most twice as long as the next, on the path of the film.

    Raises:
        Refused: The inner one is not a part of the outer one.
    """
    left, low, width, height = box_of(outer, inner)
    links = math.ceil(-math.log2(min(width, height)) - 1e-9)
    made = []
    for step in range(1, links):
        share = step / links
        made.append(
            outer.zoom(
                _widened(outer.x, inner.x, left, width, share),
                _widened(outer.y, inner.y, low, height, share),
            )
        )
    return made


def _widened(
    outer: Axis, inner: Axis, start: float, length: float, share: float
) -> tuple[float, float]:
    """Ends of an axis at a share of the way in. They are reckoned from the inner end, whose digits
    are the finer ones.
    """
    fixed, more = _fixed(start, length), outer.span * (length**share - length)
    if outer.scale == "linear":
        return inner.low - fixed * more, inner.high + (1 - fixed) * more
    below, above = math.log(10) * fixed * more, math.log(10) * (1 - fixed) * more
    return (
        max(inner.low + inner.low * math.expm1(-below), outer.low),
        min(inner.high + inner.high * math.expm1(above), outer.high),
    )


def _fixed(start: float, length: float) -> float:
    """The place that stays where it is while the whole shrinks to a part."""
    return start / (1 - length) if length < 1 else 0.0


def pixels(width_mm: int) -> int:
    """The edge of the map, in pixels, of frames that are so wide at 300 dots per inch."""
    return (round(width_mm / INCH * DOTS) - 2 * EDGE) // 2 * 2


def area(region: Region) -> float:
    """Drawn area of a region; a film goes from the largest to the smallest."""
    return region.x.span * region.y.span


def box_of(outer: Region, inner: Region) -> Window:
    """Where a region lies in another, in fractions of its drawn lengths.

    Raises:
        Refused: It is no part of the other, or an axis takes whole numbers only.
    """
    box = []
    for name in ("x", "y"):
        axis, part = getattr(outer, name), getattr(inner, name)
        if axis.integer or part.integer:
            raise Refused(f"{axis.name} takes whole numbers only; a film zooms along real numbers")
        same = (axis.name, axis.scale) == (part.name, part.scale)
        if not (same and axis.low <= part.low and part.high <= axis.high):
            raise Refused(
                f"{part.name} {part.low!r} to {part.high!r} is not inside {axis.name} "
                f"{axis.low!r} to {axis.high!r}; choose runs of which each is a zoom of another"
            )
        start, end = axis.fraction(np.array([part.low, part.high])).tolist()
        box.append((start, min(end, 1.0) - start))
    (left, width), (low, height) = box
    return left, low, width, height


def chain(images: Sequence[Image]) -> list[Link]:
    """Maps in the order of a zoom, from the widest, with the place of each in the one before.

    Raises:
        Refused: There is no map, or one of them is no part of the next wider one.
    """
    if not images:
        raise Refused("a film needs a run; name one or more")
    order = sorted(images, key=lambda image: area(image.grid.region), reverse=True)
    links = []
    for here, there in zip(order, [*order[1:], None], strict=True):
        whole = (0.0, 0.0, 1.0, 1.0)
        box = box_of(here.grid.region, there.grid.region) if there else whole
        if there is not None and min(box[2:]) >= 1:
            raise Refused("two runs of the film have the same region; leave one of them out")
        links.append(Link(here, there, box))
    return links


def frames(
    images: Sequence[Image],
    labels: tuple[str, str],
    *,
    palette: str = "split",
    size: int = SIZE,
    per_factor: int = PER_FACTOR,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
    """The frames of a film through maps, each with its place, its scale and how far it has zoomed.

    Args:
        images: The maps, in any order; each is a part of another. Missing cells are grey.
        labels: Words for x and y.
        palette: A name in `figures.PALETTES`.
        size: Edge of the square of the map, in pixels.
        per_factor: Frames in which the view shrinks by two.
        tell: Is told how many views are drawn, and how many there are.

    Raises:
        Refused: The maps are no chain, or there is no such palette or size.
    """
    require_known("palette", palette, PALETTES)
    if not SIZES[0] <= size <= SIZES[1] or per_factor < 1:
        raise Refused(f"a map of {size} pixels; choose {SIZES[0]} to {SIZES[1]}, and some frames")
    return _frames(chain(images), _Paper(labels, size // 2 * 2), _table(palette), per_factor, tell)


def _frames(
    links: list[Link],
    paper: "_Paper",
    table: Float32[np.ndarray, "levels 3"],
    per_factor: int,
    tell: Callable[[int, int], None],
) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
    factors = [math.sqrt(link.box[2] * link.box[3]) for link in links]
    counts = [max(1, round(-per_factor * math.log2(factor))) for factor in factors]
    done, zoomed = 0, 1.0
    frame = np.zeros((0, 0, 3), np.uint8)
    for link, factor, count in zip(links, factors, counts, strict=True):
        blend = _Blend(link)
        for share in (np.arange(count) / count).tolist():
            window = _view(link.box, share)
            seen = printed(blend.light(window, share, paper.size, table))
            frame = paper.frame(seen, link.here.grid.region, window, zoomed / factor**share)
            done += 1
            tell(done, sum(counts))
            # The film rests where it begins, and where it ends.
            yield from [frame] * (HOLD if done == 1 else 1)
        zoomed /= factor
    yield from [frame] * (HOLD - 1)


def _view(box: Window, share: float) -> Window:
    """What is seen at a share of the way from the whole of a map to a part of it."""
    left, low, width, height = box
    wide, high = width**share, height**share
    return _fixed(left, width) * (1 - wide), _fixed(low, height) * (1 - high), wide, high


class _Blend:
    """Ranks of a map and of the next one, by either's measures."""

    def __init__(self, link: Link):
        self.box = link.box
        both = [link.here.measure] + ([link.there.measure] if link.there else [])
        self.maps = [[_ranks(one, by) for by in both] for one in both]

    def light(
        self, window: Window, share: float, size: int, table: Float32[np.ndarray, "levels 3"]
    ) -> Float32[np.ndarray, "size size 3"]:
        """The light of every pixel of a view, the mean of its samples, row 0 at the top."""
        drawn = [(1 - share) * ranks[0] + share * ranks[-1] for ranks in self.maps]
        left, low, wide, high = window
        _, _, width, height = self.box
        cells = max(drawn[-1].shape) * max(wide / width, high / height) / size
        fine = int(np.clip(math.ceil(cells), 2, FINEST))
        at = (np.arange(size * fine) + 0.5) / (size * fine)
        x, y = left + wide * at, low + high * at[::-1]
        coarse = _at(drawn[0], x, y)
        light = table[_level(coarse)]
        if len(drawn) > 1 and share > 0:
            x, y = (x - self.box[0]) / width, (y - self.box[1]) / height
            cols, rows = (np.flatnonzero((side >= 0) & (side < 1)) for side in (x, y))
            inside = np.ix_(rows, cols)
            finer, part = _at(drawn[1], x[cols], y[rows]), coarse[inside]
            weight = np.full(part.shape, share * share * (3 - 2 * share), np.float32)
            weight[np.isnan(finer)], weight[np.isnan(part)] = 0, 1
            light[inside] += weight[..., None] * (table[_level(finer)] - light[inside])
        return light.reshape(size, fine, size, fine, 3).mean(axis=(1, 3))


def _at(
    ranks: Float64[np.ndarray, "rows cols"],
    x: Float64[np.ndarray, " n"],
    y: Float64[np.ndarray, " m"],
) -> Float64[np.ndarray, "m n"]:
    """What lies at places of a map, in fractions of it."""
    cells = [
        np.clip(np.floor(at * count).astype(np.int64), 0, count - 1)
        for at, count in zip((y, x), ranks.shape, strict=True)
    ]
    return ranks[np.ix_(*cells)]


def _ranks(measure: np.ma.MaskedArray, by: np.ma.MaskedArray) -> Float64[np.ndarray, "rows cols"]:
    return equalise(measure, [by]).filled(np.nan)


def _level(ranks: Float64[np.ndarray, "m n"]) -> Int64[np.ndarray, "m n"]:
    """Rows of the table of colours."""
    places = np.round((ranks + 1) / 2 * (LEVELS - 1))
    return np.where(np.isnan(ranks), LEVELS, places).astype(np.int64)


def _table(palette: str) -> Float32[np.ndarray, "levels 3"]:
    """Colours of ranks from -1 to 1, and then of what is missing, as linear light."""
    colours = PALETTES[palette].sides(np.linspace(0, 1, LEVELS))[:, :3]
    return light_of(np.concatenate([colours, [to_rgb(MISSING)]])).astype(np.float32)


class _Paper:
    """The page that all frames of a film stand on."""

    def __init__(self, labels: tuple[str, str], size: int):
        self.labels, self.size = labels, size
        path = findfont(FontProperties(family="DejaVu Sans"))
        self.font = ImageFont.truetype(path, max(9, size // 32))
        self.line = round(1.45 * self.font.size)
        self.height = (2 * EDGE + size + 3 * self.line + 1) // 2 * 2

    def frame(
        self, picture: np.ndarray, region: Region, window: Window, zoomed: float
    ) -> UInt8[np.ndarray, "height width 3"]:
        page = Picture.new("RGB", (self.size + 2 * EDGE, self.height), "white")
        page.paste(Picture.fromarray(picture), (EDGE, EDGE))
        brush = ImageDraw.Draw(page)
        left, low, wide, high = window
        y = EDGE + self.size + EDGE // 2
        for name, axis, start, length in (
            (self.labels[0], region.x, left, wide),
            (self.labels[1], region.y, low, high),
        ):
            ends = axis.at(np.array([start, start + length])).tolist()
            brush.text((EDGE, y), f"{name}  {ends_in_words(*ends)}", "black", self.font)
            y += self.line
        brush.text((EDGE, y), f"zoom  × {number(zoomed, 3)}", "black", self.font)
        self._bar(brush, region.x.span * wide, "decades" if region.x.scale == "log10" else "")
        return np.asarray(page)

    def _bar(self, brush: ImageDraw.ImageDraw, span: float, unit: str) -> None:
        """A bar of a round length in the lower left of the map, at most a quarter of it long."""
        power = math.floor(math.log10(span / 4))
        digit = max(m for m in (1, 2, 5) if m * 10.0**power <= span / 4)
        long = digit * 10.0**power / span * self.size
        words = f"{digit * 10**power:g}" if -3 <= power <= 3 else power_of_ten(power)
        unit = unit.removesuffix("s") if words == "1" else unit
        if digit > 1 and not -3 <= power <= 3:
            words = f"{digit} × {words}"
        x, y = EDGE + self.size // 40, EDGE + self.size - self.size // 40
        thick = max(2, self.size // 160)
        brush.rectangle((x - 1, y - thick - 1, x + long + 1, y + 1), "black")
        brush.rectangle((x, y - thick, x + long, y), "white")
        brush.text(
            (x, y - thick - self.line), f"{words} {unit}".strip(), "white", self.font,
            stroke_width=max(1, self.size // 240), stroke_fill="black",
        )  # fmt: skip


def ends_in_words(low: float, high: float) -> str:
    """Two ends, with as many digits as it takes to see how far they are apart."""
    digits = digits_of(low, high)
    return f"{number(low, digits)} to {number(high, digits)}"


def encode(
    film: Iterable[UInt8[np.ndarray, "height width 3"]],
    suffix: str,
    *,
    rate: int = RATE,
    recipe: str = "",
) -> bytes:
    """The bytes of a film as MP4 (H.264, plays in any browser) or as GIF (256 colours, for slides).

    Args:
        film: Its frames, all of one even size.
        suffix: `.mp4` or `.gif`.
        rate: Frames per second.
        recipe: What it shows, for programs; it is kept as the comment.

    Raises:
        Refused: The suffix is neither, the rate is none, or MP4 cannot be written here.
    """
    if not 1 <= rate <= 60:
        raise Refused(f"{rate} frames per second; choose 1 to 60")
    require_encoder(suffix)
    return (_mp4 if suffix.lower() == ".mp4" else _gif)(film, rate, recipe)


def require_encoder(suffix: str) -> None:
    """Make sure, before frames are drawn, that such a film can be written here.

    Raises:
        Refused: It is neither `.mp4` nor `.gif`, or the encoder is not installed.
    """
    if suffix.lower() not in SUFFIXES:
        raise Refused(f"{suffix!r} is no film; choose {' or '.join(SUFFIXES)}")
    if suffix.lower() == ".mp4" and importlib.util.find_spec("av") is None:
        raise Refused(
            "an MP4 is written with the package av; run `uv sync --extra film`, or write a .gif"
        )


def _mp4(film: Iterable[np.ndarray], rate: int, recipe: str) -> bytes:
    import av  # an extra

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        container.metadata["comment"] = recipe
        stream = None
        for picture in film:
            if stream is None:
                stream = container.add_stream("libx264", rate=rate)
                stream.height, stream.width = picture.shape[:2]
                # Half the resolution for colour is what every player can show.
                stream.pix_fmt, stream.options = "yuv420p", {"crf": "16", "preset": "medium"}
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame))
        if stream is not None:
            container.mux(stream.encode())
    return buffer.getvalue()


def _gif(film: Iterable[np.ndarray], rate: int, recipe: str) -> bytes:
    pictures = [Picture.fromarray(frame) for frame in film]
    # One palette for all, from frames all over the film, so that still parts do not flicker.
    some = [np.asarray(pictures[k]) for k in np.linspace(0, len(pictures) - 1, 9).astype(int)]
    shared = Picture.fromarray(np.concatenate(some)).quantize(255)
    few = [each.quantize(palette=shared, dither=Picture.Dither.NONE) for each in pictures]
    buffer = io.BytesIO()
    few[0].save(
        buffer, "GIF", save_all=True, append_images=few[1:], duration=round(1000 / rate), loop=0,
        comment=recipe.encode(),
    )  # fmt: skip
    return buffer.getvalue()
