import datasets
import pytest
import tiny
import torch
from datasets import Dataset, DatasetDict, Features, Image, Value
from tiny_run import noise, picture, source_folder, write_csv
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BertForSequenceClassification,
    BertTokenizerFast,
    MPNetForSequenceClassification,
    RobertaForSequenceClassification,
    T5ForSequenceClassification,
)

from hf_sft.errors import DataError
from hf_sft.loaders import ImageFolder
from hf_sft.resources import locator
from hf_sft.tasks import ImageClassification, TextClassification


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def data(**splits):
    return DatasetDict({name: Dataset.from_dict(columns) for name, columns in splits.items()})


def refused(task, splits):
    with pytest.raises(DataError) as error:
        task.check(splits)
    return str(error.value)


GOOD = {"text": ["a", "b"], "label": ["x", "y"]}


def test_missing_columns_of_all_splits_are_named_with_the_nearest():
    task = TextClassification(text=["text", "other"])
    message = refused(task, data(train={"txet": ["a"], "label": ["x"]}, test={"lable": ["x"]}))
    assert (
        "task.text[0] names column 'text', but train has: txet, label. Did you mean 'txet'?"
        in message
    )
    assert "task.text[1] names column 'other', but test has" in message
    assert "task.label names column 'label', but test has: lable. Did you mean 'lable'?" in message


def test_inputs_and_labels_are_told_together():
    message = refused(
        TextClassification(),
        data(
            train={"text": ["a", None], "label": ["x", "y"]}, test={"text": [None], "label": ["z"]}
        ),
    )
    assert "data.train row 2: 'text' is empty" in message
    assert "data.test row 1: 'text' is empty" in message
    assert "data.test: 'label' has classes that train does not: z" in message


def test_many_bad_rows_are_counted():
    message = refused(TextClassification(), data(train={"text": [None] * 99 + ["a"],
                                                        "label": ["x"] * 99 + ["y"]}))  # fmt: skip
    assert "more rows like these" in message
    assert len(message.splitlines()) < 20


@pytest.mark.parametrize("values", [[7, 8], [True, False], ["7", "8"]])
def test_a_text_may_be_a_number(values):
    checked = TextClassification().check(data(train={"text": values, "label": ["x", "y"]}))
    assert checked["train"].features["text"] == Value("string")


def test_a_list_is_no_text():
    assert "row 1" in refused(TextClassification(), data(train={**GOOD, "text": [["a"], ["b"]]}))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = source_folder(tmp_path_factory.mktemp("bert"))
    return AutoTokenizer.from_pretrained(folder), AutoConfig.from_pretrained(folder)


def test_texts_are_cut_at_what_the_model_takes(tokenizer):
    processor, config = tokenizer
    TextClassification().prepare(processor, tiny.bert())
    rows = TextClassification().check(data(train={**GOOD, "text": ["red " * 50, "oak"]}))["train"]
    lengths = [
        len(ids) for ids in TextClassification().encode(rows, processor, config)["input_ids"]
    ]
    assert lengths == [config.max_position_embeddings, 3]
    short = TextClassification(max_length=4).encode(rows, processor, config)
    assert [len(ids) for ids in short["input_ids"]] == [4, 3]
    batch = TextClassification().collator(processor)([short[0], short[1]])
    assert batch["input_ids"].shape == (2, 4)
    assert batch["labels"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("kind", "most"),
    [(BertForSequenceClassification, 12), (RobertaForSequenceClassification, 10),
     (MPNetForSequenceClassification, 10), (T5ForSequenceClassification, 51)],
)  # fmt: skip
def test_a_long_text_is_cut_to_the_longest_that_goes_through_the_model(tmp_path, kind, most):
    """RoBERTa and MPNet count positions from 2, where the padding token has the number 1."""
    vocabulary = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", "red", "oak"]
    written(tmp_path / "vocab.txt", "\n".join(vocabulary))
    processor = BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"))
    settings = {**tiny.BERT, "max_position_embeddings": 12, "pad_token_id": 1, "eos_token_id": 3}
    if kind is T5ForSequenceClassification:  # no limit of its own: nothing is cut
        settings = tiny.t5().config.to_dict() | {"pad_token_id": 1, "eos_token_id": 3}
    model = kind(kind.config_class(**settings)).eval()
    task = TextClassification()
    task.prepare(processor, model)
    rows = Dataset.from_dict({"text": ["red " * 49, "oak"]})
    encoded = task.encode(rows, processor, model.config)
    assert [len(ids) for ids in encoded["input_ids"]] == [most, 3]
    batch = task.collator(processor)([encoded[0], encoded[1]])
    model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    processor.save_pretrained(tmp_path)  # predict and pipeline find the limit there
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert len(saved("red " * 49, truncation=True)["input_ids"]) == most
    if most < 51:
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, most + 1), 5))


def test_pairs_are_encoded_as_pairs(tokenizer):
    processor, config = tokenizer
    task = TextClassification(text=["a", "b"])
    rows = task.check(data(train={"a": ["red", "oak"], "b": ["oak", "elm"], "label": [1, 2]}))[
        "train"
    ]
    ids = task.encode(rows, processor, config)[0]["input_ids"]
    assert ids == processor("red", "oak")["input_ids"]


def written(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [("t.txt", "red rose\n\nö\n"), ("t.txt", b"\xef\xbb\xbfred rose\r\n\xc3\xb6"),
     ("t.csv", "id,text\n1,red rose\n2,ö\n"), ("t.TSV", "text\tid\nred rose\t1\nö\t2\n"),
     ("t.jsonl", '{"text": "red rose"}\n{"text": "ö"}\n'), ("t", "red rose\nö")],
)  # fmt: skip
def test_inputs_to_predict_are_lines_or_a_table(tmp_path, name, content):
    rows = TextClassification().read_inputs(written(tmp_path / name, content))
    assert rows["text"][:] == ["red rose", "ö"]
    assert list(TextClassification().shown_inputs(rows)) == rows.to_list()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [("t.txt", "", "no texts"), ("t.txt", "\n \n", "no texts"), ("t.txt", b"\xff\xfe", "UTF-8"),
     ("t.csv", "txt\na\n", "'txt'?"), ("t.csv", "", "empty"), ("t.csv", "text\n", "no texts"),
     ("t.csv", "text,id\n,1\n", "no row has a value in text"), ("t.csv", "text\na,b\n", "line 2")],
)  # fmt: skip
def test_inputs_that_cannot_be_predicted(tmp_path, name, content, words):
    with pytest.raises(DataError, match=words):
        TextClassification().read_inputs(written(tmp_path / name, content))


def test_a_folder_holds_no_lines(tmp_path):
    with pytest.raises(DataError, match="is a folder"):
        TextClassification().read_inputs(tmp_path)


def test_predictions_name_every_class():
    rows = Dataset.from_dict({"text": ["a", "b"]})
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]])
    found = list(TextClassification().predictions(rows, logits, ["x", "y", "z"]))
    assert [record["label"] for record in found] == ["y", "x"]
    for record, scores in zip(found, logits.softmax(-1).tolist(), strict=True):
        assert record["probabilities"] == dict(zip("xyz", scores, strict=True))
        assert record["probability"] == max(scores)


def broken(folder):
    """Images that cannot be decoded, by how they are broken."""
    jpg = noise(folder / "train" / "cat" / "good.jpg").read_bytes()
    png = noise(folder / "train" / "dog" / "good.png").read_bytes()
    return {
        "torn.jpg": jpg[: len(jpg) * 3 // 4],
        "text.png": b"not an image",
        "zero.png": b"",
        "torn.png": png[: len(png) * 3 // 4],
    }


def test_every_broken_image_is_named_before_training(tmp_path):
    for name, content in broken(tmp_path).items():
        written(tmp_path / "train" / "cat" / name, content)
    picture(tmp_path / "test" / "dog" / "good.png")
    written(tmp_path / "test" / "dog" / "bad.png", b"x")
    splits = ImageFolder(path=".").load(locator(tmp_path))
    message = refused(ImageClassification(), splits)
    names = ["torn.jpg", "text.png", "zero.png", "torn.png"]
    expected = [tmp_path / "train" / "cat" / name for name in names]
    assert [
        path for path in [*expected, tmp_path / "test/dog/bad.png"] if str(path) not in message
    ] == []
    assert "good" not in message


def test_metadata_that_names_a_missing_image(tmp_path):
    picture(tmp_path / "1.png")
    write_csv(
        tmp_path / "metadata.csv", [("1.png", "a"), ("gone.png", "b")], ("file_name", "label")
    )
    assert "gone.png" in refused(
        ImageClassification(), ImageFolder(path=".").load(locator(tmp_path))
    )


def test_a_missing_image_and_a_column_without_images(tmp_path):
    features = Features({"image": Image(), "label": Value("string")})
    rows = Dataset.from_dict({"image": [None, None], "label": ["x", "y"]}, features=features)
    assert "row 1: there is no image" in refused(ImageClassification(), DatasetDict(train=rows))
    message = refused(ImageClassification(), data(train={"image": [1, 2], "label": ["x", "y"]}))
    assert "task.image" in message


def test_paths_in_a_table_are_images(tmp_path):
    paths = [str(picture(tmp_path / name)) for name in ("1.png", "2.png")]
    checked = ImageClassification().check(data(train={"image": paths, "label": ["x", "y"]}))
    assert checked["train"][0]["image"].size == (16, 16)


def test_images_to_predict_are_a_file_or_a_folder(tmp_path):
    task = ImageClassification()
    one = picture(tmp_path / "in" / "a" / "1.png")
    picture(tmp_path / "in" / "2.JPG")
    written(tmp_path / "in" / "notes.txt", "no image")
    written(tmp_path / "in" / "._2.JPG", "what a Mac leaves beside 2.JPG")
    assert [row["image"] for row in task.shown_inputs(task.read_inputs(one))] == [str(one)]
    assert len(task.read_inputs(tmp_path / "in")) == 2
    written(tmp_path / "in" / "bad.png", "")
    with pytest.raises(DataError, match=r"bad\.png"):
        task.read_inputs(tmp_path / "in")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no images there"):
        task.read_inputs(tmp_path / "none")
