"""How a predicted map of classes overlaps the true one: counts per image, summed in a stream."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_sft.tasks.segmentation_masks import IGNORED, read_map

WORST = 12  # images that the report lists
CONFUSED = 12  # pairs of classes


class ConfusionSummary:
    """logits -> (images, classes, classes): pixels of each true class (rows) said to be each other.

    The processor's own post-processing makes the map, at the size of the true one; both stay on the
    device. The counts have one size for all images, so that processes can gather them, and they
    add up exactly: what is measured does not depend on batches or processes.
    """

    def __init__(self, processor: Any):
        self.processor = processor

    def __call__(self, logits: Any, labels: Tensor) -> Tensor:
        from torchmetrics.functional.classification import multiclass_confusion_matrix

        outputs, classes = answered(logits)
        sizes = [tuple(size) for size in labels[:, :2].tolist()]
        said = self.processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
        counts = [
            multiclass_confusion_matrix(
                guess, read_map(truth), classes, ignore_index=IGNORED, validate_args=False
            )
            for guess, truth in zip(said, labels, strict=True)
        ]
        return torch.stack(counts)


def answered(logits: Any) -> tuple[SimpleNamespace, int]:
    """A model's answers under the names that post-processing wants, and the number of classes."""
    parts = [logits] if torch.is_tensor(logits) else list(logits)
    if parts[0].ndim == 4:  # (images, classes, height, width)
        return SimpleNamespace(logits=parts[0].float()), parts[0].shape[1]
    found = SimpleNamespace(
        class_queries_logits=parts[0].float(), masks_queries_logits=parts[1].float()
    )
    return found, parts[0].shape[-1] - 1


def overlaps(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Per class, from counts n[t, p] of pixels of class t said to be p; NaN where undefined.

    IoU_c = n_cc / (Σ_p n_cp + Σ_t n_tc − n_cc), recall (accuracy) = n_cc / Σ_p n_cp, precision =
    n_cc / Σ_t n_tc. Everingham et al. 2010 (Pascal VOC); a class neither there nor said has none.
    """
    hits, true, said = np.diag(counts), counts.sum(1), counts.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "iou": hits / (true + said - hits),
            "accuracy": hits / true,
            "precision": hits / said,
        }


def mean(values: np.ndarray) -> float:
    """Over what is defined; NaN where nothing is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


class StreamingOverlap:
    """Mean IoU, mean accuracy and pixel accuracy over all pixels of all images.

    Keeps one matrix of classes × classes and two numbers per image. Means are over classes that
    occur: IoU over those there or said, accuracy over those there.
    """

    def __init__(self, names: list[str]):
        self.names = names
        self.tables: dict[str, Any] = {}
        self.worst: list[int] = []
        self._start()

    def _start(self) -> None:
        self.counts = np.zeros((len(self.names), len(self.names)), dtype=np.int64)
        self.images: list[tuple[float, float]] = []

    def __call__(self, prediction: Any, compute_result: bool = True) -> dict[str, float]:
        for counts in torch.as_tensor(prediction.predictions).cpu().numpy().astype(np.int64):
            self.counts += counts
            right = np.diag(counts).sum() / max(1, counts.sum())
            self.images.append((mean(overlaps(counts)["iou"]), float(right)))
        return self._result() if compute_result else {}

    def _result(self) -> dict[str, float]:
        found, counts = overlaps(self.counts), self.counts
        order = [(-1.0 if np.isnan(iou) else iou, i) for i, (iou, _) in enumerate(self.images)]
        self.worst = [index for _, index in sorted(order)[:WORST]]
        self.tables = {
            "classes": self._classes(found),
            "most_confused": self._confused(),
            "worst_images": [
                {"row": i + 1, "mean_iou": self.images[i][0], "pixel_accuracy": self.images[i][1]}
                for i in self.worst
            ],
        }
        total = counts.sum()
        result = {
            "mean_iou": mean(found["iou"]),
            "mean_accuracy": mean(found["accuracy"]),
            "pixel_accuracy": float(np.diag(counts).sum() / total) if total else float("nan"),
        }
        self._start()
        return result

    def _classes(self, found: dict[str, np.ndarray]) -> list[dict]:
        total = max(1, self.counts.sum())
        rows = [
            {
                "class": name,
                **{key: _number(values[number]) for key, values in found.items()},
                "share_of_pixels": float(self.counts[number].sum() / total),
            }
            for number, name in enumerate(self.names)
        ]
        return sorted(rows, key=lambda row: (row["iou"] is None, row["iou"] or 0.0))

    def _confused(self) -> list[dict]:
        wrong = self.counts - np.diag(np.diag(self.counts))
        order = np.argsort(-wrong, axis=None, kind="stable")[:CONFUSED]
        pairs = [divmod(int(place), len(self.names)) for place in order]
        return [
            {
                "true": self.names[t],
                "said": self.names[p],
                "pixels": int(wrong[t, p]),
                "of_the_true_class": float(wrong[t, p] / self.counts[t].sum()),
            }
            for t, p in pairs
            if wrong[t, p]
        ]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
