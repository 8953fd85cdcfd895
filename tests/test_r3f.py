"""R3F: the answers stay under noise on what goes in."""

from types import SimpleNamespace

import pytest
import tiny
import torch
from test_lwf import batch
from torch.nn import functional as F

from hf_sft import R3F
from hf_sft.embeddings import Taps
from hf_sft.penalties.r3f import untracked


def loss(model, inputs, **settings):
    taps = Taps(model)
    taps.outputs = model(**inputs)
    found = R3F(**settings).loss(model, None, inputs, taps)
    taps.remove()
    return found


def test_texts_by_hand():
    """The same noise on the looked-up embeddings, given as inputs_embeds."""
    model, inputs = tiny.bert(), batch("bert")
    torch.manual_seed(5)
    found = loss(model, inputs, eps=0.3)
    torch.manual_seed(5)
    x = model.bert.embeddings.word_embeddings(inputs["input_ids"])
    z = torch.empty_like(x).uniform_(-0.3, 0.3)
    mask = inputs["attention_mask"]
    noisy = model(inputs_embeds=x + z, attention_mask=mask).logits.log_softmax(-1)
    clean = model(**inputs).logits.log_softmax(-1)
    both = F.kl_div(noisy, clean, log_target=True, reduction="batchmean") + F.kl_div(
        clean, noisy, log_target=True, reduction="batchmean"
    )
    assert found.item() == pytest.approx(both.item(), rel=1e-3)
    ours = torch.autograd.grad(found, list(model.parameters()), allow_unused=True)
    theirs = torch.autograd.grad(both, list(model.parameters()), allow_unused=True)
    for (name, _), mine, other in zip(model.named_parameters(), ours, theirs, strict=True):
        assert (mine is None) is (other is None), name
        if mine is not None:  # through both branches
            assert torch.allclose(mine, other, rtol=1e-2, atol=1e-6), name


@pytest.mark.parametrize("kind", ["vit", "convnext"])
def test_images_by_hand(kind):
    model, inputs = tiny.KINDS[kind][0](), batch(kind)
    torch.manual_seed(5)
    found = loss(model, inputs, eps=0.3, noise="normal")
    torch.manual_seed(5)
    z = torch.empty_like(inputs["pixel_values"]).normal_(0, 0.3)
    clean, noisy = (model(pixel_values=inputs["pixel_values"] + move).logits for move in (0, z))
    apart = (clean.softmax(-1) - noisy.softmax(-1)) * (
        clean.log_softmax(-1) - noisy.log_softmax(-1)
    )
    assert found.item() == pytest.approx(apart.sum(-1).mean().item(), rel=1e-4)


def test_numbers_are_compared_by_their_squares():
    model, inputs = tiny.bert(), batch("bert")
    model.config.problem_type = "regression"
    inputs["labels"] = torch.randn(6, 3)
    torch.manual_seed(5)
    found = loss(model, inputs, eps=0.3)
    torch.manual_seed(5)
    x = model.bert.embeddings.word_embeddings(inputs["input_ids"])
    noisy = model(inputs_embeds=x + torch.empty_like(x).uniform_(-0.3, 0.3)).logits
    assert found.item() == pytest.approx(F.mse_loss(noisy, model(**inputs).logits).item(), rel=1e-4)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5", "vit", "resnet"])
def test_less_noise_is_less_and_the_model_is_left_as_it_was(kind):
    """Quadratic in ε; hooks, statistics and modes stay."""
    model, inputs = tiny.KINDS[kind][0]().double(), batch(kind)
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    model.eval() if kind == "resnet" else model.train()
    found = []
    for eps in (1e-2, 1e-3):
        torch.manual_seed(5)
        found.append(loss(model, inputs, eps=eps).item())
    assert found[0] > 0
    assert found[0] / found[1] == pytest.approx(100, rel=0.15)
    assert not any(module._forward_hooks for module in model.modules())


def test_batch_statistics_move_once(tmp_path):
    model, inputs = tiny.resnet().train(), batch("resnet")
    other = tiny.resnet().train()
    other(**inputs)
    loss(model, inputs, eps=0.5)
    assert tiny.different(dict(model.named_buffers()), dict(other.named_buffers())) == []
    with pytest.raises(RuntimeError), untracked(model):
        raise RuntimeError
    assert all(m.track_running_stats for m in model.modules() if hasattr(m, "running_mean"))


def test_what_was_seen_of_the_clean_pass_stays():
    model, inputs = tiny.bert(), batch("bert")
    taps = Taps(model, embeddings=True, layers=["bert.encoder.layer.0"])
    taps.outputs = model(**inputs)
    clean = taps.embeddings(inputs), taps.maps["bert.encoder.layer.0"]
    R3F(eps=1.0).loss(model, None, inputs, taps)
    assert taps.maps["bert.encoder.layer.0"] is clean[1]
    assert torch.equal(taps.embeddings(inputs), clean[0])


def test_the_noise_is_torchs():
    prior, x = R3F(eps=0.5), torch.zeros(20000)
    z = prior.blur(x)
    assert z.abs().max() <= 0.5
    assert z.std().item() == pytest.approx(0.5 / 3**0.5, rel=0.02)
    z = R3F(eps=0.5, noise="normal").blur(x)
    assert z.std().item() == pytest.approx(0.5, rel=0.02)
    assert SimpleNamespace(z=z).z.mean().abs() < 0.02
