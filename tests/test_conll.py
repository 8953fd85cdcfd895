"""CoNLL columns as sentences, and every fault named by file and line."""

import os
from pathlib import Path

import pytest
from datasets import List, Value
from pydantic import ValidationError

from hf_sft.errors import DataError
from hf_sft.loaders import Conll
from hf_sft.resources import locator
from hf_sft.tasks import TokenClassification

WNUT = "a\tO\n\t\n#tag\tB-x\nNew York\tI-x\n\n\n"
CONLL = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O

-DOCSTART- -X- -X- O
Peter  NNP B-NP B-PER
"""


def read(folder, content, **settings):
    path = folder / "train.conll"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return Conll(train="train.conll", **settings).load(locator(folder))["train"]


def refused(folder, content, **settings):
    with pytest.raises(DataError) as error:
        read(folder, content, **settings)
    return str(error.value)


def test_tabs_part_columns_where_the_first_line_has_one(tmp_path):
    rows = read(tmp_path, WNUT)
    assert rows["tokens"][:] == [["a"], ["#tag", "New York"]]
    assert rows["tags"][:] == [["O"], ["B-x", "I-x"]]
    assert rows["lines"][:] == [[1], [3, 4]]
    assert set(rows["file"]) == {"train.conll"}
    assert rows.features["tags"] == List(Value("string"))


def test_spaces_part_columns_and_documents_begin_anew(tmp_path):
    rows = read(tmp_path, CONLL, fields={"tokens": 0, "pos": 1, "tags": 3})
    assert rows["tokens"][:] == [["EU", "rejects"], ["Peter"]]
    assert rows["pos"][:] == [["NNP", "VBZ"], ["NNP"]]
    assert rows["tags"][:] == [["B-ORG", "O"], ["B-PER"]]
    assert rows["lines"][:] == [[3, 4], [7]]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["unix", "windows", "old mac"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "with mark"])
def test_line_ends_and_byte_order_marks_do_not_matter(tmp_path, end, mark):
    rows = read(tmp_path, mark + WNUT.replace("\n", end).encode())
    assert rows["tokens"][:] == [["a"], ["#tag", "New York"]]


@pytest.mark.parametrize(
    "word", ["\u00a0", "a\u00a0b", "\u2028", "\x85", "é"],
    ids=["no-break space", "inner no-break space", "line separator", "next line", "accent"],
)  # fmt: skip
def test_only_spaces_tabs_and_line_ends_part_anything(tmp_path, word):
    assert read(tmp_path, f"x O\n{word}x O\n")["tokens"][0] == ["x", f"{word}x"]


def test_comments_and_ranges_of_words_are_passed_over(tmp_path):
    content = "# text = im Haus\n1-2\tim\t_\n1\tin\tADP\n2\tdem\tDET\n3\tHaus\tNOUN\n"
    rows = read(tmp_path, content, fields={"tokens": 1, "tags": 2}, skip=r"# |\d+[-.]\d")
    assert rows["tokens"][0] == ["in", "dem", "Haus"]
    assert rows["tags"][0] == ["ADP", "DET", "NOUN"]
    assert rows["lines"][0] == [3, 4, 5]


def test_a_hash_tag_is_a_word():
    assert Conll(train="x").skip is None


@pytest.mark.parametrize(
    ("content", "words"),
    [("a O\nb\n", "line 2 has 1 columns ('b'), line 1 has 2"),
     ("a\tO\nb O\n", "line 2 has 1 columns"),
     ("a O\n\nb c O\n", "line 3 has 3 columns"),
     ("a\tO\n\tO\n", "line 2 has nothing in the column of tokens"),
     ("a\tO\nb\t\n", "line 2 has nothing in the column of tags"),
     ("", "holds no words"), ("\n \n\t\n", "holds no words"),
     (b"a O\n\xff O\n", "line 2 is not UTF-8")],
    ids=["no tag", "spaces", "too many", "no word", "empty tag", "empty", "blank", "bytes"],
)  # fmt: skip
def test_bad_lines_are_named(tmp_path, content, words):
    message = refused(tmp_path, content)
    assert words in message
    assert "data.train: 'train.conll'" in message


def test_a_column_that_is_not_there(tmp_path):
    message = refused(tmp_path, CONLL, fields={"tokens": 0, "tags": 4})
    assert "data.fields.tags: there is no column 4 in 'train.conll', whose line 3 has 4" in message


def test_many_bad_lines_are_counted(tmp_path):
    message = refused(tmp_path, "a O\n" + "b\n" * 50)
    assert "45 more lines like these" in message
    assert len(message.splitlines()) == 6


def test_every_file_is_read_and_every_fault_told(tmp_path):
    (tmp_path / "train.conll").write_text("a O\nb\n")
    (tmp_path / "test.conll").write_text("a O\n\nc d e\n")
    with pytest.raises(DataError) as error:
        Conll(train="train.conll", test="test.conll").load(locator(tmp_path))
    assert "data.train: 'train.conll' line 2" in str(error.value)
    assert "data.test: 'test.conll' line 3" in str(error.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"fields": {}}, "at least 1"), ({"fields": {"lines": 0}}, "take another name"),
     ({"skip": "("}, "regular expression")],
)  # fmt: skip
def test_keys_that_cannot_be(settings, words):
    with pytest.raises(ValidationError, match=words):
        Conll(train="x", **settings)


def test_wnut_17_as_its_makers_count_it():
    folder = Path(os.environ.get("HF_SFT_DATA", ""))
    if not (folder / "wnut17" / "wnut17train.conll").is_file():
        pytest.skip("needs HF_SFT_DATA with wnut17/wnut17train.conll")
    data = Conll(
        train="wnut17/wnut17train.conll",
        validation="wnut17/emerging.dev.conll",
        test="wnut17/emerging.test.annotated",
    ).load(locator(folder))
    assert {split: len(rows) for split, rows in data.items()} == {
        "train": 3394, "validation": 1009, "test": 1287}  # fmt: skip
    checked = TokenClassification().check(data)
    assert len(TokenClassification().names(checked)) == 13
    begins = sum(tag % 2 for tags in checked["test"]["tags"] for tag in tags)  # O, B-x, I-x, …
    assert begins == 1079
