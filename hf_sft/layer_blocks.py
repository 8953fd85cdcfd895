"""The blocks of a model: the members of its outermost lists, and what stands beside them."""

from __future__ import annotations

import itertools
import re

from torch import nn
from torch.nn.modules.batchnorm import _NormBase  # every BatchNorm and InstanceNorm of torch

EMBEDDING_NAMES = re.compile(r"^(?!.*(class|box)).*(emb|posit)", re.IGNORECASE)
EMBEDDING_ENDS = re.compile(r"emb(ed|edder|eddings?)?$")  # a list inside one holds no blocks
BRANCH_NAMES = re.compile(r"^(enc|dec|up|down)")  # such lists follow each other, never parallel


def is_norm(module: nn.Module) -> bool:
    """Whether the module normalises: torch's classes, or one named so that owns only vectors."""
    if isinstance(module, _NormBase | nn.LayerNorm | nn.GroupNorm | nn.RMSNorm):
        return True
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    inner = any(has_parameters(child) for child in module.children())
    return "norm" in type(module).__name__.lower() and not inner and _vectors(own)


def _vectors(tensors: list) -> bool:
    return bool(tensors) and all(tensor.ndim <= 1 for tensor in tensors)


def has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def tensor_names(model: nn.Module) -> list[str]:
    """Names of all parameters and buffers; a shared tensor once, under its first name."""
    return [n for n, _ in itertools.chain(model.named_parameters(), model.named_buffers())]


def live_paths(root: nn.Module, head: set[str]) -> set[str]:
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


def block_lists(module: nn.Module, path: str, live: set[str], level: int) -> list[str]:
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
    below = (block_lists(child, name, live, level) for name, child in children.items())
    return [path for paths in below for path in paths]


def has_list(module: nn.Module) -> bool:
    return bool(block_lists(module, "", live_paths(module, set()), 0))


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


def find_blocks(root: nn.Module, head: set[str]) -> list[tuple[str, ...]]:
    """The blocks in order of execution, each as the paths of its modules."""
    live = live_paths(root, head)
    paths = next(filter(None, (block_lists(root, "", live, level) for level in range(3))), [])
    if paths:
        return list(dict.fromkeys(row for path in paths for row in _rows(root, path, live)))
    found: list[str] = []
    children = _live_children(root, "", live)
    while children:  # no list at all: the submodules one after the other
        found = [name for name, child in children.items() if not is_norm(child)]
        only = root.get_submodule(found[0]) if len(found) == 1 else nn.Identity()
        children = _live_children(only, found[0], live) if found else {}
    return [(name,) for name in found]


class Shelf:
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
