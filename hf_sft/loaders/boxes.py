"""What the loaders of detection data share: rows with boxes, or the images cut to their boxes."""

from abc import abstractmethod
from typing import Any

from datasets import DatasetDict
from pydantic import Field, model_validator

from hf_sft.loaders.base import Loader
from hf_sft.loaders.crops import SOURCE, as_crops
from hf_sft.loaders.objects import Parts, as_rows
from hf_sft.resources import Locate


class BoxLoader(Loader):
    """Detection data: a row per image with its objects, or per object with ``crops``.

    ``crops`` gives the columns ``image`` (one object, PNG), ``label`` and ``source`` (the image it
    was cut from). ``group`` is ``source`` then, so that no image has objects in two parts.

    Keys:
        crops: a row per object, cut out, for image classification; kept in memory as PNG, 1 to
            2 bytes a pixel, which is told above 500 MB.
        margin: what is cut out with an object on each side, a share of the box's side.
    """

    crops: bool = False
    margin: float = Field(0.0, ge=0, le=2)

    @model_validator(mode="before")
    @classmethod
    def _an_image_stays_in_one_part(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("crops") is True:
            return {"group": SOURCE} | given
        return given

    @model_validator(mode="after")
    def _margin_is_of_crops(self) -> "BoxLoader":
        if self.margin and not self.crops:
            raise ValueError("margin is what crops have; set crops: true or leave margin out")
        return self

    @abstractmethod
    def annotated(self, locate: Locate) -> tuple[Parts, list[str]]:
        """Every split's images with their objects, and the classes of all splits in order.

        Raises:
            DataError: what cannot be read, each with its file and place.
        """

    def read(self, locate: Locate) -> DatasetDict:
        parts, names = self.annotated(locate)
        return as_crops(parts, names, self.margin) if self.crops else as_rows(parts, names)
