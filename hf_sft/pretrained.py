"""Weights from a folder or a Hub id: ``from_pretrained`` with every parameter accounted for."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils import logging as hf_logging
from transformers.utils.hub import cached_file

from hf_sft.errors import SourceError, listing, nearest

NO_FOLDER = "is no folder here, and cannot be loaded from the Hub"
LOADING = {"attn_implementation", "device_map", "dtype", "subfolder", "use_safetensors", "variant"}


@dataclass
class Weights:
    """A model with a head for the labels, and how it fits the checkpoint.

    Attributes:
        fresh: names of the parameters and buffers that did not come from the checkpoint.
        same_labels: the checkpoint's head names the same labels in the same order.
        original: loads the source with its own head; and whether it has one.
        mismatched: fresh name -> the shape in the checkpoint and in the model.
        left_over: entries of the checkpoint that the model has no use for.
    """

    model: transformers.PreTrainedModel
    fresh: set[str]
    same_labels: bool
    original: Callable[[], tuple[transformers.PreTrainedModel, bool]]
    mismatched: dict[str, str] = field(default_factory=dict)
    left_over: list[str] = field(default_factory=list)


def load_pretrained(source: Any, task: Any, names: list[str], place: Path | str) -> Weights:
    """The checkpoint at ``place`` in the task's Auto class, with a head for ``names``.

    Raises:
        SourceError: nothing there, quantised weights, remote code, or an unknown setting.
    """

    def original() -> tuple[Any, bool]:
        own = _config(source, place, task)
        if not names:  # the head's form is the task's, whatever the source was for
            task.configure(own, names)
        model, info = _load(task.auto_model(own), source, place, own)
        return model, task.chooses and not info["missing_keys"]

    said = _config(source, place, task)
    known = [label for _, label in sorted((said.id2label or {}).items())]
    config = task.reshaped(said, partial(_file, source, place))
    task.configure(config, names)
    model, info = _load(task.auto_model(config), source, place, config)
    hold_fixed_(model)
    mismatched = {name: f"{tuple(a)}, not {tuple(b)}" for name, a, b in info["mismatched_keys"]}
    fresh = _named_once(model, {*info["missing_keys"], *mismatched})
    left_over = sorted(info["unexpected_keys"])
    same = not names or (known == names and config is said)
    return Weights(model, fresh, same, original, mismatched, left_over)


def _named_once(model: torch.nn.Module, names: set[str]) -> set[str]:
    """A tied tensor by the one name that ``named_parameters`` gives it."""
    first = {id(p): name for name, p in model.named_parameters()}
    every = dict(model.named_parameters(remove_duplicate=False))
    return {first[id(every[name])] if name in every else name for name in names}


def hold_fixed_(model: transformers.PreTrainedModel) -> None:
    """Freeze what the architecture freezes: sinusoidal positions of ViTMAE, Whisper, Marian.

    transformers 5.24 forgets it while loading; the tables would train.
    """
    around_others = getattr(model.config, "backbone_config", None) is not None
    known = type(model).__module__.startswith(("transformers.models.", "hf_sft."))
    if around_others or not known or model.config.model_type == "timm_wrapper":
        return  # whose parts cannot be built for a look without files of their own
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        built = type(model)(model.config)
    fixed = {name for name, parameter in built.named_parameters() if not parameter.requires_grad}
    for name, parameter in model.named_parameters():
        if name in fixed:
            parameter.requires_grad_(False)


def _load(auto: Any, source: Any, place: Path | str, config: Any) -> tuple[Any, dict]:
    """The model and what ``from_pretrained`` says about its keys; float32 unless asked otherwise.

    transformers 5 keeps the checkpoint's type, and steps in pure half precision lose small updates.
    """
    asked = {key: value for key, value in _extra(source).items() if key in LOADING}
    return _whatever_goes_wrong(
        source,
        auto.from_pretrained,
        place,
        config=config,
        revision=source.revision,
        trust_remote_code=source.trust_remote_code,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **{"dtype": "float32", **asked},
    )


def _whatever_goes_wrong(source: Any, load: Callable, *arguments: Any, **settings: Any) -> Any:
    try:
        with _quiet():
            return load(*arguments, **settings)
    except Exception as error:  # bad json, torn tensors, pickles with code: a dozen unrelated types
        reason = str(error).strip()
        reason = reason if len(reason) < 600 else f"{reason[:600]} …"
        what = "cannot be loaded" if os.path.exists(arguments[0]) else NO_FOLDER
        raise SourceError(
            f"model.name: {source.name!r} {what} ({type(error).__name__}): {reason.rstrip('.')}. "
            "Name a folder with config.json and weights, a weight file, or a model of the Hub."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No loading report: what is missing or left over is told or refused by ``load_model``."""
    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()


def _extra(source: Any) -> dict[str, Any]:
    return source.model_extra or {}


def _config(source: Any, place: Path | str, task: Any) -> Any:
    config = _whatever_goes_wrong(
        source,
        transformers.AutoConfig.from_pretrained,
        place,
        revision=source.revision,
        trust_remote_code=source.trust_remote_code,
    )
    if getattr(config, "quantization_config", None) is not None:
        raise SourceError(
            f"model.name: {source.name!r} holds quantised weights. A pull to the source needs the "
            "source's own values and a gradient for them: name the unquantised checkpoint."
        )
    if getattr(config, "model_args", None):  # timm's own folders repeat num_classes here
        config.model_args.pop("num_classes", None)
    config = _plain(config, task)
    _apply_settings(source, config)
    return config


def _file(source: Any, place: Path | str, name: str) -> Path | None:
    """A file that may lie beside the source's weights."""
    found = cached_file(
        place,
        name,
        revision=source.revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)


def _plain(config: Any, task: Any) -> Any:
    """A masked autoencoder's configuration as its encoder's, where only that has the task's head.

    The encoder of ViTMAE is a ViT, parameter for parameter; its decoder is a head left behind.
    """
    if config.model_type != "vit_mae" or task.chooses is False:
        return config
    settings = config.to_dict()
    settings = {k: v for k, v in settings.items() if k not in ("model_type", "architectures")}
    return transformers.ViTConfig(**settings)


def _apply_settings(source: Any, config: Any) -> None:
    """Put the keys that are no arguments of ``from_pretrained`` in the config."""
    parts = getattr(config, "text_config", None), config  # the outer one's keys come first
    parts = [part for part in parts if isinstance(part, transformers.PreTrainedConfig)]
    places = {key: part for part in parts for key in [*part.to_dict(), *part.attribute_map]}
    own, settings = type(source).model_fields, list(places)
    problems = []
    for key, value in _extra(source).items():
        if key in LOADING:
            continue
        if key not in settings:
            problems.append(
                f"model.{key}: no such key (value {value!r}). It is neither ours ({listing(own)}), "
                f"nor an argument of from_pretrained ({listing(sorted(LOADING))}), nor a setting "
                f"of {type(config).__name__}.{nearest(key, [*own, *LOADING, *settings])}"
            )
            continue
        try:
            setattr(places[key], key, value)
        except (TypeError, ValueError) as error:
            problems.append(f"model.{key}: {error}")
    if problems:
        raise SourceError("\n".join(problems))
