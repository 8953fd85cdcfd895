"""Similarity: the geometry of the batch is held, and nothing else."""

from types import SimpleNamespace

import pytest
import tiny
import torch
from test_lwf import batch

from hf_sft import Similarity
from hf_sft.embeddings import Taps, body, embed, pool
from hf_sft.errors import UserError
from hf_sft.training.source_function import SourceOutputs


def loss(now, then):
    seen = SimpleNamespace(embeddings=lambda inputs: now)
    return Similarity().loss(None, SourceOutputs(embeddings=then), {}, seen)


def test_by_hand():
    """Three embeddings: cosines 0, 1, 0 under θ⁰ and 0, 0, 1 now; the mean over six pairs i ≠ k."""
    then = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    now = torch.tensor([[1.0, 0.0], [0.0, 5.0], [0.0, 0.5]])
    assert loss(now, then).item() == pytest.approx((2 * 1 + 2 * 1) / 6)


def test_nothing_is_lost_at_the_source_or_under_a_rotation_or_scaling():
    then = torch.randn(8, 5)
    rotation = torch.linalg.qr(torch.randn(5, 5))[0]
    assert loss(then, then) < 1e-12
    assert loss(3 * then @ rotation, then) < 1e-12
    assert loss(torch.randn(8, 5), then) > 1e-2


def test_the_order_of_the_batch_does_not_matter():
    now, then, order = torch.randn(8, 5), torch.randn(8, 5), torch.randperm(8)
    assert loss(now, then).item() == pytest.approx(loss(now[order], then[order]).item(), rel=1e-5)


def test_one_example_has_no_pairs():
    now = torch.randn(1, 5, requires_grad=True)
    found = loss(now, torch.randn(1, 5))
    found.backward()
    assert found == 0
    assert not now.grad.any()


# ---- the embeddings ----


@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5"])
def test_padding_does_not_matter(kind):
    model = tiny.KINDS[kind][0]().eval()
    short = {k: v[:, :5] for k, v in batch(kind).items() if k == "input_ids"}
    short["attention_mask"] = torch.ones(6, 5, dtype=torch.long)
    long = {k: torch.nn.functional.pad(v, (0, 3)) for k, v in short.items()}
    extra = {"decoder_input_ids": torch.zeros(6, 2, dtype=torch.long)} if kind == "t5" else {}
    assert torch.allclose(
        embed(model, {**short, **extra}), embed(model, {**long, **extra}), atol=1e-6
    )


@pytest.mark.parametrize("kind", ["resnet", "convnext", "vit"])
def test_images_have_pooled_features(kind):
    model = tiny.KINDS[kind][0]().eval()
    inputs = {"pixel_values": torch.stack([r["pixel_values"] for r in tiny.images(3)])}
    found = embed(model, inputs)
    assert found.shape == (3, 16)
    if kind != "vit":
        head = model.timm_model.get_classifier()
        assert torch.allclose(head(found), model(**inputs).logits, atol=1e-6)


def test_maps_are_averaged_over_height_and_width():
    hidden = torch.randn(2, 3, 4, 5)
    assert torch.allclose(pool(hidden, None), hidden.flatten(2).mean(-1))


def test_a_model_without_a_body_is_refused():
    with pytest.raises(UserError, match="no body below its head"):
        body(torch.nn.Linear(2, 2))


def test_the_gradient_reaches_the_model_through_the_taps():
    model, inputs = tiny.bert(), batch("bert")
    taps = Taps(model, embeddings=True)
    model(**inputs)
    then = SourceOutputs(embeddings=torch.randn(6, 16))
    Similarity().loss(model, then, inputs, taps).backward()
    assert model.bert.embeddings.word_embeddings.weight.grad.any()
    assert model.classifier.weight.grad is None
