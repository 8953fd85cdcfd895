"""Instance segmentation: a mask, a class and a score for every object, from outlined objects."""

from dataclasses import dataclass
from typing import Any, ClassVar

from datasets import DatasetDict, Features
from torch import Tensor

from hf_sft.tasks.segmentation_masks import Objects, objects, read_objects, written_objects
from hf_sft.tasks.segmentation_outlines import checked_outlines
from hf_sft.tasks.segmentation_precision import METRICS, InstanceSummary, StreamingPrecision


@dataclass(frozen=True)
class Instance:
    """What the task's settings mean where every object has a mask of its own."""

    metric_names: ClassVar[tuple[str, ...]] = METRICS
    selection_metric: ClassVar[str] = "map"

    image: str
    objects: str

    def columns(self, found: dict[str, Any]) -> dict[str, str]:
        """The column of the outlined objects."""
        return {"task.objects": self.objects}

    def check(self, data: DatasetDict) -> DatasetDict:
        """Every outline is tried.

        Raises:
            DataError: the first few that are no good.
        """
        return checked_outlines(data, self.image, self.objects, "task.problem: instance")

    def names(self, data: DatasetDict) -> list[str]:
        """The categories in the order of their numbers."""
        return list(data["train"].features[self.objects]["category"].feature.names)

    def kept(self, features: Features) -> list[str]:
        """The column that holds the truth, where it is known."""
        return [self.objects] if self.objects in features else []

    def target(self, row: dict, height: int, width: int) -> Objects:
        """The row's objects as masks of the image's size."""
        return objects(row[self.objects], height, width)

    def written(self, target: Objects) -> list[int]:
        """The target in numbers, for the metrics."""
        return written_objects(target)

    def read(self, written: Tensor) -> Objects:
        """What `written` wrote."""
        return read_objects(written)

    def summarizer(self, processor: Any) -> InstanceSummary:
        """Found masks as bits, scores and classes, of one size for all images."""
        return InstanceSummary(processor)

    def metrics(self, names: list[str]) -> StreamingPrecision:
        """Average precision over images."""
        return StreamingPrecision(names)
