"""Blood cells cut out of BCCD's photos: a pretrained source with and without a pull, or none.

    HF_SFT_DATA=FOLDER python benchmarks/crops_bccd.py [--seeds 3] [--arms "l2-sp" …]

FOLDER holds bccd_part (VOC: Annotations, JPEGImages, train.txt, test.txt). Arms differ from the
recipe in the overrides named below and in nothing else. A seed decides which crops of each class
are trained on, the new head and the order of the data, the same for all arms: differences are
paired. The test part is the data's own and the same for all seeds. Target: macro F1, for 85 % of
the test crops are red cells. Kept: the source's function on test crops (KL).
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

RECIPE = "recipes/image-classification/bccd_crops_lite0_l2sp.yaml"
QUIET = ["training.disable_tqdm=true", "training.save_strategy=no", "training.eval_strategy=no"]
ARMS = {
    "l2-sp": [],
    "no penalty": ["penalty=null"],
    "no penalty, lr / 4": ["penalty=null", "training.learning_rate=RATE/4"],
    "linear probe": [
        *("penalty=null", "freeze={type: linear-probe}", "learning_rates=null"),
        "training.learning_rate=1e-2",
    ],
    "random start": ["penalty=null", "freeze=null", "learning_rates=null", "model=RANDOM"],
    "random start, 4 × epochs": [
        *("penalty=null", "freeze=null", "learning_rates=null", "model=RANDOM"),
        "training.num_train_epochs=EPOCHS*4",
    ],
}


def random_weights(folder, architecture, seed):
    """A file of weights as timm draws them, and the model block's overrides that name it."""
    torch.manual_seed(seed)
    file = Path(folder) / "random.pth"
    torch.save(timm.create_model(architecture).state_dict(), file)
    return [f"model.name={file}", "model.keys=by-name", "model.sha256=null"]


def overrides(arm, folder, seed):
    """The arm's, with numbers in place of RATE and EPOCHS and a file in place of RANDOM."""
    recipe = Recipe.load(RECIPE)
    rate, epochs = recipe.training["learning_rate"], recipe.training["num_train_epochs"]
    found = []
    for override in ARMS[arm]:
        if override == "model=RANDOM":
            found += random_weights(folder, recipe.model.architecture, seed)
        else:
            override = override.replace("RATE/4", str(rate / 4))
            found.append(override.replace("EPOCHS*4", str(epochs * 4)))
    return found


def one(arm, seed):
    """Numbers of one run, which leaves nothing behind."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        seeded = [f"training.seed={seed}", f"data.split_seed={seed}"]
        place = [f"training.output_dir={folder}/run"]
        given = [*QUIET, *place, *seeded, *overrides(arm, folder, seed)]
        data = run(Recipe.load(RECIPE, given)).data
    scores = data["metrics"]["test"]
    names = ("macro_f1", "balanced_accuracy", "accuracy", "calibration_error")
    found = {name: scores[name] for name in names}
    own = "model=RANDOM" not in ARMS[arm]  # nothing is kept of what was drawn
    found["kl"] = data["retention"].get("kl") if own else None
    return found | {"seconds": data["timing"]["train_seconds"]}


def summary(values):
    """mean ± standard deviation"""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {spread:.3f}"


def paired(values, base):
    """mean difference ± standard error, over seeds"""
    differences = [a - b for a, b in zip(values, base, strict=True)]
    if len(differences) < 2:
        return f"{differences[0]:+.3f}"
    error = statistics.stdev(differences) / len(differences) ** 0.5
    return f"{statistics.mean(differences):+.3f} ± {error:.3f}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=list(ARMS))
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    found = {arm: [] for arm in arguments.arms}
    for seed in range(arguments.seeds):
        for arm in found:
            found[arm].append(one(arm, seed))
            print(json.dumps({"arm": arm, "seed": seed, **found[arm][-1]}), flush=True)
    base = [values["macro_f1"] for values in found.get("no penalty", [])]
    for arm, values in found.items():
        columns = {name: [row[name] for row in values] for name in values[0]}
        print(f"{arm:25s}", end="")
        for name in ("macro_f1", "balanced_accuracy", "accuracy", "calibration_error", "kl"):
            if None not in columns[name]:
                print(f"  {name} {summary(columns[name])}", end="")
        if base:
            print(f"  Δmacro_f1 {paired(columns['macro_f1'], base)}", end="")
        print(f"  {statistics.median(columns['seconds']):.0f} s", flush=True)


if __name__ == "__main__":
    main()
