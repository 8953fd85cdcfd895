"""load_model: a pretrained source, whole, with a new head for the task; a partial load is refused.

Sources: a Hub id (Transformers or ``timm/...``), a local folder, ``package:module/path`` inside an
installed package, or a weight file with the timm ``architecture`` it belongs to.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import transformers
from pydantic import BaseModel, ConfigDict

from hf_sft.errors import SourceError, listing
from hf_sft.layer_groups import LayerGroups
from hf_sft.resources import PACKAGE, Locate, package_version, pin, sha256
from hf_sft.tasks.base import Task
from hf_sft.weight_files import ENDINGS, load_weight_file

LOADING = {"attn_implementation", "device_map", "dtype", "subfolder", "use_safetensors", "variant"}


class ModelSource(BaseModel):
    """The ``model`` block; keys beyond these go to ``from_pretrained`` / ``timm.create_model``.

    ``fresh`` and ``unused``: globs of parameters that may be missing from the source, or left over
    in it, beside the head. ``layer_groups``: ordered globs, for a model that cannot be ordered.
    """

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())
    name: str
    revision: str | None = None
    architecture: str | None = None
    sha256: str | None = None
    keys: str = "by-name"
    fresh: list[str] = []
    unused: list[str] = []
    layer_groups: list[str] | None = None
    trust_remote_code: bool = False

    def files(self) -> dict[str, str]:
        """The local file this block names, if it is no Hub id."""
        local = self.name.startswith((PACKAGE, ".", "/", "~")) or Path(self.name).suffix in ENDINGS
        return {"name": self.name} if local else {}


@dataclass(frozen=True)
class Source:
    """Where θ⁰ came from; no local path, so that it can be published."""

    name: str
    revision: str | None = None
    hub_id: str | None = None
    license: str | None = None


@dataclass
class LoadedModel:
    """A model ready to be fine-tuned, and what is known about its origin.

    Attributes:
        fresh: names of the parameters that did not come from the source.
        left_over: entries of the checkpoint that the model has no use for (an old head).
        original: loads the source with its own head; and whether it has one.
    """

    model: transformers.PreTrainedModel
    processor: Any
    source: Source
    groups: LayerGroups
    fresh: frozenset[str]
    left_over: tuple[str, ...]
    original: Callable[[], tuple[transformers.PreTrainedModel, bool]]


def load_model(source: ModelSource, task: Task, names: list[str], locate: Locate) -> LoadedModel:
    """The source with a head for ``names``, its processor, and which parameters are fresh.

    The source's own head is kept only when it names the same labels in the same order.

    Raises:
        SourceError: nothing there, quantised weights, remote code, or a parameter of the backbone
            that would start from random values or stay unused without the recipe saying so.
    """
    path = _local_path(source, locate)
    place: Path | str = path if path is not None else source.name
    if path is not None and path.is_file():
        model, fresh, same_labels, original = load_weight_file(source, task, names, path)
        left_over: list[str] = []
    else:
        model, fresh, left_over, same_labels, original = _from_pretrained(
            source, task, names, place
        )
    groups = LayerGroups.of(model, source.layer_groups, fresh)
    _refuse_partial(source, groups, fresh, left_over, model)
    if not same_labels:
        fresh |= _reset_head(model, groups, fresh)
    processor = _processor(source, task, model, place)
    task.prepare(processor, model.config)
    identity = _identity(source, path, model)
    return LoadedModel(
        model, processor, identity, groups, frozenset(fresh), tuple(left_over), original
    )


def _local_path(source: ModelSource, locate: Locate) -> Path | None:
    if source.files():
        path = locate(source.name)
        if path.is_file():
            pin(path, source.sha256)
        elif source.sha256 is not None:
            pin(path / "model.safetensors", source.sha256)
        return path
    return Path(source.name) if Path(source.name).is_dir() else None


def _from_pretrained(source: ModelSource, task: Task, names: list[str], place: Path | str):
    """(model, fresh, left-over checkpoint names, same labels?, loader of the source as it is)."""
    auto = getattr(transformers, task.auto_class)
    loading = {k: v for k, v in (source.model_extra or {}).items() if k in LOADING}

    def load(config: Any):
        return auto.from_pretrained(
            place,
            config=config,
            revision=source.revision,
            trust_remote_code=source.trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **loading,
        )

    config = _config(source, place)
    same_labels = list((config.id2label or {}).values()) == names
    try:
        model, info = load(_with_labels(config, names))
    except (OSError, ValueError, RuntimeError) as error:
        raise SourceError(f"model.name: {source.name!r} cannot be loaded: {error}") from error
    mismatched = {entry[0] for entry in info["mismatched_keys"]}
    fresh = set(info["missing_keys"]) | mismatched
    left_over = sorted(info["unexpected_keys"])

    def original():
        model, info = load(_config(source, place))
        return model, not info["missing_keys"]

    return model, fresh, left_over, same_labels, original


def _config(source: ModelSource, place: Path | str):
    try:
        config = transformers.AutoConfig.from_pretrained(
            place, revision=source.revision, trust_remote_code=source.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise SourceError(f"model.name: {source.name!r} cannot be loaded: {error}") from error
    if getattr(config, "quantization_config", None) is not None:
        raise SourceError(
            f"model.name: {source.name!r} holds quantised weights. A pull to the source needs the "
            "source's own values and a gradient for them: name the unquantised checkpoint."
        )
    if getattr(config, "model_args", None):  # timm's own folders repeat num_classes here
        config.model_args.pop("num_classes", None)
    for key, value in (source.model_extra or {}).items():
        if key not in LOADING and not hasattr(config, key):
            raise SourceError(
                f"model.{key}: neither an argument of from_pretrained "
                f"({listing(sorted(LOADING))}) nor a setting of {type(config).__name__}."
            )
        if key not in LOADING:
            setattr(config, key, value)
    return config


def _with_labels(config: Any, names: list[str]):
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}
    config.num_labels = len(names)
    if hasattr(config, "label_names"):  # timm_wrapper writes these in preference to id2label
        config.label_names = names
    return config


def _reset_head(model: Any, groups: LayerGroups, fresh: set[str]) -> set[str]:
    """Give a head that came with other classes new random values; its parameter names."""
    head = set(groups.head.parameters)
    if stale := head - fresh:
        for name, module in model.named_modules():
            own = {f"{name}.{key}": p for key, p in module.named_parameters(recurse=False)}
            if stale & set(own):
                for parameter in own.values():
                    parameter._is_hf_initialized = False
                model._init_weights(module)
    return head


def _refuse_partial(source: ModelSource, groups, fresh, left_over, model) -> None:
    """A backbone parameter that is fresh, or a checkpoint entry of the backbone nobody took."""
    head = set(groups.head.parameters) | set(groups.head.buffers)
    random = [n for n in sorted(fresh - head) if not _matches(n, source.fresh)]
    if random:
        raise SourceError(
            f"model.name: {source.name!r} has no values for {len(random)} parameters of the "
            f"backbone: {listing(random)}. They would start from random numbers, and the pull would "
            "hold them there. Name a source that has them, or allow it with model.fresh: "
            f"['{random[0].rpartition('.')[0]}.*']."
        )
    prefix = getattr(model, "base_model_prefix", "") + "."
    parts = {name for name, _ in model.base_model.named_children()}
    unused = [
        name
        for name in left_over
        if name.removeprefix(prefix).split(".")[0] in parts and not _matches(name, source.unused)
    ]
    if unused:
        raise SourceError(
            f"model.name: {source.name!r} holds {len(unused)} backbone parameters that this model "
            f"has no place for: {listing(unused)}. Correct the model's settings, or allow it with "
            f"model.unused: ['{unused[0].rpartition('.')[0]}.*']."
        )


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
    except (OSError, ValueError) as error:
        raise SourceError(
            f"model.name: {source.name!r} has no {task.auto_processor.removeprefix('Auto')}: {error}"
        ) from error


def _identity(source: ModelSource, path: Path | None, model: Any) -> Source:
    licence = (getattr(model.config, "pretrained_cfg", None) or {}).get("license")
    if source.name.startswith(PACKAGE):
        version = package_version(source.name)
        revision = version or (sha256(path) if path.is_file() else None)
        return Source(source.name, revision, license=licence)
    if path is not None:
        return Source(path.name, sha256(path) if path.is_file() else None, license=licence)
    commit = getattr(model.config, "_commit_hash", None) or source.revision
    return Source(source.name, commit, hub_id=source.name, license=licence)

