"""What training draws for a row is a function of seed, epoch and row: of nothing else."""

import copy

import pytest
import tiny
import torch
from datasets import Dataset
from test_resume import StopAt
from tiny_run import WORDS, source_folder
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, TrainerCallback

from hf_sft import L2SP, TransferTrainer
from hf_sft.draws import Draws, mixed
from hf_sft.tasks.masking import MaskingCollator


class Sees(TrainerCallback):
    """Keeps the batches of the trainings' steps, by step."""

    def __init__(self):
        self.batches = {}

    def __call__(self, inputs, step):
        self.batches.setdefault(step, []).append({k: v.clone() for k, v in inputs.items()})


class Watched(TransferTrainer):
    def training_step(self, model, inputs, *args, **kwargs):
        self.sees(inputs, self.state.global_step)
        return super().training_step(model, inputs, *args, **kwargs)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(source_folder(tmp_path_factory.mktemp("bert")))


@pytest.fixture(scope="module")
def rows(tokenizer):
    texts = [
        f"{a} {b} {c}" for a, b, c in zip(WORDS * 4, WORDS[3:] * 6, WORDS[5:] * 8, strict=False)
    ]
    ids = [tokenizer(text)["input_ids"] for text in texts[:36]]
    return Dataset.from_dict({"input_ids": ids, "row": list(range(len(ids)))})


def trained(rows, tokenizer, folder, stop=None, resume=None, size=8, dropout=0.2, **changes):
    """2 epochs of 5 steps over 36 rows."""
    torch.manual_seed(0)
    small = {**tiny.bert_config(dropout).to_dict(), "vocab_size": 15}
    model = BertForMaskedLM(BertConfig(**small))
    torch.manual_seed(stop or 99)  # a new process knows nothing of the old one's draws
    args = tiny.arguments(
        folder, per_device_train_batch_size=size, remove_unused_columns=False, **changes
    )
    run = Watched(
        model, args, train_dataset=rows, data_collator=MaskingCollator(tokenizer, 0.4),
        penalty=L2SP(lambda_=0.05), fresh=(), callbacks=[StopAt(stop)] if stop else [],
    )  # fmt: skip
    run.sees = Sees()
    run.train(resume_from_checkpoint=resume)
    return run


def same_batches(first, second):
    return all(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
        for one, two in zip(first, second, strict=True)
        for a, b in zip(one, two, strict=True)
    )


@pytest.fixture(scope="module")
def whole(rows, tokenizer, tmp_path_factory):
    return trained(rows, tokenizer, tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("step", [1, 3, 5, 8])
def test_a_resumed_run_is_the_uninterrupted_one(whole, rows, tokenizer, tmp_path, step):
    """Cut inside the first epoch, between epochs (step 5), inside the second."""
    trained(rows, tokenizer, tmp_path, stop=step)
    resumed = trained(rows, tokenizer, tmp_path, resume=True)
    assert tiny.different(tiny.weights(whole.model), tiny.weights(resumed.model)) == []
    rest = range(step, 10)
    assert list(resumed.sees.batches) == list(rest)
    seen = [[run.sees.batches[s] for s in rest] for run in (whole, resumed)]
    assert same_batches(*seen)


@pytest.mark.parametrize("persistent", [False, True], ids=["new-workers", "same-workers"])
def test_two_workers_draw_what_none_draws(whole, rows, tokenizer, tmp_path, persistent):
    run = trained(
        rows, tokenizer, tmp_path, dataloader_num_workers=2,
        dataloader_persistent_workers=persistent,
    )  # fmt: skip
    assert same_batches(whole.sees.batches.values(), run.sees.batches.values())


def test_a_step_is_the_same_for_any_accumulation(rows, tokenizer, tmp_path):
    settings = {"dropout": 0.0, "optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0}
    one = trained(rows, tokenizer, tmp_path, **settings)
    for parts in (2, 4):
        cut = trained(
            rows, tokenizer, tmp_path, size=8 // parts, gradient_accumulation_steps=parts,
            **settings,
        )  # fmt: skip
        assert tiny.distance(tiny.weights(one.model), tiny.weights(cut.model)) <= 1e-6


def test_masks_differ_between_epochs_and_seeds(rows, tokenizer, tmp_path):
    """Rows in the data's order: steps s and s + 5 have the same ones."""
    orderly = {"train_sampling_strategy": "sequential"}
    run = trained(rows, tokenizer, tmp_path, **orderly)
    other = trained(rows, tokenizer, tmp_path, seed=7, **orderly)
    again = trained(rows, tokenizer, tmp_path, seed=7, data_seed=42, **orderly)  # 42: the default
    for step in range(5):
        first, second, differently, same = (
            found.sees.batches[at][0]["labels"]
            for found, at in ((run, step), (run, step + 5), (other, step), (again, step))
        )
        assert first.shape == second.shape
        assert not torch.equal(first, second)
        assert not torch.equal(first, differently)
        assert torch.equal(first, same)


def test_a_copy_hears_the_epoch_and_every_number_counts():
    draws = Draws()
    other = copy.deepcopy({"transform": draws})["transform"]
    draws.begin(3, 2)
    assert other.seed(5) == mixed(3, 2, 5)
    found = [mixed(*numbers) for numbers in ((3, 2, 5), (2, 3, 5), (3, 5, 2), (3, 2, 6), (0, 0, 0))]
    assert len({*found}) == len(found)
    assert all(0 <= number < 2**63 for number in found)
    draw = draws.generator(5)
    assert torch.equal(torch.rand(4, generator=draw), torch.rand(4, generator=other.generator(5)))
