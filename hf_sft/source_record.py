"""Which source a checkpoint was trained from, written into the checkpoint itself."""

import json
from pathlib import Path

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from hf_sft.errors import SourceError


class SourceRecord(TrainerCallback, ExportableState):
    """Carries θ⁰'s fingerprint into trainer_state.json, the last file of a checkpoint."""

    def __init__(self, fingerprint: str):
        self.fingerprint = fingerprint

    def state(self) -> dict:
        return {"args": {"fingerprint": self.fingerprint}, "attributes": {}}


def recorded_source(checkpoint: Path) -> str | None:
    """The fingerprint a checkpoint was trained from; None where TransferTrainer did not write it.

    Raises:
        OSError, ValueError: trainer_state.json is missing or torn.
    """
    state = json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))
    record = state.get("stateful_callbacks", {}).get(SourceRecord.__name__, {})
    return record.get("args", {}).get("fingerprint")


def refuse_other_source(checkpoint: Path, fingerprint: str) -> None:
    """Going on from a checkpoint of another source would pull to another starting point.

    Raises:
        SourceError: the recorded fingerprint is not this one.
    """
    recorded = recorded_source(checkpoint)
    if recorded not in (None, fingerprint):
        raise SourceError(
            f"'{checkpoint.name}' was trained from a source with fingerprint {recorded[:12]}…, "
            f"this model has {fingerprint[:12]}…. Going on would pull to another starting point: "
            "load the same source, or start in a new folder."
        )
