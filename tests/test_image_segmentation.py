"""image-segmentation through whole runs: three families of models, three methods, predictions."""

import csv
import json

import datasets
import numpy as np
import pytest
import tiny_masks
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_masks import NAMES, SIDE, coco_file, mask_folder, scene
from transformers import (
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    SegformerImageProcessor,
    pipeline,
)

from hf_sft import run
from hf_sft.cli import main
from hf_sft.errors import RecipeError, SourceError
from hf_sft.loaders import MaskFolder
from hf_sft.recipe import Recipe
from hf_sft.resources import locator
from hf_sft.tasks import ImageSegmentation

METHODS = {
    "l2-sp": {"penalty": {"type": "l2-sp", "lambda": 0.01}},
    "lp-ft": {"freeze": {"type": "lp-ft"}},
    "train-last": {"freeze": {"type": "train-last", "count": 1}},
}


@pytest.fixture(autouse=True)
def quiet():
    datasets.disable_progress_bars()


def segformer_recipe(folder, **changes):
    mask_folder(folder / "d", 4, 2)
    tiny_masks.segformer_source(folder / "source")
    return tiny_masks.recipe(folder, {}, *sources(), **changes)


def upernet_recipe(folder, **changes):
    mask_folder(folder / "d", 4, 2)
    model = tiny_masks.upernet_source(folder)
    return tiny_masks.recipe(folder, {"image_size": SIDE}, sources()[0], model, **changes)


def mask2former_recipe(folder, **changes):
    coco_file(folder, "train", 4)
    coco_file(folder, "test", 2, 100)
    tiny_masks.mask2former_source(folder / "source")
    data = {"type": "coco", "train": "train.json", "test": "test.json"}
    task = {"problem": "instance", "threshold": 0.1}
    return tiny_masks.recipe(folder, task, data, sources()[1], **changes)


def sources():
    return {"type": "mask-folder", "path": "d"}, {"name": "./source"}


FAMILIES = {
    "segformer": (segformer_recipe, "mean_iou"),
    "upernet": (upernet_recipe, "mean_iou"),
    "mask2former": (mask2former_recipe, "map"),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_methods_train_every_family(tmp_path, family, method):
    write, metric = FAMILIES[family]
    few = {"training": {"max_steps": 3, "save_strategy": "no"}}
    report = run(Recipe.load(write(tmp_path, **METHODS[method], **few)))
    found = report.data
    assert 0 <= found["metrics"]["test"][metric] <= 1
    assert found["freeze"]["verified_unchanged"]
    frozen = [g for g in found["groups"] if not g["trainable"] and g["parameters"]]
    assert bool(frozen) == (method == "train-last")
    assert all(group["drift"] == 0 for group in frozen)
    if method == "l2-sp":
        assert found["penalty"]["value"] > 0
    assert found["retention"]["examples"] == 2
    assert found["pictures"]["test"]
    assert "<h2>Classes, test</h2>" in (tmp_path / "out" / "report.html").read_text("utf-8")


def test_batch_norm_of_a_frozen_backbone_keeps_its_statistics(tmp_path):
    freeze = {"type": "linear-probe"}
    run(Recipe.load(upernet_recipe(tmp_path, freeze=freeze, training={"max_steps": 2})))
    before = torch.load(tmp_path / "source.pth", weights_only=True)
    after = load_file(tmp_path / "out" / "model" / "model.safetensors")
    statistics = {n for n in after if n.startswith("backbone.") and n.endswith("running_mean")}
    assert len(statistics) > 5
    for name in statistics:
        own = name.removeprefix("backbone.").removeprefix("_backbone.")
        own = next(n for n in before if n.replace(".", "_").endswith(own.replace(".", "_")))
        assert torch.equal(after[name], before[own]), name


@pytest.fixture(scope="module")
def semantic(tmp_path_factory):
    folder = tmp_path_factory.mktemp("semantic")
    path = segformer_recipe(folder, training={"learning_rate": 0.01, "num_train_epochs": 20})
    return folder, run(Recipe.load(path))


def test_evaluate_gives_the_run_s_numbers(semantic, capsys):
    folder, report = semantic
    assert main(["evaluate", str(folder / "out")]) == 0
    shown = capsys.readouterr().out
    assert all(f"{value:.4f}" in shown for value in report.data["metrics"]["test"].values())


def test_predictions_are_those_of_the_pipeline(semantic):
    folder, _ = semantic
    output, given = folder / "found", folder / "d" / "test" / "images"
    assert main(["predict", str(folder / "out"), str(given), "--output", str(output)]) == 0
    with (output / "predictions.csv").open(encoding="utf-8") as file:
        records = list(csv.DictReader(file))
    segment = pipeline("image-segmentation", model=str(folder / "out" / "model"))
    assert (output / "classes.txt").read_text("utf-8").split() == NAMES
    for record in records:
        stem = record["image"].rsplit("/", 1)[1][:-4]
        mask = np.asarray(Image.open(output / "masks" / f"{stem}.png"))
        found = {one["label"]: np.asarray(one["mask"]) > 0 for one in segment(record["image"])}
        for number, name in enumerate(NAMES):
            expected = found.get(name, np.zeros_like(mask, dtype=bool))
            assert (mask == number).sum() == int(record[f"pixels({name})"])
            assert ((mask == number) == expected).mean() > 0.999
        assert (output / "overlays" / f"{stem}.jpg").exists()


def test_the_saved_model_gives_the_metrics_that_were_reported(semantic):
    """Counted by hand from predicted masks at the images' own sizes."""
    folder, report = semantic
    output = folder / "again"
    given = folder / "d" / "test" / "images"
    assert main(["predict", str(folder / "out"), str(given), "--output", str(output)]) == 0
    right = total = 0
    for number in range(2):
        truth = scene(100 + number, 48 + 2 * number, 40 + number)[1]
        mask = np.asarray(Image.open(output / "masks" / f"{number}.png"))
        right, total = right + (mask == truth).sum(), total + truth.size
    assert report.data["metrics"]["test"]["pixel_accuracy"] == pytest.approx(right / total)


@pytest.fixture(scope="module")
def instances(tmp_path_factory):
    folder = tmp_path_factory.mktemp("instances")
    return folder, run(Recipe.load(mask2former_recipe(folder, training={"max_steps": 2})))


def test_evaluate_gives_the_loss_that_was_drawn(instances, capsys):
    """Mask2Former's loss looks at drawn points, the same ones at every evaluation."""
    folder, report = instances
    found = report.data["metrics"]["test"]
    for _ in range(2):
        assert main(["evaluate", str(folder / "out")]) == 0
        shown = capsys.readouterr().out
        assert all(f"{found[key]:.4f}" in shown for key in ("loss", "map", "map_50"))


def test_objects_are_those_of_the_pipeline(instances):
    from pycocotools import mask as coco

    folder, _ = instances
    output, given = folder / "found", folder / "test0.png"
    assert main(["predict", str(folder / "out"), str(given), "--output", str(output)]) == 0
    results = json.loads((output / "results.json").read_text("utf-8"))
    segment = pipeline("image-segmentation", model=str(folder / "out" / "model"))
    found = segment(str(given), subtask="instance", threshold=0.1)
    assert results
    assert sorted(one["score"] for one in found) == pytest.approx(
        sorted(one["score"] for one in results), abs=1e-5
    )
    union = np.zeros(Image.open(given).size[::-1], dtype=bool)
    for one in results:
        union |= coco.decode(one["segmentation"]).astype(bool)
    expected = np.any([np.asarray(one["mask"]) > 0 for one in found], axis=0)
    assert (union == expected).mean() > 0.999
    assert {one["category"] for one in results} <= {"dark", "light"}


@pytest.mark.parametrize("finished", ["semantic", "instances"])
def test_the_card_loads_the_model_and_its_pipeline(finished, request, monkeypatch):
    """The lines of the card, run as they stand in the folder of the run."""
    folder = request.getfixturevalue(finished)[0] / "out"
    monkeypatch.chdir(folder)
    Image.new("RGB", (48, 40)).save("photo.jpg")
    names = {}
    card = (folder / "README.md").read_text("utf-8")
    exec(card.partition("```python")[2].partition("```")[0], names)
    saved = json.loads((folder / "model/config.json").read_text("utf-8"))
    assert [type(names["model"]).__name__] == saved["architectures"]
    assert type(names["predict"].model) is type(names["model"])


def test_the_auto_class_follows_the_model():
    task, config = ImageSegmentation(), tiny_masks.segformer().config
    assert task.auto_model(config) is AutoModelForSemanticSegmentation
    assert task.auto_model(tiny_masks.mask2former().config) is AutoModelForUniversalSegmentation
    with pytest.raises(SourceError, match="segformer gives no mask per object"):
        ImageSegmentation(problem="instance").auto_model(config)


def encoded(folder, model=None, **keys):
    mask_folder(folder / "d", 3, 1)
    task = ImageSegmentation(**keys)
    rows = task.check(MaskFolder(path="d").load(locator(folder)))["train"]
    model = model or tiny_masks.segformer()
    processor = SegformerImageProcessor(size={"height": SIDE, "width": SIDE})
    return task, rows, processor, task.encode(rows, processor, model.config)


def test_labels_are_those_of_the_processor(tmp_path):
    _, rows, processor, found = encoded(tmp_path)
    for row, inputs in zip(rows, found, strict=True):
        own = processor(row["image"], segmentation_maps=row["mask"], return_tensors="pt")
        assert torch.equal(inputs["labels"], own["labels"][0])
        assert torch.equal(inputs["pixel_values"], own["pixel_values"][0])


def test_ignored_pixels_are_the_models_own_ignored_label(tmp_path):
    model = tiny_masks.segformer(semantic_loss_ignore_index=7)
    _, _, _, found = encoded(tmp_path, model, ignore_index=0, classes=3)
    assert set(found[0]["labels"].unique().tolist()) == {1, 2, 7}


def test_masks_move_with_their_images(tmp_path):
    """Dark pixels stay labelled dark, whatever was drawn; and the draw is the row's own."""
    task, _, processor, found = encoded(tmp_path, augment="basic")
    drawn = task.for_training(found, processor)
    for epoch in range(4):
        drawn.draws.begin(3, epoch)
        for number in range(3):
            row = drawn[number]
            level, labels = row["pixel_values"].mean(0), row["labels"]
            expected = torch.bucketize(level, torch.tensor([-0.9, 1.2]))
            said = torch.tensor([1, 0, 2])[expected]
            assert (said == labels).float().mean() > 0.9
            assert torch.equal(drawn[number]["labels"], labels)
            assert "truth" not in row
    first = drawn[0]["pixel_values"]
    drawn.draws.begin(4, 0)
    assert not torch.equal(drawn[0]["pixel_values"], first)


def test_smoothing_and_unfit_models_are_refused(tmp_path):
    path = segformer_recipe(tmp_path, training={"label_smoothing_factor": 0.1})
    with pytest.raises(RecipeError, match="label_smoothing_factor"):
        run(Recipe.load(path))
    assert not (tmp_path / "out").exists()


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    task = {"augment": "strong"}
    whole = run(Recipe.load(_augmented(tmp_path / "a", task)))
    stopped = Recipe.load(_augmented(tmp_path / "b", task))
    with pytest.raises(KeyboardInterrupt):
        _stop_after_first_epoch(stopped)
    again = run(Recipe.load(tmp_path / "b" / "recipe.yaml"))
    one, two = (load_file(tmp_path / f / "out" / "model" / "model.safetensors") for f in "ab")
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    assert whole.data["metrics"]["test"] == again.data["metrics"]["test"]


def _augmented(folder, task):
    mask_folder(folder / "d", 4, 2)
    tiny_masks.segformer_source(folder / "source")
    return tiny_masks.recipe(folder, task, *sources())


def _stop_after_first_epoch(recipe):
    from transformers import TrainerCallback

    from hf_sft.training.trainer import TransferTrainer

    class Stop(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    original = TransferTrainer.__init__

    def init(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.add_callback(Stop())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransferTrainer, "__init__", init)
        run(recipe)
