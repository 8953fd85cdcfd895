"""Trace: which modules a forward pass calls, in order, what they give, and which of them draw."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Call:
    """One module's calls in one forward pass.

    Attributes:
        start: when it was first called, counted in calls and returns of all modules.
        end: when it last returned.
        given: the first tensor among its arguments at the first call.
        output: what it returned last.
        draws: it, or a module inside it, took random numbers.
    """

    start: int
    end: int = -1
    given: Tensor | None = None
    output: Any = None
    draws: bool = False
    _random: list[Tensor] = field(default_factory=list)


@torch.no_grad()
def traced(model: nn.Module, inputs: Mapping[str, Any]) -> tuple[dict[str, Call], Any]:
    """Module name -> its `Call`, in order of calling, and the model's output; modes as they are."""
    found: dict[str, Call] = {}
    clock = iter(range(2**62))
    hooks = []

    def watch(name: str, module: nn.Module) -> None:
        def before(_: nn.Module, args: tuple, kwargs: dict) -> None:
            call = found.setdefault(name, Call(next(clock)))
            if call.given is None:
                call.given = first_tensor([*args, *kwargs.values()])
            call._random.append(_random_state())

        def after(_: nn.Module, args: tuple, output: Any) -> None:
            call = found[name]
            call.end, call.output = next(clock), output
            call.draws |= not torch.equal(call._random.pop(), _random_state())

        hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
        hooks.append(module.register_forward_hook(after))

    for name, module in model.named_modules():
        watch(name, module)
    try:
        return found, model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()


def first_tensor(values: Any) -> Tensor | None:
    """The first tensor in a list; None where there is none."""
    return next((value for value in values if torch.is_tensor(value)), None)


def _random_state() -> Tensor:
    states = [torch.get_rng_state()]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states += torch.cuda.get_rng_state_all()
    return torch.cat([state.cpu().flatten() for state in states])
