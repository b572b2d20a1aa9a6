"""Curves of pairs: what is drawn, and where."""

import numpy as np
import pytest

from fractal_core import Refused, charts, figures, pairs
from fractal_core.seeing import Rate

EPS = pairs.distances(1e-12, 1e-2, 11)


def found(alpha: float, bases: int = 600, **floors) -> pairs.PairsDimension:
    share = 0.3 * (EPS / EPS[0]) ** alpha
    flips = np.random.default_rng(0).random((bases, len(EPS))) < share
    return pairs.estimate(flips, EPS, draws=50, **floors)


def texts(figure) -> str:
    """All that is written in a figure."""
    figure.draw_without_rendering()
    return " ".join(
        artist.get_text() for artist in figure.findobj(match=lambda a: hasattr(a, "get_text"))
    )


def test_everything_drawn_is_inside_the_page_and_named():
    """No text sticks out, legend and data do not meet, and axes are labelled in words."""
    rough = found(0.1, rerun=Rate(0, 200), ulp=Rate(8, 200))
    figure = charts.pairs_figure(rough, nulls={"a curve": found(1.0), "no curve": None})
    said = texts(figure)
    for words in ("pairs whose labels differ", "distance between", "in decades", "dimension D"):
        assert words in said
    assert "fit to a curve" in said
    assert "no curve" not in said
    page, (top, side, below) = figure.bbox, figure.axes
    legend = figure.legends[0].get_window_extent()
    assert legend.x1 < page.x1
    assert legend.y0 > top.get_window_extent().y1
    written = [side.yaxis.label, below.yaxis.label, below.xaxis.label, *figure.texts]
    boxes = [text.get_window_extent() for text in written]
    outside = [b for b in boxes if b.x0 < 0 or b.y0 < 0 or b.x1 > page.x1 or b.y1 > page.y1]
    assert outside == []
    assert side.get_window_extent().x1 < top.get_window_extent().x0
    assert below.get_window_extent().y1 < top.get_window_extent().y0


def test_points_stand_at_their_distances():
    """Shares of flips against distance, and D of the same estimate below."""
    rough = found(0.1)
    top, _, below = charts.pairs_figure(rough).axes
    drawn = top.containers[0].lines[0].get_xydata()
    np.testing.assert_allclose(drawn, np.stack([rough.eps, rough.flips], axis=1))
    np.testing.assert_allclose(below.containers[0].lines[0].get_ydata(), rough.profile.dimension)
    assert top.get_xscale() == top.get_yscale() == "log"


def test_scales_without_flips_are_arrows():
    """They are seen, at the end of their interval, and are not drawn as points at zero."""
    rough = found(1.0)
    none = int((rough.flips == 0).sum())
    assert none > 3
    top = charts.pairs_figure(rough).axes[0]
    assert len(top.containers[0].lines[0].get_xdata()) == len(EPS) - none
    arrows = [text for text in top.texts if text.arrow_patch is not None]
    assert sorted(a.xyann[0] for a in arrows) == pytest.approx(sorted(rough.eps[rough.flips == 0]))
    assert top.get_ylim()[0] < rough.flips_high.min()


def test_floors_are_drawn_with_what_they_bury():
    """Distances whose flips reruns explain are hollow, and the floor is a line through all."""
    rough = found(0.5, rerun=Rate(20, 1000))
    assert 0 < rough.used.sum() < len(EPS)
    top, side, _ = charts.pairs_figure(rough).axes
    faces = [container.lines[0].get_markerfacecolor() for container in top.containers]
    assert faces == [charts.BLUE, "white"]
    assert any(np.allclose(line.get_ydata(), 0.02) for line in top.lines)
    np.testing.assert_allclose(side.containers[0].lines[0].get_ydata(), [0.02])


def test_nothing_found_is_drawn_too(tmp_path):
    """Without a single flip there are arrows, a title that says so, and no warning."""
    rough = pairs.estimate(np.zeros((300, 11), bool), EPS, draws=50, rerun=Rate(0, 100))
    figure = charts.pairs_figure(rough)
    assert "no dimension" in texts(figure)
    figures.save(figure, tmp_path / "a.png")
    figures.save(figure, tmp_path / "a.svg")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_an_unreasonable_width_is_refused():
    """Between the width of a column and that of a poster."""
    with pytest.raises(Refused, match="mm"):
        charts.pairs_figure(found(0.1), width_mm=10)
