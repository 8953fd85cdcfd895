"""Folders of masks: all layouts and ways of writing classes give the same; faults are named."""

import json

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Features, Image
from PIL import Image as Picture
from tiny_masks import NAMES, coco_file, mask_folder, scene

from hf_sft.errors import DataError
from hf_sft.loaders import Coco, MaskFolder
from hf_sft.resources import locator
from hf_sft.tasks import ImageSegmentation

PALETTE = {"ground": [0, 0, 0], "dark": [10, 20, 30], "light": [200, 200, 0]}


def load(folder, task=None, **keys):
    """Checked rows of the folder ``d``."""
    loader = MaskFolder(path="d", **keys)
    return (task or ImageSegmentation()).check(loader.load(locator(folder)))


def targets(rows, **keys):
    kind = ImageSegmentation(**keys).kind
    return [kind.target(row, row["image"].height, row["image"].width).numpy() for row in rows]


def test_splits_sizes_and_names_are_read(tmp_path):
    mask_folder(tmp_path / "d")
    data = load(tmp_path)
    assert {split: len(rows) for split, rows in data.items()} == {"train": 8, "test": 4}
    assert ImageSegmentation().names(data) == NAMES
    assert data["train"][0]["classes"] == [0, 1, 2]
    for number, found in enumerate(targets(data["train"])):
        assert (found == scene(number, 48 + 2 * number, 40 + number)[1]).all()


@pytest.mark.parametrize("name", ["val", "valid", "validation", "dev"])
def test_folders_of_splits_have_the_usual_names(tmp_path, name):
    folder = mask_folder(tmp_path / "d")
    (folder / "test").rename(folder / name)
    assert {split: len(rows) for split, rows in load(tmp_path).items()} == {
        "train": 8,
        "validation": 4,
    }


def test_two_folders_of_one_split_are_refused(tmp_path):
    folder = mask_folder(tmp_path / "d")
    (folder / "test").rename(folder / "val")
    (folder / "dev/images").mkdir(parents=True)
    with pytest.raises(DataError, match=r"for validation: 'val/images', 'dev/images'\. Keep one"):
        load(tmp_path)


def test_splits_may_stand_below_images_and_masks(tmp_path):
    mask_folder(tmp_path / "a")
    for kind, other in (("images", "JPEG"), ("masks", "annotations")):
        (tmp_path / "d" / other).mkdir(parents=True)
        for split, name in (("train", "training"), ("test", "val")):
            (tmp_path / "a" / split / kind).rename(tmp_path / "d" / other / name)
    data = load(tmp_path, ImageSegmentation(classes=3), images="JPEG", masks="annotations")
    assert {split: len(rows) for split, rows in data.items()} == {"train": 8, "validation": 4}
    assert ImageSegmentation().names(data) == ["0", "1", "2"]


@pytest.mark.parametrize("form", ["grey", "palette", "colours", "sixteen bits"])
def test_classes_are_read_from_every_form_of_mask(tmp_path, form):
    mask_folder(tmp_path / "d")
    for path in (tmp_path / "d").rglob("masks/*.png"):
        classes = np.asarray(Picture.open(path))
        if form == "palette":
            mask = Picture.fromarray(classes, "P")
            mask.putpalette([part for colour in PALETTE.values() for part in colour])
        elif form == "colours":
            mask = Picture.fromarray(np.array(list(PALETTE.values()), dtype=np.uint8)[classes])
        else:
            mask = Picture.fromarray(classes.astype(np.uint16 if form != "grey" else np.uint8))
        mask.save(path)
    given = {"palette": PALETTE} if form == "colours" else {}
    data = load(tmp_path, **given)
    assert ImageSegmentation().names(data) == NAMES
    assert all(
        (found == scene(number, 48 + 2 * number, 40 + number)[1]).all()
        for number, found in enumerate(targets(data["train"]))
    )


def test_ignore_reduce_and_suffix(tmp_path):
    mask_folder(tmp_path / "d")
    for path in list((tmp_path / "d").rglob("masks/*.png")):
        classes = np.asarray(Picture.open(path)).copy()
        classes[0] = 9
        Picture.fromarray(classes).save(path.with_name(f"{path.stem}_gt.png"))
        path.unlink()
    keys = {"classes": ["dark", "light"], "ignore_index": 9, "reduce_labels": True}
    data = load(tmp_path, ImageSegmentation(**keys), suffix="_gt")
    found = targets(data["train"], **keys)[0]
    expected = scene(0)[1].astype(int) - 1
    expected[0] = -1
    assert (found == expected).all()


def test_an_ignored_colour_is_no_class(tmp_path):
    mask_folder(tmp_path / "d", 2, 1)
    for path in (tmp_path / "d").rglob("masks/*.png"):
        classes = np.asarray(Picture.open(path))
        Picture.fromarray(np.array(list(PALETTE.values()), dtype=np.uint8)[classes]).save(path)
    (tmp_path / "d" / "classes.txt").unlink()
    palette = {"ignore": PALETTE["ground"], "dark": PALETTE["dark"], "light": PALETTE["light"]}
    data = load(tmp_path, palette=palette)
    assert ImageSegmentation().names(data) == ["dark", "light"]
    assert (targets(data["train"])[0] == scene(0)[1].astype(int) - 1).all()


def damage(name):
    def change(folder):
        masks = folder / "d" / "train" / "masks"
        if name == "no mask":
            (masks / "3.png").unlink()
        elif name == "no image":
            (folder / "d" / "train" / "images" / "3.png").unlink()
        elif name == "size":
            Picture.new("L", (5, 7)).save(masks / "3.png")
        elif name == "number":
            classes = np.asarray(Picture.open(masks / "3.png")).copy()
            classes[2, 4] = 17
            Picture.fromarray(classes).save(masks / "3.png")
        elif name == "colours":
            Picture.open(masks / "3.png").convert("RGB").save(masks / "3.png")
        elif name == "broken mask":
            (masks / "3.png").write_bytes(b"no picture")
        elif name == "jpeg":
            Picture.open(masks / "3.png").save(masks / "3.jpg")
            (masks / "3.png").unlink()
        elif name == "twice":
            Picture.open(masks / "3.png").save(masks / "3.bmp")
        elif name == "names":
            (folder / "d" / "classes.txt").write_text("dark\ndark\n")
        elif name == "nameless":
            (folder / "d" / "classes.txt").unlink()
        elif name == "no masks":
            for path in masks.iterdir():
                path.unlink()
            masks.rmdir()

    return change


FAULTS = [
    ("no mask", ["data.train: 1 of 8 images have no mask", "Add '3.png'"]),
    ("no image", ["1 masks", "have no image: 3"]),
    ("size", ["data.train row 4", "3.png' is of 5 × 7 pixels, its image of 54 × 43"]),
    ("number", ["data.train row 4", "3.png' has 17 at x 4, y 2", "0 to 2", "ignore_index is 255"]),
    ("colours", ["row 4", "has the form RGB", "data.palette"]),
    ("broken mask", ["row 4", "3.png' cannot be decoded"]),
    ("jpeg", ["1 masks are JPEG", "Save masks as PNG"]),
    ("twice", ["'3' is the name of 3.bmp, 3.png"]),
    ("names", ["'classes.txt' names dark twice"]),
    ("nameless", ["nothing names the classes; the masks hold 0, 1, 2", "how many there are: 3"]),
    ("no masks", ["there is no folder 'train/masks'", "data.masks"]),
]


@pytest.mark.parametrize(("fault", "words"), FAULTS, ids=[name for name, _ in FAULTS])
def test_what_is_wrong_is_named_with_its_file(tmp_path, fault, words):
    mask_folder(tmp_path / "d")
    damage(fault)(tmp_path)
    with pytest.raises(DataError) as error:
        load(tmp_path)
    for word in words:
        assert word in str(error.value), str(error.value)


def test_a_colour_that_is_not_in_the_palette_is_named(tmp_path):
    mask_folder(tmp_path / "d", 2, 1)
    with pytest.raises(
        DataError, match=r"0\.png' has the colour \[(1, 1, 1|2, 2, 2)\] at x \d+, y \d+"
    ):
        load(tmp_path, palette=PALETTE)


@pytest.mark.parametrize(
    ("palette", "words"),
    [({"a": [0, 0, 0], "b": [0, 0, 300]}, "0 to 255"), ({"a": [0, 0, 0], "b": [0, 0, 0]}, "two")],
    ids=["too large", "the same"],
)
def test_a_palette_that_cannot_be(palette, words):
    with pytest.raises(ValueError, match=words):
        MaskFolder(path="d", palette=palette)


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    (tmp_path / "d" / "pictures").mkdir(parents=True)
    with pytest.raises(DataError, match="it holds pictures"):
        load(tmp_path)


def test_keys_that_do_not_fit(tmp_path):
    mask_folder(tmp_path / "d", 2, 1)
    data = MaskFolder(path="d").load(locator(tmp_path))
    with pytest.raises(DataError, match=r"task\.mask names column 'annotation'"):
        ImageSegmentation(mask="annotation").check(data)
    with pytest.raises(DataError, match="keep_labels"):
        ImageSegmentation().check(data, ["dark"])
    with pytest.raises(DataError, match=r"task\.objects names column"):
        ImageSegmentation(problem="instance").check(data)
    with pytest.raises(ValueError, match="each named once"):
        ImageSegmentation(classes=["a", "a"])


def test_ade20k_s_schema_on_the_hub(tmp_path):
    """scene_parse_150: image, annotation (0 is no class), scene_category."""
    mask_folder(tmp_path / "d", 3, 1)
    rows = Dataset.from_dict(
        {
            "image": sorted(str(path) for path in (tmp_path / "d" / "train" / "images").iterdir()),
            "annotation": sorted(str(p) for p in (tmp_path / "d" / "train" / "masks").iterdir()),
            "scene_category": [1, 2, 3],
        }
    )
    features = Features({**rows.features, "image": Image(), "annotation": Image()})
    data = DatasetDict({"train": rows.cast(features)})
    keys = {"mask": "annotation", "reduce_labels": True, "classes": 150}
    task = ImageSegmentation(**keys)
    checked = task.check(data)
    assert task.names(checked)[:2] == ["0", "1"]
    assert len(task.names(checked)) == 150
    assert (targets(checked["train"], **keys)[0] == scene(0)[1].astype(int) - 1).all()


def coco(folder, **keys):
    return Coco(train="train.json", **keys).load(locator(folder))


def test_outlines_become_the_same_masks(tmp_path):
    """Polygons and run lengths, in COCO's column order."""
    coco_file(tmp_path)
    data = ImageSegmentation().check(coco(tmp_path))
    assert ImageSegmentation().names(data) == ["background", "dark", "light"]
    for number, found in enumerate(targets(data["train"])):
        expected = scene(number, 48 + 2 * number, 40 + number)[1]
        same = (found == expected).mean()
        assert same > 0.97  # a hidden corner of the dark rectangle is in its polygon
    bare = ImageSegmentation(background=None)
    assert bare.names(data) == ["dark", "light"]
    assert targets(data["train"], background=None)[0].min() == -1


@pytest.mark.parametrize(
    ("shape", "words"),
    [('[]', "is neither polygons nor RLE"), ('[[0, 0, 5, 5]]', "three points"),
     ('{"size": [1, 1], "counts": [1]}', r"is of size \[1, 1\]")],
    ids=["none", "two points", "size"],
)  # fmt: skip
def test_an_outline_that_is_none_is_named(tmp_path, shape, words):
    coco_file(tmp_path)
    text = (tmp_path / "train.json").read_text()
    first = text.index('"segmentation": ') + len('"segmentation": ')
    end = text.index('"id"', first) - 2
    (tmp_path / "train.json").write_text(text[:first] + shape + text[end:])
    with pytest.raises(DataError, match=words) as error:
        ImageSegmentation(problem="instance").check(coco(tmp_path))
    assert "data.train row 1: object 1 of" in str(error.value)


def test_boxes_are_not_masks(tmp_path):
    coco_file(tmp_path)
    content = json.loads((tmp_path / "train.json").read_text("utf-8"))
    for row in content["annotations"]:
        del row["segmentation"]
    (tmp_path / "train.json").write_text(json.dumps(content), "utf-8")
    with pytest.raises(DataError, match="boxes are not masks"):
        ImageSegmentation().check(coco(tmp_path))
