"""A plug-in that is its own configuration: its fields are the fields of its YAML block."""

import importlib
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from hf_sft.errors import RecipeError, listing, nearest


class Component(BaseModel):
    """Frozen settings plus the methods that use them; found by the ``type`` of its YAML block."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, protected_namespaces=()
    )

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        hint = cls.model_fields[info.field_name].annotation
        if isinstance(value, bool) and bool not in (hint, *get_args(hint)):
            raise PydanticCustomError("boolean", "should be no truth value")
        return value

    def describe(self) -> dict[str, Any]:
        """The settings as the recipe spells them, for reports and cards."""
        return self.model_dump(by_alias=True, mode="json")


C = TypeVar("C", bound=Component)


def choices(base: type[C]) -> dict[str, type[C]]:
    """Every imported plug-in under ``base``, by the ``type`` that names it in a recipe."""
    found: dict[str, type[C]] = {}
    for cls in base.__subclasses__():
        found.update(choices(cls))
        field = cls.model_fields.get("type")
        if field is not None and isinstance(field.default, str):
            found[field.default] = cls
    return found


def find(base: type[C], type_name: object) -> type[C]:
    """Look a plug-in up by its ``type``, or import ``package.module:Class``.

    Raises:
        RecipeError: no such type; the message lists the choices and the nearest.
    """
    known = choices(base)
    if isinstance(type_name, str) and ":" in type_name:
        return _imported(base, type_name)
    if not isinstance(type_name, str) or type_name not in known:
        raise RecipeError(
            f"type: {type_name!r} is not known. Choices: {listing(sorted(known), 30)}, or your own "
            f"class as 'package.module:Class'.{nearest(type_name, known)}"
        )
    return known[type_name]


def _imported(base: type[C], path: str) -> type[C]:
    module, _, name = path.partition(":")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError, SyntaxError) as error:
        raise RecipeError(f"type: {path!r} cannot be imported: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise RecipeError(f"type: {path!r} is not a {base.__name__}.")
    return cls
