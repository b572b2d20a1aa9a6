"""What is known of the roughness of a run, read from its folder."""

import numpy as np
import pytest

from fractal_core import Axis, Refused, Region, Store, Sweep, findings, pairing, sight
from fractal_core.engine import run_here
from fractal_core.experiments import EXPERIMENTS, read_run
from fractal_core.pairing import Request
from tests.closed import ClosedForm, Here, quiet

PLANE = Region(Axis("u", 0.0, 1.0, 64, "linear"), Axis("v", -2.0, 3.4, 64, "linear"))


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Makes a run folder of the closed-form experiment."""
    monkeypatch.setitem(EXPERIMENTS, "ClosedForm", ClosedForm)

    def make(kind: str, whole: bool = True) -> Store:
        store = Store.create(tmp_path / kind, Sweep.over(ClosedForm(kind), PLANE), block=8)
        for _ in run_here(store) if whole else ():
            pass
        return store

    return make


def test_pairs_are_kept_as_they_were_found(made):
    """Every number and every word of them, one answer for each boundary; nothing is trained."""
    store = made("weierstrass", whole=False)
    found = pairing.measure(store, Request(runs=3000), Here, quiet)
    assert findings.kept(store, "trainable") is None
    findings.keep(store, found)
    kept = findings.kept(read_run(store.path), "trainable")
    assert findings.kept(store, "stable") is None
    assert (kept.request, kept.budget, kept.coarse) == (found.request, found.budget, found.coarse)
    assert kept.verdict == found.verdict
    assert (kept.dimension.rerun, kept.dimension.interval) == (
        found.dimension.rerun,
        found.dimension.interval,
    )
    for mine, theirs in [
        (kept.dimension, found.dimension),
        *((kept.nulls[name], found.nulls[name]) for name in found.nulls),
    ]:
        for name in ("eps", "flips", "flips_low", "flips_high", "used", "fit"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
            assert getattr(mine, name).dtype == getattr(theirs, name).dtype
        np.testing.assert_array_equal(mine.profile.dimension, theirs.profile.dimension)


def test_what_is_kept_of_another_recipe_says_nothing(made):
    """Nor what is damaged."""
    store, other = made("weierstrass", whole=False), made("line", whole=False)
    findings.keep(store, pairing.measure(store, Request(runs=3000), Here, quiet))
    text = (store.path / "pairs-trainable.json").read_text()
    (other.path / "pairs-trainable.json").write_text(text)
    assert findings.kept(other, "trainable") is None
    (store.path / "pairs-trainable.json").write_text(text[: len(text) // 2])
    assert findings.kept(store, "trainable") is None


def test_a_map_is_measured_once(made):
    """And again when there is more of it."""
    store = made("line", whole=False)
    with pytest.raises(Refused, match="no point of the map is measured"):
        findings.so_far(store, "trainable")
    running = run_here(store)
    while len(store.missing()) > len(store.units) / 2:
        next(running)
    half = findings.so_far(store, "trainable")
    assert np.ma.is_masked(half.labels)
    assert findings.so_far(store, "trainable") is half
    for _ in running:
        pass
    whole = findings.so_far(store, "trainable")
    assert not np.ma.is_masked(whole.labels)
    assert whole.found.box.read == findings.mapped(store, "trainable").found.box.read
    assert findings.so_far(store, "trainable", 0.2) is not whole


def test_a_stamp_changes_with_what_there_is_to_read(made):
    """The map, pairs and seeing; not by looking."""
    store = made("line", whole=False)
    stamps = [findings.stamp(store)]
    for _ in run_here(store):
        pass
    stamps.append(findings.stamp(store))
    sight.look(store, "trainable", 600, 0, Here, quiet)
    stamps.append(findings.stamp(store))
    findings.keep(store, pairing.measure(store, Request(runs=3000), Here, quiet))
    stamps.append(findings.stamp(store))
    assert len(set(stamps)) == 4
    findings.so_far(store, "trainable")
    findings.kept(store, "trainable")
    assert findings.stamp(store) == stamps[-1]


def test_tables_say_what_was_found(made):
    """The map beside its nulls, the run beside its own, and every kind of flip."""
    store = made("line")
    found = findings.so_far(store, "trainable").found
    table = findings.beside_boxes(found)
    assert table.dimension[0] == findings.in_words(found.box)
    assert table["map"].tolist() == [
        "this map", "the same map smoothed", "a quadratic loss", "coin flips",
    ]  # fmt: skip
    rough = pairing.measure(store, Request(runs=3000), Here, quiet)
    assert len(findings.beside_pairs(rough)) == 1 + len(rough.nulls)
    seen = sight.look(store, "trainable", 600, 0, Here, quiet)
    rates = findings.rates(seen)
    assert rates.flips[0] == f"0 of {seen.rerun.pairs}"
    assert len(rates) == 4
    names = [name for name, _ in findings.companions(store, found, "trainable", 10.0)]
    assert names == ["cross-check", "other recipes", "companions", "", "safety margin"]
