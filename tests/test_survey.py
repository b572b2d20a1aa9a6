"""Points beside the map: trained once, kept in the run folder, never a part of the picture."""

import numpy as np
import pytest
from closed import quiet, refuse

from fractal_core import Axis, Refused, Region, Store, Sweep, TinyNetworks, machine, survey
from fractal_core.agenda import Exit
from fractal_core.experiments import open_run
from fractal_core.local import LocalCrew

SWEEP = Sweep.over(
    TinyNetworks(samples=4, steps=30),
    Region(Axis("lr_input", 0.1, 10.0, 24), Axis("lr_output", 0.1, 10.0, 16)),
)
POINTS = np.geomspace(0.1, 10, 600).reshape(300, 2)


def hire(store: Store) -> LocalCrew:
    return LocalCrew(store.path, machine.slots(("cpu",)))


@pytest.fixture
def store(tmp_path) -> Store:
    return Store.create(tmp_path / "run", SWEEP, block=8)


def test_a_survey_is_trained_once(store):
    """Its outcomes are those of its points, in their order; asked again it computes nothing."""
    told = []
    name = survey.named("pairs", {"seed": 1})
    outcomes = survey.trained(store, name, POINTS, hire, lambda *said: told.append(said))
    direct = SWEEP.experiment.run(POINTS, seed=0)
    np.testing.assert_array_equal(outcomes.measure, direct.measure)
    np.testing.assert_array_equal(outcomes.outcome, direct.outcome)
    assert told[0] == (name, 0, 300)
    assert told[-1] == (name, 300, 300)
    again = survey.trained(open_run(store.path), name, POINTS, refuse, quiet)
    np.testing.assert_array_equal(again.measure, direct.measure)


def test_a_survey_is_no_part_of_the_map(store):
    """Neither the picture nor what is missing of it changes, and its files verify."""
    survey.trained(store, "pairs-1", POINTS, hire, quiet)
    assert len(store.missing()) == len(store.units)
    assert store.image().outcome.mask.all()
    assert store.verify() == []
    (store.path / "units" / "pairs-1-0000256.npz").write_bytes(b"broken")
    assert len(store.verify()) == 1
    assert [batch.first for batch in store.missing(store.survey("pairs-1"))] == [256]


def test_a_survey_of_one_name_has_one_set_of_points(store):
    """Points that came out otherwise are refused, and so is a survey that nobody made."""
    store.survey("pairs-1", POINTS)
    with pytest.raises(Refused, match="other points"):
        open_run(store.path).survey("pairs-1", POINTS[::-1].copy())
    with pytest.raises(Refused, match="missing or damaged"):
        store.survey("pairs-2")


def test_a_survey_records_losses(store):
    """Those of the steps that were asked for, once; another choice of steps is refused."""
    outcomes = survey.trained(store, "time-1", POINTS, hire, quiet, record=[0, 7, 29])
    direct = SWEEP.experiment.run(POINTS, seed=0, record=[0, 7, 29])
    np.testing.assert_array_equal(outcomes.extras["losses"], direct.extras["losses"])
    again = survey.trained(open_run(store.path), "time-1", POINTS, refuse, quiet, record=[0, 7, 29])
    np.testing.assert_array_equal(again.extras["losses"], direct.extras["losses"])
    with pytest.raises(Refused, match="other points"):
        store.survey("time-1", POINTS, [0, 8])


def test_a_lattice_is_a_part_of_the_map(store):
    """Only its levels are trained, and they are those of the finished map."""
    image = survey.lattice(store, 1, hire, quiet)
    assert not image.outcome[::2, ::2].mask.any()
    assert image.outcome[1::2].mask.all()
    survey.lattice(open_run(store.path), 1, refuse, quiet)


def test_names_tell_settings_apart():
    """The hash is that of the settings, whatever order they are given in."""
    assert survey.named("a", {"x": 1, "y": 2.0}) == survey.named("a", {"y": 2.0, "x": 1})
    assert survey.named("a", {"x": 1}) != survey.named("a", {"x": 2})


def test_what_could_not_be_trained_is_said(store, monkeypatch):
    """With the cause; what was trained stays."""

    class Broken(LocalCrew):
        def do(self, slot, order):

            return Exit(order, 4, cause="the machine broke")

    with pytest.raises(Refused, match=r"300 of 300 points of x-1 are not trained \(the machine"):
        survey.trained(
            store, "x-1", POINTS, lambda s: Broken(s.path, machine.slots(("cpu",))), quiet
        )
