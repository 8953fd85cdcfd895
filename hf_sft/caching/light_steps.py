"""LightSteps: what Trainer does to a whole model at every step, done to the part that works."""

from collections.abc import Collection, Sequence
from typing import Any

from torch import nn


class LightSteps:
    """While a prefix is skipped, steps do not walk over it.

    Trainer puts all modules into training mode, counts all parameters and looks at all of them to
    clip, at every step. For a head behind a hundred skipped layers that is more than its own work.

    Args:
        model: that is trained.
        skipped: its modules that are not called.
        trains: names of the parameters that may get a gradient.

    Attributes:
        on: whether the prefix is skipped now. Its modules are in eval mode then, and stay so.
        parameters: those that may get a gradient, in the model's order, as clipping adds them up.
        counted: parameters of the model as Trainer counts them for its FLOP.
    """

    def __init__(self, model: nn.Module, skipped: Sequence[nn.Module], trains: Collection[str]):
        self.skipped, self.on = skipped, False
        self.parameters = [p for name, p in model.named_parameters() if name in trains]
        counts = hasattr(model, "num_parameters")
        self.counted = model.num_parameters(exclude_embeddings=True) if counts else 0

    def begin(self) -> None:
        """``train()`` of the model leaves the skipped modules alone from here on."""
        self.on = True
        for module in self.skipped:
            module.eval()
            module.train = _Asleep(module)

    def end(self) -> None:
        """Every module listens again."""
        if self.on:
            self.on = False
            for module in self.skipped:
                del module.train


class _Asleep:
    """``train`` of a module that is skipped; a copy of the module has its class's own."""

    def __init__(self, module: nn.Module):
        self.module = module

    def __call__(self, *_: Any) -> nn.Module:
        return self.module

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return type(self.module).train.__get__(memo[id(self.module)])
