"""What preparing an image costs beside training on it, in CPU time of one thread.

    HF_SFT_DATA=... python benchmarks/decoding.py

BCCD's photos (640 × 480, JPEG) into EfficientNet-Lite0 at 224 pixels, batches of 16.
"""

import time
from collections.abc import Callable
from pathlib import Path

import torch

from hf_sft.models import load_model
from hf_sft.recipe import Recipe
from hf_sft.running import load_data
from hf_sft.tasks.augmentation import alone

RECIPE = Path(__file__).parent.parent / "recipes/image-classification/bccd_presence_lite0_l2sp.yaml"
IMAGES, BATCH = 96, 16


def main() -> None:
    torch.set_num_threads(1)
    recipe = Recipe.load(RECIPE)
    data = load_data(recipe)
    loaded = load_model(recipe.model, recipe.task, recipe.task.names(data), recipe.locate)
    rows, model = data["train"], loaded.model
    images = told("decode", lambda i: rows[i]["image"].convert("RGB"))
    basic, strong = alone("basic"), alone("strong")
    told("augment: basic", lambda i: basic(images[i]))
    told("augment: strong", lambda i: strong(images[i]))
    pixels = told("image processor", lambda i: loaded.processor([images[i]], return_tensors="pt"))
    batches = [
        torch.cat([one["pixel_values"] for one in pixels[start : start + BATCH]])
        for start in range(0, IMAGES, BATCH)
    ]
    labels = torch.ones(BATCH, 3)
    model.train()
    step = lambda i: model(pixel_values=batches[i], labels=labels).loss.backward()  # noqa: E731
    told("forward and backward", step, len(batches))


def told(what: str, work: Callable, times: int = IMAGES) -> list:
    """``work`` for 0, 1, …, its milliseconds per image printed; what it gave."""
    work(0)  # imports, caches
    start = time.process_time()
    found = [work(i) for i in range(times)]
    print(f"{what:22s} {1000 * (time.process_time() - start) / IMAGES:6.1f} ms")
    return found


if __name__ == "__main__":
    main()
