"""Files of one split in several languages, as ``xquad.en.json`` and ``xquad.de.json``."""

from collections.abc import Callable, Iterable
from pathlib import Path

from hf_sft.loaders.squad import language_of


def by_language(
    files: Iterable[Path], split_of: Callable[[Path], str | None]
) -> dict[str, dict[str, Path]] | None:
    """Split -> language -> file; None where the names tell no languages, or one twice.

    Files whose names tell no split are for training, and so is the only split there is.
    """
    found: dict[str, dict[str, Path]] = {}
    for file in files:
        language = language_of(file.name)
        here = found.setdefault(split_of(file) or "train", {})
        if language is None or language in here:
            return None
        here[language] = file
    if max(map(len, found.values()), default=0) < 2:
        return None
    return {"train": next(iter(found.values()))} if len(found) == 1 else found
