"""Parameters, operations and memory of a shape, printed without making the model."""

import pytest
import torch
from nanochat import cli
from nanochat.footprint import GIB, activation_bytes, footprint
from nanochat.gpt import GPT, GPTConfig
from scripts import model_size
from scripts.model_size import Config

ISSUE = ["--depth", "4", "--model_dim", "512", "--head_dim", "64", "--vocab_size", "24576"]


@pytest.mark.parametrize(("more", "params"), [([], 37_748_736), (["--tie_embeddings"], 25_165_824)])
def test_table_of_parameters(more, params, capsys):
    """Parts, their shares and the total; a tied table is counted once."""
    figures = model_size.main(cli.config_from(Config, ISSUE + more))
    assert figures["parameters"] == sum(figures["parts"].values()) == params
    out = capsys.readouterr().out
    assert f"{params:,}" in out
    assert "100.0%" in out
    assert "8 heads of 64" in out
    assert ("unembedding" in figures["parts"]) == (not more)


def test_operations_are_those_of_the_model(capsys):
    """The published number of depth 20."""
    assert model_size.main(Config())["flops_per_token"] == 3_491_758_080
    assert "3,491,758,080" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [4, 2])
def test_activations_are_what_torch_saves(dtype, heads):
    """Counted from the shape, and measured by catching every tensor that is kept, to 2 %."""
    config = GPTConfig(256, 256, 3, 4, heads, 128)
    model, saved = GPT(config), {}
    model.set_compute_dtype(dtype)
    kept = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def catch(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    idx = torch.zeros(3, 80, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(catch, lambda t: t):
        x = model._residual(idx, None)
    tables = {t.untyped_storage().data_ptr() for t in (model.cos, model.sin)}
    weights = {p.shape for p in model.parameters()} | {p.T.shape for p in model.parameters()}
    found = sum(
        t.untyped_storage().nbytes()
        for place, t in saved.items()
        if place not in kept | tables and t.shape not in weights and t.shape[-2:] != (1, 16)
    )
    found += 0 if x.data_ptr() in saved else x.untyped_storage().nbytes()
    assert found / (3 * 80) == pytest.approx(activation_bytes(config, dtype), rel=0.02)


def test_memory_grows_with_the_batch_and_the_largest_one_just_fits():
    """One more row would not."""
    need = footprint(GPTConfig.from_depth(20), torch.bfloat16)
    card = 80 * GIB
    rows = need.largest_batch(card)
    assert rows > 0
    assert need.total(rows, runtime=True) <= card < need.total(rows + 1, runtime=True)
    assert need.total(rows) < need.total(rows, runtime=True)
    assert need.largest_batch(1 * GIB) == 0


def test_states_are_counted_from_the_optimizers():
    """Weights and moments as they are after a step."""
    config = GPTConfig(8, 64, 2, 2, 2, 32)
    model = GPT(config)
    optimizers = model.setup_optimizers()
    model(torch.zeros(1, 8, dtype=torch.long), torch.zeros(1, 8, dtype=torch.long)).backward()
    for optimizer in optimizers:
        optimizer.step()
    need = footprint(config, torch.float32)
    moments = [
        value.nbytes
        for optimizer in optimizers
        for state in optimizer.state.values()
        for value in state.values()
        if value.numel() > 1
    ]
    assert need.optimizer == sum(moments)
    assert need.weights == need.gradients == sum(p.nbytes for p in model.parameters())
    assert need.casts == 0


def test_what_does_not_exist_is_refused(capsys):
    """One sentence and exit code 2."""
    assert cli.run(model_size.main, Config, ["--depth=5"]) == 2
    assert cli.run(model_size.main, Config, ["--dtype=int8"]) == 2
    assert capsys.readouterr().err.count("\n") == 2
