"""A bare weight file (.pth, .safetensors) as a timm model, every tensor accounted for."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from hf_sft.errors import SourceError, listing, nearest
from hf_sft.pretrained import Weights

ENDINGS = {".pth", ".pt", ".bin", ".safetensors"}
PREFIX = "timm_model."  # of transformers' wrapper around a timm model


def load_weight_file(source: Any, task: Any, names: list[str], path: Path) -> Weights:
    """The architecture that ``source`` names with the file's tensors and a head for ``names``.

    ``keys: by-name`` wants timm's names; ``in-order`` takes the entries in their order, for a file
    of another implementation, and wants the same count and shapes. Without ``names`` the head is
    the file's own.

    Raises:
        SourceError: unknown architecture, a file that is no plain state dict, no match in order.
    """
    from transformers import TimmWrapperForImageClassification

    _check_use(source, task, path)
    state = read_state(path)
    classes = _count_classes(source, state, _classifier(source))
    whole = TimmWrapperForImageClassification(_timm_config(source, classes or len(names) or 1))
    wanted = whole.timm_model.state_dict()
    if source.keys == "in-order":
        state = _in_order(source, state, wanted, path)
    given = {n: t for n, t in state.items() if n in wanted and t.shape == wanted[n].shape}
    whole.timm_model.load_state_dict(given, strict=False)
    if names:
        model = TimmWrapperForImageClassification(_timm_config(source, len(names), names))
    else:  # a backbone of another model: the source as it is
        model = whole
    target = model.timm_model.state_dict()
    kept = {n: t for n, t in given.items() if target[n].shape == t.shape}
    model.timm_model.load_state_dict(kept, strict=False)
    shapes = {n: (tuple(state[n].shape), tuple(t.shape)) for n, t in wanted.items() if n in state}
    return Weights(
        model=model,
        fresh={PREFIX + name for name in target if name not in kept},
        same_labels=not names,  # a bare file names no labels
        original=lambda: (whole, classes is not None),
        mismatched={PREFIX + n: f"{a}, not {b}" for n, (a, b) in shapes.items() if a != b},
        left_over=sorted(PREFIX + name for name in state if name not in wanted),
    )


def _check_use(source: Any, task: Any, path: Path) -> None:
    import timm

    if task.type != "image-classification":
        raise SourceError(
            f"model.name: '{path.name}' is a bare weight file, which only image-classification can "
            "load. Name the folder that holds it with its config.json."
        )
    if source.architecture is None or not timm.is_model(source.architecture):
        found = (
            "this key is needed"
            if source.architecture is None
            else (f"{source.architecture!r} is no timm model")
        )
        raise SourceError(
            f"model.architecture: {found}; a bare weight file has to be given the name it was "
            f"trained as in timm.{nearest(source.architecture, timm.list_models())}"
        )
    if source.keys == "in-order" and path.suffix == ".safetensors":
        raise SourceError(
            f"model.keys: in-order is not possible for '{path.name}': safetensors stores its "
            "tensors sorted, so their order says nothing. Use keys: by-name, or the .pth file."
        )


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file, without running anything that it may contain."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises UnpicklingError, RuntimeError, KeyError, EOFError
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SourceError(
            f"model.name: '{path.name}' is not a file of plain tensors "
            f"(it is read with weights_only=True): {reason}"
        ) from error
    for key in ("state_dict", "model", "model_state"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(torch.is_tensor(t) for t in state.values()):
        raise SourceError(f"model.name: '{path.name}' does not hold a state dict of tensors.")
    return state


def _classifier(source: Any) -> str | None:
    """timm's name for the last layer; None where it names none or several."""
    import timm

    pretrained = timm.get_pretrained_cfg(source.architecture)
    name = pretrained.classifier if pretrained else None
    return name if isinstance(name, str) else None


def _count_classes(source: Any, state: dict[str, torch.Tensor], name: str | None) -> int | None:
    """Classes of the file's own head; None where it has none."""
    if source.keys == "in-order" or name is None:
        vectors = [tensor for tensor in state.values() if tensor.ndim == 1]
        return len(vectors[-1]) if vectors else None  # the classifier's bias comes last
    weight = state.get(f"{name}.weight")
    return len(weight) if weight is not None and weight.ndim else None


def _timm_config(source: Any, classes: int, names: list[str] | None = None) -> Any:
    import timm
    from transformers import TimmWrapperConfig

    pretrained = timm.get_pretrained_cfg(source.architecture)
    settings = dict(source.model_extra or {})
    with torch.device("meta"):
        try:
            timm.create_model(source.architecture, num_classes=classes, **settings)
        except Exception as error:  # whatever the architecture makes of a wrong value
            own = nearest(next(iter(settings), ""), type(source).model_fields)
            raise SourceError(
                f"model: timm.create_model({source.architecture!r}) does not take "
                f"{settings}: {error}.{own}"
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


def _in_order(source: Any, state: dict, wanted: dict, path: Path) -> dict[str, torch.Tensor]:
    """The file's tensors under timm's names, by their place in the file."""
    if len(state) != len(wanted):
        raise SourceError(
            f"model.keys: in-order needs as many tensors as {source.architecture} has "
            f"({len(wanted)}); '{path.name}' has {len(state)}."
        )
    odd = [
        f"{theirs} {tuple(tensor.shape)} for {name} {tuple(wanted[name].shape)}"
        for name, (theirs, tensor) in zip(wanted, state.items(), strict=True)
        if tensor.shape != wanted[name].shape
    ]
    if odd:
        raise SourceError(
            f"model.keys: in-order finds other shapes in '{path.name}' than {source.architecture} "
            f"has, at {len(odd)} of {len(wanted)} places: {listing(odd, 5)}."
        )
    return dict(zip(wanted, state.values(), strict=True))
