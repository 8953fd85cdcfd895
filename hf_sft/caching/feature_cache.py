"""The ``cache`` block: where outputs of the frozen prefix are kept, how exactly, and how many."""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import constants
from pydantic import BaseModel, ConfigDict, Field

from hf_sft.caching.seam import NoCache

ABOUT = "identity.json"  # in the folder of a data set: what it is of; its time is the last use


class FeatureCache(BaseModel):
    """Compute the frozen layers below the first that trains once per row, and read them after that.

    Training, and evaluation while it lasts, go on from what is stored. Where that would not be the
    same, or would not pay, a warning says why, and the training runs whole.

    Keys:
        dtype: of the stored numbers; float32 changes nothing beyond rounding.
        max_gb: 10⁹ bytes, of all that is in the folder; what was used longest ago makes room.
        views: draws that are kept of each row which augmentation draws anew in every epoch; epoch e
            takes draw e mod views. Without it, such rows are not cached.
        folder: where they lie; by default below Hugging Face's own cache, for later runs too.

    Example: {dtype: float32, max_gb: 10}
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    max_gb: float = Field(10, gt=0, allow_inf_nan=False)
    views: int | None = Field(None, ge=1)
    folder: str | None = None

    @property
    def kind(self) -> torch.dtype:
        """``dtype`` as torch has it."""
        return getattr(torch, self.dtype)

    @property
    def path(self) -> Path:
        """The folder; by default below Hugging Face's own cache (HF_HOME)."""
        return Path(self.folder or Path(constants.HF_HOME) / "hf_sft" / "prefixes").expanduser()

    def refuse_large(self, needed: int, missing: int) -> None:
        """Neither the budget nor the disk is to be exceeded.

        Args:
            needed: bytes in all.
            missing: those of them that are to be written.

        Raises:
            NoCache: it does not fit.
        """
        if needed > self.max_gb * 1e9:
            raise NoCache(f"it takes {gb(needed)}, and cache.max_gb is {self.max_gb:g}")
        place = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        if missing > (free := shutil.disk_usage(place).free):
            raise NoCache(f"it takes {gb(missing)}, and the disk of '{self.path}' has {gb(free)}")

    def make_room(self, needed: int, keep: set[str]) -> None:
        """Remove what was used longest ago, until ``needed`` bytes fit beside the rest."""
        others = {p: size_of(p.parent) for p in self.path.glob(f"*/{ABOUT}")}
        others = {path: size for path, size in others.items() if path.parent.name not in keep}
        left = sum(others.values())
        for path in sorted(others, key=lambda path: path.stat().st_mtime):
            if left + needed <= self.max_gb * 1e9:
                return
            shutil.rmtree(path.parent, ignore_errors=True)
            left -= others[path]


def mark(folder: Path, identity: dict[str, Any]) -> None:
    """Write what a folder is of, and that it is used now."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ABOUT).write_text(json.dumps(identity, indent=1, sort_keys=True), "utf-8")


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.glob("*.chunk"))


def gb(size: float) -> str:
    """Bytes for people, in powers of ten."""
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= one:
            return f"{size / one:.3g} {unit}"
    return f"{size:.0f} bytes"
