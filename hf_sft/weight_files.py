"""A bare weight file (.pth, .safetensors) as a timm model, every tensor accounted for."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from hf_sft.errors import SourceError, listing, nearest

ENDINGS = {".pth", ".pt", ".bin", ".safetensors"}


def load_weight_file(source: Any, task: Any, names: list[str], path: Path):
    """(model with a head for ``names``, fresh, same labels?, loader of the source with its head).

    ``keys: by-name`` wants the file's names to be timm's; ``in-order`` takes the entries in their
    order, for a file written by another implementation. Count and every shape must match.

    Raises:
        SourceError: unknown architecture, a file that is no plain state dict, or any mismatch.
    """
    from transformers import TimmWrapperForImageClassification

    if task.type != "image-classification":
        raise SourceError(
            f"model.name: '{path.name}' is a bare weight file, which only image-classification can "
            "load. Name the folder that holds it with its config.json."
        )
    state = read_state(path)
    whole = TimmWrapperForImageClassification(_timm_config(source, count_classes(source, state)))
    whole.timm_model.load_state_dict(_matched(source, state, whole.timm_model.state_dict(), path))
    model = TimmWrapperForImageClassification(_timm_config(source, len(names), names))
    target, given = model.state_dict(), whole.state_dict()
    fresh = {name for name, tensor in target.items() if given[name].shape != tensor.shape}
    model.load_state_dict({n: target[n] if n in fresh else given[n] for n in target})
    return model, fresh, False, lambda: (whole, True)


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file, without running anything that it may contain."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises UnpicklingError, RuntimeError, KeyError, EOFError
        raise SourceError(
            f"model.name: '{path.name}' is not a file of plain tensors "
            f"(it is read with weights_only=True): {str(error).splitlines()[0]}"
        ) from error
    for key in ("state_dict", "model", "model_state"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(torch.is_tensor(t) for t in state.values()):
        raise SourceError(f"model.name: '{path.name}' does not hold a state dict of tensors.")
    return state


def count_classes(source: Any, state: dict[str, torch.Tensor]) -> int:
    """Classes of the file's own head: the length of the classifier's bias, its last vector."""
    import timm

    if source.architecture is None or not timm.is_model(source.architecture):
        some = timm.list_models()
        raise SourceError(
            f"model.architecture: {source.architecture!r} is no timm model; a bare weight file needs "
            f"the name it was trained as.{nearest(source.architecture, some)}"
        )
    vectors = [tensor for tensor in state.values() if tensor.ndim == 1]
    if not vectors:
        raise SourceError("model.name: the file holds no vector, so no classifier bias.")
    return len(vectors[-1])


def _timm_config(source: Any, classes: int, names: list[str] | None = None):
    import timm
    from transformers import TimmWrapperConfig

    pretrained = timm.get_pretrained_cfg(source.architecture)
    settings = dict(source.model_extra or {})
    with torch.device("meta"):
        try:
            timm.create_model(source.architecture, num_classes=classes, **settings)
        except TypeError as error:
            raise SourceError(
                f"model: timm.create_model does not take {listing(settings)}: {error}"
            ) from error
    config = TimmWrapperConfig(
        architecture=source.architecture,
        num_labels=classes,
        pretrained_cfg={**pretrained.to_dict(), "num_classes": classes} if pretrained else None,
        model_args=settings or None,
    )
    if names is not None:
        config.id2label = dict(enumerate(names))
        config.label2id = {name: index for index, name in enumerate(names)}
    return config


def _matched(source: Any, state: dict, wanted: dict, path: Path) -> dict[str, torch.Tensor]:
    """The file's tensors under timm's names."""
    if source.keys == "in-order":
        if len(state) != len(wanted):
            raise SourceError(
                f"model.keys: in-order needs as many tensors as {source.architecture} has "
                f"({len(wanted)}); '{path.name}' has {len(state)}."
            )
        state = dict(zip(wanted, state.values(), strict=True))
    missing, extra = sorted(set(wanted) - set(state)), sorted(set(state) - set(wanted))
    if missing or extra:
        raise SourceError(
            f"model.name: '{path.name}' does not have {source.architecture}'s names. Missing: "
            f"{listing(missing) or 'none'}. Left over: {listing(extra) or 'none'}. If it is the "
            "same network under other names in the same order, set model.keys: in-order."
        )
    for name, tensor in wanted.items():
        if state[name].shape != tensor.shape:
            raise SourceError(
                f"model.name: '{path.name}' has {tuple(state[name].shape)} where "
                f"{source.architecture} has {tuple(tensor.shape)} ({name})."
            )
    return state
