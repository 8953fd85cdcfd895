"""surround: a loaded source becomes the backbone of the model that ``backbone_of`` describes."""

from typing import Any

from hf_sft.backbones.fit import Fit
from hf_sft.backbones.outer import outer_config, outer_processor
from hf_sft.backbones.view import Inside, renamed, source_size
from hf_sft.errors import SourceError
from hf_sft.layer_blocks import tensor_names
from hf_sft.layer_groups import LayerGroups, Role
from hf_sft.model_source import LoadedModel, ModelSource
from hf_sft.tasks.base import Task

SIZE = (224, 224)  # pixels, of a source that does not say its own


def surround(inner: LoadedModel, source: ModelSource, task: Task, names: list[str]) -> LoadedModel:
    """A model for ``task`` whose backbone is the source, tensor for tensor; all else is fresh.

    Args:
        inner: the source as it was loaded, a classifier of images, whole.
        names: labels of the new head.

    Raises:
        SourceError: no such outer model, or one whose backbone the source does not fill.
    """
    config = outer_config(source, inner)
    task.configure(config, names)
    model = _built(config, task)
    fit = Fit.of(model, inner.model)
    fit.refuse_partial(source, inner, model)
    fit.put_(model, inner.model)
    size = source_size(inner.processor)
    fit.check_function(model, inner.model, size or SIZE)
    model.requires_grad_(True)  # DETR fixes some of a backbone itself; here the recipe decides
    known = {n for n, own in fit.names.items() if own not in inner.fresh}
    fresh = frozenset(
        n for n in [*dict(model.named_parameters()), *model.state_dict()] if n not in known
    )
    groups, labels = _groups(model, fit, inner.groups, fresh)
    if source.layer_groups is not None:
        groups = LayerGroups.of(model, source.layer_groups, fresh)
    inside = Inside(fit.names, renamed(inner.groups, labels), size)
    processor = outer_processor(config, inner.processor)
    task.prepare(processor, model)
    return LoadedModel(
        model,
        processor,
        inner.source,
        groups,
        fresh,
        (*inner.left_over, *fit.beyond, *fit.lost),
        inner.original,
        inside=inside,
    )


def _built(config: Any, task: Task) -> Any:
    """The outer model with random weights; the Auto class says what it cannot do."""
    try:
        return task.auto_model(config).from_config(config)
    except Exception as error:  # shapes that do not go together: ValueError, RuntimeError, …
        raise SourceError(
            f"model.backbone_of: {config.model_type} cannot be built for {task.type}: {error}"
        ) from error


def _groups(
    model: Any, fit: Fit, source: LayerGroups, fresh: frozenset[str]
) -> tuple[LayerGroups, dict[str, str]]:
    """Stem and blocks of the backbone as the source has them; all that is new is of the head.

    And the name that a group of the source has there.
    """
    named: list[tuple[str, Role]] = [
        (f"backbone {group.name if group.role == 'stem' else f'block {i}'}", group.role)
        for i, group in enumerate([g for g in source if g.role != "head"], -bool(source.stem))
    ]
    labels = {group.name: name for group, (name, _) in zip(source, named, strict=False)}
    of = {n: i for i, g in enumerate(source) for n in (*g.parameters, *g.buffers)}
    place = {n: of[own] for n, own in fit.names.items() if of.get(own, len(named)) < len(named)}
    parts: dict[str, int] = {}
    for name in tensor_names(model):
        if name not in place and (name in fresh or not name.startswith(f"{fit.place}.")):
            part = _part(name, fit.place)
            place[name] = len(named) + parts.setdefault(part, len(parts))
    order = sorted(parts, key=lambda part: part == "head")  # the head proper last
    moved = {len(named) + parts[part]: len(named) + i for i, part in enumerate(order)}
    place = {name: moved.get(number, number) for name, number in place.items()}
    groups = [*named, *((part, "head") for part in order)]
    return LayerGroups.placed(model, groups, place, fresh), labels


def _part(name: str, backbone: str) -> str:
    """The part of the model that a tensor outside of the backbone is in.

    Beside the backbone it is the module at the level where their paths part; at the top, the head.
    """
    path, ours = name.split("."), backbone.split(".")
    depth = next((i for i, (a, b) in enumerate(zip(path, ours, strict=False)) if a != b), len(ours))
    return ".".join(path[: depth + 1]) if depth else "head"
