"""A dataset on the Hugging Face Hub, or a local folder that ``load_dataset`` understands."""

from typing import Literal

from datasets import DatasetDict, load_dataset
from datasets.exceptions import DatasetNotFoundError

from hf_sft.errors import DataError, listing, nearest
from hf_sft.loaders.base import Loader
from hf_sft.resources import Locate


class Hub(Loader):
    """``load_dataset``'s arguments, and which of its splits serve as train, validation and test."""

    type: Literal["hub"] = "hub"
    path: str
    name: str | None = None
    revision: str | None = None
    splits: dict[Literal["train", "validation", "test"], str] | None = None

    def read(self, locate: Locate) -> DatasetDict:
        try:
            found = load_dataset(self.path, self.name, revision=self.revision)
        except (DatasetNotFoundError, ConnectionError, FileNotFoundError, ValueError) as error:
            raise DataError(
                f"data.path: {self.path!r} cannot be loaded from the Hub: {error}"
            ) from error
        wanted = self.splits or {name: name for name in ("train", "validation", "test")}
        missing = [name for name in wanted.values() if name not in found] if self.splits else []
        if missing:
            raise DataError(
                f"data.splits names {missing[0]!r}, but {self.path} has: {listing(found)}."
                f"{nearest(missing[0], found)}"
            )
        return DatasetDict({new: found[old] for new, old in wanted.items() if old in found})
