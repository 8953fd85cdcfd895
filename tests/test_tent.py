"""TENT: entropy falls, and γ and β of the norm layers are all that moves."""

import math

import pytest
import tiny
import torch
from torch import nn

from hf_sft.errors import UserError
from hf_sft.weights.tent import affine_parameters, entropy, mean_entropy, tent_


def batches(kind, count=3):
    torch.manual_seed(1)
    if kind == "bert":
        words = [torch.randint(2, tiny.WORDS, (8, tiny.LENGTH)) for _ in range(count)]
        return [{"input_ids": w, "attention_mask": torch.ones_like(w)} for w in words]
    return [{"pixel_values": torch.randn(8, 3, tiny.PIXELS, tiny.PIXELS)} for _ in range(count)]


KINDS = ("bert", "vit", "convnext", "resnet")


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_norms_parameters_move(kind):
    model = tiny.KINDS[kind][0](dropout=0.5).train()
    frozen = next(iter(affine_parameters(model).values())).requires_grad_(False)
    given = batches(kind)
    before, drawn = tiny.weights(model), torch.get_rng_state()
    tent_(model, given, learning_rate=1e-2)
    assert set(tiny.different(before, tiny.weights(model))) == set(affine_parameters(model))
    assert all(module.training for module in model.modules())
    assert torch.equal(drawn, torch.get_rng_state())  # no dropout was drawn
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [p for p in model.parameters() if not p.requires_grad] == [frozen]


@pytest.mark.parametrize("kind", KINDS)
def test_entropy_falls(kind):
    model = tiny.KINDS[kind][0]().eval()
    for name, parameter in model.named_parameters():  # a random head is sure of nothing
        if name.endswith(("classifier.weight", "fc.weight")):
            parameter.data *= 40
    seen = tent_(model, batches(kind), learning_rate=1e-2, passes=8)
    assert len(seen) == 24
    assert sum(seen[-3:]) < 0.95 * sum(seen[:3])


def test_entropy_is_the_formula():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1000.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, -1.0]])
    p = logits[2].softmax(-1)
    wanted = torch.tensor([math.log(4), 0.0, float(-(p * p.log()).sum())])
    torch.testing.assert_close(entropy(logits), wanted)


def test_mean_entropy_weighs_rows_not_batches():
    model = tiny.bert().eval()
    rows = batches("bert", 1)[0]
    uneven = [{k: v[:1] for k, v in rows.items()}, {k: v[1:] for k, v in rows.items()}]
    assert mean_entropy(model, uneven) == pytest.approx(mean_entropy(model, [rows]), abs=1e-6)


def test_a_model_without_norms_and_no_batch_are_told():
    with pytest.raises(UserError, match="no norm layer"):
        tent_(nn.Linear(2, 2), [{"x": torch.zeros(1, 2)}])
    with pytest.raises(UserError, match="no batch"):
        tent_(tiny.bert(), [])
