"""The model around a backbone: its configuration, with the source's in it, and its processor."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
import transformers
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

from hf_sft.errors import SourceError, listing, nearest
from hf_sft.model_source import LoadedModel, ModelSource

STAGES = {  # model type -> how many of the backbone's last stages it looks at
    "detr": 1,
    "conditional_detr": 1,
    "dab-detr": 1,
    "table-transformer": 1,
    "deformable_detr": 3,
    "rt_detr": 3,
    "rt_detr_v2": 3,
    "d_fine": 3,
    "upernet": 4,
    "maskformer": 4,
    "mask2former": 4,
}
PROCESSORS = {  # where transformers' own table has none
    "rt_detr_v2": "RTDetrImageProcessor",
    "d_fine": "RTDetrImageProcessor",
    "dab-detr": "ConditionalDetrImageProcessor",
}
OF_THE_SOURCE = ("backbone", "backbone_config", "backbone_kwargs", "use_pretrained_backbone",
                 "use_timm_backbone", "num_labels", "id2label", "label2id")  # fmt: skip
WHICH_STAGES = ("out_indices", "out_features")
NO_PART = ("id2label", "label2id", "num_labels", "architectures", "problem_type", "dtype",
           "_name_or_path", "transformers_version", "model_type", "stage_names",
           *WHICH_STAGES)  # fmt: skip
OF_A_HEAD = ("in_chans", "num_classes", "global_pool")  # and a setting that a backbone has too


@dataclass(frozen=True)
class Stage:
    """One resolution of a backbone: its name, its channels and, where known, its stride."""

    name: str
    channels: int
    stride: int | None = None


def outer_config(source: ModelSource, inner: LoadedModel) -> Any:
    """The configuration that ``backbone_of`` names, around the source's.

    What follows from the backbone and is not given is filled in: channels and strides.

    Raises:
        SourceError: no such model type, one without a place for a backbone, an unknown key.
    """
    asked = dict(source.backbone_of or {})
    kind = asked.pop("model_type", None)
    plain = _plain_config(kind)
    which = {key: asked.pop(key) for key in WHICH_STAGES if key in asked}
    _refuse_unknown(asked, plain)
    count = STAGES.get(kind, 4)
    if kind == "deformable_detr":  # it makes the coarsest levels itself
        count = max(1, min(count, asked.get("num_feature_levels", plain.num_feature_levels) - 1))
    try:
        backbone, stages = _backbone_config(source, inner, which, count)
        settings = {**_implied(plain, stages), **asked, "backbone_config": backbone}
        config = transformers.CONFIG_MAPPING[kind](**settings)
    except SourceError:
        raise
    except Exception as error:  # checks of the configurations: a dozen unrelated types
        raise SourceError(f"model.backbone_of: {kind} does not take this: {error}") from error
    if backbone.model_type == "timm_backbone":
        config.backbone_config.freeze_batch_norm_2d = freezes_statistics(config)
    return config


def freezes_statistics(config: Any) -> bool:
    """Whether the outer model puts frozen batch norms in the place of its backbone's.

    Transformers' own replacement (``replace_batch_norm``) would drop what timm's batch norms do
    beside normalising, the activation and another epsilon; those that timm has frozen it leaves.
    """
    module = import_module(type(config).__module__.replace(".configuration_", ".modeling_"))
    asked = getattr(config, "freeze_backbone_batch_norms", True)  # RT-DETR leaves the choice
    return asked and hasattr(module, "replace_batch_norm")


def _plain_config(kind: str | None) -> Any:
    if kind is None or kind not in transformers.CONFIG_MAPPING:
        found = "the key is needed" if kind is None else f"{kind!r} is no model type"
        raise SourceError(
            f"model.backbone_of.model_type: {found}; tried are {listing(STAGES)}."
            f"{nearest(str(kind), STAGES)}"
        )
    plain = transformers.CONFIG_MAPPING[kind]()
    if "backbone_config" not in plain.to_dict():
        raise SourceError(
            f"model.backbone_of.model_type: {kind} has no exchangeable backbone. Choose one of "
            f"{listing(STAGES)}."
        )
    return plain


def _refuse_unknown(asked: dict[str, Any], plain: Any) -> None:
    known = [*plain.to_dict(), *plain.attribute_map]
    problems = []
    for key in asked:
        if key in OF_THE_SOURCE:
            problems.append(
                f"model.backbone_of.{key}: the backbone is the source that model.name names, and "
                "the labels are the data's. Leave the key out."
            )
        elif key not in known:
            problems.append(
                f"model.backbone_of.{key}: no such setting of {type(plain).__name__}."
                f"{nearest(key, [*known, *WHICH_STAGES])}"
            )
    if problems:
        raise SourceError("\n".join(problems))


def _backbone_config(
    source: ModelSource, inner: LoadedModel, which: dict[str, Any], count: int
) -> tuple[Any, list[Stage]]:
    """The source's configuration as a backbone's, and the stages it gives."""
    own = inner.model.config
    if own.model_type == "timm_wrapper":
        return _timm_backbone(source, own, which, count)
    settings = {key: value for key, value in own.to_dict().items() if key not in NO_PART}
    settings |= which or {"out_indices": list(range(len(own.stage_names)))[-count:]}
    config = type(own)(**settings)
    with torch.device("meta"):
        net = transformers.AutoBackbone.from_config(config)
    return config, [Stage(*pair) for pair in zip(net.out_features, net.channels, strict=True)]


def _timm_backbone(
    source: ModelSource, own: Any, which: dict[str, Any], count: int
) -> tuple[Any, list[Stage]]:
    settings = {**(own.model_args or {}), **(source.model_extra or {})}
    if extra := [key for key in settings if key not in OF_A_HEAD]:
        raise SourceError(
            f"model: {listing(extra)}: a timm model is a backbone only as its "
            "architecture has it. Leave these settings out."
        )
    every = [
        Stage(stage["module"], stage["num_chs"], stage["reduction"])
        for stage in timm_features(own.architecture).feature_info.info
    ]
    if "out_features" in which:
        names = [stage.name for stage in every]
        if wrong := [name for name in which["out_features"] if name not in names]:
            raise SourceError(
                f"model.backbone_of.out_features: {own.architecture} has no {listing(wrong)}; it "
                f"has {listing(names)}."
            )
        chosen = [names.index(name) for name in which["out_features"]]
    else:
        chosen = which.get("out_indices", list(range(len(every)))[-count:])
    if wrong := [i for i in chosen if not -len(every) <= i < len(every)]:
        raise SourceError(
            f"model.backbone_of.out_indices: {own.architecture} has {len(every)} stages, numbered "
            f"from 0; {wrong[0]} is none."
        )
    chosen = [i % len(every) for i in chosen]
    config = transformers.TimmBackboneConfig(
        backbone=own.architecture, out_indices=chosen, num_channels=settings.get("in_chans", 3)
    )
    return config, [every[i] for i in chosen]


def timm_features(architecture: str) -> Any:
    """The architecture with all its stages as a backbone, without weights.

    Raises:
        SourceError: timm cannot make it one.
    """
    import timm

    try:
        with torch.device("meta"):
            return timm.create_model(architecture, features_only=True)
    except Exception as error:  # RuntimeError, AttributeError, AssertionError, by architecture
        raise SourceError(
            f"model.architecture: timm cannot make {architecture} a backbone: {error}"
        ) from error


def _implied(plain: Any, stages: list[Stage]) -> dict[str, Any]:
    """Settings of the outer model that follow from what the backbone gives."""
    channels, strides = [s.channels for s in stages], [s.stride for s in stages]
    found: dict[str, Any] = {"encoder_in_channels": channels}
    index = getattr(plain, "auxiliary_in_index", 2)
    if len(channels) > index:
        found["auxiliary_in_channels"] = channels[index]
    if None not in strides:
        found |= {"feat_strides": strides, "feature_strides": strides}
    return {key: value for key, value in found.items() if key in plain.to_dict()}


def outer_processor(config: Any, own: Any) -> Any:
    """The image processor of the outer model's type, normalising as the source's ``own`` does."""
    kind = config.model_type
    if kind in PROCESSORS:
        build = getattr(transformers, PROCESSORS[kind])
    else:
        by_backend = IMAGE_PROCESSOR_MAPPING[type(config)]
        build = by_backend.get("torchvision") or by_backend["pil"]
    timm = getattr(own, "data_config", None)
    if timm is not None:
        return build(do_normalize=True, image_mean=list(timm["mean"]), image_std=list(timm["std"]))
    keys = ("do_normalize", "image_mean", "image_std", "do_rescale", "rescale_factor")
    return build(**{key: getattr(own, key) for key in keys if getattr(own, key, None) is not None})
