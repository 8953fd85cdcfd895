"""A finished run together with its source, its rows, and a model to try other weights in."""

import copy
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from torch import Tensor
from torch.utils.data import DataLoader

from hf_sft import saved
from hf_sft.errors import DataError, SourceError
from hf_sft.models import LoadedModel, load_model
from hf_sft.recipe import Recipe
from hf_sft.reporting import drift
from hf_sft.starting_point import StartingPoint
from hf_sft.weights import derived
from hf_sft.weights.held_out import HeldOut, load_rows
from hf_sft.weights.norm_statistics import reestimate_statistics_, statistical_norms
from hf_sft.weights.weight_space import copied

log = logging.getLogger(__name__)

MOST_MEASURED = 2048  # rows for the statistics of batch norm


@dataclass
class Origin:
    """What a blend or a soup is made of and measured with.

    Attributes:
        model: the bench: `put` gives it weights.
        given: state dicts of the models as they were trained; they keep their own statistics.
    """

    run: Path
    recipe: Recipe
    facts: dict[str, Any]
    model: Any
    processor: Any
    loaded: LoadedModel
    data: DatasetDict
    held_out: HeldOut
    given: list[dict[str, Tensor]] = field(default_factory=list)

    @classmethod
    def of(cls, run: Path) -> "Origin":
        """Load a run and its source.

        Raises:
            UserError: no finished run, or its source or its data are gone or others.
        """
        facts = derived.facts(run)
        recipe, model, processor = saved.load(run, opens=["data", "model"])
        _refuse_anchored(recipe)
        data, held_out = load_rows(recipe)
        names = recipe.task.trained_names(model.config)
        saved.refuse_other_classes(recipe, data, names)
        _refuse_other_rows(data, facts)
        loaded = load_model(recipe.model, recipe.task, names, recipe.locate)
        start = StartingPoint.of(loaded.model, fresh=loaded.fresh, trains=[])
        _refuse_other_source(start.fingerprint, facts)
        origin = cls(run, recipe, facts, model, processor, loaded, data, held_out)
        origin.given.append(copied(model.state_dict()))
        return origin

    @property
    def tuned(self) -> dict[str, Tensor]:
        """θ of the run."""
        return self.given[0]

    @cached_property
    def source(self) -> dict[str, Tensor]:
        """θ⁰, with a head that nobody trained."""
        return self.loaded.model.state_dict()

    @property
    def metric(self) -> str:
        """What the target is measured by."""
        return self.recipe.task.selection_metric

    @property
    def sign(self) -> int:
        """1 where more of the metric is better, −1 where less is, as of a perplexity."""
        return 1 if self.recipe.task.greater_is_better else -1

    def put(self, state: Mapping[str, Tensor], measure_again: bool = True) -> list[str]:
        """Give the bench these weights; names of the batch norms whose statistics are measured.

        Statistics that training moved away from the source's belong to the weights they were
        measured with, so they are measured again on the run's training rows.
        """
        self.model.load_state_dict(state)
        known = not measure_again or any(_equal(state, given) for given in self.given)
        moved = [] if known else self._moved(state)
        if moved:
            reestimate_statistics_(self.model, self._mixed_batches(), moved)
        return moved

    def measure(self, split: str | None = None) -> dict[str, float]:
        """The task's metrics of the bench on a split, or on the held-out rows."""
        rows = self.held_out.rows if split is None else self.data[split]
        return saved.measure(self.recipe, self.model, self.processor, rows, quiet=True)

    def retention(self) -> float | None:
        """How much of the source's function is kept on the held-out rows, 1 for all; or None."""
        original, has_head = self._original
        original = copy.deepcopy(original)  # drift.compare changes it
        sides = self.loaded.compared(original, self._collate, self.loaded.groups, self.model)
        try:
            found = drift.compare(
                original, has_head, rows=self._held_out, **{**sides, "groups": ()}
            )[0]
        except Exception as error:  # two towers, decoders: no one embedding
            log.warning("The source's function was not measured: %s", error)
            return None
        return next((found[key] for key in drift.KEPT if key in found), None)

    def encode(self, rows: Dataset) -> Dataset:
        """Raw rows as the model takes them."""
        return self.recipe.task.encode(rows, self.processor, self.model.config)

    @cached_property
    def _original(self) -> tuple[Any, bool]:
        return self.loaded.original()

    @cached_property
    def _held_out(self) -> Dataset:
        return self.encode(self.held_out.rows)

    @property
    def _collate(self) -> Any:
        return self.recipe.task.collator(self.processor)

    def _moved(self, state: Mapping[str, Tensor]) -> list[str]:
        def is_sources(name: str) -> bool:
            return torch.equal(state[name].cpu(), self.source[name].cpu())

        return [
            name
            for name in statistical_norms(self.model)
            if not (is_sources(f"{name}.running_mean") and is_sources(f"{name}.running_var"))
        ]

    def _mixed_batches(self) -> Iterator[dict]:
        return mixed_batches(self.data["train"], self.encode, self._collate, 32)


def mixed_batches(rows: Dataset, encode: Any, collate: Any, size: int) -> DataLoader:
    """Batches in seeded random order, none of a single row: batch norm cannot use it."""
    rows = rows.shuffle(seed=0).select(range(min(MOST_MEASURED, len(rows))))
    alone = len(rows) % size == 1 and len(rows) > 1
    return DataLoader(encode(rows), size, collate_fn=collate, drop_last=alone)


def _equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(first[name].cpu(), second[name]) for name in second)


def _refuse_other_rows(data: DatasetDict, facts: dict) -> None:
    for name, count in facts.get("splits", {}).items():
        if len(data.get(name, ())) != count:
            raise DataError(
                f"data.{name}: there are {len(data.get(name, ()))} rows now; the run had {count}. "
                "Restore the data: rows held out from that run cannot be told from others."
            )


def _refuse_anchored(recipe: Recipe) -> None:
    if recipe.model.anchor is not None:
        raise SourceError(
            "model.anchor: this run was pulled to another source than the one it started from, so "
            "there is no one way back. Blends and soups take runs without an anchor."
        )


def _refuse_other_source(fingerprint: str, facts: dict) -> None:
    recorded = facts["source"]["fingerprint"]
    if fingerprint != recorded:
        raise SourceError(
            f"model.name: the source has the fingerprint {fingerprint[:12]}… now, the run was "
            f"trained from {recorded[:12]}…. Restore the source it was trained from."
        )
