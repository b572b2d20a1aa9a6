"""Films of runs: keyframes between two, and films that are made in the background."""

import os
import re

import pytest
import waiting
from small import QUICK, region, run

from fractal_core import Refused, films, recipe
from fractal_core.errands import Errand

NEAR = region().zoom((1.0, 10.0), (1.0, 10.0))


@pytest.fixture
def chain(tmp_path):
    """Two runs, one zoomed out of the other, the narrow one first."""
    return [run(tmp_path, "near", NEAR), run(tmp_path, "wide", region())]


def ended(stores) -> Errand:
    return waiting.ended(lambda: films.last(stores))


def test_a_film_is_made_by_a_process_of_its_own(chain, tmp_path):
    """It says how far it is, and at its end which file is there."""
    assert films.told(films.last(chain)) == ""
    out = tmp_path / "figures" / "zoom.gif"
    process = films.begin(chain, out, palette="paper", size=96)
    assert os.getsid(process) == process != os.getsid(0)
    over = ended(chain)
    assert films.told(over) == f"done: {out}"
    assert "frames" in over.log
    found = recipe.read(out)
    assert [shown.name for shown in found.runs] == ["wide", "near"]
    assert (found.drawn["palette"], found.drawn["size"]) == ("paper", 96)


def test_a_film_that_is_stopped_leaves_no_file(chain, tmp_path):
    """Begun twice it is one, and whoever looks later reads that it was stopped."""
    out = tmp_path / "zoom.gif"
    assert not films.stop(chain)
    first = films.begin(chain, out, palette="split", size=2000)
    assert films.begin(chain[:1], out, palette="split", size=96) == first
    assert films.last(chain).state == "running"
    assert films.stop(chain)
    assert films.told(ended(chain)).startswith("stopped: ")
    assert not list(tmp_path.glob("*.gif"))


def test_what_is_no_film_is_not_begun(chain, tmp_path):
    """Runs that were trained otherwise, another kind of file, or none at all."""
    other = run(tmp_path, "other", region(), type(QUICK)(samples=9, steps=60), whole=False)
    for stores, name, match in (
        ([chain[0], other], "a.gif", "not trained in the same way"),
        (chain, "a.avi", "choose .mp4 or .gif"),
        ([], "a.gif", "needs a run"),
    ):
        with pytest.raises(Refused, match=match):
            films.begin(stores, tmp_path / name, palette="split", size=96)
    assert films.last(chain) is None


def test_keyframes_become_run_folders_once(tmp_path):
    """Made with the outer run's recipe, found again the second time, and priced before."""
    wide = run(tmp_path, "wide", region())
    near = run(tmp_path, "near", region().zoom((1.0, 10.0), (1.0, 10.0)), whole=False)
    views = films.keyframes([near, wide])
    assert len(views) == 3
    price = films.price(views, [near, wide])
    assert re.match(
        r"3 keyframes, 1,152 runs to train, (about .* s|under 1 s) on this machine$", price
    )
    made = films.make(views)
    assert [store.path.name.rpartition("-")[0] for store in made] == [
        "near-key01",
        "near-key02",
        "near-key03",
    ]
    assert all(store.sweep.experiment == wide.sweep.experiment for store in made)
    again = films.keyframes([wide, near])
    assert [view.path for view in again] == [store.path for store in made]
    with pytest.raises(Refused, match="between two runs"):
        films.keyframes([wide])
