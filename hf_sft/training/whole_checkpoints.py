"""Which checkpoints of a folder are whole: a killed run goes on from the newest of them."""

import json
import logging
import os
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_sft.training.run_record import recorded_memory, recorded_source

log = logging.getLogger(__name__)


def newest_whole_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint with every file that going on needs, none of them torn."""
    for checkpoint in _newest_first(folder):
        if _is_whole(checkpoint):
            return checkpoint
        log.warning("'%s' is not whole and is passed over.", checkpoint.name)
    return None


def torn_checkpoints(folder: Path) -> list[Path]:
    """Those that were not written to their end.

    Nobody can go on from one without moments (``save_only_model``), or by other processes than
    wrote it; its weights are whole all the same.
    """
    return [checkpoint for checkpoint in _newest_first(folder) if not _is_written(checkpoint)]


def _newest_first(folder: Path) -> list[Path]:
    found = {}
    for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        step = path.name.rpartition("-")[2]
        if step.isdecimal():
            found[int(step)] = path
    return [found[step] for step in sorted(found, reverse=True)]


def _is_whole(checkpoint: Path) -> bool:
    """Written to the end, with all that going on needs."""
    states = [checkpoint / "optimizer.pt", checkpoint / "scheduler.pt", *_random_states(checkpoint)]
    return _is_written(checkpoint) and all(zipfile.is_zipfile(state) for state in states)


def _is_written(checkpoint: Path) -> bool:
    """trainer_state.json is ours and parses; weights and the files it names are there."""
    try:
        if recorded_source(checkpoint) is None:
            return False
        beside = recorded_memory(checkpoint).get("files_beside", [])
        if not all((checkpoint / name).is_file() for name in beside):
            return False
        weights = [*checkpoint.glob("*.safetensors")]
        for file in weights:
            with safe_open(file, "pt") as tensors:  # compares the header with the file's size
                tensors.keys()
        for index in checkpoint.glob("*.safetensors.index.json"):
            shards = json.loads(index.read_text("utf-8"))["weight_map"].values()
            if not all((checkpoint / shard).is_file() for shard in shards):
                return False
    except (OSError, ValueError, LookupError, AttributeError, SafetensorError):
        return False
    return bool(weights)


def _random_states(checkpoint: Path) -> list[Path]:
    """The file of every process that runs now; each writes its own."""
    count = int(os.environ.get("WORLD_SIZE", 1))
    names = [f"rng_state_{rank}.pth" for rank in range(count)] if count > 1 else ["rng_state.pth"]
    return [checkpoint / name for name in names]
