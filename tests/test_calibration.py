"""Both estimators on known sets, and the sets themselves."""

import numpy as np
import pytest

from fractal_core import calibration, known
from fractal_core.known import KnownSet


@pytest.mark.parametrize("name", list(calibration.SETS))
def test_a_seed_decides_where_a_set_lies(name):
    """The same seed gives the same map, another one another."""
    first, again, other = (calibration.SETS[name](seed).labels(64) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert name == "coin flips" or not np.array_equal(first, other)
    assert 0.02 < first.mean() < 0.98


def test_coins_have_no_neighbours():
    """Half of them are heads, however close they are; the same point is the same coin."""
    near = 0.25 + 1e-14 * np.arange(4000) + 0.5j
    heads = known.coins(near)
    assert heads.mean() == pytest.approx(0.5, abs=0.05)
    assert (heads[1:] != heads[:-1]).mean() == pytest.approx(0.5, abs=0.05)
    assert np.array_equal(heads, known.coins(near))


def test_a_graph_is_detailed_down_to_its_smallest_waves():
    """Of the pairs beside a graph of dimension 1.8 many flip at a distance of a millionth."""
    below = known.weierstrass(1.8, 3)
    x = np.linspace(-0.4, 0.4, 200)
    high, low = np.full(200, 0.5), np.full(200, -0.5)
    for _ in range(60):
        middle = (high + low) / 2
        inside = below(x + 1j * middle)
        high, low = np.where(inside, high, middle), np.where(inside, middle, low)
    assert 0.2 < (below(x + 1e-6 + 1j * low) != below(x + 1j * low)).mean() < 0.8


@pytest.mark.parametrize(("name", "verdict"), [("circle", "smooth"), ("Koch snowflake", "fractal")])
def test_what_is_known_is_found(name, verdict):
    """Both intervals hold the truth, and the verdict is that of the set."""
    found = calibration.tried(name, 1)
    assert found.boxes.low <= found.truth <= found.boxes.high
    assert found.pairs.interval[0] <= found.truth <= found.pairs.interval[1]
    assert calibration.judged(name, 1).verdict.kind == verdict


def test_the_table_says_what_holds(monkeypatch):
    """Rows in the order of the sets; noise has no dimension from boxes, but one from pairs."""
    some = {name: calibration.SETS[name] for name in ("straight line", "coin flips")}
    monkeypatch.setattr(calibration, "SETS", some)
    table = calibration.table(1)
    assert table["set"].tolist() == list(some)
    line, coins = table.to_dict("records")
    assert (line["true D"], line["holds it"], line["holds it "]) == ("1.000", "yes", "yes")
    assert (coins["from boxes"], coins["holds it"]) == ("none: unresolved", "–")
    assert coins["from pairs"].startswith("2.000")


def test_an_interval_beside_the_truth_is_said_not_to_hold_it():
    """It is what the table is for."""
    assert calibration._held(1.5, (1.3, 1.2, 1.4)) == "no"
    assert calibration._held(1.3, (1.3, 1.2, 1.4)) == "yes"


def test_turning_a_set_moves_its_points():
    """A quarter turn of a half-plane, moved by a tenth of the window."""
    half = KnownSet(lambda z: z.imag > 0, 2.0, 1.0).turned(np.pi / 2, 0.1 + 0j)
    assert half.inside(np.array([0.19 + 0j, 0.21 + 0j])).tolist() == [True, False]
