"""Search: the ``search`` block: which keys of the recipe are tried over which values."""

from typing import Any

from pydantic import Field, field_validator, model_validator

from hf_sft.component import Component
from hf_sft.errors import RecipeError
from hf_sft.recipe_text import as_override

FIXED = ("task", "data", "compare", "search", "retention", "training.seed", "training.output_dir")
RATE = 5e-5  # Trainer's own
STRENGTHS = ("lambda", "weight")  # of weight priors and of function priors
TENFOLD, HUNDREDFOLD = 10, 100  # how far the default ranges reach on either side


class Range(Component):
    """Numbers between two ends, whole ones where both ends are.

    Keys:
        low: the lowest value.
        high: the highest value.
        log: whether factors count, not differences.

    Example: {low: 1e-5, high: 1e-3, log: true}
    """

    low: int | float
    high: int | float
    log: bool = False

    @model_validator(mode="after")
    def _is_a_range(self) -> "Range":
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"{self.low} to {self.high} is no range, or log begins above 0 only")
        return self

    def override(self, trial: Any, key: str) -> str:
        """``key=value`` with a value that ``trial`` suggests."""
        whole = isinstance(self.low, int) and isinstance(self.high, int)
        suggest = trial.suggest_int if whole else trial.suggest_float
        return as_override(key, suggest(key, self.low, self.high, log=self.log))

    def ends(self, key: str) -> list[str]:
        """Overrides that show whether the recipe takes such values."""
        return [as_override(key, end) for end in (self.low, self.high)]


class Search(Component):
    """What ``hf-sft search`` tries, and what is best. ``hf-sft run`` passes the block over.

    Keys:
        over: key of the recipe -> {low, high, log} or a list of values; by default the learning
            rate, λ or weight, and whether all trains, the last blocks, or the head.
        trials: how many, those of earlier calls of the same search counted.
        metric: of validation; the task's own by default.
        retention: the least that is to be kept of the source's function, 0 to 1; null: any.
        seed: of the sampler.
        prune: whether trials end early that are below the median of those before them.

    Example: {over: {training.learning_rate: {low: 1e-5, high: 1e-3, log: true}}, trials: 30}
    """

    over: dict[str, Range | list[Any]] = {}
    trials: int = Field(20, ge=1)
    metric: str | None = None
    retention: float | None = Field(None, ge=0, le=1)
    seed: int = Field(0, ge=0)
    prune: bool = True

    @field_validator("over")
    @classmethod
    def _may_vary(cls, over: dict[str, Range | list[Any]]) -> dict[str, Range | list[Any]]:
        for key, values in over.items():
            if any(f"{key}.".startswith(f"{fixed}.") for fixed in FIXED):
                raise ValueError(f"{key} is the same for all trials; set it outside")
            if isinstance(values, list) and len(words(key, values)) < max(1, len(values)):
                raise ValueError(f"{key} wants a list of different values")
        return over


def words(key: str, values: list[Any]) -> dict[str, None]:
    """The overrides of a list's values, each once."""
    return dict.fromkeys(as_override(key, value) for value in values)


def suggested(over: dict[str, Range | list[Any]], trial: Any) -> list[str]:
    """The overrides of a trial, one for each key."""
    return [
        values.override(trial, key)
        if isinstance(values, Range)
        else trial.suggest_categorical(key, list(words(key, values)))
        for key, values in over.items()
    ]


def space(raw: dict[str, Any], asked: Search) -> dict[str, Range | list[Any]]:
    """What is searched: the recipe's own choice, else learning rate × strength × freezing depth.

    Raises:
        RecipeError: the recipe's learning rate, λ or weight is no number above 0, and it names no
            range.
    """
    if asked.over:
        return asked.over
    rate = (raw.get("training") or {}).get("learning_rate", RATE)
    found: dict[str, Range | list[Any]] = {"training.learning_rate": _around(rate, TENFOLD)}
    penalty = raw.get("penalty")
    if penalty is None:
        found["penalty"] = [None, {"type": "l2-sp"}]
    elif isinstance(penalty, dict):
        given = [key for key in STRENGTHS if isinstance(penalty.get(key), int | float)]
        found |= {f"penalty.{key}": _around(penalty[key], HUNDREDFOLD) for key in given}
    if raw.get("adapter") is None:
        own = [] if raw.get("freeze") is None else [raw["freeze"]]
        usual = [None, {"type": "train-last"}, {"type": "linear-probe"}]
        found["freeze"] = [*usual, *(x for x in own if x not in usual)]
    return found


def _around(value: Any, factor: int) -> Range:
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise RecipeError(f"search.over: {value!r} has no range around it. Name the ranges.")
    return Range(low=value / factor, high=value * float(factor), log=True)
