"""A step whose loss or gradient is not finite: told with its rows, or left out as if not drawn."""

import pytest
import tiny
import torch
from transformers import TrainerCallback

from hf_sft import L2SP, TransferTrainer
from hf_sft.errors import UserError
from hf_sft.nonfinite import NonFinite

BROKEN = 1  # a word that only the broken row has


def rows(broken):
    """24 rows, those at ``broken`` with a word that no other row has."""
    found = tiny.texts(24)
    for number, row in enumerate(found):
        row["input_ids"] = [max(2, word) for word in row["input_ids"]]
        if number in broken:
            row["input_ids"][0] = BROKEN
    return found


def trainer(folder, broken=(), how="loss", **settings):
    nonfinite = settings.pop("nonfinite", None)
    args = tiny.arguments(
        folder, num_train_epochs=2, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        logging_steps=3, save_strategy="steps", save_steps=2, **settings,
    )  # fmt: skip
    built = TransferTrainer(
        tiny.bert(), args, train_dataset=rows(broken), penalty=L2SP(lambda_=0.1),
        fresh={"classifier.weight", "classifier.bias"}, nonfinite=nonfinite,
    )  # fmt: skip
    forward = built.model.forward

    def breaking(input_ids=None, **inputs):
        found = forward(input_ids=input_ids, **inputs)
        if (input_ids == BROKEN).any() and built.model.training:
            if how == "loss":
                found.loss = found.loss + torch.inf
            elif how == "gradient":  # the root of 0 has no slope
                found.loss = found.loss + (found.logits - found.logits.detach()).pow(2).sum().sqrt()
        return found

    built.model.forward = breaking
    return built


class Batches(TrainerCallback):
    """The weights after every step."""

    def __init__(self):
        self.weights = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights.append(tiny.weights(model))


@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_stop_names_the_step_and_its_rows_and_keeps_the_checkpoint(how, tmp_path):
    seen = trainer(tmp_path / "seen")
    order = []
    batches = seen.get_batch_samples

    def listening(*args, **kwargs):
        found = batches(*args, **kwargs)
        order.append([row for batch in found[0] for row in batch["input_ids"].tolist()])
        return found

    seen.get_batch_samples = listening
    seen.train()
    words = [row["input_ids"] for row in rows(())]
    step = [[words.index(row) for row in batch] for batch in order][6:][2]  # 9, in the second epoch
    run = trainer(tmp_path / "run", broken={step[1]}, how=how, nonfinite=None)
    first = next(i for i, batch in enumerate(order) if words[step[1]] in batch)
    made_of = [words.index(row) for row in order[first]]
    with pytest.raises(UserError) as error:
        run.train()
    listed = ", ".join(map(str, made_of))
    assert f"not finite at step {first + 1}, made of rows {listed} of train (from 0)" in str(
        error.value
    )
    kept = sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*"))
    assert kept == sorted(f"checkpoint-{k}" for k in range(2, first + 1, 2))
    assert all(bool(p.isfinite().all()) for p in run.model.parameters())


def test_a_row_of_the_second_epoch_is_told_after_resuming_too(tmp_path):
    run = trainer(tmp_path, broken={5}, nonfinite=NonFinite(then="skip"))
    run.train()
    steps = {step["step"]: step["rows"] for step in run.skipped_steps}
    assert len(steps) == 2
    assert all(5 in made_of and len(made_of) == 4 for made_of in steps.values())
    late = max(steps)
    at = max(k for k in range(2, late, 2))
    again = trainer(tmp_path, broken={5}, nonfinite=NonFinite(then="skip"))
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{at}"))
    assert again.skipped_steps == run.skipped_steps
    assert tiny.different(tiny.weights(run.model), tiny.weights(again.model)) == []
    assert again.running_loss.total == run.running_loss.total


def test_skipping_leaves_weights_and_moments_as_they_were(tmp_path):
    watch = Batches()
    run = trainer(tmp_path, broken={5}, how="gradient", nonfinite=NonFinite(then="skip"))
    run.add_callback(watch)
    run.train()
    skipped = [step["step"] for step in run.skipped_steps]
    assert len(skipped) == 2
    moments = next(iter(run.optimizer.state.values()))
    assert moments["step"] == 12 - 2
    for step in range(2, 13):
        changed = tiny.different(watch.weights[step - 2], watch.weights[step - 1]) != []
        assert changed == (step not in skipped)
    assert torch.isfinite(run.running_loss.total)
    assert all(
        torch.isfinite(torch.tensor(e["loss"])) for e in run.state.log_history if "loss" in e
    )


def test_skipping_is_bounded(tmp_path):
    run = trainer(tmp_path, broken=range(24), nonfinite=NonFinite(then="skip", in_a_row=3))
    with pytest.raises(UserError, match=r"at step 3, .* as in 3 steps in a row"):
        run.train()


def test_on_an_accelerator_flags_are_read_a_step_late_and_nothing_is_saved(tmp_path, monkeypatch):
    order = trainer(tmp_path / "a", broken={5}, nonfinite=NonFinite(then="skip"))
    order.train()
    first = order.skipped_steps[0]
    monkeypatch.setattr("hf_sft.training.step_flags.StepFlags.reads_at_once", False)
    monkeypatch.setattr("hf_sft.training.finite_steps.FiniteSteps.reads_at_once", False)
    run = trainer(tmp_path / "b", broken={5})
    with pytest.raises(UserError, match=f"at step {first['step']}, made of rows") as error:
        run.train()
    assert ", ".join(map(str, first["rows"])) in str(error.value)
    kept = sorted(path.name for path in (tmp_path / "b").glob("checkpoint-*"))
    assert kept == sorted(f"checkpoint-{k}" for k in range(2, first["step"], 2))


def test_a_training_after_one_that_ended_early_has_flags_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_sft.training.finite_steps.FiniteSteps.reads_at_once", False)
    run = trainer(tmp_path, broken=range(24))  # the second step's flags are left unread
    with pytest.raises(UserError, match="at step 1, made of rows"):
        run.train()
    run.train_dataset = rows(())
    assert run.train().global_step == 12
