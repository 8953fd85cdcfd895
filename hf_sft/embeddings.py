"""What a forward pass shows besides its output: pooled embeddings and maps of inner layers."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_sft.errors import UserError
from hf_sft.layer_groups import LayerGroups


class Taps:
    """Keeps what passes the chosen places of a model in its last forward pass, gradients included.

    A deep copy of the model is not watched; neither is what gradient checkpointing computes again.

    Attributes:
        outputs: the model's own output; set by who calls the model.
        maps: module name -> its output, for the ``layers`` asked for.
    """

    def __init__(self, model: nn.Module, embeddings: bool = False, layers: Sequence[str] = ()):
        self.outputs: Any = None
        self.maps: dict[str, Tensor] = {}
        self._hidden: Any = None
        self._open, self._paused = False, False
        self._hooks = [model.register_forward_pre_hook(self._begin(model))]
        if embeddings:
            self._watch_embeddings(model)
        for name in layers:
            self._watch(model.get_submodule(name), lambda found, name=name: self._keep(name, found))

    def remove(self) -> None:
        """Take the hooks away, and let go of what was seen."""
        for hook in self._hooks:
            hook.remove()
        self.close()

    def close(self) -> None:
        """Let go of what was seen; the next call of the model is watched again."""
        self.outputs, self._hidden, self.maps, self._open = None, None, {}, False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Forward passes inside the block leave what was seen as it is."""
        before, self._paused, self._open = self._open, True, False
        try:
            yield
        finally:
            self._open, self._paused = before, False

    def embeddings(self, inputs: Mapping[str, Any]) -> Tensor:
        """(examples, dim): hidden states averaged over real positions, or pooled features."""
        return pool(self._hidden, inputs.get("attention_mask"))

    def _begin(self, model: nn.Module):
        def hook(module: nn.Module, *_: Any) -> None:
            if module is model:
                self._open = not self._paused

        return hook

    def _watch_embeddings(self, model: nn.Module) -> None:
        if (timm := getattr(model, "timm_model", None)) is not None:
            self._watch(timm.get_classifier(), self._keep_hidden, entering=True)
        else:
            self._watch(body(model), lambda found: self._keep_hidden(hidden_states(found)))

    def _watch(self, watched: nn.Module, keep: Callable[[Any], None], entering: bool = False):
        """Let ``keep`` see what leaves a module, or enters it."""

        def hook(module: nn.Module, inputs: tuple, *output: Any) -> None:
            if self._open and module is watched:
                keep(inputs[0] if entering else output[0])

        register = watched.register_forward_pre_hook if entering else watched.register_forward_hook
        self._hooks.append(register(hook))

    def _keep_hidden(self, hidden: Tensor) -> None:
        self._hidden = hidden

    def _keep(self, name: str, output: Any) -> None:
        found = hidden_states(output) if isinstance(output, tuple | Mapping) else output
        if torch.is_tensor(found):
            self.maps[name] = found


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


def pool(hidden: Tensor | Sequence[Tensor], mask: Tensor | None) -> Tensor:
    """(examples, dim) from (examples, positions, dim) or (examples, channels, height, width).

    Positions count by ``mask`` (examples, positions), where it fits. Maps of several scales, as
    RT-DETR's encoder gives, are beside each other.
    """
    if not torch.is_tensor(hidden):
        return torch.cat([pool(scale, mask) for scale in hidden], dim=1)
    if hidden.ndim == 4:
        return hidden.mean((2, 3))
    if hidden.ndim == 2:
        return hidden
    if mask is not None and mask.ndim == 3:  # (examples, choices, positions): as the body sees it
        mask = mask.flatten(0, 1)
    if mask is None or mask.shape != hidden.shape[:2]:
        return hidden.mean(1)
    share = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * share).sum(1) / share.sum(1).clamp(min=1)


def block_modules(model: nn.Module, groups: LayerGroups, most: int = 4) -> list[str]:
    """Modules of up to ``most`` blocks, evenly spaced, the last one among them."""
    modules = dict(model.named_modules())
    found = [
        block.name if block.name in modules else main_module(block.parameters, modules)
        for block in groups.blocks
    ]
    found = [name for name in dict.fromkeys(found) if name]
    step = len(found) / min(most, len(found)) if found else 1
    return [found[round((i + 1) * step) - 1] for i in range(min(most, len(found)))]


def main_module(names: Sequence[str], modules: Mapping[str, nn.Module]) -> str:
    """The innermost module with a forward pass that holds at least 60 % of these parameters.

    Not all: the final norm is counted with the last block.
    """
    inside, found = "", ""
    while True:
        below = Counter(
            ".".join(name.split(".")[: inside.count(".") + 2 if inside else 1])
            for name in names
            if not inside or name.startswith(f"{inside}.")
        )
        inside, count = below.most_common(1)[0]
        if inside not in modules or count < 0.6 * len(names):
            return found
        if not isinstance(modules[inside], nn.ModuleList | nn.ModuleDict):
            found = inside


@torch.no_grad()
def embed(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """The pooled embeddings of one batch (examples, dim)."""
    taps = Taps(model, embeddings=True)
    try:
        model(**inputs)
        return taps.embeddings(inputs)
    finally:
        taps.remove()
