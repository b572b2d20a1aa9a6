"""The optimizers against numbers of the reference, and against each other."""

import json
import os
from functools import cache

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from nanochat.adamw import AdamW, DistAdamW
from nanochat.gpt import GPT, GPTConfig
from nanochat.muon import DistMuon, Muon, zeropower_via_newtonschulz5
from nanochat_golden import batch, golden, golden_model, relative, tensors, worst

SHAPES = ["16x48", "48x16", "32x32"]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", ["mha", "gqa"])
@pytest.mark.parametrize("shape", SHAPES)
def test_newton_schulz_is_the_references_bit_for_bit(name, shape):
    """The order of the bfloat16 products is the reference's."""
    numbers = golden(name)
    ours = zeropower_via_newtonschulz5(torch.from_numpy(numbers[f"ns_in_{shape}"]))
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours.float(), torch.from_numpy(numbers[f"ns_out_{shape}"]))
    values = torch.linalg.svdvals(ours.float())
    assert 0.6 < values.min() < values.max() < 1.25


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9 has no Muon")
def test_muon_of_torch_gives_other_numbers():
    """Why there is a Muon here: torch's own is further off than the tolerance of the golden run."""
    gradient = torch.from_numpy(golden("mha")["ns_in_16x48"])
    start = torch.zeros_like(gradient)
    moved = []
    for kind, options in ((Muon, {}), (torch.optim.Muon, {"weight_decay": 0.0})):
        p = torch.nn.Parameter(start.clone())
        p.grad = gradient.clone()
        kind([p], lr=1.0, momentum=0.95, **options).step()
        moved.append(p.detach())
    assert 1e-3 < relative(moved[1], moved[0]) < 0.1


def test_five_steps_are_the_references():
    """Losses before each step and the weights after the fifth."""
    numbers = golden("mha")
    model, (idx, targets) = golden_model(numbers), batch(numbers)
    optimizers = model.setup_optimizers(**json.loads(str(numbers["optim_lrs"])))
    losses = []
    for _ in range(5):
        loss = model(idx, targets)
        losses.append(loss.item())
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()
    assert worst(losses, numbers["five_step_losses"]) <= 1e-4
    for key, weight in tensors(numbers, "w5").items():
        assert relative(model.state_dict()[key], weight) <= 5e-3, key
        moved = weight - tensors(numbers, "w")[key]
        assert relative(model.state_dict()[key] - tensors(numbers, "w")[key], moved) <= 2e-2, key


def sft_rows(numbers: dict) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Token ids and supervision masks of the rows of the fine-tuning run."""
    cuts = np.cumsum(numbers["sft_lengths"])[:-1]
    ids, masks = (np.split(numbers[name], cuts) for name in ("sft_ids", "sft_mask"))
    return [(torch.from_numpy(i), torch.from_numpy(m)) for i, m in zip(ids, masks, strict=True)]


def padded(rows: list, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets of a batch, as wide as its longest row less one."""
    width = max(len(ids) for ids, _ in rows) - 1
    inputs = torch.full((len(rows), width), pad)
    targets = torch.full((len(rows), width), -1)
    for i, (ids, mask) in enumerate(rows):
        inputs[i, : len(ids) - 1] = ids[:-1]
        targets[i, : len(ids) - 1] = ids[1:].masked_fill(mask[1:] == 0, -1)
    return inputs, targets


@pytest.mark.parametrize("supervised_only", [False, True])
def test_fine_tuning_run_is_the_references(supervised_only):
    """Two micro-batches an update, rates that fall to zero, a frozen embedding."""
    numbers = golden("mha")
    model, rows = golden_model(numbers), sft_rows(numbers)
    model.wte.weight.requires_grad_(False)
    optimizers = model.setup_optimizers(0.004, 0.2, 0.02, weight_decay=0.0)
    losses, taken = [], 0
    for update in range(6):
        total = 0.0
        for _ in range(2):
            chosen = [rows[(taken + i) % len(rows)] for i in range(2)]
            taken += 2
            idx, targets = padded(chosen, model.config.vocab_size - 1)
            loss = model(idx, targets, supervised_only=supervised_only)
            (loss / 2).backward()
            total += loss.item() / 2
        losses.append(total)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * 0.02 * (1 - update / 6)
            optimizer.step()
        model.zero_grad()
    assert worst(losses[0], numbers["sft_losses"][0]) <= 1e-6
    assert worst(losses, numbers["sft_losses"]) <= 1e-4
    for key, weight in tensors(numbers, "wsft").items():
        assert relative(model.state_dict()[key], weight) <= 1e-3, key


def test_groups_are_the_references():
    """Table of logits, embedding, and one group of matrices for each number of elements."""
    model = GPT(GPTConfig(16, 70, 2, 2, 2, 48))
    adamw, muon = model.setup_optimizers(0.004, 0.2, 0.02)
    assert (type(adamw), type(muon)) == (AdamW, Muon)
    assert model.lm_head is not None
    assert [group["params"][0] for group in adamw.param_groups] == [
        model.lm_head.weight,
        model.wte.weight,
    ]
    scale = (48 / 768) ** -0.5
    rates = [group["initial_lr"] for group in adamw.param_groups]
    assert rates == pytest.approx([0.004 * scale, 0.2 * scale])
    assert [len(group["params"]) for group in muon.param_groups] == [8, 4]
    assert [group["initial_lr"] for group in muon.param_groups] == [0.02, 0.02]


def test_rates_may_be_tensors():
    """A rate that a graph can change moves the weights as its number does."""
    results = []
    for wrap in (float, torch.tensor):
        numbers = golden("mha")
        model, (idx, targets) = golden_model(numbers), batch(numbers)
        optimizers = model.setup_optimizers(wrap(0.004), wrap(0.2), wrap(0.02))
        for _ in range(2):
            model(idx, targets).backward()
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["initial_lr"] * 0.5
                optimizer.step()
            model.zero_grad()
        results.append(model.state_dict())
    for key, weight in results[0].items():
        assert relative(results[1][key], weight) <= 1e-3, key


@cache
def gradients() -> list[list[torch.Tensor]]:
    """Three steps of gradients for two processes, one row a step and process."""
    generator = torch.Generator().manual_seed(5)
    shapes = [p.shape for p in small().parameters()]
    return [[torch.randn(s, generator=generator) for s in shapes] for _ in range(6)]


def small() -> GPT:
    torch.manual_seed(1)
    model = GPT(GPTConfig(8, 66, 2, 2, 2, 32))
    model.init_weights()
    return model


def three_steps(shares: list[list[int]], rank: int = 0) -> list[torch.Tensor]:
    """Weights after three steps on the mean of each step's share of the gradients."""
    model = small()
    model.blocks[0].mlp.c_fc.weight.requires_grad_(False)
    optimizers = model.setup_optimizers(0.01, 0.1, 0.02, weight_decay=0.1)
    if dist.is_initialized():
        assert [type(o) for o in optimizers] == [DistAdamW, DistMuon]
    for share in shares:
        for i, p in enumerate(model.parameters()):
            p.grad = torch.stack([gradients()[j][i] for j in share]).mean(0)
            if not p.requires_grad:
                p.grad = None
        for optimizer in optimizers:
            optimizer.step()
    return [p.detach() for p in model.parameters()]


def one_of_two(rank: int, folder: str) -> None:
    """What each of two processes does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(three_steps([[2 * step + rank] for step in range(3)]), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_two_processes_equal_one_with_averaged_gradients(tmp_path):
    """Both end with the weights of a single process that was given the means."""
    mp.start_processes(one_of_two, (str(tmp_path),), nprocs=2, start_method="fork")
    alone = three_steps([[2 * step, 2 * step + 1] for step in range(3)])
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for mine, left, right in zip(alone, first, second, strict=True):
        assert torch.equal(left, right)
        assert worst(left, mine) <= 1e-6
