"""A finished run on images with a source that keeps batch statistics."""

import timm
import torch
import yaml
from PIL import Image

from hf_sft.cli import main

SMALL = {"channels": [8, 8, 16, 16], "stem_width": 8}


def image_recipe(folder, **changes):
    """48 images of two kinds, a random ResNet's weight file, and the recipe that names them."""
    torch.manual_seed(0)
    if not (folder / "source.pth").exists():
        model = timm.create_model("resnet10t", num_classes=7, **SMALL)
        torch.save(model.state_dict(), folder / "source.pth")
        for split, count in (("train", 16), ("test", 8)):
            images(folder / "images" / split, count)
    blocks = {
        "task": {"type": "image-classification", "image_size": 32},
        "data": {"type": "image-folder", "path": "images", "per_class": 8},
        "model": {"name": "./source.pth", "architecture": "resnet10t", **SMALL},
        "training": {"output_dir": str(folder / "out"), "max_steps": 6, "learning_rate": 0.01,
                     "use_cpu": True, "disable_tqdm": True},
    }  # fmt: skip
    for key, value in changes.items():
        blocks[key] = {**blocks.get(key, {}), **value}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(blocks), "utf-8")
    return path


def images(folder, count, shade=0):
    """Dark and light noise, ``count`` of each, as class folders."""
    for label, level in (("dark", 70), ("light", 170)):
        (folder / label).mkdir(parents=True)
        for number in range(count):
            pixels = (level + shade + 40 * torch.randn(32, 32, 3)).clamp(0, 255).byte().numpy()
            Image.fromarray(pixels).save(folder / label / f"{number}.png")


def image_run(folder, **changes):
    assert main(["run", str(image_recipe(folder, **changes))]) == 0
    return folder / "out"
