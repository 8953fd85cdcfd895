"""Cross-entropy with the rare classes counting more."""

from typing import Any

import torch
from torch.nn.functional import cross_entropy


class BalancedLoss:
    """Σ_i w_{y_i}·CE_i / N while training, w_c = n/(k·n_c); without gradients Σ_i CE_i / N.

    n rows of train, k classes, n_c of them in class c: every class has the same weight in an epoch,
    and the weights' mean over train is 1, so that the learning rate need not change. Divided by the
    number of rows N of the whole step, not by the weights in a batch as torch's mean is: a step is
    the same for any accumulation and number of processes. The loss of an evaluation is the plain
    one, that of an unweighted run.

    Args:
        labels: the class of every row of train, each of ``classes`` at least once.
        smoothing: of the labels; stands in for Trainer's own, which a loss function turns off.
    """

    def __init__(self, labels: list[int], classes: int, smoothing: float = 0.0):
        counts = torch.bincount(torch.as_tensor(labels), minlength=classes)
        self.weights = len(labels) / (classes * counts.clamp(min=1).double())
        self.smoothing = smoothing

    def __call__(self, outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Trainer's ``compute_loss_func``."""
        logits = outputs["logits"].float()
        weights = self.weights.to(logits) if torch.is_grad_enabled() else None
        total = cross_entropy(
            logits, labels, weights, reduction="sum", label_smoothing=self.smoothing
        )
        return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)
