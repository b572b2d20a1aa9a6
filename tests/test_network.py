"""One tiny network, watched."""

import json
from dataclasses import replace

import numpy as np
import pytest
from terminal import fractal

from fractal_core import Axis, Outcome, Refused, Region, Store, Sweep, TinyNetworks, network
from fractal_core.engine import run_here
from fractal_core.experiments import open_run
from fractal_core.single import FOLDER

QUICK = TinyNetworks(samples=8, steps=60)


def watched(path, experiment=QUICK, point=(0.5, 2.0), seed=0):
    store = Store.create(path, network.sweep_of(experiment, point, seed))
    heard = []
    return store, network.train(store, heard.append), heard


@pytest.mark.parametrize("value", [0.1, 1.0, 1 / 3, np.nextafter(2.0, 0.0), -7e5, 0.0, 5e-324])
def test_a_point_is_the_very_value_that_was_asked_for(value):
    """Every digit of it, also beside a power of two, at zero and below."""
    experiment = replace(QUICK, axes=("lr_input", "offset"))
    grid = network.sweep_of(experiment, (0.1, float(value)), 0).grid
    assert (grid.x[0], grid.y[0]) == (0.1, value)
    with pytest.raises(Refused, match="finite"):
        network.sweep_of(QUICK, (1.0, float("nan")), 0)


def test_a_watched_run_has_the_bits_of_a_map(tmp_path):
    """The same point, alone and among others: same outcome, and the losses that the map records."""
    region = Region(*(Axis(name, 1e-2, 1e5, 12) for name in QUICK.axes))
    plane = Store.create(tmp_path / "plane", Sweep.over(QUICK, region))
    for _ in run_here(plane):
        pass
    image = plane.image()
    for row, col in ((2, 3), (11, 11), (6, 5)):
        point = (float(image.grid.x[col]), float(image.grid.y[row]))
        store, result, heard = watched(tmp_path / f"{row}-{col}", point=point)
        alone = store.image()
        for name in ("outcome", "measure", "first_loss", "tail_loss", "final_loss", "steps"):
            assert getattr(alone, name)[0, 0] == getattr(image, name)[row, col]
        record = range(60)
        losses = QUICK.run(np.array([point]), seed=0, record=record).extras["losses"][0]
        assert [row["loss"] for row in heard] == losses[np.isfinite(losses)].tolist()
        assert result["outcome"] == Outcome(int(image.outcome[row, col])).name


def test_what_it_leaves_behind(tmp_path):
    """A line per recorded step, with the rates that were used, and the outcome in words."""
    store, result, heard = watched(
        tmp_path / "one", replace(QUICK, axes=("drift", "lr")), (0.0, 2.0)
    )
    lines = (store.path / FOLDER / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == heard
    assert {(row["lr_input"], row["lr_output"]) for row in heard} == {(2.0, 2.0)}
    assert [row["step"] for row in heard] == list(range(60))
    assert json.loads((store.path / FOLDER / "result.json").read_text()) == result
    assert (result["steps"], result["planned"]) == (60, 60)
    assert open_run(store.path).missing() == []


def test_a_long_run_is_written_in_a_thousand_lines():
    """Evenly spaced, from the first loss to the last."""
    steps = network.recorded(123_456)
    assert len(steps) == 1000
    assert (steps[0], steps[-1]) == (0, 123_455)
    assert np.ptp(np.diff(steps)) <= 1


def test_losses_are_seen_while_the_kernel_works(tmp_path):
    """They come in several portions, not all at the end."""
    long = replace(QUICK, samples=272, steps=60_000)
    _, _, heard = watched(tmp_path / "long", long)
    assert len({row["seconds"] for row in heard}) > 1


def test_a_map_is_no_single_run(tmp_path):
    """Nor is it touched."""
    region = Region(*(Axis(name, 1e-2, 1e5, 4) for name in QUICK.axes))
    store = Store.create(tmp_path / "plane", Sweep.over(QUICK, region))
    with pytest.raises(Refused, match="no single tiny network"):
        network.train(store, lambda row: None)


def test_the_command_trains_once_and_reads_ever_after(tmp_path):
    """`fractal point`: outcome in words or JSON; a language model is sent to its own command."""
    ask = ("point", "one", "--at", "-0.5", "2e5", "--set", "steps=60", "samples=8", "arrays=seeded")
    first = fractal(*ask, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines()[0].startswith("DIVERGED after ")
    assert first.stdout.splitlines()[-1] == "one: complete"
    metrics = tmp_path / "one" / FOLDER / "metrics.jsonl"
    written = metrics.stat().st_mtime_ns
    again = fractal(*ask, "--json", cwd=tmp_path)
    assert json.loads(again.stdout)["outcome"] == "DIVERGED"
    assert metrics.stat().st_mtime_ns == written
    assert {json.loads(line)["lr_input"] for line in metrics.read_text().splitlines()} == {-0.5}
    wrong = fractal("point", "two", "--at", "1", "1", "--preset", "lr-tokens", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "fractal finetune two" in wrong.stderr
