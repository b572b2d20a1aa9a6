"""The table of a run gives back every number that the run folder holds."""

import io

import numpy as np
import pandas as pd

from fractal_core.outcome import Outcome
from fractal_core.plane import Axis, Grid, Region
from fractal_core.records import records, to_csv
from fractal_core.store import Image

NUMBERS = "measure", "first_loss", "tail_loss", "final_loss", "seconds"


def image():
    """Numbers of all sizes, inf, and missing points, on 20 x 30 points."""
    grid = Grid.over(Region(Axis("a", 1e-6, 0.3, 30), Axis("b", -0.1, 0.2, 20, "linear")))
    rng = np.random.default_rng(0)
    mask = rng.random(grid.shape) < 0.2
    arrays = {name: rng.standard_normal(grid.shape) * 10.0 ** rng.integers(-300, 300, grid.shape)
              for name in NUMBERS}  # fmt: skip
    arrays["first_loss"] = rng.random(grid.shape) + 1
    arrays["tail_loss"] = arrays["final_loss"] = np.where(
        rng.random(grid.shape) < 0.3, np.inf, rng.random(grid.shape)
    )
    arrays["outcome"] = rng.integers(1, 4, grid.shape).astype(np.uint8)
    arrays["steps"] = rng.integers(1, 2**31 - 1, grid.shape).astype(np.int32)
    return Image(grid, **{name: np.ma.masked_array(a, mask) for name, a in arrays.items()})


def read(text: str) -> pd.DataFrame:
    """The fields as text; Python's own `float` reads them exactly, whatever pandas does."""
    return pd.read_csv(io.StringIO(text), dtype=str)


def test_every_number_comes_back_to_the_bit():
    """Axes, losses and measures of every point, in the order of the grid."""
    mine = image()
    table = read(to_csv(mine))
    known = ~mine.outcome.mask.ravel()
    np.testing.assert_array_equal(table["x"].map(float), np.tile(mine.grid.x, 20))
    np.testing.assert_array_equal(table["y"].map(float), np.repeat(mine.grid.y, 30))
    for name in (*NUMBERS, "steps"):
        array = getattr(mine, name)
        found = table[name][known].map(float)
        np.testing.assert_array_equal(found, array.compressed(), err_msg=name)
    names = [Outcome(value).name for value in mine.outcome.compressed()]
    assert table["outcome"][known].tolist() == names


def test_the_ratio_is_the_tail_over_the_first_loss():
    """Infinite where the tail is."""
    mine = image()
    ratio = records(mine)["ratio"][~mine.outcome.mask.ravel()]
    np.testing.assert_array_equal(ratio, mine.tail_loss.compressed() / mine.first_loss.compressed())
    assert np.isinf(ratio).any()


def test_a_missing_point_has_a_place_and_nothing_else():
    """Its other fields are empty, and no step or outcome is made up."""
    mine = image()
    lines = to_csv(mine).splitlines()
    assert lines[0] == ("x,y,outcome,measure,first_loss,tail_loss,final_loss,ratio,steps,seconds")
    for line, missing in zip(lines[1:], mine.outcome.mask.ravel(), strict=True):
        x, y, *rest = line.split(",")
        assert x
        assert y
        assert all(field == "" for field in rest) == missing
        assert "." not in rest[-2], "steps are whole numbers"


def test_a_first_loss_that_is_no_number_has_no_ratio():
    """Infinite or zero to begin with: the ratio is empty and nothing warns."""
    mine = image()
    mine.first_loss[0, :] = np.inf
    mine.first_loss[1, :] = 0.0
    assert records(mine)["ratio"][:60].isna().all()


def test_a_run_of_which_nothing_is_computed_is_a_table_of_places():
    """As long as the grid, with empty fields."""
    empty = Image.empty(image().grid)
    table = read(to_csv(empty))
    assert len(table) == 600
    assert table.drop(columns=["x", "y"]).isna().all().all()
