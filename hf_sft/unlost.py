"""Training and writing so that nothing that was there is lost: signals, full disks, memory."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hf_sft.errors import OneProcessError
from hf_sft.interruption import put_off
from hf_sft.output_folder import CHECKPOINTS
from hf_sft.training.out_of_memory import enough_memory
from hf_sft.training.whole_checkpoints import newest_whole_checkpoint, torn_checkpoints

WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
BY_TORCH = ("PytorchStreamWriter", "inline_container", "iostream error")  # without an errno


class LostWriting(OneProcessError):
    """A file of a run could not be written; what was whole before still is."""


def train(trainer: Any, resume: str | None) -> None:
    """``trainer.train``; a first signal waits until its step is saved.

    Raises:
        Stopped: by a signal, after a checkpoint was written for it.
        OneProcessError: memory or disk are too small, or a file has gone.
    """
    with put_off(), written(Path(trainer.args.output_dir).parent), enough_memory(trainer):
        trainer.train(resume_from_checkpoint=resume)


@contextmanager
def written(folder: Path) -> Iterator[None]:
    """Inside, the run in ``folder`` writes; where it cannot, torn checkpoints are taken away.

    Raises:
        LostWriting: with the reason and where the run goes on.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = _reason(error)
        if reason is None:
            raise
        raise LostWriting(f"{reason} {_what_is_left(folder)}") from error


def _reason(error: Exception) -> str | None:
    """What could not be written or read, and the remedy; None for any other error."""
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return f"'{error.filename}' has gone while the run was under way. Put it back."
    if isinstance(error, OSError):
        if error.errno not in WRITING:
            return None
        where = f"'{error.filename}': " if error.filename else ""
        return f"{where}{os.strerror(error.errno)}. Make room there, or make it writable."
    if isinstance(error, RuntimeError) and not any(part in str(error) for part in BY_TORCH):
        return None
    first = str(error).splitlines()[0]
    return f"A checkpoint could not be written ({first}). Make room there, or make it writable."


def _what_is_left(folder: Path) -> str:
    for torn in torn_checkpoints(folder / CHECKPOINTS):
        shutil.rmtree(torn, ignore_errors=True)
    whole = newest_whole_checkpoint(folder / CHECKPOINTS)
    if whole is None:
        return "No checkpoint had been written before; the same command starts anew."
    return f"Nothing that was whole is lost: the same command goes on from {whole.name}."
