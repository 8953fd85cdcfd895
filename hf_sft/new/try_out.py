"""What a new recipe would meet when it runs: its data checked by the task, its source loaded."""

import os
from dataclasses import dataclass
from typing import Any

from datasets import (
    DatasetDict,
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from pydantic import ValidationError

from hf_sft.errors import UserError
from hf_sft.loaders import Loader
from hf_sft.loaders.splits import split as carve
from hf_sft.model_source import ModelSource
from hf_sft.models import load_model
from hf_sft.resources import Locate
from hf_sft.tasks import Task

WEIGHTS = (".safetensors", ".bin")


@dataclass(frozen=True)
class Met:
    """What was found.

    Attributes:
        data: why `run` would not take the data; None when it would.
        source: why it would not take the source; None when it would, or was not asked.
        not_loaded: why the source was not loaded; None where it was, or the data come first.
    """

    data: str | None = None
    source: str | None = None
    not_loaded: str | None = None


def try_out(task: Task, loader: Loader, data: DatasetDict, model: Any, locate: Locate) -> Met:
    """Check and carve the data, then load the source with a head for their labels.

    A source of the Hub is loaded only from the cache: looking at data fetches no weights.

    Args:
        data: splits as they were read.
        model: the ``model`` block.
    """
    silent = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        checked = task.check(data, loader.keep_labels)
        carve(checked, loader, task.stratum, False)
        names = task.names(checked)
    except UserError as error:
        return Met(data=str(error))
    finally:
        if not silent:
            enable_progress_bars()
    return _source(model, task, names, locate)


def _source(model: Any, task: Task, names: list[str], locate: Locate) -> Met:
    try:
        source = ModelSource.model_validate(model)
    except ValidationError:  # told with the rest of the recipe, when it is written
        return Met()
    if not _at_hand(source, locate):
        return Met(
            not_loaded=f"The source {source.name!r} is not on this computer: whether it has all "
            "that the task needs, `hf-sft check` says, which fetches it."
        )
    try:
        load_model(source, task, names, locate)
    except UserError as error:
        return Met(source=str(error))
    return Met()


def _at_hand(source: ModelSource, locate: Locate) -> bool:
    """Whether it is local, or lies in the Hub's cache with its weights."""
    if "name" in source.files() or os.path.isdir(source.name):
        return True
    try:
        return locate(source.name).exists()
    except UserError:
        pass
    try:
        found = snapshot_download(source.name, revision=source.revision, local_files_only=True)
    except (LocalEntryNotFoundError, HFValidationError):
        return False
    return any(file.endswith(WEIGHTS) for _, _, files in os.walk(found) for file in files)
