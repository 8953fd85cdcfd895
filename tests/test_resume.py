"""Stopping at any step and resuming gives the run that never stopped, bit for bit."""

import pytest
import tiny
import torch
from transformers import TrainerCallback

from hf_sft import L2SP, Ball, Gradual, LearningRate, TrainLast, TransferTrainer
from hf_sft.errors import SourceError, UserError
from hf_sft.training.loss_scale import count_items

TIMING = ("runtime", "per_second", "train_loss", "total_flos")
HEAD = {
    "bert": {"classifier.weight", "classifier.bias"},
    "resnet": {"timm_model.fc.weight"},
    "vit": {"classifier.weight", "classifier.bias"},
}


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
@pytest.mark.parametrize("kind", ["bert", "resnet", "vit"])
def test_resuming_is_not_stopping(kind, accumulation, tmp_path):
    """Cut after the first step, inside the first epoch, between epochs, inside the second.

    ViT's tensors have other names in a checkpoint than in the model.
    """
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


def test_resuming_after_the_last_step_takes_no_further_one(tmp_path):
    """Also where the last step stands inside an epoch, which Trainer would go on with."""
    settings = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1,
                "lr_scheduler_type": "constant"}  # fmt: skip

    def built():
        args = tiny.arguments(tmp_path, **settings)
        return TransferTrainer(
            tiny.bert(), args, train_dataset=tiny.texts(40), penalty=L2SP(), fresh=HEAD["bert"]
        )

    whole = built()
    whole.train()
    resumed = built()
    result = resumed.train(resume_from_checkpoint=tmp_path / "checkpoint-3")
    assert tiny.different(tiny.weights(whole.model), tiny.weights(resumed.model)) == []
    assert resumed.state.global_step == result.global_step == 3
    assert resumed.state.log_history == whole.state.log_history[:3]
    assert not (tmp_path / "checkpoint-4").exists()
    longer = built()
    longer.args.max_steps = 5
    longer.train(resume_from_checkpoint=True)
    assert longer.state.global_step == 5


def test_a_checkpoint_may_be_named_by_a_path(tmp_path):
    trainer("bert", tmp_path, 1, stop=3).train()
    resumed = trainer("bert", tmp_path, 1)
    with torch.no_grad():
        resumed.model.bert.embeddings.word_embeddings.weight.add_(0.1)
    other = TransferTrainer(
        resumed.model, resumed.args, train_dataset=tiny.texts(36), fresh=HEAD["bert"]
    )
    with pytest.raises(SourceError):
        other.train(resume_from_checkpoint=tmp_path / "checkpoint-3")


# ---- an optimizer of the caller's, a second training, labels ----


def own_optimizer(folder, **settings):
    model = tiny.bert()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    args = tiny.arguments(folder, num_train_epochs=1, lr_scheduler_type="constant")
    return TransferTrainer(
        model, args, train_dataset=tiny.texts(16), optimizers=(optimizer, None),
        fresh=HEAD["bert"], **settings,
    )  # fmt: skip


@pytest.mark.parametrize(
    "penalty", [L2SP(lambda_=1e9, apply="proximal"), Ball(radius=1e-9)], ids=lambda p: p.type
)
def test_penalties_around_the_step_follow_an_optimizer_of_the_caller_s(penalty, tmp_path):
    held = own_optimizer(tmp_path, penalty=penalty)
    held.train()
    moved = max(row["drift"] or 0 for row in held.starting_point.distance(held.model))
    free = own_optimizer(tmp_path)
    free.train()
    unheld = max(row["drift"] or 0 for row in free.starting_point.distance(free.model))
    assert moved < 1e-4 * unheld


def test_learning_rates_hold_in_an_optimizer_of_the_caller_s(tmp_path):
    rates = [LearningRate(role="head", multiplier=1.0), LearningRate(multiplier=1e-6)]
    slow = own_optimizer(tmp_path, learning_rates=rates)
    slow.train()
    assert {group["lr"] for group in slow.optimizer.param_groups} == {0.5, 0.5e-6}
    late = own_optimizer(tmp_path, learning_rates=rates)
    late.lr_scheduler = torch.optim.lr_scheduler.ConstantLR(late.optimizer)
    with pytest.raises(UserError, match="optimizer_cls_and_kwargs"):
        late.train()


def test_what_a_first_training_has_moved_is_not_frozen_after_a_second(tmp_path):
    args = tiny.arguments(tmp_path, max_steps=4)
    built = TransferTrainer(
        tiny.bert(), args, train_dataset=tiny.texts(32), freeze=Gradual(over=1.0),
        fresh=HEAD["bert"],
    )  # fmt: skip
    built.train()
    built.args.max_steps = 1
    built.train()
    assert built.starting_point.changed(built.model, built.frozen) == []


def test_class_255_is_a_class_where_labels_are_not_pixels():
    model = tiny.vit()
    model.config.semantic_loss_ignore_index = 255
    trainer = type("Trainer", (), {"model": model})
    assert count_items(trainer, {"labels": torch.tensor([1, 255, 3])}) == 3
    pixels = torch.tensor([[[1, 255], [3, 255]]])
    assert count_items(trainer, {"labels": pixels}) == 2


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    args = tiny.arguments(
        tmp_path, max_steps=1, learning_rate=1e38, optim="sgd", max_grad_norm=0,
        save_strategy="steps", save_steps=1,
    )  # fmt: skip
    model = tiny.bert()
    built = TransferTrainer(model, args, train_dataset=tiny.texts(8), fresh=HEAD["bert"])
    for parameter in model.parameters():
        parameter.register_hook(lambda gradient: gradient * 1e3)
    with pytest.raises(UserError, match="not finite at step 1"):
        built.train()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_the_best_checkpoint_of_a_renamed_model_comes_back_whole(tmp_path):
    """ViT, at a learning rate that ruins it: the last epoch is not the best."""
    args = tiny.arguments(
        tmp_path, num_train_epochs=3, save_strategy="epoch", eval_strategy="epoch",
        load_best_model_at_end=True, learning_rate=1.0, lr_scheduler_type="constant",
    )  # fmt: skip
    run = TransferTrainer(
        tiny.vit(), args, train_dataset=tiny.images(24), eval_dataset=tiny.images(24),
        penalty=L2SP(lambda_=0.01), fresh=HEAD["vit"],
    )  # fmt: skip
    run.train()
    best = type(run.model).from_pretrained(run.state.best_model_checkpoint)
    assert tiny.different(tiny.weights(best), tiny.weights(run.model)) == []
    last = type(run.model).from_pretrained(tmp_path / f"checkpoint-{run.state.global_step}")
    assert tiny.different(tiny.weights(last), tiny.weights(run.model))
