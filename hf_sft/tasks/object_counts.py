"""The number of objects that detection and mask losses divide by, over all processes."""

import sys
from functools import partial
from typing import Any

from accelerate.utils import reduce

SHARED = "transformers.loss.loss_for_object_detection"  # of DETR and its kin


def sum_object_counts(model: Any) -> None:
    """Let the losses of this kind of model divide by the objects per process.

    N̄ = Σ_p n_p / P over P processes, as DETR's own code has it (Carion et al. 2020, arXiv
    2005.12872): with the mean over processes that DDP takes, a step is that of one process.
    transformers 5.24 means it, but asks accelerate for a mean in place of the sum and divides that
    by P again, so that boxes and masks would weigh P times as much as classes.
    """
    for name in (type(model).__module__, SHARED):
        place = sys.modules.get(name)
        if getattr(place, "reduce", None) is reduce:
            place.reduce = partial(reduce, reduction="sum")
