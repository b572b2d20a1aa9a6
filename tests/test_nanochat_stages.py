"""The stages from a tokenizer to a chat, on a model too small to be good at anything."""

import dataclasses
import itertools
import json
import os
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nanochat import dataset
from nanochat.checkpoint_manager import load_model, save_checkpoint
from nanochat.cli import config_from
from nanochat.common import Refused
from nanochat.corpus import KINDS
from nanochat.dataloader import collate
from nanochat.engine import Engine, KVCache
from nanochat.gpt import GPT, GPTConfig
from nanochat.tokenizer import get_token_bytes, get_tokenizer
from nanochat_golden import golden, golden_model
from scripts import base_complete, chat_cli, chat_sft, tiny, tok_eval, tok_train
from stagebase import assert_resumes, weights
from tasks.builtin import Kinds

pytestmark = pytest.mark.usefixtures("one_thread")


def random_model(vocab_size: int, sequence_len: int = 64) -> GPT:
    """With weights that are zero nowhere."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(sequence_len, vocab_size, n_layer=2, n_head=4, n_kv_head=2, n_embd=32))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A base folder with texts, a tokenizer and a base model that was never trained."""
    folder = tmp_path_factory.mktemp("made")
    with tiny.base_folder(str(folder)):
        dataset.main(dataset.Config(builtin=40))
        tok_train.main(tok_train.Config(vocab_size=400))
        model = random_model(get_tokenizer().get_vocab_size())
        meta = {"step": 3, "model_config": dataclasses.asdict(model.config)}
        save_checkpoint(folder / "base_checkpoints" / "d2", 3, model.state_dict(), None, meta)
    return folder


@pytest.fixture
def base(made, tmp_path, monkeypatch) -> Path:
    """A copy of it that is the base folder."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "WANDB_RUN"):
        monkeypatch.delenv(name, raising=False)
    shutil.copytree(made, tmp_path / "base")
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    return tmp_path / "base"


# The tokenizer's stages


def test_the_tokenizer_reads_texts_up_to_its_limits(base):
    """Each is cut, and the text that exceeds the total is the last one."""
    texts = list(itertools.chain(*dataset.parquets_iter_batched("train")))
    assert list(tok_train.texts(10**9, 10**9)) == texts
    assert list(tok_train.texts(25, 10)) == [text[:10] for text in texts[:3]]
    figures = tok_train.main(
        config_from(tok_train.Config, ["--max-chars=2e3", "--vocab_size", "300"])
    )
    assert figures["vocab_size"] == 300
    assert get_token_bytes().shape == (300,)
    with pytest.raises(Refused, match="at least 1"):
        tok_train.main(tok_train.Config(doc_cap=0))


def test_texts_that_run_out_of_pairs_are_told_of(base, capsys):
    """The vocabulary then is as large as it can be."""
    assert tok_train.main(tok_train.Config(max_chars=1, vocab_size=5000))["vocab_size"] < 5000
    assert "5000 were asked for" in capsys.readouterr().out


def test_bytes_per_token_are_compared(base, capsys):
    """What was learned from the texts packs them best, and nothing is fetched."""
    table = tok_eval.main(tok_eval.Config())["ours"]
    assert table["train"] > table["news"] > table["korean"]
    assert set(table) == {*tok_eval.TEXTS, "train", "val"}
    assert "bytes per token" in capsys.readouterr().out
    with pytest.raises(Refused, match="no nonesuch to compare with"):
        tok_eval.main(tok_eval.Config(compare="nonesuch"))


# Generation by the model


def test_the_cache_gives_what_the_whole_text_gives():
    """Token by token, in chunks and after a copied prompt, with more heads than key-value heads."""
    model = random_model(100).eval()
    ids = torch.randint(0, 100, (3, 40), generator=torch.Generator().manual_seed(1))

    def through(*cuts: int) -> torch.Tensor:
        cache = KVCache(batch_size=3, num_heads=2, seq_len=8, head_dim=8, num_layers=2)
        parts = itertools.pairwise((0, *cuts, 40))
        return torch.cat([model.forward(ids[:, a:b], kv_cache=cache) for a, b in parts], dim=1)

    with torch.no_grad():
        whole = model.forward(ids)
        for cuts in ((), tuple(range(1, 40)), (5, 6, 20)):
            torch.testing.assert_close(through(*cuts), whole, atol=1e-5, rtol=1e-5)
        prompt = KVCache(1, 2, 8, 8, 2)
        model.forward(ids[:1, :39], kv_cache=prompt)
        copied = KVCache(3, 2, 8, 8, 2)
        copied.prefill(prompt)
        last = model.forward(ids[:1, 39:].expand(3, 1), kv_cache=copied)
        torch.testing.assert_close(last[:, 0], whole[:1, 39].expand(3, -1), atol=1e-5, rtol=1e-5)


def test_the_engine_says_what_the_model_says(base):
    """Greedy generation with the cache is that of the model without one."""
    model, tokenizer, _ = load_model("base", "cpu", phase="eval")
    prompt = tokenizer.encode("The robin", prepend="<|bos|>")
    slow = list(model.generate(prompt, max_tokens=20, temperature=0.0))
    ends = {tokenizer.encode_special(name) for name in ("<|assistant_end|>", "<|bos|>")}
    fast = [
        c[0] for c, _ in Engine(model, tokenizer).generate(prompt, max_tokens=20, temperature=0)
    ]
    assert fast == slow[: len(fast)]
    assert len(fast) == 20 or fast[-1] in ends


def test_a_base_model_completes(base, capsys):
    """One prompt or the seven fixed ones, as many samples as asked for."""
    flags = ["--prompt=The robin is", "--num-samples=2", "--temperature=1", "--top-k=0"]
    rows = base_complete.main(config_from(base_complete.Config, flags))["The robin is"]
    assert len(set(rows)) == 2
    assert all(row.startswith("The robin is") for row in rows)
    assert rows[0] in capsys.readouterr().out
    assert len(base_complete.main(base_complete.Config(max_tokens=2))) == 7
    with pytest.raises(Refused, match="at least one"):
        base_complete.main(base_complete.Config(num_samples=0))


# Fine-tuning


def test_updates_are_the_references():
    """Six steps of four conversations in two batches give its losses and its weights."""
    numbers = golden("mha")
    model = golden_model(numbers)
    ends = np.cumsum(numbers["sft_lengths"])[:-1]
    rows = [
        (ids.tolist(), mask.tolist())
        for ids, mask in zip(
            np.split(numbers["sft_ids"], ends), np.split(numbers["sft_mask"], ends), strict=True
        )
    ]
    model.wte.weight.requires_grad_(False)
    optimizers = model.setup_optimizers(0.004, 0.2, 0.02, 0.0)
    for group in itertools.chain(*(optimizer.param_groups for optimizer in optimizers)):
        group["initial_lr"] *= 0.02
    endless, losses = itertools.cycle(rows), []
    for step in range(6):
        pad = model.config.vocab_size - 1
        micro = [collate(list(itertools.islice(endless, 2)), pad) for _ in range(2)]
        loss, tokens = chat_sft.update(model, optimizers, micro, 1 - step / 6)
        losses.append(loss)
        assert tokens == sum(int((targets >= 0).sum()) for _, targets in micro)
    np.testing.assert_allclose(losses, numbers["sft_losses"], atol=1e-4)
    for key, weight in model.state_dict().items():
        np.testing.assert_allclose(weight.numpy(), numbers[f"wsft/{key}"], atol=2e-4)


TUNE = chat_sft.Config(
    source="base",
    data="builtin",
    device_batch_size=2,
    target_examples_per_step=4,
    num_iterations=6,
    init_lr_frac=1.0,
    eval_every=-1,
    eval_steps=1,
    eval_metrics_max_problems=2,
)


def test_fine_tuning_saves_its_last_step(base):
    """One update less than steps; the meta file has what the reference's has, and no optimizers."""
    figures = chat_sft.main(TUNE)
    folder = base / "chatsft_checkpoints" / "d2"
    assert figures["checkpoint"] == str(folder)
    names = {path.name for path in folder.iterdir()}
    assert names == {"model_000005.pt", "meta_000005.json", "tokenizer.json", "tokenizer.pkl"}
    meta = json.loads((folder / "meta_000005.json").read_text())
    assert meta["step"] == 5
    assert meta["val_loss"] == figures["val_loss"]
    assert {"kinds_acc", "sums_acc", "train_loss"} <= meta.keys()
    before = weights(base / "base_checkpoints" / "d2", 3)
    assert not torch.equal(weights(folder, 5)["lm_head.weight"], before["lm_head.weight"])


def test_a_tuning_is_recorded(base, monkeypatch):
    """What was measured stands at the step it was measured at, the last too; the record is ended."""
    logged, ended = [], []
    run = SimpleNamespace(
        name="own-sft",
        log=logged.append,
        finish=lambda: ended.append(True),
        log_artifact=lambda artifact, aliases: None,
    )
    artifact = SimpleNamespace(add_file=lambda path, name: None)
    wandb = SimpleNamespace(init=lambda **options: run, Artifact=lambda name, type: artifact)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setenv("WANDB_RUN", "own")
    figures = chat_sft.main(dataclasses.replace(TUNE, eval_every=2))
    measured = [row for row in logged if "val_loss" in row]
    assert [row["step"] for row in measured] == [0, 2, 4, 5]
    assert measured[-1]["val_loss"] == figures["val_loss"]
    assert measured[-1]["kinds_acc"] == figures["kinds_acc"]
    assert [row["step"] for row in logged if "train_loss" in row] == [1, 2, 3, 4, 5]
    monkeypatch.setattr(chat_sft, "update", lambda *args: {}["nothing"])
    with pytest.raises(KeyError):
        chat_sft.main(TUNE)
    assert ended == [True, True]


def test_an_interrupted_tuning_goes_on_as_if_it_had_not_been(base, monkeypatch, capsys):
    """Ctrl-C saves after the step it came in; resuming ends with the same bits."""
    assert_resumes(chat_sft, TUNE, base / "chatsft_checkpoints" / "d2", monkeypatch, capsys)


def test_own_conversations_are_learned_from(base, tmp_path):
    """Every twentieth is for validation; too few are refused."""
    path = tmp_path / "own.jsonl"
    rows = [
        [{"role": "user", "content": f"Say {i}."}, {"role": "assistant", "content": f"{i}"}]
        for i in range(40)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    train, validation, asked = chat_sft.mixtures(str(path))
    assert (len(train), len(validation), asked) == (38, 2, {})
    said = [row["messages"][1]["content"] for row in [*train, *validation]]
    assert sorted(map(int, said)) == list(range(40))
    assert chat_sft.main(dataclasses.replace(TUNE, data=str(path), num_iterations=2))["step"] == 1
    path.write_text(json.dumps(rows[0]))
    with pytest.raises(Refused, match="has 1 conversations; at least 20"):
        chat_sft.main(dataclasses.replace(TUNE, data=str(path)))


def test_the_default_mixture_is_the_references(base, monkeypatch):
    """Both ARC sets, GSM8K, the first of SmolTalk, who the model is, and spelling, in its order."""
    question = {
        "question": "Q",
        "choices": {"text": ["a", "b"], "label": ["A", "B"]},
        "answerKey": "A",
    }
    talk = {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]}
    rows = {
        ("allenai/ai2_arc", "ARC-Easy", "train"): [question] * 5,
        ("allenai/ai2_arc", "ARC-Challenge", "train"): [question] * 4,
        ("allenai/ai2_arc", "ARC-Easy", "test"): [question] * 2,
        ("cais/mmlu", "all", "test"): [{"question": "Q"}],
        ("openai/gsm8k", "main", "train"): [{"question": "q", "answer": "#### 1"}] * 3,
        ("HuggingFaceTB/smol-smoltalk", None, "train"): [talk] * 10_005,
        ("HuggingFaceTB/smol-smoltalk", None, "test"): [talk] * 2,
    }

    class Loaded(list):
        def shuffle(self, seed):
            assert seed == 42
            return self

    loaded = SimpleNamespace(load_dataset=lambda path, name, split: Loaded(rows[path, name, split]))
    monkeypatch.setitem(sys.modules, "datasets", loaded)
    (base / "words_alpha.txt").write_text("alpha beta")
    (base / "identity_conversations.jsonl").write_text(json.dumps(talk["messages"]) + "\n")
    train, validation, asked = chat_sft.mixtures("")
    assert [len(task) for task in train.tasks] == [5, 4, 3, 10_000, 1, 300, 300]
    assert len(validation) == 2
    assert {name: len(task) for name, task in asked.items()} == {"mmlu": 1, "arc_easy": 2}


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"device_batch_size": 3}, "no multiple of the 3 conversations"),
        ({"device_batch_size": 0}, "no multiple of the 0 conversations"),
        ({"num_iterations": 0}, "there is no step to make"),
        ({"dtype": "float16"}, "unknown dtype 'float16'"),
        ({"source": "mid"}, "no checkpoint under .*mid_checkpoints"),
    ],
)
def test_flags_that_do_not_fit_are_refused(base, flags, sentence):
    """Before anything is written."""
    with pytest.raises(Refused, match=sentence):
        chat_sft.main(dataclasses.replace(TUNE, **flags))
    assert not (base / "chatsft_checkpoints").exists()


def test_out_of_memory_names_the_flag(base, monkeypatch):
    """The one that lowers what a batch takes."""

    def fails(*args):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(chat_sft, "update", fails)
    with pytest.raises(Refused, match=r"lower --device_batch_size, which is 2"):
        chat_sft.main(TUNE)


def test_the_defaults_are_the_references():
    """Names and values of the flags."""
    own = {"data", "save_every"}
    assert {k: v for k, v in vars(chat_sft.Config()).items() if k not in own} == {
        "run": "dummy",
        "source": "mid",
        "model_tag": None,
        "step": None,
        "device_type": "",
        "dtype": "bfloat16",
        "device_batch_size": 4,
        "num_epochs": 1,
        "num_iterations": -1,
        "target_examples_per_step": 32,
        "unembedding_lr": 0.004,
        "embedding_lr": 0.2,
        "matrix_lr": 0.02,
        "weight_decay": 0.0,
        "init_lr_frac": 0.02,
        "eval_every": 100,
        "eval_steps": 100,
        "eval_metrics_every": 200,
        "eval_metrics_max_problems": 1024,
        "resume_from_step": -1,
    }
    assert vars(tok_train.Config()) == {
        "max_chars": 10**10,
        "doc_cap": 10_000,
        "vocab_size": 65536,
    }
    chat = config_from(
        chat_cli.Config,
        ["-i", "base", "-g", "d4", "-s", "7", "-p", "Hi", "-t", "0", "-k", "5", "-d", "float32"],
    )
    assert vars(chat) == {
        "source": "base",
        "model_tag": "d4",
        "step": 7,
        "prompt": "Hi",
        "temperature": 0.0,
        "top_k": 5,
        "device_type": "",
        "dtype": "float32",
    }


# Chat


def test_a_prompt_gets_one_answer(base, capsys):
    """What is printed is what is returned, and the same again with the same seed."""
    config = chat_cli.Config(source="base", prompt="What is a robin?")
    answer = chat_cli.main(config)["answer"]
    assert answer in capsys.readouterr().out
    assert chat_cli.main(config)["answer"] == answer


def test_a_conversation_in_a_terminal(base, monkeypatch, capsys):
    """It goes on beyond the context, begins anew when told to, and survives a long message."""
    said = iter(["Hello there"] * 4 + ["", "x" * 900, "clear", "exit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(said))
    chat_cli.main(chat_cli.Config(source="base", temperature=1.0))
    out = capsys.readouterr().out
    assert "The beginning of the conversation is forgotten" in out
    assert "shorten it" in out
    assert "A new conversation" in out
    assert out.endswith("Goodbye.\n")
    monkeypatch.setattr("builtins.input", lambda prompt: (_ for _ in ()).throw(EOFError))
    assert chat_cli.main(chat_cli.Config(source="base"))["answer"] == ""


def test_a_turn_ends_with_its_token(base):
    """Whether the model said it or ran out of room."""
    model, tokenizer, _ = load_model("base", "cpu", phase="eval")
    chat = chat_cli.Chat(Engine(model, tokenizer), temperature=1.0, top_k=0)
    chat.say("Hello")
    names = [
        "<|bos|>",
        "<|user_start|>",
        "<|user_end|>",
        "<|assistant_start|>",
        "<|assistant_end|>",
    ]
    special = [token for token in chat.tokens if token in map(tokenizer.encode_special, names)]
    assert special == [tokenizer.encode_special(name) for name in names]
    chat.clear()
    assert chat.tokens == [tokenizer.get_bos_token_id()]


# All of it


def test_a_lower_bound_is_the_binomial_one():
    """Known values: nothing right, all right, and rule of three."""
    assert tiny.lower_bound(0, 10) == 0.0
    assert tiny.lower_bound(10, 10) == pytest.approx(0.05**0.1)
    assert tiny.lower_bound(5, 10) == pytest.approx(0.2224, abs=1e-4)


def test_the_base_folder_is_put_back(monkeypatch, tmp_path):
    """Also if there was none, and after an error."""
    monkeypatch.delenv("NANOCHAT_BASE_DIR", raising=False)

    def fails() -> None:
        with tiny.base_folder(str(tmp_path)):
            assert os.environ["NANOCHAT_BASE_DIR"] == str(tmp_path)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert "NANOCHAT_BASE_DIR" not in os.environ


def test_the_whole_way_offline(tmp_path, monkeypatch, capsys):
    """Texts, tokenizer, base model, fine-tuning and a question, and both have learned."""
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("went online"))
    figures = tiny.main(
        tiny.Config(
            base_dir=str(tmp_path / "tiny"),
            documents=400,
            vocab_size=512,
            depth=1,
            max_seq_len=64,
            base_steps=100,
            sft_steps=450,
        )
    )
    assert figures["base_bpb"] < figures["unigram_bpb"]
    assert figures["kinds_lower_bound"] > 2 * figures["kinds_chance"] == 0.25
    assert figures["kinds_asked"] == len(Kinds("test"))
    assert re.fullmatch(rf"An? \w+ is an? ({'|'.join(KINDS)})\.", figures["answer"])
    assert figures["answer"] in capsys.readouterr().out
    with pytest.raises(Refused, match="is not empty"):
        tiny.main(tiny.Config(base_dir=str(tmp_path / "tiny")))
