"""The pull on the rows of a word table that have moved is the pull on all of it, bit for bit."""

import pytest
import tiny
import torch

from hf_sft import L2SP, FisherSP, GroupLassoSP, TransferTrainer
from hf_sft.training import moved_rows

WORDS = "bert.embeddings.word_embeddings.weight"
FRESH = {"classifier.weight", "classifier.bias"}

PENALTIES = [
    L2SP(lambda_=0.5, head=0.1),
    FisherSP(lambda_=5.0),
    L2SP(lambda_=0.5, head=0.1, apply="proximal"),
    FisherSP(lambda_=5.0, apply="proximal"),
    GroupLassoSP(lambda_=0.1, apply="proximal"),
]


def rows_with_few_words():
    """Texts that name words 3..10 of the tiny vocabulary."""
    rows = tiny.texts(16)
    for row in rows:
        row["input_ids"] = [3 + word % 8 for word in row["input_ids"]]
    return rows


def trained(folder, monkeypatch, share, penalty, resume=None, **changes):
    """(trainer, what every look has found) after training; ``share`` 0 pulls whole tables."""
    monkeypatch.setattr(moved_rows, "SMALLEST", 1)
    monkeypatch.setattr(moved_rows, "LARGEST_SHARE", share)
    trainer = TransferTrainer(
        model=tiny.bert(),
        args=tiny.arguments(folder, **changes),
        train_dataset=rows_with_few_words(),
        penalty=penalty,
        fresh=FRESH,
    )
    seen, look = [], moved_rows.MovedRows.look

    def watched(self, theta, **how):
        seen.append(look(self, theta, **how))
        return seen[-1]

    monkeypatch.setattr(moved_rows.MovedRows, "look", watched)
    trainer.train(resume)
    monkeypatch.setattr(moved_rows.MovedRows, "look", look)
    return trainer, seen


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd", "adafactor", "adamw_torch_fused"])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_the_pull_on_moved_rows_is_the_pull_on_all(optim, penalty, tmp_path, monkeypatch):
    settings = {"optim": optim, "num_train_epochs": 6, "weight_decay": 0.1}
    some, found = trained(tmp_path, monkeypatch, 0.9, penalty, **settings)
    whole, nothing = trained(tmp_path, monkeypatch, -1.0, penalty, **settings)
    assert not tiny.different(tiny.weights(whole.model), tiny.weights(some.model))
    assert not any(WORDS in rows for rows in nothing)
    first = len(found[0][WORDS])  # the proximal form looks after the step
    assert first > 0 if penalty.apply == "proximal" else first == 0
    assert 1 <= len(found[-1][WORDS]) <= 8


def test_a_run_that_is_taken_up_while_the_rate_is_still_zero_ends_the_same(tmp_path, monkeypatch):
    penalty = L2SP(lambda_=0.5)
    settings = {"warmup_steps": 3, "num_train_epochs": 4, "save_strategy": "steps", "save_steps": 1}
    whole, _ = trained(tmp_path, monkeypatch, 0.9, penalty, **settings)
    first = tmp_path / "checkpoint-1"  # the rate of the first step is 0: only moments have changed
    again, found = trained(tmp_path, monkeypatch, 0.9, penalty, resume=str(first), **settings)
    assert len(found[0][WORDS]) > 0
    assert not tiny.different(tiny.weights(whole.model), tiny.weights(again.model))


def test_a_table_that_its_optimizer_decays_is_pulled_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(moved_rows, "SMALLEST", 1)
    model = tiny.bert()
    trainer = TransferTrainer(
        model=model,
        args=tiny.arguments(tmp_path),
        train_dataset=rows_with_few_words(),
        penalty=L2SP(lambda_=0.5),
        fresh=FRESH,
        optimizers=(torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1), None),
    )
    before = model.get_input_embeddings().weight.detach().clone()
    trainer.train()
    assert not trainer.pull.moved_rows._tables
    assert not torch.equal(before[20:], model.get_input_embeddings().weight[20:])


def test_rows_that_somebody_else_has_moved_are_found_again(tmp_path, monkeypatch):
    monkeypatch.setattr(moved_rows, "LOOK_AGAIN", 2)
    trainer, _ = trained(tmp_path, monkeypatch, 0.9, L2SP(lambda_=0.5))
    table = trainer.model.get_input_embeddings().weight
    with torch.no_grad():
        table[15] += 1.0
    table.grad = torch.zeros_like(table)
    found = [trainer.pull.moved_rows.look(trainer.pull.theta)[WORDS].tolist() for _ in range(2)]
    assert 15 in found[0] or 15 in found[1]


def test_a_table_tied_to_the_outputs_is_pulled_whole(tmp_path, monkeypatch):
    """Every row of it has a gradient."""
    monkeypatch.setattr(moved_rows, "SMALLEST", 1)
    trainer = TransferTrainer(
        model=tiny.gpt2(),
        args=tiny.arguments(tmp_path),
        train_dataset=tiny.prose(16),
        penalty=L2SP(lambda_=0.5),
        fresh=set(),
    )
    trainer.train()
    assert "transformer.wte.weight" not in trainer.pull.moved_rows._tables
