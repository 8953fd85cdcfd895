"""A dataset on the Hugging Face Hub, or a local folder that ``load_dataset`` understands."""

from typing import Literal

from datasets import DatasetDict, load_dataset

from hf_sft.errors import DataError, UserError, listing, nearest
from hf_sft.loaders.base import Loader
from hf_sft.resources import Locate

SPLITS = ("train", "validation", "test")


class Hub(Loader):
    """``load_dataset``'s arguments, and which of its splits serve as train, validation and test.

    ``path`` is a local folder where the recipe finds one, a dataset of the Hub otherwise.

    Keys:
        path: a Hub id, or a folder.
        name: a configuration of the data set.
        revision: a branch, tag or commit of the Hub.
        splits: {train: its name there, …}.

    Example: {type: hub, path: cardiffnlp/tweet_eval, name: emotion}
    """

    type: Literal["hub"] = "hub"
    path: str
    name: str | None = None
    revision: str | None = None
    splits: dict[Literal["train", "validation", "test"], str] | None = None

    def read(self, locate: Locate) -> DatasetDict:
        try:
            place = str(locate(self.path))
        except UserError:
            place = self.path
        try:
            found = load_dataset(place, self.name, revision=self.revision)
        except Exception as error:  # datasets raises whatever a broken file leads it into
            raise DataError(
                f"data.path: {self.path!r} cannot be loaded as a folder or from the Hub: "
                f"{error.__cause__ or error}"
            ) from error
        wanted = self.splits or {name: name for name in SPLITS if name in found}
        problems = [
            f"data.splits.{new} names {old!r}, but {self.path} has: {listing(found)}."
            f"{nearest(old, found)}"
            for new, old in wanted.items()
            if old not in found
        ]
        if "train" not in wanted:
            problems.append(
                f"data.splits: which of {listing(found)} is for training? Set splits: {{train: …}}."
            )
        if problems:
            raise DataError("\n".join(problems))
        return DatasetDict({new: found[old] for new, old in wanted.items()})
