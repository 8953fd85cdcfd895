"""Features on disk in the Hub's cache folder, by what they were computed from."""

import hashlib
import logging
import os
from contextlib import suppress
from pathlib import Path

from huggingface_hub import constants
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from hf_sft.ranking.features import Features

log = logging.getLogger(__name__)


def folder() -> Path:
    """``hf_sft/features`` below HF_HOME."""
    return Path(constants.HF_HOME) / "hf_sft" / "features"


def read(key: str) -> Features | None:
    """The features stored under ``key``; None where there are none, or the file is not whole."""
    try:
        content = _path(key).read_bytes()
        digest, body = content[:32], content[32:]
        if hashlib.sha256(key.encode() + body).digest() != digest:
            log.warning("'%s' is torn; its features are computed again.", _path(key).name)
            return None
        return Features(**load(body))
    except (OSError, SafetensorError):
        return None


def write(key: str, features: Features) -> None:
    """Store them under ``key``; the file has its name when it is whole.

    A folder that cannot be written to is told, and costs the next ranking its time, not this one.
    """
    tensors: dict[str, Tensor] = {"features": features.features.contiguous()}
    if features.probabilities is not None:
        tensors["probabilities"] = features.probabilities.contiguous()
    body = save(tensors)
    digest = hashlib.sha256(key.encode() + body).digest()
    try:
        folder().mkdir(parents=True, exist_ok=True)
        _replace(_path(key), digest + body)
    except OSError as error:
        log.warning("The features are not kept for the next time: %s.", error)


def _path(key: str) -> Path:
    return folder() / f"{key}.features"


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(f"{path.stem}.{os.getpid()}.partial")  # each process has its own
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:  # Ctrl-C as well
        with suppress(OSError):
            partial.unlink()
        raise
