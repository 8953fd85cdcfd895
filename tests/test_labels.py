import random

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from hf_sft.errors import DataError
from hf_sft.tasks.labels import encode_labels


def data(train, **other):
    return DatasetDict(
        {s: Dataset.from_dict({"label": v, "n": list(range(len(v)))})
         for s, v in {"train": train, **other}.items()}
    )  # fmt: skip


def names(train, **other):
    return encode_labels(data(train, **other), "label")["train"].features["label"].names


@pytest.mark.parametrize(
    ("values", "order"),
    [([10, 9, 2, 10], ["2", "9", "10"]),
     (["10", "9", "2"], ["2", "9", "10"]),
     ([1.0, 0.0, 10.0], ["0", "1", "10"]),
     (["10", "9", "b"], ["10", "9", "b"]),
     ([True, False], ["False", "True"]),
     (["élan", "zoo", "été", "日本"], ["zoo", "élan", "été", "日本"]),
     ([" b ", "a", "b"], ["a", "b"])],
)  # fmt: skip
def test_numbers_sort_as_numbers_and_words_as_words(values, order):
    assert names(values) == order


def test_the_order_does_not_depend_on_the_rows():
    values = [str(i) for i in range(20)] + list("abc")
    shuffled = random.Random(1).sample(values, len(values))
    assert names(values) == names(shuffled)


def test_the_code_of_a_row_is_the_number_of_its_name():
    values = ["b", "a", "c", "a"]
    encoded = encode_labels(data(values, test=["c", "b"]), "label")
    for split, given in (("train", values), ("test", ["c", "b"])):
        feature = encoded[split].features["label"]
        assert [feature.int2str(code) for code in encoded[split]["label"]] == given
        assert encoded[split].column_names == ["label", "n"]
        assert encoded[split]["n"] == list(range(len(given)))


def test_a_class_label_keeps_its_order_and_loses_what_train_has_not():
    features = Features({"label": ClassLabel(names=["z", "unused", "a"]), "n": Value("int64")})
    rows = Dataset.from_dict({"label": [2, 0, 2], "n": [0, 1, 2]}, features=features)
    encoded = encode_labels(DatasetDict({"train": rows}), "label")["train"]
    assert encoded.features["label"].names == ["z", "a"]
    assert list(encoded["label"]) == [1, 0, 1]


def test_the_same_class_written_as_number_or_word():
    encoded = encode_labels(data([1, 2, 10], test=["10", "1"]), "label")
    assert list(encoded["test"]["label"]) == [2, 0]


@pytest.mark.parametrize("bad", [None, float("nan"), 1.5])
def test_a_number_that_is_no_class_is_named_with_its_row(bad):
    with pytest.raises(DataError, match=r"data\.test row 2: 'label'") as error:
        names([1.0, 2.0], test=[1.0, bad])
    assert ("NaN" in str(error.value)) == (bad != 1.5)


@pytest.mark.parametrize("bad", [None, "", "  "])
def test_a_missing_word_is_named_with_its_row(bad):
    with pytest.raises(DataError, match=r"data\.train row 3: 'label'"):
        names(["a", "b", bad])


def test_unlabelled_rows_of_the_hub_are_refused():
    with pytest.raises(DataError, match=r"data\.test row 1: 'label' is -1"):
        names([0, 1], test=[-1, -1])


def test_minus_one_beside_other_classes_may_be_one():
    with pytest.raises(DataError) as error:
        names([0, -1, 1, -1], test=[1, 0])
    said = "data.train: 2 of 4 rows have the 'label' -1, the first is row 2. Where -1 is a class"
    assert str(error.value).startswith(said)
    assert "negative, neutral, positive" in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_list_is_no_class():
    with pytest.raises(DataError, match=r"data\.train row 1"):
        names([[1], [2]])


def test_problems_of_all_splits_come_together_and_many_are_counted():
    with pytest.raises(DataError) as error:
        names(["a", "b", *[None] * 50], test=["a", None])
    text = str(error.value)
    assert "more rows like these" in text
    assert "data.test row 2" in text
    assert len(text.splitlines()) < 20


def test_classes_that_train_does_not_have():
    with pytest.raises(DataError) as error:
        names(["cat", "dog"], test=["cat", "dgo"], validation=["cow"])
    text = str(error.value)
    assert "data.test: 'label' has classes that train does not: dgo" in text
    assert "Train has: cat, dog." in text
    assert "Did you mean 'dog'" in text
    assert "data.validation" in text


def test_one_class_is_none():
    with pytest.raises(DataError, match=r"single class a"):
        names(["a", "a"])


def test_keep_labels_leaves_the_rows_of_those_classes():
    kept = encode_labels(data(list("abcab"), test=list("cb")), "label", ["b", "a"])
    assert kept["train"].features["label"].names == ["a", "b"]
    assert kept["train"]["n"] == [0, 1, 3, 4]
    assert kept["test"]["n"] == [1]
    numbers = encode_labels(data([1, 2, 10, 3]), "label", [10, 2])
    assert numbers["train"].features["label"].names == ["2", "10"]


def test_keep_labels_that_do_not_occur_are_all_named():
    with pytest.raises(DataError) as error:
        encode_labels(data(["cat", "dog"], test=["cow"]), "label", ["ct", "dg"])
    text = str(error.value)
    assert "Did you mean 'cat'" in text
    assert "Did you mean 'dog'" in text
    assert "data.test: no row is left" in text
