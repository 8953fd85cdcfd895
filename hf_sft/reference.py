"""What can be written into a recipe, told from the classes themselves: docs/reference and explain.

A class's docstring says what it is; its section ``Keys:`` has a line for each key of its own, and
``Example:`` the block itself where it has keys without a default. Types and defaults are those of
the fields.
"""

import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from hf_sft.adapter import Adapter
from hf_sft.averages import Average
from hf_sft.caching.feature_cache import FeatureCache
from hf_sft.comparing.comparison import Comparison
from hf_sft.component import Component, choices, find
from hf_sft.early_stopping import EarlyStopping
from hf_sft.errors import RecipeError, listing, nearest
from hf_sft.freezing import FreezePolicy
from hf_sft.loaders import Loader
from hf_sft.model_source import ModelSource
from hf_sft.nonfinite import NonFinite
from hf_sft.penalties import Penalty
from hf_sft.searching.space import Search
from hf_sft.tasks import Task
from hf_sft.training.rates import LearningRate

KINDS: dict[str, type[Component]] = {
    "task": Task,
    "data": Loader,
    "penalty": Penalty,
    "freeze": FreezePolicy,
    "adapter": Adapter,
    "averaging": Average,
}
SINGLE: dict[str, type[BaseModel]] = {  # blocks of one form
    "model": ModelSource,
    "learning_rates": LearningRate,
    "early_stopping": EarlyStopping,
    "compare": Comparison,
    "search": Search,
    "cache": FeatureCache,
    "nonfinite": NonFinite,
}
SHARED = ("base", "averages")  # modules that speak of more than one type
SECTION = re.compile(r"^(Keys|Example|Raises|Attributes|Args):\s*(.*)$")
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
WORDS = {  # JSON's types
    "string": "text",
    "integer": "whole number",
    "object": "mapping",
    "boolean": "true or false",
    "null": "null",
}
ENTRY = re.compile(r"^ {4}(\w+(?:, \w+)*): (.*)$")


@dataclass(frozen=True)
class Key:
    """One key of a block; ``kind``: what it takes, in words; ``default``: YAML, or None."""

    name: str
    kind: str
    default: str | None
    text: str


@dataclass(frozen=True)
class Entry:
    """What is known of one class.

    Attributes:
        name: ``block.type``, or the block where it has one form.
        headline: what it is, in plain words.
        body: the docstring without its sections.
        example: its block as one line of YAML, without the block's name.
    """

    name: str
    cls: type[BaseModel]
    headline: str
    body: str
    keys: tuple[Key, ...]
    example: str

    @property
    def recipe(self) -> str:
        """The block as it stands in a recipe."""
        block = self.name.partition(".")[0]
        return (
            f"{block}: [{self.example}]"
            if block == "learning_rates"
            else f"{block}: {self.example}"
        )

    @property
    def formula(self) -> str:
        return getattr(self.cls, "formula", "")

    @property
    def citation(self) -> str:
        return getattr(self.cls, "citation", "")


def entries() -> Iterator[Entry]:
    """Every block, and every type that comes with the package, in the order of their names."""
    for block, base in KINDS.items():
        for name, cls in sorted(choices(base).items()):
            if cls.__module__.startswith("hf_sft."):
                yield entry(f"{block}.{name}", cls)
    for block, cls in SINGLE.items():
        yield entry(block, cls)


def named(name: str) -> list[Entry]:
    """The entries that a name means: a block, ``block.type``, a type alone, or ``block.key``.

    Raises:
        RecipeError: it means none.
    """
    known = {found.name: found for found in entries()}
    block, _, kind = name.partition(".")
    if block in KINDS and ":" in kind:
        return [entry(name, find(KINDS[block], kind))]
    if name in known:
        return [known[name]]
    fitting = [e for key, e in known.items() if name in (key.split(".")[0], key.partition(".")[2])]
    own = [e for key, e in known.items() if key.split(".")[0] == block]
    fitting = fitting or [e for e in own if kind in [key.name for key in e.keys]]
    if not fitting:
        short = [*KINDS, *SINGLE, *(key.partition(".")[2] for key in known if "." in key)]
        raise RecipeError(
            f"explain: {name!r} is no block and no type. Blocks, each with its types: "
            f"{listing([*KINDS, *SINGLE], 20)}.{nearest(kind or name, short)}"
        )
    return fitting


def entry(name: str, cls: type[BaseModel]) -> Entry:
    """What the class says of itself."""
    sections = _sections(cls.__doc__)
    body = "\n".join(sections[""]).strip()
    example = " ".join(" ".join(sections.get("Example", ())).split())
    return Entry(
        name,
        cls,
        _headline(name, cls, body),
        body,
        tuple(_keys(cls)),
        example or f"{{type: {name.partition('.')[2]}}}",
    )


def _headline(name: str, cls: type[BaseModel], body: str) -> str:
    """The first line of the module, if it is about this class alone, else of the class."""
    module = inspect.getmodule(cls)
    alone = "." in name and module.__name__.rpartition(".")[2] not in SHARED
    lines = inspect.cleandoc((module.__doc__ if alone else None) or body)
    first = " ".join(lines.partition("\n\n")[0].split())
    return first.removeprefix(f"{name.partition('.')[2]}: ")


def refusals(cls: type[BaseModel]) -> list[str]:
    """What it says under ``Raises:`` beyond what every type of its block does, one line each."""
    found: dict[str, None] = {}
    for base in cls.__mro__:
        if not issubclass(base, Component) or base in (Component, *KINDS.values()):
            continue
        methods = [m for m in vars(base).values() if inspect.isfunction(m)]
        for text in (base.__doc__, *(method.__doc__ for method in methods)):
            told = "\n".join(_sections(text).get("Raises", ()))
            for one in re.split(r"\n(?= {4}\w+: )", "\n" + told):
                if one.strip():
                    found[" ".join(one.split())] = None
    return list(found)


def texts(cls: type[BaseModel]) -> dict[str, str]:
    """Key -> its line in the docstrings of the class and of those it inherits from."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith(("pydantic", "builtins", "abc")):
            continue
        names: list[str] = []
        for line in _sections(base.__doc__).get("Keys", ()):
            if begins := ENTRY.match(line):
                names = begins[1].split(", ")
                found |= dict.fromkeys(names, begins[2])
            else:
                found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return {name: text.strip() for name, text in found.items()}


def _sections(docstring: str | None) -> dict[str, list[str]]:
    """Name -> lines of the docstring; what stands in no section has the name ''."""
    found: dict[str, list[str]] = {"": []}
    here = ""
    for line in inspect.cleandoc(docstring or "").split("\n"):
        if begins := SECTION.match(line):
            here = begins[1]
            found[here] = [begins[2]] if begins[2] else []
            continue
        if here and line and not line.startswith(" "):
            here = ""
        found[here].append(line)
    return found


def _keys(cls: type[BaseModel]) -> Iterator[Key]:
    """Its keys but ``type``: those of its own first, then those it inherits."""
    schema, told = cls.model_json_schema(by_alias=True), texts(cls)
    needed, own = schema.get("required", ()), set(cls.__annotations__)
    names = [name for name in cls.model_fields if name != "type"]
    for name in sorted(names, key=lambda name: name not in own):
        spelled = cls.model_fields[name].alias or name
        field = schema["properties"][spelled]
        value, kind = field.get("default"), _kind(field)
        if value is None:
            kind = kind.removesuffix(" or null")
            value = getattr(cls, f"default_{spelled}", None)
        yield Key(spelled, kind, None if spelled in needed else _yaml(value), told.get(spelled, ""))


def _yaml(value: Any) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _kind(field: dict[str, Any]) -> str:
    """A JSON schema in words."""
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_kind(one) for one in field["anyOf"]))
    if "const" in field or "enum" in field:
        return ", ".join(f"`{one}`" for one in field.get("enum", [field.get("const")]))
    if "$ref" in field:
        return "mapping"
    if field.get("type") == "array":
        inner = field.get("items", {})
        if "prefixItems" in field:
            return f"list of {len(field['prefixItems'])}"
        return "list" if "$ref" in inner else f"list of {_kind(inner)}"
    limits = [f"{sign} {field[key]:g}" for key, sign in BOUNDS.items() if key in field]
    return " ".join([WORDS.get(field.get("type", ""), "number"), ", ".join(limits)]).strip()
