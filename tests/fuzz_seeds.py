"""A small good data set of every loader, as files in memory: what the fuzzing tests start from."""

import gzip
import io
import json
import struct

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

LABELS = ["cat", "dog"]
TEXTS = ["a first text", "the second", "one more, with a comma", "the last"]
CLASSES = {"type": "text-classification", "text": ["text"], "label": "label"}
PICTURES = {"type": "image-classification"}
BOXES = {"type": "object-detection"}


def picture(kind="PNG", size=(6, 5), mode="RGB", value=90):
    file = io.BytesIO()
    Image.new(mode, size, value).save(file, kind)
    return file.getvalue()


def rows(count=8):
    return [{"text": TEXTS[n % 4], "label": LABELS[n % 2], "n": n / 2} for n in range(count)]


def csv(sign=","):
    lines = [f'"{row["text"]}"{sign}{row["label"]}{sign}{row["n"]}' for row in rows()]
    return "\n".join([f"text{sign}label{sign}n", *lines, ""]).encode()


def jsonl():
    return "".join(json.dumps(row) + "\n" for row in rows()).encode()


def parquet():
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows()), file)
    return file.getvalue()


def conll():
    return b"-DOCSTART- O\n\n" + b"Anna B-PER\nlives O\nin O\nParis B-LOC\n\n" * 3 + b"He O\n"


def coco():
    images = [{"id": n, "file_name": f"{n}.png", "width": 6, "height": 5} for n in (1, 2, 3)]
    things = [
        {"id": n, "image_id": n, "category_id": n % 2, "bbox": [1, 1, 3, 2], "area": 6.0,
         "iscrowd": 0, "segmentation": [[1, 1, 4, 1, 4, 3, 1, 3]]}
        for n in (1, 2, 3)
    ]  # fmt: skip
    names = [{"id": n, "name": name} for n, name in enumerate(LABELS)]
    return json.dumps({"images": images, "annotations": things, "categories": names}).encode()


def voc(name="cat"):
    return (
        f"<annotation><filename>1.png</filename><size><width>6</width><height>5</height></size>"
        f"<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>1</ymin>"
        f"<xmax>4</xmax><ymax>3</ymax></bndbox></object></annotation>"
    ).encode()


def squad():
    context = "Anna lives in Paris. She came in 1990."
    question = {
        "id": "q1",
        "question": "Where does Anna live?",
        "answers": [{"text": "Paris", "answer_start": 14}],
    }
    none = {"id": "q2", "question": "Why?", "is_impossible": True, "answers": []}
    paragraph = {"context": context, "qas": [question, none]}
    articles = [{"title": f"t{n}", "paragraphs": [paragraph]} for n in range(3)]
    return json.dumps({"version": "2", "data": articles}).encode()


def clinc():
    pairs = [[row["text"], row["label"]] for row in rows()]
    return json.dumps(
        {"train": pairs, "val": pairs[:2], "test": pairs[:2], "oos_train": [["what", "oos"]]}
    ).encode()


def talks(label):
    lines = ["categories:", f"- {label}", "conversations:"]
    for first, second in ((f"hi {label}", "who"), (f"so {label}", f"no {label}")):
        lines += [f"- - {first}", f"  - {second}"]
    return "\n".join(lines).encode()


def idle_tiff():
    """A TIFF whose header claims 60,000 × 60,000 pixels."""
    tags = [(256, 4, 1, 60000), (257, 4, 1, 60000), (258, 3, 1, 8), (259, 3, 1, 1),
            (262, 3, 1, 1), (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, 60000),
            (279, 4, 1, 9)]  # fmt: skip
    body = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<I", 8) + body + b"\0\0\0\0"


def _images(folder, kind="PNG"):
    end = kind.lower()
    names = [f"{folder}/{label}/{n}.{end}" for label in LABELS for n in (1, 2)]
    return {name: picture(kind, value=40 * k) for k, name in enumerate(names)}


# name -> (task block, data block, files); the files named last are those that are mutated
SEEDS = {
    "csv": (CLASSES, {"type": "table", "train": "t.csv"}, {"t.csv": csv()}),
    "tsv": (CLASSES, {"type": "table", "train": "t.tsv"}, {"t.tsv": csv("\t")}),
    "json": (
        CLASSES,
        {"type": "table", "train": "t.json"},
        {"t.json": json.dumps(rows()).encode()},
    ),
    "jsonl": (CLASSES, {"type": "table", "train": "t.jsonl"}, {"t.jsonl": jsonl()}),
    "csv.gz": (
        CLASSES,
        {"type": "table", "train": "t.csv.gz"},
        {"t.csv.gz": gzip.compress(csv(), mtime=0)},
    ),
    "parquet": (CLASSES, {"type": "table", "train": "t.parquet"}, {"t.parquet": parquet()}),
    "conll": (
        {"type": "token-classification", "tags": "tags"},
        {"type": "conll", "train": "t.conll"},
        {"t.conll": conll()},
    ),
    "image-folder": (PICTURES, {"type": "image-folder", "path": "d"}, _images("d")),
    "metadata": (
        PICTURES,
        {"type": "image-folder", "path": "d"},
        {
            **{f"d/{n}.png": picture() for n in range(4)},
            "d/metadata.csv": b"file_name,label\n0.png,cat\n1.png,dog\n2.png,cat\n3.png,dog\n",
        },
    ),
    "mask-folder": (
        {"type": "image-segmentation"},
        {"type": "mask-folder", "path": "d"},
        {
            "d/classes.txt": b"cat\ndog\n",
            **{f"d/images/{n}.png": picture() for n in (1, 2, 3)},
            **{f"d/masks/{n}.png": picture(mode="L", value=n % 2) for n in (1, 2, 3)},
        },
    ),
    "coco": (
        BOXES,
        {"type": "coco", "train": "c.json"},
        {"c.json": coco(), **{f"{n}.png": picture() for n in (1, 2, 3)}},
    ),
    "voc": (
        BOXES,
        {"type": "voc", "path": "d"},
        {
            "d/train.txt": b"1\n2\n",
            **{f"d/Annotations/{n}.xml": voc(LABELS[n % 2]) for n in (1, 2)},
            **{f"d/JPEGImages/{n}.png": picture() for n in (1, 2)},
        },
    ),
    "yolo": (
        BOXES,
        {"type": "yolo", "path": "d"},
        {
            "d/data.yaml": b"names: [cat, dog]\nnc: 2\ntrain: images/train\nval: images/val\n",
            **{f"d/images/{s}/1.png": picture() for s in ("train", "val")},
            **{
                f"d/labels/{s}/1.txt": b"0 .5 .5 .4 .4\n1 .1 .1 .9 .1 .5 .9\n"
                for s in ("train", "val")
            },
        },
    ),
    "pixel-table": (
        PICTURES,
        {"type": "pixel-table", "train": "p.csv", "height": 2, "width": 2},
        {"p.csv": b"".join(b"0,9,200,255,%d\n" % (n % 2) for n in range(6))},
    ),
    "clinc": (CLASSES, {"type": "clinc", "path": "c.json"}, {"c.json": clinc()}),
    "squad": (
        {"type": "question-answering", "no_answer": True},
        {"type": "squad", "train": "s.json"},
        {"s.json": squad()},
    ),
    "text-files": (
        {"type": "fill-mask", "text": "text"},
        {"type": "text-files", "train": "t.txt"},
        {"t.txt": "\n".join(TEXTS).encode()},
    ),
    "parallel-text": (
        {"type": "translation", "source": "source", "target": "target"},
        {"type": "parallel-text", "train": {"source": "a.en", "target": "a.de.gz"}},
        {"a.en": b"one\ntwo\nthree\n", "a.de.gz": gzip.compress(b"eins\nzwei\ndrei\n", mtime=0)},
    ),
    "chatterbot": (
        CLASSES,
        {"type": "chatterbot", "path": "d"},
        {f"d/{label}.yml": talks(label) for label in LABELS},
    ),
    "hub": (CLASSES, {"type": "hub", "path": "d"}, {"d/train.csv": csv(), "d/test.csv": csv()}),
}
