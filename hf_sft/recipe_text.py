"""The text of a recipe: a YAML file and ``a.b=c`` overrides <-> a plain mapping of blocks."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from hf_sft.bounded import bounded
from hf_sft.errors import RecipeError, listing
from hf_sft.tokens import token_places

BLOCKS = (
    "task", "data", "model", "penalty", "freeze", "learning_rates", "training", "early_stopping",
    "retention", "adapter", "averaging", "cache", "nonfinite", "compare", "search",
)  # fmt: skip
BOOLEAN = re.compile("^(true|True|TRUE|false|False|FALSE)$")
INTEGER = re.compile("^[-+]?(0|[1-9][0-9]*)$")
FLOAT = re.compile(
    r"^[-+]?((\d+\.\d*|\.\d+)([eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(inf|Inf|INF))$|^\.(nan|NaN|NAN)$"
)


def _words_and_numbers(resolvers: dict) -> dict:
    """Resolvers with the scalars of YAML 1.2: 1e-5 a number; no, 12:30 and 2024-01-01 words."""
    replaced = {f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "timestamp")}
    kept = {
        first: [(tag, form) for tag, form in pairs if tag not in replaced]
        for first, pairs in resolvers.items()
    }
    for kind, form, starts in (
        ("bool", BOOLEAN, "tTfF"),
        ("int", INTEGER, "-+0123456789"),
        ("float", FLOAT, "-+.0123456789"),
    ):
        for first in starts:
            kept.setdefault(first, []).append((f"tag:yaml.org,2002:{kind}", form))
    return kept


class _Loader(yaml.SafeLoader):
    """Safe YAML with the scalars of 1.2; no key may occur twice."""

    yaml_implicit_resolvers = _words_and_numbers(yaml.SafeLoader.yaml_implicit_resolvers)


class _Dumper(yaml.SafeDumper):
    """Quotes exactly what ``_Loader`` would not read as the word it is."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict:
    seen = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen:
                line = key.start_mark.line + 1
                raise yaml.YAMLError(f"line {line}: the key {key.value!r} occurs twice.")
            seen.add(key.value)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _unique_mapping)


def read(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        RecipeError: no such file, no YAML, or no mapping.
    """
    try:
        raw = bounded(yaml.load(path.read_text("utf-8-sig"), _Loader))  # noqa: S506 (a SafeLoader)
    except OSError as error:
        raise RecipeError(
            f"recipe: '{path}' cannot be read ({error.strerror}). `hf-sft list` shows those that "
            "come with the package, `hf-sft copy` takes one."
        ) from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path.name}: no UTF-8 ({error}). Save a YAML file as UTF-8.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"{path.name}: no YAML: {_named(error, path.name)}") from error
    if not isinstance(raw, dict):
        raise RecipeError(f"{path.name}: a mapping of blocks is wanted ({listing(BLOCKS, 20)}).")
    return raw


def _named(error: Exception, place: str) -> str:
    """What YAML says, which calls every text it is given <unicode string>."""
    return str(error).replace('"<unicode string>"', place)


def written(path: Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], list[str]]:
    """The blocks of a recipe's file with overrides applied, and which of those are none.

    Raises:
        RecipeError: no YAML, or a token in it.
    """
    raw, problems = read(path), []
    for override in overrides:
        try:
            apply_override(raw, override)
        except RecipeError as error:
            problems.append(str(error))
    refuse_tokens(raw, path.name)
    return raw, problems


def refuse_tokens(raw: dict[str, Any], file: str) -> None:
    """A recipe is kept beside its run and published with it; a token must not be.

    Raises:
        RecipeError: where there is one, every place.
    """
    if places := token_places(raw):
        told = "a recipe is kept and published, a token is not. Remove it, and run "
        told += "`hf auth login`, or set HF_TOKEN."
        raise RecipeError("\n".join(f"{file}: {place}: {told}" for place in places))


def dump(raw: dict[str, Any]) -> str:
    """The YAML that ``read`` gives back as the same mapping."""
    return yaml.dump(raw, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def as_override(key: str, value: Any) -> str:
    """``a.b=c`` in one line that `apply_override` reads back as the same value."""
    text = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, width=math.inf, sort_keys=False
    )
    return f"{key}={text.removesuffix(chr(10)).removesuffix(chr(10) + '...')}"


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set ``a.b=c`` in place; ``c`` is YAML, a mapping replaces the block, a number indexes a list.

    Raises:
        RecipeError: no ``=``, no YAML, or a path through something that is no block.
    """
    key, equals, text = override.partition("=")
    *outer, last = key.split(".")
    if not equals or not all([*outer, last]):
        raise RecipeError(f"{override!r} is no override; write key.inner=value.")
    try:
        value = bounded(yaml.load(text, _Loader))  # noqa: S506
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        told = _named(error, "the value")
        raise RecipeError(f"{override!r}: the value is no YAML: {told}") from error
    place: Any = raw
    for part in outer:
        if isinstance(place, dict) and place.get(part) is None:
            place[part] = {}
        place = place[_key(place, part, override)]
    place[_key(place, last, override)] = value


def model_block(given: str) -> Any:
    """What a command line writes for a model: what ``model.name`` takes, or the block in braces.

    Raises:
        RecipeError: braces, and no YAML.
    """
    if not given.lstrip().startswith("{"):
        return {"name": given}
    raw: dict[str, Any] = {}
    apply_override(raw, f"model={given}")
    return raw["model"]


def _key(place: Any, part: str, override: str) -> str | int:
    """``part`` as it indexes ``place``: a key of a mapping or a number of a list."""
    if isinstance(place, dict):
        return part
    if not isinstance(place, list):
        raise RecipeError(f"{override!r}: {part!r} leads into {place!r}, which has no keys.")
    if not part.isdecimal() or int(part) >= len(place):
        numbers = listing(range(len(place))) or "none, it is empty"
        raise RecipeError(
            f"{override!r}: {part!r} leads into a list of {len(place)}; its numbers: {numbers}."
        )
    return int(part)
