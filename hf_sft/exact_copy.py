"""exact_copy: a tensor in half precision where that loses nothing, as of weights saved in it."""

import torch
from torch import Tensor

LEAST = 1 << 16  # entries; smaller tensors are not worth a look
HALVES = (torch.bfloat16, torch.float16)


def exact_copy(tensor: Tensor) -> Tensor:
    """A copy of the same values: float32 in two bytes each, where every value is one of those."""
    tensor = tensor.detach()
    if tensor.dtype == torch.float32 and tensor.numel() >= LEAST:
        few = tensor.reshape(-1)[:1024]
        for kind in HALVES:
            if _equal(few.to(kind), few) and _equal(half := tensor.to(kind), tensor):
                return half
    return tensor.clone()


def _equal(half: Tensor, tensor: Tensor) -> bool:
    return torch.equal(half.to(tensor.dtype).view(torch.int32), tensor.view(torch.int32))
