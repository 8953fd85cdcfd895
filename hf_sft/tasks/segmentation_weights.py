"""Maps of labels whose rare classes count more while training."""

from typing import Any

import torch
from datasets import Dataset, Image
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate

from hf_sft import images
from hf_sft.errors import RecipeError
from hf_sft.tasks.class_weights import balanced

LEFT_OUT = -100  # torch's label for what is no class, which Trainer does not count either


class BalancedPixels:
    """Σ_p w_y(p)·(−log p_y(p)) / N over the N labelled pixels p of a step; w_c = n/(k·n_c).

    n pixels of train that have a class, n_c of them class c, k classes seen. The weights' mean over
    train is 1; without gradients w_c = 1, so that the loss of an evaluation is that of an
    unweighted run. Divided by N, not by the weights in a batch as torch's mean is: a step is the
    same for any accumulation and number of processes.

    Args:
        counts: n_c (classes,), as `pixel_counts` gives them.
    """

    def __init__(self, counts: Tensor):
        self.weights = balanced(counts)

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        """Trainer's ``compute_loss_func``; labels (rows, height, width), LEFT_OUT without a class.

        The logits are brought to the labels' size, as the models' own losses do.
        """
        size = labels.shape[-2:]
        logits = interpolate(outputs["logits"].float(), size, mode="bilinear", align_corners=False)
        weights = self.weights.to(logits) if torch.is_grad_enabled() else None
        total = cross_entropy(logits, labels, weights, ignore_index=LEFT_OUT, reduction="sum")
        if num_items_in_batch is None:
            return total / (labels != LEFT_OUT).sum().clamp(min=1)
        return total / num_items_in_batch


def pixel_counts(rows: Dataset, kind: Any, classes: int) -> Tensor:
    """(classes,) of int64: the pixels of every class in all masks, at the images' own sizes.

    ``kind``: `Semantic`. Masks are read in parallel, a few in memory at a time.
    """
    truth = kind.kept(rows.features)[0]
    pair = rows.select_columns([kind.image, truth]).cast_column(kind.image, Image(decode=False))
    if truth == kind.mask:
        pair = pair.cast_column(truth, Image(decode=False))

    def count(row: dict) -> Tensor:
        width, height = images.size_of(row[kind.image])
        if truth == kind.mask:
            row = {truth: Image().decode_example(row[truth])}
        target = kind.target(row, height, width)
        return torch.bincount(target[target >= 0], minlength=classes)

    total = torch.zeros(classes, dtype=torch.int64)
    for found in images.each(count, pair):
        total += found
    return total


def leave_out_as_torch_(model: Any) -> None:
    """Let the model's own label for no class be LEFT_OUT: then all count the same pixels.

    Raises:
        RecipeError: the model has another loss than one over its map of labels.
    """
    keys = ("semantic_loss_ignore_index", "loss_ignore_index")
    found = [key for key in keys if hasattr(model.config, key)]
    name = model.config.model_type
    if not found:
        raise RecipeError(
            f"task.class_weights: {name} learns masks and matches them to objects, so that its "
            "pixels have no weight. Leave the key out, or take a model that labels pixels "
            "(Segformer, UperNet)."
        )
    if getattr(model, "auxiliary_head", None) is not None:
        raise RecipeError(
            f"task.class_weights: {name} has an auxiliary head with a loss of its own, which no "
            "weight reaches. Leave the key out, or take a model without it "
            "(use_auxiliary_head: false in its configuration, or in model.backbone_of)."
        )
    setattr(model.config, found[0], LEFT_OUT)
