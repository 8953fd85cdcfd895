"""Where a name points: a local path, or ``package:module/path`` inside an installed package."""

import hashlib
import importlib.util
import os
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from hf_sft.errors import UserError, listing, nearest

PACKAGE = "package:"
SHA256 = "^[0-9a-fA-F]{64}$"
Locate = Callable[[str], Path]


class ResourceError(UserError):
    """Nothing lies where the name points, or it is not the file that was pinned."""


def locator(folder: Path) -> Locate:
    """A function from a name in a recipe to an existing path.

    Relative paths are looked for in ``folder`` (the recipe's own), then below ``HF_SFT_DATA``.
    """
    roots = [folder]
    if os.environ.get("HF_SFT_DATA"):
        roots.append(Path(os.environ["HF_SFT_DATA"]))

    def locate(name: str) -> Path:
        if name.startswith(PACKAGE):
            return package_path(name)
        paths = [root / os.path.expanduser(name) for root in roots]
        for path in paths:
            if os.path.exists(path):  # a name that cannot be one does not raise here
                return path.resolve()
        looked = " and ".join(f"'{root}'" for root in roots)
        hint = "" if len(roots) > 1 else ", or set HF_SFT_DATA to the folder that holds it"
        beside = [other.name for path in paths for other in _siblings(path)]
        raise ResourceError(
            f"{name!r} does not exist (looked in {looked}). Correct the path{hint}."
            f"{nearest(Path(name).name, beside)}"
        )

    return locate


def _siblings(path: Path) -> list[Path]:
    return list(path.parent.iterdir()) if os.path.isdir(path.parent) else []


def package_path(name: str) -> Path:
    """The file or folder that ``package:module/path`` names, without importing the module."""
    module, _, inside = name.removeprefix(PACKAGE).partition("/")
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if spec is None or spec.origin is None:
        raise ResourceError(f"{name!r}: the Python package {module!r} is not installed.")
    root = Path(spec.origin).parent.resolve()
    path = (root / inside).resolve()
    if not path.is_relative_to(root):
        raise ResourceError(f"{name!r} leaves the folder of the package {module!r}.")
    if not os.path.exists(path):
        there = sorted(entry.name for entry in root.iterdir())
        beside = [entry.name for entry in _siblings(path)]
        raise ResourceError(
            f"{name!r}: no {inside!r} in package {module!r}, which holds: {listing(there)}."
            f"{nearest(path.name, beside)}"
        )
    return path


def package_version(name: str) -> str | None:
    """``distribution version`` of the package a ``package:`` name points into, if it is known."""
    module = name.removeprefix(PACKAGE).partition("/")[0]
    found = _called(module)
    if found is None:  # all that are installed are read: a quarter of a second
        others = metadata.packages_distributions().get(module)
        found = metadata.distribution(others[0]) if others else None
    return None if found is None else f"{found.name} {found.version}"


def _called(module: str) -> metadata.Distribution | None:
    """The distribution that is called as the module is and has it, as most do."""
    try:
        found = metadata.distribution(module)
    except metadata.PackageNotFoundError:
        return None
    return found if any(file.parts[0] == module for file in found.files or ()) else None


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pin(path: Path, expected: str | None) -> None:
    """Refuse a file whose SHA-256 is not ``expected``; ``None`` accepts any.

    Raises:
        ResourceError: the digests differ.
    """
    if expected is not None and (found := sha256(path)) != expected.lower():
        raise ResourceError(
            f"'{path.name}' has SHA-256 {found}, not {expected}: it is another file than the one "
            "that was pinned. Get the pinned version, or correct the pin."
        )
