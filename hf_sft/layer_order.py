"""The order of a model's tensors: timm's own, or read from how its modules are registered."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable

from torch import nn

from hf_sft.layer_blocks import (
    Shelf,
    block_lists,
    find_blocks,
    has_list,
    has_parameters,
    is_norm,
    live_paths,
    tensor_names,
)

HEAD_NAMES = re.compile(r"head|classif|score|logit|qa_outputs|predict|^fc$|^output|^out$")
INNER_HEADS = re.compile(r"(^|_|\.)(class|bbox|score)_(embed|head)$")  # detectors' own, in the base
Assignment = tuple[list[str], dict[str, int]]  # group names, tensor name -> group; the last is head


def _is_timm(model: nn.Module) -> bool:
    # The class: PEFT's wrappers answer for what is inside them.
    return hasattr(type(model), "get_classifier") and hasattr(model, "pretrained_cfg")


def _base(model: nn.Module) -> nn.Module | None:
    """The part of a Transformers model that its task head stands on, where it is a part."""
    base = getattr(model, getattr(model, "base_model_prefix", "") or "-", None)
    return base if isinstance(base, nn.Module) and base is not model else None


def unwrapped(model: nn.Module) -> tuple[nn.Module, str]:
    """The model inside modules that hold nothing else, and the prefix of its names."""
    prefix = ""
    while not _is_timm(model) and next(model.parameters(recurse=False), None) is None:
        base = _base(model)
        inner = [(n, child) for n, child in model.named_children() if has_parameters(child)]
        kinds = type(model).__mro__  # FSDP2 gives a module a class of its own, below its old one
        wraps = len(inner) == 1 and any(kind.__module__.startswith("peft.") for kind in kinds)
        if not wraps and (len(inner) != 1 or (base is not None and not _is_timm(base))):
            break
        prefix, model = f"{prefix}{inner[0][0]}.", inner[0][1]
    return model, prefix


def _owned(model: nn.Module, modules: Iterable[nn.Module]) -> set[str]:
    """Names of the tensors that these modules own; a tied one belongs where it is named first."""
    ids = {id(module) for module in modules}
    owners = dict(model.named_modules())
    return {name for name in tensor_names(model) if id(owners[name.rpartition(".")[0]]) in ids}


def _classifier(model: nn.Module) -> set[str]:
    """A timm model's classifier, by its configuration and by its own method."""
    named = model.pretrained_cfg.get("classifier") or ()
    named = (named,) if isinstance(named, str) else named
    modules = dict(model.named_modules())
    found = [modules[name] for name in named if name in modules]
    own = model.get_classifier()
    found += own if isinstance(own, tuple | list) else [own]
    return _owned(model, [m for part in found if part is not None for m in part.modules()])


def by_matcher(model: nn.Module) -> Assignment | None:
    """timm's own order; what it puts beside the classifier goes with the last block."""
    if not _is_timm(model) or not hasattr(model, "group_matcher"):
        return None
    from timm.models._manipulate import group_parameters

    head = _classifier(model)
    found = group_parameters(model, model.group_matcher(coarse=False))
    groups = [[name for name in found[key] if name not in head] for key in sorted(found)]
    owners = dict(model.named_modules())
    ends_in_head = len(groups[-1]) < len(found[max(found)])
    norms = all(is_norm(owners[name.rpartition(".")[0]]) for name in groups[-1])
    if len(groups) > 2 and (ends_in_head or norms):
        groups[-2:] = [groups[-2] + groups[-1]]
    groups.append(sorted(head))
    names = ["stem", *(f"block {i}" for i in range(len(groups) - 2)), "head"]
    return names, {name: i for i, group in enumerate(groups) for name in group}


def by_structure(
    root: nn.Module, fresh: set[str], prefix: str, headless: bool
) -> Assignment | None:
    """Blocks from the outermost lists of modules; the rest by where it is registered."""
    every = {name for name, _ in root.named_parameters()}
    head = _head(root, fresh & every if not fresh >= every else set())
    rows = find_blocks(root, head or set())
    if head is None and headless:
        head = set()  # a Transformers base model
    if head is None and len(rows) > 1:  # a plain module: its last part is the output
        last = [root.get_submodule(path) for path in rows.pop()]
        head = _owned(root, [module for part in last for module in part.modules()])
    if not rows or head is None:
        return None
    shelf = Shelf(root, rows)
    place = {name: shelf.position(name) + 1 for name in tensor_names(root) if name not in head}
    stem = [name for name, group in place.items() if group == 0]
    bare = all(name.rpartition(".")[0] in shelf.children for name in stem)
    first = [root.get_submodule(path) for path in rows[0]]
    if bare and len(rows) > headless and not any(map(has_list, first)):
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
        inner = [m for path, m in base.named_modules() if INNER_HEADS.search(path)]
        outer = [*parts, *inner]
        found = _owned(root, [root, *(module for part in outer for module in part.modules())])
        return found if any(map(has_parameters, outer)) else found | fresh  # Perceiver
    children = [(n, child) for n, child in root.named_children() if has_parameters(child)]
    named = list(itertools.takewhile(lambda x: HEAD_NAMES.search(x[0]), children[::-1]))
    if last := _fresh_end(root, fresh, named):
        return last
    parts = [child for _, child in named]
    if not parts and children and _base(children[-1][1]):
        prefix = children[-1][0] + "."
        return {prefix + name for name in _head(children[-1][1], set()) or ()}
    parts = parts or _after_blocks(root, children)
    scales = {n for n, p in root.named_parameters() if "." not in n and p.numel() == 1}
    found = scales | _owned(root, [module for part in parts for module in part.modules()])
    return found if parts or scales else None


def _fresh_end(root: nn.Module, fresh: set[str], named: list[tuple[str, nn.Module]]) -> set[str]:
    """What is fresh at the end, and the rest of the ``named`` heads that hold something fresh."""
    names = [name for name, _ in root.named_parameters()]
    last = list(itertools.takewhile(fresh.__contains__, reversed(names)))
    if not last:
        return set()
    modules = dict(root.named_modules())
    owners = [modules[n.rpartition(".")[0]] for n in last]
    tops = {name.partition(".")[0] for name in fresh}  # UperNet's decoder and its auxiliary
    owners += [m for name, child in named if name in tops for m in child.modules()]
    return set(last) | _owned(root, owners)


def _after_blocks(root: nn.Module, children: list[tuple[str, nn.Module]]) -> list[nn.Module]:
    """The children registered after the last one with blocks, but for norms and poolers."""
    if isinstance(root, nn.Sequential):
        return [child for _, child in children if not is_norm(child)][-1:]
    tops = {path.partition(".")[0] for path in block_lists(root, "", live_paths(root, set()), 0)}
    last = max((i for i, (name, _) in enumerate(children) if name in tops), default=len(children))
    rest = children[last + 1 :]
    return [child for name, child in rest if not is_norm(child) and "pool" not in name]
