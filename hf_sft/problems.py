"""What pydantic finds wrong with a block, as the recipe's writer reads it."""

import re
from typing import Any, get_args

from pydantic import BaseModel

from hf_sft.errors import listing, nearest


def problem(where: str, cls: type[BaseModel], error: Any) -> str:
    """One pydantic error as ``place: what was expected, what was found, the choices``."""
    path = ".".join([where, *(str(part) for part in error["loc"])])
    if error["type"] == "extra_forbidden":
        keys = _keys(cls, error["loc"])
        return (
            f"{path}: no such key (value {error['input']!r}). Choices: {listing(keys, 30)}."
            f"{nearest(error['loc'][-1], keys)}"
        )
    if error["type"] == "missing":
        return f"{path}: this key is needed."
    if error["type"] == "string_pattern_mismatch":
        return f"{path}: wanted: {_described(cls, error['loc'])}, found {error['input']!r}."
    if error["type"] in ("model_type", "dict_type"):
        return f"{path}: a mapping of keys is wanted, found {error['input']!r}."
    if error["type"] == "list_type" and isinstance(error["input"], str):
        return f"{path}: a list is wanted, found {error['input']!r}. Write [{error['input']}]."
    close = ""
    if error["type"] == "literal_error":
        close = nearest(error["input"], re.findall(r"'([^']*)'", error["ctx"]["expected"]))
    message = error["msg"].removeprefix("Input ").removeprefix("Value error, ")
    return f"{path}: {message}, found {error['input']!r}.{close}"


def _described(cls: type[BaseModel], place: tuple) -> str:
    """What a key holds in words, where its field says so; else what pydantic would say."""
    field = cls.model_fields.get(str(place[0])) if place else None
    return (field and field.description) or "a value of another form"


def _keys(cls: type[BaseModel], place: tuple) -> list[str]:
    """The keys that may stand where an error is, in the block itself or in one inside it."""
    for part in (part for part in place[:-1] if isinstance(part, str)):
        hints = [f.annotation for name, f in cls.model_fields.items() if part in (name, f.alias)]
        inner = [h for hint in hints for h in (hint, *get_args(hint))]
        cls = next((h for h in inner if isinstance(h, type) and issubclass(h, BaseModel)), cls)
    return [field.alias or name for name, field in cls.model_fields.items()]
