"""Detection data: three formats say the same, whatever is wrong is named, objects are cut out."""

import io
import json
import os
import re
from pathlib import Path

import pytest
import tiny_boxes
from datasets import ClassLabel, Image
from PIL import Image as Picture
from pydantic import ValidationError
from tiny_boxes import SIZE, TRUTH, coco, draw, voc, voc_xml, yolo

from hf_sft.errors import DataError
from hf_sft.loaders import Coco, Voc, Yolo, crops
from hf_sft.loaders.crops import edges
from hf_sft.loaders.splits import split
from hf_sft.resources import locator

FORMATS = {"coco": (Coco, coco), "voc": (Voc, voc), "yolo": (Yolo, yolo)}
SHARED = os.environ.get("HF_SFT_DATA")


REMEDY = re.compile(
    r"Add|Complete|Correct|Divide|Get or write|Give|If these files|Keep|Make|Name|Remove|Replace|"
    r"Save|Wanted|remove that line|wanted \[|wanted a path"
)


def load(kind, folder, **more):
    """A tiny data set of that format, written and read."""
    cls, write = FORMATS[kind]
    return cls(**write(folder) | more).load(locator(folder))


def read(kind, folder, **keys):
    return FORMATS[kind][0](**keys).load(locator(folder))


def refused(kind, folder, **keys):
    with pytest.raises(DataError) as error:
        read(kind, folder, **keys)
    return str(error.value)


def undecoded(rows):
    return rows.cast_column("image", Image(decode=False))["image"]


def named(rows):
    """Image -> its objects as in TRUTH."""
    kinds = rows.features["objects"]["category"].feature
    return {
        Path(image["path"]).stem: [
            (kinds.int2str(kind), *(round(side, 3) for side in box))
            for kind, box in zip(things["category"], things["bbox"], strict=True)
        ]
        for image, things in zip(undecoded(rows), rows["objects"], strict=True)
    }


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_rows(kind, tmp_path):
    data = load(kind, tmp_path)
    assert {part: named(rows) for part, rows in data.items()} == TRUTH
    rows = data["train"]
    assert rows.features["objects"]["category"].feature == ClassLabel(names=["cat", "dog"])
    assert {*rows["width"]} == {40}
    assert {*rows["height"]} == {24}
    first = rows["objects"][0]
    assert first["area"] == pytest.approx([80, 192])
    assert first["iscrowd"] == [False, False]
    assert all(image["bytes"] is None for image in undecoded(rows))
    assert rows[0]["image"].size == SIZE


@pytest.mark.parametrize("kind", FORMATS)
def test_crops_are_the_objects(kind, tmp_path):
    data = load(kind, tmp_path, crops=True)
    rows = data["train"]
    assert rows.features["label"].int2str(rows["label"]) == ["cat", "dog", "dog"]
    assert [image.size for image in rows["image"]] == [(10, 8), (16, 12), (8, 24)]
    for image, label in zip(rows["image"], rows["label"], strict=True):
        assert image.getcolors() == [
            (image.width * image.height, tiny_boxes.COLOURS[["cat", "dog"][label]])
        ]
    assert len(data["test"]) == 2


def test_images_of_one_name_in_two_folders_are_two(tmp_path):
    coco(tmp_path)
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        for stem in ("a", "b", "c", "d"):
            (tmp_path / part / f"{stem}.png").write_bytes(
                (tmp_path / f"images/{stem}.png").read_bytes()
            )
    (tmp_path / "test.json").write_text((tmp_path / "train.json").read_text())
    folders = {"train": "train", "test": "test"}
    data = read("coco", tmp_path, **{k: f"{k}.json" for k in folders}, images=folders, crops=True)
    assert data["train"]["source"] == ["train/a.png", "train/a.png", "train/b.png"]
    assert data["test"]["source"][0] == "test/a.png"


def test_an_image_has_its_crops_in_one_part(tmp_path):
    truth = {"train": {str(i): [("cat", 0, 0, 5, 5), ("dog", 9, 9, 5, 5)] for i in range(8)}}
    coco(tmp_path, truth)
    loader = Coco(train="train.json", images="images", crops=True, test_fraction=0.25)
    assert loader.group == "source"
    parts = split(loader.load(locator(tmp_path)), loader, "label", validation=True)
    sources = [set(parts[name]["source"]) for name in ("train", "test", "validation")]
    assert sum(len(found) for found in sources) == len(set.union(*sources)) == 8
    assert Coco(train="train.json", crops=True, group=None).group is None


def test_a_margin_is_cut_out_and_ends_at_the_image(tmp_path):
    assert edges((10, 10, 20, 10), 100, 100, 0.5) == (0, 5, 40, 25)
    assert edges((90, 95, 20, 10), 100, 100, 0) == (90, 95, 100, 100)
    rows = load("voc", tmp_path, crops=True, margin=0.5)["train"]
    assert [image.size for image in rows["image"]] == [(19, 14), (28, 24), (12, 24)]
    with pytest.raises(ValidationError, match="crops: true"):
        Voc(path=".", margin=0.5)


def test_crops_are_of_the_photo_as_it_is_seen(tmp_path):
    coco(tmp_path, {"train": {"a": []}})
    image = Picture.new("RGB", (24, 40), (255, 255, 255))
    image.paste((220, 30, 30), (0, 30, 10, 40))  # a corner; upper left after the turn
    exif = Picture.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "images/a.png", exif=exif)
    box = {"id": 1, "image_id": 100, "bbox": [0, 0, 10, 10], "category_id": 7}
    change(tmp_path, "train.json", lambda found: found["annotations"].append(box))
    rows = read("coco", tmp_path, train="train.json", images="images", crops=True)["train"]
    assert rows[0]["image"].getcolors() == [(100, (220, 30, 30))]


def test_what_cannot_be_cut_is_named(tmp_path):
    voc(tmp_path)
    (tmp_path / "Annotations/b.xml").write_text(voc_xml([("dog", 50, 2, 5, 5)]))
    raw = (tmp_path / "JPEGImages/d.png").read_bytes()
    (tmp_path / "JPEGImages/d.png").write_bytes(raw[:-40])
    message = refused("voc", tmp_path, path=".", crops=True)
    assert "data.train: 'b.png' has a box without a pixel inside the image: dog" in message
    assert "data.test: 'd.png' cannot be decoded" in message


def change(folder, name, edit):
    found = json.loads((folder / name).read_text())
    edit(found)
    (folder / name).write_text(json.dumps(found))


def annotation(key, value):
    return lambda found: found["annotations"][0].update({key: value})


def image(key, value):
    return lambda found: found["images"][0].update({key: value})


COCO_FAULTS = {
    "no images": (lambda f: f.pop("images"), "has no list of objects 'images'"),
    "unknown category": (
        annotation("category_id", 3),
        "id 5 of 'a.png' has category_id 3; the file's categories: 7 cat, 40 dog.",
    ),
    "unknown image": (annotation("image_id", 9), "annotation id 5 is of image_id 9"),
    "crowd in words": (annotation("iscrowd", "no"), "has iscrowd 'no'; wanted 0 or 1. Correct it"),
    "three sides": (annotation("bbox", [1, 2, 3]), "has bbox [1, 2, 3]; wanted [x, y, w"),
    "not a number": (annotation("bbox", [1, 2, 3, float("nan")]), "has bbox [1, 2, 3, nan]"),
    "crowd": (annotation("iscrowd", 2), "has iscrowd 2; wanted 0 or 1"),
    "area": (annotation("area", "big"), "has area 'big'"),
    "missing image": (image("file_name", "gone.png"), "gone.png' does not exist"),
    "absolute": (image("file_name", "/etc/passwd"), "'/etc/passwd'; wanted a path below"),
    "upwards": (image("file_name", "x/../../a.png"), "without '..'"),
    "upwards on windows": (image("file_name", "..\\a.png"), "without '..'"),
    "drive": (image("file_name", "C:/a.png"), "wanted a path below"),
    "same id": (image("id", 103), "image id 103 occurs 2 times"),
    "same file": (image("file_name", "b.png"), "file_name 'b.png' occurs 2 times"),
    "same annotation": (annotation("id", 6), "annotation id 6 occurs 2 times"),
    "no id": (image("id", None), "image 1 has id None"),
    "same category": (lambda f: f["categories"][0].update(id=40), "category id 40 occurs 2 times"),
    "same name": (lambda f: f["categories"][0].update(name="dog"), "two categories are named"),
    "no name": (lambda f: f["categories"][0].pop("name"), "needs an id and a name"),
    "another size": (image("width", 41), "says 41 × 24 pixels of 'a.png', which has 40 × 24"),
}  # fmt: skip


@pytest.mark.parametrize("fault", COCO_FAULTS)
def test_coco_faults_are_named(fault, tmp_path):
    edit, expected = COCO_FAULTS[fault]
    keys = coco(tmp_path)
    change(tmp_path, "train.json", edit)
    message = refused("coco", tmp_path, **keys)
    assert "data.train: 'train.json'" in message
    assert expected in message
    assert [line for line in message.splitlines() if not REMEDY.search(line)] == []


def test_several_faults_of_both_files_come_at_once(tmp_path):
    keys = coco(tmp_path)
    for name in ("train.json", "test.json"):
        change(tmp_path, name, annotation("bbox", None))
    change(tmp_path, "train.json", lambda f: f["annotations"][1].update(category_id=1))
    message = refused("coco", tmp_path, **keys)
    assert "data.train: 'train.json' annotation id 5 of 'a.png' has bbox None" in message
    assert "annotation id 6 of 'a.png' has category_id 1" in message
    assert "data.test: 'test.json' annotation id 5 of 'd.png' has bbox None" in message


def test_many_faults_are_counted(tmp_path):
    coco(tmp_path, {"train": {"a": [("cat", 0, 0, 5, 5)] * 9}})
    change(tmp_path, "train.json", lambda f: [row.update(bbox=0) for row in f["annotations"]])
    message = refused("coco", tmp_path, train="train.json", images="images")
    assert message.count("has bbox 0") == 5
    assert "4 more problems like these" in message


def test_coco_keeps_crowds_shapes_and_ids(tmp_path):
    keys = coco(tmp_path)
    polygon = [[4, 2, 14, 2, 14, 10]]

    def edit(found):
        found["annotations"][0].update(segmentation=polygon, area=40, iscrowd=1)

    change(tmp_path, "train.json", edit)
    data = read("coco", tmp_path, **keys)
    first = data["train"][0]["objects"]
    assert json.loads(first["segmentation"][0]) == polygon
    assert json.loads(first["segmentation"][1]) == []
    assert first["iscrowd"] == [True, False]
    assert first["area"][0] == 40
    assert data["train"]["image_id"] == [100, 103, 106]
    assert data["test"].features == data["train"].features
    crops = read("coco", tmp_path, **keys, crops=True)["train"]
    assert len(crops) == 2  # not the crowd


def test_coco_images_beside_the_json_or_in_a_folder_each(tmp_path):
    coco(tmp_path)
    (tmp_path / "images/train.json").write_text((tmp_path / "train.json").read_text())
    assert len(read("coco", tmp_path, train="images/train.json")["train"]) == 3
    keys = {"train": "train.json", "test": "test.json"}
    both = {"train": "images", "test": "images"}
    assert len(read("coco", tmp_path, **keys, images=both)["test"]) == 1
    message = refused("coco", tmp_path, **keys, images={"train": "images"})
    assert "data.images: no folder for test" in message
    sized = read("coco", tmp_path, **keys, images="images", check_size=False)
    assert named(sized["train"]) == TRUTH["train"]


def test_a_coco_file_that_is_none(tmp_path):
    (tmp_path / "a.json").write_text("[" * 100_000)
    assert "cannot be read as json" in refused("coco", tmp_path, train="a.json")
    (tmp_path / "a.json").write_text("[]")
    assert "holds list, not an object" in refused("coco", tmp_path, train="a.json")


BOMB = '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c SYSTEM "file:///etc/passwd">]>'
CAT = [("cat", 4, 2, 10, 8)]
VOC_FAULTS = {
    "doctype": (voc_xml(CAT, head=BOMB), "it has a DOCTYPE"),
    "no xml": ("<annotation>", "cannot be read as xml"),
    "another root": ("<html></html>", "begins with <html>"),
    "no name": (voc_xml([(" ", 1, 1, 2, 2)]), "object 1: it has no <name>"),
    "no box": (
        voc_xml(CAT).replace("bndbox", "polygon"),
        "object 1: cat has no <bndbox>, but: name, difficult, polygon",
    ),
    "no number": (voc_xml(CAT).replace("<xmin>5<", "<xmin>five<"), "cat has <xmin> 'five'"),
    "infinite": (voc_xml(CAT).replace("<xmin>5<", "<xmin>inf<"), "cat has <xmin> 'inf'"),
    "no corner": (voc_xml(CAT).replace("ymax", "zmax"), "cat has <ymax> ''"),
    "from zero": (voc_xml([("cat", -1, 0, 5, 5)]), "cat begins at 0, 1; VOC counts pixels from 1"),
    "another size": (
        voc_xml(CAT, size=(24, 40)),
        "'a.xml' says 24 × 40 pixels, but 'a.png' has 40 × 24",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", VOC_FAULTS)
def test_voc_faults_are_named(fault, tmp_path):
    text, expected = VOC_FAULTS[fault]
    keys = voc(tmp_path)
    (tmp_path / "Annotations/a.xml").write_text(text)
    message = refused("voc", tmp_path, **keys)
    assert "data.train: 'a.xml'" in message
    assert expected in message
    assert [line for line in message.splitlines() if not REMEDY.search(line)] == []


def test_voc_lists_and_images_that_are_wrong(tmp_path):
    keys = voc(tmp_path)
    (tmp_path / "train.txt").write_text("a\ngone\na\n")
    (tmp_path / "JPEGImages/d.png").unlink()
    message = refused("voc", tmp_path, **keys)
    assert "'train.txt' line 2: 'gone' has no file in 'Annotations'" in message
    assert "'train.txt' names 'a' more than once" in message
    assert "'d.xml' has no image: neither 'd.jpg' (or .png, …) nor 'x.png'" in message
    text = voc_xml(CAT).replace("x.png", "../../secret.png")
    (tmp_path / "Annotations/d.xml").write_text(text)
    assert "'d.xml' names the image '../../secret.png'" in refused("voc", tmp_path, **keys)
    message = refused("voc", tmp_path, path=".", train="trian.txt")
    assert "data.train: 'trian.txt' is not in" in message
    assert "Did you mean 'train.txt'?" in message
    assert "no annotations there" in refused(
        "voc", tmp_path, path=".", annotations="xml", train="JPEGImages"
    )


def test_voc_finds_its_lists(tmp_path):
    voc(tmp_path)
    place = tmp_path / "ImageSets/Main"
    place.mkdir(parents=True)
    (tmp_path / "train.txt").rename(place / "trainval.txt")
    (place / "test.txt").write_text("d  -1\n")
    assert {name: len(rows) for name, rows in read("voc", tmp_path, path=".").items()} == {
        "train": 3,
        "test": 1,
    }
    for file in (place / "trainval.txt", place / "test.txt", tmp_path / "test.txt"):
        file.unlink()
    assert len(read("voc", tmp_path, path=".")["train"]) == 4  # no list: all


def test_voc_splits_may_be_folders_of_xml_and_images(tmp_path):
    for part, images in TRUTH.items():
        for stem, things in images.items():
            draw(tmp_path / part / f"{stem}.png", things)
            (tmp_path / part / f"{stem}.xml").write_text(voc_xml(things))
    data = read("voc", tmp_path, path=".")
    assert {part: named(rows) for part, rows in data.items()} == TRUTH


def test_voc_difficult_and_edges_from_zero(tmp_path):
    voc(tmp_path)
    text = voc_xml(TRUTH["train"]["a"]).replace("<difficult>0<", "<difficult>1<", 1)
    (tmp_path / "Annotations/a.xml").write_text(text)
    assert read("voc", tmp_path, path=".")["train"][0]["objects"]["difficult"] == [True, False]
    kept = read("voc", tmp_path, path=".", difficult=False)["train"]
    assert named(kept)["a"] == TRUTH["train"]["a"][1:]
    assert named(kept)["b"] == TRUTH["train"]["b"]
    edges_from_zero = read("voc", tmp_path, path=".", one_based=False)["train"]
    assert named(edges_from_zero)["a"][0] == ("cat", 5, 3, 9, 7)


@pytest.mark.skipif(not SHARED or not Path(SHARED, "bccd_part").is_dir(), reason="needs BCCD")
def test_bccd_is_read_whole():
    data = Voc(path="bccd_part").load(locator(Path()))
    assert {name: len(rows) for name, rows in data.items()} == {"train": 110, "test": 72}
    assert data["train"].features["objects"]["category"].feature.names == [
        "Platelets",
        "RBC",
        "WBC",
    ]
    assert sum(len(things["bbox"]) for rows in data.values() for things in rows["objects"]) == 2545


YOLO_FAULTS = {
    "four values": ("0 0.5 0.5 0.5\n", "line 1: 4 values; wanted a class and 4 of a box"),
    "even polygon": ("0 .1 .1 .2 .2 .3 .3 .4\n", "line 1: 8 values"),
    "with confidence": ("0 .5 .5 .5 .5 .9\n", "line 1: 6 values"),
    "pixels": ("\n0 20 12 10 8\n", "line 2: '20' is no share of the image's side"),
    "unknown class": ("2 .5 .5 .1 .1\n", "line 1: class '2'; wanted a number from 0 to 1"),
    "a name": ("cat .5 .5 .1 .1\n", "line 1: class 'cat'"),
    "no number": ("0 .5 .5 nan .1\n", "line 1: 'nan' is no share"),
    "not utf-8": (b"0 \xff\n", "cannot be read"),
}


@pytest.mark.parametrize("fault", YOLO_FAULTS)
def test_yolo_faults_are_named(fault, tmp_path):
    text, expected = YOLO_FAULTS[fault]
    keys = yolo(tmp_path)
    raw = text if isinstance(text, bytes) else text.encode()
    (tmp_path / "labels/train/a.txt").write_bytes(raw)
    message = refused("yolo", tmp_path, **keys)
    assert f"data.train: 'labels/train/a.txt' {expected}" in message
    assert [line for line in message.splitlines() if not REMEDY.search(line)] == []


def test_crops_that_take_much_memory_are_told(tmp_path, caplog, monkeypatch):
    load("coco", tmp_path, crops=True)
    assert caplog.text == ""
    pixels = sum(w * h for part in TRUTH.values() for things in part.values()
                 for *_, w, h in things)  # fmt: skip
    monkeypatch.setattr(crops, "MUCH", 2 * pixels)
    load("coco", tmp_path, crops=True)
    assert caplog.text == ""
    monkeypatch.setattr(crops, "MUCH", 2 * pixels - 1)
    load("coco", tmp_path, crops=True)
    assert "data.crops: 5 objects of 0 megapixels together are kept in memory" in caplog.text


def test_images_without_a_txt_are_told_once(tmp_path, caplog):
    keys = yolo(tmp_path)
    read("yolo", tmp_path, **keys)
    assert "data.train: 1 of 3 images have no txt of labels (c.png)" in caplog.text
    assert "data.test" not in caplog.text
    caplog.clear()
    (tmp_path / "labels/train/c.txt").write_text("")
    assert named(read("yolo", tmp_path, **keys)["train"])["c"] == []
    assert caplog.text == ""


YAML_FAULTS = {
    "no names": ("train: images/train", "has no 'names'"),
    "no train": ("names: [a]\ntrain: images/trian", "'images/trian' does not exist"),
    "upwards": ("names: [a]\ntrain: images/../../x", "leads out of the data's folder"),
    "absolute": ("names: [a]\ntrain: /data/x", "leads out of the data's folder"),
    "elsewhere": (
        "names: [a]\npath: /data\ntrain: x",
        "says path: '/data', which is no folder below",
    ),
    "count": ("names: [a]\nnc: 2\ntrain: images/train", "says nc: 2, but names 1 classes"),
    "gap": ("names: {0: a, 2: b}\ntrain: images/train", "the numbers of the classes are 0, 2"),
    "twice": ("names: [a, a]\ntrain: images/train", "blank or repeated: 'a'"),
    "no yaml": ("names: [a", "cannot be read as yaml"),
    "code": ("!!python/object/apply:os.system [ls]", "cannot be read as yaml"),
}


@pytest.mark.parametrize("fault", YAML_FAULTS)
def test_yaml_faults_are_named(fault, tmp_path):
    text, expected = YAML_FAULTS[fault]
    keys = yolo(tmp_path)
    (tmp_path / "data.yaml").write_text(text)
    assert expected in refused("yolo", tmp_path, **keys)


def test_yolo_polygons_have_a_box_and_a_shape(tmp_path):
    keys = yolo(tmp_path)
    (tmp_path / "labels/train/a.txt").write_text("1 0.1 0.25 0.6 0.25 0.6 0.75\n0 .5 .5 .2 .5\n")
    things = read("yolo", tmp_path, **keys)["train"][0]["objects"]
    assert things["bbox"][0] == pytest.approx([4, 6, 20, 12])
    assert things["area"] == pytest.approx([120, 96])  # half of the box; a box
    assert json.loads(things["segmentation"][0])[0] == pytest.approx([4, 6, 24, 6, 24, 18])
    assert things["segmentation"][1] == "[]"


def test_yolo_rounding_does_not_push_a_box_out(tmp_path):
    keys = yolo(tmp_path)
    (tmp_path / "labels/train/a.txt").write_text("0 0.050004 0.5 0.100009 1.0000\n")
    (box,) = read("yolo", tmp_path, **keys)["train"][0]["objects"]["bbox"]
    assert box[0] >= 0
    (tmp_path / "labels/train/a.txt").write_text("0 0.9 0.5 0.5 1.0\n")
    (box,) = read("yolo", tmp_path, **keys)["train"][0]["objects"]["bbox"]
    assert box[0] + box[2] == pytest.approx(46)  # is out, and for the task to refuse


def test_yolo_without_yaml_with_lists_and_as_roboflow_writes_it(tmp_path):
    yolo(tmp_path)
    (tmp_path / "data.yaml").unlink()
    assert "neither data.yaml nor classes.txt" in refused("yolo", tmp_path, path=".")
    (tmp_path / "classes.txt").write_text("cat\ndog\n\n")
    data = read("yolo", tmp_path, path=".")
    assert {part: named(rows) for part, rows in data.items()} == TRUTH
    (tmp_path / "list.txt").write_text("./images/train/b.png\nimages/train/a.png\n")
    (tmp_path / "data.yaml").write_text("names: {0: cat, '1': dog}\ntrain: list.txt")
    assert list(named(read("yolo", tmp_path, path=".")["train"])) == ["b", "a"]
    (tmp_path / "list.txt").write_text("../a.png\n")
    assert "line 1: '../a.png' leads out" in refused("yolo", tmp_path, path=".")
    (tmp_path / "train").mkdir()
    for name in ("images", "labels"):
        (tmp_path / name / "train").rename(tmp_path / "train" / name)
    (tmp_path / "data.yaml").write_text("names: [cat, dog]\ntrain: ../train/images\n")
    assert named(read("yolo", tmp_path, path="data.yaml")["train"]) == TRUTH["train"]


def test_yolo_without_labels_is_told(tmp_path):
    keys = yolo(tmp_path)
    (tmp_path / "labels").rename(tmp_path / "txt")
    assert "no image of 'data.yaml' has an object" in refused("yolo", tmp_path, **keys)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_broken_image_is_named(kind, tmp_path):
    FORMATS[kind][1](tmp_path)
    (broken,) = tmp_path.rglob("a.png")
    broken.write_bytes(io.BytesIO(b"no image").read())
    keys = {"coco": {"train": "train.json", "images": "images"}}.get(kind, {"path": "."})
    assert "a.png' cannot be decoded" in refused(kind, tmp_path, **keys)
