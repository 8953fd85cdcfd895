"""SourcePass: what function priors need to see of the source and of the model that trains."""

import copy
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hf_sft.embeddings import Taps
from hf_sft.errors import UserError
from hf_sft.layer_groups import LayerGroups
from hf_sft.training.loss_scale import collator, undisturbed
from hf_sft.training.pull import Pull
from hf_sft.training.source_function import SourceFunction, SourceOutputs, keys

log = logging.getLogger(__name__)
BATCH = 32  # examples at a time when the source's outputs are computed beforehand
NO_HEAD = (
    "penalty: {} compares the answers of the source's own head, and this source came without one "
    "for this task: its head here is new. Take {{type: similarity}}, give the trainer source= the "
    "model with its own head, or name a source that has one."
)


class SourcePass:
    """Sees what passes through the model, and f_θ⁰ beside it; nothing where no prior asks.

    The source is a copy of ``model`` as it is now, which shares the storage of what never trains,
    or ``source``, with its own head. Neither is part of the model: no checkpoint holds it.

    Raises:
        UserError: a prior needs the source's own head, and there is none; ``source`` has another
            backbone.
        RecipeError: a prior's ``layers`` fit nothing.
    """

    def __init__(
        self, pull: Pull, model: nn.Module, groups: LayerGroups, source: nn.Module | None = None
    ):
        self.pull, self.groups = pull, groups
        self.priors = [prior for prior in pull.function_priors if prior.weight > 0]
        self.function: SourceFunction | None = None
        self.taps: Taps | None = None
        self.studied: dict[int, Any] = {}
        self.needs = frozenset().union(*(prior.needs for prior in self.priors))
        self.layers = [prior.layers(model, groups) for prior in self.priors]
        if any(prior.source for prior in self.priors):
            self.function = self._function(model, source)
        self.take(model)

    def _function(self, model: nn.Module, source: nn.Module | None) -> SourceFunction:
        start, own = self.pull.start, source is not None and source is not model
        if "logits" in self.needs and not own and start.fresh:
            named = next(prior.type for prior in self.priors if "logits" in prior.needs)
            raise UserError(NO_HEAD.format(named))
        head = frozenset(self.groups.head.parameters) | start.fresh
        device = next(model.parameters()).device
        original = source.to(device) if own else self._copy(model)
        layers = [name for names in self.layers for name in names]
        found = SourceFunction(original, self.needs, layers, head, own and bool(start.fresh))
        if found.own_head:
            found.check_backbone(model)
        return found

    def _copy(self, model: nn.Module) -> nn.Module:
        """A copy whose weights stay; a parameter that never trains is the same one in both."""
        start = self.pull.start
        still = [
            p for n, p in model.named_parameters() if n not in start.copies and n not in start.fresh
        ]
        return copy.deepcopy(model, memo={id(p): p for p in still})

    def take(self, model: nn.Module) -> None:
        """Watch this model from now on."""
        if self.priors:
            if self.taps is not None:
                self.taps.remove()
            self.model = model
            layers = [name for names in self.layers for name in names]
            self.taps = Taps(model, "embeddings" in self.needs, layers)

    def loss(self, inputs: dict[str, Any], outputs: Any, shares: Mapping[str, float]) -> Tensor:
        """Σ weight · loss of all function priors on the batch that has just passed the model.

        ``shares``: the factor on a mean over this micro-batch, by what the mean is taken over.
        """
        self.taps.outputs = outputs
        then = self.function(inputs) if self.function is not None else None
        found = [
            prior.weight
            * shares[prior.per]
            * prior.loss(self.model, self._for(i, then), inputs, self.taps)
            for i, prior in enumerate(self.priors)
        ]
        self.taps.close()
        return torch.stack(found).sum()

    def _for(self, i: int, then: SourceOutputs | None) -> SourceOutputs | None:
        if then is None or not self.priors[i].source:
            return None
        maps = {name: then.maps[name] for name in self.layers[i]} if then.maps else None
        return replace(then, maps=maps, function=self.function, studied=self.studied.get(i))

    # ---- before the first step ----

    def prepare(self, trainer: Any) -> None:
        """What is found out at θ⁰ once: by priors that ask, and f_θ⁰ on data that will recur.

        In the data's order, so that a run that resumes finds the same numbers bit for bit.
        """
        self._refuse_reentrant(trainer.args)
        if self.function is None:
            return
        self.function.model.to(trainer.args.device)
        self.function.precision = trainer.accelerator.autocast
        with undisturbed(trainer.model):
            for i, prior in enumerate(self.priors):
                if prior.studies and i not in self.studied:
                    batches = list(self._batches(trainer, spread(trainer, prior.studies)))
                    self.studied[i] = prior.study(self._at_start(), self.groups, batches)
            kept = self._remember(trainer)
        if kept:
            log.info("The source's outputs on %d examples are computed once.", kept)

    def _refuse_reentrant(self, args: Any) -> None:
        settings = args.gradient_checkpointing_kwargs or {}
        reentrant = args.gradient_checkpointing and settings.get("use_reentrant")
        if reentrant and any(self.layers):
            raise UserError(
                "penalty: maps of inner layers have no gradient under reentrant gradient "
                "checkpointing. Leave out training.gradient_checkpointing_kwargs.use_reentrant."
            )

    def _remember(self, trainer: Any) -> int:
        rows = trainer.train_dataset
        if not hasattr(rows, "__len__") or not hasattr(rows, "__getitem__") or not recurs(trainer):
            return 0
        if any(getattr(part, "draws", None) for part in (rows, trainer.data_collator)):
            return 0  # drawn anew in every epoch
        collate, few = collator(trainer), range(min(8, len(rows)))
        if keys(collate([rows[i] for i in few])) != keys(collate([rows[i] for i in few])):
            return 0  # drawn anew each time
        return self.function.remember(self._batches(trainer, rows), len(rows))

    def _batches(self, trainer: Any, rows: Any) -> Iterator[dict]:
        for batch in DataLoader(rows, BATCH, collate_fn=collator(trainer)):
            yield trainer._prepare_inputs(batch)

    def _at_start(self) -> nn.Module:
        """A copy of the model at θ⁰ in eval mode, without what watches it; its head is anything."""
        model = copy.deepcopy(self.model).eval()
        source = self.function.model.state_dict()
        head = self.function.head_names if self.function.own_head else frozenset()
        known = model.state_dict()
        kept = {n: t for n, t in source.items() if n in known and n not in head}
        model.load_state_dict(kept, strict=False)
        return model


def spread(trainer: Any, count: int) -> list:
    """Up to ``count`` rows, evenly spaced over the train set; the first ones of a stream."""
    rows = trainer.train_dataset
    if hasattr(rows, "__len__") and hasattr(rows, "__getitem__"):
        few = min(count, len(rows))
        return [rows[i * len(rows) // few] for i in range(few)]
    return [row for row, _ in zip(rows, range(count), strict=False)]


def recurs(trainer: Any) -> bool:
    """Whether examples of the train set will be seen more than once."""
    args = trainer.args
    if args.max_steps <= 0:
        return args.num_train_epochs > 1
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return args.max_steps * batch > len(trainer.train_dataset)
