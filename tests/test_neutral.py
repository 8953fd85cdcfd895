"""With λ = 0 and nothing frozen, TransferTrainer is the plain Trainer, bit for bit."""

import random

import numpy as np
import pytest
import tiny
import torch
from transformers import Trainer

from hf_sft import L2SP, TransferTrainer
from hf_sft.training.loss_scale import honours_item_count

ZERO = {"penalty": L2SP(lambda_=0.0, head=0.0), "freeze": None}
TIMING = ("runtime", "per_second")
OURS = {"penalty", "objective"}


def outcome(trainer_class, kind, folder, ignores_items=False, extra=None, **changes):
    """Train with evaluation and checkpoints; return (weights, RNG states, log without timings)."""
    build, rows = tiny.KINDS[kind]
    settings = {
        "num_train_epochs": 2,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "save_only_model": True,
        "load_best_model_at_end": True,
        "weight_decay": 0.1,
        **changes,
    }
    args = tiny.arguments(folder, **settings)
    data = rows(24)
    trainer = trainer_class(
        build(dropout=0.1), args, train_dataset=data[:16], eval_dataset=data[16:], **(extra or {})
    )
    if ignores_items:
        trainer.model_accepts_loss_kwargs = False
    trainer.train()
    log = [
        {key: value for key, value in entry.items() if not key.endswith(TIMING)}
        for entry in trainer.state.log_history
    ]
    return tiny.weights(trainer.model), random_states(), log


def random_states():
    kind, numbers, *rest = np.random.get_state()
    return random.getstate(), (kind, numbers.tolist(), *rest), torch.get_rng_state().tolist()


def assert_same(ours, plain):
    assert tiny.different(plain[0], ours[0]) == []
    assert ours[1] == plain[1], "random states"
    assert [{k: v for k, v in entry.items() if k not in OURS} for entry in ours[2]] == plain[2]


@pytest.mark.parametrize("kind", ["bert", "gpt2", "resnet"])
def test_zero_strength_is_the_plain_trainer(kind, tmp_path):
    plain = outcome(Trainer, kind, tmp_path / "plain")
    ours = outcome(TransferTrainer, kind, tmp_path / "ours", extra=ZERO)
    assert_same(ours, plain)
    assert all(e["penalty"] == 0.0 and e["objective"] == e["loss"] for e in ours[2] if "loss" in e)


def test_no_penalty_adds_no_log_keys(tmp_path):
    _, _, log = outcome(TransferTrainer, "bert", tmp_path)
    assert not OURS & {key for entry in log for key in entry}


def test_zero_strength_with_label_smoothing(tmp_path):
    """Trainer's own smoothed loss uses num_items, whatever the model does with it."""
    changes = {"gradient_accumulation_steps": 2, "label_smoothing_factor": 0.1}
    changes["per_device_train_batch_size"] = 4
    plain = outcome(Trainer, "bert-tokens", tmp_path / "plain", **changes)
    assert_same(
        outcome(TransferTrainer, "bert-tokens", tmp_path / "ours", extra=ZERO, **changes), plain
    )


@pytest.mark.parametrize("accumulation", [2, 4])
@pytest.mark.parametrize(("kind", "ignores"), [("bert", True), ("gpt2", False), ("resnet", False)])
def test_zero_strength_with_accumulation(kind, ignores, accumulation, tmp_path):
    """Where the model ignores num_items, the plain Trainer is told so; else it is as it comes."""
    changes = {
        "gradient_accumulation_steps": accumulation,
        "per_device_train_batch_size": 8 // accumulation,
    }
    plain = outcome(Trainer, kind, tmp_path / "plain", ignores_items=ignores, **changes)
    ours = outcome(TransferTrainer, kind, tmp_path / "ours", extra=ZERO, **changes)
    assert_same(ours, plain)


def test_a_positive_strength_is_not_neutral(tmp_path):
    plain = outcome(Trainer, "bert", tmp_path / "plain")
    ours = outcome(TransferTrainer, "bert", tmp_path / "ours", extra={"penalty": L2SP()})
    assert tiny.different(plain[0], ours[0])


@pytest.mark.parametrize(
    ("kind", "honours"),
    [
        ("bert", False),
        ("bert-tokens", False),
        ("t5", False),
        ("convnext", False),
        ("gpt2", True),
        ("vit", True),
    ],
)
def test_the_probe_decides_and_leaves_no_trace(kind, honours, tmp_path):
    build, rows = tiny.KINDS[kind]
    trainer = Trainer(build(dropout=0.1), tiny.arguments(tmp_path), train_dataset=rows(4))
    trainer.model.train()
    trainer.model.get_submodule(next(n for n, _ in trainer.model.named_children())).eval()
    modes = [module.training for module in trainer.model.modules()]
    states, before = random_states(), tiny.weights(trainer.model)
    assert honours_item_count(trainer, trainer.compute_loss) is honours
    assert [module.training for module in trainer.model.modules()] == modes
    assert random_states() == states
    assert tiny.different(before, tiny.weights(trainer.model)) == []
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_the_probe_puts_back_what_the_data_set_draws(tmp_path):
    """Augmentation draws while the probe reads its rows."""

    class Augmented(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            random.random(), np.random.rand(), torch.rand(())
            return tiny.texts(4)[index]

    trainer = Trainer(tiny.bert(), tiny.arguments(tmp_path), train_dataset=Augmented())
    states = random_states()
    honours_item_count(trainer, trainer.compute_loss)
    assert random_states() == states


def test_a_loss_function_is_taken_at_its_word(tmp_path):
    def loss(outputs, labels, num_items_in_batch=None):
        return outputs["logits"].square().sum() / num_items_in_batch

    settings = {"train_dataset": tiny.texts(4), "compute_loss_func": loss}
    trainer = TransferTrainer(tiny.bert(), tiny.arguments(tmp_path), **settings)
    assert honours_item_count(trainer, trainer.compute_loss)
