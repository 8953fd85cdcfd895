"""Norms of the gradients of a step, for policies that watch them."""

import math

import torch

from hf_sft.freezing.base import Moment


@torch.no_grad()
def gradient_norms(moment: Moment) -> dict[str, float]:
    """‖g_n‖₂ of every parameter with a gradient; empty where one is not finite (a skipped step)."""
    found = {n: p.grad for n, p in moment.theta.items() if p.grad is not None}
    if not found:
        return {}
    norms = torch.stack([torch.linalg.vector_norm(g.float()) for g in found.values()])
    sizes = (norms / moment.scale).tolist()  # one transfer from the device
    return dict(zip(found, sizes, strict=True)) if all(map(math.isfinite, sizes)) else {}


@torch.no_grad()
def weight_norms(moment: Moment) -> dict[str, float]:
    """‖θ_n‖₂ of every parameter with a gradient."""
    found = {n: p for n, p in moment.theta.items() if p.grad is not None}
    norms = torch.stack([torch.linalg.vector_norm(p.float()) for p in found.values()])
    return dict(zip(found, norms.tolist(), strict=True))
