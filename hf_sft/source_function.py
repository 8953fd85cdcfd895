"""SourceFunction: f_θ⁰, the source as a function of the inputs, remembered where they recur."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_sft.embeddings import Taps
from hf_sft.errors import UserError

MOST_BYTES = 2**28  # of remembered outputs
LABELS = ("labels", "label", "label_ids", "start_positions", "end_positions")


@dataclass
class SourceOutputs:
    """f_θ⁰ on one batch: what was asked for, None for the rest; and the function itself."""

    logits: Tensor | None = None
    embeddings: Tensor | None = None
    maps: Mapping[str, Tensor] | None = None
    function: "SourceFunction | None" = None


class SourceFunction:
    """The source model in eval mode, without gradients.

    Args:
        model: the source; it is frozen here and never trained.
        needs: which of ``logits``, ``embeddings``, ``maps`` to give.
        layers: the modules whose outputs are the maps.
        head: the source has a head of its own (not a new, random one).
    """

    def __init__(self, model: nn.Module, needs: frozenset[str], layers=(), head: bool = True):
        self.model = model.eval().requires_grad_(False)
        self.needs = needs
        self.head_names: frozenset[str] = frozenset()
        self.own_head = False  # the source's head is another one than the model's
        if "logits" in needs and not head:
            raise UserError(
                "penalty: lwf compares the answers of the source's own head, and this source came "
                "without one for this task. Take {type: similarity}, or a source with a head."
            )
        self.taps = Taps(model, "embeddings" in needs, layers if "maps" in needs else ())
        self._known: dict[bytes, dict[str, Tensor]] = {}

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, Any]) -> SourceOutputs:
        """f_θ⁰ on a batch, looked up where every example of it is known."""
        if self._known:
            found = [self._known.get(key) for key in keys(inputs)]
            if all(example is not None for example in found):
                device = next(self.model.parameters()).device
                return SourceOutputs(**{
                    name: torch.stack([example[name] for example in found]).to(device)
                    for name in found[0]
                })  # fmt: skip
        outputs = self.model(**without_labels(inputs))
        return SourceOutputs(
            logits=outputs.logits if "logits" in self.needs else None,
            embeddings=self.taps.embeddings(inputs) if "embeddings" in self.needs else None,
            maps=dict(self.taps.maps) if "maps" in self.needs else None,
        )

    def through_head(self, model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
        """Logits of the source's own head on ``model``'s backbone, in eval mode, with gradients.

        One more forward and backward pass of the backbone.
        """
        ours = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        theirs = dict(model.named_parameters()) | dict(model.named_buffers())
        shared = {n: t for n, t in theirs.items() if n in ours and ours[n].shape == t.shape}
        shared = {name: t for name, t in shared.items() if name not in self.head_names}
        called = torch.func.functional_call(self.model, shared, (), without_labels(inputs))
        return called.logits

    def remember(self, batches: Iterable[Mapping[str, Any]]) -> int:
        """Compute and keep f_θ⁰ on these batches; the number of examples kept.

        To be called with the same batches in the same order by every run of a recipe, so that one
        that resumes finds the same numbers. Maps and outputs per position are not kept.
        """
        if "maps" in self.needs:
            return 0
        size = 0
        for batch in batches:
            found = self(batch)
            parts = {"logits": found.logits, "embeddings": found.embeddings}
            parts = {name: value.cpu() for name, value in parts.items() if value is not None}
            size += sum(value.numel() * value.element_size() for value in parts.values())
            if size > MOST_BYTES or any(value.ndim != 2 for value in parts.values()):
                self._known = {}
                return 0
            for i, key in enumerate(keys(batch)):
                self._known[key] = {name: value[i] for name, value in parts.items()}
        return len(self._known)


def without_labels(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of the forward pass proper."""
    return {key: value for key, value in inputs.items() if key not in LABELS}


def keys(inputs: Mapping[str, Any]) -> list[bytes]:
    """One digest per example of what the model sees of it, padding left out."""
    tensors = {k: v.cpu() for k, v in without_labels(inputs).items() if torch.is_tensor(v)}
    mask = tensors.get("attention_mask")
    found = []
    for i in range(len(next(iter(tensors.values())))):
        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(tensors.items()):
            row = tensor[i]
            if mask is not None and tensor.shape[:2] == mask.shape:
                row = row[mask[i].bool()]
            digest.update(name.encode() + row.contiguous().numpy().tobytes())
        found.append(digest.digest())
    return found
