from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score

from hf_sft.tasks.classification_metrics import SCALARS, StreamingClassification
from hf_sft.tasks.classification_scores import calibration_error

NAMES = ["a", "b", "c", "never"]


def batches(logits, labels, size):
    """Each batch as Trainer gives it, and whether it is the last."""
    starts = range(0, len(labels), size)
    for start in starts:
        part = SimpleNamespace(
            predictions=logits[start : start + size], label_ids=labels[start : start + size]
        )
        yield part, start == starts[-1]


def streamed(metric, logits, labels, size):
    for part, last in batches(logits, labels, size):
        result = metric(part, compute_result=last)
    return result


@pytest.fixture
def answers():
    logits, labels = torch.randn(50, 4), torch.randint(3, (50,))
    logits[:, 3] -= 100
    return logits, labels


@pytest.mark.parametrize("size", [1, 7, 50])
def test_streaming_equals_sklearn_whatever_the_batches(answers, size):
    logits, labels = answers
    guesses = logits.argmax(-1).numpy()
    found = streamed(StreamingClassification(NAMES), logits, labels, size)
    assert found["accuracy"] == pytest.approx((guesses == labels.numpy()).mean())
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, guesses))
    assert found["macro_f1"] == pytest.approx(f1_score(labels, guesses, average="macro"))
    assert all(isinstance(value, float) for value in found.values())
    assert tuple(found) == SCALARS


def test_a_second_evaluation_starts_anew(answers):
    logits, labels = answers
    metric = StreamingClassification(NAMES)
    first = streamed(metric, logits, labels, 8)
    assert streamed(metric, logits, labels, 8) == first
    assert sum(map(sum, metric.tables["confusion_matrix"])) == len(labels)


def test_tables_name_every_class(answers):
    logits, labels = answers
    metric = StreamingClassification(NAMES)
    streamed(metric, logits, labels, 8)
    assert [row["label"] for row in metric.tables["per_class"]] == NAMES
    assert metric.tables["per_class"][3]["count"] == 0
    matrix = np.array(metric.tables["confusion_matrix"])
    assert matrix.sum(axis=1).tolist() == torch.bincount(labels, minlength=4).tolist()


def test_logits_in_a_tuple_are_the_first_member(answers):
    logits, labels = answers
    plain = streamed(StreamingClassification(NAMES), logits, labels, 50)
    part = SimpleNamespace(predictions=(logits, "hidden states"), label_ids=labels)
    assert StreamingClassification(NAMES)(part, compute_result=True) == plain


def test_calibration_error_by_hand():
    sure_and_right = calibration_error(np.ones(4), np.ones(4))
    sure_and_wrong = calibration_error(np.ones(4), np.zeros(4))
    half_right = calibration_error(np.full(4, 0.75), np.array([1.0, 1, 0, 0]))
    assert (sure_and_right, sure_and_wrong, half_right) == pytest.approx((0, 1, 0.25))
