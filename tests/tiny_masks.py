"""Tiny segmenters with their processors, and folders of images with masks."""

import json

import numpy as np
import timm
import torch
import yaml
from PIL import Image
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    SwinConfig,
)

NAMES = ["ground", "dark", "light"]
SIDE = 64


def scene(number, width=48, height=40):
    """An image of noise with a dark and a light rectangle, and its map of classes."""
    draw = np.random.default_rng(number)
    classes = np.zeros((height, width), dtype=np.uint8)
    for category in (1, 2):
        x, y = draw.integers(0, width - 16), draw.integers(0, height - 16)
        classes[y : y + 14, x : x + 14] = category
    level = np.array([128, 40, 220])[classes]
    pixels = level[..., None] + draw.integers(-30, 30, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), classes


def mask_folder(folder, train=8, test=4):
    """``folder/{train,test}/{images,masks}`` and classes.txt; every image has a size of its own."""
    for split, count, first in (("train", train, 0), ("test", test, 100)):
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True)
        for number in range(count):
            image, classes = scene(first + number, 48 + 2 * number, 40 + number)
            image.save(folder / split / "images" / f"{number}.png")
            Image.fromarray(classes).save(folder / split / "masks" / f"{number}.png")
    (folder / "classes.txt").write_text("\n".join(NAMES), "utf-8")
    return folder


def coco_file(folder, name="train", count=8, first=0):
    """``folder/<name>.json`` with the rectangles of `scene` as polygons and RLE in turn."""
    images, annotations = [], []
    categories = [{"id": i, "name": n} for i, n in enumerate(NAMES) if i]
    for number in range(count):
        image, classes = scene(first + number, 48 + 2 * number, 40 + number)
        file = f"{name}{number}.png"
        image.save(folder / file)
        images.append(
            {"id": number, "file_name": file, "width": image.width, "height": image.height}
        )
        for category in (1, 2):
            rows, columns = np.nonzero(classes == category)
            if len(rows):
                annotations.append(_annotation(number, category, rows, columns, classes))
    for number, annotation in enumerate(annotations):
        annotation["id"] = number + 1
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / f"{name}.json").write_text(json.dumps(content), "utf-8")
    return folder / f"{name}.json"


def _annotation(number, category, rows, columns, classes):
    x0, y0 = int(columns.min()), int(rows.min())
    x1, y1 = int(columns.max()) + 1, int(rows.max()) + 1
    if category == 1:
        shape = [[x0, y0, x1, y0, x1, y1, x0, y1]]
    else:
        shape = {"size": list(classes.shape), "counts": run_lengths(classes == category)}
    return {
        "image_id": number,
        "category_id": category,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": len(rows),
        "iscrowd": 0,
        "segmentation": shape,
    }


def run_lengths(mask):
    """COCO's uncompressed counts: column by column, the outside first."""
    flat = np.concatenate([[False], mask.T.ravel()])
    edges = np.flatnonzero(np.diff(flat))
    return np.diff(np.concatenate([[0], edges, [flat.size - 1]])).tolist()


def segformer(labels=3, **changes):
    torch.manual_seed(0)
    config = SegformerConfig(
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
        num_labels=labels,
        classifier_dropout_prob=0.0,
        drop_path_rate=0.0,
        **changes,
    )
    return SegformerForSemanticSegmentation(config)


def mask2former(labels=2):
    torch.manual_seed(0)
    backbone = SwinConfig(
        image_size=SIDE,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone.to_dict(),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        dim_feedforward=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=6,
        train_num_points=64,
        num_labels=labels,
    )
    return Mask2FormerForUniversalSegmentation(config)


def saved(folder, model, processor):
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def segformer_source(folder):
    size = {"height": SIDE, "width": SIDE}
    return saved(folder, segformer(), SegformerImageProcessor(size=size))


def mask2former_source(folder):
    size = {"shortest_edge": SIDE, "longest_edge": 2 * SIDE}
    return saved(folder, mask2former(), Mask2FormerImageProcessor(size=size))


def upernet_source(folder):
    """The ``model`` block of UperNet around a random ResNet with batch norm."""
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet").state_dict(), folder / "source.pth")
    outer = {"model_type": "upernet", "hidden_size": 8, "use_auxiliary_head": False}
    return {"name": "./source.pth", "architecture": "test_resnet", "backbone_of": outer}


def recipe(folder, task, data, model, **changes):
    """A recipe of two epochs that names them."""
    blocks = {
        "task": {"type": "image-segmentation", **task},
        "data": data,
        "model": model,
        "training": {"output_dir": str(folder / "out"), "num_train_epochs": 2, "use_cpu": True,
                     "learning_rate": 1e-3, "per_device_train_batch_size": 4,
                     "per_device_eval_batch_size": 4, "disable_tqdm": True},
    }  # fmt: skip
    for key, value in changes.items():
        blocks[key] = {**blocks.get(key, {}), **value}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(blocks), "utf-8")
    return path
