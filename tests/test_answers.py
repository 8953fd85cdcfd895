"""Which answers count, and how far two are apart: against torch's own losses and by hand."""

import pytest
import tiny
import torch
from torch.nn import functional as F

from hf_sft.errors import UserError
from hf_sft.penalties.answers import (
    counted,
    divergence,
    kind_of,
    logits_of,
    shifts_labels,
    symmetric,
    without_labels,
)


def test_divergence_of_classes_is_torchs():
    p, q = torch.randn(7, 5), torch.randn(7, 5)
    for tau in (0.5, 1.0, 2.0):
        expected = F.kl_div((q / tau).log_softmax(-1), (p / tau).softmax(-1), reduction="none").sum(
            -1
        )
        assert torch.allclose(divergence(p, q, "classes", tau), expected, atol=1e-6)


def test_divergence_of_flags_is_the_sum_of_two_class_divergences():
    p, q = torch.randn(7, 5), torch.randn(7, 5)
    pairs = [torch.stack([torch.zeros_like(x), x], -1).reshape(-1, 2) for x in (p, q)]
    expected = divergence(*pairs, "classes").view(7, 5).sum(-1)
    assert torch.allclose(divergence(p, q, "flags"), expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["classes", "flags", "values"])
def test_divergence_is_zero_for_the_same_answer_and_positive_otherwise(kind):
    p = torch.randn(50, 4) * 5
    assert divergence(p, p, kind).abs().max() < 1e-6
    assert (divergence(p, torch.randn(50, 4), kind) > 0).all()


@pytest.mark.parametrize("kind", ["classes", "flags"])
def test_symmetric_is_the_sum_of_both_and_keeps_its_digits(kind):
    p, q = torch.randn(9, 4, dtype=torch.float64), torch.randn(9, 4, dtype=torch.float64)
    both = divergence(p, q, kind) + divergence(q, p, kind)
    assert torch.allclose(symmetric(p, q, kind), both, rtol=1e-4)
    near = p.float() + 1e-4 * torch.randn(9, 4)
    assert (symmetric(p.float(), near, kind) >= 0).all()


def test_temperature_squared_keeps_the_gradient():
    """τ²·KL at a high temperature is ½·Σ((z − z̄) − (z⁰ − z̄⁰))²/classes (Hinton et al. 2015)."""
    p, q = torch.randn(6, 4), torch.randn(6, 4)
    tau = 300.0
    centred = (p - p.mean(-1, keepdim=True)) - (q - q.mean(-1, keepdim=True))
    expected = 0.5 * centred.square().mean(-1)
    pd, qd = p.double(), q.double()
    log_p, log_q = (pd / tau).log_softmax(-1), (qd / tau).log_softmax(-1)
    assert torch.allclose(
        (tau**2 * (log_p.exp() * (log_p - log_q)).sum(-1)).float(), expected, rtol=1e-2
    )


# ---- which ones count ----


def test_every_example_counts_the_same():
    logits = torch.randn(6, 3)
    rows, weights = counted(logits, {"labels": torch.zeros(6)}, tiny.bert())
    assert torch.equal(rows, logits)
    assert torch.equal(weights, torch.full((6,), 1 / 6))


def test_labelled_positions_count_the_same():
    labels = torch.tensor([[1, -100, 2], [-100, -100, 0]])
    logits = torch.randn(2, 3, 4)
    rows, weights = counted(logits, {"labels": labels}, tiny.bert_tokens())
    assert torch.equal(rows, torch.stack([logits[0, 0], logits[0, 2], logits[1, 2]]))
    assert torch.allclose(weights, torch.full((3,), 1 / 3))


def test_language_models_are_asked_where_they_predict():
    """The mean is the one their own loss is taken over."""
    model = tiny.gpt2()
    batch = {k: torch.tensor([r[k] for r in tiny.prose(5)]) for k in ("input_ids", "labels")}
    outputs = model(**batch)
    rows, weights = counted(outputs.logits, batch, model)
    labels = batch["labels"][:, 1:]
    losses = F.cross_entropy(rows, labels[labels != -100], reduction="none")
    assert (weights * losses).sum().item() == pytest.approx(outputs.loss.item(), rel=1e-6)


@pytest.mark.parametrize("kind", ["bert-tokens", "t5"])
def test_other_models_are_asked_where_they_have_labels(kind):
    build, rows = tiny.KINDS[kind]
    model, batch = build(), {}
    batch = {k: torch.tensor([r[k] for r in rows(5)]) for k in ("input_ids", "labels")}
    outputs = model(**batch)
    chosen, weights = counted(outputs.logits, batch, model)
    losses = F.cross_entropy(chosen, batch["labels"][batch["labels"] != -100], reduction="none")
    assert (weights * losses).sum().item() == pytest.approx(outputs.loss.item(), rel=1e-6)
    assert not shifts_labels(model)


def test_without_labels_per_position_every_example_is_the_mean_of_its_real_positions():
    logits, mask = torch.randn(2, 3, 4), torch.tensor([[1, 1, 0], [1, 0, 0]])
    rows, weights = counted(logits, {"labels": torch.zeros(2), "attention_mask": mask}, tiny.bert())
    assert torch.equal(rows, torch.stack([logits[0, 0], logits[0, 1], logits[1, 0]]))
    assert torch.allclose(weights, torch.tensor([0.25, 0.25, 0.5]))


def test_maps_of_answers_count_every_place():
    logits = torch.randn(2, 3, 4, 5)
    rows, weights = counted(logits, {}, tiny.bert())
    assert rows.shape == (40, 3)
    assert torch.equal(rows[7], logits[0, :, 1, 2])
    assert weights.sum().item() == pytest.approx(1)


def test_spans_are_two_answers_over_positions():
    outputs = {"start_logits": torch.randn(2, 7), "end_logits": torch.randn(2, 7)}
    rows, weights = counted(logits_of(outputs), {"attention_mask": torch.ones(2, 7)}, tiny.bert())
    assert torch.equal(rows[1], outputs["end_logits"][0])
    assert torch.allclose(weights, torch.full((4,), 0.25))


def test_what_has_no_logits_is_refused():
    with pytest.raises(UserError, match="no logits"):
        logits_of({"last_hidden_state": torch.zeros(1)})


def test_kinds_of_answers():
    model = tiny.bert()
    assert kind_of(model, torch.zeros(2, 3)) == "classes"
    assert kind_of(model, torch.zeros(2, 1)) == "values"
    model.config.problem_type = "multi_label_classification"
    assert kind_of(model, torch.zeros(2, 3)) == "flags"
    model.config.problem_type = "regression"
    assert kind_of(model, torch.zeros(2, 3)) == "values"


def test_labels_stay_where_the_decoder_needs_them():
    batch = {"input_ids": torch.zeros(2, 3), "labels": torch.zeros(2, 4)}
    assert without_labels(batch, tiny.t5()) == batch
    assert without_labels(batch, tiny.bert()).keys() == {"input_ids"}
    given = {**batch, "decoder_input_ids": torch.zeros(2, 4)}
    assert without_labels(given, tiny.t5()).keys() == {"input_ids", "decoder_input_ids"}
    assert "labels" not in without_labels({**batch, "labels": torch.zeros(2)}, tiny.t5())
