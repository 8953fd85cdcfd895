"""Average precision of found masks (COCO), streamed: of each mask its run lengths are kept."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_sft.tasks.segmentation_masks import Objects, read_objects
from hf_sft.tasks.segmentation_overlap import WORST, answered

METRICS = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large", "mar_100")
MOST = 100  # masks of an image that count, the surest: COCO's own limit
SURE = 0.5  # score and IoU from which an image's worst-first rank counts a mask as found


class InstanceSummary:
    """logits -> scores (images, queries), classes, bits of the masks, and their height and width.

    The processor's own post-processing finds the masks; they stay at the size it finds them in and
    are packed eight pixels to a byte, so that every image has one size and processes can gather.
    """

    def __init__(self, processor: Any):
        self.processor = processor

    def __call__(self, logits: Any, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        outputs, _ = answered(logits)
        found = found_objects(self.processor, outputs, 0.0, None)
        queries = outputs.class_queries_logits.shape[1]
        sides = found[0][0].shape[1:]  # of an image without masks, too
        count, device = len(found), outputs.class_queries_logits.device
        scores = torch.full((count, queries), -1.0, device=device)
        classes = torch.zeros((count, queries), dtype=torch.int64, device=device)
        size = -(-sides[0] * sides[1] // 8)
        bits = torch.zeros((count, queries, size), dtype=torch.uint8, device=device)
        for index, (masks, score, category) in enumerate(found):
            scores[index, : len(score)], classes[index, : len(score)] = score, category
            bits[index, : len(masks)] = packed(masks)
        return scores, classes, bits, torch.tensor([list(sides)] * count, device=device)


def found_objects(
    processor: Any, outputs: Any, threshold: float, sizes: list[tuple[int, int]] | None
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Per image: masks (n, height, width) of bool, scores (n,), classes (n,); surest first."""
    found = processor.post_process_instance_segmentation(
        outputs, threshold=threshold, target_sizes=sizes, return_binary_maps=True
    )
    device, result = outputs.class_queries_logits.device, []
    for image in found:
        segments, masks = image["segments_info"], image["segmentation"]
        scores = torch.tensor([one["score"] for one in segments], device=device)
        classes = torch.tensor([one["label_id"] for one in segments], dtype=torch.int64)
        masks = masks.bool() if segments else masks.new_zeros((0, *masks.shape[-2:])).bool()
        order = scores.argsort(descending=True, stable=True)
        result.append((masks.to(device)[order], scores[order], classes.to(device)[order]))
    return result


def packed(masks: Tensor) -> Tensor:
    """(n, height, width) of bool -> (n, bytes)."""
    flat = masks.flatten(1)
    flat = torch.nn.functional.pad(flat, (0, -flat.shape[1] % 8))
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=masks.device)
    return (flat.view(len(masks), flat.shape[1] // 8, 8) * weights).sum(-1, dtype=torch.uint8)


def unpacked(bits: Tensor, height: int, width: int) -> Tensor:
    """What `packed` packed."""
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    flat = (bits[:, :, None] >> places & 1).flatten(1)
    return flat[:, : height * width].view(-1, height, width).bool()


class StreamingPrecision:
    """torchmetrics' MeanAveragePrecision of masks (pycocotools), at the size of each image.

    Per image it keeps the run lengths of at most 100 found masks and of the true ones.
    """

    def __init__(self, names: list[str]):
        self.names = names
        self.tables: dict[str, Any] = {}
        self.worst: list[int] = []
        self._start()

    def _start(self) -> None:
        from torchmetrics.detection import MeanAveragePrecision

        self.precision = MeanAveragePrecision(
            iou_type="segm", class_metrics=True, sync_on_compute=False
        )  # what is counted here has been gathered from all processes
        self.images: list[tuple[float, int, int]] = []
        self.counts = np.zeros(len(self.names), dtype=np.int64)

    def __call__(self, prediction: Any, compute_result: bool = True) -> dict[str, float]:
        found = [torch.as_tensor(part).cpu() for part in prediction.predictions]
        truths = torch.as_tensor(prediction.label_ids).cpu()
        for scores, classes, bits, sides, written in zip(*found, truths, strict=True):
            truth = read_objects(written)
            kept = (scores >= 0).nonzero()[:MOST, 0]
            masks = at_size(unpacked(bits[kept], *sides.tolist()), truth.masks.shape[1:])
            self._add(masks, scores[kept], classes[kept], truth)
        return self._result() if compute_result else {}

    def _add(self, masks: Tensor, scores: Tensor, classes: Tensor, truth: Objects) -> None:
        said = {"masks": masks, "scores": scores, "labels": classes}
        true = {"masks": truth.masks, "labels": truth.classes, "iscrowd": truth.crowds.long()}
        self.precision.update([said], [true])
        self.counts += np.bincount(truth.classes[~truth.crowds], minlength=len(self.names))
        sure = scores >= SURE
        self.images.append(matched(masks[sure], classes[sure], truth))

    def _result(self) -> dict[str, float]:
        found = self.precision.compute()
        order = [(f1, index) for index, (f1, _, _) in enumerate(self.images)]
        self.worst = [index for _, index in sorted(order)[:WORST]]
        self.tables = {
            "classes": self._classes(found),
            "worst_images": [
                dict(zip(("row", "f1", "missed", "wrong"), (i + 1, *self.images[i]), strict=True))
                for i in self.worst
            ],
        }
        lost = self.counts.any() and "map_per_class" not in found  # no image has any found mask
        result = {key: 0.0 if lost else _or_nan(float(found[key])) for key in METRICS}
        self._start()
        return result

    def _classes(self, found: dict[str, Tensor]) -> list[dict]:
        """A row for every class; torchmetrics tells of those that occur, or were found."""
        kept = {"average_precision": "map_per_class", "average_recall": "mar_100_per_class"}
        each = {number: i for i, number in enumerate(found["classes"].reshape(-1).tolist())}
        values = {key: found.get(name, torch.tensor([])).reshape(-1) for key, name in kept.items()}
        return [
            {
                "class": name,
                **{
                    key: _known(column[each[number]]) if number in each and len(column) else None
                    for key, column in values.items()
                },
                "objects": int(self.counts[number]),
            }
            for number, name in enumerate(self.names)
        ]


def at_size(masks: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Masks resized as the processors' post-processing does it (nearest)."""
    if not len(masks) or masks.shape[1:] == torch.Size(size):
        return masks if len(masks) else torch.zeros((0, *size), dtype=torch.bool)
    resized = torch.nn.functional.interpolate(masks[None].byte(), size=tuple(size), mode="nearest")
    return resized[0].bool()


def matched(masks: Tensor, classes: Tensor, truth: Objects) -> tuple[float, int, int]:
    """(F1, missed, wrong) of an image: pairs of one class with IoU >= 0.5, the surest first.

    F1 = 2·pairs / (found + true objects); 1 where there is nothing to find and nothing found.
    """
    true = truth.masks[~truth.crowds].flatten(1).float()
    labels, said = truth.classes[~truth.crowds], masks.flatten(1).float()
    both = said @ true.T
    iou = both / (said.sum(1)[:, None] + true.sum(1)[None] - both).clamp(min=1)
    iou = iou * (classes[:, None] == labels[None])
    pairs, free = 0, torch.ones(len(true), dtype=torch.bool)
    for row in iou:
        best = (row * free).argmax() if len(true) else 0
        if len(true) and float(row[best] * free[best]) >= SURE:
            pairs, free[best] = pairs + 1, False
    total = len(said) + len(true)
    return (2 * pairs / total if total else 1.0), len(true) - pairs, len(said) - pairs


def _known(value: Tensor) -> float | None:
    return float(value) if value >= 0 else None


def _or_nan(value: float) -> float:
    return value if value >= 0 else float("nan")  # torchmetrics gives -1 where there is nothing
