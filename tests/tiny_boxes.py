"""A handful of images with coloured rectangles, as COCO, VOC and YOLO say it."""

import json

import yaml
from PIL import Image

SIZE = (40, 24)  # width, height
COLOURS = {"cat": (220, 30, 30), "dog": (30, 30, 220)}
TRUTH = {  # split -> image -> (class, x, y, width, height) of its objects
    "train": {
        "a": [("cat", 4, 2, 10, 8), ("dog", 20, 6, 16, 12)],
        "b": [("dog", 0, 0, 8, 24)],
        "c": [],
    },
    "test": {"d": [("cat", 30, 10, 10, 14), ("cat", 2, 12, 6, 6)]},
}


def draw(path, things, size=SIZE):
    """White, with a rectangle in its class's colour for each thing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, (255, 255, 255))
    for name, x, y, width, height in things:
        image.paste(COLOURS[name], (x, y, x + width, y + height))
    image.save(path)


def coco(folder, truth=TRUTH):
    """json per split with ids that are not contiguous; the images of all in one folder."""
    ids = {"cat": 7, "dog": 40}
    for split, images in truth.items():
        found = {"images": [], "annotations": [], "categories": []}
        found["categories"] = [{"id": key, "name": name} for name, key in ids.items()]
        for number, (stem, things) in enumerate(images.items()):
            draw(folder / "images" / f"{stem}.png", things)
            key, (width, height) = 100 + 3 * number, SIZE
            found["images"].append(
                {"id": key, "file_name": f"{stem}.png", "width": width, "height": height}
            )
            for name, *box in things:
                found["annotations"].append(
                    {"id": 5 + len(found["annotations"]), "image_id": key, "bbox": box,
                     "category_id": ids[name], "area": box[2] * box[3], "iscrowd": 0}
                )  # fmt: skip
        (folder / f"{split}.json").write_text(json.dumps(found))
    return {"train": "train.json", "test": "test.json", "images": "images"}


OBJECT = """<object><name>{}</name><difficult>0</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin>
<xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"""


def voc_xml(things, size=SIZE, head=""):
    """Corners counted from 1, the last pixel included."""
    objects = "".join(OBJECT.format(n, x + 1, y + 1, x + w, y + h) for n, x, y, w, h in things)
    width, height = size
    return (
        f"{head}<annotation><filename>x.png</filename><size><width>{width}</width>"
        f"<height>{height}</height><depth>3</depth></size>{objects}</annotation>"
    )


def voc(folder, truth=TRUTH):
    (folder / "Annotations").mkdir(parents=True, exist_ok=True)
    for split, images in truth.items():
        for stem, things in images.items():
            draw(folder / "JPEGImages" / f"{stem}.png", things)
            (folder / "Annotations" / f"{stem}.xml").write_text(voc_xml(things))
        (folder / f"{split}.txt").write_text("\n".join(images) + "\n")
    return {"path": "."}


def yolo(folder, truth=TRUTH):
    names = list(COLOURS)
    for split, images in truth.items():
        for stem, things in images.items():
            draw(folder / "images" / split / f"{stem}.png", things)
            if not things:
                continue  # no file says: no objects
            file = folder / "labels" / split / f"{stem}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(yolo_line(names.index(n), *box) for n, *box in things))
    found = {"names": names, "train": "images/train", "test": "images/test"}
    (folder / "data.yaml").write_text(yaml.safe_dump(found))
    return {"path": "data.yaml"}


def yolo_line(number, x, y, width, height, size=SIZE):
    w, h = size
    values = ((x + width / 2) / w, (y + height / 2) / h, width / w, height / h)
    return f"{number} " + " ".join(f"{value:.6f}" for value in values) + "\n"
