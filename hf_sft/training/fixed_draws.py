"""Losses that draw at random (points of masks, hidden patches), the same at every evaluation."""

from typing import Any

import torch

SEED = 0


class FixedDraws:
    """For a Trainer class: the loss of an evaluated batch is a function of weights and batch.

    Mask2Former compares masks at points that it draws, in evaluation too. Here each evaluated
    batch draws from one seed, and training's own random numbers go on as if nothing was drawn.
    """

    def compute_loss(self, model: torch.nn.Module, inputs: Any, *args: Any, **kwargs: Any):
        """As Trainer's."""
        if model.training:
            return super().compute_loss(model, inputs, *args, **kwargs)
        device = self.args.device
        with torch.random.fork_rng([] if device.type == "cpu" else [device]):
            torch.manual_seed(SEED)
            return super().compute_loss(model, inputs, *args, **kwargs)
