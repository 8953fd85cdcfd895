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
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

from torch import nn
from torch.nn.modules.batchnorm import _NormBase  # every BatchNorm and InstanceNorm of torch

from hf_sft.errors import SourceError

Role = Literal["stem", "block", "head"]
Assignment = tuple[list[str], dict[str, int]]  # group names, tensor name -> group; the last is head

HEAD_NAMES = re.compile(r"head|classif|score|logit|qa_outputs|predict|^fc$|^output|^out$")
EMBEDDING_NAMES = re.compile(r"^(?!.*(class|box)).*(emb|posit)", re.IGNORECASE)
EMBEDDING_ENDS = re.compile(r"emb(ed|edder|eddings?)?$")  # a list inside one holds no blocks
BRANCH_NAMES = re.compile(
    r"^(enc|dec|up|down)"
)  # lists that follow each other, whatever their length


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
            core, prefix = _unwrapped(model)
            inner = {n.removeprefix(prefix) for n in fresh if n.startswith(prefix)}
            headless = any(hasattr(module, "base_model_prefix") for module in model.modules())
            found = _by_matcher(core) or _by_structure(core, inner, prefix, headless)
            names, place = found or _refuse(model)
            place = {prefix + name: group for name, group in place.items()}
        place = _with_neighbours(_tensors(model), place)
        return cls(_groups(model, names, place), *_norms(model))

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
        """The task head; empty where all its weights are tied or the model has none."""
        return self.groups[-1]

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


def is_norm(module: nn.Module) -> bool:
    """Whether the module normalises: torch's classes, or one named so that owns only vectors."""
    if isinstance(module, _NormBase | nn.LayerNorm | nn.GroupNorm | nn.RMSNorm):
        return True
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    inner = any(_has_parameters(child) for child in module.children())
    return "norm" in type(module).__name__.lower() and not inner and _vectors(own)


def _vectors(tensors: list) -> bool:
    return bool(tensors) and all(tensor.ndim <= 1 for tensor in tensors)


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _norms(model: nn.Module) -> tuple[frozenset[str], frozenset[str]]:
    modules = {name for name, module in model.named_modules() if is_norm(module)}
    owned = {n for n, _ in model.named_parameters() if n.rpartition(".")[0] in modules}
    return frozenset(owned), frozenset(modules)


def _tensors(model: nn.Module) -> list[str]:
    """Names of all parameters and buffers; a shared tensor once, under its first name."""
    return [n for n, _ in itertools.chain(model.named_parameters(), model.named_buffers())]


def _groups(model: nn.Module, names: list[str], place: dict[str, int]) -> tuple[LayerGroup, ...]:
    """Build the groups in order; an empty one is dropped unless it is the head."""
    parameters: list[list[str]] = [[] for _ in names]
    buffers: list[list[str]] = [[] for _ in names]
    for name, _ in model.named_parameters():
        parameters[place[name]].append(name)
    for name, _ in model.named_buffers():
        buffers[place[name]].append(name)
    roles: list[Role] = ["stem", *["block"] * (len(names) - 2), "head"]
    columns = zip(names, roles, map(tuple, parameters), map(tuple, buffers), strict=True)
    groups = [LayerGroup(*column) for column in columns]
    return tuple(g for g in groups if g.role == "head" or g.parameters or g.buffers)


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


def _is_timm(model: nn.Module) -> bool:
    return hasattr(model, "get_classifier") and hasattr(model, "pretrained_cfg")


def _base(model: nn.Module) -> nn.Module | None:
    """The part of a Transformers model that its task head stands on, where it is a part."""
    base = getattr(model, getattr(model, "base_model_prefix", "") or "-", None)
    return base if isinstance(base, nn.Module) and base is not model else None


def _unwrapped(model: nn.Module) -> tuple[nn.Module, str]:
    """The model inside modules that hold nothing else, and the prefix of its names."""
    prefix = ""
    while not _is_timm(model) and next(model.parameters(recurse=False), None) is None:
        base = _base(model)
        inner = [(n, child) for n, child in model.named_children() if _has_parameters(child)]
        if len(inner) != 1 or (base is not None and not _is_timm(base)):
            break
        prefix, model = f"{prefix}{inner[0][0]}.", inner[0][1]
    return model, prefix


def _owned(model: nn.Module, modules: Iterable[nn.Module]) -> set[str]:
    """Names of the tensors that these modules own; a tied one belongs where it is named first."""
    ids = {id(module) for module in modules}
    owners = dict(model.named_modules())
    return {name for name in _tensors(model) if id(owners[name.rpartition(".")[0]]) in ids}


def _classifier(model: nn.Module) -> set[str]:
    """A timm model's classifier, by its configuration and by its own method."""
    named = model.pretrained_cfg.get("classifier") or ()
    named = (named,) if isinstance(named, str) else named
    modules = dict(model.named_modules())
    found = [modules[name] for name in named if name in modules]
    own = model.get_classifier()
    found += own if isinstance(own, tuple | list) else [own]
    return _owned(model, [m for part in found if part is not None for m in part.modules()])


def _by_matcher(model: nn.Module) -> Assignment | None:
    """timm's own order; what it puts beside the classifier goes with the last block."""
    if not _is_timm(model) or not hasattr(model, "group_matcher"):
        return None
    from timm.models._manipulate import group_parameters

    head = _classifier(model)
    found = group_parameters(model, model.group_matcher(coarse=False))
    groups = [[name for name in found[key] if name not in head] for key in sorted(found)]
    norms = _norms(model)[0]
    ends_in_head = len(groups[-1]) < len(found[max(found)])
    if len(groups) > 2 and (ends_in_head or norms.issuperset(groups[-1])):
        groups[-2:] = [groups[-2] + groups[-1]]
    groups.append(sorted(head))
    names = ["stem", *(f"block {i}" for i in range(len(groups) - 2)), "head"]
    return names, {name: i for i, group in enumerate(groups) for name in group}


def _by_structure(
    root: nn.Module, fresh: set[str], prefix: str, headless: bool
) -> Assignment | None:
    """Blocks from the outermost lists of modules; the rest by where it is registered."""
    head = _head(root, fresh)
    rows = _blocks(root, head or set())
    if head is None and headless:
        head = set()  # a Transformers base model
    if head is None and len(rows) > 1:  # a plain module: its last part is the output
        last = [root.get_submodule(path) for path in rows.pop()]
        head = _owned(root, [module for part in last for module in part.modules()])
    if not rows or head is None:
        return None
    shelf = _Shelf(root, rows)
    place = {name: shelf.position(name) + 1 for name in _tensors(root) if name not in head}
    stem = [name for name, group in place.items() if group == 0]
    bare = all(name.rpartition(".")[0] in shelf.children for name in stem)
    first = [root.get_submodule(path) for path in rows[0]]
    if bare and len(rows) > headless and not any(map(_has_list, first)):
        place = {name: max(group - 1, 0) for name, group in place.items()}
        rows = rows[1:]  # no module stands before the first block: it is the stem
    names = ["stem", *(prefix + row[0] for row in rows), "head"]
    return names, {**place, **dict.fromkeys(head, len(names) - 1)}


def _head(root: nn.Module, fresh: set[str]) -> set[str] | None:
    """Names of the task head's tensors; None where the model does not tell."""
    if _is_timm(root):
        return _classifier(root)
    if base := _base(root):
        parts = [child for child in root.children() if child is not base]
        found = _owned(root, [root, *(module for part in parts for module in part.modules())])
        return found if any(map(_has_parameters, parts)) else found | fresh  # RT-DETR, Perceiver
    names = [name for name, _ in root.named_parameters()]
    last = list(itertools.takewhile(fresh.__contains__, reversed(names)))
    if last and len(last) < len(names):
        modules = dict(root.named_modules())
        return set(last) | _owned(root, [modules[n.rpartition(".")[0]] for n in last])
    children = [(n, child) for n, child in root.named_children() if _has_parameters(child)]
    parts = [c for _, c in itertools.takewhile(lambda x: HEAD_NAMES.search(x[0]), children[::-1])]
    if not parts and children and _base(children[-1][1]):
        prefix = children[-1][0] + "."
        return {prefix + name for name in _head(children[-1][1], set()) or ()}
    parts = parts or _after_blocks(root, children)
    scales = {n for n, p in root.named_parameters() if "." not in n and p.numel() == 1}
    found = scales | _owned(root, [module for part in parts for module in part.modules()])
    return found if parts or scales else None


def _after_blocks(root: nn.Module, children: list[tuple[str, nn.Module]]) -> list[nn.Module]:
    """The children registered after the last one with blocks, but for norms and poolers."""
    if isinstance(root, nn.Sequential):
        return [child for _, child in children if not is_norm(child)][-1:]
    tops = {path.partition(".")[0] for path in _lists(root, "", _live(root, set()), 0)}
    last = max((i for i, (name, _) in enumerate(children) if name in tops), default=len(children))
    rest = children[last + 1 :]
    return [child for name, child in rest if not is_norm(child) and "pool" not in name]


def _live(root: nn.Module, head: set[str]) -> set[str]:
    """Paths of the modules that hold a parameter outside the head."""
    paths = set()
    for name, _ in root.named_parameters():
        parts = name.split(".") if name not in head else []
        paths.update(".".join(parts[:depth]) for depth in range(len(parts)))
    return paths


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _live_children(module: nn.Module, path: str, live: set[str]) -> dict[str, nn.Module]:
    found = {_join(path, name): child for name, child in module.named_children()}
    return {name: child for name, child in found.items() if name in live}


def _lists(module: nn.Module, path: str, live: set[str], level: int) -> list[str]:
    """Paths of the outermost lists of blocks.

    Level 0 wants members made of modules, outside of embeddings; 1 also inside; 2 any members.
    """
    children = _live_children(module, path, live)
    if isinstance(module, nn.ModuleList | nn.Sequential):
        members = {name: child for name, child in children.items() if not is_norm(child)}
        nested = any(_live_children(child, name, live) for name, child in members.items())
        least = 1 if level < 2 and isinstance(module, nn.ModuleList) else 2
        if len(members) >= least and (nested or level == 2):
            return [path]
    if level == 0:
        children = {n: child for n, child in children.items() if not EMBEDDING_ENDS.search(n)}
    return [found for name, child in children.items() for found in _lists(child, name, live, level)]


def _has_list(module: nn.Module) -> bool:
    return bool(_lists(module, "", _live(module, set()), 0))


def _rows(root: nn.Module, path: str, live: set[str]) -> list[tuple[str, ...]]:
    """The blocks of a list: its members, each beside its fellows in parallel lists (XLM, PVT)."""
    parent, _, name = path.rpartition(".")
    here, paths = root.get_submodule(path), [path]
    if path and isinstance(here, nn.ModuleList) and not BRANCH_NAMES.match(name):
        paths = [
            _join(parent, n)
            for n, child in root.get_submodule(parent).named_children()
            if isinstance(child, nn.ModuleList) and len(child) == len(here)
            if not BRANCH_NAMES.match(n)
        ]
    indices = [
        index
        for index, child in here.named_children()
        if _join(path, index) in live and not (isinstance(here, nn.Sequential) and is_norm(child))
    ]
    return [tuple(p for q in paths if (p := _join(q, index)) in live) for index in indices]


def _blocks(root: nn.Module, head: set[str]) -> list[tuple[str, ...]]:
    """The blocks in order of execution, each as the paths of its modules."""
    live = _live(root, head)
    paths = next(filter(None, (_lists(root, "", live, level) for level in range(3))), [])
    if paths:
        return list(dict.fromkeys(row for path in paths for row in _rows(root, path, live)))
    found: list[str] = []
    children = _live_children(root, "", live)
    while children:  # no list at all: the submodules one after the other
        found = [name for name, child in children.items() if not is_norm(child)]
        only = root.get_submodule(found[0]) if len(found) == 1 else nn.Identity()
        children = _live_children(only, found[0], live) if found else {}
    return [(name,) for name in found]


class _Shelf:
    """Where each tensor of a model stands among its blocks."""

    def __init__(self, root: nn.Module, rows: list[tuple[str, ...]]) -> None:
        self.root = root
        self.block = {path: index for index, row in enumerate(rows) for path in row}
        self.children: dict[str, dict[str, list[int]]] = {}  # path -> child's name -> its blocks
        for path, index in self.block.items():
            parts = path.split(".")
            for depth, part in enumerate(parts):
                above = self.children.setdefault(".".join(parts[:depth]), {})
                above.setdefault(part, []).append(index)

    def position(self, name: str) -> int:
        """The block a tensor belongs to; -1 is the stem."""
        parts = name.split(".")
        paths = [".".join(parts[:depth]) for depth in range(len(parts))]
        for path in paths:
            if path in self.block:
                return self.block[path]
        depth = max(depth for depth, path in enumerate(paths) if path in self.children)
        return self._between(paths[depth], parts[depth])

    def _between(self, path: str, name: str) -> int:
        """Place a child that is no block by the blocks registered before and after it."""
        siblings = dict(self.root.get_submodule(path).named_children())
        order, blocks = list(siblings), self.children[path]
        at = order.index(name) if name in siblings else -1  # a parameter of its own comes first
        before = [i for sibling in order[: max(at, 0)] for i in blocks.get(sibling, [])]
        after = [i for sibling in order[at + 1 :] for i in blocks.get(sibling, [])]
        child = siblings.get(name, nn.Identity())
        previous = siblings[order[at - 1]] if at > 0 else nn.Identity()
        embeds = EMBEDDING_NAMES.search(name) or isinstance(child, nn.Embedding)
        embeds = embeds or (is_norm(child) and isinstance(previous, nn.Embedding))
        if "pooler" in name:
            return max(before + after)
        if before and after:
            return max(before) if is_norm(child) else min(after)
        if before and not embeds:
            return max(before)
        front = min(before + after)
        lookup = any(isinstance(module, nn.Embedding) for module in child.modules())
        return -1 if front == 0 or lookup else front
