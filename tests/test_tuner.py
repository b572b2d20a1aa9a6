"""The tuner: what a run computes, that nothing leaks from one run to the next, and what it leaves out."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from nanochat import packing
from nanochat.checkpoint_manager import load_gpt
from nanochat.dataloader import collate
from nanochat.gpt import GPT, GPTConfig
from nanochat.packing import pack
from nanochat_golden import alive, relative, worst

from fractal_core import Refused
from fractal_core.determinism import determined
from fractal_core.stream import Stream
from fractal_core.tuner import RunSettings, Tuner

pytestmark = pytest.mark.usefixtures("one_thread")

RUN = RunSettings(
    matrix_lr=0.02,
    embedding_lr=0.2,
    unembedding_lr=0.004,
    multipliers=(0.5, 1.0, 0.9, 0.7, 0.4, 0.1),
    trainable=("matrix", "unembedding"),
    weight_decay=0.1,
    momentum=0.95,
    batch_size=3,
    accumulation=2,
    sequence_length=24,
    seed=7,
)


class Rows:
    """Texts by chance of 4 to 40 tokens, of which a few are learned; the first has nothing to learn."""

    digest = "rows"
    rows = 11

    def row(self, i: int):
        draw = np.random.default_rng(i)
        ids = draw.integers(0, 70, draw.integers(4, 40)).astype(np.int32)
        learned = np.zeros(len(ids), bool)
        if i:
            learned[len(ids) // 2 : len(ids) // 2 + 3] = True
        return ids, learned


def model(**changes) -> GPT:
    shape = {"sequence_len": 16, "vocab_size": 70, "n_layer": 2, "n_head": 2, "n_kv_head": 1}
    return alive(GPT(GPTConfig(**shape | {"n_embd": 32} | changes)))


@pytest.fixture
def tuner() -> Tuner:
    return Tuner(model(), Rows())


def weights(tuner: Tuner) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in tuner.model.named_parameters()}


def old_way(settings: RunSettings, gpt: GPT) -> np.ndarray:
    """nanochat's own loop: padded rows, all logits, its own optimizers."""
    stream = Stream(Rows(), settings.sequence_length, settings.seed)
    frozen = [gpt.wte.weight] if "embedding" not in settings.trainable else []
    for p in frozen:
        p.requires_grad_(False)
    rates = (settings.unembedding_lr, settings.embedding_lr, settings.matrix_lr)
    optimizers = gpt.setup_optimizers(*rates, weight_decay=settings.weight_decay)
    losses, at = [], 0
    for multiplier in settings.multipliers:
        total = 0.0
        for _ in range(settings.accumulation):
            rows = [stream.row(at + i) for i in range(settings.batch_size)]
            at += settings.batch_size
            loss = gpt(*collate(rows, 0)) / settings.accumulation
            loss.backward()
            total += loss.item()
        losses.append(total)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * multiplier
            optimizer.step()
        gpt.zero_grad()
    return np.array(losses)


@pytest.mark.parametrize("tied", [False, True])
def test_packed_losses_and_gradients_are_those_of_padded_rows(tied):
    """Without padding and needless logits every learned token has the loss that it had."""
    gpt, rows = model(tie_embeddings=tied), [Stream(Rows(), 24, 0).row(i) for i in range(5)]
    inputs, targets = collate(rows, 0)
    padded = gpt(inputs, targets, loss_reduction="none")[targets.flatten() >= 0]
    padded.mean().backward()
    gradients = {name: p.grad.clone() for name, p in gpt.named_parameters()}
    gpt.zero_grad()
    packed = pack([*rows, ([1, 2, 3], [0, 0, 0])])
    losses = gpt.packed_losses(packed)
    losses.mean().backward()
    assert worst(losses, padded) < 2e-6
    for name, p in gpt.named_parameters():
        assert relative(p.grad, gradients[name]) < 2e-6
    assert len(packed.ids) == sum(packed.lengths) < inputs.numel()


def test_the_rectangle_gives_what_texts_one_by_one_give(monkeypatch):
    """Attention in one call, as on a GPU, is attention text by text."""
    gpt, packed = model(), pack([Stream(Rows(), 24, 0).row(i) for i in range(5)])
    apart = gpt.packed_losses(packed)
    monkeypatch.setattr(packing, "_one_by_one", packing._at_once)
    assert worst(gpt.packed_losses(packed), apart.detach()) < 2e-6


@pytest.mark.parametrize(
    "trainable", [("matrix", "unembedding"), ("matrix", "embedding", "unembedding")]
)
def test_the_curve_is_that_of_the_old_way(tuner, trainable):
    """The same rows, rates and optimizers give the same losses up to rounding."""
    settings = replace(RUN, trainable=trainable)
    np.testing.assert_allclose(tuner.train(settings), old_way(settings, model()), rtol=2e-3)
    assert tuner.train(settings)[0] == pytest.approx(old_way(settings, model())[0], rel=1e-6)


def test_a_run_has_the_same_bits_after_fifty_others(tuner):
    """Weights, momenta, batches and the shared first step are all set back."""
    fresh = Tuner(model(), Rows()).train(RUN)
    draw = np.random.default_rng(0)
    for n in range(50):
        rates = dict(
            zip(("matrix_lr", "unembedding_lr"), 10 ** draw.uniform(-4, 1, 2), strict=True)
        )
        if n % 5 == 0:
            rates |= {"seed": n, "momentum": 0.9, "trainable": ("matrix", "embedding")}
        tuner.train(replace(RUN, **rates))
    assert tuner.train(RUN).tobytes() == fresh.tobytes()


@pytest.mark.parametrize("trainable", [(), ("matrix",), ("embedding",), ("unembedding",)])
def test_what_is_frozen_keeps_its_bits(tuner, trainable):
    """Only the named groups move; weight decay does not touch the others."""
    before = weights(tuner)
    tuner.train(replace(RUN, trainable=trainable), finish=True)
    moved = {name for name, p in weights(tuner).items() if not torch.equal(p, before[name])}
    names = {"embedding": ["transformer.wte.weight"], "unembedding": ["lm_head.weight"]}
    names["matrix"] = [name for name in before if ".h." in name]
    assert moved == {name for group in trainable for name in names[group]}


def test_the_last_update_is_made_only_when_asked_for(tuner):
    """It changes no loss, so a sweep does without it."""
    curve = tuner.train(RUN)
    without = weights(tuner)
    assert tuner.train(RUN, finish=True).tobytes() == curve.tobytes()
    assert not torch.equal(tuner.model.lm_head.weight, without["lm_head.weight"])


def test_a_run_ends_at_its_first_loss_that_is_not_finite(tuner):
    """What comes after it is never computed; the next run is none the worse."""
    calm = tuner.train(RUN)
    blown = tuner.train(replace(RUN, matrix_lr=1e38))
    assert np.isfinite(blown[:-1]).all()
    assert not np.isfinite(blown[-1])
    assert len(blown) < len(RUN.multipliers)
    assert tuner.train(RUN).tobytes() == calm.tobytes()


def test_weight_decay_and_momentum_do_something(tuner):
    """Each changes the curve from the second update on, and not before."""
    plain = tuner.train(RUN)
    for change in ({"weight_decay": 50.0}, {"momentum": 0.0}):
        other = tuner.train(replace(RUN, **change))
        assert other[0] == plain[0]
        assert abs(other[-1] - plain[-1]) > 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_trains(dtype):
    """Its curve is near that of float32 and not the same."""
    gpt = model()
    gpt.set_compute_dtype(dtype)
    half, full = Tuner(gpt, Rows()).train(RUN), Tuner(model(), Rows()).train(RUN)
    assert not np.array_equal(half, full)
    np.testing.assert_allclose(half, full, rtol=0.05)


def test_in_float16_a_step_whose_gradients_overflow_is_not_made():
    """At rates of zero but one the weights stay where they were; the scale is lowered meanwhile."""
    gpt = model()
    gpt.set_compute_dtype(torch.float16)
    tuner = Tuner(gpt, Rows())
    optimizers = tuner._begin(RUN)
    optimizers.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    before, scale = weights(tuner), optimizers.scaler.get_scale()
    tuner._step(RUN, 0, optimizers, update=True)
    assert all(torch.equal(p, before[name]) for name, p in weights(tuner).items())
    assert optimizers.scaler.get_scale() < scale


def test_compiled_losses_are_the_same_up_to_rounding(tuner, monkeypatch):
    """What `torch.compile` traces is the same pass; making machine code of it takes a minute more."""
    traced = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", traced)
    compiled = Tuner(model(), Rows(), compiled=True)
    np.testing.assert_allclose(compiled.train(RUN), tuner.train(RUN), rtol=2e-3)


def test_sums_have_one_order_only_while_it_is_asked_for():
    """Threads and algorithms of the process are what they were before."""
    torch.set_num_threads(2)
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with determined(torch.device("cpu")):
        assert torch.get_num_threads() == 1
        assert torch.are_deterministic_algorithms_enabled()
    assert before == (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())


def test_tokens_are_those_that_are_learned(tuner):
    """Three texts a batch, two batches a step, three learned tokens a text."""
    assert tuner.tokens(RUN)[0] <= 18
    assert tuner.tokens(RUN)[0] == sum(Stream(Rows(), 24, 7).learned(0, 6))


def test_a_length_at_which_nothing_is_learned_is_refused(tuner):
    """The sentence names the setting."""
    with pytest.raises(Refused, match="sequence_length"):
        tuner.train(replace(RUN, sequence_length=1))


def _worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    np.save(f"{folder}/{rank}.npy", Tuner(model(), Rows()).train(RUN))
    dist.destroy_process_group()


def test_two_processes_share_the_batches_of_a_step(tuner, tmp_path):
    """Together they have the curve that one has."""
    mp.start_processes(_worker, (str(tmp_path),), nprocs=2, start_method="fork")
    mine, other = (np.load(tmp_path / f"{rank}.npy") for rank in (0, 1))
    assert mine.tobytes() == other.tobytes()
    np.testing.assert_allclose(mine, tuner.train(RUN), rtol=2e-3)


def test_a_checkpoint_is_trained_as_it_lies_on_disk(tmp_path):
    """What is loaded and what is kept to go back to are the same weights."""
    from tuning import checkpoint

    gpt, _ = load_gpt(checkpoint(tmp_path), 0)
    kept = [p.detach().clone() for p in gpt.parameters()]
    tuner = Tuner(gpt, Rows())
    tuner.train(replace(RUN, multipliers=(1.0, 1.0)), finish=True)
    tuner._begin(RUN)
    assert all(torch.equal(a, b) for a, b in zip(gpt.parameters(), kept, strict=True))
