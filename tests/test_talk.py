"""Talking with language models: which there are, what they answer, and what ends an answer."""

import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tuning import checkpoint

from fractal_core import Refused, Store, single, talk
from fractal_core.finetune import FineTune
from fractal_core.single import Watch
from fractal_core.talk import Manner, Talk

LONG = 1024


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    """What is trained from; its answers are long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FRACTAL_STORAGE", str(tmp_path_factory.mktemp("storage")))
        patch.setenv("NANOCHAT_BASE_DIR", str(tmp_path_factory.mktemp("nothing")))
        yield checkpoint(tmp_path_factory.mktemp("base"), sequence_len=LONG)


@pytest.fixture(scope="module")
def root(base, tmp_path_factory) -> Path:
    """Runs with one that was fine-tuned."""
    root = tmp_path_factory.mktemp("runs")
    experiment = FineTune(base, num_steps=4, window=2, batch_size=2, sequence_length=256)
    store = Store.create(root / "one", single.sweep_of(experiment, 0))
    single.train(store, Watch(samples=0, eval_batches=1, keep_weights=True), lambda row: None)
    return root


def says(text: str, role: str = "user") -> SimpleNamespace:
    return SimpleNamespace(role=role, content=text)


def test_checkpoints_are_found_with_what_they_were_trained_from(root, base, tmp_path):
    """A run that kept its weights, and the stages of a base folder."""
    sources = talk.found(root)
    assert list(sources) == ["one, fine-tuned"]
    assert talk.before(sources["one, fine-tuned"]) == base
    assert talk.data_of(sources["one, fine-tuned"]) == "builtin"
    for stage in ("mid", "chatsft"):
        checkpoint(tmp_path / "lm" / f"{stage}_checkpoints" / "d2")
    sources = talk.found(tmp_path)
    assert set(sources) == {"lm, mid d2", "lm, sft d2"}
    assert talk.before(sources["lm, sft d2"]) == sources["lm, mid d2"]
    assert talk.before(sources["lm, mid d2"]) is None
    assert talk.before("builtin") is None


def test_what_would_be_fetched_is_not_offered(root, base, monkeypatch):
    """Or who may only look could not talk with what lies here."""
    source = talk.found(root)["one, fine-tuned"]
    assert talk.before(source, fetches=False) == base
    recipe = SimpleNamespace(checkpoint="hf:some/model")
    monkeypatch.setattr(talk, "_recipe", lambda run: recipe)
    assert talk.before(source) == "hf:some/model"
    assert talk.before(source, fetches=False) is None


def test_a_model_is_held_once_and_only_the_last_few_are(base, tmp_path):
    """One that has changed on disk is read again."""
    engine = talk.voice(base)
    assert talk.voice(base) is engine
    others = [checkpoint(tmp_path / str(n)) for n in range(talk.HELD)]
    for other in others:
        talk.voice(other)
    assert talk.voice(base) is not engine
    held = talk.voice(others[-1])
    checkpoint(Path(others[-1]))
    assert talk.voice(others[-1]) is not held
    with pytest.raises(Refused, match="neither a stage"):
        talk.voice("no/such/folder")


def test_an_answer_comes_in_pieces_and_the_same_seed_gives_the_same_one(base):
    """Another seed, another answer; greedily the seed does not matter."""
    engine, turns = talk.voice(base), [("user", "What is the total?")]

    def answer(**manner) -> list[str]:
        return list(talk.answer(engine, turns, Manner(max_tokens=40, **manner)))

    first = answer(seed=1)
    assert len(first) > 3
    assert answer(seed=1) == first != answer(seed=2)
    assert answer(seed=1, temperature=0.0) == answer(seed=2, temperature=0.0)
    with pytest.raises(Refused, match="negative"):
        answer(temperature=-1.0)


def test_tokens_seconds_and_the_context_end_an_answer(base):
    """Each says so at the end; the note is no part of the answer."""
    engine = talk.voice(base)
    ends = [engine.tokenizer.encode_special(f"<|{name}|>") for name in ("assistant_end", "bos")]
    with torch.no_grad():
        engine.model.lm_head.weight[ends] = 0.0  # so that greedily it never ends by itself

    def cut(**manner) -> str:
        manner = Manner(temperature=0.0, **manner)
        text = "".join(talk.answer(engine, [("user", "What is the total?")], manner))
        assert talk.without_notes(text) != text
        return text.rpartition(talk.NOTE)[2]

    assert cut(max_tokens=20) == "cut off after 20 tokens)*"
    assert cut(max_tokens=900, seconds=0.0) == "cut off after 0 seconds)*"
    assert cut(max_tokens=2 * LONG) == "the context is full)*"


def test_a_long_conversation_forgets_its_beginning_and_a_long_question_shortens_its_answer(base):
    """Half of the context is kept for the answer where the last question allows it."""
    engine, seen = talk.voice(base), []
    generate = engine.generate

    def noted(tokens, **manner):
        seen.append(len(tokens))
        return generate(tokens, **manner | {"max_tokens": 1})

    turn = "How many ladders were sold on Friday, and who counted them? "
    size = len(engine.tokenizer.encode(turn))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "generate", noted)
        talks = [("user", turn), ("assistant", turn)] * (LONG // size)
        list(talk.answer(engine, [*talks, ("user", turn)], Manner(max_tokens=LONG)))
        list(talk.answer(engine, [("user", turn * (LONG * 3 // 4 // size))], Manner()))
    assert LONG // 2 - 3 * size <= seen[0] <= LONG // 2
    assert LONG // 2 < seen[1] <= LONG


def test_a_sample_is_asked_with_its_document_and_its_answer_is_told(root, base):
    """The page shows the question alone; what is told about an answer no model reads."""
    samples = talk.samples("builtin", 3)
    assert [sample.label[:2] for sample in samples] == ["Q1", "Q2", "Q3"]
    assert samples[0].document
    assert samples[0].document in samples[0].turn
    shown = []
    both = Talk([base, str(root / "one" / talk.FINE_TUNED)], lambda: Manner(max_tokens=24), samples,
                shown.append)  # fmt: skip
    assert both.meant(samples[1].label) == samples[1].turn
    text = "".join(both([says(samples[1].label)]))
    assert text.endswith(talk.note(f"the data set's answer: {samples[1].expected}"))
    assert [turn["role"] for turn in shown[-1]] == ["user", "assistant"]
    assert len(shown) >= 2
    list(both([says(samples[1].label), says(text, "assistant"), says("And then?")]))
    assert [turn["text"] for turn in shown[-1][::2]] == [samples[1].label, "And then?"]
    list(both([says("Anew?")]))
    assert len(shown[-1]) == 2


def test_what_another_model_said_is_not_told(base, monkeypatch):
    """A browser may send turns that stood in the chat before; one's own go on being told."""
    heard = []
    monkeypatch.setattr(talk, "answer", lambda engine, turns, manner: heard.append(turns) or ["I"])
    one, before = Talk([base], Manner), [says("Who?"), says("Another", "assistant")]
    own = [says("What?"), says("I", "assistant"), says("Where?")]
    for messages in ([*before, own[0]], [*before, *own], own[:1], own):
        list(one(messages))
    first, both = [("user", "What?")], [("user", "What?"), ("assistant", "I"), ("user", "Where?")]
    assert heard == [first, both, first, both]


def test_whatever_goes_wrong_is_said_in_a_line(base, monkeypatch, tmp_path):
    """A missing checkpoint, a question that is too long, a network that may not be used, a bug."""

    def told(source: str, text: str = "hello", **options) -> str:
        return "".join(Talk([source], Manner, **options)([says(text)]))

    assert "neither a stage" in told(str(tmp_path / "none"))
    assert "shorten it" in told(base, "a long question " * 2000)
    assert "--allow-control" in told("hf:some/model", fetches=False)
    monkeypatch.setattr(talk, "voice", lambda source: 1 / 0)
    assert told(base) == talk.note("the answer broke off: division by zero")


@pytest.mark.parametrize("control", [True, False])
def test_a_button_that_is_disabled_is_not_praised(control, monkeypatch, tmp_path):
    """Without leave to start anything the empty page names the command alone."""
    monkeypatch.syspath_prepend(Path(talk.__file__).parents[1] / "notebooks")
    monkeypatch.chdir(tmp_path)
    for name in ("FRACTAL_STORAGE", "NANOCHAT_BASE_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    shown, _ = importlib.import_module("chat").base_model.run(control=control, get_made=int)
    assert "makes a small one" in shown.text
    assert ("so does this button" in shown.text) == control
