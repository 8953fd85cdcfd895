"""Tiny detectors built from configs, as folders that a recipe names, and images with rectangles."""

import tiny_boxes
import yaml
from tiny import _built
from transformers import (
    ConditionalDetrConfig,
    ConditionalDetrForObjectDetection,
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    DeformableDetrImageProcessor,
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessor,
    ResNetConfig,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrImageProcessor,
    RTDetrResNetConfig,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessor,
)

PIXELS, NAMES = 64, ("cat", "dog")
SIZES = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "num_queries": 8,
         "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16,
         "decoder_ffn_dim": 16, "dropout": 0.0, "use_timm_backbone": False}  # fmt: skip
LABELS = {"id2label": dict(enumerate(NAMES)), "label2id": {n: i for i, n in enumerate(NAMES)}}
CHANNELS = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}


def resnet(*stages):
    return ResNetConfig(**CHANNELS, layer_type="basic", out_features=list(stages))


def detr(**changes):
    config = DetrConfig(**{**SIZES, "backbone_config": resnet("stage4"), **LABELS, **changes})
    return _built(lambda: DetrForObjectDetection(config))


def conditional(**changes):
    config = ConditionalDetrConfig(
        **{**SIZES, "backbone_config": resnet("stage4"), **LABELS, **changes}
    )
    return _built(lambda: ConditionalDetrForObjectDetection(config))


def deformable(**changes):
    stages = {
        "backbone_config": resnet("stage2", "stage3", "stage4"),
        "num_feature_levels": 3,
        "d_model": 32,  # its group norms have 32 groups
        "decoder_layers": 2,  # the second one's boxes are tied to the first one's
    }
    config = DeformableDetrConfig(**{**SIZES, **stages, **LABELS, **changes})
    return _built(lambda: DeformableDetrForObjectDetection(config))


def rt_detr(**changes):
    backbone = RTDetrResNetConfig(
        **CHANNELS, layer_type="basic", out_features=["stage2", "stage3", "stage4"]
    )
    sizes = {"encoder_hidden_dim": 16, "encoder_in_channels": [8, 16, 16], "d_model": 16,
             "encoder_layers": 1, "encoder_ffn_dim": 16, "encoder_attention_heads": 2,
             "decoder_in_channels": [16, 16, 16], "decoder_layers": 1, "decoder_ffn_dim": 16,
             "decoder_attention_heads": 2, "num_queries": 8, "num_denoising": 4,
             "hidden_expansion": 0.5}  # fmt: skip
    config = RTDetrConfig(backbone_config=backbone, **{**sizes, **LABELS, **changes})
    return _built(lambda: RTDetrForObjectDetection(config))


def yolos(**changes):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 32, "image_size": [PIXELS, PIXELS], "patch_size": 16,
             "num_detection_tokens": 8}  # fmt: skip
    return _built(lambda: YolosForObjectDetection(YolosConfig(**{**sizes, **LABELS, **changes})))


EDGES = {"shortest_edge": PIXELS, "longest_edge": 2 * PIXELS}
SQUARE = {"height": PIXELS, "width": PIXELS}
KINDS = {
    "detr": (detr, lambda: DetrImageProcessor(size=EDGES)),
    "conditional": (conditional, lambda: DeformableDetrImageProcessor(size=EDGES)),
    "deformable": (deformable, lambda: DeformableDetrImageProcessor(size=EDGES)),
    "rt_detr": (rt_detr, lambda: RTDetrImageProcessor(size=SQUARE)),
    "yolos": (yolos, lambda: YolosImageProcessor(size=SQUARE)),
}


def source(folder, kind="detr", **changes):
    """A detector of cats and dogs and its processor."""
    build, processor = KINDS[kind]
    build(**changes).save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder


def recipe(folder, kind="detr", **changes):
    """A recipe file with COCO data and source/ beside it; ``changes`` replace blocks' keys."""
    data = tiny_boxes.coco(folder)
    if not (folder / "source").exists():
        source(folder / "source", kind)
    blocks = {
        "task": {"type": "object-detection"},
        "data": {"type": "coco", **data},
        "model": {"name": "./source"},
        "penalty": {"type": "l2-sp", "lambda": 0.01},
        "training": {
            "output_dir": str(folder / "out"),
            "num_train_epochs": 2,
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 2,
            "use_cpu": True,
            "disable_tqdm": True,
        },
    }
    for key, value in changes.items():
        blocks[key] = {**blocks.get(key, {}), **value} if isinstance(value, dict) else value
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(blocks), "utf-8")
    return path
