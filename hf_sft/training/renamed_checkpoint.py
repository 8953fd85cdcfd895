"""Checkpoints whose tensors are not named as in the model: transformers 5 saves older names."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME


class RenamedCheckpoints:
    """Trainer's ways back to a checkpoint, for models that ``save_pretrained`` renames.

    ``from_pretrained`` knows both names of ViT's and many others' tensors; Trainer 5.24 loads what
    fits by name and only warns of the rest, so that all blocks would stay as they are.
    """

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        into = self.model if model is None else model
        if not self._takes_renamed(resume_from_checkpoint, into):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if not self._takes_renamed(self.state.best_model_checkpoint, self.model):
            super()._load_best_model()

    def _takes_renamed(self, folder: str, model: nn.Module) -> bool:
        """Whether the checkpoint has other names, and was taken."""
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        renamed = not sharded and is_renamed(Path(folder), model)
        if renamed:
            take_(model, folder)
        return renamed


def is_renamed(folder: Path, model: nn.Module) -> bool:
    """Whether the checkpoint's file has tensors that the model does not know by their names."""
    file = folder / SAFE_WEIGHTS_NAME
    if not isinstance(model, PreTrainedModel) or not file.is_file():
        return False
    with safe_open(file, "pt") as stored:
        return bool({*stored.keys()} - model.state_dict().keys())


def take_(model: PreTrainedModel, folder: str) -> None:
    """Put the checkpoint's weights into the model, every one of them.

    Raises:
        RuntimeError: some are missing there.
    """
    with torch.random.fork_rng(devices=[]):
        saved, told = type(model).from_pretrained(
            folder, config=model.config, dtype=model.dtype, output_loading_info=True
        )
    if told["missing_keys"] or told["mismatched_keys"]:
        raise RuntimeError(
            f"{folder} lacks {sorted(told['missing_keys'])}: it is not this model's."
        )
    model.load_state_dict(saved.state_dict())
