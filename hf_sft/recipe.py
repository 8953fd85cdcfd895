"""Recipe: everything that decides a run, from one YAML file and ``a.b=c`` overrides."""

import dataclasses
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from transformers import TrainingArguments

from hf_sft import component
from hf_sft.errors import RecipeError, UserError, listing, nearest
from hf_sft.freezing import FreezePolicy, TrainAll
from hf_sft.loaders import Loader
from hf_sft.models import ModelSource
from hf_sft.penalties import Penalty
from hf_sft.resources import Locate, locator
from hf_sft.tasks import Task

TRAINING = {field.name: field for field in dataclasses.fields(TrainingArguments) if field.init}
LEAST = {  # TrainingArguments checks neither type nor range
    "learning_rate": 0,
    "weight_decay": 0,
    "max_grad_norm": 0,
    "num_train_epochs": 0,
    "warmup_steps": 0,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "seed": 0,
}


class EarlyStopping(BaseModel):
    """Stop after ``patience`` evaluations without a better score; the best checkpoint is kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    patience: int = Field(ge=1)


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
    training: dict[str, Any]
    early_stopping: EarlyStopping | None

    @classmethod
    def load(
        cls, path: str | Path, overrides: Sequence[str] = (), base: Path | None = None
    ) -> "Recipe":
        """Read and check a recipe.

        Raises:
            RecipeError: every problem found, one line each, as ``file: key: what, remedy``.
        """
        path = Path(path)
        base = path.resolve().parent if base is None else base
        raw = read(path)
        for override in overrides:
            apply_override(raw, override)
        problems: list[str] = []
        blocks = _blocks(raw, problems)
        _check_files(blocks, locator(base), problems)
        if problems:
            raise RecipeError("\n".join(f"{path.name}: {line}" for line in problems))
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

    @property
    def selects(self) -> bool:
        """Whether a validation split is needed: early stopping, or the best checkpoint is kept."""
        return self.early_stopping is not None or bool(self.training.get("load_best_model_at_end"))


class _Loader(yaml.SafeLoader):
    """Safe YAML 1.2 scalars: ``1e-5`` is a number, ``no`` is a word; no key may occur twice."""

    yaml_implicit_resolvers = {
        first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith(":bool")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict:
    keys = [loader.construct_object(key) for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:
            raise RecipeError(f"line {node.start_mark.line + 1}: the key {key!r} occurs twice.")
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _unique_mapping)


def read(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        RecipeError: no such file, no YAML, or no mapping.
    """
    try:
        raw = yaml.load(path.read_text("utf-8"), _Loader)  # noqa: S506 (a SafeLoader)
    except OSError as error:
        raise RecipeError(
            f"recipe: '{path}' cannot be read ({error.strerror}). `hf-sft list` shows those that "
            "come with the package, `hf-sft copy` takes one."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path.name}: no YAML: {error}") from error
    except RecipeError as error:
        raise RecipeError(f"{path.name}: {error}") from error
    if not isinstance(raw, dict):
        raise RecipeError(f"{path.name}: a mapping of blocks is wanted ({listing(BLOCKS)}).")
    return raw


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set ``a.b=c`` in place; ``c`` is YAML, a mapping replaces the block, a number indexes a list.

    Raises:
        RecipeError: no ``=``, no YAML, or a path through something that is no block.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"{override!r} is no override; write key.inner=value.")
    try:
        value = yaml.load(text, _Loader)  # noqa: S506
    except yaml.YAMLError as error:
        raise RecipeError(f"{override!r}: the value is no YAML: {error}") from error
    *outer, last = key.split(".")
    place: Any = raw
    for part in outer:
        if isinstance(place, dict) and place.get(part) is None:
            place[part] = {}
        place = _inside(place, part, override)
    if isinstance(place, list):
        _inside(place, last, override)
        place[int(last)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise RecipeError(f"{override!r}: {'.'.join(outer)!r} is {place!r}, which has no keys.")


def _inside(place: Any, part: str, override: str) -> Any:
    try:
        return place[int(part)] if isinstance(place, list) else place[part]
    except (ValueError, IndexError, KeyError, TypeError) as error:
        found = f"a list of {len(place)}" if isinstance(place, list) else repr(place)
        raise RecipeError(f"{override!r}: {part!r} does not lead into {found}.") from error


BLOCKS = ("task", "data", "model", "penalty", "freeze", "training", "early_stopping")


def _blocks(raw: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """Every block as its object; what cannot be is left out and told in ``problems``."""
    for key in raw:
        if key not in BLOCKS:
            problems.append(
                f"{key}: no such block. Choices: {listing(BLOCKS)}.{nearest(key, BLOCKS)}"
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
    blocks["training"] = _training(raw.get("training") or {}, problems)
    stopping = raw.get("early_stopping")
    blocks["early_stopping"] = (
        None
        if stopping is None
        else _validated(EarlyStopping, stopping, "early_stopping", problems)
    )
    return blocks


def _penalties(raw: Any, problems: list[str]) -> tuple:
    if raw is None:
        return ()
    if not isinstance(raw, list):
        return (_component(Penalty, raw, "penalty", problems),)
    return tuple(_component(Penalty, p, f"penalty.{i}", problems) for i, p in enumerate(raw))


def _component(base: type, raw: Any, where: str, problems: list[str]) -> Any:
    if not isinstance(raw, dict) or "type" not in raw:
        known = listing(sorted(component.choices(base)), 30)
        problems.append(f"{where}: a mapping with a type is wanted, found {raw!r}. Types: {known}.")
        return None
    try:
        cls = component.find(base, raw["type"])
    except RecipeError as error:
        problems.append(f"{where}.{error}")
        return None
    if ":" in str(raw["type"]):
        raw = {key: value for key, value in raw.items() if key != "type"}
    return _validated(cls, raw, where, problems)


def _validated(cls: type[BaseModel], raw: Any, where: str, problems: list[str]) -> Any:
    try:
        return cls.model_validate(raw)
    except ValidationError as error:
        keys = [field.alias or name for name, field in cls.model_fields.items()]
        problems += [_problem(where, keys, e) for e in error.errors()]
        return None


def _problem(where: str, keys: list[str], error: Any) -> str:
    """One pydantic error as ``place: what was expected, what was found, the choices``."""
    path = ".".join([where, *(str(part) for part in error["loc"])])
    if error["type"] == "extra_forbidden":
        return (
            f"{path}: no such key (value {error['input']!r}). Choices: {listing(keys, 30)}."
            f"{nearest(error['loc'][-1], keys)}"
        )
    if error["type"] == "missing":
        return f"{path}: this key is needed."
    close = ""
    if error["type"] == "literal_error":
        close = nearest(error["input"], re.findall(r"'([^']*)'", error["ctx"]["expected"]))
    return f"{path}: {error['msg'].removeprefix('Input ')}, found {error['input']!r}.{close}"


def _training(raw: Any, problems: list[str]) -> dict[str, Any]:
    """TrainingArguments' keys with values of their types; it checks neither itself."""
    if not isinstance(raw, dict):
        problems.append(f"training: a mapping of TrainingArguments is wanted, found {raw!r}.")
        return {}
    hints = typing.get_type_hints(TrainingArguments)
    checked = {}
    for key, value in raw.items():
        if key not in TRAINING:
            problems.append(
                f"training.{key}: no such TrainingArguments key (value {value!r})."
                f"{nearest(key, TRAINING)}"
            )
            continue
        try:
            checked[key] = TypeAdapter(hints[key]).validate_python(value)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Input ")
            problems.append(f"training.{key}: {reason}, found {value!r}.")
            continue
        least = LEAST.get(key)
        if least is not None and not checked[key] >= least:
            problems.append(f"training.{key}: should be at least {least}, found {value!r}.")
    return checked


def _check_files(blocks: dict[str, Any], locate: Locate, problems: list[str]) -> None:
    for block in ("data", "model"):
        files = blocks[block].files() if blocks.get(block) is not None else {}
        for key, name in files.items():
            try:
                locate(name)
            except UserError as error:
                problems.append(f"{block}.{key}: {error}")
