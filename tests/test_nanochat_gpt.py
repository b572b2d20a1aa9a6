"""The model against numbers of the reference, and its own dtype policy."""

import math

import pytest
import torch
import torch.nn.functional as F
from nanochat import gpt
from nanochat.common import Refused
from nanochat.gpt import GPT, GPTConfig
from nanochat_golden import alive, batch, golden, golden_model, relative, tensors, worst
from torch.nn.attention import SDPBackend, sdpa_kernel

NAMES = ["mha", "gqa"]
PUBLISHED = {  # depth: parameters, operations per token at 2048 positions, iterations
    4: (36_700_160, 144_703_488, 1_400),
    12: (185_597_952, 1_038_090_240, 7_080),
    20: (560_988_160, 3_491_758_080, 21_400),
    26: (1_081_999_360, 6_900_940_800, 41_275),
    32: (1_879_048_192, 12_079_595_520, 71_680),
    34: (2_217_082_880, 14_265_090_048, 84_575),
}


pytestmark = pytest.mark.usefixtures("one_thread")


def tiny(**changes) -> GPT:
    shape = {"sequence_len": 16, "vocab_size": 70, "n_layer": 2, "n_head": 2, "n_kv_head": 1}
    return alive(GPT(GPTConfig(**shape | {"n_embd": 32} | changes)))


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_losses_are_the_references(name):
    """The same weights and tokens give the same float32 numbers."""
    numbers = golden(name)
    model, (idx, targets) = golden_model(numbers), batch(numbers)
    assert worst(model(idx), numbers["logits_fp32"]) <= 1e-5
    assert worst(model(idx, targets), numbers["loss_fp32"]) <= 1e-6
    positions = model(idx, targets, loss_reduction="none")
    assert worst(positions, numbers["loss_per_position_fp32"]) <= 2e-6
    assert model.estimate_flops() == int(numbers["flops_per_token"])


def test_gradients_are_the_references():
    """Backward gives the same float32 gradients."""
    numbers = golden("mha")
    model = golden_model(numbers)
    model(*batch(numbers)).backward()
    for key, gradient in tensors(numbers, "grad").items():
        assert relative(model.get_parameter(key).grad, gradient) <= 1e-5, key


def bf16_logits(numbers: dict) -> torch.Tensor:
    """What the bfloat16 policy gives, by the attention kernel that the golden numbers used.

    Grouped heads went through torch's plain kernel there; kernels differ by some 0.4 %.
    """
    grouped = golden_model(numbers).config.n_kv_head != golden_model(numbers).config.n_head
    model = golden_model(numbers)
    model.set_compute_dtype(torch.bfloat16)
    kernels = [SDPBackend.MATH] if grouped else [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    with torch.no_grad(), sdpa_kernel(kernels):
        return model(batch(numbers)[0])


@pytest.mark.parametrize("name", NAMES)
def test_bf16_policy_is_the_references_and_not_its_fp32_norm_variant(name, monkeypatch):
    """Norms return bfloat16: a residual stream in float32 is told apart by its logits."""
    numbers = golden(name)
    assert relative(bf16_logits(numbers), numbers["logits_bf16"]) <= 2e-3

    def norm_in_fp32(x):
        return F.rms_norm(x.float(), (x.size(-1),), eps=gpt.NORM_EPS)

    monkeypatch.setattr(gpt, "norm", norm_in_fp32)
    assert relative(bf16_logits(numbers), numbers["logits_bf16"]) >= 4e-3


def test_residual_stream_has_the_dtype_of_the_table():
    """Every block takes and returns bfloat16 exactly when the embedding table is; so with the others."""
    model, seen = tiny(), []
    for block in model.blocks:
        block.register_forward_hook(lambda _m, args, out: seen.extend([args[0].dtype, out.dtype]))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model.set_compute_dtype(dtype)
        seen.clear()
        assert model(torch.zeros(1, 4, dtype=torch.long)).dtype == torch.float32
        assert set(seen) == {dtype}
    assert {p.dtype for p in model.blocks[0].parameters()} == {torch.float32}
    with pytest.raises(Refused, match="bfloat16 or float16"):
        model.set_compute_dtype(torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(dtype):
    """The policy is the model's own, also inside another's autocast."""
    model, idx = tiny(), torch.arange(12).view(2, 6)
    model.set_compute_dtype(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        inside = model(idx)
    assert torch.equal(inside, model(idx))


def test_whole_model_can_be_cast_to_fp32_and_back():
    """`float()` reaches the rotary tables too; their values are bfloat16 all the same."""
    model, idx = tiny(), torch.arange(12).view(2, 6)
    before = model(idx)
    assert torch.equal(model.float()(idx), before)


def test_norm_uses_the_fp32_epsilon_in_both_dtypes():
    """A bfloat16 input of small variance is not damped by bfloat16's epsilon."""
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(0)) * 0.01
    exact = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + 2**-23).sqrt()
    assert relative(gpt.norm(x), exact) < 1e-6
    assert relative(gpt.norm(x.bfloat16()), exact) < 5e-3
    assert gpt.norm(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_loss_over_supervised_positions_is_the_same(reduction, monkeypatch):
    """Leaving out what is not supervised changes neither the value nor the gradients."""
    monkeypatch.setattr(gpt, "ROWS_AT_ONCE", 5)
    model = tiny()
    generator = torch.Generator().manual_seed(1)
    idx = torch.randint(70, (3, 12), generator=generator)
    targets = idx.roll(-1, 1).masked_fill(torch.rand(3, 12, generator=generator) < 0.4, -1)
    results = []
    for supervised_only in (False, True):
        model.zero_grad()
        loss = model(idx, targets, loss_reduction=reduction, supervised_only=supervised_only)
        loss.sum().backward()
        results.append((loss, [p.grad.clone() for p in model.parameters()]))
    assert worst(results[0][0], results[1][0]) <= 1e-6
    for full, sparse in zip(results[0][1], results[1][1], strict=True):
        assert worst(full, sparse) <= 1e-5


def test_loss_over_supervised_positions_never_holds_all_logits(monkeypatch):
    """No tensor of it has a row for each position and a column for each token."""
    monkeypatch.setattr(gpt, "ROWS_AT_ONCE", 5)
    model, rows = tiny(), []
    logits_of = model._logits
    monkeypatch.setattr(model, "_logits", lambda x: rows.append(x.size(0)) or logits_of(x))
    idx = torch.arange(48).view(3, 16)
    model(idx, idx, supervised_only=True)
    assert max(rows) == 5
    assert sum(rows) == 48


def test_loss_without_a_supervised_position_is_nan():
    """As in the reference; both forms agree."""
    model, idx = tiny(), torch.zeros(1, 4, dtype=torch.long)
    nothing = torch.full_like(idx, -1)
    assert model(idx, nothing).isnan()
    assert model(idx, nothing, supervised_only=True).isnan()


class Cache:
    """The least that a key-value cache must be."""

    def __init__(self, layers: int):
        self.pairs, self.pos = [None] * layers, 0

    def get_pos(self) -> int:
        return self.pos

    def insert_kv(self, layer, k, v):
        if self.pairs[layer] is not None:
            k, v = (torch.cat(both, 2) for both in zip(self.pairs[layer], (k, v), strict=True))
        self.pairs[layer] = (k, v)
        if layer == len(self.pairs) - 1:
            self.pos = k.size(2)
        return k, v


def test_cached_attention_equals_the_full_forward():
    """Prefill, a chunk over a prefix and single steps give the logits of one pass."""
    model, idx = tiny(), torch.arange(11).view(1, 11)
    cache, full = Cache(2), model(idx)
    parts = [model(part, kv_cache=cache) for part in idx.split([4, 5, 1, 1], dim=1)]
    assert worst(torch.cat(parts, 1), full) <= 1e-5


def test_fresh_model_predicts_every_token_alike():
    """The first loss is ln V, and the first gradient reaches only the logits' table."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(16, 70, 2, 2, 2, 32))
    model.init_weights()
    idx = torch.arange(12).view(2, 6)
    loss = model(idx, idx)
    assert loss.item() == pytest.approx(math.log(70), abs=1e-5)
    loss.backward()
    moved = {name for name, p in model.named_parameters() if p.grad.abs().max() > 0}
    assert moved == {"lm_head.weight"}


def test_fresh_weights_are_drawn_in_the_order_of_the_state_dict():
    """One seed gives the reference's weights: what is later zeroed is drawn all the same."""
    model = GPT(GPTConfig(16, 70, 1, 2, 2, 32))
    torch.manual_seed(3)
    model.init_weights()
    torch.manual_seed(3)
    for key, weight in model.state_dict().items():
        rows, cols = weight.shape
        std = 1.0 if "wte" in key else cols**-0.5 * min(1.0, (rows / cols) ** 0.5)
        drawn = torch.empty_like(weight).normal_(0, std)
        zeroed = "c_proj" in key or "lm_head" in key
        assert torch.equal(weight, torch.zeros_like(weight) if zeroed else drawn), key


@pytest.mark.parametrize("depth", PUBLISHED)
def test_sizes_are_the_published_ones(depth):
    """Parameters and operations per token of the reference's depths."""
    with torch.device("meta"):
        model = GPT(GPTConfig.from_depth(depth))
    params, flops, _ = PUBLISHED[depth]
    assert sum(p.numel() for p in model.parameters()) == params
    assert sum(model.num_params().values()) == params
    assert model.estimate_flops() == flops


@pytest.mark.parametrize(("tied", "params"), [(False, 37_748_736), (True, 25_165_824)])
def test_overrides_of_the_depth_formula(tied, params):
    """Width, heads and tied tables can be chosen apart from the depth."""
    config = GPTConfig.from_depth(
        4, vocab_size=24_576, model_dim=512, head_dim=64, tie_embeddings=tied
    )
    assert (config.n_head, config.head_dim) == (8, 64)
    with torch.device("meta"):
        model = GPT(config)
    assert sum(p.numel() for p in model.parameters()) == params


def test_tied_table_is_one_parameter_that_learns():
    """Its gradient comes from both uses, and it starts near the loss of guessing."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(16, 70, 1, 2, 2, 32, tie_embeddings=True))
    model.init_weights()
    idx = torch.arange(12).view(2, 6)
    loss = model(idx, idx.roll(-1, 1))
    assert loss.item() == pytest.approx(math.log(70), abs=0.3)
    assert [key for key in model.state_dict() if "wte" in key or "lm_head" in key] == [
        "transformer.wte.weight"
    ]
    first = loss.item()
    optimizers = model.setup_optimizers(unembedding_lr=0.01)
    for _ in range(10):
        loss = model(idx, idx.roll(-1, 1))
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()
    assert loss.item() < first


@pytest.mark.parametrize(
    ("ask", "why"),
    [
        (lambda: GPTConfig.from_depth(5), "3 heads do not share a width of 320"),
        (lambda: GPTConfig.from_depth(4, head_dim=96), "heads of 96"),
        (lambda: GPTConfig(n_head=6, n_kv_head=4), "4 key-value heads"),
        (lambda: GPTConfig(n_layer=0), "at least 1"),
        (lambda: tiny()(torch.zeros(1, 161, dtype=torch.long)), "161 positions"),
    ],
)
def test_impossible_shapes_are_refused(ask, why):
    """One sentence says what does not fit."""
    with pytest.raises(Refused, match=why):
        ask()


def test_generation_without_a_cache_is_seeded_and_greedy_at_zero():
    """The same seed gives the same text; temperature 0 takes the likeliest token."""
    model = tiny()
    sampled = [list(model.generate([1, 2], 5, top_k=10)) for _ in range(2)]
    assert sampled[0] == sampled[1]
    greedy = list(model.generate([1, 2], 2, temperature=0))
    assert greedy[0] == int(model(torch.tensor([[1, 2]]))[0, -1].argmax())
    assert len(greedy) == 2
