"""What models made without training are worth, on the two quickstarts; one seed.

    python benchmarks/weight_space.py [text] [vision] [soup] [adapt] [--seed 0]

text, vision: the path from the source to the quickstart's run, measured on rows that the run left
out: WiSE-FT and LiNeS, for vision also with interpolated batch-norm statistics. soup: three text
runs that differ in the learning rate, and three that differ in the seed of head and order. adapt:
the vision run on test digits that were made grey and noisy, before and after adapting to them.
"""

import argparse
import contextlib
import csv
import io
import tempfile
from pathlib import Path

import datasets
import numpy as np
import transformers
from PIL import Image

from hf_sft import Recipe, run
from hf_sft.running import load_data
from hf_sft.saved import predict
from hf_sft.weights.adapt import adapt
from hf_sft.weights.blend import blend
from hf_sft.weights.soup import soup

TEXT, VISION = "recipes/quickstart_text.yaml", "recipes/quickstart.yaml"
QUIET = ["training.disable_tqdm=true", "training.save_strategy=no", "training.eval_strategy=no"]


def trained(recipe, folder, seed, *overrides):
    """The folder of a finished run."""
    seeded = [f"training.seed={seed}", f"data.split_seed={seed}"]
    place = [f"training.output_dir={folder}"]
    with contextlib.redirect_stdout(io.StringIO()):
        run(Recipe.load(recipe, [*QUIET, *place, *seeded, *overrides]))
    return folder


def text(folder, seed):
    start = trained(TEXT, folder / "run", seed)
    for method in ("wise-ft", "lines"):
        print(f"\n{method}\n{blend(start, folder / method, method)}", flush=True)


def vision(folder, seed):
    start = trained(VISION, folder / "run", seed)
    for method, statistics in (
        ("wise-ft", "measured"),
        ("wise-ft", "interpolated"),
        ("lines", "measured"),
    ):
        output = folder / f"{method}-{statistics}"
        found = blend(start, output, method, statistics=statistics)
        print(f"\n{method}, statistics {statistics}\n{found}", flush=True)


def soups(folder, seed):
    rates = {f"rate {rate:g}": f"training.learning_rate={rate}" for rate in (1.5e-4, 3e-4, 6e-4)}
    seeds = {f"seed {seed + n}": f"training.seed={seed + n}" for n in range(3)}
    for name, overrides in (("learning rates", rates), ("seeds", seeds)):
        runs = [trained(TEXT, folder / key, seed, value) for key, value in overrides.items()]
        for method in ("uniform", "greedy"):
            found = soup(runs, folder / f"{name} {method}", method)
            print(f"\nthree {name}\n{found}", flush=True)


def grey_and_noisy(folder, seed):
    """The test digits with their contrast cut to 0.35 and noise added, named by their class."""
    overrides = [f"data.split_seed={seed}"]
    rows = load_data(Recipe.load(VISION, overrides))["test"]
    noise = np.random.default_rng(seed)
    folder.mkdir()
    for number, row in enumerate(rows):
        pixels = np.asarray(row["image"].convert("L"), dtype=float)
        pixels = 90 + 0.35 * pixels + noise.normal(0, 12, pixels.shape)
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        image.save(folder / f"{row['label']}_{number}.png")
    return folder


def accuracy(model, inputs, table):
    """Share of the images whose predicted label is the one in their name."""
    predict(model, inputs, table, 50)
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    return sum(Path(row["image"]).name.split("_")[0] == row["label"] for row in rows) / len(rows)


def adapted(folder, seed):
    start = trained(VISION, folder / "run", seed)
    inputs = grey_and_noisy(folder / "inputs", seed)
    print(f"\nas it is: accuracy {accuracy(start, inputs, folder / 'before.csv'):.4f}")
    for method in ("statistics", "tent"):
        print(f"\n{adapt(start, inputs, folder / method, method, 50)}")
        found = accuracy(folder / method, inputs, folder / f"{method}.csv")
        print(f"{method}: accuracy {found:.4f}", flush=True)


PARTS = {"text": text, "vision": vision, "soup": soups, "adapt": adapted}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("which", nargs="*", default=[])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    for which in arguments.which or PARTS:
        print(f"\n== {which}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            PARTS[which](Path(folder), arguments.seed)


if __name__ == "__main__":
    main()
