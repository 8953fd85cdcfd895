"""drawn_anew: a source's network with weights that nobody has trained, to train from scratch."""

from dataclasses import replace
from typing import Any

from hf_sft.pretrained import Weights


def drawn_anew(weights: Weights) -> Weights:
    """The same network with every weight as its architecture draws it, and a new head.

    The draw follows torch's random state, which a run has seeded by ``training.seed``. Parameters
    stay those that the source has, so that what the recipe says of them holds: θ⁰ is the draw.
    """
    like = weights.model
    model = type(like)._from_config(like.config, dtype=like.dtype)
    return replace(weights, model=model, same_labels=False, left_over=[])


def drawn_conflicts(blocks: dict[str, Any]) -> list[str]:
    """What would hold on to a source that ``model.pretrained: false`` leaves, one line each."""
    model = blocks.get("model")
    if getattr(model, "pretrained", True):
        return []
    holding = {
        "penalty": blocks.get("penalty"),
        "retention": blocks.get("retention"),
        "model.anchor": getattr(model, "anchor", None),
    }
    return [
        f"{key}: with model.pretrained: false the weights are drawn anew, and there is nothing of "
        "the source to be kept. Leave one of them out."
        for key, given in holding.items()
        if given
    ]
