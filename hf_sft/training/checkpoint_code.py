"""What of a checkpoint is a pickle, looked through before anything is made of it."""

import pickle
from pathlib import Path

from torch.serialization import get_unsafe_globals_in_checkpoint
from transformers.trainer_pt_utils import safe_globals

from hf_sft.errors import UserError, listing

PICKLES = (
    "*.pt",
    "*.pth",
)  # optimizer, scheduler, states of random numbers; weights are safetensors


def refuse_code(checkpoint: Path) -> None:
    """Trainer loads these with ``weights_only=True``, which stops at code; this says so first.

    Raises:
        UserError: a file names a function or class that tensors and numbers do not need.
    """
    for file in sorted(path for form in PICKLES for path in checkpoint.glob(form)):
        try:
            with safe_globals():  # numpy's arrays, in the states of random numbers
                found = get_unsafe_globals_in_checkpoint(file)
        except (RuntimeError, ValueError, LookupError, EOFError, pickle.UnpicklingError) as error:
            found = [f"no checkpoint: {error}"]
        if found:
            raise UserError(
                f"'{checkpoint.name}/{file.name}' holds more than tensors and numbers "
                f"({listing(found, 5)}) and is not loaded: no run has written it. Remove "
                f"'{checkpoint}', or start anew with --overwrite."
            )
