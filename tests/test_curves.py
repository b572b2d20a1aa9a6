"""Charts that are read with the mouse."""

import io

import altair as alt
import numpy as np
import pytest
from PIL import Image as Picture

from fractal_core import Axis, Grid, Region, calibration, curves
from fractal_core.boundary import SafetyMargin
from fractal_core.pairs import estimate
from fractal_core.seeing import Rate


def values(chart: alt.LayerChart) -> list[dict]:
    """All rows of all tables of a chart."""
    return [row for table in chart.to_dict()["datasets"].values() for row in table]


def test_boxes_are_drawn_with_their_intervals_and_nulls():
    """Every scale of the map, every null, the fitted dimension and the truth."""
    found = calibration.judged("Koch snowflake", 1)
    rows = values(curves.box_chart(found, 1.2619))
    mine = [row for row in rows if row.get("what") == "measured"]
    np.testing.assert_allclose([row["eps"] for row in mine], found.box.profile.eps)
    np.testing.assert_allclose([row["low"] for row in mine], found.box.profile.low)
    assert {"coin flips", "a quadratic loss", "true D = 1.262"} <= {row.get("what") for row in rows}
    assert {"low": found.box.low, "high": found.box.high} in rows
    fit = [row["D"] for row in rows if row.get("what") == "the fit"]
    np.testing.assert_allclose(fit, found.box.fitted)


def test_a_narrow_chart_names_all_that_is_compared():
    """One name below the other, and none cut off."""
    drawn = curves.box_chart(calibration.judged("Koch snowflake", 1)).to_dict()
    dashes = [layer["encoding"].get("strokeDash") for layer in drawn["layer"]]
    (legend,) = [dash["legend"] for dash in dashes if dash]
    assert legend == {"orient": "top", "columns": 1, "labelLimit": 0}


def test_flips_are_drawn_as_they_were_counted():
    """Those that were fitted, those that were not, and none, at the end of its interval."""
    rng = np.random.default_rng(0)
    eps = np.geomspace(1e-2, 1e-6, 8)
    flips = rng.random((400, 8)) < 20 * eps
    found = estimate(flips, eps, rerun=Rate(0, 100), ulp=Rate(3, 100))
    assert found.flips[-1] == 0
    rows = values(curves.flips_chart(found, {"nothing": None}, "decades"))
    points = [row for row in rows if "kind" in row]
    assert [row["flips"] for row in points] == found.flips.tolist()
    assert [row["kind"] == "none" for row in points] == (found.flips == 0).tolist()
    assert points[-1]["share"] == found.flips_high[-1] > 0
    assert all(row["low"] > 0 for row in points)
    assert {"at": 0.03, "what": "one last place flips 3 of 100"} in rows
    assert not any("a rerun" in str(row.get("what")) for row in rows)
    assert values(curves.pairs_chart(found, "decades", 1.0))


def test_a_map_is_painted_cell_by_cell():
    """Small ones large; both sides, the boundary, and grey where nothing is known."""
    labels = np.ma.masked_array(np.zeros((4, 4), bool), False)
    labels[2:] = True
    labels[0, 3] = np.ma.masked
    picture = Picture.open(io.BytesIO(curves.boundary_png(labels)))
    assert picture.size == (512, 512)
    shown = np.asarray(picture.convert("RGB"))[64::128, 64::128][::-1]
    blue, orange = curves.SIDES
    assert tuple(shown[3, 0]) == blue
    assert tuple(shown[0, 0]) == orange
    assert tuple(shown[1, 0]) == curves.EDGE
    assert tuple(shown[0, 3]) == curves.MISSING


@pytest.mark.parametrize("scale", ["log10", "linear"])
def test_a_margin_is_drawn_where_there_is_one(scale):
    """A point for each row with a safe value."""
    grid = Grid.over(Region(Axis("x", 1.0, 2.0, 5, scale), Axis("y", 1.0, 2.0, 3, scale)))
    margin = SafetyMargin(np.zeros((3, 5)), np.array([4, -1, 2]))
    rows = values(curves.margin_chart(grid, margin, ("the x", "the y")))
    assert [(row["x"], row["y"]) for row in rows] == [
        (grid.x[4], grid.y[0]),
        (grid.x[2], grid.y[2]),
    ]
