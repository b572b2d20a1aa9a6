"""The fine-tuning experiment: every setting does what it says, and a plane of runs from the command line."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from nanochat.checkpoint_manager import load_model
from terminal import fractal
from tuning import checkpoint

from fractal_core import (
    Axis,
    Outcome,
    Refused,
    Region,
    Store,
    Sweep,
    base,
    finetune,
    rehearsal,
    single,
)
from fractal_core.__main__ import execute
from fractal_core.engine import run_here
from fractal_core.experiments import open_run, preset, read_run
from fractal_core.finetune import FineTune
from fractal_core.stream import Stream
from fractal_core.tuner import Tuner

pytestmark = pytest.mark.usefixtures("storage")

CALM = np.array([[1e-3, 1e-3]])


@pytest.fixture(scope="module")
def model(tmp_path_factory, storage) -> str:
    return checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def quick(model) -> FineTune:
    return FineTune(model, num_steps=6, window=2, batch_size=4, sequence_length=128)


def test_rates_follow_one_another(quick):
    """A single learning rate sets all three; left out, each has its own."""
    settings = replace(quick, learning_rate=3e-4).settings(0)
    rates = (settings.matrix_lr, settings.embedding_lr, settings.unembedding_lr)
    assert rates == pytest.approx((3e-4, 3e-3, 6e-5))
    settings = replace(quick, matrix_lr=0.5).settings(0)
    assert (settings.matrix_lr, settings.unembedding_lr) == (0.5, 0.004)


def test_the_schedule_rises_and_falls_as_stated():
    """Linear over the warm-up, half a cosine after it, down to the share that is asked for."""
    plan = FineTune(warmup=0.2, final_lr_frac=0.1, init_lr_frac=0.5).multipliers(10)
    assert plan[:2] == (0.25, 0.5)
    cosine = [0.1 + 0.9 * (1 + np.cos(np.pi * k / 8)) / 2 for k in range(8)]
    assert plan[2:] == pytest.approx([0.5 * share for share in cosine])
    assert FineTune(warmup=0.06).multipliers(10)[:2] == (1.0, 1.0)
    assert set(FineTune(final_lr_frac=1.0).multipliers(30)) == {1.0}


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("unembedding,matrix", "matrix,unembedding"),
        ("trunk, lm_head", "matrix,unembedding"),
        ("blocks,wte", "matrix,embedding"),
        ("all", "matrix,embedding,unembedding"),
        ("none", ""),
    ],
)
def test_groups_have_aliases_and_one_order(text, groups):
    """However it is said, the recipe holds one form."""
    assert FineTune(trainable=text).trainable == groups
    with pytest.raises(Refused, match="did you mean head"):
        FineTune(trainable="heads")


def test_a_budget_of_tokens_becomes_steps(quick):
    """The fewest steps that see so many learned tokens, whatever the batch."""
    stream = Stream(quick.texts("train"), quick.sequence_length, 0)
    for batch_size, accumulation in ((4, 1), (3, 2)):
        asked = replace(quick, num_tokens=150, batch_size=batch_size, accumulation=accumulation)
        steps = asked.length(0)
        each = batch_size * accumulation
        assert stream.learned(0, steps * each).sum() >= 150
        assert stream.learned(0, (steps - 1) * each).sum() < 150
    assert replace(quick, num_tokens=10**5).length(0) > quick.texts("train").rows // 4


def test_short_runs_are_refused_or_noted(quick):
    """Below K + 1 losses there is nothing to judge by; below 2 K a sentence says so."""
    with pytest.raises(Refused, match="too few"):
        replace(quick, num_steps=20, window=20).review(CALM, 0)
    assert "more than half" in replace(quick, num_steps=39, window=20).review(CALM, 0)[0]
    assert replace(quick, num_steps=40, window=20).review(CALM, 0) == []
    moved = replace(quick, axes=("matrix_lr", "num_steps"), window=20, num_steps=100)
    with pytest.raises(Refused, match="too few"):
        moved.review(np.array([[1e-3, 100.0], [1e-3, 12.0]]), 0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learning_rate": 0.1}, "learning_rate would replace"),
        ({"matrix_lr": 0.1}, "do not set it as well"),
        ({"axes": ("num_steps", "seed"), "num_steps": 100, "num_tokens": 500}, "num_tokens would"),
    ],
)
def test_a_setting_that_would_not_be_used_is_refused(quick, changes, words):
    """Nothing that was asked for is passed over in silence."""
    with pytest.raises(Refused, match=words):
        replace(quick, **changes).review(CALM, 0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"axes": ("learning_rate", "matrix_lr")}, "both axes move matrix_lr"),
        ({"axes": ("num_steps", "num_tokens")}, "how long a run is"),
        ({"momentum": 1.5}, "momentum"),
        ({"threshold": 0.0}, "threshold"),
        ({"batch_size": 0}, "batch_size"),
        ({"matrix_lr": -1.0}, "matrix_lr"),
    ],
)
def test_settings_out_of_range_are_refused(changes, words):
    """Before anything is loaded."""
    with pytest.raises(Refused, match=words):
        FineTune(**changes)


def test_a_rate_that_overflows_diverges(quick):
    """That is a result: the run ends early, the curve is kept, the other point is none the worse."""
    outcomes = quick.run(np.array([[1e38, 1e-3], [1e-3, 1e-3]]), seed=0)
    assert outcomes.outcome[0] == Outcome.DIVERGED
    assert outcomes.outcome[1] != Outcome.DIVERGED
    assert outcomes.steps[0] < 6 == outcomes.steps[1]
    curve = outcomes.extras["curve"]
    assert curve.shape == (2, 6)
    assert np.isnan(curve[0, outcomes.steps[0] + 1 :]).all()
    assert curve[0, 0] == curve[1, 0] == np.float32(outcomes.first_loss[0])
    alone = quick.run(CALM, seed=0)
    assert alone.extras["curve"].tobytes() == curve[1:].tobytes()


def test_the_threshold_decides(quick):
    """The same curve trains or does not by the share of the first loss that is asked for."""
    curve = np.linspace(4.0, 3.0, 6, dtype=np.float32)
    judged = [replace(quick, threshold=t).judge(curve, 6, 1.0).outcome[0] for t in (1.0, 0.5)]
    assert judged == [Outcome.TRAINABLE, Outcome.UNTRAINABLE]


def test_axes_replace_settings(quick):
    """Whole numbers stay whole; `seed` is the order of the texts; runs of several lengths join."""
    plane = replace(quick, axes=("num_steps", "seed"))
    outcomes = plane.run(np.array([[4.0, 1.0], [6.0, 2.0]]), seed=0, record=[0, 3])
    assert outcomes.steps.tolist() == [4, 6]
    curve = outcomes.extras["curve"]
    assert np.isnan(curve[0, 4:]).all()
    assert np.isfinite(curve[1]).all()
    assert curve[0, 0] != curve[1, 0]
    np.testing.assert_array_equal(outcomes.extras["losses"], curve[:, [0, 3]].astype(float))
    with pytest.raises(Refused, match="steps 0 to 3"):
        plane.run(np.array([[4.0, 1.0]]), seed=0, record=[4])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_precision_trains(quick, dtype):
    """And each is a recipe of its own."""
    outcomes = replace(quick, dtype=dtype, num_steps=12).run(np.array([[0.02, 0.004]]), seed=0)
    assert outcomes.outcome[0] == Outcome.TRAINABLE


def test_the_recipe_knows_weights_data_and_versions(quick, tmp_path):
    """Other weights or other conversations are another contract."""
    contract = quick.contract(0)
    assert contract["torch"] == torch.__version__.partition("+")[0]
    other = replace(quick, checkpoint=checkpoint(tmp_path / "m", n_embd=32))
    lines = [json.dumps(talk) for talk in _talks(30)]
    (tmp_path / "talk.jsonl").write_text("\n".join(lines))
    told = replace(quick, data=str(tmp_path / "talk.jsonl"))
    assert other.contract(0)["weights_sha256"] != contract["weights_sha256"]
    assert told.contract(0)["data_sha256"] != contract["data_sha256"]


def _talks(count: int) -> list[list[dict[str, str]]]:
    return [
        [
            {"role": "user", "content": f"What is {n}?"},
            {"role": "assistant", "content": f"It is {n}."},
        ]
        for n in range(count)
    ]


def test_a_tokenizer_of_another_vocabulary_is_refused(tmp_path):
    """One sentence, before anything is trained."""
    folder = checkpoint(tmp_path / "m", vocab_size=500)
    with pytest.raises(Refused, match="the tokenizer has 400 tokens and the model 500"):
        FineTune(folder).contract(0)


def test_a_missing_base_model_is_named(monkeypatch, tmp_path):
    """The sentence names the command that makes it."""
    monkeypatch.setenv("FRACTAL_STORAGE", str(tmp_path))
    with pytest.raises(Refused, match="`fractal base`"):
        base.folder()


def test_presets_have_the_windows_of_the_study():
    """And no published picture to look at."""
    plane, budget = preset("matrix-unembedding"), preset("lr-tokens")
    region = plane.region(False, 8, 16)
    assert (region.x.low, region.x.high, region.y.high) == (1e-6, 3e-1, 1e-1)
    region = budget.region(False, 8, 16)
    assert (region.y.low, region.y.high, region.y.integer) == (5e3, 5e5, True)
    with pytest.raises(Refused, match="published"):
        plane.region(True, 8, 8)


def test_curves_are_compared_to_the_bit():
    """Where two part, how far at most, and that one which ends early differs there."""
    one = np.array([3.0, 2.0, 1.0], np.float32)
    assert rehearsal.compare([one, one.copy()]).first_difference is None
    other = one + np.array([0, 0.25, 0], np.float32)
    found = rehearsal.compare([one, other, one])
    assert (found.first_difference, found.largest_difference, found.distinct) == (1, 0.25, 2)
    assert rehearsal.compare([one, one[:2]]).first_difference == 2


def test_the_embedded_base_model_is_made_whole(monkeypatch, tmp_path):
    """A few steps of it: weights, tokenizer and shape lie where runs look for them."""
    monkeypatch.setenv("FRACTAL_STORAGE", str(tmp_path))
    small = base.Base(documents=60, vocab_size=300, sequence_length=64, batch_size=2, steps=2)
    folder, bits = base.make(small)
    assert folder == base.folder()
    assert 0 < bits < 10
    gpt, tokenizer, _ = load_model(str(folder), "cpu", phase="eval")
    assert gpt.config.vocab_size == tokenizer.get_vocab_size() == 300


SET = ("sequence_length=128", "batch_size=2", "window=2")


@pytest.fixture(scope="module")
def plane(model, tmp_path_factory) -> Path:
    """A 4 x 4 map that was made and trained from the command line."""
    folder = tmp_path_factory.mktemp("plane")
    made = fractal(
        *("new", "plane", "--preset", "matrix-unembedding", "--grid", "4", "4", "--steps", "6"),
        *("--x", "1e-4", "1e40", "--set", f"checkpoint={model}", *SET),
        cwd=folder,
    )
    assert made.returncode == 0, made.stderr
    trained = fractal("run", "plane", cwd=folder)
    assert trained.returncode == 0, trained.stderr
    return folder


def test_a_plane_of_runs_has_a_border(plane):
    """Every point is a unit; small rates train, huge ones do not; the curve lies with the outcome."""
    store = open_run(plane / "plane")
    image = store.image()
    assert len(store.units) == 16
    assert {Outcome.TRAINABLE, Outcome.DIVERGED} <= set(image.outcome.compressed().tolist())
    assert store.read(next(iter(store.units.values())))["curve"].shape == (1, 6)


def test_a_point_of_the_plane_has_the_bits_of_a_fresh_process(plane):
    """A worker that has trained others before it gives what a process gives that trains it alone."""
    store = open_run(plane / "plane")
    unit = list(store.units.values())[-1]
    alone = store.sweep.experiment.run(store.points(unit), seed=0)
    kept = store.read(unit)
    assert kept["curve"].tobytes() == alone.extras["curve"].tobytes()
    assert kept["measure"].tobytes() == alone.measure.tobytes()


def test_commands_work_on_a_plane(plane, monkeypatch):
    """status, show, export and dim need neither weights nor data; to train on needs both."""
    monkeypatch.setenv("FRACTAL_STORAGE", str(plane / "nothing here"))
    state = json.loads(fractal("status", "plane", "--json", cwd=plane).stdout)
    assert state["done"] == 16
    for arguments in (
        ("show", "plane", "--out", "map.png"),
        ("show", "plane", "--panels", "4", "--out", "four.png"),
        ("export", "plane", "points.csv"),
        ("dim", "plane", "--json"),
        ("verify", "plane"),
    ):
        answer = fractal(*arguments, cwd=plane)
        assert answer.returncode == 0, answer.stderr
    assert read_run(plane / "plane").sweep.id == open_run(plane / "plane").sweep.id


def test_an_exception_is_a_failure_and_no_outcome(quick, tmp_path, monkeypatch):
    """The machine broke, the run did not: its point stays missing, with the cause beside it."""
    axes = (Axis("matrix_lr", 1e-3, 1e-1, 2), Axis("unembedding_lr", 1e-3, 1e-1, 1))
    store = Store.create(tmp_path / "run", Sweep.over(quick, Region(*axes)))

    def breaks(*_):
        raise RuntimeError("a cable came loose")

    monkeypatch.setattr(Tuner, "train", breaks)
    with pytest.raises(RuntimeError, match="cable"):
        list(run_here(store))
    assert len(store.missing()) == 2
    assert "cable" in next(iter(store.failures().values()))["cause"]
    monkeypatch.undo()
    monkeypatch.setenv("FRACTAL_STORAGE", str(tmp_path))
    list(run_here(store))
    assert store.missing() == []
    assert store.image().outcome.count() == 2


def test_what_was_made_from_other_weights_is_not_gone_on_with(model, tmp_path):
    """A checkpoint that changed under a run folder is told in one sentence; nothing is trained."""
    gone = tmp_path / "gone"
    checkpoint(gone)
    experiment = FineTune(str(gone), num_steps=6, window=2, batch_size=2)
    axes = (Axis("matrix_lr", 1e-3, 1e-1, 2), Axis("unembedding_lr", 1e-3, 1e-1, 2))
    Store.create(tmp_path / "run", Sweep.over(experiment, Region(*axes)))
    (gone / "model_000000.pt").write_bytes(b"torn")
    answer = fractal("run", "run", cwd=tmp_path)
    assert answer.returncode == 2
    assert "weights_sha256 was" in answer.stderr
    assert len(read_run(tmp_path / "run").missing()) == 4


def test_a_single_run_is_watched_and_never_done_twice(model, tmp_path):
    """Curve, samples, result and checkpoint lie in the folder; the second time they are read."""
    ask = ("finetune", "one", "--set", f"checkpoint={model}", *SET, "num_steps=8")
    ask += ("--samples", "2", "--eval-every", "3", "--eval-batches", "1", "--json")
    answer = fractal(*ask, "--keep-weights", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    result = json.loads(answer.stdout)
    assert (result["steps"], result["planned"]) == (8, 8)
    folder = tmp_path / "one" / single.FOLDER
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(8))
    assert [row["step"] for row in rows if "val_loss" in row] == [2, 5]
    assert rows[-1]["tokens"] == result["tokens"]
    assert rows[0]["lr_unembedding"] == 0.004
    assert len(json.loads((folder / "samples.json").read_text())) == 2
    trained, _, meta = load_model(str(folder / "checkpoint"), "cpu", phase="eval")
    assert meta["trainable_ratio"] == result["ratio"]
    first, _, _ = load_model(model, "cpu", phase="eval")
    assert torch.equal(trained.wte.weight, first.wte.weight)
    assert not torch.equal(trained.lm_head.weight, first.lm_head.weight)
    curve = read_run(tmp_path / "one").read(next(iter(read_run(tmp_path / "one").units.values())))
    np.testing.assert_array_equal(curve["curve"][0], np.float32([row["loss"] for row in rows]))
    written = (folder / "metrics.jsonl").stat().st_mtime_ns
    again = fractal(*ask, "--keep-weights", cwd=tmp_path)
    assert json.loads(again.stdout) == result
    assert (folder / "metrics.jsonl").stat().st_mtime_ns == written


def test_a_run_that_does_not_fit_says_what_to_lower(model, tmp_path, monkeypatch, capsys):
    """One sentence, and the run folder waits for a smaller one."""

    def too_large(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(Tuner, "steps", too_large)
    ask = ["finetune", str(tmp_path / "one"), "--set", f"checkpoint={model}", *SET, "num_steps=4"]
    assert execute([*ask, "--samples", "0"]) == 2
    assert "out of memory at batch_size=2; lower it" in capsys.readouterr().err
    assert len(read_run(tmp_path / "one").missing()) == 1


def test_two_processes_repeat_the_bits(model, tmp_path):
    """`fractal repro` says so, and how many steps it compared."""
    ask = ("repro", "--workers", "2", "--set", f"checkpoint={model}", *SET, "num_steps=4", "--json")
    answer = fractal(*ask, cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["first_difference"] is None
    assert json.loads(answer.stdout)["steps"] == 4


def test_the_largest_batch_that_fits_is_found(monkeypatch):
    """Doubling, then halving the gap, whatever the limit is."""
    for limit in (1, 5, 8, 31, 32):
        tried = []

        class Pool:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                pass

            def submit(self, _trial, experiment, *_):
                tried.append(experiment.batch_size)  # noqa: B023 - the pool lives within the loop
                return self

            def result(self):
                return tried[-1] <= limit  # noqa: B023 - the pool lives within the loop

        monkeypatch.setattr(rehearsal, "_processes", lambda _: Pool())
        assert rehearsal.largest_batch(FineTune(), 32, 1, None, lambda *_: None) == limit
        assert len(tried) <= 11


def test_a_batch_that_does_not_fit_is_told_apart(model):
    """A trial of its own runs out of memory without harm to anyone."""
    experiment = FineTune(model, num_steps=1, window=1, batch_size=256, sequence_length=256)
    with rehearsal._processes(2) as pool:
        trials = [pool.submit(rehearsal._trial, experiment, gb, {}) for gb in (4.0, 0.02)]
        assert [trial.result() for trial in trials] == [True, False]


def test_torchrun_shares_the_batches_of_a_step(model, tmp_path):
    """Two processes make one run folder, with the curve of one process up to rounding."""
    options = ["--set", f"checkpoint={model}", *SET, "num_steps=4", "accumulation=2", "--samples=0"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    launch += ["-m", "fractal_core", "finetune"]
    answer = subprocess.run(
        [*launch, "two", *options], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    assert fractal("finetune", "one", *options, cwd=tmp_path).returncode == 0
    curves = []
    for name in ("one", "two"):
        store = read_run(tmp_path / name)
        curves.append(store.read(next(iter(store.units.values())))["curve"])
    np.testing.assert_allclose(*curves, rtol=1e-4)
    assert store.sweep.recipe["contract"]["arithmetic"] == finetune.ARITHMETIC
