"""Average precision of detected boxes by COCO's rules, streamed over the rows they belong to."""

import contextlib
import io
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from hf_sft.errors import DataError
from hf_sft.tasks.detection_matches import matched
from hf_sft.tasks.evaluation_order import OTHER_ORDER

MOST = 100  # detections of an image that count, by COCO's rules for each class
NUMBERS = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large", "mar_100")
PLACES = (0, 1, 2, 3, 4, 5, 8)  # of these in COCOeval.stats
POINTS = 101  # recalls 0, 0.01, …, 1 at which precision is taken


def best(scores: Tensor, labels: Tensor, boxes: Tensor) -> Tensor:
    """(images, up to 100, 6): score, label, x0, y0, x1, y1 of those with the highest scores."""
    chosen = scores.topk(min(MOST, scores.shape[1]), dim=1).indices
    found = torch.cat([scores[..., None], labels[..., None].to(scores), boxes], dim=-1)
    return found.gather(1, chosen[..., None].expand(-1, -1, 6))


class StreamingBoxes:
    """Mean over IoU .50, .55, …, .95 and classes of the average precision, and the same in parts.

    AP of a class: mean over recalls r = 0, .01, …, 1 of the largest precision at a recall >= r,
    where a detection is right if its IoU with an object of its class that no better-scored one
    has taken is above the threshold; crowds are ignored (Lin et al. 2014, arXiv 1405.0312).
    Computed by pycocotools. NaN: no object of that size. Kept: 6 float32 for each of the up to
    100 best detections of an image (2.4 kB). Measured over 64 and 640 images: 0.15 and 1.5 MB,
    the process 1 MB larger; while COCO's result is computed, about 1 kB more for each detection.

    Args:
        names: the classes.
        rows: checked rows, in the order in which they are evaluated.
        threshold: the score from which a detection counts in ``mistakes``.
    """

    def __init__(self, names: list[str], rows: Dataset, threshold: float):
        self.names, self.threshold = names, threshold
        self.rows = rows.select_columns(["width", "height", "objects"])
        self.tables: dict[str, list[dict]] = {}
        self.curves: dict[str, list[tuple[float, float]]] = {}
        self.mistakes = np.zeros((0, 3), dtype=np.int64)
        self._begin()

    def _begin(self) -> None:
        self.found: list[np.ndarray] = []
        self.counts: list[tuple[int, int, int]] = []

    def __call__(self, batch: Any, compute_result: bool) -> dict[str, float]:
        """Take one batch of (images, detections, 6), places as shares of the image."""
        found = torch.as_tensor(batch.predictions).float().cpu().numpy()
        start = len(self.found)
        if start + len(found) > len(self.rows):
            raise DataError(OTHER_ORDER)
        rows = self.rows[start : start + len(found)]
        self._refuse_other_order(rows["objects"], batch.label_ids)
        for one, width, height, objects in zip(found, *rows.values(), strict=True):
            kept = one.astype(np.float32)
            kept[:, 2:] *= (width, height, width, height)
            self.found.append(kept)
            self.counts.append(matched(kept[kept[:, 0] >= self.threshold], objects))
        if not compute_result:
            return {}
        result = self._result()
        self._begin()
        return result

    def _refuse_other_order(self, objects: list[dict], labels: Any) -> None:
        """The images of the batch must have as many objects as the rows that are next in line."""
        if not torch.is_tensor(labels):
            return  # a plain Trainer has cut them when it gathered
        counts = (labels.flatten() // 5).tolist()  # of each object a class and four coordinates
        if counts != [sum(not crowd for crowd in one["iscrowd"]) for one in objects]:
            raise DataError(OTHER_ORDER)

    def _result(self) -> dict[str, float]:
        scores, precision, recall = coco_evaluation(self.names, self.rows, self.found)
        self.mistakes = np.array(self.counts, dtype=np.int64)
        self.tables = {"classes": self._classes(precision, recall)}
        self.curves = self._curves(precision)
        return scores

    def _classes(self, precision: np.ndarray, recall: np.ndarray) -> list[dict]:
        counts = np.zeros(len(self.names), dtype=np.int64)
        for objects in self.rows["objects"]:
            np.add.at(counts, objects["category"], 1)
        return [
            {
                "class": name,
                "AP": mean(precision[:, :, k, 0, -1]),
                "AP50": mean(precision[0, :, k, 0, -1]),
                "AP75": mean(precision[5, :, k, 0, -1]),
                "AR100": mean(recall[:, k, 0, -1]),
                "objects": int(counts[k]),
            }
            for k, name in enumerate(self.names)
        ]

    def _curves(self, precision: np.ndarray) -> dict[str, list[tuple[float, float]]]:
        """Class -> (recall, precision) at IoU .5; classes without objects have none."""
        recalls = np.linspace(0, 1, POINTS)
        return {
            name: [(float(r), float(p)) for r, p in zip(recalls, line, strict=True)]
            for name, line in zip(self.names, precision[0, :, :, 0, -1].T, strict=True)
            if line.max() > -1
        }


def mean(values: np.ndarray) -> float | None:
    """Of those that are defined; None where none is. COCO marks the others by -1."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None


def coco_evaluation(
    names: list[str], rows: Dataset, found: list[np.ndarray]
) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """The scalars, precision (IoU, recall, class, size, most) and recall (IoU, class, size, most).

    ``found``: for each row (n, 6) score, label, x0, y0, x1, y1 in pixels.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # it tells its progress
        truth = COCO()
        truth.dataset = {
            "images": [{"id": i} for i in range(len(found))],
            "categories": [{"id": k, "name": name} for k, name in enumerate(names)],
            "annotations": list(_annotations(rows.select(range(len(found))))),
        }
        truth.createIndex()
        guessed = COCO()
        guessed.dataset = {**truth.dataset, "annotations": list(_detections(found))}
        guessed.createIndex()
        evaluation = COCOeval(truth, guessed, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats = [float(evaluation.stats[place]) for place in PLACES]
    scores = {key: v if v > -1 else float("nan") for key, v in zip(NUMBERS, stats, strict=True)}
    return scores, evaluation.eval["precision"], evaluation.eval["recall"]


def _annotations(rows: Dataset):
    number = 0
    for image, objects in enumerate(rows["objects"]):
        for box, label, area, crowd in zip(
            objects["bbox"],
            objects["category"],
            objects["area"],
            objects["iscrowd"],
            strict=True,
        ):
            number += 1
            yield {
                "id": number,
                "image_id": image,
                "category_id": label,
                "bbox": box,
                "area": area,
                "iscrowd": int(crowd),
            }


def _detections(found: list[np.ndarray]):
    number = 0
    for image, kept in enumerate(found):
        for score, label, x0, y0, x1, y1 in kept.tolist():
            number += 1
            yield {
                "id": number,
                "image_id": image,
                "category_id": int(label),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0),
                "score": score,
                "iscrowd": 0,
            }
