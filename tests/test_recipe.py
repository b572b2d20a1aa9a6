"""A figure tells what it shows, whatever its format, and leads back there."""

import json
import re

import numpy as np
import pytest
from PIL import Image as Picture
from small import QUICK, region, run

from fractal_core import (
    Axis,
    Grid,
    Refused,
    Region,
    Sweep,
    experiments,
    explore,
    figures,
    film,
    films,
    press,
    recipe,
)
from fractal_core.figures import FORMATS
from fractal_core.finetune import FineTune
from fractal_core.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return run(tmp_path_factory.mktemp("recipe") / "runs", "wide", region())


@pytest.mark.parametrize("suffix", [*FORMATS, ".gif", ".mp4"])
def test_every_format_gives_the_recipe_back(store, tmp_path, suffix):
    """Run, id, settings, axis ends and caption are read from the file as they were written."""
    path = tmp_path / f"figure{suffix}"
    if suffix in FORMATS:
        printed = press.draw("map", [store], title=r"(odd) \ title & <tag>")
        printed.save(path)
    else:
        path.write_bytes(films.roll([store], suffix, size=96))
    found = recipe.read(path)
    assert found.kind == ("map" if suffix in FORMATS else "film")
    assert [(shown.name, shown.id) for shown in found.runs] == [("wide", store.sweep.id)]
    assert found.runs[0].sweep == json.loads(json.dumps(store.sweep.recipe))
    assert found.caption.startswith("Each of 16 × 24 cells is one run of a tanh network")
    assert found.drawn["palette"] == "split"


@pytest.mark.parametrize("suffix", list(FORMATS))
def test_a_figure_names_no_folder_of_the_machine(store, tmp_path, suffix):
    """The bytes hold the name of the run, and neither its folder nor that of the figure."""
    path = tmp_path / f"figure{suffix}"
    press.draw("map", [store], captioned=True).save(path)
    data = path.read_bytes()
    assert b'"name":"wide"' in data.replace(b"&quot;", b'"')
    for folder in (store.path.parent.parent, tmp_path):
        assert str(folder).encode() not in data


def test_folders_in_settings_go_by_their_last_name():
    """A checkpoint and data that lie in a folder keep its name only; a name on a hub stays."""
    told = FineTune(checkpoint="/home/somebody/models/mine", data="hf:org/set@main")
    where = Region(Axis("matrix_lr", 1e-3, 1.0, 2), Axis("unembedding_lr", 1e-3, 1.0, 2))
    sweep = Sweep(told, Grid.over(where), recorded={"any": "contract"})
    settings = recipe._without_folders(sweep)["settings"]
    assert (settings["checkpoint"], settings["data"]) == ("mine", "hf:org/set@main")
    assert settings["dtype"] == "float32"
    assert sweep.recipe["settings"]["checkpoint"] == told.checkpoint


def test_a_figure_reopens_the_run_it_shows(store, tmp_path):
    """By its name, and under another name if the folder was renamed."""
    (shown,) = recipe.read(_drawn(store, tmp_path)).runs
    assert recipe.address(store.path.parent, shown) == {"run": "wide"}
    renamed = tmp_path / "runs"
    renamed.mkdir()
    (renamed / "other").symlink_to(store.path, target_is_directory=True)
    run(renamed, "wide", region(rows=8))  # of that name, and something else
    assert recipe.address(renamed, shown) == {"run": "other"}


def test_a_figure_of_a_preset_needs_no_run(tmp_path):
    """Where the run is not, the address says the settings, exact to the last digit."""
    preset = experiments.PRESETS["minibatch"]
    sweep = Sweep.over(preset.experiment, preset.region(True, 32, 32))
    store = Store.create(tmp_path / "elsewhere" / "deep", sweep)
    path, told = tmp_path / "figure.svg", recipe.text("map", [store], {}, "")
    figures.save(figures.map_figure(store.image()), path, told)
    (shown,) = recipe.read(path).runs
    found = recipe.address(tmp_path / "runs", shown)
    assert found["preset"] == "minibatch"
    assert explore.from_address(tmp_path / "runs", found).sweep.id == sweep.id


def test_settings_that_no_address_can_say_are_refused(store, tmp_path):
    """Nothing else is shown in their place; the sentence says what to do."""
    (shown,) = recipe.read(_drawn(store, tmp_path)).runs
    with pytest.raises(Refused, match=r"the run wide \(\w+\) is not in .* copy its folder there"):
        recipe.address(tmp_path / "runs", shown)
    wrong = recipe.Shown("../../etc", "0" * 16, {"experiment": "TinyNetworks"})
    with pytest.raises(Refused, match="copy its folder"):
        recipe.address(store.path.parent, wrong)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "carries no recipe"),
        (b"%PDF-1.4 nothing", "carries no recipe"),
        (b"\x89PNG\r\n\x1a\nhalf a file", "carries no recipe"),
        (b'{"fractal_figure":1,"kind":"map"', "cannot be read"),
        (b'{"fractal_figure":1,"kind":"map","runs":[]}', "cannot be read"),
        (b'{"fractal_figure":7,"kind":"map","runs":[{}]}', "cannot be read"),
        (b'{"fractal_figure":' + b"[" * 100_000, "cannot be read"),
    ],
)
def test_a_file_without_a_recipe_is_refused_in_one_sentence(tmp_path, data, match):
    """Whatever is in it."""
    path = tmp_path / "figure.pdf"
    path.write_bytes(data)
    with pytest.raises(Refused, match=match) as refusal:
        recipe.read(path)
    assert "\n" not in str(refusal.value)
    with pytest.raises(Refused, match="name a figure that is there"):
        recipe.read(tmp_path / "none.pdf")


def test_a_picture_of_somebody_else_is_refused(tmp_path):
    """A PNG with other comments is no figure of ours."""
    Picture.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "photo.png")
    with pytest.raises(Refused, match="carries no recipe"):
        recipe.read(tmp_path / "photo.png")


def test_the_caption_follows_from_the_recipe(store):
    """What was trained, where, how it was judged, and which run it is."""
    words = recipe.caption(store)
    assert "width 16 on 8 samples, 60 steps, float64, seed 0" in words
    assert "input layer learning rate 0.001 to 1000000 and" in words
    assert "mean of its last 20 losses is below its first loss" in words
    assert words.endswith(f"Run wide, id {store.sweep.id}.")
    assert "rank" in words
    assert "rank" not in recipe.caption(store, "outcome")
    assert recipe.condition(store) == "tanh, full batch"


def _drawn(store, folder):
    path = folder / "figure.svg"
    press.draw("map", [store]).save(path)
    return path


def test_the_same_figure_with_its_recipe_is_the_same_file(store):
    """No date and no chance in it."""
    for suffix in FORMATS:
        first, second = (press.draw("map", [store]).data(suffix) for _ in range(2))
        assert first == second


def test_a_film_carries_all_its_runs(tmp_path):
    """From the widest to the narrowest, whatever the order they were given in."""
    where = region()
    wide = run(tmp_path, "wide", where)
    near = run(tmp_path, "near", where.zoom((1e-1, 1e3), (1e-1, 1e3)))
    (tmp_path / "film.gif").write_bytes(films.roll([near, wide], ".gif", size=96, per_factor=2))
    found = recipe.read(tmp_path / "film.gif")
    assert [shown.name for shown in found.runs] == ["wide", "near"]
    assert found.drawn["rate"] == film.RATE
    assert re.search(r"Run near, id \w{16}\.", found.caption)
    other = run(tmp_path, "other", where, experiment=type(QUICK)(samples=9, steps=60), whole=False)
    with pytest.raises(Refused, match="not trained in the same way"):
        films.roll([wide, other], ".gif")
