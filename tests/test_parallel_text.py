"""parallel-text: line i of one file belongs to line i of the other, or the place is named."""

import gzip

import pytest

from hf_sft.errors import DataError
from hf_sft.loaders import ParallelText
from hf_sft.resources import locator


def loader(folder, source, target, **changes):
    for name, content in (("a.en", source), ("a.de", target)):
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return ParallelText(train={"source": "a.en", "target": "a.de"}, **changes)


def loaded(folder, source, target, **changes):
    return loader(folder, source, target, **changes).load(locator(folder))["train"].to_list()


def refused(folder, source, target, **changes):
    with pytest.raises(DataError) as error:
        loaded(folder, source, target, **changes)
    return str(error.value)


PAIRS = [{"source": "a b", "target": "ä"}, {"source": "c", "target": "d e"}]


@pytest.mark.parametrize(
    ("source", "target"),
    [("a b\nc\n", "ä\nd e\n"), ("a b\nc", "ä\nd e\n"), ("\ufeffa b\r\nc\r\n", "ä\r\nd e")],
    ids=["unix", "no-last-end", "windows"],
)
def test_lines_are_pairs(tmp_path, source, target):
    assert loaded(tmp_path, source, target) == PAIRS


def test_only_a_line_feed_ends_a_line(tmp_path):
    """str.splitlines would shift every pair after these by one."""
    odd = "a\u2028b\x0bc\x85d"
    assert loaded(tmp_path, f"{odd}\nx\n", "1\n2\n")[0] == {"source": odd, "target": "1"}


def test_compressed_files(tmp_path):
    for name, text in (("a.en.gz", "a b\nc\n"), ("a.de.gz", "ä\nd e\n")):
        (tmp_path / name).write_bytes(gzip.compress(text.encode()))
    pair = {"source": "a.en.gz", "target": "a.de.gz"}
    data = ParallelText(train=pair, test=pair).load(locator(tmp_path))
    assert data["test"].to_list() == PAIRS


def test_files_of_different_length_name_both_and_the_line(tmp_path):
    message = refused(tmp_path, "a\nb\nc\n", "1\n2\n")
    assert "data.train.source: 'a.en' has 3 lines" in message
    assert "data.train.target: 'a.de' has 2" in message
    assert "line 3 has no translation" in message
    assert "'a.de' has 3 lines" in refused(tmp_path, "a\nb\n", "1\n2\n3\n")


def test_a_blank_line_is_named_or_its_pair_skipped(tmp_path):
    message = refused(tmp_path, "a\nb\nc\n", "1\n \n3\n")
    assert "data.train.target: 'a.de' line 2 is blank" in message
    assert "data.blank: skip" in message
    kept = loaded(tmp_path, "a\nb\n\nd\n", "1\n \n\n4\n", blank="skip")
    assert [tuple(row.values()) for row in kept] == [("a", "1"), ("d", "4")]


def test_many_blank_lines_are_counted(tmp_path):
    message = refused(tmp_path, "\n" * 30, "a\n" * 30)
    assert "line 5 is blank" in message
    assert "line 6 is blank" not in message
    assert "25 more" in message


def test_a_line_that_is_not_utf8_is_named(tmp_path):
    message = refused(tmp_path, "a\nb\n", b"1\n\xff\n")
    assert "data.train.target: 'a.de' line 2 is not UTF-8" in message


def test_nothing_left_is_an_empty_split(tmp_path):
    assert "empty" in refused(tmp_path, "", "")
    assert "empty" in refused(tmp_path, "a\n", "\n", blank="skip")


def test_problems_of_all_splits_come_at_once(tmp_path):
    given = loader(tmp_path, "a\nb\n", "1\n", test={"source": "a.en", "target": "gone.de"})
    with pytest.raises(DataError) as error:
        given.load(locator(tmp_path))
    assert "line 2 has no translation" in str(error.value)
    assert "'gone.de' does not exist" in str(error.value)


def test_the_files_are_told_by_their_keys(tmp_path):
    assert loader(tmp_path, "a", "b").files() == {"train.source": "a.en", "train.target": "a.de"}


def test_one_file_is_no_pair():
    with pytest.raises(ValueError, match="two files are wanted: {source: FILE, target: FILE}"):
        ParallelText(train="a.en")
