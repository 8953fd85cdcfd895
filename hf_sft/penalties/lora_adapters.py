"""Where the LoRA adapters of a PEFT model are, found without importing PEFT."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from hf_sft.errors import UserError

KNOWN = ("Linear", "Embedding", "Conv1d", "Conv2d", "Conv3d")  # of peft.tuners.lora.layer
MOVES_SOURCE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # initial values taken out of W⁰


@dataclass(frozen=True)
class Adapter:
    """Names of A (r, fan-in) and B (out, r) of one adapter, and s of ΔW = s·B·A."""

    a: str
    b: str
    scale: float


def lora_adapters(model: nn.Module) -> Iterator[Adapter]:
    """The active LoRA adapters of a PEFT model.

    Raises:
        UserError: there are none, or one whose ΔW is not s·B·A on the source's weights.
    """
    names, found = {id(p): name for name, p in model.named_parameters()}, False
    for path, module in model.named_modules():
        if not any(cls.__name__ == "BaseTunerLayer" for cls in type(module).__mro__):
            continue
        for adapter in module.active_adapters:
            if reason := _why_not(module, adapter, getattr(model, "peft_config", {})):
                raise UserError(
                    f"penalty: lora-sp: {path}, adapter {adapter!r}: {reason}. Take plain LoRA on "
                    "linear, embedding and convolution layers, or no penalty."
                )
            if (factors := _factors(module, adapter)) is not None:
                found = True
                yield Adapter(*(names[id(p)] for p in factors), module.scaling[adapter])
    if not found:
        raise UserError(
            f"penalty: lora-sp: {type(model).__name__} has no active LoRA adapter. Wrap it with "
            "peft.get_peft_model(model, peft.LoraConfig(…)), or take {type: l2-sp}."
        )


def _factors(module: nn.Module, adapter: str) -> tuple[Tensor, Tensor] | None:
    if adapter in module.lora_embedding_A:
        return module.lora_embedding_A[adapter], module.lora_embedding_B[adapter]
    if adapter in module.lora_A:
        return module.lora_A[adapter].weight, module.lora_B[adapter].weight
    return None  # this layer is no target of this adapter


def _why_not(module: nn.Module, adapter: str, configs: Mapping[str, Any]) -> str | None:
    """Why an adapter's ΔW is not s·B·A on the source's weights."""
    kind, initial = type(module), getattr(configs.get(adapter), "init_lora_weights", True)
    if kind.__module__ != "peft.tuners.lora.layer" or kind.__name__ not in KNOWN:
        return f"{kind.__module__}.{kind.__name__} is not supported"
    if module.use_dora.get(adapter) or adapter in module.lora_variant:
        return "DoRA and other variants of LoRA do more than add s·B·A"
    if isinstance(initial, str) and initial.lower().startswith(MOVES_SOURCE):
        return (
            f"init_lora_weights={initial!r} takes B·A out of the source's weights, and 0 is not it"
        )
    if module.merged_adapters:
        return "it is merged into the weights; call model.unmerge_adapter() first"
    if getattr(module.get_base_layer(), "groups", 1) != 1:
        return "a convolution in groups"
    return None


def deltas(model: Any) -> dict[str, Callable[[], Tensor]]:
    """Parameter of the source -> ΔW = s·B·A that its adapter adds to it, formed when called."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        names[id(module.get_base_layer().weight)]: partial(module.get_delta_weight, "default")
        for module in model.modules()
        if hasattr(module, "get_delta_weight")
    }
