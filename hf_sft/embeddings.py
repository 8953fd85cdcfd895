"""What a forward pass shows besides its output: pooled embeddings and maps of inner layers."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_sft.errors import UserError
from hf_sft.layer_groups import LayerGroups


class Taps:
    """Keeps what passes the chosen places of a model in its last forward pass, gradients included.

    Attributes:
        outputs: the model's own output; set by who calls the model.
        maps: module name -> its output, for the ``layers`` asked for.
    """

    def __init__(self, model: nn.Module, embeddings: bool = False, layers: Sequence[str] = ()):
        self.outputs: Any = None
        self.maps: dict[str, Tensor] = {}
        self._hidden: Any = None
        self._hooks = []
        if embeddings:
            self._watch_embeddings(model)
        for name in layers:
            self._hooks.append(model.get_submodule(name).register_forward_hook(self._keep(name)))

    def remove(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()

    def embeddings(self, inputs: Mapping[str, Any]) -> Tensor:
        """(examples, dim): hidden states averaged over real positions, or pooled features."""
        return pool(self._hidden, inputs.get("attention_mask"))

    def _watch_embeddings(self, model: nn.Module) -> None:
        if (timm := getattr(model, "timm_model", None)) is not None:
            head = timm.get_classifier()
            self._hooks.append(head.register_forward_pre_hook(self._keep_input))
        else:
            self._hooks.append(body(model).register_forward_hook(self._keep_hidden))

    def _keep_input(self, module: nn.Module, inputs: tuple) -> None:
        self._hidden = inputs[0]

    def _keep_hidden(self, module: nn.Module, inputs: tuple, output: Any) -> None:
        self._hidden = hidden_states(output)

    def _keep(self, name: str):
        def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
            self.maps[name] = output[0] if isinstance(output, tuple) else output

        return hook


def body(model: nn.Module) -> nn.Module:
    """The part of a Transformers model below its head.

    Raises:
        UserError: the model has no such part of its own.
    """
    inner = getattr(model, "base_model", model)
    if inner is not model:
        return inner
    encoder = getattr(model, "encoder", None)  # T5: no part of its own around both stacks
    if isinstance(encoder, nn.Module):
        return encoder
    raise UserError(
        f"penalty: {type(model).__name__} has no body below its head whose embeddings could be "
        "held. Take a weight prior (l2-sp) or lwf."
    )


def hidden_states(output: Any) -> Tensor:
    """The encoder's last hidden states where there are two stacks, else the only ones."""
    for key in ("encoder_last_hidden_state", "last_hidden_state"):
        if (found := getattr(output, key, None)) is not None:
            return found
    return output[0]


def pool(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """(examples, dim) from (examples, positions, dim) or (examples, channels, height, width).

    Positions count by ``mask`` (examples, positions), where it fits.
    """
    if hidden.ndim == 4:
        return hidden.mean((2, 3))
    if hidden.ndim == 2:
        return hidden
    if mask is None or mask.shape != hidden.shape[:2]:
        return hidden.mean(1)
    share = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * share).sum(1) / share.sum(1)


def module_of(names: Sequence[str], model: nn.Module) -> str:
    """The innermost module that holds all parameters of these names."""
    modules = {name for name, _ in model.named_modules()}
    split = [name.split(".")[:-1] for name in names]
    common: list[str] = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1 or ".".join([*common, parts[0]]) not in modules:
            break
        common.append(parts[0])
    return ".".join(common)


def block_modules(model: nn.Module, groups: LayerGroups, most: int = 4) -> list[str]:
    """Modules of up to ``most`` blocks, evenly spaced, the last one among them."""
    found = [module_of(block.parameters, model) for block in groups.blocks]
    found = [name for name in dict.fromkeys(found) if name]
    step = len(found) / min(most, len(found)) if found else 1
    return [found[round((i + 1) * step) - 1] for i in range(min(most, len(found)))]


@torch.no_grad()
def embed(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """The pooled embeddings of one batch (examples, dim)."""
    taps = Taps(model, embeddings=True)
    try:
        model(**inputs)
        return taps.embeddings(inputs)
    finally:
        taps.remove()
