"""The chat notebook in a real browser."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from nanochat.checkpoint_manager import load_checkpoint, load_tokenizer, save_checkpoint
from serving import NOTEBOOKS, disabled, opened, served, taken_in
from tuning import checkpoint

from fractal_core import Store, single, talk
from fractal_core.bench.zoom import Server
from fractal_core.experiments import open_run
from fractal_core.finetune import FineTune
from fractal_core.single import Watch

NOTEBOOK = NOTEBOOKS / "chat.py"
TUNED = f"runs/one/{talk.FINE_TUNED}"

LENGTHS = """
() => {
  const inside = (root, wanted) => {
    const found = root.querySelector(wanted);
    if (found) return found;
    for (const node of root.querySelectorAll("*")) {
      const deep = node.shadowRoot && inside(node.shadowRoot, wanted);
      if (deep) return deep;
    }
  };
  const text = (node) => (node?.shadowRoot ?? node)?.textContent.length ?? 0;
  window.lengths = { chat: new Set(), beside: new Set() };
  setInterval(() => {
    window.lengths.chat.add(text(inside(document, "marimo-chatbot")));
    window.lengths.beside.add(text(inside(document, "[data-testid=transcript]")));
  }, 10);
}
"""
"""Notes how long the two texts are, every so often."""


def talkative(folder: Path) -> str:
    """A checkpoint that never ends an answer by itself, and takes a while for it."""
    checkpoint(folder, sequence_len=1024, n_layer=4, n_embd=64)
    weights, _, meta = load_checkpoint(folder, 0)
    special = load_tokenizer(folder, 0).encode_special
    with torch.no_grad():
        weights["lm_head.weight"][[special("<|assistant_end|>"), special("<|bos|>")]] = 0.0
    save_checkpoint(folder, 0, weights, None, meta)
    return str(folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Iterator[Path]:
    """A run that hardly learned anything, with its weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FRACTAL_STORAGE", str(tmp_path_factory.mktemp("storage")))
        patch.setenv("NANOCHAT_BASE_DIR", str(tmp_path_factory.mktemp("nothing")))
        base = talkative(tmp_path_factory.mktemp("base"))
        calm = {"matrix_lr": 1e-7, "unembedding_lr": 1e-7, "sequence_length": 256}
        experiment = FineTune(base, num_steps=2, window=1, batch_size=2, **calm)
        root = tmp_path_factory.mktemp("prepared") / "runs"
        store = Store.create(root / "one", single.sweep_of(experiment, 0))
        single.train(store, Watch(samples=0, eval_batches=1, keep_weights=True), lambda row: None)
        yield root


@pytest.fixture(scope="module")
def app(runs) -> Iterator[Server]:
    with served(NOTEBOOK, runs) as server:
        yield server


@pytest.fixture
def tab(browser, tmp_path):
    @contextlib.contextmanager
    def open_tab(server: Server, query: str = ""):
        with opened(browser, tmp_path, server, query) as page:
            page.locator("marimo-chatbot [contenteditable=true]").wait_for()
            yield page

    return open_tab


def ask(page, text: str) -> None:
    """Write a question and send it, as soon as nobody answers."""
    page.get_by_role("button", name="Send message").wait_for()
    page.locator("marimo-chatbot [contenteditable=true]").click()
    page.keyboard.type(text)
    taken_in(page)
    page.keyboard.press("Enter")


def test_two_answers_stream_side_by_side_and_end_at_the_cap(app, tab):
    """Both grow while one looks; a second question is put to both; the address leads back."""
    with tab(app) as page:
        beside = page.get_by_test_id("transcript")
        beside.get_by_text("The same questions").wait_for()
        page.evaluate(LENGTHS)
        ask(page, "What is the total?")
        page.get_by_text("cut off after 128 tokens").nth(1).wait_for()
        grown = page.evaluate("({chat: lengths.chat.size, beside: lengths.beside.size})")
        assert min(grown.values()) >= 4, grown
        ask(page, "And who wrote it?")
        beside.get_by_text("And who wrote it?").wait_for()
        page.get_by_text("cut off after 128 tokens").nth(3).wait_for()
        assert "checkpoint=" in page.url
        assert "beside=" in page.url


def test_another_model_begins_anew(app, tab):
    """What one said does not stand under the name of another."""
    other = open_run(app.folder / "runs" / "one").sweep.experiment.checkpoint
    with tab(app, f"?checkpoint={TUNED}&beside=") as page:
        ask(page, "Do gulls sing?")
        page.get_by_text("cut off after 128 tokens").wait_for()
        name = page.get_by_placeholder("or a folder")
        name.fill(other)
        name.press("Enter")
        page.get_by_text("Do gulls sing?").wait_for(state="detached")
        assert page.get_by_test_id("transcript").count() == 0
        ask(page, "And now?")
        page.get_by_text("cut off after 128 tokens").wait_for()


def test_a_sample_question_is_asked_with_its_document(app, tab):
    """It is chosen from the list of the chat; the answer of the data set is told at the end."""
    sample = talk.samples("builtin", 1)[0]
    with tab(app, f"?checkpoint={TUNED}&beside=") as page:
        page.get_by_role("button", name=sample.label).click()
        line = sample.document.splitlines()[1]
        page.get_by_role("region", name=sample.label).get_by_text(line).wait_for()
        ask(page, sample.label)
        page.get_by_text(f"the data set's answer: {sample.expected}").wait_for()
        assert page.get_by_test_id("transcript").count() == 0


def test_without_a_model_the_page_says_how_to_get_one(tmp_path, browser, monkeypatch):
    """And starts nothing for those who may only look."""
    monkeypatch.setenv("FRACTAL_STORAGE", str(tmp_path / "storage"))
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "none"))
    (tmp_path / "runs").mkdir()
    with (
        served(NOTEBOOK, tmp_path / "runs", control=False) as server,
        opened(browser, tmp_path, server) as page,
    ):
        page.get_by_text("There is no language model here yet.").wait_for()
        disabled(page, "make the base model")
    assert not (tmp_path / "storage").exists()
    assert not (tmp_path / "none").exists()
