"""Blood cells found in BCCD's photos: an ImageNet backbone that trains, one that does not, or none.

    HF_SFT_DATA=FOLDER python benchmarks/detection_bccd.py [--seeds 3] [--arms "pretrained" …]

FOLDER holds bccd_part (VOC: Annotations, JPEGImages, train.txt, test.txt). Arms differ from the
recipe in the overrides named below and in nothing else: 110 images, the same number of steps and
rates, and for one seed the same order and the same new layers. The test part is the data's own.
--keep DIR leaves the runs there, with their report pages.
"""

import argparse
import contextlib
import io
import json
import statistics
import tempfile
from pathlib import Path

import datasets
import timm
import torch
import transformers

from hf_sft import Recipe, run

RECIPE = "recipes/object-detection/bccd_lite0_rtdetr.yaml"
QUIET = ["training.disable_tqdm=true", "training.save_strategy=no", "training.eval_strategy=no"]
ARMS = {
    "pretrained": [],
    "pretrained, frozen": ["freeze={type: linear-probe}"],
    "random start": ["model=RANDOM"],
}
NAMES = ("map", "map_50", "map_75", "mar_100")


def random_weights(folder, architecture, seed):
    """A file of weights as timm draws them, and the model block's overrides that name it."""
    torch.manual_seed(seed)
    file = Path(folder) / "random.pth"
    torch.save(timm.create_model(architecture).state_dict(), file)
    return [f"model.name={file}", "model.keys=by-name", "model.sha256=null"]


def one(arm, seed, epochs, kept):
    """Numbers of one run, which leaves nothing behind but for ``kept``."""
    recipe = Recipe.load(RECIPE)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        place = Path(kept or folder) / f"{arm.replace(', ', '_').replace(' ', '_')}_{seed}"
        given = [*QUIET, f"training.output_dir={place}", f"training.seed={seed}"]
        given += [f"training.num_train_epochs={epochs}"] if epochs else []
        for override in ARMS[arm]:
            whole = override == "model=RANDOM"
            given += (
                random_weights(folder, recipe.model.architecture, seed) if whole else [override]
            )
        data = run(Recipe.load(RECIPE, given), overwrite=True).data
    scores, classes = data["metrics"]["test"], data["tables"]["test"]["classes"]
    found = {name: scores[name] for name in NAMES}
    found |= {f"AP50 {row['class']}": row["AP50"] for row in classes}
    return found | {"seconds": data["timing"]["train_seconds"]}


def summary(values):
    """mean ± standard deviation"""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {spread:.3f}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="in place of the recipe's")
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=list(ARMS))
    parser.add_argument("--keep", type=Path)
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    found = {arm: [] for arm in arguments.arms}
    for seed in range(arguments.seeds):
        for arm in found:
            found[arm].append(one(arm, seed, arguments.epochs, arguments.keep))
            print(json.dumps({"arm": arm, "seed": seed, **found[arm][-1]}), flush=True)
    for arm, values in found.items():
        columns = {name: [row[name] for row in values] for name in values[0]}
        print(f"{arm:20s}", end="")
        for name, column in columns.items():
            if name != "seconds":
                print(f"  {name} {summary(column)}", end="")
        print(f"  {statistics.median(columns['seconds']):.0f} s", flush=True)


if __name__ == "__main__":
    main()
