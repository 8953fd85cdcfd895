"""The shipped detection recipes: their loading code on rows of the published schema."""

import json
from pathlib import Path

import pytest
import tiny_boxes
import tiny_detection
from datasets import ClassLabel, Dataset, Features, Image, List, Value

from hf_sft.recipe import Recipe
from hf_sft.running import load_data, run

RECIPES = Path(__file__).parent.parent / "recipes" / "object-detection"
CPPE5 = Features({
    "image_id": Value("int64"), "image": Image(), "width": Value("int32"), "height": Value("int32"),
    "objects": {
        "id": List(Value("int64")), "area": List(Value("int64")),
        "bbox": List(List(Value("float32"), length=4)),
        "category": List(ClassLabel(
            names=["Coverall", "Face_Shield", "Gloves", "Goggles", "Mask"])),
    },
})  # fmt: skip

COCO = Features({
    "image_id": Value("int64"), "image": Image(), "width": Value("int64"), "height": Value("int64"),
    "objects": {
        "bbox_id": List(Value("int64")), "category": List(ClassLabel(names=["person", "bicycle"])),
        "bbox": List(List(Value("float64"), length=4)), "area": List(Value("float64")),
    },
})  # fmt: skip
TINY = ["training.num_train_epochs=1", "training.dataloader_num_workers=0", "training.use_cpu=true"]


def hub_folder(folder, boxes, splits, features, number):
    """Pictures inside parquet, as the Hub stores them; boxes: class and four numbers."""
    (folder / "hub/data").mkdir(parents=True)
    for split in splits:
        given = []
        for image, (stem, things) in enumerate(boxes.items()):
            tiny_boxes.draw(folder / f"{stem}.png", [])
            objects = {
                number: list(range(len(things))), "area": [9] * len(things),
                "bbox": [list(box) for _, *box in things], "category": [t[0] for t in things],
            }  # fmt: skip
            size = dict(zip(("width", "height"), tiny_boxes.SIZE, strict=True))
            file = str(folder / f"{stem}.png")
            given.append({"image_id": image, "image": file, **size, "objects": objects})
        path = folder / "hub/data" / f"{split}-00000-of-00001.parquet"
        Dataset.from_list(given, features).to_parquet(path)
    return folder / "hub"


def cppe5(folder):
    """One box reaches out, one has no height."""
    boxes = {"a": [(0, 4, 2, 10, 8), (4, 30, 10, 20, 9)], "b": [(2, 3, 3, 5, 0)], "c": []}
    return hub_folder(folder, boxes, ("train", "test"), CPPE5, "id")


def test_cppe5_runs_on_a_folder_like_that_of_the_hub(tmp_path):
    overrides = [
        f"data.path={cppe5(tmp_path)}", "task.image_size=[64, 96]",
        f"model.name={tiny_detection.source(tmp_path / 'source')}",
        f"training.output_dir={tmp_path / 'out'}", *TINY,
    ]  # fmt: skip
    recipe = Recipe.load(RECIPES / "cppe5_detr_l2sp.yaml", overrides)
    rows = load_data(recipe)["train"]
    assert rows[0]["objects"]["bbox"] == [[4, 2, 10, 8], [30, 10, 10, 9]]
    assert rows["objects"][1]["bbox"] == []
    run(recipe)
    report = json.loads((tmp_path / "out/report.json").read_text("utf-8"))
    assert report["labels"] == ["Coverall", "Face_Shield", "Gloves", "Goggles", "Mask"]
    assert report["metrics"]["test"]["map"] >= 0


def coco(folder):
    """Boxes by their corners."""
    boxes = {"a": [(0, 4.5, 2, 14.5, 10.25), (1, 30, 10, 40, 19)], "b": [(1, 2, 3, 7, 9)], "c": []}
    return hub_folder(folder, boxes, ("train", "val"), COCO, "bbox_id")


def test_coco_runs_on_a_folder_like_that_of_the_hub(tmp_path):
    """Its val split is the test here, and corners become x, y, width, height."""
    overrides = [
        f"data.path={coco(tmp_path)}", "task.image_size=[64, 96]",
        f"model.name={tiny_detection.source(tmp_path / 'source')}",
        f"training.output_dir={tmp_path / 'out'}", *TINY,
    ]  # fmt: skip
    recipe = Recipe.load(RECIPES / "coco_detr_l2sp.yaml", overrides)
    rows = load_data(recipe)["train"]
    assert rows["objects"][0]["bbox"] == [[4.5, 2, 10, 8.25], [30, 10, 10, 9]]
    report = run(recipe).data
    assert report["labels"] == ["person", "bicycle"]
    assert report["splits"] == {"train": 3, "test": 3}
    assert report["metrics"]["test"]["map"] >= 0


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_can_be_read(path):
    recipe = Recipe.load(path, opens=[])
    assert recipe.task.type == "object-detection"
