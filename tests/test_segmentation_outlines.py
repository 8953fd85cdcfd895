"""COCO's outlines: what does not fill the image, cannot be read or lies outside it is named."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco
from tiny_masks import segformer_source

from hf_sft.cli import main
from hf_sft.errors import DataError
from hf_sft.loaders import Coco
from hf_sft.resources import locator
from hf_sft.tasks import ImageSegmentation
from hf_sft.tasks.segmentation_runs import run_lengths, uncompressed

HEIGHT, WIDTH = 24, 32
SQUARE = [[4, 4, 12, 4, 12, 12, 4, 12]]
DOT = [[5.1, 5.1, 5.2, 5.1, 5.2, 5.2]]  # between the middles of pixels


def rle(counts, size=(HEIGHT, WIDTH)):
    return {"size": list(size), "counts": counts}


def written(folder, *shapes):
    """``train.json`` of two images: a good object, then ``shapes``."""
    images, annotations = [], []
    for number, outlines in enumerate([[SQUARE], [SQUARE, *shapes]]):
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png"})
        for shape in outlines:
            one = {"id": len(annotations), "image_id": number, "category_id": 1}
            annotations.append(one | {"bbox": [4, 4, 8, 8], "segmentation": shape})
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "train.json").write_text(json.dumps(content), "utf-8")
    return Coco(train="train.json").load(locator(folder))


FAULTS = {
    "too short": (rle([50, 50]), "counts of 100 pixels in all, the image has 768"),
    "too long": (rle([50, 900]), "counts of 950 pixels in all"),
    "negative": (rle([-1, 769]), "the count -1; wanted whole numbers from 0"),
    "fraction": (rle([0.5, 767.5]), "the count 0.5"),
    "flags": (rle([True, 767]), "the count True"),
    "size": (rle([768], (WIDTH, HEIGHT)), r"is of size \[32, 24\], the image of \[24, 32\]"),
    "no size": ({"counts": [768]}, "is of size None"),
    "no counts": ({"size": [HEIGHT, WIDTH]}, "has no counts"),
    "no text of RLE": (rle("%%%%not rle"), "compressed counts with '%' at place 1"),
    "short text": (rle("0b0"), "pixels in all, the image has 768"),
    "cut text": (rle("0P"), "end inside a number"),
    "right of it": ([[40, 2, 50, 2, 50, 9]], "outside the image of 32 × 24 pixels: x 40 to 50"),
    "above it": ([[2, -9, 9, -9, 9, -2]], "lies outside the image"),
    "not finite": ([[2, 2, float("nan"), 2, 9, 9]], "the coordinate nan"),
    "far": ([[2, 2, 1e9, 2, 9, 9]], "the coordinate 1000000000.0"),
}


@pytest.mark.parametrize("problem", ["semantic", "instance"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_outline_is_named_by_row_and_object(tmp_path, fault, problem):
    shape, words = FAULTS[fault]
    with pytest.raises(DataError, match=words) as error:
        ImageSegmentation(problem=problem).check(written(tmp_path, shape))
    assert "data.train row 2: object 2 of" in str(error.value)
    assert "Correct or remove the object" in str(error.value)


def test_a_check_refuses_them(tmp_path, capsys):
    written(tmp_path, rle("%%%%not rle"))
    segformer_source(tmp_path / "source")
    (tmp_path / "recipe.yaml").write_text(
        "task: {type: image-segmentation}\ndata: {type: coco, train: train.json}\n"
        "model: {name: ./source}\ntraining: {output_dir: out}\n", "utf-8"
    )  # fmt: skip
    assert main(["check", str(tmp_path / "recipe.yaml")]) == 2
    assert "data.train row 2: object 2 of" in capsys.readouterr().err


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_counts_and_compressed_text_are_pycocotools_own(share):
    mask = np.random.default_rng(0).random((HEIGHT, 400)) < share
    packed = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    text = packed["counts"].decode()
    for counts in (text, uncompressed(text)):
        read = run_lengths(json.dumps(rle(counts, mask.shape)), *mask.shape)
        assert (coco.decode(read) == mask).all()
        assert read["counts"] == packed["counts"]


@pytest.mark.parametrize("problem", ["semantic", "instance"])
def test_outlines_without_a_pixel_are_told_and_left_out_everywhere(tmp_path, caplog, problem):
    task = ImageSegmentation(problem=problem)
    with caplog.at_level(logging.WARNING):
        data = task.check(written(tmp_path, DOT, rle([HEIGHT * WIDTH])))
    assert "data.train: 2 outlines hold no pixel" in caplog.text
    assert "row 2 object 2, row 2 object 3" in caplog.text
    first, second = (task.kind.target(row, HEIGHT, WIDTH) for row in data["train"])
    if problem == "semantic":
        assert torch.equal(first, second)
    else:
        assert len(second.masks) == len(second.classes) == len(second.crowds) == 1
        assert torch.equal(first.masks, second.masks)


def test_outlines_that_reach_out_of_the_image_are_cut_at_its_edge(tmp_path):
    data = ImageSegmentation().check(written(tmp_path, [[28, 0, 40, 0, 40, 40, 28, 40]]))
    found = ImageSegmentation(problem="instance").kind.target(data["train"][1], HEIGHT, WIDTH)
    assert found.masks[1].sum() == 4 * HEIGHT
