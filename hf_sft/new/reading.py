"""The data as the new recipe's loader gives them, also where it has to be told how to read on."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from datasets import DatasetDict

from hf_sft.errors import DataError

ONE_BASED, CHECK_SIZE = "one_based", "check_size"  # keys that messages of loaders offer


@dataclass
class Reading:
    """What was read.

    Attributes:
        data: every split.
        decisions: what the block was given so that it could be read, a sentence each.
        refusal: why `run` would not read it as the block stands; None when it would.
    """

    data: DatasetDict = field(default_factory=DatasetDict)
    decisions: list[str] = field(default_factory=list)
    refusal: str | None = None


def read(block: dict[str, Any], load: Callable[[dict[str, Any]], DatasetDict]) -> Reading:
    """The splits, by ``load`` of the block, which is changed where that is harmless.

    Corners that begin at 0 are settled in the block. Images of another size than the annotations
    say are looked at all the same, and refused.

    Raises:
        DataError: the data cannot be read; a data set of several configurations says which.
    """
    found, tried = Reading(), block
    while True:
        try:
            found.data = load(tried)
            return found
        except DataError as error:
            if "Config name is missing" in str(error):
                hint = "Say which one: data.name=NAME behind the command."
                raise DataError(f"{error}\n{hint}") from error
            if _offers(error, ONE_BASED, tried):
                block[ONE_BASED] = False
                tried = tried | {ONE_BASED: False}
                found.decisions += ["Some boxes begin at 0, so corners count from 0: one_based."]
            elif _offers(error, CHECK_SIZE, tried):
                found.refusal = str(error)
                tried = tried | {CHECK_SIZE: False}
            else:
                raise


def _offers(error: DataError, key: str, block: dict[str, Any]) -> bool:
    return f"data.{key}: false" in str(error) and key not in block
