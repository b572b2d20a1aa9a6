"""Single runs of a folder, without the page that shows them."""

import json
import math
import shlex
import shutil
from dataclasses import replace

import numpy as np
import pytest
from small import QUICK
from tuning import checkpoint

from fractal_core import (
    Axis,
    Refused,
    Region,
    Store,
    Sweep,
    control,
    experiments,
    network,
    singles,
)
from fractal_core.__main__ import execute
from fractal_core.experiments import open_run
from fractal_core.single import FOLDER, Watch


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def here(monkeypatch):
    """What would be a process of its own is done here."""
    asked = []

    def at_once(path, options, command):
        asked.append([command, *options])
        assert execute([command, str(path), *options]) == 0

    monkeypatch.setattr(control, "start_detached", at_once)
    return asked


def trained(root, name, experiment=QUICK, point=(0.5, 2.0)):
    store = Store.create(root / name, network.sweep_of(experiment, point, 0))
    network.train(store, lambda row: None)
    return singles.open_single(root, name)


def test_a_preset_offers_a_point():
    """Its own values where it has them, whole numbers where they must be."""
    assert singles.from_preset("tanh").point == (1.0, 1.0)
    assert singles.from_preset("matrix-unembedding").point == (0.02, 0.004)
    rate, tokens = singles.from_preset("lr-tokens").point
    assert rate == pytest.approx(math.sqrt(1e-6 * 3e-1))
    assert tokens == round(math.sqrt(5e3 * 5e5))


def test_a_point_of_a_map_keeps_its_values(tmp_path):
    """The cell's own, with the settings and the seed of the map."""
    region = Region(*(Axis(name, 1e-3, 1e6, 16) for name in QUICK.axes))
    store = Store.create(tmp_path / "plane", Sweep.over(QUICK, region, 3))
    start = singles.from_address(tmp_path, {"run": "plane", "x": "2.5", "y": "9e5"})
    grid = store.sweep.grid
    assert start.point == (grid.x[grid.cell(2.5, 1.0)[1]], grid.y[-1])
    assert (start.experiment, start.seed, start.label) == (QUICK, 3, "plane")
    sweep = singles.planned(start, *map(repr, start.point), 3, {"steps": "90"})
    assert sweep.grid.points(np.array([0]), np.array([0]))[0].tolist() == list(start.point)
    assert sweep.experiment == replace(QUICK, steps=90)
    assert singles.from_address(tmp_path, {"run": "plane"}) is None
    for run, x in (("nowhere", "1"), ("plane", "a"), ("plane", "nan"), ("plane", "1e9")):
        with pytest.raises(Refused):
            singles.from_address(tmp_path, {"run": run, "x": x, "y": "1"})


@pytest.mark.parametrize(
    ("experiment", "point"),
    [
        (QUICK, (1 / 3, -2e-17)),
        (experiments.preset("init").experiment, (0.1, 30.0)),
        (replace(experiments.preset("minibatch").experiment, axes=("offset", "lr")), (-0.5, 1.0)),
    ],
)
def test_the_command_line_repeats_a_tiny_network(experiment, point, tmp_path, monkeypatch):
    """It leads to the same recipe, to the bit."""
    monkeypatch.chdir(tmp_path)
    sweep = network.sweep_of(replace(experiment, steps=50), point, 5)
    words = shlex.split(singles.line(tmp_path / "again", sweep))
    assert words[0] == "fractal"
    assert execute(words[1:]) == 0
    assert open_run(tmp_path / "again").sweep.id == sweep.id


def test_a_language_model_is_begun_kept_and_repeated(model, tmp_path, here, capsys):
    """Its recipe, its curve with learning rates, answers before and after, and its command."""
    start = singles.from_preset("matrix-unembedding")
    start = replace(start, experiment=replace(start.experiment, axes=("matrix_lr", "num_steps")))
    settings = {"window": "2", "batch_size": "2", "sequence_length": "128", "checkpoint": model}
    sweep = singles.planned(start, "0.01", "6", 1, settings)
    name = singles.begin(tmp_path, "talk", "lm", sweep, Watch(samples=1))
    run = singles.open_single(tmp_path, name)
    assert run.phase == "complete"
    assert here[0][0] == "finetune"
    assert {"matrix_lr=0.01", "--seed", "1", "--samples"} <= set(here[0])
    assert (run.settings["matrix_lr"], run.settings["num_steps"]) == (0.01, 6)
    assert (run.settings["seed"], run.settings["batch_size"]) == (1, 2)
    assert run.kind == "language model"
    assert "mean of the last 2 losses" in singles.reason(run)
    rates = singles.rates(run)
    assert set(rates["group"]) == {"matrix", "embedding", "unembedding"}
    assert len(rates) == 3 * 6
    shown = singles.sample_table(run)
    assert list(shown.columns) == ["question", "expected", "before", "after"]
    assert len(shown) == 1
    mark, end = shown["question"][0].split(" ", 1)
    whole = " ".join(run.samples[0]["question"].split())
    assert (mark, whole.endswith(f" {end}"), len(end) <= 200) == ("…", True, True)
    assert singles.begin(tmp_path, "talk", "lm", sweep, Watch()) == "talk"
    assert len(here) == 1
    again = singles.words(sweep)
    assert execute([again[0], str(tmp_path / "again"), *again[1:], "--samples", "0"]) == 0
    assert open_run(tmp_path / "again").sweep.id == sweep.id


def test_a_run_gets_a_folder_by_its_recipe_or_its_name(tmp_path, here):
    """The same recipe is found again; no name leads out of the folder."""
    start = replace(singles.from_preset("tanh"), experiment=QUICK)
    sweep = singles.planned(start, "0.5", "2", 0, {})
    name = singles.begin(tmp_path, "", "tanh", sweep, Watch())
    assert name == f"tanh-{sweep.id[:8]}"
    assert singles.begin(tmp_path, "", "tanh", sweep, Watch()) == name
    assert len(here) == 1
    for wrong in ("../out", ".hidden", "-rf", "a/b", "  "):
        with pytest.raises(Refused, match="not the name of a run"):
            singles.begin(tmp_path, wrong, "tanh", sweep, Watch())
    other = singles.planned(start, "0.6", "2", 0, {})
    with pytest.raises(Refused, match="holds another recipe"):
        singles.begin(tmp_path, name, "tanh", other, Watch())


def test_outcomes_have_their_reasons(tmp_path):
    """In numbers that can be checked by hand."""
    good = trained(tmp_path, "good")
    words = singles.reason(good)
    assert words.startswith("TRAINABLE: the mean of the last 20 losses, ")
    assert f"{good.result['ratio']:.4g} times the first loss" in words
    assert words.endswith("and so below it.")
    gone = trained(tmp_path, "gone", point=(1e5, 1e5))
    assert singles.reason(gone) == (
        f"DIVERGED: the loss was not finite at step {gone.result['steps']} of 60."
    )
    idle = trained(tmp_path, "idle", point=(0.0, 0.0))
    assert singles.reason(idle).endswith("is 1 times the first loss, "
        f"{idle.result['first_loss']:.4g}, and so not below it.")  # fmt: skip
    file = gone.store.path / FOLDER / "result.json"
    large = gone.result | {"steps": 60, "ratio": 1e9, "tail_loss": 1e9, "first_loss": 1.0}
    file.write_text(json.dumps(large))
    assert "above 1e+06 times that" in singles.reason(gone)


def test_a_run_that_broke_off_says_so_and_goes_on(tmp_path, here):
    """Its curve so far is there, a torn line left out; it can be trained anew."""
    run = trained(tmp_path, "one")
    (run.store.path / FOLDER / "result.json").unlink()
    next(iter((run.store.path / "units").iterdir())).unlink()
    with (run.store.path / FOLDER / "metrics.jsonl").open("a") as file:
        file.write('{"step": 60, "lo')
        file.write('st": 1\n{"step": 60, "loss": 1.0}\n{"step": 61')
    assert run.phase == "broken off"
    assert len(run.rows()) == 61  # what was torn by a crash, and what is being written, is left out
    assert "without an outcome" in singles.reason(run)
    assert run.last_words == ""
    (run.store.path / "state").mkdir(exist_ok=True)
    (run.store.path / "state" / "log.txt").write_text("HF_TOKEN=swordfish9\n")
    assert run.last_words == "HF_TOKEN=[redacted]\n"
    singles.resume(run)
    assert run.phase == "complete"
    shutil.rmtree(run.store.path)
    assert run.phase == "gone"
    assert "The folder of the run is gone" in singles.reason(run)


def test_runs_are_compared_by_what_differs(tmp_path):
    """Only settings that differ among runs of a kind; maps and damaged folders are left out."""
    one = trained(tmp_path, "one")
    two = trained(tmp_path, "two", replace(QUICK, steps=80), (0.5, 3.0))
    region = Region(*(Axis(name, 1e-3, 1e6, 4) for name in QUICK.axes))
    Store.create(tmp_path / "plane", Sweep.over(QUICK, region))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "sweep.json").write_text("{")
    assert sorted(singles.names(tmp_path)) == ["one", "two"]
    runs = singles.opened(tmp_path, ["one", "two", "plane", "damaged"])
    table = singles.table(runs).set_index("run")
    assert table.loc["one", "settings that differ"] == "steps=60, lr_output=2"
    assert table.loc["two", "settings that differ"] == "steps=80, lr_output=3"
    assert table.loc["two", "ratio"] == two.result["ratio"]
    curves = singles.curves(runs)
    assert curves.groupby("run", sort=False)["step"].count().to_dict() == {"one": 60, "two": 80}
    assert curves["ratio"].iloc[0] == 1.0
    with pytest.raises(Refused, match="is a map"):
        singles.open_single(tmp_path, "plane")
    assert one.settings["lr_input"] == 0.5
    assert len(singles.curves([])) == 0


def test_curves_are_thinned_for_the_eye(tmp_path):
    """Long ones keep both ends."""
    run = trained(tmp_path, "one")
    rows = [json.dumps({"step": n, "loss": 1.0 + n, "lr_input": 1.0}) for n in range(5000)]
    (run.store.path / FOLDER / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    curve = singles.curves([run])
    assert len(curve) == singles.MOST_POINTS
    assert curve["step"].iloc[[0, -1]].tolist() == [0, 4999]


def test_what_the_point_would_replace_cannot_be_set():
    """A learning rate for all groups leaves none to be chosen for one of them."""
    start = singles.from_preset("lr-tokens")
    tokens = {"num_tokens": "none", "num_steps": "50"}
    alike = replace(start, experiment=replace(start.experiment, axes=("learning_rate", "momentum")))
    sweep = singles.planned(alike, "0.01", "0.9", 0, tokens)
    assert sweep.experiment.learning_rate == 0.01
    with pytest.raises(Refused, match="matrix_lr is moved by an axis"):
        singles.planned(alike, "0.01", "0.9", 0, {"matrix_lr": "0.5"})
