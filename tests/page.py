"""What a reader sees of a printed page: its texts, and that none covers another."""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text


def texts_of(figure: Figure) -> list[Text]:
    """All texts that are seen."""
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]


def assert_clear(figure: Figure) -> None:
    """Every text is at least 6 pt, inside the page, and clear of the others and of the maps."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = []
    for text in texts_of(figure):
        assert text.get_fontsize() >= 6
        assert not text.get_parse_math()
        box = text.get_window_extent(canvas.get_renderer())
        assert 0 <= box.x0 < box.x1 <= figure.bbox.width, text
        assert 0 <= box.y0 < box.y1 <= figure.bbox.height, text
        boxes.append((box, text))
    # A line's box includes room for descenders that the next line may use.
    slack = 0.2 * figure.dpi / 25.4
    for i, (box, text) in enumerate(boxes):
        for other, neighbour in boxes[:i]:
            apart = min(box.x1, other.x1) - max(box.x0, other.x0) < 0
            apart |= min(box.y1, other.y1) - max(box.y0, other.y0) < slack
            assert apart, (text.get_text(), neighbour.get_text())
        for axes in figure.axes:
            frame = axes.get_window_extent()
            inside = min(box.x1, frame.x1) > max(box.x0, frame.x0) + slack
            inside &= min(box.y1, frame.y1) > max(box.y0, frame.y0) + slack
            assert not inside, text.get_text()
