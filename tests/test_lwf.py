"""LwF: the source's own head goes on giving its answers."""

import pytest
import tiny
import torch
from test_function_priors import HEAD, move_, source_of, train
from torch.nn import functional as F

from hf_sft import LwF, TransferTrainer
from hf_sft.errors import UserError
from hf_sft.penalties.answers import logits_of


def batch(kind, count=6):
    rows = tiny.KINDS[kind][1](count)
    return {
        k: torch.stack([r[k] for r in rows])
        if torch.is_tensor(rows[0][k])
        else torch.tensor([r[k] for r in rows])
        for k in rows[0]
    }


def held(trainer, prior, inputs):
    """The prior's own loss on a batch, through what the trainer set up."""
    trainer.source_pass.taps.outputs = trainer.model(**inputs)
    then = trainer.source_pass._for(0, trainer.source_pass.function(inputs))
    return prior.loss(trainer.model, then, inputs, trainer.source_pass.taps)


@pytest.mark.parametrize("kind", ["bert", "bert-tokens", "gpt2", "t5", "vit", "convnext"])
@pytest.mark.parametrize("distance", ["kl", "mse"])
def test_nothing_is_lost_at_the_source(kind, distance, tmp_path):
    prior = LwF(distance=distance)
    trainer = train("lwf", tmp_path, kind=kind, penalty=prior)
    trainer.model.eval()
    assert held(trainer, prior, batch(kind)).abs() < 1e-6
    move_(trainer.model, 0.3)
    assert held(trainer, prior, batch(kind)) > 1e-6


def test_the_formula_with_the_models_own_head(tmp_path):
    """τ²·batch mean of KL(softmax(z⁰/τ) ‖ softmax(z/τ)), as torch has it."""
    prior, inputs = LwF(tau=3.0), batch("bert")
    trainer = train("lwf", tmp_path, penalty=prior)
    move_(trainer.model, 0.3)
    now, then = trainer.model(**inputs).logits / 3, tiny.bert()(**inputs).logits / 3
    expected = 9 * F.kl_div(now.log_softmax(-1), then.softmax(-1), reduction="batchmean")
    assert held(trainer, prior, inputs).item() == pytest.approx(expected.item(), rel=1e-5)
    squared = held(trainer, LwF(distance="mse"), inputs).item()
    assert squared == pytest.approx(9 * F.mse_loss(now, then).item(), rel=1e-5)


def test_the_head_that_was_replaced_is_asked_on_the_moved_backbone(tmp_path):
    """Through source=: equal to the source with the model's backbone copied into it."""
    prior, inputs = LwF(), batch("bert")
    trainer = train("lwf-own-head", tmp_path, penalty=prior, dropout=0.3)
    function = trainer.source_pass.function
    there = function.through_head(trainer.model, inputs)
    assert there.shape == (6, 5)
    assert torch.equal(there, function(inputs).logits)
    assert held(trainer, prior, inputs).abs() < 1e-6
    move_(trainer.model, 0.3)
    moved = source_of("lwf-own-head")["source"]
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if name not in HEAD:
                moved.get_parameter(name).copy_(parameter)
    moved.eval()
    expected = F.kl_div(
        (moved(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits / 2)
        .log_softmax(-1),
        (function(inputs).logits / 2).softmax(-1), reduction="batchmean",
    )  # fmt: skip
    found = held(trainer, prior, inputs)
    assert found.item() == pytest.approx(4 * expected.item(), rel=1e-4)
    found.backward()
    reached = {n for n, p in trainer.model.named_parameters() if p.grad is not None}
    assert reached == {n for n, _ in trainer.model.named_parameters()} - HEAD
    assert all(p.grad is None for p in function.model.parameters())


def test_a_new_head_of_the_same_shape_is_not_taken_for_the_sources(tmp_path):
    """Three answers of the source's, three of the task's: the names and shapes agree."""
    source, inputs = tiny.bert(), batch("bert")
    torch.nn.init.normal_(source.classifier.weight)
    settings = {"train_dataset": tiny.texts(8), "fresh": HEAD, "source": source}
    trainer = TransferTrainer(tiny.bert(), tiny.arguments(tmp_path), penalty=LwF(), **settings)
    function = trainer.source_pass.function
    assert torch.equal(function.through_head(trainer.model, inputs), function(inputs).logits)
    held(trainer, LwF(), inputs).backward()
    assert trainer.model.classifier.weight.grad is None


def test_running_statistics_are_the_models_own_and_do_not_move(tmp_path):
    source = tiny.resnet()
    fresh = {"timm_model.fc.weight", "timm_model.fc.bias"}
    settings = {"train_dataset": tiny.images(8), "fresh": fresh, "source": source}
    trainer = TransferTrainer(tiny.resnet(), tiny.arguments(tmp_path), penalty=LwF(), **settings)
    buffers = dict(trainer.model.named_buffers())
    buffers["timm_model.bn1.running_mean"].add_(1)
    before = tiny.weights(trainer.model)
    inputs, function = batch("resnet"), trainer.source_pass.function
    moved = function.through_head(trainer.model, inputs)
    assert not torch.equal(moved, function(inputs).logits)
    assert tiny.different(before, tiny.weights(trainer.model)) == []


def test_a_source_without_a_head_is_refused_with_the_remedy(tmp_path):
    settings = {"train_dataset": tiny.texts(8), "fresh": HEAD}
    with pytest.raises(UserError, match=r"lwf .*similarity.*source="):
        TransferTrainer(tiny.bert(), tiny.arguments(tmp_path), penalty=LwF(), **settings)


def test_a_source_with_another_backbone_is_refused(tmp_path):
    settings = {"train_dataset": tiny.texts(8), "fresh": HEAD, "source": tiny.gpt2()}
    with pytest.raises(UserError, match="another backbone"):
        TransferTrainer(tiny.bert(), tiny.arguments(tmp_path), penalty=LwF(), **settings)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_more_weight_stays_closer_to_the_source(kind, tmp_path):
    """KL to the source's answers after training falls as the weight rises."""
    inputs, apart = batch(kind, 16), []
    for weight in (0.01, 1.0, 100.0):
        trainer = train("lwf", tmp_path, kind=kind, penalty=LwF(weight=weight), rows=16,
                        num_train_epochs=4)  # fmt: skip
        trainer.train()
        trainer.model.eval()
        apart.append(held(trainer, LwF(), inputs).item())
    assert apart == sorted(apart, reverse=True)
    assert apart[0] > 3 * apart[-1]
    assert logits_of(trainer.model(**inputs)).isfinite().all()
