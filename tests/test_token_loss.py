"""The loss of an evaluation is a mean over tokens, whatever the batches were."""

from types import SimpleNamespace

import pytest
import tiny_language
import tiny_writing
import torch
from torch.nn.functional import cross_entropy

from hf_sft import Recipe
from hf_sft.running import prepare
from hf_sft.tasks.token_loss import TokenLoss
from hf_sft.training_arguments import training_arguments


def batch(labels, losses):
    return SimpleNamespace(label_ids=torch.tensor(labels), losses=torch.tensor(losses))


def test_batches_weigh_what_their_tokens_are():
    loss = TokenLoss()
    loss.add(batch([[5, 6, 7], [5, -100, -100]], [1.0, 1.0]))
    loss.add(batch([[5, 6]], [4.0]))
    assert loss.result() == {"loss": pytest.approx((4 * 1.0 + 2 * 4.0) / 6)}
    assert loss.result() == {}


def test_what_fills_a_row_does_not_count():
    loss = TokenLoss(filler=0)
    loss.add(batch([[5, 0, 7, 0, 0], [5, -100, -100, 0, 0], [-100, -100, 0, 0, -100]], [1.0] * 3))
    assert loss.count == 4


def test_rows_of_several_processes_have_losses_of_their_own():
    loss = TokenLoss()
    loss.add(batch([[5, 6, 7], [5, -100, -100]], [1.0, 3.0]))
    assert loss.result() == {"loss": 1.5}


def test_without_losses_trainers_own_number_stays():
    loss = TokenLoss()
    loss.add(SimpleNamespace(label_ids=torch.tensor([[1]]), losses=None))
    assert loss.result() == {}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_written_texts_have_one_loss_for_every_batch_size(smoothing, tmp_path):
    lines = [(" ".join([a] * n), " ".join([b] * n)) for n, (a, b) in
             enumerate(tiny_writing.PAIRS.items(), 1)]  # fmt: skip
    path = tiny_writing.recipe(
        tmp_path, data={}, training={"label_smoothing_factor": smoothing, "eval_strategy": "no"}
    )
    for side, texts in zip(("en", "de"), zip(*lines, strict=True), strict=True):
        tiny_writing.write_lines(tmp_path / f"test.{side}", texts)
    found = losses(path)
    assert found == pytest.approx([found[0]] * 3, rel=1e-5)
    if not smoothing:
        assert found[0] == pytest.approx(one_by_one(path), rel=1e-5)


def test_completions_have_one_loss_for_every_batch_size(tmp_path):
    found = losses(tiny_language.recipe(tmp_path))
    assert found == pytest.approx([found[0]] * 3, rel=1e-5)


def losses(path):
    """``eval_loss`` on test with batches of 1, 3 and 8."""
    recipe = Recipe.load(path)
    prepared, found = prepare(recipe, training_arguments(recipe)), []
    for size in (1, 3, 8):
        prepared.trainer.args.per_device_eval_batch_size = size
        task, rows = recipe.task, prepared.data["test"]
        prepared.trainer.compute_metrics = task.metrics([], prepared.loaded.processor, rows)
        found.append(prepared.trainer.evaluate(prepared.encoded["test"])["eval_loss"])
    return found


@torch.no_grad()
def one_by_one(path):
    """The mean over all tokens of test, from the logits of a row at a time."""
    recipe = Recipe.load(path)
    prepared = prepare(recipe, training_arguments(recipe))
    total = count = 0
    for row in prepared.encoded["test"]:
        given = recipe.task.collator(prepared.loaded.processor)([row])
        logits = prepared.loaded.model.eval()(**given).logits[0]
        total += float(cross_entropy(logits, given["labels"][0], reduction="sum"))
        count += len(given["labels"][0])
    return total / count
