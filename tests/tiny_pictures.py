"""Pictures of coloured squares, what is in them, and recipes that learn it."""

import timm
import torch
import yaml
from PIL import Image
from tiny import PIXELS
from tiny_run import write_csv
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from hf_sft.recipe import Recipe

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (40, 40, 230)}
SMALL = {"channels": [8, 8, 16, 16], "stem_width": 8}
FLAGS = {"type": "image-classification", "problem": "multi-label", "label": list(COLOURS)}
WORDS = {"type": "image-classification", "problem": "multi-label", "label_separator": "|"}
AMOUNT = {"type": "image-classification", "problem": "regression", "label": "amount"}
ONE = {"type": "image-classification"}
PROBLEMS = {"flags": FLAGS, "words": WORDS, "number": AMOUNT, "one": ONE}


def squares(path, present, place=0):
    """A picture with a square of each colour that is present."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (PIXELS, PIXELS), (120, 120, 120))
    for number, name in enumerate(COLOURS):
        if name in present:
            image.paste(COLOURS[name], (10 * number, place, 10 * number + 9, place + 9))
    image.save(path)


def rows_of(folder, count, split="train"):
    """``count`` pictures below ``folder``, and a row for each: file, flags, words, number, one."""
    rows = []
    for i in range(count):
        present = [name for bit, name in enumerate(COLOURS) if (i % 8) >> bit & 1]
        file = f"pictures/{split}-{i}.png"
        squares(folder / file, present, place=i % 20)
        flags = [int(name in present) for name in COLOURS]
        words, one = "|".join(present), "many" if len(present) > 1 else "few"
        rows.append([file, *flags, words, 10.0 * len(present), one])
    return rows


HEADER = ("image", *COLOURS, "labels", "amount", "one")


def sources(folder, kind):
    """The ``model`` block of a random source: a timm weight file, or a folder of Transformers."""
    torch.manual_seed(0)
    if kind == "timm":
        model = timm.create_model("resnet10t", num_classes=7, **SMALL)
        torch.save(model.state_dict(), folder / "source.pth")
        return {"name": "./source.pth", "architecture": "resnet10t", **SMALL}
    config = ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_labels=7,
                       intermediate_size=32, image_size=PIXELS, patch_size=8)  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder / "source")
    ViTImageProcessor(size={"height": PIXELS, "width": PIXELS}).save_pretrained(folder / "source")
    return {"name": "./source"}


def picture_recipe(folder, task, kind="timm", rows=24, **changes):
    """A recipe on train.csv and test.csv, whose names of files start where the csv lies."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for split, count in (("train", rows), ("test", 10)):
        table = rows_of(folder / "data", count, split)
        write_csv(folder / "data" / f"{split}.csv", table, HEADER)
    task = {"image_size": PIXELS, **task} if kind == "timm" else task
    if task.get("problem") == "multi-label" and "label" not in task:
        task = {**task, "label": "labels"}
    blocks = {
        "task": {"label": "one", **task},
        "data": {"type": "table", "train": "data/train.csv", "test": "data/test.csv"},
        "model": sources(folder, kind),
        "training": {"output_dir": str(folder / "out"), "max_steps": 4, "learning_rate": 0.01,
                     "use_cpu": True, "disable_tqdm": True},
    }  # fmt: skip
    for key, value in changes.items():
        known = blocks.get(key, {})
        blocks[key] = {**known, **value} if isinstance(value, dict) else value
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(blocks), "utf-8")
    return Recipe.load(path)
