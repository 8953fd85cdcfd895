"""Rows of like lengths are trained together; evaluated rows stay in order, resumed or not."""

import numpy as np
import pytest
import tiny
import tiny_run
import tiny_writing
import torch
from datasets import Dataset
from test_resume import StopAt, outcome

from hf_sft import L2SP, Recipe, TransferTrainer
from hf_sft.running import run
from hf_sft.tasks import TextGeneration
from hf_sft.training.alike_lengths import AlikeLengths, row_lengths
from hf_sft.training_arguments import training_arguments

LENGTHS = np.random.default_rng(0).integers(1, 60, 1000)
ROWS = [
    {"input_ids": [2 + (i + j) % 30 for j in range(1 + 5 * i % tiny.LENGTH)], "labels": i % 3}
    for i in range(36)
]


def order(seed=0, epoch=0, size=16, lengths=LENGTHS):
    return list(AlikeLengths(lengths, size, seed, lambda: epoch))


def padded(rows, size=16):
    """Tokens that batches take, over those they have."""
    batches = [LENGTHS[rows[at : at + size]] for at in range(0, len(rows), size)]
    return sum(len(b) * b.max() for b in batches) / LENGTHS.sum()


@pytest.mark.parametrize("size", [1, 7, 16, 300, 1000, 1001])
def test_every_row_once(size):
    assert sorted(order(size=size)) == list(range(1000))


def test_no_rows_and_few():
    assert order(lengths=[]) == []
    assert sorted(order(lengths=[3, 1, 2])) == [0, 1, 2]


def test_little_is_padding():
    random = np.random.default_rng(1).permutation(1000)
    assert padded(random) > 1.8
    assert padded(order()) < 1.15


def test_the_order_is_a_function_of_seed_and_epoch():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = order()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert order() == first
    assert order(epoch=1) != first
    assert order(seed=1) != first


def test_no_length_comes_first():
    """Over many epochs, a group's place says nothing of its rows' lengths."""
    means = np.mean(
        [LENGTHS[order(epoch=e)][:992].reshape(-1, 16).mean(1) for e in range(1, 200)], 0
    )
    assert np.abs(means - LENGTHS.mean()).max() < 6  # standard error 1.2


def test_the_longest_row_opens_the_first_epoch():
    lengths = np.r_[np.full(999, 5), 60]
    places = [order(seed, lengths=lengths).index(999) for seed in range(20)]
    assert sum(place < 16 for place in places) >= 19  # unless it is drawn to be left over


def test_the_rest_is_no_special_length():
    rest = [LENGTHS[order(epoch=e)[992:]].mean() for e in range(200)]
    assert abs(np.mean(rest) - LENGTHS.mean()) < 3  # standard error 0.4


# ---- lengths ----


def test_lengths_are_read_without_the_tokens():
    lists = [[1] * int(length) for length in LENGTHS[:50]]
    rows = Dataset.from_dict({"input_ids": lists, "labels": [0] * 50})
    assert row_lengths(rows).tolist() == LENGTHS[:50].tolist()
    chosen = rows.select([7, 3, 9])
    assert row_lengths(chosen).tolist() == LENGTHS[[7, 3, 9]].tolist()
    both = rows.add_column("decoder_input_ids", [[1, 2]] * 50)
    assert row_lengths(both).tolist() == (LENGTHS[:50] + 2).tolist()


def test_the_longest_ending_counts():
    rows = Dataset.from_dict({"input_ids": [[[1], [1, 2, 3]], [[1, 2], [1]], [[1], []]]})
    assert row_lengths(rows).tolist() == [3, 2, 1]
    assert row_lengths(rows.select([2, 0])).tolist() == [1, 3]


def test_rows_without_tokens_have_no_length():
    assert row_lengths(Dataset.from_dict({"pixel_values": [[1.0]]})) is None
    assert row_lengths([{"pixel_values": [1.0]}]) is None
    assert row_lengths(ROWS).tolist() == [len(row["input_ids"]) for row in ROWS]


# ---- in a training ----


def collate(rows):
    longest = max(len(row["input_ids"]) for row in rows)
    ids = [row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in rows]
    mask = [[int(i > 0) for i in one] for one in ids]
    labels = [row["labels"] for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask),
            "labels": torch.tensor(labels)}  # fmt: skip


def trainer(folder, accumulation=1, stop=None):
    args = tiny.arguments(
        folder,
        per_device_train_batch_size=8 // accumulation,
        gradient_accumulation_steps=accumulation,
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,
    )
    return TransferTrainer(
        tiny.bert(dropout=0.2),
        args,
        train_dataset=Dataset.from_list(ROWS),
        eval_dataset=Dataset.from_list(ROWS),
        data_collator=collate,
        penalty=L2SP(lambda_=0.05),
        callbacks=[StopAt(stop)] if stop else [],
    )


@pytest.mark.parametrize("accumulation", [1, 2])
def test_resuming_is_not_stopping(accumulation, tmp_path):
    whole = trainer(tmp_path / "whole", accumulation)
    whole.train()
    assert whole.state.global_step == 10
    expected = outcome(whole)
    for step in (3, 5, 8):
        folder = tmp_path / str(step)
        trainer(folder, accumulation, stop=step).train()
        resumed = trainer(folder, accumulation)
        resumed.train(resume_from_checkpoint=True)
        found = outcome(resumed)
        assert tiny.different(expected[0], found[0]) == []
        assert found[1:] == expected[1:]


def test_evaluated_rows_stay_in_order(tmp_path):
    given = trainer(tmp_path)
    labels = [int(n) for batch in given.get_eval_dataloader() for n in batch["labels"]]
    assert labels == [row["labels"] for row in ROWS]
    trained = [n for batch in given.get_train_dataloader() for n in batch["attention_mask"].sum(1)]
    assert [int(n) for n in trained] != [len(row["input_ids"]) for row in ROWS]


# ---- by default ----


def strategy(folder, **changes):
    return training_arguments(
        Recipe.load(tiny_run.text_recipe(folder, **changes))
    ).train_sampling_strategy


def test_texts_are_grouped_unless_the_recipe_says_otherwise(tmp_path):
    assert strategy(tmp_path) == "group_by_length"
    assert strategy(tmp_path, training={"train_sampling_strategy": "random"}) == "random"
    columns = {"prompt": "a", "completion": "b"}
    assert TextGeneration(**columns).unequal
    assert not TextGeneration(**columns, packing=True).unequal


def test_texts_that_are_written_are_scored_in_order(tmp_path):
    """Translations of sorted rows would be compared with the references of others."""
    path = tiny_writing.recipe(tmp_path, training={"max_steps": 2, "per_device_eval_batch_size": 2})
    report = run(Recipe.load(path))
    shown = [row["source"] for row in report.data["tables"]["test"]["worst_examples"]]
    assert sorted(shown) == sorted(source for source, _ in tiny_writing.LINES[::4])
