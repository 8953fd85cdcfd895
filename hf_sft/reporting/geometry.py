"""Geometry: how alike two models see the same inputs, layer by layer: linear CKA and R²."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_sft.embeddings import Taps, pool
from hf_sft.layer_blocks import is_norm
from hf_sft.layer_groups import LayerGroup, LayerGroups

CONSTANT = 1e-6  # a feature that varies by less of its own size does not vary


def cka(x: Tensor, y: Tensor) -> float | None:
    """Linear CKA = ‖YᵀX‖_F² / (‖XᵀX‖_F·‖YᵀY‖_F) of X (n, p) and Y (n, q), columns centred.

    1 for the same features up to a rotation and one common scale, 0 for unrelated ones. Kornblith
    et al. 2019, "Similarity of neural network representations revisited" (ICML, arXiv 1905.00414).
    By the Gram matrices K = XXᵀ, L = YYᵀ it is ⟨K, L⟩/(‖K‖·‖L‖): n² numbers, whatever p and q.

    Returns:
        None where no feature of X or of Y varies.
    """
    grams = [centred @ centred.T for centred in (_centred(x)[0], _centred(y)[0])]
    sizes = [float(torch.linalg.matrix_norm(gram)) for gram in grams]
    if not min(sizes):
        return None
    return min(1.0, float((grams[0] * grams[1]).sum()) / (sizes[0] * sizes[1]))


def r2(x: Tensor, y: Tensor) -> Tensor:
    """R² of every feature: of the line that predicts y_j from x_j over the examples (n, p).

    1 for a feature that did not change but for offset and scale. Li, Grandvalet, Davoine 2018
    (arXiv 1802.01483), figure 3, compares units before and after fine-tuning so.

    Returns:
        (features,): one number for each feature that varies in x; 0 where y_j is constant.
    """
    (x, varies), (y, answers) = _centred(x), _centred(y)
    x, y, answers = x[:, varies], y[:, varies], answers[varies]
    both = (x * y).sum(0).square()
    size = x.square().sum(0) * y.square().sum(0)
    return torch.where(answers, both / size.where(answers, torch.ones_like(size)), 0.0).clamp(max=1)


def _centred(x: Tensor) -> tuple[Tensor, Tensor]:
    """(x − column means in float64, constant columns as zeros; which columns vary)."""
    x = x.double()
    centred = x - x.mean(0)
    varies = centred.norm(dim=0) > CONSTANT * x.norm(dim=0)
    return centred * varies, varies


def places(model: nn.Module, groups: LayerGroups) -> dict[str, str]:
    """Layer group below the head -> the module whose output is the group's.

    Of the outermost modules that hold parameters of this group alone, the last that is a norm or
    has half of them: what is small beside a block (query positions, a pooler) is not its output.
    A group without any (weights shared with another) is left out.
    """
    found = {group.name: _last_module(model, group) for group in groups if group.role != "head"}
    return {name: place for name, place in found.items() if place}


def _last_module(model: nn.Module, group: LayerGroup) -> str:
    own, last, chosen = set(group.parameters), "", ""
    whole = sum(p.numel() for name, p in model.named_parameters() if name in own)
    for name, module in model.named_modules():
        sizes = {f"{name}.{key}": p.numel() for key, p in module.named_parameters()}
        runs = name and not isinstance(module, nn.ModuleList | nn.ModuleDict)
        inside = sizes and sizes.keys() <= own
        if runs and inside and not (last and name.startswith(last + ".")):
            last = name
            chosen = name if is_norm(module) or 2 * sum(sizes.values()) >= whole else chosen
    return chosen or last


class Views:
    """What each layer group makes of the examples that pass: (examples, dim), averaged over place.

    Only the averages of a batch are kept, so that the maps themselves never add up.

    Args:
        layers: layer group -> module, as `places` gives.
        embeddings: keep the pooled embeddings below the head as well.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, str], embeddings: bool = False):
        self.taps = Taps(model, embeddings, list(layers.values()))
        self.layers, self._parts = dict(layers), {name: [] for name in layers}

    def take(self, inputs: Mapping[str, Any]) -> None:
        """Keep what the batch that has just passed has left."""
        for name, place in self.layers.items():
            shown = self.taps.maps.get(place)
            if torch.is_tensor(shown) and shown.ndim in (2, 3, 4):
                pooled = pool(shown, inputs.get("attention_mask"))
                self._parts[name].append(pooled.detach().float().cpu())

    def features(self) -> dict[str, Tensor]:
        """Layer group -> (examples, dim)."""
        return {name: torch.cat(parts) for name, parts in self._parts.items() if parts}


def compare(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], groups: Iterable[LayerGroup]
) -> list[dict[str, Any]]:
    """Per layer group: CKA, the mean of R² and its quartiles, between source and tuned model.

    A group without features, or whose features do not vary, is left out.
    """
    found = []
    for name in (group.name for group in groups if group.name in before and group.name in after):
        alike, units = cka(before[name], after[name]), r2(before[name], after[name])
        if alike is not None and len(units):
            quartiles = units.quantile(units.new_tensor([0.25, 0.5, 0.75])).tolist()
            found.append(
                {
                    "name": name,
                    "features": len(units),
                    "cka": alike,
                    "r2": float(units.mean()),
                    "r2_quartiles": quartiles,
                }
            )
    return found
