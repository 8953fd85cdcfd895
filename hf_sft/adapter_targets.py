"""Which layers ``adapter.target_modules`` means: a name that would come to nothing is told."""

import logging
import re
from collections.abc import Collection
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from hf_sft.errors import RecipeError, listing, nearest
from hf_sft.tasks.mean_pooled import MeanPooledConfig

log = logging.getLogger(__name__)

ALL_LINEAR = "all-linear"
ADAPTED = (torch.nn.Linear, torch.nn.Embedding, torch.nn.Conv1d, torch.nn.Conv2d, Conv1D)


def layer_ends(model: Any) -> list[str]:
    """The last parts of the names of layers that peft adapts, each once."""
    found = (name for name, module in model.named_modules() if isinstance(module, ADAPTED))
    return sorted({name.rpartition(".")[2] for name in found})


def usual_targets(model: Any) -> list[str] | str | None:
    """Peft's choice for the encoder inside our own class; None where peft itself can tell."""
    if not isinstance(model.config, MeanPooledConfig):
        return None
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as usual

    return usual.get(model.config.text_config.model_type)


def refuse_idle_targets(model: Any, targets: list[str] | str | None, new: Collection[str]) -> None:
    """Every entry must stand for a layer of the source; what is new trains whole, beside adapters.

    Args:
        targets: as the recipe has them: ends of names, or a regular expression.
        new: the modules that did not come from the source.

    Raises:
        RecipeError: an entry fits no layer, or only what is new.
    """
    if targets is None or targets == ALL_LINEAR:
        return
    layers = [name for name, _ in model.named_modules() if name]
    both = []
    for entry in [targets] if isinstance(targets, str) else targets:
        found = _fitting(layers, entry, whole=isinstance(targets, str))
        fresh = [name for name in found if _inside(name, new)]
        if not found:
            raise RecipeError(
                f"adapter.target_modules: {entry!r} fits no layer of {type(model).__name__}. "
                f"Its layers end in: {listing(layer_ends(model), 12)}."
                f"{nearest(entry, layer_ends(model))}"
            )
        if len(fresh) == len(found):
            raise RecipeError(
                f"adapter.target_modules: {entry!r} is new ({listing(fresh)}): it trains whole and "
                "is saved with the adapters, so that none is put there. Leave it out."
            )
        both += fresh
    if both:
        log.warning("adapter.target_modules: %s is new and trains whole, without an adapter.",
                    listing(both))  # fmt: skip


def _fitting(layers: list[str], entry: str, whole: bool) -> list[str]:
    """As peft 0.21 looks for them: a regular expression of the whole name, or its end."""
    if whole:
        return [name for name in layers if re.fullmatch(entry, name)]
    return [name for name in layers if name == entry or name.endswith(f".{entry}")]


def _inside(layer: str, modules: Collection[str]) -> bool:
    return any(layer == module or layer.startswith(f"{module}.") for module in modules)
