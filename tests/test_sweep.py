"""Recipes, ids and plans."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fractal_core import Axis, Grid, Refused, Region, Sweep, TinyNetworks
from fractal_core.sweep import canonical, from_json, plan, to_json

REGION = Region(Axis("lr_input", 1e-3, 1e6, 24), Axis("lr_output", 1e-3, 1e6, 16))


def sweep(**settings) -> Sweep:
    return Sweep.over(TinyNetworks(**settings), REGION)


shapes = st.tuples(st.integers(1, 150), st.integers(1, 150))


@given(shapes, st.sampled_from([8, 16, 32, 64]))
def test_a_plan_holds_every_point_exactly_once(shape, block):
    """Whatever the shape and the block, no point is left out and none is trained twice."""
    visits = np.zeros(shape, int)
    for unit in plan(shape, block):
        np.add.at(visits, unit.cells(), 1)
    assert np.all(visits == 1)


@given(shapes)
def test_levels_nest_and_come_coarse_first(shape):
    """After the units of a level every 8th, 4th, 2nd, 1st row and column is there."""
    seen = np.zeros(shape, bool)
    units = plan(shape)
    assert [unit.level for unit in units] == sorted((unit.level for unit in units), reverse=True)
    for level in (3, 2, 1, 0):
        for unit in units:
            if unit.level == level:
                seen[unit.cells()] = True
        expected = np.zeros(shape, bool)
        expected[:: 2**level, :: 2**level] = True
        assert np.array_equal(seen, expected)


def test_keys_are_names_of_one_unit_each():
    """A key is a file name; two units never share one."""
    keys = [unit.key for unit in plan((300, 500))]
    assert len(set(keys)) == len(keys)
    assert all(key.replace("-", "").isalnum() for key in keys)


def test_units_hold_about_equally_many_points():
    """A coarse unit is no slower to come than a fine one."""
    sizes = [len(unit.cells()[0]) for unit in plan((512, 512))]
    assert max(sizes) <= 2 * min(sizes)


@pytest.mark.parametrize("block", [1, 5, 12])
def test_any_block_holds_every_point_once(block):
    """A block need not begin on the coarsest lattice; with 1 every point is a unit."""
    units = plan((17, 26), block)
    cells = np.concatenate([np.stack(unit.cells(), 1) for unit in units])
    assert len(np.unique(cells, axis=0)) == len(cells) == 17 * 26
    assert block > 1 or len(units) == 17 * 26
    with pytest.raises(Refused, match="at least 1"):
        plan((16, 24), 0 - block)


@pytest.mark.parametrize(
    "other",
    [
        sweep(steps=500),
        sweep(dtype="float32"),
        sweep(batch=16),
        sweep(arrays="full"),
        sweep(lr_input=1.0, activation="relu"),
        Sweep.over(TinyNetworks(), REGION, seed=1),
        Sweep.over(TinyNetworks(), REGION.zoom((1e-2, 1e6), (1e-3, 1e6))),
        Sweep.over(TinyNetworks(), Region(replace(REGION.x, points=25), REGION.y)),
    ],
)
def test_the_id_changes_with_whatever_can_change_an_answer(other):
    """Steps, precision, batch, data, seed, region, grid."""
    assert other.id != sweep().id


def test_the_id_changes_with_one_bit_of_one_axis_value():
    """Powers of ten differ in the last bit between machines, so the values are in the id."""
    grid = Grid.over(REGION)
    nudged = Grid(REGION, np.nextafter(grid.x, 1.0), grid.y)
    assert Sweep(TinyNetworks(), nudged).id != Sweep(TinyNetworks(), grid).id


def test_the_id_is_the_same_however_a_number_is_written():
    """1 and 1.0 are the same setting."""
    whole = json.dumps(to_json(Axis("a", 1.0, 2.0, 4)))
    assert "0x1.0" in whole
    assert sweep(offset=0.0).id == sweep().id


def test_a_recipe_survives_the_disk():
    """Settings and region come back equal to the last digit."""
    experiment = TinyNetworks(batch=16, drift=0.1, steps=77)
    region = Region(
        Axis("lr_input", 0.1, 0.30000000000000004, 3), Axis("n", 1.0, 9.0, 3, "linear", True)
    )
    for value in (experiment, region):
        assert from_json(type(value), json.loads(canonical(to_json(value)))) == value


def test_offsets_are_resolved_against_the_weights():
    """A map of offsets far below the last place of the weights would show rounding."""
    experiment = TinyNetworks(axes=("offset", "lr"))
    tiny = Region(Axis("offset", 1e-30, 1e-29, 8), Axis("lr", 1e-3, 1e3, 8))
    with pytest.raises(Refused, match="last place"):
        Sweep.over(experiment, tiny).require_resolution()


def test_a_seed_is_not_negative():
    """The generators do not take one."""
    with pytest.raises(Refused, match="seed"):
        Sweep.over(TinyNetworks(), REGION, seed=-1)


def test_axes_of_region_and_experiment_must_agree():
    """A region over other settings than the experiment moves is refused."""
    with pytest.raises(Refused, match="axes"):
        Sweep.over(TinyNetworks(axes=("drift", "lr")), REGION)


def test_a_picture_of_rounding_is_refused():
    """Below 4 units in the last place neighbours train with the same numbers."""
    low = 0.1960618282403
    narrow = REGION.zoom((low, low + 2 * 24 * np.spacing(low)), (1e-3, 1e6))
    with pytest.raises(Refused, match="last place of float64"):
        sweep().zoom(narrow).require_resolution()
    sweep().require_resolution()
    modest = REGION.zoom((0.196061, 0.196062), (1e-3, 1e6))
    sweep().zoom(modest).require_resolution()
    with pytest.raises(Refused, match="float32"):
        sweep(dtype="float32").zoom(modest).require_resolution()
