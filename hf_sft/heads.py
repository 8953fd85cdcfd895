"""What of a source's head is new where the task's labels are others than the source's."""

import copy
from typing import Any

import torch

from hf_sft.layer_groups import LayerGroups


def renew_head_(model: Any, groups: LayerGroups, fresh: set[str], locates: bool) -> set[str]:
    """Give what speaks of other classes new random values; its parameter names.

    That is the whole head, or, of a task that also ``locates`` what it names, only the outputs per
    class: what finds a detector's boxes and a segmenter's masks is the source's and stays so.
    """
    head = outputs_per_class(model) if locates else set(groups.head.parameters)
    stale = head - fresh
    for path, module in reversed(list(model.named_modules())):  # the inner ones first
        own = {f"{path}.{key}": p for key, p in module.named_parameters(recurse=False)}
        if stale & set(own):
            for name, parameter in own.items():
                parameter._is_hf_initialized = locates and name not in stale
        around = locates and any(not path or name.startswith(f"{path}.") for name in stale)
        if around or stale & set(own):
            model._init_weights(module)  # values that are marked as loaded stay
    return head


def outputs_per_class(model: Any) -> set[str]:
    """Parameters whose shape follows the number of labels."""
    config = copy.deepcopy(model.config)
    config.num_labels = model.config.num_labels + 1
    with torch.device("meta"):
        wider = dict(type(model)(config).named_parameters())
    return {n for n, p in model.named_parameters() if n in wider and wider[n].shape != p.shape}
