"""Tiny classifiers of images as sources, and the outer models that they become the backbone of."""

import timm
import torch
import transformers
from tiny import _built

SIDE = 64
DETR = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "num_queries": 8,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16}  # fmt: skip
WIDE = {**DETR, "d_model": 32}  # group norms of 32 groups
OUTER = {
    "detr": {"dropout": 0.0, **DETR},
    "conditional_detr": DETR,
    "deformable_detr": {**WIDE, "num_feature_levels": 3, "decoder_layers": 2},
    "table-transformer": DETR,
    "rt_detr": {**DETR, "encoder_hidden_dim": 16, "decoder_in_channels": [16] * 3,
                "num_denoising": 0},
    "upernet": {"hidden_size": 16, "auxiliary_channels": 8},
    "maskformer": {"fpn_feature_size": 32, "mask_feature_size": 32,
                   "decoder_config": {"model_type": "detr", **WIDE}},
    "mask2former": {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32,
                    "encoder_feedforward_dim": 16, "dim_feedforward": 16, "encoder_layers": 1,
                    "decoder_layers": 2, "num_attention_heads": 2, "num_queries": 5},
}  # fmt: skip
DETECTORS = [kind for kind in OUTER if "detr" in kind or "table" in kind]
SIZES = {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]}
SWIN = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 2}
TRANSFORMERS = {
    "resnet": lambda: transformers.ResNetConfig(embedding_size=8, **SIZES, num_labels=5),
    "convnext": lambda: transformers.ConvNextConfig(**SIZES, num_labels=5),
    "swin": lambda: transformers.SwinConfig(**SWIN, image_size=SIDE, num_labels=5),
}


def outer(kind, **changes):
    """The block ``backbone_of``."""
    return {"model_type": kind, **OUTER[kind], **changes}


def timm_model(architecture="test_efficientnet"):
    """Weights and batch statistics that are not those of a model just built."""
    model = _built(lambda: timm.create_model(architecture, num_classes=7))
    generator = torch.Generator().manual_seed(0)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1, generator=generator)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5, generator=generator)
    return model


def weight_file(folder, architecture="test_efficientnet"):
    """A bare file and the keys of the model block that name it."""
    torch.save(timm_model(architecture).state_dict(), folder / "w.pth")
    return {"name": str(folder / "w.pth"), "architecture": architecture}


def timm_folder(folder, architecture="test_efficientnet"):
    """A folder as the Hub has it for timm/…"""
    timm.models.save_for_hf(timm_model(architecture), str(folder))
    return {"name": str(folder)}


def transformers_folder(folder, kind):
    """A classifier of five classes with its processor."""
    config = TRANSFORMERS[kind]()
    model = _built(lambda: transformers.AutoModelForImageClassification.from_config(config))
    model.save_pretrained(folder)
    transformers.ConvNextImageProcessor(
        size={"shortest_edge": SIDE}, image_mean=[0.3] * 3, image_std=[0.2] * 3
    ).save_pretrained(folder)
    return {"name": str(folder)}
