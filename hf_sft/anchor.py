"""Anchor: θ⁰ of one source for a training that starts from another, already adapted one.

L2-SP's θ⁰ need not be where training starts: after an unsupervised first step, the pull can lead
back to the original (``model.anchor: ORIGINAL``) or hold the adapted model (no anchor).
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hf_sft.errors import RecipeError, SourceError, listing
from hf_sft.models import LoadedModel, ModelSource, Source, load_model
from hf_sft.penalties import FunctionPrior, Penalty
from hf_sft.penalties.fisher_sp import FisherSP
from hf_sft.resources import Locate
from hf_sft.starting_point import StartingPoint
from hf_sft.tasks.base import Task


class Anchor:
    """The weights of ``model.anchor``, by the names that training's own model has.

    Attributes:
        source: where they came from.
        original: loads that source with its own head; retention is measured against it.
        fresh: names that have no anchor: new in the model, or not in the anchor.
    """

    def __init__(self, anchor: LoadedModel, loaded: LoadedModel):
        self.source: Source = anchor.source
        self.original: Callable[[], tuple[Any, bool]] = anchor.original
        self.fresh = loaded.fresh | anchor.fresh
        self.weights = {
            name: p.detach()
            for name, p in anchor.model.named_parameters()
            if name not in self.fresh
        }
        theta = dict(loaded.model.named_parameters())
        head = set(loaded.groups.head.parameters)
        _refuse_other_shape(self.weights, theta, loaded.fresh | (anchor.fresh & head))

    @contextmanager
    def in_place(self, model: torch.nn.Module) -> Iterator[None]:
        """The model at θ⁰, for what is built around it to take for its starting point."""
        theta = dict(model.named_parameters())
        begin = {name: theta[name].detach().clone() for name in self.weights}
        try:
            _put_(theta, self.weights)
            yield
        finally:
            _put_(theta, begin)


def load_anchor(
    source: ModelSource,
    task: Task,
    names: list[str],
    locate: Locate,
    loaded: LoadedModel,
    penalties: tuple[Penalty, ...],
) -> Anchor | None:
    """What ``model.anchor`` names; None without one.

    Raises:
        SourceError: it cannot be loaded whole, or its parameters have other names or shapes.
        RecipeError: a penalty that would take the model as training starts for θ⁰.
    """
    if source.anchor is None:
        return None
    _refuse_at_start(penalties)
    with torch.random.fork_rng(devices=[]):  # its new head must not change training's draws
        same = task.settled_as(loaded.model)
        return Anchor(_loaded(source, same, names, locate), loaded)


def _loaded(source: ModelSource, task: Task, names: list[str], locate: Locate) -> LoadedModel:
    """The anchor, which may or may not lack and hold what ``fresh`` and ``unused`` speak of."""
    errors = []
    for fresh, unused in itertools.product([[], source.fresh], [[], source.unused]):
        own = {"name": source.anchor, "fresh": fresh, "unused": unused}
        own |= dict.fromkeys(("anchor", "revision", "sha256"))
        try:
            return load_model(source.model_copy(update=own), task, names, locate)
        except SourceError as error:
            errors.append(error)
    told = str(errors[0]).replace("model.name", "model.anchor")
    raise SourceError(told) from errors[0]


@contextmanager
def at_anchor(anchor: Anchor | None, loaded: LoadedModel) -> Iterator[LoadedModel]:
    """``loaded`` with the anchor in place and as its original; as it is without an anchor."""
    if anchor is None:
        yield loaded
        return
    with anchor.in_place(loaded.model):
        yield replace(loaded, fresh=anchor.fresh, original=anchor.original)


def begin_elsewhere_(start: StartingPoint, anchor: Anchor | None, model: torch.nn.Module) -> None:
    """Tell a starting point that was built at the anchor where training begins."""
    if anchor is not None:
        rest = {n: t for n, t in anchor.weights.items() if n not in start.copies}
        start.begin_at_(model, rest)


def _refuse_at_start(penalties: tuple[Penalty, ...]) -> None:
    """Penalties that study the model before the first step would study the wrong one.

    Raises:
        RecipeError: there is one.
    """
    wrong = [p.type for p in penalties if isinstance(p, FunctionPrior | FisherSP)]
    if wrong:
        raise RecipeError(
            f"model.anchor: {listing(wrong)} looks at the model as training starts, which is not "
            "the anchor. Take a penalty on weights alone, such as l2-sp, or leave the anchor out."
        )


def _put_(theta: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            theta[name].copy_(value)


def _refuse_other_shape(
    weights: dict[str, Tensor], theta: dict[str, Tensor], without: frozenset[str]
) -> None:
    problems = [
        f"{name} ({tuple(value.shape)}, not {tuple(theta[name].shape)})"
        if name in theta
        else f"{name} (the model has none)"
        for name, value in weights.items()
        if name not in theta or theta[name].shape != value.shape
    ]
    problems += [f"{name} (missing)" for name in theta if name not in weights.keys() | without]
    if problems:
        raise SourceError(
            f"model.anchor: it is another network than model.name: {listing(problems, 6)}. An "
            "anchor needs the same parameters in the same shapes: name the source that "
            "model.name was trained from."
        )
