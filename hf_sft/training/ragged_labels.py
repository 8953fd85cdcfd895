"""Labels that differ in size from example to example (boxes, masks), where Trainer gathers them."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch


class RaggedLabels:
    """For a Trainer class: evaluated batches carry the sizes of labels that cannot be gathered.

    Trainer pads and gathers labels of all processes as tensors of one shape, which lists of dicts
    or of tensors are not; in one process it cuts them as if they were. Metrics then read the true
    labels from the rows, which come in order.
    """

    def prediction_step(self, *args: Any, **kwargs: Any):
        """As Trainer's; ragged labels become one number per example, see `sizes`."""
        loss, logits, labels = super().prediction_step(*args, **kwargs)
        if labels is not None and not _tensors(labels):
            labels = sizes(labels).to(self.args.device)
        return loss, logits, labels


def sizes(labels: Any) -> torch.Tensor:
    """(examples, 1): of how many numbers each example's labels are made.

    Args:
        labels: a list with an example's labels (a tensor, or a dict of them) in each place; or a
            tuple of such lists, whose numbers add up.
    """
    if isinstance(labels, tuple):
        return torch.stack([sizes(part) for part in labels]).sum(0)
    return torch.tensor([[_numbers(example)] for example in labels], dtype=torch.int64)


def _numbers(labels: Any) -> int:
    values = labels.values() if isinstance(labels, Mapping) else [labels]
    return sum(value.numel() for value in values)


def _tensors(labels: Any) -> bool:
    """Whether it is a tensor for the batch, or several of them."""
    if isinstance(labels, tuple):
        return all(_tensors(part) for part in labels)
    return not isinstance(labels, Iterable) or torch.is_tensor(labels)
