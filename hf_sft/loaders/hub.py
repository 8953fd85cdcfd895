"""A dataset on the Hugging Face Hub, or a local folder that ``load_dataset`` understands."""

import re
from pathlib import Path
from typing import Literal

from datasets import Dataset, DatasetDict, load_dataset

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
        for rows in found.values():
            _keep_commit_(rows)
        return DatasetDict({new: found[old] for new, old in wanted.items()})


COMMIT = re.compile("[0-9a-f]{40}")


def _keep_commit_(rows: Dataset) -> None:
    """Note the commit, after which datasets calls the folder of its cache, in the rows' info.

    What is made of the rows keeps that; datasets 5 itself does not say which commit it has loaded.
    """
    for file in rows.cache_files[:1]:
        if COMMIT.fullmatch(commit := Path(file["filename"]).parent.name):
            rows.info.download_checksums = {commit: {"num_bytes": None, "checksum": None}}


def commit_of(rows: Dataset) -> str | None:
    """The commit of the Hub that these rows came from, or the rows that they were made of."""
    known = rows.info.download_checksums or {}
    return next((commit for commit in known if COMMIT.fullmatch(commit)), None)
