"""DELTA: maps of inner layers are held, channel by channel where their attention is asked for."""

from types import SimpleNamespace

import pytest
import tiny
import torch
from test_function_priors import move_, train
from test_lwf import batch, held
from torch import nn

from hf_sft import DELTA, LayerGroups
from hf_sft.embeddings import Taps, block_modules
from hf_sft.errors import RecipeError, UserError
from hf_sft.penalties.channel_attention import attention, fit_head_
from hf_sft.training.source_function import SourceOutputs


def loss(now, then, inputs=None, studied=None):
    seen = SimpleNamespace(maps=now)
    return DELTA().loss(None, SourceOutputs(maps=then, studied=studied), inputs or {}, seen)


# ---- the formula ----


def test_images_by_hand():
    """½ Σ_j mean over the batch of ‖·‖²/(H·W)."""
    now = {"a": torch.randn(4, 3, 5, 6), "b": torch.randn(4, 2, 2, 2)}
    then = {name: torch.randn_like(value) for name, value in now.items()}
    expected = 0.5 * sum(
        sum((now[n][i] - then[n][i]).norm() ** 2 for i in range(4)) / 4 / now[n][0, 0].numel()
        for n in now
    )
    assert loss(now, then).item() == pytest.approx(expected.item(), rel=1e-5)


def test_texts_by_hand():
    """Only real positions, averaged in every example."""
    now, then = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    squared = (now - then).square().sum(-1)
    expected = 0.5 * ((squared[0, 0] + squared[0, 1]) / 2 + squared[1, 0]) / 2
    found = loss({"a": now}, {"a": then}, {"attention_mask": mask})
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    labels = torch.where(mask.bool(), 1, -100)
    found = loss({"decoder.block.1": now}, {"decoder.block.1": then},
                 {"attention_mask": torch.ones(2, 3), "labels": labels})  # fmt: skip
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_attention_weighs_channels_and_equal_weights_are_none():
    """½ Σ_c C·w_c·‖·_c‖²/(H·W): w = 1/C is the plain form."""
    now, then = {"a": torch.randn(4, 3, 5, 5)}, {"a": torch.randn(4, 3, 5, 5)}
    equal = loss(now, then, studied={"a": torch.full((3,), 1 / 3)})
    assert equal.item() == pytest.approx(loss(now, then).item(), rel=1e-5)
    w = torch.tensor([0.2, 0.5, 0.3])
    squared = (now["a"] - then["a"]).square().mean((2, 3))
    expected = 0.5 * (3 * w * squared).sum(1).mean()
    assert loss(now, then, studied={"a": w}).item() == pytest.approx(expected.item(), rel=1e-5)
    text = {"a": now["a"].flatten(2).mT}, {"a": then["a"].flatten(2).mT}
    assert loss(*text, studied={"a": w}).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_nothing_is_lost_at_the_source(kind, tmp_path):
    trainer = train("delta", tmp_path, kind=kind)
    trainer.model.eval()
    assert held(trainer, DELTA(), batch(kind)) < 1e-10
    move_(trainer.model)
    found = held(trainer, DELTA(), batch(kind))
    assert found > 0
    found.backward()
    head = set(trainer.layer_groups.head.parameters)
    reached = {
        n for n, p in trainer.model.named_parameters() if p.grad is not None and p.grad.any()
    }
    assert reached
    assert not reached & head


def test_padding_does_not_matter(tmp_path):
    trainer = train("delta", tmp_path)
    move_(trainer.model)
    inputs = batch("bert")
    short = {k: v[:, :5] if v.ndim == 2 else v for k, v in inputs.items()}
    long = {k: nn.functional.pad(v, (0, 3)) if v.ndim == 2 else v for k, v in short.items()}
    found = [held(trainer, DELTA(), one).item() for one in (short, long)]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


# ---- the layers ----


@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        ("bert", ["bert.encoder.layer.0", "bert.encoder.layer.1"]),
        ("gpt2", ["transformer.h.0", "transformer.h.1"]),
        ("t5", ["encoder.block.0", "encoder.block.1", "decoder.block.0", "decoder.block.1"]),
        ("vit", ["vit.layers.0", "vit.layers.1"]),
        ("resnet", [f"timm_model.layer{i}.0" for i in (1, 2, 3, 4)]),
    ],
)
def test_blocks_are_the_default(kind, layers):
    model = tiny.KINDS[kind][0]()
    assert block_modules(model, LayerGroups.of(model)) == layers
    assert DELTA().layers(model, LayerGroups.of(model)) == layers


def test_four_blocks_evenly_spaced_with_the_last():
    model = tiny.convnext()
    found = block_modules(model, LayerGroups.of(model))
    assert len(found) == 4
    assert found[-1].startswith("timm_model.stages.3.blocks.")
    assert all("blocks" in name for name in found)


def test_globs_choose_modules_and_idle_ones_are_refused():
    model, groups = tiny.bert(), LayerGroups.of(tiny.bert())
    assert DELTA(layers=["*.layer.?", "*.embeddings"]).layers(model, groups) == [
        "bert.encoder.layer.0", "bert.encoder.layer.1", "bert.embeddings",
    ]  # fmt: skip
    with pytest.raises(RecipeError, match=r"'bert.encoder.layer.9' fits no module. Did you mean"):
        DELTA(layers=["bert.encoder.layer.9"]).layers(model, groups)


def test_a_layer_that_gives_no_tensor_is_told(tmp_path):
    trainer = train("delta", tmp_path, penalty=DELTA(layers=["bert.encoder.layer"]))
    with pytest.raises(UserError, match="takes no tensor out of bert.encoder.layer"):
        trainer.train()


def test_the_settings_are_spelled_as_in_the_recipe():
    assert DELTA(layers=["a"]).describe()["layers"] == ["a"]


# ---- the attention ----


class Two(nn.Module):
    """Channel 0 of ``body`` decides the answer, channel 1 a little, the third nothing."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Identity(), nn.Linear(3, 2, bias=False)
        self.head.weight.data = torch.tensor([[4.0, 0.5, 0.0], [-4.0, -0.5, 0.0]])

    def forward(self, x, labels):
        logits = self.head(self.body(x))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_attention_is_the_softmax_of_standardised_rises():
    model, labels = Two(), torch.tensor([0, 1, 0, 1])
    x = torch.tensor([[1.0, 1, 1], [-1, -1, -1], [1, 1, 1], [-1, -1, -1]])
    parts = [{"x": x[:3], "labels": labels[:3]}, {"x": x[3:], "labels": labels[3:]}]
    found = attention(model, ["body"], parts)["body"]
    rises = []
    for channel in range(3):
        without = x.clone()
        without[:, channel] = 0
        rises.append((model(without, labels)["loss"] - model(x, labels)["loss"]).item())
    rises = torch.tensor(rises)
    expected = ((rises - rises.mean()) / rises.std() / 5).softmax(0)
    assert torch.allclose(found, expected, atol=1e-5)
    assert found[0] > found[1] > found[2]
    assert not model.body._forward_hooks


def test_a_new_head_is_fitted_from_a_start_of_its_own():
    """The attention does not depend on how the head was drawn, and the backbone stays."""
    fresh, inputs, found = {"classifier.weight", "classifier.bias"}, batch("bert", 12), []
    for seed in (1, 2):
        model = tiny.bert().eval()
        torch.manual_seed(seed)
        nn.init.normal_(model.classifier.weight)
        before = tiny.weights(model)
        fit_head_(model, fresh, [inputs])
        after = tiny.weights(model)
        assert set(tiny.different(before, after)) == fresh
        found.append(after)
        assert model(**inputs).loss < 1.09  # below log 3: it has learned
    assert tiny.different(*found) == []


def test_attention_is_found_at_the_source_once_and_leaves_no_trace(tmp_path):
    prior = DELTA(attention=True, examples=4, layers=["*.layer.1"], weight=0.1)
    trainer = train("delta", tmp_path, penalty=prior)
    trainer.train()
    first = trainer.source_pass.studied[0]
    assert first.keys() == {"bert.encoder.layer.1"}
    assert first["bert.encoder.layer.1"].sum().item() == pytest.approx(1)
    moved = tiny.weights(trainer.model)
    trainer.source_pass.studied.clear()
    trainer.source_pass.prepare(trainer)  # the model has moved, θ⁰ has not
    again = trainer.source_pass.studied[0]
    assert torch.equal(first["bert.encoder.layer.1"], again["bert.encoder.layer.1"])
    assert tiny.different(moved, tiny.weights(trainer.model)) == []
    taps = Taps(trainer.model, layers=["bert.encoder.layer.1"])
    trainer.model(**batch("bert"))
    assert taps.maps
