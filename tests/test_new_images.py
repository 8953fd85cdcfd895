"""`hf-sft new` on images: which loader, what looks wrong, and that the recipe it writes runs."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_detection
import tiny_masks
import yaml
from datasets import Dataset, Features, Image, Value
from PIL import Image as Picture
from test_new import QUICK, new
from tiny_boxes import TRUTH, coco, draw, voc, voc_xml, yolo
from tiny_image_run import image_recipe
from tiny_run import picture, write_csv

from hf_sft.cli import main
from hf_sft.errors import DataError
from hf_sft.new.box_findings import box_findings, overlaps
from hf_sft.new.data import data_block
from hf_sft.new.image_look import image_findings
from hf_sft.new.recipe import propose

DATA = os.environ.get("HF_SFT_DATA")
KEYS = {"image": "image", "objects": "objects", "box": "bbox", "category": "category"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_SFT_DATA", raising=False)
    return tmp_path


def block(task, given="set"):
    return data_block(task, given, Path())[0]


def proposed(task, given="set", *overrides):
    return propose(task, given, Path(), None, overrides)


def kinds(proposal):
    return {finding.kind: str(finding) for finding in proposal.findings}


WRITERS = {"coco": coco, "voc": voc, "yolo": yolo}
BLOCKS = {
    "coco": {"type": "coco", "train": "set/train.json", "test": "set/test.json",
             "images": "set/images"},
    "voc": {"type": "voc", "path": "set"},
    "yolo": {"type": "yolo", "path": "set/data.yaml"},
}  # fmt: skip


@pytest.mark.parametrize("kind", WRITERS)
def test_folders_of_boxes(here, kind):
    WRITERS[kind](here / "set")
    assert block("object-detection") == BLOCKS[kind]
    assert block("image-classification") == BLOCKS[kind] | {"crops": True}
    found = proposed("object-detection")
    assert {name: len(rows) for name, rows in found.data.items()} == {"train": 3, "test": 1}
    assert found.labels["train"] == ["cat", "dog", "dog"]
    assert found.refusal is None
    assert "1 image without objects" in kinds(found)["images without objects"]


@pytest.mark.parametrize("kind", WRITERS)
def test_the_file_itself_may_be_given(here, kind):
    WRITERS[kind](here / "set")
    if kind == "coco":
        assert block("object-detection", "set/train.json") == {
            "type": "coco", "train": "set/train.json", "images": "set/images",
        }  # fmt: skip
    if kind == "yolo":
        assert block("object-detection", "set/data.yaml") == BLOCKS["yolo"]


def test_coco_as_it_is_published_and_as_roboflow_writes_it(here):
    coco(here / "own")
    for part, place in (("train", "train2017"), ("test", "val2017")):
        target = here / "coco/annotations" / f"instances_{place}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text((here / "own" / f"{part}.json").read_text())
        (target.parent / f"person_keypoints_{place}.json").write_text(target.read_text())
        for stem in TRUTH[part]:
            draw(here / "coco" / place / f"{stem}.png", TRUTH[part][stem])
            draw(here / "robo" / part / f"{stem}.png", TRUTH[part][stem])
        (here / "robo" / part / "_annotations.coco.json").write_text(target.read_text())
    assert block("object-detection", "coco") == {
        "type": "coco",
        "train": "coco/annotations/instances_train2017.json",
        "validation": "coco/annotations/instances_val2017.json",
        "images": {"train": "coco/train2017", "validation": "coco/val2017"},
    }
    assert block("object-detection", "robo") == {
        "type": "coco",
        "train": "robo/train/_annotations.coco.json",
        "test": "robo/test/_annotations.coco.json",
    }
    shutil.copy(here / "own/train.json", here / "robo/again_train.json")
    with pytest.raises(DataError, match="several COCO files: again_train.json, train/_annot"):
        block("object-detection", "robo")


def test_voc_with_other_names_deeper_down_and_side_by_side(here):
    voc(here / "kit/VOC")
    assert block("object-detection", "kit") == {"type": "voc", "path": "kit/VOC"}
    (here / "kit/VOC/Annotations").rename(here / "kit/VOC/xml")
    (here / "kit/VOC/JPEGImages").rename(here / "kit/VOC/png")
    assert block("object-detection", "kit") == {
        "type": "voc", "path": "kit/VOC", "annotations": "xml", "images": "png",
    }  # fmt: skip
    assert len(proposed("object-detection", "kit").data["train"]) == 3
    for part, images in TRUTH.items():
        for stem, things in images.items():
            draw(here / "flat" / part / f"{stem}.png", things)
            (here / "flat" / part / f"{stem}.xml").write_text(voc_xml(things))
    assert {s: len(rows) for s, rows in proposed("object-detection", "flat").data.items()} == {
        "train": 3, "test": 1,
    }  # fmt: skip


def test_edges_that_count_from_zero_are_settled(here):
    voc(here / "set")
    (here / "set/Annotations/b.xml").write_text(voc_xml([("dog", -1, -1, 8, 25)]))
    found = proposed("object-detection")
    assert found.raw["data"] == BLOCKS["voc"] | {"one_based": False}
    assert any("one_based" in line for line in found.decisions)
    assert found.refusal is None


def test_sizes_that_differ_are_told_and_the_rest_is_looked_at(here):
    coco(here / "set")
    edited = json.loads((here / "set/train.json").read_text())
    edited["images"][0]["width"] = 80
    (here / "set/train.json").write_text(json.dumps(edited))
    found = proposed("object-detection")
    assert "says 80 × 24 pixels of 'a.png', which has 40 × 24" in found.refusal
    assert "check_size" not in found.raw["data"]
    assert "images without objects" in kinds(found)


def test_the_task_that_a_folder_is_for_is_named(here):
    picture(here / "set/cat/a.png")
    with pytest.raises(DataError) as error:
        block("object-detection")
    assert "holds class folders, which object-detection does not read" in str(error.value)
    assert "Tasks for this folder: image-classification" in str(error.value)


def test_a_table_of_images(here):
    for number in range(12):
        picture(here / f"set/files/{number}.png", (20 * number, 9, 9))
    rows = [(f"files/{number}.png", "ab"[number % 2]) for number in range(12)]
    write_csv(here / "set/train.csv", rows[:8], ("path", "kind"))
    write_csv(here / "set/test.csv", rows[8:], ("path", "kind"))
    assert block("image-classification") == {
        "type": "table", "train": "set/train.csv", "test": "set/test.csv",
    }  # fmt: skip
    found = proposed("image-classification")
    assert found.raw["task"] | {"image": "path", "label": "kind"} == found.raw["task"]
    assert found.refusal is None
    assert "4 images with a side under 32" in kinds(found)["small images"]


def test_several_labels_and_numbers_of_images(here):
    for number in range(10):
        picture(here / f"set/files/{number}.png", (20 * number, 9, 9), (40, 40))
    rows = [(f"files/{n}.png", n % 2, int(n > 4), n / 3) for n in range(10)]
    write_csv(here / "set/train.csv", [row[:3] for row in rows], ("path", "cat", "dog"))
    found = proposed("image-classification", "set", "data.test_fraction=0.2")
    several = {"label": ["cat", "dog"], "problem": "multi-label"}
    assert found.raw["task"] | several == found.raw["task"]
    assert found.refusal is None
    write_csv(here / "set/train.csv", [(row[0], row[3]) for row in rows], ("path", "score"))
    found = proposed("image-classification", "set", "data.test_fraction=0.2")
    assert found.raw["task"] | {"label": "score", "problem": "regression"} == found.raw["task"]
    assert found.refusal is None
    assert "far numbers" not in kinds(found)


def test_only_images_are_read_whatever_a_table_names(here):
    (here / "one.txt").write_text("the same")
    (here / "two.txt").write_text("the same")
    for number in range(10):
        picture(here / f"set/files/{number}.png", (20 * number, 9, 9), (40, 40))
    rows = [(f"files/{n}.png", "ab"[n % 2]) for n in range(10)]
    rows += [("../one.txt", "a"), ("../two.txt", "b")]
    write_csv(here / "set/train.csv", rows, ("path", "kind"))
    found = proposed("image-classification", "set", "data.test_fraction=0.2")
    assert "duplicates" not in kinds(found)
    assert "one.txt' cannot be decoded" in found.refusal


def test_numbers_of_a_large_scale_are_told(here):
    for number in range(10):
        picture(here / f"set/files/{number}.png", (20 * number, 9, 9), (40, 40))
    rows = [(f"files/{n}.png", 900.5 * n) for n in range(10)]
    write_csv(here / "set/train.csv", rows, ("path", "area"))
    found = proposed("image-classification", "set", "data.test_fraction=0.2", "task.label=area")
    assert "train: 'area' has mean 4,052.25 and" in kinds(found)["far numbers"]
    assert "divide by 10000;" in kinds(found)["far numbers"]


def test_images_alone_for_masked_images(here):
    for number in range(6):
        picture(here / f"set/more/{number}.png", (20 * number, 9, 9), (40, 40))
    assert block("masked-image-modeling") == {
        "type": "image-folder", "path": "set", "labelled": False,
    }  # fmt: skip
    assert proposed("masked-image-modeling").findings == []


def test_class_folders_with_val_are_read_with_their_validation(here):
    for number, name in enumerate(("train/cat", "train/dog", "val/cat", "val/dog")):
        for more in range(6):
            picture(here / f"set/{name}/{more}.png", (40 * number, 30 * more, 9), (40, 40))
    found = proposed("image-classification")
    assert {split: len(rows) for split, rows in found.data.items()} == {
        "train": 12, "validation": 12,
    }  # fmt: skip
    assert found.raw["data"] == {"type": "image-folder", "path": "set"}
    assert "There is no test split: scores come from validation." in found.decisions


def masks(folder, suffix="", coloured=False):
    """Two images with masks of the classes 0 and 2, and void."""
    for number in range(6):
        picture(folder / "images" / f"{number}.png", (30 * number, 9, 9), (40, 40))
        values = np.zeros((40, 40), np.uint8)
        values[:20], values[:2] = 2, 255
        mask = Picture.fromarray(values)
        if coloured:
            mask = mask.convert("RGB")
        (folder / "masks").mkdir(exist_ok=True)
        mask.save(folder / "masks" / f"{number}{suffix}.png")


def test_folders_of_masks(here):
    masks(here / "set")
    names = ["class_0", "class_1", "class_2"]
    assert block("image-segmentation") == {"type": "mask-folder", "path": "set", "classes": names}
    found = proposed("image-segmentation")
    assert found.refusal is None
    assert sorted({*found.labels["train"]}) == ["class_0", "class_2"]
    assert block("masked-image-modeling")["path"] == "set/images"
    (here / "set/classes.txt").write_text("sky\nsea\nland\n")
    assert block("image-segmentation") == {"type": "mask-folder", "path": "set"}
    assert {*proposed("image-segmentation").labels["train"]} == {"sky", "land"}


def test_masks_with_longer_names_and_colours(here):
    masks(here / "set", "_mask", coloured=True)
    colours = {"class_0": [0, 0, 0], "class_1": [2, 2, 2], "class_2": [255, 255, 255]}
    assert block("image-segmentation") == {
        "type": "mask-folder", "path": "set", "suffix": "_mask", "palette": colours,
    }  # fmt: skip
    assert proposed("image-segmentation").refusal is None


def boxes(*things, size=(100, 80)):
    """A split with one image; (class, x, y, width, height) each."""
    Picture.new("RGB", size).save("one.png")
    row = {
        "image": "one.png",
        "width": size[0],
        "height": size[1],
        "objects": {"bbox": [list(map(float, box)) for _, *box in things],
                    "category": [name for name, *_ in things]},
    }  # fmt: skip
    return Dataset.from_list([row]).cast_column("image", Image())


FAULTS = {
    "boxes outside": [("cat", 90, 10, 20, 20)],
    "boxes without area": [("cat", 10, 10, 0, 20)],
    "tiny boxes": [("cat", 10, 10, 7, 20)],
    "boxes drawn twice": [("cat", 10, 10, 20, 20), ("cat", 10, 11, 20, 20)],
    "one object, two classes": [("cat", 10, 10, 20, 20), ("dog", 10, 10, 20, 20)],
    "boxes of the whole image": [("cat", 0, 0, 100, 80)],
    "images without objects": [],
    "crowded images": [("cat", 1 + n % 9, n // 9 * 5, 9 + n % 9, 9) for n in range(101)],
}


@pytest.mark.parametrize("kind", FAULTS)
def test_what_is_wrong_with_boxes(here, kind):
    found = {finding.kind: finding for finding in box_findings("train", boxes(*FAULTS[kind]), KEYS)}
    assert kind in found
    if kind != "crowded images":
        assert set(found) == {kind}
        assert found[kind].count == 1
        assert found[kind].rows == (1,)
    if FAULTS[kind] and kind != "crowded images":
        assert "train row 1 'one.png': " in found[kind].example
        assert "of 100 × 80" in found[kind].example


def test_good_boxes_are_found_good(here):
    rows = boxes(("cat", 0, 0, 20, 20), ("cat", 10, 0, 20, 20), ("dog", 80.5, 60, 20, 20))
    assert box_findings("train", rows, KEYS) == []
    bare = rows.remove_columns(["width", "height"])
    assert box_findings("train", bare, KEYS) == []  # sizes from the file


def test_overlaps():
    found = overlaps(np.array([[0, 0, 10, 10], [5, 0, 10, 10], [20, 20, 5, 5], [3, 3, 0, 4.0]]))
    assert found[0, 1] == pytest.approx(50 / 150)
    assert found[0, 2] == found[3, 3] == 0
    assert np.diag(found)[:3] == pytest.approx(1)


def test_images_in_two_splits_and_classes_that_are_rare(here):
    truth = {
        "train": {str(n): [("dog", n, 0, 9, 9)] * 3 for n in range(20)},
        "test": {"d": [("dog", 5, 0, 9, 9)]},
    }  # fmt: skip
    truth["train"]["x"] = [("cat", 0, 0, 9, 9)]
    coco(here / "set", truth)
    shutil.copy(here / "set/images/3.png", here / "set/images/d.png")
    found = kinds(proposed("object-detection"))
    assert "test: 1 row occurs in train too (exactly), 1 with other objects" in found["leakage"]
    assert "train: 1 class with fewer than 5 objects: 'cat' (1)" in found["tiny classes"]
    assert "'dog' has 60 objects, 'cat' 1" in found["imbalance"]
    assert "test: no object of 1 class: cat" in found["absent classes"]


def test_small_and_long_images(here):
    rows = Dataset.from_dict(
        {"image": [str(picture(here / "a.png", size=(200, 40))), str(picture(here / "b.png"))]},
        features=Features({"image": Value("string")}),
    )
    roles = proposed_roles(rows)
    found = {finding.kind: finding for finding in image_findings("train", rows, roles)}
    assert found["small images"].rows == (2,)
    assert found["long images"].rows == (1,)


def proposed_roles(rows):
    from hf_sft.new.columns import roles

    return roles("masked-image-modeling", rows, {})


def test_objects_of_the_hub_have_other_names(here):
    from hf_sft.new.columns import roles

    row = {"picture": "one.png", "annotations": [{"box": [1.0, 2.0, 3.0, 4.0], "label": "cat"}]}
    Picture.new("RGB", (9, 9)).save("one.png")
    rows = Dataset.from_list([row]).cast_column("picture", Image())
    found = roles("object-detection", rows, {})
    assert found.keys == {
        "image": "picture", "objects": "annotations", "box": "box", "category": "label",
    }  # fmt: skip
    with pytest.raises(DataError, match="looks like objects with boxes"):
        roles("object-detection", rows.select_columns(["picture"]), {})


def test_a_recipe_for_crops_runs(here):
    given = yaml.safe_load(image_recipe(here).read_text("utf-8"))["model"]
    settings = [f"model.{key}={value}" for key, value in given.items() if key != "name"]
    voc(here / "set", {**TRUTH, "test": TRUTH["test"] | {"e": [("dog", 1, 1, 9, 9)]}})
    words = ("--model", "source.pth", *settings, "task.image_size=32", *QUICK)
    assert new("image-classification", "set", *words) == 0
    assert yaml.safe_load(Path("set.yaml").read_text())["data"] == BLOCKS["voc"] | {"crops": True}
    assert main(["run", "set.yaml"]) == 0


def test_a_recipe_for_detection_runs(here):
    tiny_detection.source(here / "source")
    yolo(here / "set")
    assert new("object-detection", "set", "--model", "source", *QUICK) == 0
    assert main(["run", "set.yaml"]) == 0


def test_a_recipe_for_segmentation_runs(here):
    tiny_masks.segformer_source(here / "source")
    tiny_masks.mask_folder(here / "set")
    assert new("image-segmentation", "set", "--model", "source", *QUICK) == 0
    assert main(["run", "set.yaml"]) == 0


@pytest.mark.skipif(not DATA or not Path(DATA, "bccd_part").is_dir(), reason="needs BCCD")
def test_bccd_has_cells_that_are_drawn_twice(tmp_path):
    found = kinds(propose("object-detection", "bccd_part", tmp_path, None, []))
    assert set(found) == {"boxes drawn twice", "imbalance"}
