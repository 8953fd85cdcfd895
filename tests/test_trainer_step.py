"""What happens inside one optimizer step, in the log, and to θ⁰ over a trainer's life."""

import json
import logging

import pytest
import tiny
import torch
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertModel,
    Trainer,
)

from hf_sft import L2SP, LinearProbe, StartingPoint, TrainLast, TransferTrainer
from hf_sft.errors import SourceError
from hf_sft.starting_point import unmarked
from hf_sft.training.run_record import recorded_source

PENALTY = L2SP(lambda_=0.2, head=0.1)
HEAD = {"classifier.weight", "classifier.bias"}
SGD = {"optim": "sgd", "learning_rate": 0.5, "lr_scheduler_type": "constant"}


def one_step(folder, **changes):
    """A trainer for a single step over 8 texts, its model already away from the source."""
    args = tiny.arguments(folder, max_steps=1, **{**SGD, **changes})
    trainer = TransferTrainer(
        tiny.bert(), args, train_dataset=tiny.texts(8), penalty=PENALTY, fresh=HEAD
    )
    move_(trainer.model)
    return trainer


def move_(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def batch():
    rows = tiny.texts(8)
    return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}


def objective_gradients(model, start):
    """∂(task loss + Ω)/∂θ by autograd."""
    theta = dict(model.named_parameters())
    objective = model(**batch())["loss"] + PENALTY.value(theta, start)
    gradients = torch.autograd.grad(objective, list(theta.values()))
    return dict(zip(theta, gradients, strict=True))


def norm(gradients):
    return torch.stack([g.norm() for g in gradients]).norm().item()


def first(trainer, key):
    return next(entry[key] for entry in trainer.state.log_history if key in entry)


# ---- one step ----


@pytest.mark.parametrize("limit", [0.0, 0.05, 1e6], ids=["none", "clipped", "loose"])
def test_clipping_acts_on_task_and_penalty_together(limit, tmp_path):
    trainer = one_step(tmp_path, max_grad_norm=limit)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    gradients = objective_gradients(trainer.model, trainer.starting_point)
    length = norm(gradients.values())
    trainer.train()
    assert first(trainer, "grad_norm") == pytest.approx(length, rel=1e-5)
    clip = min(1.0, limit / length) if limit else 1.0
    for name, parameter in trainer.model.named_parameters():
        expected = before[name] - 0.5 * clip * gradients[name]
        assert torch.allclose(parameter, expected, rtol=1e-4, atol=2e-7), name


def test_the_pull_has_the_scale_of_the_gradients(tmp_path):
    """Under a loss scaler of 2¹⁶ the unscaled gradients are those without one, bit for bit."""
    found = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**16)):
        torch.manual_seed(0)
        trainer = one_step(tmp_path)
        trainer.accelerator.scaler = scaler
        trainer.create_optimizer()
        trainer.current_gradient_accumulation_steps = 1
        trainer.training_step(trainer.model, batch())
        if scaler is not None:
            assert trainer.model.classifier.bias.grad.norm() > 1e3
            scaler.unscale_(trainer.optimizer)
        found.append({n: p.grad.clone() for n, p in trainer.model.named_parameters()})
    assert tiny.different(*found) == []


def test_the_eval_loss_has_no_penalty(tmp_path):
    args = tiny.arguments(tmp_path)
    settings = {"train_dataset": tiny.texts(8), "eval_dataset": tiny.texts(24)}
    ours = TransferTrainer(tiny.bert(), args, penalty=L2SP(lambda_=10.0), fresh=(), **settings)
    move_(ours.model)
    plain = Trainer(tiny.bert(), args, **settings)
    plain.model.load_state_dict(ours.model.state_dict())
    assert ours.penalty_value() > 1
    assert ours.evaluate()["eval_loss"] == plain.evaluate()["eval_loss"]


def test_the_log_has_loss_penalty_and_their_sum(tmp_path):
    trainer = one_step(tmp_path)
    with torch.no_grad():
        task = trainer.model(**batch())["loss"].item()
    trainer.train()
    entry = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert entry["loss"] == pytest.approx(task, abs=1e-4)
    theta, source = dict(trainer.model.named_parameters()), tiny.weights(tiny.bert())
    known = sum((p - source[n]).square().sum() for n, p in theta.items() if n not in HEAD)
    new = sum(theta[name].square().sum() for name in HEAD)
    assert entry["penalty"] == pytest.approx((0.2 * known + 0.1 * new).item(), rel=1e-5)
    assert entry["objective"] == entry["loss"] + entry["penalty"]


def test_penalties_add_up(tmp_path):
    settings = {"train_dataset": tiny.texts(8), "fresh": HEAD}
    half = L2SP(lambda_=0.1, head=0.05)
    found = []
    for penalty in (PENALTY, [half, half]):
        torch.manual_seed(0)
        args = tiny.arguments(tmp_path, max_steps=3, **SGD)
        trainer = TransferTrainer(tiny.bert(), args, penalty=penalty, **settings)
        move_(trainer.model)
        trainer.train()
        found.append(tiny.weights(trainer.model))
    assert tiny.distance(*found) < 1e-6


@pytest.mark.parametrize(
    ("penalty", "off"),
    [
        (L2SP(lambda_=0.1, head=0.0), "source"),
        (L2SP(lambda_=0.0, head=0.1), "head"),
        (L2SP(lambda_=0.1, head=0.1), "all"),
        (None, "none"),
    ],
)
def test_weight_decay_is_off_where_a_penalty_pulls(penalty, off, tmp_path):
    args = tiny.arguments(tmp_path, weight_decay=0.1)
    settings = {"train_dataset": tiny.texts(8), "fresh": HEAD}
    trainer = TransferTrainer(tiny.bert(), args, penalty=penalty, **settings)
    plain = set(Trainer(tiny.bert(), args).get_decay_parameter_names(trainer.model))
    anchored = {"source": plain - HEAD, "head": HEAD, "all": plain, "none": set()}[off]
    trainer.create_optimizer()
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    decay = {
        names[id(parameter)]: group["weight_decay"]
        for group in trainer.optimizer.param_groups
        for parameter in group["params"]
    }
    assert decay.keys() == dict(trainer.model.named_parameters()).keys()
    assert {name for name, value in decay.items() if value} == plain - anchored


# ---- θ⁰ never moves ----


def assert_anchored(trainer, source):
    copies = trainer.starting_point.copies
    assert copies
    assert tiny.different({name: source[name] for name in copies}, copies) == []


def test_training_and_resuming_leave_the_starting_point(tmp_path):
    source = tiny.weights(tiny.bert())

    def trainer():
        args = tiny.arguments(tmp_path, save_strategy="steps", save_steps=3)
        settings = {"train_dataset": tiny.texts(24), "fresh": HEAD, "penalty": PENALTY}
        return TransferTrainer(tiny.bert(), args, **settings)

    stopped = trainer()
    stopped.train()
    assert tiny.distance(source, tiny.weights(stopped.model)) > 1e-3
    assert_anchored(stopped, source)
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert_anchored(resumed, source)
    resumed.train(resume_from_checkpoint=True)  # loads the last checkpoint over trained weights
    assert_anchored(resumed, source)
    assert resumed.starting_point.fingerprint == stopped.starting_point.fingerprint


def test_model_init_leaves_the_starting_point(tmp_path):
    """The model that train() builds anew starts at θ⁰ and follows the plan."""
    args = tiny.arguments(tmp_path, num_train_epochs=1)
    trainer = TransferTrainer(
        args=args,
        model_init=lambda: tiny.bert(),  # Trainer passes it a trial when it takes an argument
        train_dataset=tiny.texts(16),
        penalty=PENALTY,
        freeze=TrainLast(count=1),
        fresh=HEAD,
    )
    before = trainer.model
    for _ in range(2):
        trainer.train()
        assert trainer.model is not before
        assert_anchored(trainer, tiny.weights(tiny.bert()))
        frozen = set(trainer.frozen)
        assert frozen
        assert trainer.starting_point.changed(trainer.model, frozen) == []
        trained = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
        assert trained == trainer.ever_trains


def test_resuming_from_another_source_is_refused(tmp_path):
    def trainer(model):
        args = tiny.arguments(tmp_path, save_strategy="epoch")
        settings = {"train_dataset": tiny.texts(8), "fresh": HEAD, "penalty": PENALTY}
        return TransferTrainer(model, args, **settings)

    source = trainer(tiny.bert())
    source.train()
    other = tiny.bert()
    other.bert.embeddings.word_embeddings.weight.data[5, 0] += 1e-6
    before = tiny.weights(other)
    refused = trainer(other)
    for which in (True, str(tmp_path / "checkpoint-2")):
        with pytest.raises(SourceError, match="another starting point"):
            refused.train(resume_from_checkpoint=which)
    assert tiny.different(before, tiny.weights(other)) == []
    head = tiny.bert()
    head.classifier.weight.data.add_(1)  # another head is not another source
    trainer(head).train(resume_from_checkpoint=True)


def test_a_checkpoint_names_its_source(tmp_path):
    args = tiny.arguments(tmp_path, save_strategy="epoch", num_train_epochs=1)
    trainer = TransferTrainer(tiny.bert(), args, train_dataset=tiny.texts(8), fresh=HEAD)
    trainer.train()
    assert recorded_source(tmp_path / "checkpoint-1") == trainer.starting_point.fingerprint
    plain = Trainer(tiny.bert(), args, train_dataset=tiny.texts(8))
    plain.train()
    assert recorded_source(tmp_path / "checkpoint-1") is None
    json.loads((tmp_path / "checkpoint-1" / "trainer_state.json").read_text())


def test_only_what_trains_keeps_a_copy(tmp_path):
    settings = {"train_dataset": tiny.texts(8), "fresh": HEAD}
    args = tiny.arguments(tmp_path)
    probe = TransferTrainer(tiny.bert(), args, freeze=LinearProbe(), **settings)
    assert probe.starting_point.copies == {}
    last = TransferTrainer(tiny.bert(), args, freeze=TrainLast(count=1), **settings)
    assert last.starting_point.copies.keys() == last.ever_trains - HEAD
    tensors = {*dict(last.model.named_parameters()), *dict(last.model.named_buffers())}
    assert last.starting_point.digests.keys() == tensors - HEAD
    assert probe.starting_point.fingerprint == last.starting_point.fingerprint


def test_changed_names_every_tensor_that_differs_in_a_bit():
    model = tiny.resnet()
    start = StartingPoint.of(model, fresh=())
    names = [*dict(model.named_parameters()), *dict(model.named_buffers())]
    assert start.changed(model, names) == []
    chosen = {names[3], *[n for n in names if "running_mean" in n][:1], names[-1]}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name in chosen:
            tensor.data.view(-1)[0] += 1e-3 if tensor.is_floating_point() else 1
    assert set(start.changed(model, names)) == chosen


def test_drift_is_the_distance_by_group():
    model = tiny.bert()
    start = StartingPoint.of(model, fresh=HEAD)
    model.bert.encoder.layer[0].output.dense.bias.data[:4] += 0.5
    rows = {row["name"]: row for row in start.distance(model)}
    assert rows["bert.encoder.layer.0"]["drift"] == pytest.approx(1.0)
    assert rows["stem"]["drift"] == rows["bert.encoder.layer.1"]["drift"] == 0
    assert rows["head"]["drift"] is None


# ---- what came from the source ----


@pytest.fixture
def folder(tmp_path):
    """A BERT without a task head, as a source on disk."""
    torch.manual_seed(1)
    BertModel(tiny.bert_config()).save_pretrained(tmp_path / "source")
    return tmp_path / "source"


def test_the_fresh_head_is_found(folder, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=5)
    assert unmarked(model) == HEAD
    assert unmarked(model.to(torch.float64).train().requires_grad_(False)) == HEAD
    model = model.float().requires_grad_(True)
    args = tiny.arguments(tmp_path)
    trainer = TransferTrainer(model, args, train_dataset=tiny.texts(8), penalty=PENALTY)
    assert trainer.starting_point.fresh == HEAD
    assert not HEAD & trainer.starting_point.copies.keys()


def test_a_head_of_another_size_is_fresh(tmp_path):
    tiny.resnet().save_pretrained(tmp_path)
    model = AutoModelForImageClassification.from_pretrained(
        tmp_path, num_labels=7, ignore_mismatched_sizes=True
    )
    assert unmarked(model) == {"timm_model.fc.weight", "timm_model.fc.bias"}


@pytest.mark.parametrize("kind", ["gpt2", "t5", "bert"])
def test_a_whole_checkpoint_has_nothing_fresh(kind, tmp_path):
    """Tied weights included."""
    model = tiny.KINDS[kind][0]()
    model.save_pretrained(tmp_path)
    assert unmarked(type(model).from_pretrained(tmp_path)) == set()


def test_a_model_built_from_a_config_warns(caplog):
    with caplog.at_level(logging.WARNING, logger="hf_sft"):
        assert unmarked(tiny.bert()) == set()
    assert "fresh=" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="hf_sft"):
        StartingPoint.of(tiny.bert(), fresh=HEAD)
    assert caplog.text == ""
