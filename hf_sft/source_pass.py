"""SourcePass: what function priors need to see of the source and of the model that trains."""

import copy
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hf_sft.embeddings import Taps
from hf_sft.layer_groups import LayerGroups
from hf_sft.loss_scale import collator, undisturbed
from hf_sft.pull import Pull
from hf_sft.source_function import SourceFunction, keys

log = logging.getLogger(__name__)
BATCH = 32  # examples at a time when the source's outputs are computed beforehand


class SourcePass:
    """Sees what passes through the model, and f_θ⁰ beside it; nothing where no prior asks.

    Args:
        source: the source with its own head; None takes a copy of ``model`` as it is now.
    """

    def __init__(
        self, pull: Pull, model: nn.Module, groups: LayerGroups, source: nn.Module | None = None
    ):
        self.pull, self.groups = pull, groups
        self.function: SourceFunction | None = None
        self.taps: Taps | None = None
        priors = pull.function_priors
        if not priors:
            return
        self.needs = frozenset().union(*(prior.needs for prior in priors))
        self.layers = [name for prior in priors for name in prior.layers(model, groups)]
        if any(prior.source for prior in priors):
            # Before the model is tapped: a copy would carry the hooks.
            original = copy.deepcopy(model) if source is None else source
            head = source is not None or not pull.start.fresh
            self.function = SourceFunction(original, self.needs, self.layers, head)
            self.function.own_head = source is not None and bool(pull.start.fresh)
            self.function.head_names = frozenset(groups.head.parameters) | pull.start.fresh
        self.take(model)

    def take(self, model: nn.Module) -> None:
        """Watch this model from now on."""
        if self.pull.function_priors:
            if self.taps is not None:
                self.taps.remove()
            self.model = model
            self.taps = Taps(model, "embeddings" in self.needs, self.layers)

    def prepare(self, trainer: Any) -> None:
        """Compute f_θ⁰ on the train set beforehand where every example will be seen again.

        In the data's order, so that a run that resumes finds the same numbers bit for bit.
        """
        if self.function is None:
            return
        self.function.model.to(trainer.args.device)
        rows = trainer.train_dataset
        again = trainer.args.max_steps > 0 or trainer.args.num_train_epochs > 1
        if not again or not hasattr(rows, "__len__") or not hasattr(rows, "__getitem__"):
            return
        with undisturbed(trainer.model):
            collate = collator(trainer)
            first = [rows[i] for i in range(min(8, len(rows)))]
            second = [rows[i] for i in range(min(8, len(rows)))]
            if keys(collate(first)) != keys(collate(second)):
                return  # augmented anew each time
            kept = self.function.remember(self._batches(trainer, rows, collate))
        if kept:
            log.info("The source's outputs on %d examples are computed once.", kept)

    def _batches(self, trainer: Any, rows: Any, collate: Any) -> Iterator[dict]:
        for batch in DataLoader(rows, BATCH, collate_fn=collate):
            yield trainer._prepare_inputs(batch)

    def loss(self, inputs: dict[str, Any], outputs: Any) -> Tensor:
        """Σ weight · loss of all function priors on the batch that has just passed the model."""
        self.taps.outputs = outputs
        then = self.function(inputs) if self.function is not None else None
        if then is not None:
            then.function = self.function
        found = [
            prior.weight * prior.loss(self.model, then, inputs, self.taps)
            for prior in self.pull.function_priors
        ]
        return torch.stack(found).sum()
