"""Packing: every example, packed, has the losses it has alone."""

import pytest
import tiny_language
import torch
from datasets import Dataset, disable_progress_bars
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from hf_sft.errors import SourceError
from hf_sft.tasks.language_collator import LanguageCollator
from hf_sft.tasks.packing import packed, plan, refuse_leak

disable_progress_bars()
ROOM = 24
LENGTHS = [3, 9, 1, 7, 12, 2, 24, 5, 5, 4]


def examples():
    generator = torch.Generator().manual_seed(1)
    words = len(tiny_language.WORDS)
    ids = [torch.randint(words, (n,), generator=generator).tolist() for n in LENGTHS]
    labels = [[-100, *one[1:]] for one in ids]
    return Dataset.from_dict({"input_ids": ids, "labels": labels})


def losses(model, rows, size):
    """The loss of every labelled token, with the token, in an order of its own."""
    found = []
    for batch in DataLoader(rows, size, collate_fn=LanguageCollator(0)):
        labels = batch.pop("labels")[:, 1:].flatten()
        with torch.no_grad():
            logits = model(**batch).logits[:, :-1].flatten(0, 1)
        each = cross_entropy(logits, labels, reduction="none", ignore_index=-100)
        found += [
            (int(label), float(one))
            for label, one in zip(labels, each, strict=True)
            if label != -100
        ]
    return sorted(found)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", tiny_language.KINDS)
@pytest.mark.parametrize("size", [1, 3])
def test_a_packed_batch_gives_the_losses_of_its_parts(kind, attention, size):
    model, rows = tiny_language.KINDS[kind](attention), examples()
    together = packed(rows, ROOM)
    assert len(together) < len(rows)
    alone, found = losses(model, rows, 1), losses(model, together, size)
    assert [label for label, _ in found] == [label for label, _ in alone]
    assert [one for _, one in found] == pytest.approx([one for _, one in alone], abs=1e-4)


def test_the_law_can_be_broken():
    """One row without positions that start again, and the losses are others."""
    model, rows = tiny_language.llama(), examples()
    together = packed(rows, ROOM).remove_columns("position_ids")
    wrong = losses(model, together, 1)
    assert max(abs(a - b) for (_, a), (_, b) in zip(wrong, losses(model, rows, 1), strict=True)) > 1


@pytest.mark.parametrize("kind", tiny_language.KINDS)
def test_the_gradient_of_a_packed_batch_is_that_of_its_parts(kind):
    rows, found = examples(), []
    for data in (rows, packed(rows, ROOM)):
        model = tiny_language.KINDS[kind]()
        for batch in DataLoader(data, 2, collate_fn=LanguageCollator(0)):
            model(**batch, num_items_in_batch=torch.tensor(10)).loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in found[0].items():
        scale = float(gradient.abs().max())
        assert torch.allclose(gradient, found[1][name], rtol=0, atol=2e-5 * scale + 1e-7), name


@pytest.mark.parametrize("room", [24, 25, 40, 1000])
def test_a_plan_holds_every_example_once_and_no_pack_is_too_long(room):
    packs = plan(LENGTHS, room)
    assert sorted(row for pack in packs for row in pack) == list(range(len(LENGTHS)))
    assert all(sum(LENGTHS[row] for row in pack) <= room for pack in packs)
    assert packs == plan(LENGTHS, room)
    assert len(packs) <= 11 / 9 * -(-sum(LENGTHS) // room) + 4


def test_best_fit_fills_what_first_fit_would_leave():
    assert plan([6, 4, 5, 5], 10) == [[0, 1], [2, 3]]
    assert plan([], 10) == []
    assert plan([3] * 4, 3) == [[0], [1], [2], [3]]


@pytest.mark.parametrize("kind", tiny_language.KINDS)
def test_a_model_that_keeps_them_apart_passes(kind):
    model = tiny_language.KINDS[kind]().train()
    refuse_leak(model)
    assert model.training


def test_a_model_that_lets_them_see_each_other_is_refused():
    model = tiny_language.llama()
    forward = model.forward
    model.forward = lambda position_ids, **kwargs: forward(**kwargs)
    with pytest.raises(SourceError, match="packing: false"):
        refuse_leak(model)


def test_a_model_without_positions_is_refused():
    model = tiny_language.llama()
    model.forward = lambda input_ids, use_cache: None
    with pytest.raises(SourceError, match="takes no position_ids"):
        refuse_leak(model)
