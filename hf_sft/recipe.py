"""Recipe: everything that decides a run, from one YAML file and ``a.b=c`` overrides."""

import dataclasses
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from transformers import EarlyStoppingCallback, TrainerCallback

from hf_sft import component
from hf_sft.adapter import Adapter, conflicts
from hf_sft.averages import Average, averaging_conflicts
from hf_sft.caching.feature_cache import FeatureCache
from hf_sft.comparing.comparison import Comparison
from hf_sft.drawn_anew import drawn_conflicts
from hf_sft.early_stopping import EarlyStopping
from hf_sft.errors import RecipeError, UserError, listing, nearest
from hf_sft.freezing import FreezePolicy, TrainAll
from hf_sft.loaders import Loader
from hf_sft.models import ModelSource
from hf_sft.nonfinite import NonFinite
from hf_sft.penalties import Penalty
from hf_sft.problems import problem
from hf_sft.recipe_text import BLOCKS, written
from hf_sft.resources import Locate, locator
from hf_sft.searching.space import Search
from hf_sft.tasks import Task
from hf_sft.training.rates import LearningRate
from hf_sft.training_keys import check_training, metric_problems

SINGLE = {"early_stopping": EarlyStopping, "cache": FeatureCache, "nonfinite": NonFinite,
          "compare": Comparison, "search": Search}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A checked recipe; ``Recipe.load`` is the way to one.

    Attributes:
        path: the file it was read from; relative data paths start in its folder.
        base: the folder where relative data paths start, the recipe's own unless said otherwise.
        raw: the blocks as written, overrides applied: what ``recipe.yaml`` records.
    """

    path: Path
    base: Path
    raw: dict[str, Any]
    task: Task
    data: Loader
    model: ModelSource
    penalty: tuple[Penalty, ...]
    freeze: FreezePolicy
    learning_rates: tuple[LearningRate, ...]
    training: dict[str, Any]
    early_stopping: EarlyStopping | None
    retention: Loader | None
    adapter: Adapter | None
    averaging: Average | None
    cache: FeatureCache | None
    nonfinite: NonFinite | None
    compare: Comparison | None
    search: Search | None

    @classmethod
    def load(
        cls,
        path: str | Path,
        overrides: Sequence[str] = (),
        base: Path | None = None,
        opens: Sequence[str] = ("data", "model", "retention"),
    ) -> "Recipe":
        """Read and check a recipe.

        Args:
            path: the YAML file.
            overrides: ``a.b=c`` each.
            base: where relative data paths start; the recipe's own folder by default.
            opens: the blocks whose files will be needed and so must be there.

        Raises:
            RecipeError: every problem found, one line each, as ``file: key: what, remedy``;
                ``override`` stands in place of the file where one has set the key.
        """
        path = Path(path)
        base = path.resolve().parent if base is None else base
        raw, problems = written(path, overrides)
        blocks = _blocks(raw, problems)
        problems += metric_problems(blocks) + conflicts(blocks) + averaging_conflicts(blocks)
        problems += drawn_conflicts(blocks)
        _check_files({key: blocks.get(key) for key in opens}, locator(base), problems)
        if problems:
            raise RecipeError("\n".join(_told(path, line, overrides) for line in problems))
        return cls(path=path, base=base, raw=raw, **blocks)

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.path.stem

    @property
    def locate(self) -> Locate:
        """Where the recipe's relative paths point."""
        return locator(self.base)

    @property
    def output_dir(self) -> Path:
        """``training.output_dir``, by default ``outputs/<recipe name>``."""
        return Path(self.training.get("output_dir") or Path("outputs") / self.name)

    def callbacks(self) -> list[TrainerCallback]:
        """What the recipe asks for beside the training; new ones for every training."""
        stopping, average = self.early_stopping, self.averaging
        found = [EarlyStoppingCallback(stopping.patience)] if stopping else []
        return [*found, average.callback()] if average else found

    @property
    def selects(self) -> bool:
        """Whether scores steer the training, so that they must come from a validation split."""
        keys = ("save_strategy", "lr_scheduler_type")
        chosen = {getattr(self.training.get(k), "value", self.training.get(k)) for k in keys}
        watched = "score" in self.freeze.watches
        return self.keeps_best or watched or bool(chosen & {"best", "reduce_lr_on_plateau"})

    @property
    def keeps_best(self) -> bool:
        """Whether the best checkpoint is kept: early stopping, or when the recipe says so."""
        return self.early_stopping is not None or bool(self.training.get("load_best_model_at_end"))


def _told(path: Path, problem: str, overrides: Sequence[str]) -> str:
    """With where the value is that it is about: in the file, or in an override.

    A key of the file that does not go with the type an override gives its block is one for which
    the block has to be replaced as a whole.
    """
    values = {key: value for key, _, value in (o.partition("=") for o in overrides) if key}
    if any(problem.startswith((f"{key}:", f"{key}.", repr(key)[:-1])) for key in values):
        return f"override: {problem}"
    place, unknown, _ = problem.partition(": no such key")
    block = place.rpartition(".")[0]
    if unknown and f"{block}.type" in values:
        whole = f"{block}={{type: {values[f'{block}.type']}}}"
        problem += f" The type was changed alone; to change the whole block: '{whole}'."
    return f"{path.name}: {problem}"


def _blocks(raw: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """Every block as its object; what cannot be is left out and told in ``problems``."""
    for key in raw:
        if key not in BLOCKS:
            problems.append(
                f"{key}: no such block. Choices: {listing(BLOCKS, 20)}.{nearest(key, BLOCKS)}"
            )
    blocks: dict[str, Any] = {}
    for key, base in (("task", Task), ("data", Loader)):
        if raw.get(key) is None:
            problems.append(f"{key}: this block is needed; write {key}: {{type: …}}.")
        else:
            blocks[key] = _component(base, raw[key], key, problems)
    if raw.get("model") is None:
        problems.append("model: this block is needed; write model: {name: …}.")
    else:
        blocks["model"] = _validated(ModelSource, raw["model"], "model", problems)
    freeze = raw.get("freeze")
    blocks["freeze"] = (
        TrainAll() if freeze is None else _component(FreezePolicy, freeze, "freeze", problems)
    )
    blocks["penalty"] = _penalties(raw.get("penalty"), problems)
    blocks["learning_rates"] = _learning_rates(raw.get("learning_rates"), problems)
    blocks["training"] = check_training(raw.get("training"), problems)
    for key, base in (("retention", Loader), ("adapter", Adapter), ("averaging", Average)):
        given = raw.get(key)
        blocks[key] = None if given is None else _component(base, given, key, problems)
    for key, cls in SINGLE.items():
        given = raw.get(key)
        blocks[key] = None if given is None else _validated(cls, given, key, problems)
    return blocks


def _penalties(raw: Any, problems: list[str]) -> tuple:
    if raw is None:
        return ()
    if not isinstance(raw, list):
        return (_component(Penalty, raw, "penalty", problems),)
    return tuple(_component(Penalty, p, f"penalty.{i}", problems) for i, p in enumerate(raw))


def _learning_rates(raw: Any, problems: list[str]) -> tuple:
    if raw is None:
        return ()
    if not isinstance(raw, list):
        problems.append(
            f"learning_rates: a list of rules is wanted, the first that fits wins, found {raw!r}. "
            "Write learning_rates: [{role: head, multiplier: 10}, {decay: 0.9}]."
        )
        return ()
    rules = [
        _validated(LearningRate, rule, f"learning_rates.{i}", problems)
        for i, rule in enumerate(raw)
    ]
    return tuple(rule for rule in rules if rule is not None)


def _component(base: type, raw: Any, where: str, problems: list[str]) -> Any:
    if not isinstance(raw, dict) or "type" not in raw:
        known = sorted(component.choices(base))
        remedy = f" Write {{type: {raw}}}." if raw in known else f" Types: {listing(known, 30)}."
        problems.append(f"{where}: a mapping with a type is wanted, found {raw!r}.{remedy}")
        return None
    try:
        cls = component.find(base, raw["type"])
    except RecipeError as error:
        problems.append(f"{where}.{error}")
        return None
    if inspect.isabstract(cls):
        problems.append(
            f"{where}.type: {raw['type']!r} is a base class; name a class that is whole."
        )
        return None
    if ":" in str(raw["type"]):
        raw = {key: value for key, value in raw.items() if key != "type"}
    return _validated(cls, raw, where, problems)


def _validated(cls: type[BaseModel], raw: Any, where: str, problems: list[str]) -> Any:
    try:
        return cls.model_validate(raw)
    except ValidationError as error:
        problems += [problem(where, cls, e) for e in error.errors()]
        wrong = {e["loc"][0] for e in error.errors() if e["loc"]}
        if not isinstance(raw, dict) or wrong.isdisjoint(raw):
            return None
        right = {key: value for key, value in raw.items() if key not in wrong}
        return _validated(cls, right, where, [])  # its files are looked for all the same


def _check_files(blocks: dict[str, Any], locate: Locate, problems: list[str]) -> None:
    for block, settings in blocks.items():
        for key, name in (settings.files() if settings is not None else {}).items():
            try:
                locate(name)
            except UserError as error:
                problems.append(f"{block}.{key}: {error}")
