"""Does ImageNet help a segmenter? The digit scenes with the pretrained and with a random backbone.

    python benchmarks/segmentation_scenes.py [--seeds 3] [pretrained] [no-pull] [random]

The recipe is recipes/image-segmentation/digit_scenes_lite0_upernet.yaml; scenes are rendered anew
for every seed, which also decides the head and the order of the data, the same for all arms: the
differences are paired. ``no-pull``: the same start without L2-SP. ``random``: the backbone is drawn
by timm as for training from nothing, there is no pull to it, and all of it learns at the rate that
the recipe has for the head.
"""

import argparse
import contextlib
import io
import json
import statistics
import tempfile
from pathlib import Path

import make_digit_scenes
import timm
import torch

from hf_sft import Recipe, run

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "recipes" / "image-segmentation" / "digit_scenes_lite0_upernet.yaml"
QUIET = ["training.disable_tqdm=true", "training.save_strategy=no"]
METRICS = ("mean_iou", "pixel_accuracy")


def overrides(arm: str, folder: Path, seed: int) -> list[str]:
    """What an arm changes in the recipe."""
    if arm == "pretrained":
        return []
    if arm == "no-pull":
        return ["penalty=null"]
    torch.manual_seed(seed)
    path = folder / f"random{seed}.pth"
    torch.save(timm.create_model("tf_efficientnet_lite0").state_dict(), path)
    rates = ["learning_rates=null", "training.learning_rate=4e-3"]
    model = [f"model.name={path}", "model.sha256=null", "model.keys=by-name"]
    return ["penalty=null", *rates, *model]


def one(arm: str, folder: Path, seed: int) -> dict:
    """Test metrics and seconds of training."""
    place = [f"data.path={folder / 'scenes'}", f"training.output_dir={folder / arm}"]
    changes = [*QUIET, *place, f"training.seed={seed}", *overrides(arm, folder, seed)]
    with contextlib.redirect_stdout(io.StringIO()):
        data = run(Recipe.load(RECIPE, changes)).data
    found = {key: data["metrics"]["test"][key] for key in METRICS}
    return {**found, "seconds": data["timing"]["train_seconds"]}


def summary(values: list[float]) -> str:
    """mean ± standard deviation"""
    spread = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.3f} ± {spread:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("arms", nargs="*", default=["pretrained", "no-pull", "random"])
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    found: dict[str, list[dict]] = {arm: [] for arm in given.arms}
    for seed in range(given.seeds):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            make_digit_scenes.main([str(folder / "scenes"), "--seed", str(seed)])
            for arm in given.arms:
                found[arm].append(one(arm, folder, seed))
                print(json.dumps({"arm": arm, "seed": seed, **found[arm][-1]}), flush=True)
    for arm, rows in found.items():
        told = [f"{key} {summary([row[key] for row in rows])}" for key in (*METRICS, "seconds")]
        print(f"{arm}: {', '.join(told)}")


if __name__ == "__main__":
    main()
