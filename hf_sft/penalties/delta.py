"""DELTA: the feature maps of inner layers are held to the source's."""

from collections.abc import Mapping, Sequence
from fnmatch import filter as matching
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from hf_sft.embeddings import block_modules
from hf_sft.errors import RecipeError, nearest
from hf_sft.layer_groups import LayerGroups
from hf_sft.penalties.channel_attention import attention, channel_axis, fit_head_
from hf_sft.penalties.function_prior import FunctionPrior


class DELTA(FunctionPrior):
    """weight · ½ Σ_j mean_i ‖FM_j(x_i; θ) − FM_j(x_i; θ⁰)‖² / P_j, over the maps of some layers j.

    Li et al. 2019, "DELTA: deep learning transfer using feature map with attention" (ICLR, arXiv
    1901.09229). FM_j has C_j channels at P_j places: the H·W of a CNN, the real positions of a
    text, the patches of a transformer. With ``attention`` every channel c has the weight C_j·w_jc,
    w_j = softmax(z_j/5), z_jc the standardised rise of the task loss when the channel is zeroed: at
    θ⁰, under a head fitted there, on ``examples`` of the train set, once before training.
    ``layers``: globs on module names; by default up to four blocks, evenly spaced, the last one
    among them. A mean over the batch, where the released codes sum over it.
    Default weight 0.5: the papers' α = 0.01 on sums over batches of about 50. It was found for
    ResNets; hidden states of text models are larger. β‖head‖² is {type: l2-sp, lambda: 0, head: β}.
    Published, ResNet-50 on CUB-200, fine-tuning → DELTA: 51.2 → 54.8 with 15 % of the data, 81.8 →
    82.3 with all of it; mean of ten data sets 84.6 → 84.8 (tllib's table, one seed).
    Cost: one forward pass of the source per step; attention Σ_j C_j passes over ``examples`` once.
    Memory: the source and the maps.

    Keys:
        layers: globs on module names; up to four blocks, evenly spaced, by default.
        attention: weigh channels by the rise of the loss without them.
        examples: of train, on which attention is found.
    """

    formula: ClassVar[str] = "weight·½ Σ_j mean ‖FM_j(θ) − FM_j(θ⁰)‖²/P_j"
    citation: ClassVar[str] = """@inproceedings{li2019delta,
  title     = {{DELTA}: Deep Learning Transfer using Feature Map with Attention for Convolutional
               Networks},
  author    = {Li, Xingjian and Xiong, Haoyi and Wang, Hanchao and Rao, Yuxuan and Liu, Liping and
               Huan, Jun},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year      = {2019}, note = {arXiv:1901.09229}
}"""
    needs: ClassVar[frozenset[str]] = frozenset({"maps"})
    per: ClassVar[Literal["item", "example"]] = "example"

    type: Literal["delta"] = "delta"
    weight: float = Field(0.5, ge=0, allow_inf_nan=False)
    chosen: tuple[str, ...] | None = Field(None, alias="layers", min_length=1)
    attention: bool = False
    examples: int = Field(32, ge=1)

    @property
    def studies(self) -> int:
        return self.examples if self.attention else 0

    def layers(self, model: nn.Module, groups: LayerGroups) -> list[str]:
        if self.chosen is None:
            found = block_modules(model, groups)
            if not found:
                raise RecipeError(f"penalty.layers: {NO_BLOCKS} {modules_like(model)}")
            return found
        names = [name for name, _ in model.named_modules() if name]
        found = [matching(names, glob) for glob in self.chosen]
        for glob, fits in zip(self.chosen, found, strict=True):
            if not fits:
                raise RecipeError(
                    f"penalty.layers: {glob!r} fits no module.{nearest(glob, names)} "
                    f"{modules_like(model)}"
                )
        return list(dict.fromkeys(name for fits in found for name in fits))

    def study(
        self, model: nn.Module, groups: LayerGroups, batches: Sequence[Mapping[str, Any]]
    ) -> dict[str, Tensor] | None:
        """Channel weights w_j (C_j,) by layer."""
        if not self.attention:
            return None
        fit_head_(model, groups.fresh, batches)
        return attention(model, self.layers(model, groups), batches)

    def loss(self, model: nn.Module, source: Any, inputs: Mapping[str, Any], seen: Any) -> Tensor:
        weights, total = source.studied or {}, 0.0
        for name, then in source.maps.items():
            apart = (seen.maps[name] - then).float().square()
            axis = channel_axis(apart)
            if name in weights:
                w = weights[name].to(apart.device) * apart.shape[axis]
                apart = apart * (w if axis == -1 else w.view(-1, 1, 1))
            total = total + 0.5 * per_example(name, apart.sum(axis), inputs).mean()
        return total


NO_BLOCKS = "this model has no blocks of its own; name the modules whose maps are held."


def modules_like(model: nn.Module) -> str:
    """A few names, to show how modules are called."""
    names = [name for name, _ in model.named_modules() if name]
    return f"Modules are named like: {', '.join(names[:: max(1, len(names) // 6)][:7])}."


def per_example(name: str, apart: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """(examples,) from (examples, places…): means over real positions, or over all places."""
    if apart.ndim == 1:
        return apart
    mask = positions(name, inputs)
    if mask is None or mask.shape != apart.shape:
        return apart.flatten(1).mean(1)
    return (apart * mask).sum(1) / mask.sum(1).clamp(min=1)


def positions(name: str, inputs: Mapping[str, Any]) -> Tensor | None:
    """(examples, positions): 1 where a layer of this name sees something real, if it is known."""
    if "decoder" not in name.split("."):
        return inputs.get("attention_mask")
    if (mask := inputs.get("decoder_attention_mask")) is not None:
        return mask
    labels = inputs.get("labels")
    return None if labels is None else (labels != -100).float()
