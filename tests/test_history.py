"""Labels after many training lengths, from one run per point."""

from dataclasses import replace

import numpy as np
import pytest

from fractal_core import Axis, Refused, Region, Store, Sweep, TinyNetworks, history, machine, plots
from fractal_core.dimension import dimension_in_time
from fractal_core.local import LocalCrew

EXPERIMENT = TinyNetworks(samples=4, steps=120, window=5)
REGION = Region(Axis("lr_input", 1.0, 1e4, 24), Axis("lr_output", 1.0, 1e4, 16))


def test_lengths_go_up_to_all_steps():
    """Evenly in their logarithm, each with room for its window, and refused where there is none."""
    assert history.lengths(1000, 20, 5) == (40, 89, 200, 447, 1000)
    for steps, count in ((1000, 1), (40, 3)):
        with pytest.raises(Refused, match="training lengths"):
            history.lengths(steps, 20, count)


@pytest.mark.parametrize("exit", ["nonfinite", "1e12"])
def test_a_long_run_knows_the_labels_of_shorter_ones(tmp_path, exit):
    """They are those of runs that were trained no longer, to the last point."""
    sweep = Sweep.over(replace(EXPERIMENT, exit=exit), REGION)
    store = Store.create(tmp_path / "run", sweep)

    def hire(store: Store) -> LocalCrew:
        return LocalCrew(store.path, machine.slots(("cpu",)))

    lengths, found = history.outcomes_in_time(store, 4, hire, lambda *_: None)
    assert lengths == (10, 23, 52, 120)
    rows, cols = np.divmod(np.arange(16 * 24), 24)
    points = sweep.grid.points(rows, cols)
    for length, labels in zip(lengths, found, strict=True):
        direct = replace(sweep.experiment, steps=length).run(points, seed=0).outcome
        np.testing.assert_array_equal(labels.ravel(), direct)
    assert len(np.unique(found)) == 3
    assert np.any(found[0] != found[-1])


def test_the_chart_shows_every_length():
    """D where there is one, and how many labels changed."""
    labels = np.stack([np.add.outer(np.arange(128), np.arange(128)) > n for n in (120, 127, 150)])
    found = dimension_in_time(labels, (0.1, 0.1))
    figure = plots.time_figure((40, 200, 1000), found, (np.nan, 0.1, 0.2))
    above, below = figure.axes
    assert above.lines[0].get_ydata().tolist() == [each.value for each in found]
    assert below.lines[0].get_xdata().tolist() == [40, 200, 1000]
