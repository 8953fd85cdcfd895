"""SourceFunction: f_θ⁰, the source as a function of the inputs, remembered where they recur."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_sft.embeddings import Taps
from hf_sft.errors import UserError
from hf_sft.penalties.answers import LABELS, logits_of, without_labels

MOST_BYTES = 2**28  # of remembered outputs


@dataclass(frozen=True)
class SourceOutputs:
    """f_θ⁰ on one batch: what was asked for, None for the rest; and the function itself.

    ``studied`` is what the prior at hand has found out before the first step.
    """

    logits: Tensor | None = None
    embeddings: Tensor | None = None
    maps: Mapping[str, Tensor] | None = None
    function: "SourceFunction | None" = None
    studied: Any = None


class SourceFunction:
    """The source model in eval mode, without gradients.

    Args:
        model: the source; it is frozen here and never trained.
        needs: which of ``logits``, ``embeddings``, ``maps`` to give.
        layers: the modules whose outputs are the maps.
        head_names: parameters of the model that trains which are no part of the source's backbone.
        own_head: the source's head is another one than the model's.

    Attributes:
        precision: the context of its forward passes, autocast where the training has it.
    """

    def __init__(
        self,
        model: nn.Module,
        needs: frozenset[str],
        layers: Sequence[str] = (),
        head_names: frozenset[str] = frozenset(),
        own_head: bool = False,
    ):
        self.model = model.eval().requires_grad_(False)
        self.needs, self.layers = needs, list(layers)
        self.head_names, self.own_head = head_names, own_head
        self.precision: Callable[[], AbstractContextManager] = nullcontext
        self.taps = Taps(model, "embeddings" in needs, self.layers if "maps" in needs else ())
        self._known: dict[bytes, dict[str, Tensor]] = {}

    @property
    def device(self) -> torch.device:
        """Where the source is."""
        return next(self.model.parameters()).device

    def __call__(self, inputs: Mapping[str, Any]) -> SourceOutputs:
        """f_θ⁰ on a batch, looked up where every example of it is known."""
        if self._known:
            found = [self._known.get(key) for key in keys(inputs)]
            if all(example is not None for example in found):
                rows = {n: torch.stack([example[n] for example in found]) for n in found[0]}
                return SourceOutputs(**{n: r.to(self.device) for n, r in rows.items()})
        return self._computed(inputs)

    @torch.no_grad()
    def _computed(self, inputs: Mapping[str, Any]) -> SourceOutputs:
        with self.precision():
            outputs = self.model(**without_labels(inputs, self.model))
        maps = self.taps.maps if "maps" in self.needs else None
        if maps is not None and (silent := [n for n in self.layers if n not in maps]):
            raise UserError(
                f"penalty.layers: the forward pass takes no tensor out of {', '.join(silent)}: "
                "name modules that give their layer's output."
            )
        found = SourceOutputs(
            logits=logits_of(outputs, "the source") if "logits" in self.needs else None,
            embeddings=self.taps.embeddings(inputs) if "embeddings" in self.needs else None,
            maps=maps,
        )
        self.taps.close()
        return found

    def shared(self, model: nn.Module) -> dict[str, Tensor]:
        """What the backbone of ``model`` puts in the place of the source's own tensors."""
        ours = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        theirs = dict(model.named_parameters()) | dict(model.named_buffers())
        found = {n: t for n, t in theirs.items() if n in ours and ours[n].shape == t.shape}
        return {name: t for name, t in found.items() if name not in self.head_names}

    def check_backbone(self, model: nn.Module) -> None:
        """The source's head must be able to stand on the backbone of ``model``.

        Raises:
            UserError: a parameter below the head is missing in the source, or of another shape.
        """
        names = {name for name, _ in self.model.named_parameters()}
        shared = self.shared(model)
        apart = [n for n, _ in model.named_parameters() if n in names and n not in shared]
        apart = [name for name in apart if name not in self.head_names]
        if apart or not names & shared.keys():
            raise UserError(
                f"penalty: the source ({type(self.model).__name__}) has another backbone than the "
                f"model that trains ({type(model).__name__}): {', '.join(apart[:3]) or 'no name'} "
                "fits. Give source= the model that this one was loaded from."
            )

    def through_head(self, model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
        """Logits of the source's own head on ``model``'s backbone, in eval mode, with gradients.

        One more forward and backward pass of the backbone.
        """
        given = without_labels(inputs, self.model)
        with self.taps.paused(), self.precision():
            called = torch.func.functional_call(self.model, self.shared(model), (), given)
        return logits_of(called, "the source")

    def remember(self, batches: Iterable[Mapping[str, Any]], examples: int) -> int:
        """Compute and keep f_θ⁰ on these batches of ``examples`` in all; the number kept.

        To be called with the same batches in the same order by every run of a recipe, so that one
        that resumes finds the same numbers. Nothing is kept of maps, of outputs per position, and
        of data whose outputs would take more than MOST_BYTES.
        """
        self._known, known = {}, {}
        for batch in batches:
            found = self._computed(batch)
            parts = {"logits": found.logits, "embeddings": found.embeddings}
            parts = {name: value.cpu() for name, value in parts.items() if value is not None}
            row = sum(value[0].numel() * value.element_size() for value in parts.values())
            flat = all(value.ndim == 2 for value in parts.values())
            if not parts or not flat or row * examples > MOST_BYTES:
                return 0
            for i, key in enumerate(keys(batch)):
                known[key] = {name: value[i].clone() for name, value in parts.items()}
        self._known = known
        return len(known)


def keys(inputs: Mapping[str, Any]) -> list[bytes]:
    """One digest per example of what the model sees of it, padding behind it left out.

    Padding before it counts: it moves the positions that some models number.
    """
    tensors = {k: v.cpu() for k, v in inputs.items() if k not in LABELS and torch.is_tensor(v)}
    mask = tensors.get("attention_mask")
    found = []
    for i in range(len(next(iter(tensors.values())))):
        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(tensors.items()):
            row = tensor[i]
            if mask is not None and tensor.shape[:2] == mask.shape:
                row = row[: int(mask[i].nonzero().max()) + 1 if mask[i].any() else 0]
            digest.update(f"{name} {row.dtype} {tuple(row.shape)} ".encode())
            digest.update(row.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        found.append(digest.digest())
    return found
