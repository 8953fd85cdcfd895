"""An evaluated loss is drawn the same each time; training draws as if none had been evaluated."""

import pytest
import tiny
import torch
from torch import nn
from transformers import Trainer

from hf_sft import TransferTrainer
from hf_sft.training.fixed_draws import FixedDraws


class Drawing(nn.Module):
    """A loss that draws in training and in evaluation, as Mask2Former's does."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(1, 1), nn.Linear(1, 1)

    def forward(self, x, labels=None):
        return {"loss": self.head(self.body(x)).sum() * 0 + torch.rand(3).sum(), "logits": x}


class Measuring(FixedDraws, Trainer):
    pass


BATCH = {"x": torch.zeros(2, 1), "labels": torch.zeros(2)}
KINDS = {"saved": lambda *given: Measuring(*given), "training": lambda *given: ours(*given)}


def ours(model, args):
    trainer = TransferTrainer(model, args, fresh=())
    trainer.current_gradient_accumulation_steps = 1  # as train() does
    return trainer


def loss_of(trainer):
    return trainer.compute_loss(trainer.model, dict(BATCH)).item()


@pytest.mark.parametrize("kind", KINDS)
def test_evaluations_draw_alike_and_training_goes_on(tmp_path, kind):
    trainer = KINDS[kind](Drawing(), tiny.arguments(tmp_path))
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    trainer.model.eval()
    found = [loss_of(trainer) for _ in range(2)]
    torch.rand(1)
    found.append(loss_of(trainer))
    assert len(set(found)) == 1
    trainer.model.train()
    assert loss_of(trainer) == pytest.approx(float(expected[1:].sum()))


def test_a_training_step_draws_as_trainer_s(tmp_path):
    losses = []
    for trainer_class in (Trainer, ours):
        trainer = trainer_class(Drawing(), tiny.arguments(tmp_path))
        trainer.model.train()
        torch.manual_seed(5)
        losses.append([loss_of(trainer) for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1])
    assert len(set(losses[0])) == 3
