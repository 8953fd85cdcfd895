"""A model's parameters and buffers as an ordered list: stem, block 0 ... block n-1, head.

timm models say their order themselves (`group_matcher`). For every other model the blocks are the
members of its outermost lists of modules, and everything else is placed by where it is registered.
"""

from __future__ import annotations

import difflib
import fnmatch
import itertools
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

from torch import nn

from hf_sft.errors import SourceError
from hf_sft.layer_blocks import is_norm, tensor_names
from hf_sft.layer_order import Assignment, by_matcher, by_structure, unwrapped

Role = Literal["stem", "block", "head"]


@dataclass(frozen=True)
class LayerGroup:
    """One step of the model from input to output, by the names of its parameters and buffers."""

    name: str
    role: Role
    parameters: tuple[str, ...]
    buffers: tuple[str, ...]


@dataclass(frozen=True)
class LayerGroups:
    """Every parameter and buffer of a model in exactly one group, input first, head last."""

    groups: tuple[LayerGroup, ...]
    norm_parameters: frozenset[str]
    norm_modules: frozenset[str]
    fresh: frozenset[str] = frozenset()  # what did not come from the source, wherever it stands
    embedding_parameters: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls,
        model: nn.Module,
        patterns: Sequence[str] | None = None,
        fresh: Collection[str] = (),
    ) -> LayerGroups:
        """Order the model's tensors.

        Args:
            model: any Transformers, timm or plain PyTorch model.
            patterns: shell globs on parameter names, stem first and head last; first match wins.
            fresh: names of the parameters that did not come from the source; they may be the head.
        """
        if patterns is not None:
            names, place = _by_patterns(model, patterns)
        else:
            core, prefix = unwrapped(model)
            inner = {n.removeprefix(prefix) for n in fresh if n.startswith(prefix)}
            headless = any(hasattr(module, "base_model_prefix") for module in model.modules())
            found = by_matcher(core) or by_structure(core, inner, prefix, headless)
            names, place = found or _refuse(model)
            place = {prefix + name: group for name, group in place.items()}
        roles: list[Role] = ["stem", *["block"] * (len(names) - 2), "head"]
        return cls.placed(model, list(zip(names, roles, strict=True)), place, fresh)

    @classmethod
    def placed(
        cls,
        model: nn.Module,
        groups: Sequence[tuple[str, Role]],
        place: Mapping[str, int],
        fresh: Collection[str] = (),
    ) -> LayerGroups:
        """Groups of these names and roles, in order; a tensor without a place joins its neighbour.

        Several may be of the head: all of what is new around a backbone.
        """
        place = _with_neighbours(tensor_names(model), dict(place))
        found = _groups(model, groups, place)
        return cls(found, *_norms(model), frozenset(fresh), _embeddings(model))

    @property
    def stem(self) -> LayerGroup | None:
        """What turns the input into the first block's input; None where nothing does."""
        return self.groups[0] if self.groups[0].role == "stem" else None

    @property
    def blocks(self) -> tuple[LayerGroup, ...]:
        """The repeated part, in order of execution."""
        return tuple(group for group in self.groups if group.role == "block")

    @property
    def head(self) -> LayerGroup:
        """The task head, all groups of it; empty where its weights are tied or there is none."""
        heads = [group for group in self.groups if group.role == "head"]
        if len(heads) == 1:
            return heads[0]
        parts = ([name for group in heads for name in group.parameters],
                 [name for group in heads for name in group.buffers])  # fmt: skip
        return LayerGroup(heads[-1].name, "head", *map(tuple, parts))

    @property
    def parameters(self) -> tuple[str, ...]:
        """All parameter names, from input to output."""
        return tuple(itertools.chain.from_iterable(group.parameters for group in self.groups))

    def group_of(self, name: str) -> LayerGroup:
        """The group that holds the parameter or buffer of this name."""
        for group in self.groups:
            if name in group.parameters or name in group.buffers:
                return group
        raise SourceError(
            f"no parameter or buffer is named {name!r}; {_near(name, self.parameters)}"
        )

    def __iter__(self) -> Iterator[LayerGroup]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)


def _norms(model: nn.Module) -> tuple[frozenset[str], frozenset[str]]:
    modules = {name for name, module in model.named_modules() if is_norm(module)}
    owned = {n for n, _ in model.named_parameters() if n.rpartition(".")[0] in modules}
    return frozenset(owned), frozenset(modules)


def _embeddings(model: nn.Module) -> frozenset[str]:
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    return frozenset(name for name, p in model.named_parameters() if id(p) in tables)


def _groups(
    model: nn.Module, named: Sequence[tuple[str, Role]], place: Mapping[str, int]
) -> tuple[LayerGroup, ...]:
    """Build the groups in order; an empty one is dropped unless it is the last."""
    parameters: list[list[str]] = [[] for _ in named]
    buffers: list[list[str]] = [[] for _ in named]
    for name, _ in model.named_parameters():
        parameters[place[name]].append(name)
    for name, _ in model.named_buffers():
        buffers[place[name]].append(name)
    columns = zip(named, map(tuple, parameters), map(tuple, buffers), strict=True)
    groups = [LayerGroup(name, role, own, kept) for (name, role), own, kept in columns]
    return tuple(g for g in groups if g is groups[-1] or g.parameters or g.buffers)


def _near(name: str, names: Collection[str]) -> str:
    nearest = difflib.get_close_matches(name, list(names), n=5, cutoff=0.0)
    return "the nearest are: " + ", ".join(nearest)


def _with_neighbours(names: list[str], place: dict[str, int]) -> dict[str, int]:
    """Give each name that has no place the place of the parameter registered nearest to it."""
    near: dict[str, int] = {}
    for name, group in place.items():
        parts = name.split(".")
        for depth in range(len(parts)):
            near.setdefault(".".join(parts[:depth]), group)
    for name in names:
        path = name
        while name not in place:
            path = path.rpartition(".")[0]
            if path in near:
                place[name] = near[path]
    return place


def _by_patterns(model: nn.Module, patterns: Sequence[str]) -> Assignment:
    """The order the recipe gives: each tensor goes to the first glob that matches it."""
    names = [name for name, _ in model.named_parameters()]
    if len(patterns) < 2:
        raise SourceError(
            "model.layer_groups needs two globs or more: the stem first, the head last"
        )
    first = {
        n: [i for i, glob in enumerate(patterns) if fnmatch.fnmatchcase(n, glob)] for n in names
    }
    for index, glob in enumerate(patterns):
        if not any(index in found for found in first.values()):
            near = _near(glob, names)
            raise SourceError(f"model.layer_groups: {glob!r} matches no parameter; {near}")
        if all(found[:1] != [index] for found in first.values()):
            text = "every parameter it matches is already taken by a glob before it"
            raise SourceError(f"model.layer_groups: {glob!r}: {text}")
    for name, found in first.items():
        if not found:
            near = _near(name, patterns)
            raise SourceError(f"model.layer_groups: no glob matches parameter {name!r}; {near}")
    place = {name: found[0] for name, found in first.items()}
    return list(patterns), place


def _refuse(model: nn.Module) -> NoReturn:
    """Say what to write for a model whose order cannot be read from its modules."""
    names = [name for name, _ in model.named_parameters()]
    globs = dict.fromkeys(re.sub(r"\..*", ".*", name) for name in names)
    raise SourceError(
        f"cannot order the layers of {type(model).__name__}: it has neither a list of blocks nor "
        f"two submodules with parameters. Name its groups in the recipe, input first and head "
        f"last, as globs on parameter names: model.layer_groups: {json.dumps(list(globs))}"
    )
