"""The arms that a recipe is compared by where it names none: overrides of its own keys."""

from collections.abc import Callable
from typing import Any

DECAY = 0.01  # of the arm with weight decay where the recipe has none
RATE = 5e-5  # Trainer's own learning rate
SLOWER = 4  # a lower learning rate is the plainest way to stay near the source
PULLS = ("l2-sp",)
Raw = dict[str, Any]


def scratch(raw: Raw) -> Raw:
    """The network with weights drawn anew; of the source nothing can be kept."""
    return {**full(raw), "model.pretrained": False, "model.anchor": None, "retention": None}


def linear_probe(raw: Raw) -> Raw:
    """The head alone."""
    return {**full(raw), "freeze": {"type": "linear-probe"}}


def full(raw: Raw) -> Raw:
    """Everything trains, and nothing holds it back."""
    off = dict.fromkeys(("penalty", "freeze", "adapter"))
    return {**off, "training.weight_decay": 0.0}


def weight_decay(raw: Raw) -> Raw:
    """A pull to zero: the recipe's own weight decay, or 0.01."""
    own = _block(raw, "training").get("weight_decay")
    return {**full(raw), "training.weight_decay": own or DECAY}


def low_rate(raw: Raw) -> Raw:
    """A quarter of the learning rate."""
    own = _block(raw, "training").get("learning_rate")
    rate = own if isinstance(own, int | float) else RATE
    return {**full(raw), "training.learning_rate": rate / SLOWER}


def l2_sp(raw: Raw) -> Raw:
    """A pull to the source: the recipe's own L2-SP, or its defaults."""
    own = raw.get("penalty")
    named = [p for p in (own if isinstance(own, list) else [own]) if isinstance(p, dict)]
    fits = [penalty for penalty in named if penalty.get("type") in PULLS]
    return {**full(raw), "penalty": fits[0] if fits else {"type": "l2-sp"}}


def train_last_l2_sp(raw: Raw) -> Raw:
    """The last blocks alone, pulled to the source: as many as the recipe's own, or two."""
    own = _block(raw, "freeze")
    fits = own.get("type") == "train-last"
    return {**l2_sp(raw), "freeze": own if fits else {"type": "train-last"}}


def lp_ft(raw: Raw) -> Raw:
    """The head first, then everything: the recipe's own LP-FT, or its defaults."""
    own = _block(raw, "freeze")
    return {**full(raw), "freeze": own if own.get("type") == "lp-ft" else {"type": "lp-ft"}}


def lp_ft_l2_sp(raw: Raw) -> Raw:
    """The head first, then everything, pulled to the source."""
    return {**lp_ft(raw), "penalty": l2_sp(raw)["penalty"]}


DEFAULTS: dict[str, Callable[[Raw], Raw]] = {
    "scratch": scratch,
    "linear-probe": linear_probe,
    "full": full,
    "weight-decay": weight_decay,
    "low-rate": low_rate,
    "l2-sp": l2_sp,
    "train-last-l2-sp": train_last_l2_sp,
    "lp-ft": lp_ft,
    "lp-ft-l2-sp": lp_ft_l2_sp,
}


def overrides_of(name: str, given: Raw | None, raw: Raw) -> Raw:
    """Key -> value of an arm; ``given`` by the recipe, or None for one of the default set."""
    return DEFAULTS[name](raw) if given is None else given


def _block(raw: Raw, key: str) -> Raw:
    """A block of the recipe as it is written; nothing where it is no mapping."""
    block = raw.get(key)
    return block if isinstance(block, dict) else {}
