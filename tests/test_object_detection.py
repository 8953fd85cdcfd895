"""object-detection: what is refused, what the model is given, and what comes out."""

import csv
import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import tiny_boxes
import tiny_detection
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as Picture
from transformers import AutoImageProcessor, AutoModelForObjectDetection, Trainer, pipeline

from hf_sft import L2SP, TransferTrainer
from hf_sft.cli import main
from hf_sft.errors import DataError, RecipeError, SourceError
from hf_sft.recipe import Recipe
from hf_sft.running import run
from hf_sft.tasks import ObjectDetection
from hf_sft.tasks.detection_boxes import Mended, mended
from hf_sft.tasks.detection_inputs import Augment, Detectable, Padded, relative
from hf_sft.tasks.detection_matches import matched
from hf_sft.tasks.detection_metrics import StreamingBoxes, best

RED, BLUE = tiny_boxes.COLOURS.values()


def objects(*things, **more):
    """A row's objects as the Hub has them: (class, x, y, w, h) each."""
    return {"bbox": [list(box) for _, *box in things], "category": [n for n, *_ in things], **more}


def rows(folder, *things, category=None, **columns):
    """A split with one image of 40 × 24 for each list of things."""
    paths = []
    for number, some in enumerate(things):
        path = folder / f"{number}.png"
        tiny_boxes.draw(path, [t for t in some if t[0] in tiny_boxes.COLOURS])
        paths.append(str(path))
    kind = category or ClassLabel(names=["cat", "dog"])
    features = {
        "image": Image(),
        "objects": {"bbox": List(List(Value("float32"))), "category": List(kind)},
        **{key: Value("int64") for key in columns},
    }
    return Dataset.from_dict(
        {"image": paths, "objects": [objects(*some) for some in things], **columns},
        features=Features(features),
    )


def refused(task, data, *words):
    with pytest.raises(DataError) as told:
        task.check(DatasetDict(data))
    for word in words:
        assert word in str(told.value)
    return str(told.value)


# ---- boxes ----


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ([1, 2, 3], "not four numbers"),
        ([1, 2, float("nan"), 4], "no finite numbers"),
        ([1, 2, 0, 4], "has no area"),
        ([1, 2, -3, 4], "has no area"),
        ([30, 2, 15, 4], "reaches 5 pixels beyond the image of 40 × 24"),
        ([-2.5, 2, 15, 4], "reaches 2.5 pixels beyond"),
        ([20, 10, 38, 20], "As x0, y0, x1, y1 it would fit: then set task.box_format: xyxy"),
        ([50, 2, 5, 5], "reaches 15 pixels beyond"),
    ],
)
def test_a_bad_box_is_told(box, words):
    assert words in mended(box, (40, 24), corners=False, mend=False, changes=Mended())


def test_a_box_is_cut_at_the_edge():
    changes = Mended()
    assert mended([-0.5, 2, 10, 22.4], (40, 24), False, False, changes) == [0, 2, 9.5, 22]
    assert (changes.cut, changes.dropped) == (0, 0)  # a pixel is rounding
    assert mended([30, 2, 15, 4], (40, 24), False, True, changes) == [30, 2, 10, 4]
    assert mended([50, 2, 5, 5], (40, 24), False, True, changes) is None
    assert mended([5, 2, 0, 5], (40, 24), False, True, changes) is None
    assert (changes.cut, changes.dropped) == (2, 2)
    assert mended([4, 2, 14, 10], (40, 24), True, False, changes) == [4, 2, 10, 8]


# ---- the data ----


def test_bad_rows_are_named_with_file_row_and_remedy(tmp_path):
    data = rows(tmp_path, [(0, 1, 2, 50, 4)], [(0, 1, 2, 5, 5)], [(1, 1, 2, 5, 0)])
    told = refused(ObjectDetection(), {"train": data})
    assert "data.train row 1 ('" in told
    assert "0.png'), object 1 (cat): its box [1, 2, 50, 4]" in told
    assert "row 3" in told
    assert "has no area" in told
    assert "task.mend_boxes: true" in told
    assert "row 2" not in told


def test_broken_images_and_wrong_sizes_are_named(tmp_path):
    data = rows(tmp_path, [(0, 1, 2, 5, 5)], [(0, 1, 2, 5, 5)], width=[40, 24], height=[24, 40])
    refused(ObjectDetection(), {"train": data}, "row 2", "24 × 40", "the image has 40 × 24")
    (tmp_path / "0.png").write_bytes(b"no image")
    refused(ObjectDetection(), {"train": data}, "row 1", "0.png", "cannot be decoded")


def test_columns_and_fields_of_other_names(tmp_path):
    data = rows(tmp_path, [(0, 1, 2, 6, 7)])
    refused(ObjectDetection(objects="things"), {"train": data}, "task.objects", "'things'")
    refused(ObjectDetection(box="boxes"), {"train": data}, "task.box", "Did you mean 'bbox'")
    refused(ObjectDetection(objects="image"), {"train": data}, "holds no objects")
    corners = ObjectDetection(box_format="xyxy").check(DatasetDict(train=data))
    assert corners["train"][0]["objects"]["bbox"] == [[1, 2, 5, 5]]


def test_checked_rows_have_one_form(tmp_path):
    things = [[("dog", 4, 2, 10, 8), ("cat", 20, 6, 16, 12)], []]
    data = rows(tmp_path, *things, category=Value("string"))
    task = ObjectDetection()
    found = task.check(DatasetDict(train=data, test=data))
    assert task.names(found) == ["cat", "dog"]
    assert found["train"][0]["objects"] == {
        "bbox": [[4, 2, 10, 8], [20, 6, 16, 12]], "category": [1, 0],
        "area": [80, 192], "iscrowd": [False, False],
    }  # fmt: skip
    assert (found["test"][1]["width"], found["test"][1]["height"]) == (40, 24)
    assert found["train"][1]["objects"]["bbox"] == []
    one = task.check(DatasetDict(train=data), keep=["cat"])["train"]
    assert one[0]["objects"]["bbox"] == [[20, 6, 16, 12]]
    with pytest.raises(DataError, match="data.keep_labels names 'cow'"):
        task.check(DatasetDict(train=data), keep=["cow"])


def test_unknown_classes_and_no_objects(tmp_path):
    train = rows(tmp_path, [("dog", 4, 2, 10, 8)], category=Value("string"))
    test = rows(tmp_path, [("dig", 4, 2, 10, 8)], category=Value("string"))
    refused(ObjectDetection(), {"train": train, "test": test}, "class 'dig'", "mean 'dog'", "row 1")
    refused(ObjectDetection(), {"train": rows(tmp_path, [], [])}, "has no object")


def test_mended_boxes_are_told(tmp_path, caplog):
    data = rows(tmp_path, [(0, 30, 2, 50, 4), (1, 3, 3, 0, 3)])
    found = ObjectDetection(mend_boxes=True).check(DatasetDict(train=data))
    assert found["train"][0]["objects"]["bbox"] == [[30, 2, 10, 4]]
    assert "1 boxes were cut" in caplog.text
    assert "1 that had no area" in caplog.text


# ---- what the model is given ----


def test_labels_are_shares_of_the_image_before_padding(tmp_path):
    data = ObjectDetection().check(DatasetDict(train=rows(tmp_path, [(1, 4, 2, 10, 8)], [])))
    processor = tiny_detection.KINDS["detr"][1]()
    found = Detectable(processor, "image")(data["train"][:])
    wanted = torch.tensor([[9 / 40, 6 / 24, 10 / 40, 8 / 24]])
    assert torch.allclose(found["labels"][0]["boxes"], wanted)
    assert found["labels"][0]["class_labels"].tolist() == [1]
    assert found["labels"][1]["boxes"].shape == (0, 4)
    other = {"pixel_values": torch.ones(3, 80, 20), "pixel_mask": torch.ones(80, 20)}
    batch = Padded(masked=True)([{k: found[k][0] for k in other}, other])
    height, width = found["pixel_values"][0].shape[-2:]
    assert batch["pixel_values"].shape == (2, 3, max(height, 80), max(width, 20))
    assert batch["pixel_mask"].sum((1, 2)).tolist() == [height * width, 80 * 20]
    assert not batch["pixel_values"][1, :, 80:].any()
    assert not batch["pixel_values"][1, :, :, 20:].any()
    assert "pixel_mask" not in Padded(masked=False)([other])


def test_crowds_are_no_examples():
    row = {"bbox": [[0, 0, 4, 4], [0, 0, 9, 9]], "category": [0, 1], "iscrowd": [False, True]}
    found = Detectable(lambda *_, **__: {"pixel_values": torch.ones(1, 3, 2, 2)}, "image")(
        {"image": [Picture.new("RGB", (10, 10))], "objects": [row]}
    )
    assert found["labels"][0]["class_labels"].tolist() == [0]


@pytest.mark.parametrize("preset", ["basic", "strong"])
def test_boxes_move_with_their_image(preset):
    """Where the coloured pixels are, there is the box."""
    torch.manual_seed(0)
    generator, augment = random.Random(0), Augment(preset)
    moved = gone = 0
    for _ in range(60):
        x, y = generator.randrange(0, 100), generator.randrange(0, 60)
        width, height = generator.randrange(6, 60), generator.randrange(6, 40)
        image = Picture.new("RGB", (160, 100), (0, 0, 0))
        image.paste((200, 200, 200), (x, y, x + width, y + height))
        box = torch.tensor([[x, y, width, height]], dtype=torch.float32)
        picture, boxes, classes = augment(image, box, torch.tensor([3]))
        lit = np.argwhere(np.asarray(picture.convert("L")) > 60)
        assert len(boxes) == len(classes)
        gone += not len(boxes)
        if len(boxes):
            found = [*lit.min(0)[::-1], *(lit.max(0) - lit.min(0) + 1)[::-1]]
            assert np.abs(np.array(found) - boxes[0].numpy()).max() <= 1
            assert classes.tolist() == [3]
            moved += boxes[0].tolist() != box[0].tolist()
    assert moved > 40
    assert gone < 15


def test_only_train_is_augmented_and_anew_in_every_epoch(tmp_path):
    task = ObjectDetection(augment="basic")
    data = task.check(DatasetDict(train=rows(tmp_path, [(1, 4, 2, 10, 8)])))["train"]
    processor = tiny_detection.KINDS["detr"][1]()
    still = task.encode(data, processor, None)
    drawn = task.for_training(still, processor)
    assert torch.equal(still[0]["pixel_values"], still[0]["pixel_values"])
    first = drawn[0]["pixel_values"]
    assert torch.equal(first, drawn[0]["pixel_values"])
    epochs = []
    for epoch in range(4):
        drawn.draws.begin(0, epoch)
        epochs.append(drawn[0]["pixel_values"])
    assert any(e.shape != first.shape or not torch.equal(e, first) for e in epochs[1:])
    assert ObjectDetection().for_training(still, processor) is still


# ---- metrics ----


def checked(*truth, size=(200, 100)):
    """Rows as `check` gives them: lists of (class, x, y, w, h) or (…, crowd)."""
    found = []
    for things in truth:
        boxes = [list(map(float, thing[1:5])) for thing in things]
        found.append(
            {"width": size[0], "height": size[1], "objects": {
                "bbox": boxes, "category": [t[0] for t in things],
                "area": [w * h for *_, w, h in boxes],
                "iscrowd": [len(t) > 5 and t[5] for t in things]}}
        )  # fmt: skip
    return Dataset.from_list(found)


def detections(*found, size=(200, 100), most=5):
    """A batch of (score, class, x, y, w, h), filled up with detections without score."""
    w, h = size
    whole = torch.zeros(len(found), most, 6)
    for i, things in enumerate(found):
        for j, (score, label, x, y, width, height) in enumerate(things):
            box = [x / w, y / h, (x + width) / w, (y + height) / h]
            whole[i, j] = torch.tensor([score, label, *box])
    return whole


def labels(data):
    counts = [sum(not c for c in one["iscrowd"]) for one in data["objects"]]
    return torch.tensor([[5 * count] for count in counts])


def scored(data, found, sizes=(None,), names=("a", "b"), threshold=0.5):
    metrics, start = StreamingBoxes(list(names), data, threshold), 0
    for size in sizes:
        stop = len(found) if size is None else start + size
        batch = SimpleNamespace(predictions=found[start:stop], label_ids=labels(data)[start:stop])
        result = metrics(batch, compute_result=stop == len(found))
        start = stop
    return result, metrics


def some(count, seed=0):
    """Images with objects, and detections that are mostly near them."""
    generator = random.Random(seed)
    truth, found = [], []
    for _ in range(count):
        things = [
            (generator.randrange(2), generator.randrange(150), generator.randrange(70),
             generator.uniform(5, 50), generator.uniform(5, 30))
            for _ in range(generator.randrange(4))
        ]  # fmt: skip
        truth.append(things)
        found.append(
            [(generator.random(), k if generator.random() < 0.8 else 1 - k,
              x + generator.uniform(0, 4), y + generator.uniform(0, 3), w, h)
             for k, x, y, w, h in things] + [(generator.random(), 0, 5, 5, 20, 20)]
        )  # fmt: skip
    return checked(*truth), detections(*found)


def test_average_precision_by_hand():
    """One of two objects found first, a wrong one second, the other one third."""
    data = checked([(0, 10, 10, 40, 40), (0, 100, 10, 40, 40)])
    found = detections(
        [(0.9, 0, 10, 10, 40, 40), (0.8, 0, 55, 50, 40, 40), (0.7, 0, 100, 10, 40, 40)], most=3
    )
    result, metrics = scored(data, found)
    expected = (51 * 1.0 + 50 * 2 / 3) / 101  # recall 0 … .5, and above
    assert result["map"] == pytest.approx(expected, abs=1e-6)
    assert result["map_50"] == pytest.approx(expected, abs=1e-6)
    assert result["map_medium"] == pytest.approx(expected, abs=1e-6)
    assert np.isnan(result["map_large"])
    assert np.isnan(result["map_small"])
    assert metrics.tables["classes"][0]["objects"] == 2
    assert metrics.tables["classes"][1]["AP"] is None
    assert list(metrics.curves) == ["a"]
    assert metrics.curves["a"][0] == pytest.approx((0.0, 1.0))
    assert metrics.mistakes.tolist() == [[2, 1, 0]]


def test_batches_do_not_matter_and_a_second_pass_is_new():
    data, found = some(12)
    whole, metrics = scored(data, found)
    assert 0.1 < whole["map"] < 0.95
    parts, _ = scored(data, found, sizes=(5, 4, 3))
    assert parts == pytest.approx(whole, nan_ok=True)
    batch = SimpleNamespace(predictions=found, label_ids=labels(data))
    assert metrics(batch, compute_result=True) == pytest.approx(whole, nan_ok=True)


def test_it_is_what_torchmetrics_computes():
    detection = pytest.importorskip("torchmetrics.detection")
    data, found = some(12, seed=3)
    ours, _ = scored(data, found)
    exact = {  # its own are float32, and 0.1 is then above a recall of 1/10
        "iou_thresholds": np.linspace(0.5, 0.95, 10).tolist(),
        "rec_thresholds": np.linspace(0, 1, 101).tolist(),
    }
    theirs = detection.MeanAveragePrecision(box_format="xyxy", backend="pycocotools", **exact)
    for one, row in zip(found, data, strict=True):
        boxes = torch.tensor(row["objects"]["bbox"]).reshape(-1, 4)
        target = {"boxes": torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1),
                  "labels": torch.tensor(row["objects"]["category"]).long()}  # fmt: skip
        scale = torch.tensor([200, 100, 200, 100])
        theirs.update(
            [{"boxes": one[:, 2:] * scale, "scores": one[:, 0], "labels": one[:, 1].long()}],
            [target],
        )
    wanted = theirs.compute()
    for key in ("map", "map_50", "map_75", "map_small", "mar_100"):
        assert ours[key] == pytest.approx(float(wanted[key]), abs=1e-5), key


def test_a_crowd_is_neither_missed_nor_wrong():
    data = checked([(0, 10, 10, 20, 20), (0, 100, 10, 80, 80, True)])
    found = detections([(0.9, 0, 10, 10, 20, 20), (0.95, 0, 110, 20, 20, 20)], most=2)
    result, metrics = scored(data, found)
    assert result["map"] == pytest.approx(1.0)
    assert metrics.mistakes.tolist() == [[1, 0, 0]]


def test_other_rows_are_refused():
    data, found = some(6)
    metrics = StreamingBoxes(["a", "b"], data, 0.5)
    with pytest.raises(DataError, match="another order"):
        metrics(SimpleNamespace(predictions=found, label_ids=labels(data).flip(0)), True)


def test_matches_take_the_best_free_object_of_their_class():
    truth = {"bbox": [[0, 0, 10, 10], [0, 0, 10, 9]], "category": [0, 0], "iscrowd": [0, 0]}
    twice = np.array([[0.9, 0, 0, 0, 10, 10], [0.8, 0, 0, 0, 10, 10], [0.7, 1, 0, 0, 10, 10]])
    assert matched(twice, truth) == (2, 1, 0)
    assert matched(twice[:0], truth) == (0, 0, 2)
    assert matched(twice, {"bbox": [], "category": [], "iscrowd": []}) == (0, 3, 0)


def test_the_best_detections_are_kept():
    scores, boxes = torch.rand(2, 150), torch.rand(2, 150, 4)
    found = best(scores, torch.ones(2, 150), boxes)
    assert found.shape == (2, 100, 6)
    assert torch.equal(found[0, :, 0], scores[0].sort(descending=True).values[:100])
    assert best(scores[:, :7], torch.ones(2, 7), boxes[:, :7]).shape == (2, 7, 6)


@pytest.mark.parametrize("count", [64, 640])
def test_what_is_kept_of_an_image_is_a_few_numbers(count):
    """100 detections of 6 float32 and three counts: 2.4 kB an image, whatever its size."""
    data, found = some(8)
    data = Dataset.from_list([data[i % 8] for i in range(count)])
    metrics = StreamingBoxes(["a", "b"], data, 0.5)
    many = torch.zeros(8, 100, 6)
    many[:, :5] = found
    for start in range(0, count, 8):
        ids = labels(data.select(range(start, start + 8)))
        metrics(SimpleNamespace(predictions=many, label_ids=ids), compute_result=False)
    assert sum(one.nbytes for one in metrics.found) == count * 100 * 6 * 4


# ---- whole runs ----

METHODS = {
    "l2-sp": {"penalty": {"type": "l2-sp", "lambda": 0.01}},
    "lp-ft": {"penalty": [], "freeze": {"type": "lp-ft", "probe": 0.5}},
    "train-last": {"penalty": [], "freeze": {"type": "train-last", "count": 1}},
}


def report(folder):
    return json.loads((folder / "out/report.json").read_text("utf-8"))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["detr", "yolos"])
def test_methods_on_detectors(kind, method, tmp_path):
    changes = METHODS[method]
    run(Recipe.load(tiny_detection.recipe(tmp_path, kind, **changes)))
    found = report(tmp_path)
    assert found["freeze"]["verified_unchanged"]
    assert set(found["metrics"]["test"]) >= {"map", "map_50", "mar_100", "loss"}
    assert [row["class"] for row in found["tables"]["test"]["classes"]] == ["cat", "dog"]
    if method == "train-last":
        stem = next(group for group in found["groups"] if group["name"] == "stem")
        assert stem["trainable"] == 0
        assert stem["drift"] == 0
        assert found["freeze"]["frozen_tensors"] > 10


@pytest.mark.parametrize("kind", ["rt_detr", "conditional", "deformable"])
def test_other_detectors_train_and_predict(kind, tmp_path):
    task = {"augment": "strong", "image_size": 64, "threshold": 0.0}
    run(
        Recipe.load(
            tiny_detection.recipe(tmp_path, kind, task={"type": "object-detection", **task})
        )
    )
    assert report(tmp_path)["metrics"]["test"]["mar_100"] >= 0
    out = tmp_path / "found.csv"
    assert (
        main(["predict", str(tmp_path / "out"), str(tmp_path / "images"), "--output", str(out)])
        == 0
    )
    lines = list(csv.DictReader(out.open()))
    assert {line["label"] for line in lines} <= {"cat", "dog"}
    assert len(lines) >= 4


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A detector whose every query is told."""
    folder = tmp_path_factory.mktemp("run")
    task = {"type": "object-detection", "threshold": 0.1, "image_size": [64, 128]}
    run(Recipe.load(tiny_detection.recipe(folder, "detr", task=task)))
    return folder


def test_predict_says_what_the_pipeline_says(finished, tmp_path):
    out = tmp_path / "found.jsonl"
    given = finished / "images/a.png"
    assert main(["predict", str(finished / "out"), str(given), "--output", str(out)]) == 0
    ours = [json.loads(line) for line in out.read_text().splitlines()]
    detector = pipeline("object-detection", model=str(finished / "out/model"), device="cpu")
    theirs = sorted(detector(str(given), threshold=0.1), key=lambda one: -one["score"])
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        assert one["label"] == other["label"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        box = other["box"]
        assert abs(one["x"] - box["xmin"]) <= 1
        assert abs(one["x"] + one["w"] - box["xmax"]) <= 1
        assert abs(one["y"] - box["ymin"]) <= 1
        assert abs(one["y"] + one["h"] - box["ymax"]) <= 1


def test_predict_writes_pictures_and_cocos_json(finished, tmp_path):
    from pycocotools.coco import COCO

    out = tmp_path / "out"
    assert (
        main(["predict", str(finished / "out"), str(finished / "images"), "--output", str(out)])
        == 0
    )
    assert {path.name for path in out.iterdir()} == {
        "predictions.csv",
        "predictions.json",
        "pictures",
    }
    names = {path.name for path in (finished / "images").iterdir()}
    assert {path.name for path in (out / "pictures").iterdir()} == names
    lines = list(csv.DictReader((out / "predictions.csv").open()))
    written = COCO(str(out / "predictions.json")).dataset
    assert len(written["annotations"]) == len([line for line in lines if line["label"]])
    assert {image["file_name"] for image in written["images"]} == names
    first, line = written["annotations"][0], lines[0]
    assert {"bbox", "score", "category_id", "image_id"} <= first.keys()
    assert line.keys() == {"image", "label", "score", "x", "y", "w", "h"}
    plain, drawn = (
        np.asarray(Picture.open(folder / "a.png").convert("RGB"))
        for folder in (finished / "images", out / "pictures")
    )
    assert plain.shape == drawn.shape
    assert (plain != drawn).any()


def test_the_card_loads_the_model_and_its_pipeline(finished, monkeypatch):
    """The lines of the card, run as they stand in the folder of the run."""
    monkeypatch.chdir(finished / "out")
    Picture.new("RGB", (40, 24)).save("photo.jpg")
    names = {}
    card = (finished / "out/README.md").read_text("utf-8")
    exec(card.partition("```python")[2].partition("```")[0], names)
    assert type(names["model"]).__name__ == "DetrForObjectDetection"
    assert names["predict"].task == "object-detection"
    assert type(names["predict"].model) is type(names["model"])


def test_an_image_without_finds_has_an_empty_record(finished):
    task, folder = ObjectDetection(threshold=0.99), finished / "out/model"
    model = AutoModelForObjectDetection.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    found = list(task.predict(task.read_inputs(finished / "images"), model, processor, 3))
    assert len(found) == 4
    assert {one["label"] for one in found} == {None}


def test_the_saved_processor_resizes_as_the_run_did(finished):
    processor = AutoImageProcessor.from_pretrained(finished / "out/model")
    assert dict(processor.size) == {"shortest_edge": 64, "longest_edge": 128}


def test_the_report_shows_boxes_and_curves(finished):
    pictures = report(finished)["pictures"]["test"]
    assert {"precision_and_recall", "most_mistakes"} <= pictures.keys()
    shown = [*pictures["most_mistakes"], *pictures["true_boxes_left,_predicted_right"]]
    assert len(shown) == 1
    assert shown[0]["image"].startswith("data:image/jpeg;base64,")
    page = (finished / "out/report.html").read_text("utf-8")
    assert shown[0]["caption"] in page
    assert page.count("data:image/jpeg") == 1
    assert "<h2>Classes, test</h2>" in page
    assert "img-src data:" in page  # else a browser would not show them


def test_evaluate_gives_the_numbers_of_the_run(finished, capsys):
    assert main(["evaluate", str(finished / "out")]) == 0
    assert f"{report(finished)['metrics']['test']['loss']:.4f}" in capsys.readouterr().out


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    """With boxes and images drawn anew in every epoch."""
    from test_resume import StopAt

    import hf_sft.running as running
    from hf_sft.training_arguments import training_arguments

    task = {"type": "object-detection", "augment": "strong"}
    found = {}
    for name, stop in (("whole", None), ("stopped", 3)):
        (tmp_path / name).mkdir()
        recipe = Recipe.load(tiny_detection.recipe(tmp_path / name, "detr", task=task))
        trainer = running.prepare(recipe, training_arguments(recipe)).trainer
        if stop:
            trainer.add_callback(StopAt(stop))
        trainer.train()
        if stop:
            trainer = running.prepare(recipe, training_arguments(recipe)).trainer
            trainer.train(resume_from_checkpoint=True)
        found[name] = tiny.weights(trainer.model)
    assert tiny.different(found["whole"], found["stopped"]) == []


@pytest.mark.parametrize("kind", ["detr", "rt_detr"])
def test_zero_strength_is_the_plain_trainer(kind, tmp_path):
    data = tiny_boxes.coco(tmp_path)
    task = ObjectDetection(augment="none")
    from hf_sft.loaders import Coco

    rows = task.check(Coco(**data).load(lambda name: tmp_path / name))
    processor = tiny_detection.KINDS[kind][1]()
    found = []
    for trainer_class, more in (
        (Trainer, {}),
        (TransferTrainer, {"penalty": L2SP(lambda_=0.0, head=0.0)}),
    ):
        model = tiny_detection.KINDS[kind][0](dropout=0.1)
        args = tiny.arguments(
            tmp_path / trainer_class.__name__, remove_unused_columns=False,
            per_device_train_batch_size=2, learning_rate=1e-3,
        )  # fmt: skip
        trainer = trainer_class(
            model, args, train_dataset=task.encode(rows["train"], processor, None),
            data_collator=task.collator(processor), **more,
        )  # fmt: skip
        trainer.train()
        found.append(tiny.weights(trainer.model))
    assert tiny.different(*found) == []


def test_label_smoothing_is_refused(tmp_path):
    path = tiny_detection.recipe(tmp_path, "yolos", training={"label_smoothing_factor": 0.1})
    with pytest.raises(RecipeError, match="label_smoothing_factor: 0.1"):
        run(Recipe.load(path))


def test_padding_that_a_model_would_see_is_refused(tmp_path):
    path = tiny_detection.recipe(tmp_path, "yolos", task={"image_size": [32, 64]})
    with pytest.raises(SourceError, match="takes no pixel_mask"):
        run(Recipe.load(path))


def test_relative_boxes():
    found = relative(torch.tensor([[10.0, 20, 30, 40]]), (100, 200))
    assert torch.allclose(found, torch.tensor([[0.25, 0.2, 0.3, 0.2]]))
