"""Comparison: the ``compare`` block: which arms, over which seeds and how much data."""

import re
from typing import Any

from pydantic import Field, field_validator, model_validator

from hf_sft.comparing.arms import DEFAULTS
from hf_sft.component import Component
from hf_sft.errors import listing, nearest

NAME = re.compile(r"\w[\w.+-]{0,63}")  # of an arm: also the name of its folder
SIZES = ("data.per_class", "data.max_train_samples")
SHARED = ("data", "compare", "training.seed", "training.data_seed", "training.output_dir")
LARGEST = 2**32 - 1  # seed that numpy takes


class Comparison(Component):
    """What ``hf-sft compare`` runs: every arm for every seed and every data size.

    A seed decides the rows drawn from the data, the new head and the order of the rows, for all
    arms alike, so that differences are paired. ``hf-sft run`` passes the block over.

    Keys:
        arms: name and overrides of the recipe, each; {} is the recipe as it stands. Null, or a list
            of names, means arms of the default set.
        seeds: how many, or which.
        sizes: data.per_class or data.max_train_samples with a list of its values.
        baseline: the arm that the others are held against; full where there is one, else the first.

    Example: {arms: {full: null, l2-sp: null, mine: {penalty.lambda: 0.1}}, seeds: 5}
    """

    arms: dict[str, dict[str, Any] | None] = dict.fromkeys(DEFAULTS)
    seeds: list[int] = Field([0, 1, 2], min_length=1)
    sizes: dict[str, list[int]] = {}
    baseline: str | None = None

    @property
    def held_against(self) -> str:
        """The arm from which paired differences are taken."""
        return self.baseline or ("full" if "full" in self.arms else next(iter(self.arms)))

    @field_validator("arms", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return dict.fromkeys(value) if isinstance(value, list) and value else value

    @field_validator("arms")
    @classmethod
    def _known(cls, arms: dict[str, dict[str, Any] | None]) -> dict[str, dict[str, Any] | None]:
        if not arms:
            raise ValueError("names at least one arm")
        for name, changes in arms.items():
            if not NAME.fullmatch(name):
                raise ValueError(f"{name!r} is to be a folder: letters, digits, '-', '_', '.', '+'")
            if changes is None and name not in DEFAULTS:
                close = nearest(name, DEFAULTS)
                known = listing(DEFAULTS, 20)
                raise ValueError(f"{name!r} says no overrides. Known without: {known}.{close}")
            for key in changes or {}:
                if any(f"{key}.".startswith(f"{shared}.") for shared in SHARED):
                    raise ValueError(f"{name}: {key} is the same for all arms; set it outside")
        return arms

    @field_validator("seeds", mode="before")
    @classmethod
    def _counted(cls, value: Any) -> Any:
        if not isinstance(value, int) or isinstance(value, bool):
            return value
        if value < 1:
            raise ValueError("at least one seed is needed")
        return list(range(value))

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds) or not all(0 <= seed <= LARGEST for seed in seeds):
            raise ValueError(f"seeds are different whole numbers from 0 to {LARGEST}")
        return seeds

    @field_validator("sizes")
    @classmethod
    def _one_key(cls, sizes: dict[str, list[int]]) -> dict[str, list[int]]:
        if len(sizes) > 1 or not set(sizes) <= set(SIZES):
            raise ValueError(f"wants one of {listing(SIZES)} with a list of its values")
        for values in sizes.values():
            if not values or sorted(set(values)) != values or values[0] < 1:
                raise ValueError("wants different sizes of at least 1, the smallest first")
        return sizes

    @model_validator(mode="after")
    def _baseline_is_an_arm(self) -> "Comparison":
        if self.baseline is not None and self.baseline not in self.arms:
            close = nearest(self.baseline, self.arms)
            known = listing(self.arms, 20)
            raise ValueError(f"baseline {self.baseline!r} is no arm. Choices: {known}.{close}")
        return self
