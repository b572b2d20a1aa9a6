"""Five steps of each optimizer against its formula, written out in float64."""

import pytest
import torch
import torch.distributed as dist
from nanochat.adamw import AdamW, DistAdamW
from nanochat.muon import DistMuon, Muon, zeropower_via_newtonschulz5
from nanochat_golden import golden, tensors

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 5
BETAS, EPS = (0.8, 0.95), 1e-10
TABLES = ["lm_head.weight", "transformer.wte.weight"]
MATRICES = [f"transformer.h.1.{name}.weight" for name in ("attn.c_q", "mlp.c_fc", "mlp.c_proj")]
SIZES = [1e-3, 1e-10]


@pytest.fixture(params=["alone", "together"])
def together(request):
    """Whether the optimizers are those of processes that train together; here one trains."""
    if request.param == "alone":
        yield False
        return
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield True
    dist.destroy_process_group()


def gradients(key: str, size: float, dtype: torch.dtype) -> list[torch.Tensor]:
    """The golden gradient at a root mean square of `size`, differently shifted in each step."""
    gradient = tensors(golden("mha"), "grad")[key]
    gradient = gradient * (size / gradient.square().mean().sqrt())
    return [gradient.roll(7 * step).to(dtype) for step in range(STEPS)]


def stepped(optimizer: torch.optim.Optimizer, steps: list[torch.Tensor]) -> torch.Tensor:
    """The one weight of an optimizer after a step on each gradient."""
    (p,) = (p for group in optimizer.param_groups for p in group["params"])
    for gradient in steps:
        p.grad = gradient.clone()
        optimizer.step()
    return p.detach()


def adamw(weight, steps, lr, decay, eps_first=False) -> torch.Tensor:
    """AdamW in float64, what is kept between steps rounded to the type of the weight.

    p <- (1 - lr wd) p - lr mhat / (vhat^1/2 + eps), both hats dividing by 1 - beta^t; with eps
    first, as the reference's processes that train together have it, eps is added to v^1/2.
    """
    p, (b1, b2) = weight.double(), BETAS
    m, v = torch.zeros_like(p), torch.zeros_like(p)
    for t, g in enumerate((gradient.double() for gradient in steps), 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        root = v.sqrt() + EPS if eps_first else v.sqrt() + EPS * (1 - b2**t) ** 0.5
        p = (1 - lr * decay) * p - lr * (1 - b2**t) ** 0.5 / (1 - b1**t) * m / root
        p, m, v = (x.to(weight.dtype).double() for x in (p, m, v))
    return p


def agree(left: torch.Tensor, right: torch.Tensor, size: float = 1.0) -> bool:
    """Within 1e-6 of `size` in float32, within two units of the last place in bfloat16.

    What has cancelled to less than 1e-6 of `size` counts as that much: sums are taken in float32
    before they are rounded to bfloat16.
    """
    apart = (left.double() - right).abs()
    if left.dtype == torch.float32:
        return bool((apart <= 1e-6 * size).all())
    unit = torch.exp2(torch.floor(torch.log2(right.abs().clamp_min(1e-6 * size))) - 7)
    return bool((apart <= 2 * unit).all())


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("key", TABLES)
def test_adamw_adds_eps_after_the_bias_correction(key, dtype, size, decay, together):
    """The formula of torch, alone and together; where eps counts, the other form is far off."""
    weight = tensors(golden("mha"), "w")["lm_head.weight"].to(dtype)
    steps = gradients(key, size, dtype)
    kind = DistAdamW if together else AdamW
    p = torch.nn.Parameter(weight.clone())
    ours = stepped(kind([p], lr=0.02, betas=BETAS, eps=EPS, weight_decay=decay), steps)
    assert ours.dtype == dtype
    assert agree(ours, adamw(weight, steps, 0.02, decay))
    if size == 1e-10:
        assert not agree(ours, adamw(weight, steps, 0.02, decay, eps_first=True))


@pytest.mark.parametrize(("size", "apart"), [(1e-7, 1.0035), (1e-10, 2.736), (1e-13, 4.468)])
def test_how_far_the_two_places_of_eps_are_apart(size, apart, together):
    """Nothing to speak of at gradients of 1e-7; more than a factor of two at 1e-10."""
    steps = [torch.full((4, 4), size)]
    p = torch.nn.Parameter(torch.zeros(4, 4))
    ours = stepped((DistAdamW if together else AdamW)([p], lr=1.0, betas=BETAS, eps=EPS), steps)
    other = adamw(torch.zeros(4, 4), steps, 1.0, 0.0, eps_first=True)
    assert float((ours / other).mean()) == pytest.approx(apart, rel=1e-3)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("key", MATRICES)
def test_muon_follows_its_formula(key, dtype, size, together, monkeypatch):
    """Each running mean, each direction and each weight, from what stood before the step.

    Newton-Schulz is taken as it is, since it has a test of its own, to the bit: one changed bit
    of a direction, as the tie of a rounding brings, changes its bfloat16 result by 3 %.
    """
    seen = []

    def recorded(direction, steps):
        seen.append((direction.clone(), zeropower_via_newtonschulz5(direction, steps)))
        return seen[-1][1]

    monkeypatch.setattr("nanochat.muon.zeropower_via_newtonschulz5", recorded)
    p = torch.nn.Parameter(tensors(golden("mha"), "w")[key].to(dtype))
    optimizer = (DistMuon if together else Muon)([p], lr=0.02, momentum=0.95)
    mean, weight = torch.zeros_like(p).double(), p.detach().double()
    for gradient in gradients(key, size, dtype):
        stepped(optimizer, [gradient])
        ours, (direction, update) = optimizer.state[p]["momentum_buffer"], seen[-1]
        assert {x.dtype for x in (p, ours, direction)} == {dtype}
        g = gradient.double()
        assert agree(ours, mean + 0.05 * (g - mean), size)
        mean = ours.double()
        assert agree(direction, g + 0.95 * (mean - g), size)
        weight = weight - 0.02 * max(1, p.size(0) / p.size(1)) ** 0.5 * update.double()
        weight = weight.to(dtype).double()
    assert len(seen) == STEPS
    assert agree(p.detach(), weight)
