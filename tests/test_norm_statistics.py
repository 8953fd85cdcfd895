"""Batch-norm statistics measured again: exact, and nothing else moves."""

import pytest
import tiny
import torch
from torch import nn

from hf_sft.errors import UserError
from hf_sft.weights.norm_statistics import reestimate_statistics_, statistical_norms


class Takes(nn.Module):
    """``model(x=...)`` over a stack of layers."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)


def batches_of(rows, sizes):
    return [{"x": part} for part in rows.split(sizes)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [[20], [7, 7, 6], [1, 18, 1]])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.SyncBatchNorm])
def test_the_first_norm_gets_the_exact_mean_and_variance(norm, sizes, dtype):
    rows = 5 + 3 * torch.randn(20, 4, 6, 6, dtype=dtype)
    model = Takes(norm(4)).to(dtype)
    reestimate_statistics_(model, batches_of(rows, sizes))
    found = model.layers[0]
    close = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {}
    torch.testing.assert_close(found.running_mean, rows.mean((0, 2, 3)), **close)
    torch.testing.assert_close(found.running_var, rows.var((0, 2, 3)), **close)


def test_a_single_batch_gives_what_training_on_it_would():
    """momentum=1 makes torch's own update the batch's statistics; here with several norms."""
    rows = torch.randn(16, 3, 8, 8, dtype=torch.float64)
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=1.0), nn.ReLU(), nn.Conv2d(4, 5, 3),
              nn.BatchNorm2d(5, momentum=1.0))  # fmt: skip
    model = Takes(*layers).double()
    before = tiny.weights(model)
    model.train()
    model(rows)
    wanted = tiny.weights(model)
    model.load_state_dict(before)
    reestimate_statistics_(model, [{"x": rows}])
    assert tiny.distance(wanted, tiny.weights(model)) < 1e-12


@pytest.mark.parametrize("training", [True, False])
def test_nothing_else_moves(training):
    model = tiny.resnet(dropout=0.5).train(training)
    batch = {"pixel_values": torch.randn(6, 3, tiny.PIXELS, tiny.PIXELS)}
    modes = {name: module.training for name, module in model.named_modules()}
    before, drawn = tiny.weights(model), torch.get_rng_state()
    measured = reestimate_statistics_(model, [batch, batch])
    assert measured == list(statistical_norms(model))
    assert len(measured) > 5
    changed = set(tiny.different(before, tiny.weights(model)))
    ends = ("running_mean", "running_var", "num_batches_tracked")
    assert changed == {f"{name}.{end}" for name in measured for end in ends}
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert torch.equal(drawn, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_timms_norms_with_an_activation_are_found():
    names = {type(module).__name__ for module in statistical_norms(tiny.resnet()).values()}
    assert "BatchNorm2d" in names
    import timm

    model = timm.create_model("test_efficientnet")
    kinds = {type(module).__name__ for module in statistical_norms(model).values()}
    assert kinds == {"BatchNormAct2d"}


def test_measuring_again_on_the_same_data_changes_nothing():
    model = tiny.resnet()
    batches = [{"pixel_values": torch.randn(8, 3, 32, 32), "labels": torch.zeros(8)}] * 3
    reestimate_statistics_(model, batches)
    before = tiny.weights(model)
    reestimate_statistics_(model, batches)
    assert tiny.different(before, tiny.weights(model)) == []


def test_shifted_inputs_are_taken_back():
    """What batch norm adapts to: the answers on inputs of another scale are as they were."""
    model = Takes(nn.BatchNorm1d(4), nn.Linear(4, 2)).double().eval()
    rows = torch.randn(200, 4, dtype=torch.float64)
    reestimate_statistics_(model, [{"x": rows}])
    before = model(rows)
    reestimate_statistics_(model, [{"x": 20 * rows + 7}])
    torch.testing.assert_close(model(20 * rows + 7), before, rtol=1e-4, atol=1e-4)


def test_only_the_named_norms_are_measured():
    model = Takes(nn.BatchNorm1d(4), nn.BatchNorm1d(4))
    assert reestimate_statistics_(model, [{"x": torch.randn(9, 4)}], {"layers.1"}) == ["layers.1"]
    assert torch.equal(model.layers[0].running_mean, torch.zeros(4))
    assert not torch.equal(model.layers[1].running_mean, torch.zeros(4))


def test_a_failure_half_way_leaves_the_model_as_it_was():
    model = Takes(nn.BatchNorm1d(4)).train()
    before = tiny.weights(model)
    broken = [{"x": torch.randn(9, 4)}, {"x": torch.randn(9, 5)}]
    with pytest.raises(RuntimeError):
        reestimate_statistics_(model, broken)
    assert tiny.different(before, tiny.weights(model)) == []
    assert model.layers[0].training


def test_no_batch_norm_and_no_batch_are_told():
    with pytest.raises(UserError, match="no batch norm"):
        reestimate_statistics_(tiny.vit(), tiny.images(2))
    with pytest.raises(UserError, match="no batch was given"):
        reestimate_statistics_(Takes(nn.BatchNorm1d(4)), [])
    without = Takes(nn.BatchNorm1d(4, track_running_stats=False))
    with pytest.raises(UserError, match="no batch norm"):
        reestimate_statistics_(without, [{"x": torch.randn(9, 4)}])
