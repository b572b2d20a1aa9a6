"""A dimension beside its nulls: the verdict on sets that are known, and on the published map."""

import json
from pathlib import Path

import numpy as np
import pytest
from terminal import fractal

from fractal_core import Axis, Grid, Refused, Region, figures, plots
from fractal_core.boundary import boundary_cells
from fractal_core.dimension import fractal_llm_dimension
from fractal_core.roughness import QUADRATIC, SMOOTHED, pitch_of, roughness
from tests import sets

GOLDEN = Path(__file__).parent / "data" / "fractal_llm_64x64_trainable.npz"


def grid(labels: np.ndarray) -> Grid:
    rows, cols = labels.shape
    return Grid.over(Region(Axis("x", 1e-3, 1e6, cols), Axis("y", 1e-3, 1e6, rows)))


def measured(labels: np.ndarray, **options):
    return roughness(labels, grid(labels), steps=500, draws=4, **options)


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (sets.LINE.placed(256, 3), "smooth"),
        (sets.CIRCLE.placed(256, 3), "smooth"),
        (sets.KOCH.placed(512, 3), "fractal"),
        (sets.DOUADY_RABBIT.placed(512, 3), "fractal"),
        (sets.blurred_line(512, 0.02, 3), "noise"),
        (np.random.default_rng(3).random((128, 128)) < 0.5, "noise"),
        (np.random.default_rng(3).random((128, 128)) < 0.02, "unresolved"),
        (sets.KOCH.placed(128, 3), "unresolved"),
        (np.ones((128, 128), bool), "unresolved"),
    ],
    ids=["line", "circle", "Koch", "rabbit", "blurred", "noise", "specks", "coarse", "none"],
)
def test_the_verdict_on_known_sets(labels, kind):
    """Curves are smooth, fractals fractal, noise is noise, and what is too coarse says so."""
    found = measured(labels)
    assert found.verdict.kind == kind, found.verdict.evidence


def test_nulls_are_measured_as_the_map_is():
    """The quadratic border is a curve, smoothing wipes out roughness, coins keep local rates."""
    labels = sets.KOCH.placed(512, 1)
    found = measured(labels)
    (quadratic,) = found.curves[QUADRATIC]
    assert quadratic.value == pytest.approx(1.0, abs=0.03)
    assert all(null.value < found.box.low for null in found.curves[SMOOTHED])
    assert all(coin.read[0] > found.box.high for coin in found.coins)
    assert found.minkowski == pytest.approx(found.box.value, abs=0.1)
    assert len({coin.read for coin in found.coins}) == 4


def test_missing_points_are_an_error_unless_the_measured_part_is_asked_for():
    """How many and where; then the nulls miss the same points, and what needs all is left out."""
    labels = np.ma.masked_array(sets.KOCH.placed(256, 1), False)
    labels[100:130, 100:130] = np.ma.masked
    with pytest.raises(Refused, match=r"900 of 65536 points are missing, in rows 100 to 129"):
        measured(labels)
    found = measured(labels, measured_only=True)
    whole = measured(labels.data)
    assert found.box.low < whole.box.value < found.box.high
    assert np.all(found.coins[0].counts.boxes == found.box.counts.boxes)
    assert np.all(found.box.counts.boxes < whole.box.counts.boxes)
    assert found.paper is None
    assert found.entropy is None
    labels[:] = np.ma.masked
    with pytest.raises(Refused, match="no point of the map is measured"):
        measured(labels, measured_only=True)


def test_scales_have_a_unit():
    """Decades where both axes have them, else parts of the map."""
    decades = Grid.over(Region(Axis("x", 1e-2, 1e2, 40), Axis("y", 1.0, 10.0, 20)))
    assert pitch_of(decades) == ((pytest.approx(0.1), pytest.approx(0.05)), "decades")
    mixed = Grid.over(Region(Axis("x", -1.0, 3.0, 40, "linear"), Axis("y", 1.0, 10.0, 20)))
    assert pitch_of(mixed) == ((1 / 40, 1 / 20), "sides of the map")
    found = roughness(np.eye(20, 40, dtype=bool), mixed, steps=50, draws=2)
    assert "logarithmic" in found.no_margin


def test_a_safety_margin_wider_than_the_map_is_none():
    """Nobody knows what lies outside, so nothing inside is safe."""
    labels = sets.LINE.placed(128, 1)
    near = Grid.over(Region(Axis("x", 1.0, 1.001, 128), Axis("y", 1.0, 1.001, 128)))
    found = roughness(labels, near, steps=50, draws=2)
    assert found.margin is None
    assert "zoom out" in found.no_margin


def test_what_can_be_said_of_the_published_language_model_map():
    """Its own recipe gives back 1.21, and nearly that for smooth borders; ours settles nothing."""
    labels = np.load(GOLDEN)["trainable"]
    region = Region(Axis("unembedding", 1e-6, 1e-1, 64), Axis("matrix", 1e-6, 3e-1, 64))
    found = roughness(labels, Grid.over(region), steps=1000)
    assert round(found.fractal_llm, 2) == 1.21
    straight = [fractal_llm_dimension(sets.LINE.placed(64, seed)) for seed in range(30)]
    assert 1.1 < np.mean(straight) < 1.2
    assert found.box.low < 1.03
    assert found.box.high > 1.35
    assert found.box.decades[1] / found.box.decades[0] == pytest.approx(4)
    assert str(found.verdict) == "unresolved at this resolution"


def test_the_figure_shows_boundary_profile_and_nulls(tmp_path):
    """Every box size of the map and of each null is drawn, on axes with words, and it is written."""
    labels = sets.KOCH.placed(128, 1)
    found = measured(labels)
    figure = plots.dimension_figure(labels, found, names=("a", "b"), spans=(9.0, 9.0))
    chart = figure.axes[1]
    *drawn, fit, level = [np.asarray(line.get_ydata()).tolist() for line in chart.lines]
    measured_too = [*found.coins, *found.curves[SMOOTHED], *found.curves[QUADRATIC], found.box]
    assert drawn == [each.profile.dimension.tolist() for each in measured_too]
    assert fit == found.box.fitted.tolist()
    assert level == [found.box.value] * 2
    shown = figure.axes[0].images[1].get_array()
    assert np.array_equal(~np.ma.getmaskarray(shown), boundary_cells(labels))
    assert "decades" in chart.get_xlabel()
    for suffix in (".png", ".pdf"):
        figures.save(figure, tmp_path / f"chart{suffix}")
        assert (tmp_path / f"chart{suffix}").stat().st_size > 1000


def test_the_figure_says_why_there_is_no_dimension():
    """In place of an empty chart."""
    labels = sets.KOCH.placed(8, 1)
    found = measured(labels)
    assert found.box.value is None
    figure = plots.dimension_figure(labels, found, names=("a", "b"), spans=(9.0, 9.0))
    chart = figure.axes[1]
    assert not chart.lines
    assert not chart.get_yticks().size
    (words,) = (text.get_text() for text in chart.texts)
    assert words.replace("\n", " ") == f"no D: {found.box.reason}"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A small finished run."""
    folder = tmp_path_factory.mktemp("runs")
    settings = "--steps 30 --set samples=8 arrays=seeded --grid 64 72"
    for command in (f"new done {settings}", "run done"):
        answer = fractal(*command.split(), cwd=folder)
        assert answer.returncode == 0, answer.stderr
    return folder


def test_the_command_says_all_of_it(run):
    """In words, and as one JSON object with numbers or null; the figure is written."""
    answer = fractal("dim", "done", "--out", "chart.png", "--which", "stable", cwd=run)
    assert answer.returncode == 0, answer.stderr
    for words in ("dimension", "verdict", "coin flips", "basin entropy", "safety margin"):
        assert words in answer.stdout
    assert (run / "chart.png").exists()
    answer = fractal("dim", "done", "--jitter", "60", "--json", cwd=run)
    report = json.loads(answer.stdout, parse_constant=pytest.fail)
    assert report["grid"] == [64, 72]
    assert report["steps"] == 30
    assert len(report["nulls"]["coin flips"]) > 1
    assert report["verdict"]["evidence"]
    assert len(report["safety_margin"]["largest_x_by_row"]) == 64


def test_a_run_with_missing_points_is_refused(run):
    """With what is missing, and exit code 2; the measured part can be had."""
    assert fractal("zoom", "done", "part", "--x", "1e-2", "1", "--y", "1", "10", cwd=run).stdout
    answer = fractal("dim", "part", cwd=run)
    assert answer.returncode == 2
    assert "4608 of 4608 points are missing" in answer.stderr
    assert fractal("dim", "part", "--measured-only", cwd=run).returncode == 2
