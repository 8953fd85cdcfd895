"""What pydantic finds wrong with a block, as the recipe's writer reads it."""

import re
from typing import Any, get_args

from pydantic import BaseModel

from hf_sft.errors import listing, nearest


def problem(where: str, cls: type[BaseModel], error: Any) -> str:
    """One pydantic error as ``place: what was expected, what was found, the choices``."""
    path = ".".join([where, *(str(part) for part in error["loc"])])
    if error["type"] == "extra_forbidden":
        inner = _block(cls, error["loc"])
        keys = [field.alias or name for name, field in inner.model_fields.items()]
        of_type = f" of type {kind!r}" if (kind := _type(inner)) else ""
        return (
            f"{path}: no such key (value {error['input']!r}). Choices{of_type}: "
            f"{listing(keys, 30)}.{nearest(error['loc'][-1], keys)}"
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


def _block(cls: type[BaseModel], place: tuple) -> type[BaseModel]:
    """Whose keys may stand where an error is: the block's own, or those of one inside it."""
    for part in (part for part in place[:-1] if isinstance(part, str)):
        hints = [f.annotation for name, f in cls.model_fields.items() if part in (name, f.alias)]
        inner = [h for hint in hints for h in (hint, *get_args(hint))]
        cls = next((h for h in inner if isinstance(h, type) and issubclass(h, BaseModel)), cls)
    return cls


def _type(cls: type[BaseModel]) -> str | None:
    """The ``type`` by which a recipe names a block of this kind; None where it has none."""
    kind = cls.model_fields["type"].default if "type" in cls.model_fields else None
    return kind if isinstance(kind, str) else None
