"""The label rule and the measure."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fractal_core.outcome import Outcome, Tally, is_stable, is_trainable, judge_curves

losses = arrays(
    np.float64,
    st.tuples(st.integers(1, 5), st.integers(2, 40)),
    elements=st.floats(1e-6, 1e300) | st.just(np.inf) | st.just(np.nan),
)


def measure_by_the_formula(curve: np.ndarray, window: int) -> float:
    """The measure written out for one curve, from the words of the paper."""
    ended = np.cumsum(~np.isfinite(curve)) > 0
    v = np.minimum(np.where(ended, 1e6, curve) / curve[0], 1e6)
    trained = not ended.any() and curve[-window:].mean() < curve[0]
    return -v.sum() if trained else (1 / v).sum()


@given(losses, st.integers(1, 20))
def test_measure_is_the_papers_formula(curves, window):
    """The sums that are kept step by step are those of the whole curve."""
    curves[:, 0] = np.where(np.isfinite(curves[:, 0]), curves[:, 0], 1.0)
    window = min(window, curves.shape[1])
    settled = np.isfinite(curves).all(axis=1)
    means = curves[settled, -window:].mean(axis=1) / curves[settled, 0]
    assume(np.all(np.abs(means - 1) > 1e-9))
    expected = [measure_by_the_formula(curve, window) for curve in curves]
    np.testing.assert_allclose(judge_curves(curves, window).measure, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("tail", "outcome"),
    [
        (0.999, Outcome.TRAINABLE),
        (1.0, Outcome.UNTRAINABLE),
        (1e5, Outcome.UNTRAINABLE),
        (1.1e6, Outcome.DIVERGED),
        (np.inf, Outcome.DIVERGED),
        (np.nan, Outcome.DIVERGED),
    ],
)
def test_the_mean_of_the_last_losses_decides(tail, outcome):
    """Below the first loss, above 1e6 of it, or between; not a number is not trained."""
    curve = np.array([[1.0] * 10 + [tail] * 20])
    assert judge_curves(curve).outcome[0] == outcome


def test_one_step_that_is_not_finite_ends_a_run():
    """A run cannot come back: what follows is not looked at."""
    came_back = np.array([[1.0, 0.5, np.inf] + [0.1] * 40])
    judged = judge_curves(came_back)
    assert judged.outcome[0] == Outcome.DIVERGED
    assert judged.steps[0] == 2
    assert judged.final_loss[0] == judged.tail_loss[0] == np.inf
    assert judged.measure[0] == pytest.approx(1 + 2 + 41e-6)


def test_a_run_that_cannot_even_start_diverged():
    """Not finite at step 0: a label and a finite measure all the same."""
    judged = judge_curves(np.full((1, 30), np.nan))
    assert judged.outcome[0] == Outcome.DIVERGED
    assert np.isfinite(judged.measure[0])


@given(st.floats(1e-300, 1e300))
def test_a_loss_that_never_moves_did_not_train(loss):
    """Whatever its value: no rounding of the mean may push it below itself."""
    assert judge_curves(np.full((1, 40), loss)).outcome[0] == Outcome.UNTRAINABLE


def test_measure_says_how_fast():
    """Closer to zero: learned faster among the trained, blew up faster among the others."""
    t = np.arange(60)
    fast, slow, soon, late = judge_curves(np.stack([0.5**t, 0.99**t, 8.0**t, 1.05**t])).measure
    assert slow < fast < 0 < soon < late


def test_tally_says_which_runs_go_on():
    """A loop may stop as soon as no run is left."""
    tally = Tally(2, 30)
    assert tally.add(np.array([1.0, 1.0])).tolist() == [True, True]
    assert tally.add(np.array([0.5, np.nan])).tolist() == [True, False]
    assert tally.add(np.array([0.5, 0.5])).tolist() == [True, False]


def test_sides_of_the_boundaries_keep_the_mask():
    """Missing stays missing on both sides of both boundaries."""
    outcome = np.ma.masked_array(np.array([1, 2, 3, 1], np.uint8), [False, False, False, True])
    assert is_trainable(outcome).filled(False).tolist() == [True, False, False, False]
    assert is_stable(outcome).filled(False).tolist() == [True, True, False, False]
    assert is_trainable(outcome).mask.tolist() == outcome.mask.tolist()
