"""What holds for every prior on the model's function, through a whole training."""

import pytest
import tiny
import torch
from safetensors import safe_open
from test_resume import StopAt, outcome
from transformers import BertForSequenceClassification, Trainer

from hf_sft import DELTA, R3F, LwF, Similarity, TrainLast, TransferTrainer
from hf_sft.embeddings import Taps
from hf_sft.errors import UserError
from hf_sft.training.source_function import SourceFunction

HEAD = {"classifier.weight", "classifier.bias"}
PRIORS = {
    "lwf": LwF(weight=3.0),
    "lwf-mse": LwF(weight=3.0, distance="mse"),
    "lwf-own-head": LwF(weight=100.0),
    "similarity": Similarity(),
    "delta": DELTA(weight=0.1),
    "delta-attention": DELTA(weight=0.1, attention=True, examples=6, layers=["*.layer.0"]),
    "r3f": R3F(eps=0.5, weight=20.0),
}
SGD = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": 0}


def source_of(case, kind="bert"):
    """The trainer's ``source`` and ``fresh``: a source with five answers of its own, or none."""
    if case != "lwf-own-head":
        return {"fresh": ()}
    config = tiny.bert_config()
    config.num_labels = 5
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        source = BertForSequenceClassification(config)
    backbone = {n: t for n, t in tiny.bert().state_dict().items() if n not in HEAD}
    source.load_state_dict(backbone, strict=False)
    return {"source": source, "fresh": HEAD}


def train(case, folder, kind="bert", rows=24, dropout=0.0, **changes):
    build, data = tiny.KINDS[kind]
    prior = changes.pop("penalty", PRIORS.get(case))
    extra = {key: changes.pop(key) for key in ("callbacks", "freeze") if key in changes}
    args = tiny.arguments(folder, **changes)
    settings = {"train_dataset": data(rows), "penalty": prior, **source_of(case), **extra}
    return TransferTrainer(build(dropout), args, **settings)


def trained(case, folder, **changes):
    trainer = train(case, folder, **changes)
    trainer.train()
    return trainer


def move_(model, size=0.05):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn_like(parameter))


def logged(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


# ---- in the loss ----


@pytest.mark.parametrize("case", PRIORS)
def test_it_changes_the_training(case, tmp_path):
    """Guards the laws below: they would hold for a prior that does nothing."""
    settings = {**source_of(case), "train_dataset": tiny.texts(24)}
    plain = TransferTrainer(tiny.bert(), tiny.arguments(tmp_path, **SGD), **settings)
    plain.train()
    held = trained(case, tmp_path, **SGD)
    assert tiny.distance(tiny.weights(plain.model), tiny.weights(held.model)) > 1e-4


@pytest.mark.parametrize("case", PRIORS)
def test_weight_zero_is_no_prior_bit_for_bit(case, tmp_path):
    """The random state included."""
    found = []
    for prior in (PRIORS[case].model_copy(update={"weight": 0.0}), None):
        torch.manual_seed(0)
        trainer = trained(case, tmp_path, dropout=0.1, penalty=prior)
        found.append({**tiny.weights(trainer.model), "rng": torch.get_rng_state()})
    assert tiny.different(*found) == []


@pytest.mark.parametrize("case", PRIORS)
def test_the_log_tells_task_and_prior_apart(case, tmp_path):
    """``loss`` is the task's; ``penalty`` the mean of what the prior added; ``objective`` both."""
    trainer = train(case, tmp_path, **{**SGD, "learning_rate": 0.0}, num_train_epochs=1)
    move_(trainer.model)
    trainer.train()
    task, held = [], []
    for i in range(0, 24, 8):
        batch = trainer.data_collator(tiny.texts(24)[i : i + 8])
        task.append(trainer.model(**batch).loss.item())
    assert sum(logged(trainer, "loss")) / 3 == pytest.approx(sum(task) / 3, abs=1e-4)
    for loss, penalty, objective in zip(
        logged(trainer, "loss"), logged(trainer, "penalty"), logged(trainer, "objective"),
        strict=True,
    ):  # fmt: skip
        assert penalty > 0
        assert objective == loss + penalty
        held.append(penalty)
    if case == "r3f":  # draws its noise anew
        return
    merged = train(case, tmp_path, **{**SGD, "learning_rate": 0.0}, num_train_epochs=1,
                   logging_steps=3)  # fmt: skip
    merged.model.load_state_dict(trainer.model.state_dict())
    merged.train()
    assert logged(merged, "penalty") == [pytest.approx(sum(held) / 3, rel=2e-2)]


@pytest.mark.parametrize("case", PRIORS)
def test_the_eval_loss_has_no_prior(case, tmp_path):
    trainer = train(case, tmp_path)
    move_(trainer.model)
    plain = Trainer(tiny.bert(), tiny.arguments(tmp_path))
    plain.model.load_state_dict(trainer.model.state_dict())
    rows = tiny.texts(16)
    assert trainer.evaluate(rows)["eval_loss"] == plain.evaluate(rows)["eval_loss"]


# ---- one step, however it is cut ----


CUT = [(c, k) for c in ("lwf", "delta", "r3f") for k in ("bert", "bert-tokens", "gpt2", "vit")]


@pytest.mark.parametrize(("case", "kind"), [*CUT, ("lwf", "t5"), ("delta", "t5")])
def test_same_weights_for_any_accumulation(case, kind, tmp_path):
    """Steps of 20, 20 and 6 rows, with unequal numbers of labels: only exact means agree.

    R3F's noise comes in the order of the rows, whatever the cut (but T5 looks up twice).
    """
    step = {**SGD, "train_sampling_strategy": "sequential"}
    found = []
    for accumulation in (1, 2, 4, 5):
        torch.manual_seed(3)
        size = {"per_device_train_batch_size": 20 // accumulation}
        step["gradient_accumulation_steps"] = accumulation
        trainer = trained(case, tmp_path, kind=kind, rows=46, num_train_epochs=1, **size, **step)
        found.append((tiny.weights(trainer.model), logged(trainer, "penalty")))
    assert tiny.distance(found[0][0], tiny.weights(tiny.KINDS[kind][0]())) > 1e-3
    for weights, penalties in found[1:]:
        assert tiny.distance(found[0][0], weights) <= 1e-6
        assert penalties == pytest.approx(found[0][1], rel=1e-3, abs=1e-6)
    assert max(found[0][1]) > 1e-6


def test_the_source_head_gives_the_same_step_for_any_accumulation(tmp_path):
    found = []
    for accumulation in (1, 2, 5):
        size = {"per_device_train_batch_size": 20 // accumulation}
        step = {**SGD, "train_sampling_strategy": "sequential"}
        step["gradient_accumulation_steps"] = accumulation
        trainer = trained("lwf-own-head", tmp_path, rows=46, **size, **step)
        found.append(tiny.weights(trainer.model))
    assert all(tiny.distance(found[0], other) <= 1e-6 for other in found[1:])


def test_similarity_is_the_mean_over_its_micro_batches(tmp_path):
    """Its pairs are those inside a micro-batch: not the same for every cut, but this, exactly."""
    size = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 1}
    trainer = train("similarity", tmp_path, **size, **SGD, train_sampling_strategy="sequential")
    move_(trainer.model)
    model, taps = tiny.bert(), None
    model.load_state_dict(trainer.model.state_dict())
    taps = Taps(model, embeddings=True)
    source = SourceFunction(tiny.bert(), frozenset({"embeddings"}))
    total = 0.0
    for i in (0, 4):
        batch = trainer.data_collator(tiny.texts(24)[i : i + 4])
        task = model(**batch).loss
        total = total + (task + 10 * Similarity().loss(model, source(batch), batch, taps)) / 2
    total.backward()
    trainer.train()
    for name, parameter in model.named_parameters():
        expected = parameter.detach() - 0.1 * parameter.grad
        assert torch.allclose(trainer.model.get_parameter(name), expected, atol=1e-6), name


@pytest.mark.parametrize("kind", ["bert", "gpt2", "vit"])
@pytest.mark.parametrize("case", ["lwf", "similarity", "delta", "r3f"])
def test_gradient_checkpointing_is_the_same_step(case, kind, tmp_path):
    found = []
    for recompute in (False, True):
        torch.manual_seed(0)
        trainer = trained(case, tmp_path, kind=kind, gradient_checkpointing=recompute, **SGD)
        found.append(tiny.weights(trainer.model))
        assert trainer.source_pass.taps.maps == {}
    assert tiny.distance(*found) <= 1e-6


def test_reentrant_checkpointing_would_lose_the_gradient_of_maps(tmp_path):
    settings = {"gradient_checkpointing_kwargs": {"use_reentrant": True}}
    trainer = train("delta", tmp_path, gradient_checkpointing=True, **settings)
    with pytest.raises(UserError, match="reentrant"):
        trainer.train()


# ---- over a trainer's life ----


@pytest.mark.parametrize("case", PRIORS)
def test_resuming_is_not_stopping(case, tmp_path):
    whole = trained(case, tmp_path / "whole", dropout=0.2)
    tensors, schedule, log = outcome(whole)
    for step in (2, 4):
        folder = tmp_path / f"cut-{step}"
        trained(case, folder, dropout=0.2, callbacks=[StopAt(step)])
        torch.manual_seed(step)
        resumed = train(case, folder, dropout=0.2)
        resumed.train(resume_from_checkpoint=True)
        found = outcome(resumed)
        assert tiny.different(tensors, found[0]) == []
        assert found[1] == schedule
        keys = ("loss", "penalty", "objective")
        told = [{k: e[k] for k in keys} for e in log if "loss" in e]
        assert [{k: e[k] for k in keys} for e in found[2] if "loss" in e] == told


@pytest.mark.parametrize("case", PRIORS)
def test_a_checkpoint_holds_the_model_and_nothing_of_the_source(case, tmp_path):
    trainer = trained(case, tmp_path, save_strategy="epoch", num_train_epochs=1)
    with safe_open(tmp_path / "checkpoint-3" / "model.safetensors", "pt") as saved:
        assert set(saved.keys()) == set(tiny.bert().state_dict())
    assert trainer.model.state_dict().keys() == tiny.bert().state_dict().keys()
    assert {id(p) for g in trainer.optimizer.param_groups for p in g["params"]} == {
        id(p) for p in trainer.model.parameters()
    }


@pytest.mark.parametrize("case", PRIORS)
def test_model_init_builds_a_model_that_is_held(case, tmp_path):
    """Training anew is the same training; the source is not the model of the time before."""
    settings = {"train_dataset": tiny.texts(24), "penalty": PRIORS[case], **source_of(case)}
    trainer = TransferTrainer(
        args=tiny.arguments(tmp_path), model_init=lambda: tiny.bert(), **settings
    )
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        trainer.train()
        found.append(tiny.weights(trainer.model))
    assert tiny.different(*found) == []


@pytest.mark.parametrize("case", ["lwf", "similarity", "delta"])
def test_frozen_layers_stay_frozen_and_are_one_tensor_with_the_source(case, tmp_path):
    trainer = train(case, tmp_path, freeze=TrainLast(count=1))
    source = dict(trainer.source_pass.function.model.named_parameters())
    for name, parameter in trainer.model.named_parameters():
        assert (source[name] is parameter) is (name not in trainer.ever_trains), name
    trainer.train()
    assert trainer.starting_point.changed(trainer.model, trainer.frozen) == []
    copied = [n for n in source if n in trainer.ever_trains]
    assert trainer.starting_point.changed(trainer.source_pass.function.model, copied) == []
    assert trainer.starting_point.changed(trainer.model, copied)
