"""Penalties and policies in a bare loop, over another's Trainer and over Seq2SeqTrainer."""

import pytest
import tiny
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import (
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    default_data_collator,
)

from hf_sft import (
    L2SP,
    LayerGroups,
    Seq2SeqTransferTrainer,
    Signals,
    StartingPoint,
    TrainLast,
    TransferMixin,
    TransferTrainer,
)

FRESH = {
    "bert": {"classifier.weight", "classifier.bias"},
    "resnet": {"timm_model.fc.weight", "timm_model.fc.bias"},
}
PENALTY, POLICY = L2SP(lambda_=0.1, head=0.01), TrainLast(count=1)


def fine_tune(model, rows, fresh, accumulation, epochs=2):
    """The loop of the README."""
    groups = LayerGroups.of(model, fresh=fresh)
    plan = POLICY.plan(groups, 0.0, Signals())
    start = StartingPoint.of(model, fresh=fresh, trains=plan.trains)
    plan.apply_(model, groups)

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    loader = DataLoader(rows, 8 // accumulation, collate_fn=default_data_collator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    wrapped, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for _ in range(epochs):
        wrapped.train()
        plan.apply_(model, groups)  # frozen blocks back to eval mode
        for batch in loader:
            with accelerator.accumulate(wrapped):
                accelerator.backward(wrapped(**batch).loss)
                if accelerator.sync_gradients:
                    PENALTY.add_gradient_(dict(model.named_parameters()), start)
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
    return start


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("kind", ["bert", "resnet"])
def test_a_bare_loop_is_the_trainer(kind, accumulation, tmp_path):
    build, data = tiny.KINDS[kind]
    rows = data(24)
    args = tiny.arguments(
        tmp_path,
        per_device_train_batch_size=8 // accumulation,
        gradient_accumulation_steps=accumulation,
        train_sampling_strategy="sequential",
        lr_scheduler_type="constant",
        optim="adamw_torch",
    )
    extra = {"penalty": PENALTY, "freeze": POLICY, "fresh": FRESH[kind]}
    trainer = TransferTrainer(build(), args, train_dataset=rows, **extra)
    trainer.train()

    model = build()
    start = fine_tune(model, rows, FRESH[kind], accumulation)
    source, trained = tiny.weights(build()), tiny.weights(model)
    assert tiny.distance(source, trained) > 1e-3
    assert tiny.distance(tiny.weights(trainer.model), trained) <= 1e-6
    assert start.changed(model, trainer.frozen) == []
    assert start.fingerprint == trainer.starting_point.fingerprint


class WeightedTrainer(Trainer):
    """Another's Trainer: its own loss and its own log."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        weight = torch.tensor([1.0, 2.0, 3.0])
        loss = torch.nn.functional.cross_entropy(outputs.logits, labels, weight, reduction="none")
        return (loss.mean(), outputs) if return_outputs else loss.mean()

    def log(self, logs, *args, **kwargs):
        super().log({**logs, "mine": 1.0}, *args, **kwargs)


class WeightedTransferTrainer(TransferMixin, WeightedTrainer):
    pass


def train(trainer_class, build, rows, args, **extra):
    trainer = trainer_class(build(), args, train_dataset=rows[:16], eval_dataset=rows[16:], **extra)
    trainer.train()
    return trainer


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_the_mixin_goes_over_another_trainer(kind, accumulation, tmp_path):
    """Also where the model would use num_items_in_batch (ViT) and the other's loss does not."""
    changes = {"train_sampling_strategy": "sequential", "eval_strategy": "epoch"}
    changes |= {"optim": "sgd", "max_grad_norm": 0}  # a step shows the gradient's size
    build, data = tiny.KINDS[kind]
    rows, zero = data(24), L2SP(lambda_=0.0)
    plain = train(WeightedTrainer, build, rows, tiny.arguments(tmp_path, **changes))
    changes["per_device_train_batch_size"] = 8 // accumulation
    changes["gradient_accumulation_steps"] = accumulation
    args = tiny.arguments(tmp_path, **changes)
    neutral = train(WeightedTransferTrainer, build, rows, args, penalty=zero, fresh=())
    assert tiny.distance(tiny.weights(build()), tiny.weights(plain.model)) > 1e-3
    assert tiny.distance(tiny.weights(plain.model), tiny.weights(neutral.model)) <= 1e-6

    extra = {"penalty": PENALTY, "freeze": POLICY, "fresh": ()}
    pulled = train(WeightedTransferTrainer, build, rows, args, **extra)
    assert tiny.distance(tiny.weights(plain.model), tiny.weights(pulled.model)) > 1e-4
    assert pulled.starting_point.changed(pulled.model, pulled.frozen) == []
    entry = next(e for e in pulled.state.log_history if "loss" in e)
    assert {"mine", "penalty", "objective"} <= entry.keys()


def test_sequence_to_sequence(tmp_path):
    """λ = 0 is the plain Seq2SeqTrainer, generation included; a policy freezes what it names."""
    settings = tiny.arguments(tmp_path, eval_strategy="epoch").to_dict()
    names = ("output_dir", "use_cpu", "report_to", "disable_tqdm", "dataloader_pin_memory")
    names += ("learning_rate", "logging_steps", "save_strategy", "eval_strategy")
    args = Seq2SeqTrainingArguments(
        **{name: settings[name] for name in names},
        num_train_epochs=2,
        predict_with_generate=True,
        generation_max_length=6,
    )
    rows = [
        {**row, "labels": [label if label != -100 else 0 for label in row["labels"]]}
        for row in tiny.prose(24)
    ]

    def seen(prediction):
        return {"sum": float(prediction.predictions.sum())}

    def build():
        return tiny.t5(dropout=0.1)

    settings = {"compute_metrics": seen}
    plain = train(Seq2SeqTrainer, build, rows, args, **settings)
    zero = L2SP(lambda_=0.0)
    neutral = train(Seq2SeqTransferTrainer, build, rows, args, penalty=zero, fresh=(), **settings)
    assert tiny.different(tiny.weights(plain.model), tiny.weights(neutral.model)) == []
    generated = [
        [e["eval_sum"] for e in run.state.log_history if "eval_sum" in e]
        for run in (plain, neutral)
    ]
    assert generated[0] == generated[1]
    assert len(generated[0]) == 2

    pulled = train(
        Seq2SeqTransferTrainer,
        build,
        rows,
        args,
        penalty=L2SP(),
        freeze=POLICY,
        fresh=(),
        **settings,
    )
    changed = tiny.different(tiny.weights(build()), tiny.weights(pulled.model))
    assert changed
    assert all(name.startswith("decoder.block.1") or "final_layer_norm" in name for name in changed)
    assert "encoder.block.0.layer.0.SelfAttention.q.weight" in pulled.frozen
