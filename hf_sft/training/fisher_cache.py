"""Fisher information on disk: found again by what it was computed from, never half written."""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from hf_sft.starting_point import digest

log = logging.getLogger(__name__)


def folder() -> Path:
    """Below Hugging Face's own cache (HF_HOME)."""
    return Path(constants.HF_HOME) / "hf_sft" / "fisher"


def cached(
    identity: Mapping[str, Any], compute: Callable[[], dict[str, Tensor]], writes: bool = True
) -> dict[str, Tensor]:
    """What ``compute`` gives, from the cache where the same identity is there whole.

    Args:
        identity: everything the result depends on, as JSON values.
        writes: whether this process keeps what it has computed.
    """
    text = json.dumps(identity, sort_keys=True)
    path = folder() / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"
    found = _load(path, text)
    if found is not None:
        log.info("Fisher information taken from %s.", path)
        return found
    found = compute()
    if writes:
        try:
            _save(path, found, text)
        except OSError as error:
            log.warning("Fisher information is not kept: %s", error)
    return found


def _load(path: Path, identity: str) -> dict[str, Tensor] | None:
    """The tensors of a file that is whole and of this identity; None otherwise."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            known = file.metadata() or {}
    except Exception as error:  # safetensors has an exception class of its own for torn files
        log.warning("%s is torn and computed anew: %s", path, error)
        return None
    if known.get("identity") == identity and known.get("content") == _content(found):
        return found
    log.warning("%s is not what it says it is; computed anew.", path)
    return None


def _save(path: Path, tensors: Mapping[str, Tensor], identity: str) -> None:
    """Under another name first: a reader sees the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"identity": identity, "content": _content(plain)}
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
    os.close(handle)
    try:
        save_file(plain, name, metadata)
        with open(name, "rb") as file:
            os.fsync(file.fileno())
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def _content(tensors: Mapping[str, Tensor]) -> str:
    lines = "\n".join(f"{name} {digest(tensor)}" for name, tensor in sorted(tensors.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
