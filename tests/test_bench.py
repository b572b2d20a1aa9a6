"""Benchmarks are honest: the contenders do the same work, and a turn is counted right."""

import json
import subprocess
import sys

import numpy as np
import pytest

from fractal_core.bench import finetune, tiny
from fractal_core.bench.rounds import Rates, matrix_peak, take_turns
from fractal_core.bench.standin import Shape


@pytest.mark.parametrize("case", list(tiny.cases()), ids=str)
def test_all_contenders_train_the_same_networks(case):
    """Every contender gives the losses of the kernel, so that none saves work."""
    steps = 21
    experiment = case.experiment(steps)
    losses = experiment.run(tiny.points(32), seed=0, record=range(steps)).extras["losses"]
    tolerance = 1e-10 if case.dtype == "float64" else 2e-3
    for contender in (tiny.paper, tiny.tuned, tiny.torch_stacked):
        np.testing.assert_allclose(contender(case, 32, steps)(), losses, rtol=tolerance)


def test_turns_alternate_and_the_first_is_not_counted():
    """One warm-up turn, then every contender once per round."""
    calls = []
    work = {name: lambda name=name: calls.append(name) or 1.0 for name in "ab"}
    rates = take_turns(work, 3)
    assert calls == ["a", "b"] * 4
    assert [len(rounds) for rounds in rates.by_name.values()] == [3, 3]


def test_ratios_are_within_a_round():
    """A machine that slows down in one round slows both; the ratio does not see it."""
    rates = Rates({"a": [10.0, 1.0, 12.0], "b": [5.0, 0.5, 4.0]})
    assert rates.ratio("a", "b") == (2.0, 2.0)


def test_the_matrix_peak_counts_every_operation():
    """Two per multiply-add, n^3 of them, as often as repeated."""
    assert matrix_peak("float64", size=8, repeats=3)() == 2 * 8**3 * 3


def test_flops_of_the_papers_network():
    """About 325 thousand operations a step for 272 samples at width 16."""
    case = tiny.Case("tanh", "full", "float64")
    assert tiny.flops(case.experiment(21).problem(0)) == pytest.approx(325e3, rel=0.02)


def test_the_command_prints_one_json_object():
    """A short run of one case, and nothing but JSON on standard output."""
    command = "bench tiny --rounds 1 --seconds 0.02 --only tanh-single-float64 --json"
    answer = subprocess.run(
        [sys.executable, "-m", "fractal_core", *command.split()],
        capture_output=True,
        text=True,
        check=True,
    )
    report = json.loads(answer.stdout)
    (row,) = report["cases"]
    assert row["rates"]["kernel"] > 0
    assert set(row["times_faster"]) == {"paper", "tuned", "torch"}


SMALL = finetune.Case(Shape(1, 512, 48, 24), steps=3, side=2)


@pytest.fixture(scope="module", params=finetune.MEASURES)
def tuned(request):
    """What is measured of small runs, in one round."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune, "ORDERS", 1)
        return request.param, finetune.MEASURES[request.param](SMALL, 1)


def test_the_old_way_trains_the_same_runs(tuned):
    """Curves of both ways agree up to rounding, and every turn gave the same bits."""
    what, found = tuned
    old = found.curves[finetune.OLD]
    assert old.shape == ({"training": 1, "everything": 2}[what], SMALL.steps)
    for curves in found.curves.values():
        np.testing.assert_allclose(curves, np.broadcast_to(old, curves.shape), rtol=1e-3)
    assert (np.ptp(found.curves[finetune.NEW], axis=1) > 1e-2).all()
    assert found.repeated


def test_the_report_of_fine_tuning_holds_what_was_measured(tuned):
    """Start, steps, points, ratios, differences and hashes, as one JSON object."""
    what, found = tuned
    report = json.loads(json.dumps(found.report()))
    per = {"training": ["step"], "everything": ["step", "point", "point_of_a_processor"]}[what]
    for name in per:
        assert set(report[f"seconds_per_{name}"]) == {finetune.NEW, finetune.OLD}
        assert len(report[f"times_faster_per_{name}"]) == 2
    assert report["seconds_to_start"][finetune.OLD] > 0
    assert set(report["largest_difference"]) == {finetune.NEW, "permuted"}
    assert set(report["curves_sha256"]) == {finetune.NEW, finetune.OLD, "permuted"}
    assert report["case"]["steps"] == SMALL.steps
    assert report["texts"]["texts"] == 24
