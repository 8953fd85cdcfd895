import pytest

from hf_sft.component import choices
from hf_sft.errors import DataError
from hf_sft.loaders import Loader, TextFiles
from hf_sft.resources import locator


def load(folder, **settings):
    return TextFiles(**settings).load(locator(folder))


def written(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


CONTENT = "\ufeffone\r\ntwo \r\n \r\n\r\nthree\r\n"


@pytest.mark.parametrize(
    ("by", "texts"),
    [("line", ["one", "two ", "three"]), ("paragraph", ["one\ntwo ", "three"]),
     ("document", ["one\ntwo \n \n\nthree"])],
)  # fmt: skip
def test_a_file_is_read_by_line_paragraph_or_document(tmp_path, by, texts):
    written(tmp_path / "train.txt", CONTENT)
    found = load(tmp_path, train="train.txt", by=by)
    assert list(found) == ["train"]
    assert found["train"]["text"][:] == texts


def test_a_folder_holds_the_files_of_a_split_in_the_order_of_their_paths(tmp_path):
    for name in ("b.txt", "a/z.txt", "a/y.txt", "note.md"):
        written(tmp_path / "train" / name, f"{name}\n\n")
    written(tmp_path / "test.txt", "x")
    found = load(tmp_path, train="train", test="test.txt", by="document")
    assert found["train"]["text"][:] == ["a/y.txt", "a/z.txt", "b.txt"]
    assert found["test"]["text"][:] == ["x"]


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"one\ntwo\nthr\xffe\n", "data.train: 'train.txt' line 3 is not UTF-8"),
     ("", "data.train: 'train.txt' holds no text"), ("\n \n", "only blank lines")],
)  # fmt: skip
def test_bad_files_are_told_with_file_and_line(tmp_path, content, words):
    written(tmp_path / "train.txt", content)
    with pytest.raises(DataError) as error:
        load(tmp_path, train="train.txt")
    assert words in str(error.value)


def test_the_faults_of_all_files_come_in_one_message(tmp_path):
    written(tmp_path / "train" / "a.txt", b"\xff")
    written(tmp_path / "train" / "b.txt", b"a\n\xff")
    written(tmp_path / "test.txt", " ")
    with pytest.raises(DataError) as error:
        load(tmp_path, train="train", test="test.txt")
    assert len(str(error.value).splitlines()) == 3
    assert "'b.txt' line 2" in str(error.value)


def test_a_folder_without_texts_is_told(tmp_path):
    written(tmp_path / "train" / "a.md", "x")
    with pytest.raises(DataError, match=r"'train' holds no \.txt files"):
        load(tmp_path, train="train")


def test_the_column_can_be_renamed_and_the_type_is_found(tmp_path):
    written(tmp_path / "train.txt", "x")
    found = load(tmp_path, train="train.txt", columns={"prose": "text"})
    assert found["train"].column_names == ["prose"]
    assert choices(Loader)["text-files"] is TextFiles
