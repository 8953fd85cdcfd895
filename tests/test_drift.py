"""How far a model left its source: in weights, in function, in what its layers show."""

import copy

import pytest
import tiny
import torch
from datasets import Dataset
from transformers import default_data_collator

from hf_sft import LayerGroups, StartingPoint
from hf_sft.reporting import drift

FRESH = {"classifier.weight", "classifier.bias"}


def moved(kind="bert", by=0.1, where=None):
    """(source, model, its groups, θ⁰) with parameters moved by known amounts."""
    model = tiny.KINDS[kind][0]().eval()
    groups = LayerGroups.of(model, fresh=FRESH if kind == "bert" else ())
    start = StartingPoint.of(model, groups.fresh, groups=groups)
    source = copy.deepcopy(model)
    with torch.no_grad():
        for i, name in enumerate(groups.parameters):
            if where is None or name in where:
                weight = model.get_parameter(name)
                weight.add_(torch.randn(weight.shape, generator=tiny._generator(i)), alpha=by)
    return source, model, groups, start


def flat(model, names):
    return torch.cat([model.get_parameter(name).detach().double().flatten() for name in names])


@pytest.mark.parametrize("by", [1e-4, 0.1])
def test_distances_are_those_of_the_flattened_weights(by):
    source, model, groups, start = moved(by=by)
    for group, row in zip(groups, start.distance(model, groups), strict=True):
        names = [name for name in group.parameters if name not in FRESH]
        if not names:
            assert set(row.values()) == {group.name, None}
            continue
        now, then = flat(model, names), flat(source, names)
        assert row["drift"] == pytest.approx(float((now - then).norm()), rel=1e-6)
        assert row["relative_drift"] == pytest.approx(row["drift"] / float(then.norm()), rel=1e-6)
        assert row["max_drift"] == pytest.approx(float((now - then).abs().max()), rel=1e-6)
        angle = 1 - torch.nn.functional.cosine_similarity(now, then, dim=0)
        assert 1 - row["cosine"] == pytest.approx(float(angle), rel=1e-2)


def test_what_has_not_moved_has_distance_zero_and_cosine_one():
    _, model, groups, start = moved(where=())
    rows = start.distance(model, groups)
    assert {row["drift"] for row in rows} == {0.0, None}
    assert {row["cosine"] for row in rows} == {1.0, None}
    assert {row["max_drift"] for row in rows} == {0.0, None}


def test_turning_around_is_cosine_minus_one():
    _, model, groups, start = moved(where=())
    with torch.no_grad():
        for name in groups.blocks[0].parameters:
            model.get_parameter(name).mul_(-2)
    row = start.distance(model, groups)[1]
    assert row["cosine"] == pytest.approx(-1, abs=1e-6)
    assert row["relative_drift"] == pytest.approx(3, rel=1e-6)


def test_only_rows_from_the_source_count_where_embeddings_grew():
    model = tiny.bert()
    name = "bert.embeddings.word_embeddings.weight"
    groups = LayerGroups.of(model, fresh=FRESH)
    start = StartingPoint.of(model, FRESH, groups=groups, rows={name: 30})
    with torch.no_grad():
        model.get_parameter(name)[30:] += 5
    row = start.distance(model, groups)[0]
    assert (row["drift"], row["cosine"], row["max_drift"]) == (0.0, 1.0, 0.0)


def compared(source, model, groups, has_head=False, rows=24):
    data = Dataset.from_list(tiny.texts(rows))
    original, head = copy.deepcopy(source), set(groups.head.parameters)
    return drift.compare(original, has_head, model, head, data, default_data_collator, groups)


@pytest.mark.parametrize("has_head", [True, False])
def test_a_model_that_did_not_move_keeps_everything(has_head):
    source, model, groups, _ = moved(where=())
    kept, layers = compared(source, model, groups, has_head)
    assert kept["examples"] == 24
    if has_head:
        assert (kept["kl"], kept["top1_agreement"]) == (pytest.approx(0, abs=1e-7), 1.0)
    else:
        assert kept["spearman"] == pytest.approx(1)
    assert [row["name"] for row in layers] == [g.name for g in groups if g.role != "head"]
    assert [row["cka"] for row in layers] == pytest.approx([1] * len(layers), abs=1e-9)
    assert [row["r2"] for row in layers] == pytest.approx([1] * len(layers), abs=1e-9)


def test_a_new_head_alone_changes_nothing_of_the_sources_function():
    source, model, groups, _ = moved(where=FRESH, by=1)
    kept, layers = compared(source, model, groups, has_head=True)
    assert kept["top1_agreement"] == 1.0
    assert min(row["cka"] for row in layers) == pytest.approx(1, abs=1e-9)


def test_the_further_the_backbone_moved_the_less_is_kept():
    found = [compared(*moved(by=by)[:3]) for by in (0.01, 0.3)]
    (near, near_layers), (far, far_layers) = found
    assert 1 > near["spearman"] > far["spearman"]
    for close, distant in zip(near_layers, far_layers, strict=True):
        assert 1 > close["cka"] > distant["cka"]
        assert 1 > close["r2"] > distant["r2"]


def test_retention_is_the_same_alone():
    source, model, groups, _ = moved()
    data, head = Dataset.from_list(tiny.texts(24)), set(groups.head.parameters)
    alone = drift.retention(source, False, model, head, data, default_data_collator)
    assert alone == compared(moved()[0], model, groups)[0]


def by_hand(source, model, kind, data):
    """(KL, agreement, answers) over all positions with a label, all logits held at once."""
    kl, same = [], []
    for row in data:
        batch = default_data_collator([row])
        then, now = (m(**batch).logits[0].double().log_softmax(-1) for m in (source, model))
        labels = batch["labels"][0]
        if kind == "gpt2":  # a position predicts the next one's label
            then, now, labels = then[:-1], now[:-1], labels[1:]
        then, now = then[labels != -100], now[labels != -100]
        kl += (then.exp() * (then - now)).sum(-1).tolist()
        same += (then.argmax(-1) == now.argmax(-1)).float().tolist()
    return sum(kl) / len(kl), sum(same) / len(same), len(kl)


@pytest.mark.parametrize("kind", ["gpt2", "t5", "bert-tokens"])
@torch.no_grad()
def test_models_that_answer_at_every_position_are_compared_where_a_label_is(kind):
    source, model, groups, _ = moved(kind)
    data = Dataset.from_list(tiny.KINDS[kind][1](40))
    expected = by_hand(source, model, kind, data)
    kept, layers = drift.compare(
        copy.deepcopy(source), True, model, set(), data, default_data_collator, groups
    )
    found = kept["kl"], kept["top1_agreement"], kept["answers"]
    assert found == pytest.approx(expected, rel=1e-4)
    assert kept["kl"] > 0.001
    assert {row["name"] for row in layers} <= {group.name for group in groups}


def test_the_source_has_the_tuned_backbone_afterwards_tied_weights_included():
    source, model, groups, _ = moved("t5")
    data = Dataset.from_list(tiny.prose(4))
    drift.compare(source, True, model, set(), data, default_data_collator, groups)
    assert tiny.different(tiny.weights(source), tiny.weights(model)) == []
    assert source.lm_head.weight is source.shared.weight


def test_a_part_of_the_positions_stands_for_all_and_logits_are_let_go_of(monkeypatch):
    """Few positions of many batches: those looked at are spread over all rows."""
    monkeypatch.setattr(drift, "POSITIONS", 20)
    monkeypatch.setattr(drift, "MOST_LOGITS", 4 * tiny.WORDS * tiny.LENGTH)
    monkeypatch.setattr(drift, "AT_ONCE", 2 * tiny.WORDS)
    source, model, _, _ = moved("gpt2")
    data, sizes = Dataset.from_list(tiny.prose(40)), []
    source.register_forward_pre_hook(
        lambda _, args, given: sizes.append(len(given["input_ids"])), with_kwargs=True
    )
    kept = drift.retention(source, True, model, set(), data, default_data_collator)
    assert sizes == [4] * 20  # ten batches, each through both models
    assert kept["answers"] == 20
    few = drift._SameFunction(most=3)
    few.add(torch.eye(7), torch.eye(7)[[0, 1, 2, 3, 5, 4, 6]])  # items 0, 2 and 4 are looked at
    assert (few.items, few.agreeing) == (3, 2)


def test_pixels_are_answers_too():
    """(examples, classes, height, width): the classes of a pixel are one answer."""
    logits = torch.arange(48.0).view(2, 3, 2, 4)
    found = drift._answers({"logits": logits}, {}, torch.nn.Identity())
    assert found.shape == (16, 3)
    assert found[5].tolist() == logits[0, :, 1, 1].tolist()
