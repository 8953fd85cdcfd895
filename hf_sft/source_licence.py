"""The licence that a source's own card names."""

from pathlib import Path

import yaml
from huggingface_hub import metadata_load
from transformers.utils.hub import cached_file


def source_licence(place: Path | str, revision: str | None = None) -> str | None:
    """The word after ``license`` in the card of a folder or Hub id; its name where that is other.

    None where there is no card, where it cannot be read, or where it names none or several.
    """
    try:
        card = _card(place, revision)
        facts = metadata_load(card) if card and Path(card).is_file() else None
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None
    if not isinstance(facts, dict):
        return None
    found = facts.get("license")
    if found == "other":
        found = facts.get("license_name") or found
    if isinstance(found, list):
        found = found[0] if len(found) == 1 else None
    return found if isinstance(found, str) else None


def _card(place: Path | str, revision: str | None) -> Path | str | None:
    if isinstance(place, Path):
        return place / "README.md"  # of a bare file there is none: what lies beside it is unknown
    return cached_file(
        place,
        "README.md",
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
