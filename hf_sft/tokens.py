"""Tokens of the Hub and other secrets: no recipe may hold one, and no message shows one."""

import os
import re
from collections.abc import Iterator
from typing import Any

KEY = re.compile(
    r"(?:(?:hub|hf|auth|access|api|bearer)_?)?token|use_auth_token|api_?key|passw(?:or)?d|secret",
    re.IGNORECASE,
)
SHAPE = re.compile(r"(?<![A-Za-z0-9])(?:hf|api_org)_[A-Za-z0-9]{16,}")
VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
HIDDEN = "<token>"
LEAST = 8  # letters of a variable's value that can be told from a word


def without_tokens(text: str) -> str:
    """``text`` with HIDDEN for what looks like a token of the Hub, and for the one in use."""
    for name in VARIABLES:
        if len(value := os.environ.get(name, "")) >= LEAST:
            text = text.replace(value, HIDDEN)
    return SHAPE.sub(HIDDEN, text)


def token_places(raw: dict[str, Any]) -> list[str]:
    """Where a recipe's blocks hold a secret: ``block.key``, never the value.

    A key of a block that is named like a secret, whatever it holds; any value or key that looks
    like a token of the Hub.
    """
    places = (place for place, named, value in _values(raw, "") if named or _is_token(value))
    return list(dict.fromkeys(map(without_tokens, places)))


def _values(value: Any, place: str) -> Iterator[tuple[str, bool, Any]]:
    """(where, whether it is a block's key that is named like a secret, what) of every value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            here = f"{place}.{key}".lstrip(".")
            named = here.count(".") == 1 and KEY.fullmatch(str(key)) is not None
            yield here, named or _is_token(key), inner if isinstance(inner, str) else None
            yield from _values(inner, here)
    elif isinstance(value, list | tuple | set):
        for number, inner in enumerate(value):
            yield f"{place}.{number}", False, inner
            yield from _values(inner, f"{place}.{number}")


def _is_token(value: Any) -> bool:
    return isinstance(value, str) and without_tokens(value) != value
