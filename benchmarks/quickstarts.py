"""Both quickstarts with and without L2-SP, beside a lower learning rate, over seeds.

    python benchmarks/quickstarts.py [--seeds 5] [vision] [text]

Arms differ from the recipe in the overrides named below and in nothing else. A seed decides the
few-shot subset, the test part, the new head and the order of the data, the same for all arms:
differences are paired. Target: test accuracy. Retention: the source's function on test inputs (the
source's own head for Lite0, the rank correlation of pairwise similarities for MiniLM).
"""

import argparse
import contextlib
import io
import json
import statistics
import tempfile

import datasets
import transformers

from hf_sft import Recipe, run

RECIPES = {"vision": "recipes/quickstart.yaml", "text": "recipes/quickstart_text.yaml"}
QUIET = ["training.disable_tqdm=true", "training.save_strategy=no", "training.eval_strategy=no"]


def arms(recipe):
    """Name -> overrides: the recipe, no penalty, no penalty at a quarter of the learning rate."""
    rate = Recipe.load(recipe).training["learning_rate"]
    return {
        "l2-sp": [],
        "no penalty": ["penalty=null"],
        "no penalty, lr / 4": ["penalty=null", f"training.learning_rate={rate / 4}"],
    }


def one(recipe, overrides, seed):
    """(test accuracy, retention, seconds of training) of one run, which leaves nothing behind."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        seeded = [f"training.seed={seed}", f"data.split_seed={seed}"]
        place = [f"training.output_dir={folder}/run"]
        data = run(Recipe.load(recipe, [*QUIET, *place, *seeded, *overrides])).data
    kept = data["retention"]
    retention = kept.get("top1_agreement", kept.get("spearman"))
    accuracy = data["metrics"]["test"]["accuracy"]
    return accuracy, retention, kept.get("kl"), data["timing"]["train_seconds"]


def summary(values):
    """mean ± standard deviation"""
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def paired(values, base):
    """mean difference ± standard error, over seeds"""
    differences = [a - b for a, b in zip(values, base, strict=True)]
    error = statistics.stdev(differences) / len(differences) ** 0.5
    return f"{statistics.mean(differences):+.3f} ± {error:.3f}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("which", nargs="*", default=[])
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    for which in arguments.which or RECIPES:
        found = {name: [] for name in arms(RECIPES[which])}
        for seed in range(arguments.seeds):
            for name, overrides in arms(RECIPES[which]).items():
                found[name].append(one(RECIPES[which], overrides, seed))
                print(json.dumps([which, name, seed, *found[name][-1]]), flush=True)
        base = found["no penalty"]
        for name, values in found.items():
            columns = [list(column) for column in zip(*values, strict=True)]
            print(f"{which:7s} {name:20s} accuracy {summary(columns[0])}", end="")
            print(f"  retention {summary(columns[1])}", end="")
            print(f"  kl {summary(columns[2])}" if columns[2][0] is not None else "", end="")
            print(f"  Δaccuracy {paired(columns[0], [v[0] for v in base])}", end="")
            print(f"  Δretention {paired(columns[1], [v[1] for v in base])}", end="")
            print(f"  {statistics.median(columns[3]):.0f} s", flush=True)


if __name__ == "__main__":
    main()
