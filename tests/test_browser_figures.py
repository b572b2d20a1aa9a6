"""The figures notebook in a real browser: a figure becomes a file, and the file reopens its view."""

import re

import pytest
from serving import NOTEBOOKS, at_once, disabled, fractal_open, opened, press, says, served
from small import region, run
from waiting import until

from fractal_core import recipe
from fractal_core.bench import zoom

NOTEBOOK = NOTEBOOKS / "figures.py"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run, and one zoomed out of it."""
    root = tmp_path_factory.mktemp("prepared") / "runs"
    root.mkdir()
    where = region(rows=48, cols=48)
    near = where.zoom((1e-1, 1e3), (1e-1, 1e3))
    for name, place in (("near", near), ("wide", where)):
        run(root, name, place)
    return root


def choose(page, kind: str) -> None:
    page.locator("select", has_text="4 panels").select_option(label=kind)


def test_a_figure_becomes_a_file_and_reopens_its_view(browser, runs, tmp_path):
    """Written from the page, read by `fractal open`, and the zoom notebook shows that run."""
    with served(NOTEBOOK, runs) as server:
        with opened(browser, tmp_path, server, "?run=near") as page:
            choose(page, "4 panels")
            page.get_by_text("near-panels4.pdf", exact=True).wait_for()
            press(page, "write")
            says(page, "written", "^wrote figures/near-panels4.pdf$")
            with page.expect_download() as coming:
                page.get_by_text("Download", exact=True).click()
            coming.value.save_as(tmp_path / "downloaded.pdf")
        file = server.folder / "figures" / "near-panels4.pdf"
        assert (tmp_path / "downloaded.pdf").read_bytes() == file.read_bytes()
        assert [shown.name for shown in recipe.read(file).runs] == ["near"]
        (tmp_path / "copy.pdf").write_bytes(file.read_bytes())
        reopened(browser, server.folder, tmp_path)


def reopened(browser, folder, tmp_path) -> None:
    """`fractal open` of the file shows the run in the zoom notebook."""
    with fractal_open(folder, "figures/near-panels4.pdf") as (process, log):
        assert zoom.answers(_address(log, process), process, log) is None
        url = re.search(r"shows (http\S+)", log.read_text())[1]
        assert "run=near" in url
        with opened(browser, tmp_path, zoom.Server(url, folder, process.pid)) as page:
            page.locator("[data-testid=map][data-frames]").wait_for()
            said = page.get_by_test_id("region").inner_text()
            assert "input layer" in said or "lr_input 0.1 … 1000.0" in said


def _address(log, process) -> str:
    """The server's own address, once it has been said."""

    def said() -> re.Match[str] | None:
        assert process.poll() is None, log.read_text()
        return re.search(r"shows (http://127\.0\.0\.1:\d+/)", log.read_text())

    return until(said, "the address")[1]


def test_a_film_is_made_in_the_background(browser, runs, tmp_path):
    """Whoever leaves the page and comes back is told how it ended, and gets the file."""
    with served(NOTEBOOK, runs) as server:
        with opened(browser, tmp_path, server, "?run=near,wide") as page:
            with at_once(page):
                aside(page, "paper")
                choose(page, "film")
            says(page, "film", "keyframe")
            aside(page, ".gif")
            page.get_by_text("wide-to-near-film.gif").wait_for()
            press(page, "make the film")
            says(page, "rolling", "^(running|done): ")
        with opened(browser, tmp_path, server, "?run=near,wide&figure=film") as page:
            says(page, "rolling", "^done: figures/wide-to-near-film.gif$")
            aside(page, ".gif")
            with page.expect_download() as coming:
                page.get_by_text("Download", exact=True).click()
            coming.value.save_as(tmp_path / "downloaded.gif")
        told = recipe.read(tmp_path / "downloaded.gif")
        assert [shown.name for shown in told.runs] == ["wide", "near"]
        assert told.drawn["palette"] == "paper"


def aside(page, choice: str) -> None:
    """Choose something in the sidebar."""
    page.get_by_role("complementary").get_by_text(choice, exact=True).click()


def test_who_may_only_look_can_download_and_write_nothing(browser, runs, tmp_path):
    """The buttons that write or begin something are dead, and no file appears on the server."""
    with (
        served(NOTEBOOK, runs, control=False) as server,
        opened(browser, tmp_path, server, "?run=wide,near") as page,
    ):
        page.get_by_text("wide-map.pdf", exact=True).wait_for()
        disabled(page, "write")
        with page.expect_download():
            page.get_by_text("Download", exact=True).click()
        choose(page, "film")
        says(page, "film", "keyframe")
        disabled(page, "make the film", "stop", "make the keyframes")
        assert {item.name for item in server.folder.iterdir()} & {"figures"} == set()


def test_an_empty_folder_says_what_to_do(browser, tmp_path):
    """Without runs there is a sentence, and the palettes for every eye."""
    (tmp_path / "runs").mkdir()
    with (
        served(NOTEBOOK, tmp_path / "runs", control=False) as server,
        opened(browser, tmp_path, server) as page,
    ):
        page.get_by_text("There is no run in").wait_for()
        page.get_by_text("The palettes, for every eye").wait_for()
