"""One optimizer step is the same step however its examples are cut into micro-batches."""

import pytest
import tiny
import torch
from torch import nn
from transformers import Trainer

from hf_sft import L2SP, TransferTrainer

GLOBAL = 20
KINDS = ["bert", "bert-tokens", "gpt2", "t5", "vit", "convnext"]
IGNORING = ["bert", "bert-tokens", "t5"]  # accept num_items_in_batch and do not use it


def train(trainer_class, kind, folder, accumulation, rows=40, **extra):
    """Two epochs over the rows in order with SGD, whose step shows the gradient's size."""
    build, data = tiny.KINDS[kind]
    args = tiny.arguments(
        folder,
        per_device_train_batch_size=GLOBAL // accumulation,
        gradient_accumulation_steps=accumulation,
        train_sampling_strategy="sequential",
        optim="sgd",
        learning_rate=0.1,
        lr_scheduler_type="constant",
        max_grad_norm=0,
    )
    trainer = trainer_class(build(), args, train_dataset=data(rows), **extra)
    trainer.train()
    return trainer


def ours(kind, folder, accumulation, rows=40):
    return train(
        TransferTrainer, kind, folder, accumulation, rows, penalty=L2SP(lambda_=0.1), fresh=()
    )


@pytest.mark.parametrize("rows", [40, 46], ids=["even", "ragged"])
@pytest.mark.parametrize("kind", KINDS)
def test_same_weights_for_any_accumulation(kind, rows, tmp_path):
    """46 rows: the last step of an epoch has 6, cut into micro-batches of 6, 5 + 1 and 4 + 2.

    Rows of language and tagging data differ in their number of labels, so that only the mean over
    all labels of a step is the same for every cut.
    """
    whole = ours(kind, tmp_path, 1, rows)
    reference = tiny.weights(whole.model)
    assert tiny.distance(tiny.weights(tiny.KINDS[kind][0]()), reference) > 1e-3
    losses = [entry["loss"] for entry in whole.state.log_history if "loss" in entry]
    for accumulation in (2, 4, 5):
        cut = ours(kind, tmp_path, accumulation, rows)
        assert cut.state.global_step == whole.state.global_step
        assert tiny.distance(reference, tiny.weights(cut.model)) <= 1e-6, accumulation
        logged = [entry["loss"] for entry in cut.state.log_history if "loss" in entry]
        assert logged == pytest.approx(losses, abs=2e-4), accumulation


@pytest.mark.parametrize("kind", IGNORING)
def test_the_plain_trainer_takes_longer_steps(kind, tmp_path):
    """Guards the test above: there is something to correct in these models."""
    start = tiny.weights(tiny.KINDS[kind][0]())
    lengths = []
    for accumulation in (1, 4):
        trainer = train(Trainer, kind, tmp_path, accumulation, rows=GLOBAL)
        norm = next(e["grad_norm"] for e in trainer.state.log_history if "grad_norm" in e)
        lengths.append(norm)
        assert tiny.distance(start, tiny.weights(trainer.model)) > 0
    assert lengths[1] / lengths[0] == pytest.approx(4, rel=0.15)


@pytest.mark.parametrize("kind", ["bert-tokens", "t5"])
def test_without_weights_the_mean_of_means_differs(kind, tmp_path):
    """Guards the exact token mean: dividing by the accumulation steps alone is not enough."""

    class MeanOfMeans(Trainer):
        loss_is_scaled_for_ga = False

    found = [
        tiny.weights(train(MeanOfMeans, kind, tmp_path, accumulation).model)
        for accumulation in (1, 4)
    ]
    assert tiny.distance(*found) > 1e-4


class Silent(nn.Module):
    """A task without a gradient."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, labels=None):
        return {"loss": 0 * sum(p.sum() for p in self.parameters()), "logits": labels}


@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_pull_is_added_once_per_step(accumulation, tmp_path):
    """With a task gradient of 0, two steps leave (1 − η·2λ)² of θ − θ⁰, clipping aside."""
    args = tiny.arguments(
        tmp_path,
        per_device_train_batch_size=8 // accumulation,
        gradient_accumulation_steps=accumulation,
        optim="sgd",
        learning_rate=0.1,
        lr_scheduler_type="constant",
        max_grad_norm=0,
        num_train_epochs=1,
    )
    settings = {"train_dataset": [{"labels": 0}] * 16, "penalty": L2SP(lambda_=0.5), "fresh": ()}
    trainer = TransferTrainer(Silent(), args, **settings)
    source = tiny.weights(trainer.model)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(1)
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert torch.allclose(parameter - source[name], torch.tensor(0.9**2)), name
