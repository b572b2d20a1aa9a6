"""Checkpoints: the reference's files, ours, and those that nobody should load."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nanochat import sources
from nanochat.checkpoint_manager import (
    find_largest_model,
    find_last_step,
    load_checkpoint,
    load_gpt,
    load_model,
    load_optimizers,
    locate,
    save_checkpoint,
    source_folder,
)
from nanochat.common import Refused
from nanochat.gpt import GPT, GPTConfig
from nanochat_golden import DATA, worst

GOLDEN = DATA / "nanochat_checkpoint"
CONFIG = {
    **{"sequence_len": 16, "vocab_size": 70, "n_layer": 1},
    **{"n_head": 2, "n_kv_head": 2, "n_embd": 32},
}


@pytest.fixture(autouse=True)
def base(tmp_path, monkeypatch) -> Path:
    """A base folder of its own."""
    folder = tmp_path / "base"
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(folder))
    return folder


def weights(**changes) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = GPT(GPTConfig(**CONFIG | changes))
    model.init_weights()
    return model.state_dict()


def save(folder: Path, step: int = 10, **meta) -> Path:
    """A small checkpoint, and where it is."""
    save_checkpoint(folder, step, weights(), None, {"model_config": CONFIG} | meta)
    return folder


def listing(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, to see that nothing changed."""
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_reference_checkpoint_is_read():
    """Names prefixed by the compiler, a bfloat16 embedding: the reference's logits come out."""
    model, meta = load_gpt(GOLDEN, find_last_step(GOLDEN))
    with np.load(GOLDEN / "expected.npz") as expected:
        logits = model(torch.from_numpy(expected["idx"]))
        assert worst(logits, expected["logits"]) <= 1e-5
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert meta["dataloader_state_dict"] == {"pq_idx": 0, "rg_idx": 3}


def test_reference_checkpoint_comes_with_its_tokenizer():
    """The tokenizer that lies beside the weights is the one that is used."""
    pytest.importorskip("nanochat.tokenizer")
    model, tokenizer, meta = load_model(str(GOLDEN), "cpu", "eval")
    assert tokenizer.get_vocab_size() == model.config.vocab_size == 700
    assert not model.training
    assert meta["step"] == 10


def test_round_trip_keeps_keys_shapes_dtypes_and_values(tmp_path):
    """What the reference would read back is what was given, key for key and in its order."""
    given = {f"_orig_mod.{k}": v for k, v in weights().items()}
    first = next(iter(given))
    given[first] = given[first].bfloat16()
    config = GPTConfig(**CONFIG)
    save_checkpoint(tmp_path, 7, given, None, {"step": 7, "model_config": config.__dict__})
    found, optimizers, meta = load_checkpoint(tmp_path, 7)
    assert list(found) == list(given)
    assert optimizers is None
    for key, value in given.items():
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key], value)
    assert meta["model_config"] == CONFIG
    assert sorted(p.name for p in tmp_path.iterdir()) == ["meta_000007.json", "model_000007.pt"]


def test_state_dict_has_the_references_keys_in_its_order():
    """The file that it wrote is the model."""
    file = torch.load(GOLDEN / "model_000010.pt", weights_only=True)
    meta = json.loads((GOLDEN / "meta_000010.json").read_text())
    with torch.device("meta"):
        ours = GPT(GPTConfig(**meta["model_config"])).state_dict()
    assert [(f"_orig_mod.{k}", v.shape) for k, v in ours.items()] == [
        (k, v.shape) for k, v in file.items()
    ]


def test_tied_embeddings_survive_a_checkpoint(tmp_path):
    """The one key that the reference lacks is written only where it is needed."""
    tied = CONFIG | {"tie_embeddings": True}
    save_checkpoint(tmp_path, 1, weights(tie_embeddings=True), None, {"model_config": tied})
    model, meta = load_gpt(tmp_path, 1)
    assert model.lm_head is None
    assert meta["model_config"]["tie_embeddings"] is True


def test_optimizer_states_come_back(tmp_path):
    """A step after loading is the step that would have been taken."""
    results = []
    for interrupted in (False, True):
        torch.manual_seed(0)
        model = GPT(GPTConfig(**CONFIG))
        model.init_weights()
        optimizers = model.setup_optimizers()
        for step in range(3):
            if interrupted and step == 2:
                states = [o.state_dict() for o in optimizers]
                save_checkpoint(tmp_path, 2, model.state_dict(), states, {"model_config": CONFIG})
                _, states, _ = load_checkpoint(tmp_path, 2, load_optimizer=True, rank=3)
                model = load_gpt(tmp_path, 2)[0]
                optimizers = model.setup_optimizers()
                load_optimizers(optimizers, states, "the test")
            for i, p in enumerate(model.parameters()):
                p.grad = torch.randn(
                    p.shape, generator=torch.Generator().manual_seed(10 * step + i)
                )
            for optimizer in optimizers:
                optimizer.step()
        results.append(model.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(results[0].values(), results[1].values(), strict=True)
    )


def test_optimizer_states_of_other_shapes_are_refused():
    """Slices, as the reference's sharded optimizers write, are not taken for whole matrices."""
    model = GPT(GPTConfig(**CONFIG))
    optimizers = model.setup_optimizers()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    for optimizer in optimizers:
        optimizer.step()
    states = [o.state_dict() for o in optimizers]
    states[0]["state"][0]["exp_avg"] = states[0]["state"][0]["exp_avg"][:16]
    with pytest.raises(Refused, match="another number of processes"):
        load_optimizers(model.setup_optimizers(), states, "the test")


def test_last_step_is_found_by_number_among_stray_files(tmp_path):
    """Backups, drafts, and weights without their meta are no steps."""
    for step in (999_999, 1_000_000, 20):
        save(tmp_path, step)
    for stray in ("model_000200_backup.pt", "model_9999999.pt", "model_latest.pt", ".draft-1"):
        (tmp_path / stray).write_bytes(b"stray")
    assert find_last_step(tmp_path) == 1_000_000


def test_largest_tag_is_found_by_number(tmp_path):
    """d12 goes before d4, whatever else is there; without such a tag, the newest."""
    save(tmp_path / "mine")
    assert find_largest_model(tmp_path) == "mine"
    for tag in ("d4", "d12"):
        save(tmp_path / tag)
    (tmp_path / "d99").mkdir()
    (tmp_path / "notes.txt").write_text("stray")
    assert find_largest_model(tmp_path) == "d12"


def test_tag_and_step_are_honoured_or_refused(tmp_path):
    """What was named is used; it is never replaced by the largest."""
    for tag in ("d4", "d12"):
        save(tmp_path / tag, 10)
        save(tmp_path / tag, 20)
    assert locate(tmp_path) == (tmp_path / "d12", 20)
    assert locate(tmp_path, "d4", 10) == (tmp_path / "d4", 10)
    with pytest.raises(Refused, match="there are: d12, d4"):
        locate(tmp_path, "d20")
    with pytest.raises(Refused, match="there are: d12, d4"):
        locate(tmp_path, "../x")
    with pytest.raises(Refused, match="there are: 10, 20"):
        locate(tmp_path, "d4", 15)


def test_what_is_loaded_is_said(base, capsys):
    """Folder and step are printed before anything is loaded."""
    pytest.importorskip("nanochat.tokenizer")
    folder = base / "chatsft_checkpoints" / "d2"
    shutil.copytree(GOLDEN, folder)
    load_model("sft", "cpu", "eval", model_tag="d2", step=10)
    assert f"step 10 of {folder}" in capsys.readouterr().out


def drop_key(folder: Path) -> None:
    found = weights()
    del found["lm_head.weight"]
    torch.save(found, folder / "model_000010.pt")


def cut(fraction: float):
    def damage(folder: Path) -> None:
        path = folder / "model_000010.pt"
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * fraction)])

    return damage


def hostile(folder: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (Path.touch, (folder / "owned",))

    torch.save({"transformer.wte.weight": Evil()}, folder / "model_000010.pt")


def set_config(**changes):
    def damage(folder: Path) -> None:
        path = folder / "meta_000010.json"
        path.write_text(json.dumps({"model_config": CONFIG | changes}))

    return damage


def newer_weights(folder: Path) -> None:
    torch.save(weights() | {"resid_lambdas": torch.ones(1)}, folder / "model_000010.pt")


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (drop_key, "lacks lm_head.weight"),
        (cut(0.5), "is torn"),
        (cut(0.99), "is torn"),
        (cut(0.0), "is torn"),
        (cut(0.001), "torn"),
        (hostile, "more than tensors"),
        (set_config(n_embd=64), "its model_config says"),
        (set_config(vocab_size="70"), "wrong vocab_size"),
        (set_config(colour=1), "unknown colour"),
        (set_config(window_pattern="SSSL"), "newer nanochat"),
        (newer_weights, "newer nanochat .it has resid_lambdas"),
        (lambda folder: (folder / "meta_000010.json").write_text('{"a'), "torn or no JSON"),
        (lambda folder: (folder / "meta_000010.json").write_text("{}"), "no model_config"),
        (lambda folder: (folder / "model_000010.pt").unlink(), "missing"),
    ],
)
def test_damaged_foreign_and_newer_checkpoints_are_refused(tmp_path, damage, why):
    """One sentence says what is wrong, and nothing on the disk changes."""
    folder = save(tmp_path / "d1")
    damage(folder)
    before = listing(tmp_path)
    with pytest.raises(Refused, match=why) as refusal:
        load_gpt(folder, 10)
    assert "\n" not in str(refusal.value)
    assert listing(tmp_path) == before


def test_torn_optimizer_file_is_refused(tmp_path):
    """It is not taken for a fresh start."""
    save_checkpoint(tmp_path, 1, weights(), [{"a": torch.ones(1000)}] * 2, {"model_config": CONFIG})
    path = tmp_path / "optim_000001_rank0.pt"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(Refused, match=r"rank0\.pt is torn"):
        load_checkpoint(tmp_path, 1, load_optimizer=True)


def test_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    """A full disk costs the new step, not the old one, and leaves no draft."""
    save(tmp_path)
    before = listing(tmp_path)

    def full(data, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path)
    assert listing(tmp_path) == before
    assert find_last_step(tmp_path) == 10


class FakeHub:
    """A repository of files, by commit; counts what is asked of it."""

    def __init__(self, folder: Path, names: list[str] | None = None):
        self.folder, self.downloads = folder, 0
        self.names = names or [str(p.relative_to(folder)) for p in folder.rglob("*.*")]

    def model_info(self, repo, revision):
        return SimpleNamespace(sha="ab" * 20)

    def list_repo_files(self, repo, revision):
        return self.names

    def hf_hub_download(self, repo, file, revision, local_dir):
        self.downloads += 1
        copy(self.folder / file, Path(local_dir, file))


class FakeWandb:
    """One artifact, of a version that `latest` stands for."""

    def __init__(self, folder: Path, names: list[str] | None = None):
        self.hub = FakeHub(folder, names)

    def artifact(self, name):
        self.name = name
        entries = dict.fromkeys(self.hub.names)
        return SimpleNamespace(
            version="v3",
            manifest=SimpleNamespace(entries=entries),
            get_entry=lambda file: SimpleNamespace(
                download=lambda root: self.hub.hf_hub_download("", file, "", root)
            ),
        )


def copy(origin: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(origin, target)


@pytest.fixture
def elsewhere(tmp_path) -> Path:
    """What is offered for download: a checkpoint, its tokenizer, and things nobody asked for."""
    folder = save(tmp_path / "elsewhere" / "checkpoints").parent
    copy(GOLDEN / "tokenizer.pkl", folder / "tokenizer" / "tokenizer.pkl")
    (folder / "README.md").write_text("read me")
    return folder


def test_hub_repositories_are_fetched_once_and_again_when_damaged(elsewhere, base):
    """The cache is used while whole; only checkpoint and tokenizer are fetched."""
    hub = FakeHub(elsewhere)
    folder = sources.fetch("hf:org/repo", hub=hub)
    assert folder == base / "sources" / "hf" / "org--repo" / ("ab" * 20)
    assert hub.downloads == 3
    assert locate(folder) == (folder / "checkpoints", 10)
    assert sources.fetch("hf:org/repo@main", hub=hub) == folder
    assert hub.downloads == 3
    cut(0.5)(folder / "checkpoints")
    sources.fetch("hf:org/repo", hub=hub)
    assert hub.downloads == 6
    assert load_gpt(*locate(folder))[0].config.n_embd == 32


def test_wandb_artifacts_are_fetched_by_version(elsewhere, base):
    """An alias is resolved first, so a later one is another folder."""
    api = FakeWandb(elsewhere)
    folder = sources.fetch("wandb:me/project/run-artifact:latest", wandb_api=api)
    assert api.name == "me/project/run-artifact:latest"
    assert folder == base / "sources" / "wandb" / "me" / "project" / "run-artifact" / "v3"
    assert locate(folder) == (folder / "checkpoints", 10)


@pytest.mark.parametrize("name", ["../../evil/model_000001.pt", "/etc/model_000001.pt", "a\\..\\b"])
@pytest.mark.parametrize("kind", ["hf", "wandb"])
def test_paths_that_leave_the_folder_are_refused(elsewhere, base, tmp_path, name, kind):
    """Nothing is fetched and nothing is written."""
    names = ["checkpoints/model_000010.pt", name]
    hub, api = FakeHub(elsewhere, names), FakeWandb(elsewhere, names)
    source = "hf:org/repo" if kind == "hf" else "wandb:me/project/name:v1"
    before = listing(tmp_path)
    with pytest.raises(Refused, match=r"leaves its folder; nothing was fetched") as refusal:
        sources.fetch(source, hub=hub, wandb_api=api)
    assert "\n" not in str(refusal.value)
    assert hub.downloads == api.hub.downloads == 0
    assert {k: v for k, v in listing(tmp_path).items() if not k.endswith(".lock")} == before


def test_what_holds_no_checkpoint_is_refused(tmp_path, base):
    """And leaves no folder that looks fetched."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no model")
    with pytest.raises(Refused, match=r"holds no model_"):
        sources.fetch("hf:org/repo", hub=FakeHub(tmp_path / "empty"))
    assert list(base.rglob(sources.SEAL)) == []


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("hf:repo", "does not look like hf:org/repo"),
        ("wandb:entity/name", "does not look like wandb:entity"),
        ("nowhere", "neither a stage"),
    ],
)
def test_malformed_sources_are_refused(source, why):
    """The sentence shows the right form."""
    with pytest.raises(Refused, match=why):
        sources.fetch(source)


def test_trouble_of_a_service_is_one_sentence():
    """Its own first line, and what to check."""
    hub = SimpleNamespace(model_info=lambda repo, revision: 1 / 0)
    with pytest.raises(Refused, match=re.escape("cannot be had (division by zero)")):
        sources.fetch("hf:org/repo", hub=hub)


def test_stages_are_folders_of_the_base_folder(base):
    """The reference's names."""
    assert source_folder("rl") == base / "chatrl_checkpoints"
    assert source_folder(str(base)) == base
