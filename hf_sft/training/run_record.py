"""What a checkpoint must know of its run, written into the checkpoint itself."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from hf_sft.errors import SourceError

ANCHORS = "starting_point.safetensors"  # in a checkpoint: anchors that the training itself has set


class RunRecord(TrainerCallback, ExportableState):
    """Carries θ⁰'s fingerprint and the run's memory into trainer_state.json, written last."""

    def __init__(self, fingerprint: str):
        self.fingerprint = fingerprint
        self.memory: dict[str, Any] = {}
        self.collect: Callable[[], dict[str, Any]] | None = None

    def state(self) -> dict:
        if self.collect is not None:
            self.memory = self.collect()
        return {"args": {"fingerprint": self.fingerprint}, "attributes": {"memory": self.memory}}


def recorded(checkpoint: Path) -> dict[str, Any]:
    """What RunRecord wrote into a checkpoint; empty where no TransferTrainer did.

    Raises:
        OSError, ValueError: trainer_state.json is missing or torn.
    """
    state = json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))
    return state.get("stateful_callbacks", {}).get(RunRecord.__name__, {})


def recorded_source(checkpoint: Path) -> str | None:
    """The fingerprint a checkpoint was trained from; None where no TransferTrainer wrote it."""
    return recorded(checkpoint).get("args", {}).get("fingerprint")


def recorded_memory(checkpoint: Path) -> dict[str, Any]:
    """The run's memory at a checkpoint."""
    return recorded(checkpoint).get("attributes", {}).get("memory", {})


def refuse_other_source(checkpoint: Path, fingerprint: str) -> None:
    """Going on from a checkpoint of another source would pull to another starting point.

    Raises:
        SourceError: the recorded fingerprint is not this one.
    """
    found = recorded_source(checkpoint)
    if found not in (None, fingerprint):
        raise SourceError(
            f"'{checkpoint.name}' was trained from a source with fingerprint {found[:12]}…, "
            f"this model has {fingerprint[:12]}…. Going on would pull to another starting point: "
            "load the same source, or start in a new folder."
        )
