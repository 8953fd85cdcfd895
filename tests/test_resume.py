"""Stopping at any step and resuming gives the run that never stopped, bit for bit."""

import pytest
import tiny
import torch
from transformers import TrainerCallback

from hf_sft import L2SP, TrainLast, TransferTrainer

TIMING = ("runtime", "per_second", "train_loss", "total_flos")
HEAD = {"bert": {"classifier.weight", "classifier.bias"}, "resnet": {"timm_model.fc.weight"}}


class StopAt(TrainerCallback):
    """Save and stop after a step, as a preempted run would."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


def trainer(kind, folder, accumulation, stop=None):
    """2 epochs of 5 steps; the last step of an epoch is ragged under accumulation."""
    build, rows = tiny.KINDS[kind]
    args = tiny.arguments(
        folder,
        num_train_epochs=2,
        per_device_train_batch_size=8 // accumulation,
        gradient_accumulation_steps=accumulation,
        warmup_steps=3,
        weight_decay=0.01,
    )
    return TransferTrainer(
        build(dropout=0.2),
        args,
        train_dataset=rows(36),
        penalty=L2SP(lambda_=0.05, head=0.01),
        freeze=TrainLast(count=1),
        fresh=HEAD[kind],
        callbacks=[StopAt(stop)] if stop else [],
    )


def outcome(run):
    """Weights, optimizer state by parameter, schedule, RNG, log."""
    names = {id(parameter): name for name, parameter in run.model.named_parameters()}
    moments = {
        f"{names[id(parameter)]} {key}": torch.as_tensor(value)
        for parameter, state in run.optimizer.state.items()
        for key, value in state.items()
    }
    log = [
        {key: value for key, value in entry.items() if not key.endswith(TIMING)}
        for entry in run.state.log_history
    ]
    return (
        {**tiny.weights(run.model), **moments, "rng": torch.get_rng_state()},
        run.lr_scheduler.state_dict(),
        log,
    )


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("kind", ["bert", "resnet"])
def test_resuming_is_not_stopping(kind, accumulation, tmp_path):
    """Cut after the first step, inside the first epoch, between epochs, inside the second."""
    whole = trainer(kind, tmp_path / "whole", accumulation)
    whole.train()
    assert whole.state.global_step == 10
    tensors, schedule, log = outcome(whole)
    for step in (1, 3, 5, 8):
        folder = tmp_path / f"cut-{step}"
        stopped = trainer(kind, folder, accumulation, stop=step)
        stopped.train()
        assert stopped.state.global_step == step
        torch.manual_seed(step)  # a new process knows nothing of the old one's draws
        resumed = trainer(kind, folder, accumulation)
        resumed.train(resume_from_checkpoint=True)
        found = outcome(resumed)
        assert tiny.different(tensors, found[0]) == [], step
        assert found[1] == schedule
        assert [e for e in found[2] if "loss" in e] == [e for e in log if "loss" in e]
        copies = resumed.starting_point.copies
        assert tiny.different(whole.starting_point.copies, copies) == []


def test_resuming_without_the_random_state_differs(tmp_path):
    """Guards the test above: dropout really draws."""
    whole = trainer("bert", tmp_path, 1)
    whole.train()
    trainer("bert", tmp_path, 1, stop=3).train()
    (tmp_path / "checkpoint-3" / "rng_state.pth").unlink()
    resumed = trainer("bert", tmp_path, 1)
    resumed.train(resume_from_checkpoint=True)
    assert tiny.different(tiny.weights(whole.model), tiny.weights(resumed.model))


def test_resuming_goes_on_with_frozen_layers_frozen(tmp_path):
    trainer("resnet", tmp_path, 1, stop=3).train()
    resumed = trainer("resnet", tmp_path, 1)
    resumed.train(resume_from_checkpoint=True)
    assert any("running_mean" in name for name in resumed.frozen)
    assert resumed.starting_point.changed(resumed.model, resumed.frozen) == []
