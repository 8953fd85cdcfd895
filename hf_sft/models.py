"""load_model: a pretrained source, whole, with a new head for the task; a partial load is refused.

Sources: a Hub id (Transformers or ``timm/...``), a local folder, ``package:module/path`` inside an
installed package, or a weight file with the timm ``architecture`` it belongs to.
"""

import os
from collections.abc import Collection
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import transformers
from transformers.utils.hub import cached_file, extract_commit_hash

from hf_sft.backbones import AsItIs, surround
from hf_sft.drawn_anew import drawn_anew
from hf_sft.errors import SourceError, UserError, listing, nearest
from hf_sft.heads import renew_head_
from hf_sft.layer_groups import LayerGroups
from hf_sft.model_source import LoadedModel, ModelSource, Source
from hf_sft.pretrained import Weights, load_pretrained
from hf_sft.resources import PACKAGE, Locate, package_version, pin, sha256
from hf_sft.source_licence import source_licence
from hf_sft.tasks.base import Task
from hf_sft.weight_files import ENDINGS, load_weight_file

OF_PRETRAINING = ("mask_token", "*.mask_token")  # what stood for hidden parts of an image


def load_model(source: ModelSource, task: Task, names: list[str], locate: Locate) -> LoadedModel:
    """The source with a head for ``names``, its processor, and which parameters are fresh.

    The source's own head is kept only when it names the same labels in the same order. With
    ``backbone_of`` the source is the backbone of the model that is built around it.

    Raises:
        SourceError: nothing there, quantised weights, remote code, or a parameter of the backbone
            that would start from random values or stay unused without the recipe saying so; or
            ``channels_last`` of a model without convolutions of images.
    """
    if source.backbone_of is None:
        loaded = _load(source, task, names, locate)
    else:
        own = source.model_copy(update={"backbone_of": {}, "layer_groups": None})
        loaded = surround(_load(own, AsItIs(), [], locate), source, task, names)
    return loaded.channels_last() if source.channels_last else loaded


def _load(source: ModelSource, task: Task, names: list[str], locate: Locate) -> LoadedModel:
    path = _local_path(source, locate)
    place: Path | str = path if path is not None else source.name
    bare = path is not None and path.is_file()
    weights = (load_weight_file if bare else load_pretrained)(source, task, names, place)
    if not source.pretrained:
        weights = drawn_anew(weights)
    model, fresh = weights.model, weights.fresh
    groups = LayerGroups.of(model, source.layer_groups, fresh)
    _refuse_partial(source, groups, weights, bare, task.own_weights)
    if not weights.same_labels:
        fresh = fresh | renew_head_(model, groups, fresh, task.locates)
    processor = _processor(source, task, model, place)
    rows = _rows(model)
    task.prepare(processor, model)
    rows = {n: count for n, count in rows.items() if _rows(model).get(n, count) > count}
    found = _identity(source, path, model), groups, frozenset(fresh), tuple(weights.left_over)
    return LoadedModel(model, processor, *found, weights.original, rows)


def _rows(model: Any) -> dict[str, int]:
    """Parameter of an embedding, or tied to one -> number of its rows."""
    tables = (model.get_input_embeddings, model.get_output_embeddings)
    try:
        known = {id(table.weight) for table in (get() for get in tables) if table is not None}
    except (NotImplementedError, AttributeError):  # images: there is no table of words
        return {}
    return {name: len(p) for name, p in model.named_parameters() if id(p) in known}


def _local_path(source: ModelSource, locate: Locate) -> Path | None:
    """The file or folder, its pin verified; None for a Hub id."""
    path = locate(source.name) if "name" in source.files() else _folder(source.name, locate)
    if path is None and source.sha256 is not None:
        raise SourceError("model.sha256 pins a local file; a Hub id is pinned by model.revision.")
    if path is not None and source.sha256 is not None:
        pin(path if path.is_file() else _only_weights(path), source.sha256)
    if source.architecture is not None and (path is None or path.is_dir()):
        raise SourceError(
            f"model.architecture: only a bare weight file ({listing(sorted(ENDINGS))}) needs it; "
            f"{source.name!r} says itself what it is. Leave the key out."
        )
    return path


def _folder(name: str, locate: Locate) -> Path | None:
    """A folder that is called like a Hub id, beside the recipe or where the command runs."""
    try:
        path = locate(name)
    except UserError:
        path = Path(name)
    return path if os.path.isdir(path) else None


def _only_weights(folder: Path) -> Path:
    files = sorted(file for file in folder.iterdir() if file.suffix in ENDINGS)
    whole = [file for file in files if file.name == "model.safetensors"]
    if len(whole or files) != 1:
        raise SourceError(
            f"model.sha256 pins one weight file; '{folder.name}' holds "
            f"{listing(file.name for file in files) or 'none'}."
        )
    return (whole or files)[0]


def _refuse_partial(
    source: ModelSource, groups: LayerGroups, found: Weights, bare: bool, own: tuple[str, ...]
) -> None:
    """A backbone parameter that is fresh, or a checkpoint entry of the backbone nobody took.

    ``own``: globs of what the task brings along itself. What only pre-training used may be left.
    """
    head = {*groups.head.parameters, *groups.head.buffers}
    problems = []
    if source.backbone_of is None:  # else there is more that they may speak of
        problems += _idle_globs("fresh", source.fresh, found.fresh)
        problems += _idle_globs("unused", source.unused, found.left_over)
    random = [n for n in sorted(found.fresh - head) if not _matches(n, [*source.fresh, *own])]
    if random:
        shown = [f"{n} ({found.mismatched[n]})" if n in found.mismatched else n for n in random]
        problems.append(
            f"model.name: {source.name!r} has no values for {len(random)} parameters of the "
            f"backbone: {listing(shown)}. They would start from random numbers, and the pull would "
            "hold them there. Name a source that has them, or allow it with model.fresh: "
            f"['{random[0].rpartition('.')[0]}.*']."
        )
    candidates = found.left_over if bare else _of_backbone(found.left_over, found.model)
    allowed = [*source.unused, *OF_PRETRAINING]
    unused = [n for n in candidates if n not in head and not _matches(n, allowed)]
    if unused:
        problems.append(
            f"model.name: {source.name!r} holds {len(unused)} backbone parameters that this model "
            f"has no place for: {listing(unused)}. Correct the model's settings, or allow it with "
            f"model.unused: ['{unused[0].rpartition('.')[0]}.*']."
        )
    if random and unused and bare:
        problems.append("The same network under other names? Then set model.keys: in-order.")
    if problems:
        raise SourceError("\n".join(problems))


def _of_backbone(names: list[str], model: Any) -> list[str]:
    """The entries below a module of the backbone; the rest is a head that was left behind."""
    prefix = getattr(model, "base_model_prefix", "") + "."
    parts = {name for name, _ in model.base_model.named_children()}
    return [name for name in names if name.removeprefix(prefix).split(".")[0] in parts]


def _idle_globs(key: str, globs: list[str], names: Collection[str]) -> list[str]:
    return [
        f"model.{key}: {glob!r} matches nothing; there is: {listing(sorted(names)) or 'none'}."
        f"{nearest(glob, names)}"
        for glob in globs
        if not any(fnmatchcase(name, glob) for name in names)
    ]


def _matches(name: str, globs: list[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


def _processor(source: ModelSource, task: Task, model: Any, place: Path | str):
    if getattr(model.config, "pretrained_cfg", None) is not None:
        return transformers.TimmWrapperImageProcessor(
            model.config.pretrained_cfg, architecture=model.config.architecture
        )
    auto = getattr(transformers, task.auto_processor)
    try:
        return auto.from_pretrained(
            place, revision=source.revision, trust_remote_code=source.trust_remote_code
        )
    except Exception as error:  # tokenizers raise plain Exception on a file that is none
        raise SourceError(
            f"model.name: {source.name!r} has no "
            f"{task.auto_processor.removeprefix('Auto')} that can be loaded: {error}"
        ) from error


def commit_of(source: ModelSource) -> str | None:
    """The commit a Hub id was loaded at: the name of the snapshot folder it was cached in."""
    inside = {"subfolder": (source.model_extra or {}).get("subfolder", "")}
    config = cached_file(source.name, "config.json", revision=source.revision, **inside)
    return extract_commit_hash(config, None) or source.revision


def _identity(source: ModelSource, path: Path | None, model: Any) -> Source:
    """Who made the weights; of a network alone nobody did, so that no licence or base follows."""
    found = _origin(source, path, model)
    return found if source.pretrained else Source(found.name, found.revision, pretrained=False)


def _origin(source: ModelSource, path: Path | None, model: Any) -> Source:
    told = source_licence(source.name if path is None else path, source.revision)
    # timm's configuration has one too, of the weights that the architecture is known for.
    licence = told or (getattr(model.config, "pretrained_cfg", None) or {}).get("license")
    if source.name.startswith(PACKAGE):
        version = package_version(source.name)
        revision = version or (sha256(path) if path.is_file() else None)
        return Source(source.name, revision, license=licence)
    if path is not None:
        return Source(path.name, sha256(path) if path.is_file() else None, license=licence)
    commit = commit_of(source)
    return Source(source.name, commit, hub_id=source.name, license=licence)
