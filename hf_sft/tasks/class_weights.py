"""Cross-entropy of classes or of mixtures of classes, with the rare classes counting more."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


class CrossEntropy:
    """Σ_i Σ_c w_c·y_ic·(−log p_ic) / N while training; without gradients w_c = 1.

    y is a class, or a distribution over the classes (mixup). Divided by the number of rows N of the
    whole step, not by the weights in a batch as torch's mean is: a step is the same for any
    accumulation and number of processes.

    Args:
        smoothing: of the labels; stands in for Trainer's own, which a loss function turns off.
        weights: w, one for each class; None: all 1.
    """

    def __init__(self, smoothing: float = 0.0, weights: Tensor | None = None):
        self.smoothing, self.weights = smoothing, weights

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        """Trainer's ``compute_loss_func``; labels (rows,) or (rows, classes)."""
        logits = outputs["logits"].float()
        weighted = self.weights is not None and torch.is_grad_enabled()
        weights = self.weights.to(logits) if weighted else None
        total = cross_entropy(
            logits, labels, weights, reduction="sum", label_smoothing=self.smoothing
        )
        if num_items_in_batch is None:
            return total / len(labels)
        per_row = labels[0].numel()  # Trainer counts every number of a distribution
        return total / (num_items_in_batch / per_row)


class BalancedLoss(CrossEntropy):
    """`CrossEntropy` with w_c = n/(k·n_c): every class has the same weight in an epoch.

    n rows of train, k classes, n_c of them in class c. The weights' mean over train is 1, so that
    the learning rate need not change; the loss of an evaluation is that of an unweighted run.

    Args:
        labels: the class of every row of train, each of ``classes`` at least once.
        smoothing: as above.
    """

    def __init__(self, labels: list[int], classes: int, smoothing: float = 0.0):
        counts = torch.bincount(torch.as_tensor(labels), minlength=classes)
        super().__init__(smoothing, balanced(counts))


def balanced(counts: Tensor) -> Tensor:
    """(classes,) of float64: w_c = n/(k·n_c), 1 for a class that is not there.

    n = Σ_c n_c, k the classes that are there; Σ_c n_c·w_c = n.
    """
    weights = counts.sum() / ((counts > 0).sum() * counts.clamp(min=1).double())
    return torch.where(counts > 0, weights, 1.0)
