"""Fit: which tensor of a model around a backbone is which tensor of the backbone's source."""

import copy
import re
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
import transformers

from hf_sft.backbones.outer import timm_features
from hf_sft.errors import SourceError, listing
from hf_sft.model_source import LoadedModel, ModelSource

COUNTS = "num_batches_tracked"  # a frozen batch norm has none
WRAPPED = "_backbone."  # in transformers' wrapper around a timm model
COMPUTED = "relative_position_index"  # by the window's size; the newer Swin does not store it
NEW = "hidden_states_norms."  # of Transformers backbones: norms that no classifier has
MASKFORMER_SWIN = (  # MaskFormer has a Swin of its own, with the names of transformers 4
    (r"attention\.self\.(q|k|v)(uery|ey|alue)\.", r"attention.\1_proj."),
    (r"attention\.self\.relative_position_", "attention.relative_position_bias.relative_position_"),
    (r"attention\.output\.dense\.", "attention.o_proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
)


@dataclass(frozen=True)
class Fit:
    """Where the source is in the outer model.

    Attributes:
        place: path of the backbone.
        names: parameter or buffer of the outer model -> of the source's own model.
        new: tensors of the backbone that no source has.
        lost: tensors of the source's stages that the backbone leaves out.
        beyond: those behind its last stage: the source's head.
    """

    place: str
    names: dict[str, str]
    new: frozenset[str]
    lost: tuple[str, ...]
    beyond: tuple[str, ...]

    @classmethod
    def of(cls, model: Any, own: Any) -> "Fit":
        """Find the backbone in ``model``, built around it, by the names of its tensors.

        ``own``: the source as it was loaded.

        Raises:
            SourceError: it is not found there.
        """
        reference = _backbone_names(model.config.backbone_config)
        place, state, outer = _place(model, reference), own.state_dict(), model.state_dict()
        inner = pairs(reference, own)
        taken = set(inner.values())
        left = [n for n in state if n not in taken and not n.endswith(COUNTS)]
        stages: set[str] = set()
        if own.config.model_type == "timm_wrapper":
            every = timm_features(own.config.architecture).state_dict()
            stages = set(pairs(every, own).values())
        names = {f"{place}.{n}": theirs for n, theirs in inner.items()}
        return cls(
            place,
            {n: theirs for n, theirs in names.items() if n in outer},
            frozenset(n for n in outer if n.startswith(f"{place}.") and n not in names),
            tuple(n for n in left if n in stages),
            tuple(n for n in left if n not in stages),
        )

    def refuse_partial(self, source: ModelSource, inner: LoadedModel, model: Any) -> None:
        """Every tensor of the backbone must be the source's, and every one of its stages used.

        Raises:
            SourceError: some are not, and the recipe does not say so.
        """
        outer, own = model.state_dict(), inner.model.state_dict()
        known = (n for n in self.new if NEW not in n and not n.endswith(COMPUTED))
        problems = [f"{n} (the source has none)" for n in known]
        problems += [
            f"{n} ({tuple(own[theirs].shape)}, not {tuple(outer[n].shape)})"
            for n, theirs in self.names.items()
            if own[theirs].shape != outer[n].shape
        ]
        told = []
        if problems:
            told.append(
                f"model.backbone_of: {source.name!r} does not fit {len(problems)} tensors of the "
                f"backbone that {model.config.model_type} builds: {listing(sorted(problems), 5)}."
            )
        if lost := [n for n in self.lost if not _any(n, source.unused)]:
            told.append(
                f"model.backbone_of: {len(lost)} tensors of {source.name!r} lie behind the last "
                f"stage that is used: {listing(lost)}. Choose later out_indices, or allow it with "
                f"model.unused: ['{lost[0].rpartition('.')[0]}.*']."
            )
        for key, known in (("fresh", inner.fresh), ("unused", {*self.lost, *inner.left_over})):
            idle = [g for g in getattr(source, key) if not any(fnmatchcase(n, g) for n in known)]
            told += [f"model.{key}: {glob!r} matches nothing." for glob in idle]
        if told:
            raise SourceError("\n".join(told))

    @torch.no_grad()
    def put_(self, model: Any, own: Any) -> None:
        """Give the backbone in ``model`` the source's parameters and buffers."""
        outer, state = model.state_dict(), own.state_dict()
        for name, theirs in self.names.items():
            outer[name].copy_(state[theirs])

    def check_function(self, model: Any, own: Any, size: tuple[int, int]) -> None:
        """The backbone in ``model`` must compute what it computes alone, on an image of noise.

        Raises:
            SourceError: the outer model has changed it, as by other normalisation layers.
        """
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            alone = _alone(model.config.backbone_config, own)
            image = torch.randn(1, model.config.backbone_config.num_channels, *size)
            wanted, found = (
                _maps(net.eval()(image)) for net in (alone, model.get_submodule(self.place))
            )
        model.train()
        for a, b in zip(wanted, found, strict=True):
            if not torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(a.abs().max())):
                raise SourceError(
                    f"model.backbone_of: {model.config.model_type} changes this backbone so that "
                    "it no longer computes what the source does. Choose another model_type or "
                    "another backbone."
                )


def _any(name: str, globs: list[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


def _alone(config: Any, own: Any) -> Any:
    """The backbone by itself, normalising as the source does, with the source's weights."""
    config = copy.deepcopy(config)
    if config.model_type == "timm_backbone":
        config.freeze_batch_norm_2d = False
    net = transformers.AutoBackbone.from_config(config)
    state, known = net.state_dict(), own.state_dict()
    bare = {name.removeprefix(WRAPPED): name for name in state}
    for name, theirs in pairs(bare, own).items():
        state[bare[name]].copy_(known[theirs])
    return net


def _maps(output: Any) -> list[torch.Tensor]:
    return list(getattr(output, "feature_maps", output))


def _backbone_names(config: Any) -> list[str]:
    """Tensor names of the backbone that a configuration builds, inside transformers' wrapper."""
    with torch.device("meta"):
        net = transformers.AutoBackbone.from_config(config)
    return [name.removeprefix(WRAPPED) for name in net.state_dict()]


def _place(model: Any, reference: list[str]) -> str:
    state = model.state_dict().keys()
    wanted = [name for name in reference if not name.endswith(COUNTS)]
    for path, _ in model.named_modules():
        if path and all(f"{path}.{name}" in state for name in wanted):
            return path
    raise SourceError(
        f"model.backbone_of: {type(model).__name__} changes its backbone so that its tensors "
        f"cannot be told. Choose another model_type; tried are detr, rt_detr, upernet and others."
    )


def pairs(reference: Collection[str], own: Any) -> dict[str, str]:
    """Name in a backbone -> name in the whole model, ``own``, of the same tensor.

    timm flattens lists in some backbones (``stages_0`` for ``stages.0``), and a backbone may have
    one module around everything that the whole model does not have.
    """
    timm = own.config.model_type == "timm_wrapper"
    prefix = "timm_model." if timm else f"{own.base_model_prefix}."
    known = {_plain(name.removeprefix(prefix)): name for name in own.state_dict()}
    best: dict[str, str] = {}
    for depth in (0, 1):
        inner = {name: ".".join(name.split(".")[depth:]) for name in reference}
        found = {n: known[_plain(i)] for n, i in inner.items() if _plain(i) in known}
        best = max(best, found, key=len)
    return best


def _plain(name: str) -> str:
    for old, new in MASKFORMER_SWIN:
        name = re.sub(old, new, name)
    return name.replace("_", ".")
