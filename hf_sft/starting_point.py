"""StartingPoint: θ⁰, the parameters that came from the source, remembered where they will move."""

import hashlib
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_sft import shards
from hf_sft.layer_groups import LayerGroups
from hf_sft.mapped_files import MappedFiles

log = logging.getLogger(__name__)


class StartingPoint:
    """θ⁰ by parameter name: copies of what trains, digests of everything that came from the source.

    Built from the model as it was loaded, before any step; never again from current weights.

    Attributes:
        copies: name -> θ⁰ of a parameter that trains and came from the source; where it still lies
            in the source's file, in place there (`MappedFiles`).
        fresh: names of parameters that did not come from the source (a new head).
        digests: name -> hash of every source parameter and buffer as it was loaded.
        groups: the model's layer groups; rules of a penalty speak of them.
        rows: name -> how many of its first rows came from the source (embeddings that grew).
        probed: name -> value of a fresh parameter after probing, which then is its anchor.
        fisher: name -> diagonal Fisher information at θ⁰, where a penalty has estimated it.
        adapters: the model's LoRA adapters, where a penalty has looked for them.
        resting: name -> θ⁰ of a parameter that never trains, where training begins elsewhere.
    """

    def __init__(
        self,
        copies: Mapping[str, Tensor],
        fresh: frozenset[str],
        digests: dict[str, str],
        groups: LayerGroups | None = None,
        rows: Mapping[str, int] | None = None,
    ):
        self.copies, self.fresh, self.digests = dict(copies), fresh, digests
        self.groups, self.rows = groups, dict(rows or {})
        self.probed: dict[str, Tensor] = {}
        self.fisher: dict[str, Tensor] = {}
        self.adapters: tuple[Any, ...] = ()
        self.resting: dict[str, Tensor] = {}
        self.elsewhere = ""
        self.files: MappedFiles | None = None
        self._loaded = digests  # also once `begin_at_` has set others
        self._coefficients: dict[int, tuple[Any, dict[str, float]]] = {}

    @classmethod
    def of(
        cls,
        model: nn.Module,
        fresh: Collection[str] | None = None,
        trains: Collection[str] | None = None,
        groups: LayerGroups | None = None,
        rows: Mapping[str, int] | None = None,
    ) -> "StartingPoint":
        """Remember where ``model`` stands now.

        Args:
            model: as loaded from its source.
            fresh: parameters not from the source; None asks the marks that transformers leaves.
            trains: parameters that will ever train and so need a copy; None means all that
                require a gradient.
            groups: the model's layer groups, for penalties with rules.
            rows: parameter -> number of its first rows that came from the source, where it grew.
        """
        parameters = dict(model.named_parameters())
        fresh = frozenset(unmarked(model) if fresh is None else fresh) & set(parameters)
        rows = {name: count for name, count in (rows or {}).items() if name in parameters}
        fresh -= set(rows)
        if trains is None:
            trains = {name for name, p in parameters.items() if p.requires_grad}
        files = MappedFiles()
        copies = {
            name: files.copy(name, parameter)
            for name, parameter in parameters.items()
            if name in trains and name not in fresh
        }
        tensors = {n: t for n, t in [*parameters.items(), *model.named_buffers()] if n not in fresh}
        old = {n: t[: rows[n]] if n in rows else t for n, t in tensors.items()}
        found = cls(copies, fresh, {n: digest(t) for n, t in old.items()}, groups, rows)
        found.files = files
        return found

    def begin_at_(self, model: nn.Module, resting: Mapping[str, Tensor]) -> None:
        """Training begins at ``model`` as it is now, not at θ⁰: frozen means equal to that.

        The fingerprint then is that of both. ``resting``: θ⁰ of what has no copy.
        """
        there = StartingPoint.of(model, self.fresh, (), self.groups, self.rows)
        self.elsewhere = "" if there.digests == self.digests else f"\n{self.fingerprint}"
        self.digests, self.resting = there.digests, dict(resting)

    @property
    def fingerprint(self) -> str:
        """Identity of the source's content, fresh parameters left out (hex SHA-256)."""
        lines = "\n".join(f"{name} {value}" for name, value in sorted(self.digests.items()))
        return hashlib.sha256((lines + self.elsewhere).encode()).hexdigest()

    def anchor(self, name: str, like: Tensor) -> Tensor | None:
        """Where a parameter is pulled to, on its device: θ⁰, its probed value, or None for 0.

        Of a parameter that FSDP2 has divided, the rows that lie here; the others are let go of.
        """
        known = self.probed if name in self.fresh else self.copies
        if name not in known:
            return None
        if self.files is not None and known[name].device.type == "cpu":
            self.files.refuse_written(self._as_loaded)
        for held in (known, self.fisher):
            if name in held:
                held[name] = shards.here(held[name], like)
        return known[name].to(like.dtype)

    def _as_loaded(self, name: str, tensor: Tensor) -> bool:
        return digest(self._old(name, {name: tensor})) == self._loaded[name]

    def shard_(self, model: nn.Module) -> None:
        """Keep of θ⁰ what FSDP2 has left of ``model`` on this process; no communication."""
        for name, parameter in shards.parameters(model).items():
            self.anchor(name, parameter)

    def is_new(self, name: str) -> bool:
        """Whether a parameter has no anchor but zero: fresh, and not probed yet."""
        return name in self.fresh and name not in self.probed

    def probe_(self, model: nn.Module) -> None:
        """Take the fresh parameters as they stand now for their starting point (LP-FT)."""
        theta = dict(model.named_parameters())
        self.set_probed({name: theta[name].detach().clone() for name in self.fresh})

    def set_probed(self, values: Mapping[str, Tensor]) -> None:
        """The fresh parameters' anchors, as found after probing."""
        self.probed = dict(values)
        self._coefficients.clear()

    def coefficients(self, prior: Any) -> dict[str, float]:
        """c_n of every parameter under a weight prior; found once, then remembered."""
        if id(prior) not in self._coefficients:  # the prior is kept, so that its id stays its own
            self._coefficients[id(prior)] = prior, prior.coefficients(self)
        return self._coefficients[id(prior)][1]

    def changed(self, model: nn.Module, names: Iterable[str]) -> list[str]:
        """Those of ``names`` whose tensor in ``model`` is not bit-equal to the source's.

        Under FSDP2 each is gathered, one after the other: a collective on all processes.
        """
        now = {**shards.parameters(model), **dict(model.named_buffers())}
        return [
            n for n in names if n in self.digests and digest(self._old(n, now)) != self.digests[n]
        ]

    def _old(self, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
        tensor = shards.whole(tensors[name])
        return tensor[: self.rows[name]] if name in self.rows else tensor

    @torch.no_grad()
    def distance(
        self,
        model: nn.Module,
        groups: LayerGroups | None = None,
        added: Mapping[str, Callable[[], Tensor]] | None = None,
    ) -> list[dict]:
        """Per layer group, over what came from the source: how far θ is from θ⁰, and where to.

        ``drift`` ‖d‖₂ with d = θ − θ⁰, ``relative_drift`` ‖d‖₂/‖θ⁰‖₂, ``cosine`` of θ and θ⁰,
        ``max_drift`` ‖d‖_∞. A group that never trains has distance 0 and cosine 1; one with
        nothing from the source has None. ``added``: a frozen parameter -> what adapters add to it.
        Under FSDP2 a collective, as `changed` is.
        """
        groups = LayerGroups.of(model, fresh=self.fresh) if groups is None else groups
        theta, added = shards.parameters(model), added or {}
        return [
            {"name": group.name, **_distance(self._pair(name, theta, added) for name in known)}
            for group in groups
            for known in [[name for name in group.parameters if name not in self.fresh]]
        ]

    def _pair(
        self, name: str, theta: Mapping[str, Tensor], added: Mapping[str, Callable[[], Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """(θ_n, θ⁰_n) of what came from the source; one tensor twice where it never trains."""
        now = self._old(name, theta)
        if name in added:
            return now + shards.whole(added[name]()), now
        if name in self.resting:
            return now, self.resting[name].to(now.device)
        if name not in self.copies:
            return now, now
        then = shards.gathered(self.anchor(name, theta[name]), theta[name])
        return now, then[: len(now)] if now.ndim else then


def _distance(pairs: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float | None]:
    moved, most, sizes, seen = 0.0, 0.0, [0.0, 0.0], False
    for now, then in pairs:
        seen = True
        sizes = [total + _norm([t]) ** 2 for total, t in zip(sizes, (now, then), strict=True)]
        if now is not then and now.numel():
            d = now - then
            moved, most = moved + _norm([d]) ** 2, max(most, float(d.abs().max()))
    if not seen:
        return dict.fromkeys(("drift", "relative_drift", "cosine", "max_drift"))
    now_size, size = (total**0.5 for total in sizes)
    # 1 − cos = (‖d‖² − (‖θ‖ − ‖θ⁰‖)²)/(2‖θ‖‖θ⁰‖): exact also where it is tiny.
    away = moved - (now_size - size) ** 2
    both = 2 * now_size * size
    return {
        "drift": moved**0.5,
        "relative_drift": moved**0.5 / size if size else 0.0,
        "cosine": max(-1.0, min(1.0, 1 - away / both)) if moved and both else 1.0,
        "max_drift": most,
    }


def unmarked(model: nn.Module) -> set[str]:
    """Parameters that ``from_pretrained`` left without a value from the checkpoint.

    transformers 5.23 sets the private ``_is_hf_initialized`` on loaded parameters only; a model
    without any mark (built from a config, deep-copied, not transformers) is its own source whole.
    """
    marks = {n: getattr(p, "_is_hf_initialized", False) for n, p in model.named_parameters()}
    if any(marks.values()):
        return {name for name, mark in marks.items() if not mark}
    log.warning(
        "No parameter is marked as loaded from a checkpoint: the whole model, a new head included, "
        "counts as the starting point. Pass fresh=[names] when some parameters are new."
    )
    return set()


def digest(tensor: Tensor) -> str:
    """Hash of a tensor's type, shape and bytes."""
    tensor = tensor.detach().cpu().contiguous()
    head = f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
    return hashlib.sha256(head + tensor.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def _norm(tensors: Iterable[Tensor]) -> float:
    """‖·‖₂ over all entries of all tensors, summed in float64 on the host."""
    return sum(float(torch.linalg.vector_norm(t.float())) ** 2 for t in tensors) ** 0.5
