"""`fractal pairs` and `fractal seeing`: what they print, draw, and refuse."""

import json
from pathlib import Path

import pytest
from terminal import fractal

TINY = ("--grid", "32", "32", "--steps", "30", "--set", "samples=4", "arrays=seeded")
PAIRS = ("pairs", "run", "--runs", "2200", "--low", "1e-4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Holds a run that nobody has begun, and what `pairs` said of it."""
    folder = tmp_path_factory.mktemp("runs")
    assert fractal("new", "run", *TINY, cwd=folder).returncode == 0
    answer = fractal(*PAIRS, "--out", "first.svg", cwd=folder)
    assert answer.returncode == 0, answer.stderr
    (folder / "said.txt").write_text(answer.stdout)
    (folder / "cost.txt").write_text(answer.stderr)
    return folder


def test_pairs_says_its_cost_first_and_then_what_it_found(folder):
    """The cost on the error stream; dimension, floors, nulls and verdict on the other."""
    cost = (folder / "cost.txt").read_text().splitlines()[0]
    assert cost.startswith("at most 3,224 runs (1,024 of the map, 2,200 beside it), an unknown")
    said = (folder / "said.txt").read_text()
    for words in ("a rerun flips 0 of 200", "one unit in the last place", "coin flips", "a quad"):
        assert words in said
    assert (folder / "first.svg").read_text().startswith("<?xml")


def test_pairs_again_trains_nothing_and_says_the_same(folder):
    """One JSON object and nothing else on the standard output."""
    files = sorted((folder / "run").rglob("*.npz"))
    answer = fractal(*PAIRS, "--json", cwd=folder)
    found = json.loads(answer.stdout)
    assert found["trained"] == 0
    assert sorted((folder / "run").rglob("*.npz")) == files
    low, high = found["interval"]
    assert low <= found["dimension"] <= high
    assert str(found["verdict"]) in (folder / "said.txt").read_text()
    assert len(found["eps"]) == len(found["flips"]) == len(found["fit"]) == len(found["used"])
    assert found["rerun"]["flips"] == 0
    assert found["ulp"]["pairs"] == 200
    assert found["nulls"].keys() == {"the smoothed map", "a quadratic loss", "coin flips"}
    assert found["profile"].keys() == {"eps", "dimension", "low", "high"}
    assert found["request"]["low"] == 1e-4
    assert found["unit"] == "decades"
    assert "s if they take as long" in answer.stderr


def test_seeing_is_said_and_kept(folder):
    """In sentences, and as JSON of the same numbers the second time, without training."""
    answer = fractal("seeing", "run", "--runs", "300", cwd=folder)
    assert answer.returncode == 0, answer.stderr
    assert "a rerun flips 0 of" in answer.stdout
    found = json.loads(fractal("seeing", "run", "--runs", "300", "--json", cwd=folder).stdout)
    assert found["trained"] == 0
    assert found["rerun"]["flips"] == 0
    assert found["values"] == found["cells"] == [32, 32]
    assert all(sentence in answer.stdout for sentence in found["sentences"])


def test_a_zoom_past_what_was_seen_is_refused_unless_forced(folder):
    """One sentence, exit code 2, and no folder; with `--force` there is one."""
    kept = folder / "run" / "seeing.json"
    if not kept.exists():
        assert fractal("seeing", "run", "--runs", "300", cwd=folder).returncode == 0
    found = json.loads(kept.read_text())
    found["ulp"]["flips"] = found["neighbours"]["flips"] = found["neighbours"]["pairs"] = 40
    kept.write_text(json.dumps(found))
    zoom = ("zoom", "run", "closer", "--cells", "8:16", "8:16")
    refused = fractal(*zoom, cwd=folder)
    assert refused.returncode == 2
    assert "one unit in the last place flips 40 of" in refused.stderr
    assert not (folder / "closer").exists()
    assert fractal(*zoom, "--force", cwd=folder).returncode == 0
    kept.unlink()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("pairs", "run", "--runs", "7"), "too few"),
        (("pairs", "run", "--high", "3"), "choose at most"),
        (("pairs", "nowhere"), "not a run folder"),
        (("seeing", "run", "--runs", "7"), "too few"),
    ],
)
def test_what_is_refused(folder, arguments, says):
    """One sentence on the error stream, nothing on the other, exit code 2."""
    answer = fractal(*arguments, cwd=folder)
    assert answer.returncode == 2
    assert says in answer.stderr
    assert answer.stdout == ""
