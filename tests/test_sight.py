"""The seeing of a run folder, and zooms that it refuses."""

import json

import numpy as np
import pytest

from fractal_core import Axis, Refused, Region, Store, Sweep, TinyNetworks, sight
from fractal_core.boundary import boundary_cells
from fractal_core.experiments import EXPERIMENTS, open_run
from fractal_core.outcome import is_trainable
from fractal_core.seeing import Rate
from tests.closed import ClosedForm, Here, quiet, refuse

PLANE = Region(Axis("u", 0.0, 1.0, 48, "linear"), Axis("v", 0.5, 2.0, 32, "linear"))


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Makes a run folder of the closed-form experiment."""
    monkeypatch.setitem(EXPERIMENTS, "ClosedForm", ClosedForm)

    def make(kind: str, region: Region = PLANE, **settings) -> Store:
        return Store.create(tmp_path / kind, Sweep.over(ClosedForm(kind, **settings), region))

    return make


def test_a_smooth_boundary_is_seen_sharply(made):
    """Neither reruns nor last places flip labels, neighbours beside the boundary do."""
    store = made("line")
    seen = sight.look(store, "trainable", 600, 0, Here, quiet)
    assert seen.rerun.flips == seen.ulp.flips == seen.dtype.flips == 0
    assert seen.boundary
    assert 0.2 < seen.neighbours.value < 0.8
    assert seen.values == seen.cells == (48, 32)
    assert seen.pitch == pytest.approx(2 * store.sweep.ulps)
    assert sight.seen(open_run(store.path)) == seen


def test_looking_again_trains_nothing(made):
    """The other precision is a run folder inside this one, and the map is whole without it."""
    store = made("weierstrass")
    first = sight.look(store, "trainable", 600, 0, Here, quiet)
    assert sight.look(open_run(store.path), "trainable", 600, 0, refuse, quiet) == first
    other = open_run(store.path / "float32")
    assert other.sweep.experiment.dtype == "float32"
    assert np.array_equal(other.sweep.grid.x, store.sweep.grid.x)
    assert first.dtype.pairs == first.rerun.pairs > 50
    assert open_run(store.path).verify() == []


def test_points_lie_beside_the_boundary(made):
    """All of them are corners of its cells, and there are no doubles."""
    store = made("line")
    seen = sight.look(store, "trainable", 10_000, 0, Here, quiet)
    cells = boundary_cells(is_trainable(store.image().outcome))
    corners = {
        (row + down, col + right)
        for row, col in np.argwhere(np.ma.getdata(cells))
        for down in (0, 1)
        for right in (0, 1)
    }
    (name,) = [key for key in store.files.list("surveys") if "rerun" in key]
    batches = store.survey(name.removeprefix("surveys/").removesuffix(".npz"))
    points = np.concatenate([store.points(batch) for batch in batches])
    assert {store.sweep.grid.cell(x, y) for x, y in points.tolist()} == corners
    assert seen.rerun.pairs == len(corners) == len(points)


def test_without_a_boundary_any_points_will_do(made):
    """It is said that there is none."""
    seen = sight.look(made("plain"), "trainable", 300, 0, Here, quiet)
    assert not seen.boundary
    assert seen.neighbours.flips == seen.ulp.flips == 0
    assert seen.ulp.pairs == 96


def test_labels_that_change_are_seen(made):
    """A third of them in a rerun, as many by a last place."""
    seen = sight.look(made("line", fickle=0.3), "trainable", 3000, 0, Here, quiet)
    assert seen.rerun.interval[0] > 0.1
    assert seen.ulp.interval[0] > 0.1


def test_a_zoom_into_rounding_is_refused(made):
    """Once it was seen that labels are a hash of the last places; not before, and not elsewhere."""
    noise, line = made("noise"), made("line")
    child = noise.sweep.zoom(noise.sweep.region.zoom((0.2, 0.3), (1.0, 1.2)))
    sight.require_sight(noise, child)
    sight.look(noise, "trainable", 600, 0, Here, quiet)
    with pytest.raises(Refused, match=r"one unit in the last place flips \d+ of 200 .*--force"):
        sight.require_sight(noise, child)
    sight.look(line, "trainable", 600, 0, Here, quiet)
    sight.require_sight(line, line.sweep.zoom(child.region))


def test_a_zoom_ends_where_rounding_is_half_of_it(made):
    """A boundary of dimension 3/2 of which a last place flips 1 in 100 of what neighbours do."""
    store = made("weierstrass")
    seen = sight.look(store, "trainable", 300, 0, Here, quiet)
    kept = json.loads(store.files.get(sight.KEPT))
    kept |= {"ulp": {"flips": 1, "pairs": 100}, "neighbours": {"flips": 100, "pairs": 100}}
    kept["pitch"] = 1e4
    store.files.put_latest(sight.KEPT, json.dumps(kept).encode())
    assert sight.seen(store) != seen

    def child(ulps: float) -> Sweep:
        low, pitch = 1.25, ulps * np.spacing(1.25)
        region = Region(
            Axis("u", low, low + 32 * pitch, 32, "linear"),
            Axis("v", low, low + 32 * pitch, 32, "linear"),
        )
        return store.sweep.zoom(region)

    sight.require_sight(store, child(8.0))
    child(4.0).require_resolution()
    with pytest.raises(Refused, match="50% of the flips"):
        sight.require_sight(store, child(4.0))


def test_what_was_seen_of_another_recipe_says_nothing(made):
    """A file that was copied from elsewhere is not asked."""
    store = made("line")
    store.files.put_latest(sight.KEPT, b'{"sweep": "another"}')
    assert sight.seen(store) is None


def test_what_was_seen_names_its_boundary(made):
    """Files of old do not say which: it was the default."""
    store = made("line")
    seen = sight.look(store, "stable", 600, 0, Here, quiet)
    assert sight.seen(store).which == seen.which == "stable"
    assert "the stable boundary" in seen.where
    kept = json.loads(store.files.get(sight.KEPT))
    del kept["which"]
    store.files.put_latest(sight.KEPT, json.dumps(kept).encode())
    assert sight.seen(store).which == "trainable"


@pytest.mark.parametrize("cut", [0, 40, -2])
def test_what_is_damaged_was_never_seen(made, cut):
    """A zoom and a page go on without it."""
    store = made("line")
    sight.look(store, "trainable", 600, 0, Here, quiet)
    store.files.put_latest(sight.KEPT, store.files.get(sight.KEPT)[:cut])
    assert sight.seen(store) is None
    store.files.put_latest(sight.KEPT, json.dumps({"sweep": store.sweep.id}).encode())
    assert sight.seen(store) is None


def test_whole_numbers_and_handfuls_are_refused(made):
    """Before anything is trained."""
    whole = Region(Axis("u", 1.0, 64.0, 64, integer=True), Axis("v", 0.0, 1.0, 64, "linear"))
    with pytest.raises(Refused, match="whole numbers"):
        sight.look(made("line", whole), "trainable", 600, 0, refuse, quiet)
    with pytest.raises(Refused, match="at least 90"):
        sight.cost(made("plain"), 80)


def test_real_networks(tmp_path):
    """Networks are deterministic, and single precision moves some of them over the boundary."""
    region = Region(Axis("lr_input", 0.1, 1e3, 48), Axis("lr_output", 0.1, 1e3, 32))
    sweep = Sweep.over(TinyNetworks(width=4, samples=4, steps=200), region)
    store = Store.create(tmp_path / "run", sweep)
    seen = sight.look(store, "trainable", 900, 0, Here, quiet)
    assert seen.rerun == Rate(0, seen.rerun.pairs)
    assert seen.dtype.flips > 0
    assert seen.ulp.value < seen.neighbours.value
