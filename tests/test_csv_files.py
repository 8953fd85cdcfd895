"""A large csv is read a part at a time into a file: the same rows, none of them in memory."""

import errno

import pytest

from hf_sft import csv_files
from hf_sft.errors import DataError
from hf_sft.table_files import read_table


def table(rows):
    lines = ["text,number,share,truth,blank,late"]
    for i in range(rows):
        late = "word" if i == rows - 1 else i  # the last value makes the column text
        lines.append(f'"line {i}, with\na break",{i},{i}.5,{i % 2 == 0},,{late}')
    return "\n".join(lines) + "\n"


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(csv_files, "AT_ONCE", 7)


@pytest.mark.parametrize("rows", [1, 7, 50])
def test_a_large_file_has_the_rows_of_a_small_one(tmp_path, monkeypatch, small_parts, rows):
    path = tmp_path / "t.csv"
    path.write_text(table(rows), "utf-8")
    small = read_table(path, "data.train")
    monkeypatch.setattr(csv_files, "LARGE", 0)
    large = read_table(path, "data.train")
    assert (bool(small.cache_files), bool(large.cache_files)) == (False, True)
    assert large.features == small.features
    assert large.to_dict() == small.to_dict()
    assert large[rows - 1] == {
        "text": f"line {rows - 1}, with\na break",
        "number": rows - 1,
        "share": rows - 0.5,
        "truth": (rows - 1) % 2 == 0,
        "blank": None,
        "late": "word",
    }


def test_texts_alone_are_written_once(tmp_path, monkeypatch, small_parts):
    monkeypatch.setattr(csv_files, "LARGE", 0)
    path = tmp_path / "t.csv"
    path.write_text("text\n" + "".join(f"word {i}\n" for i in range(20)), "utf-8")
    rows = read_table(path, "data.train")
    assert rows["text"][:] == [f"word {i}" for i in range(20)]
    assert rows.cache_files[0]["filename"].endswith("texts.arrow")


@pytest.mark.parametrize("large", [0, 2**26])
def test_a_fault_in_a_later_part_has_its_line(tmp_path, monkeypatch, small_parts, large):
    monkeypatch.setattr(csv_files, "LARGE", large)
    path = tmp_path / "t.csv"
    path.write_text("a,b\n" + "1,2\n" * 20 + "1,2,3\n", "utf-8")
    with pytest.raises(DataError, match="'t.csv' line 22 has 3 values, the header has 2"):
        read_table(path, "data.train")
    path.write_bytes(b"a,b\n" + b"1,2\n" * 20 + b"1,\xff\n")
    with pytest.raises(DataError, match="line 22 is not UTF-8"):
        read_table(path, "data.train")


def test_what_is_made_of_a_large_file_stays_in_files(tmp_path, monkeypatch, small_parts):
    monkeypatch.setattr(csv_files, "LARGE", 0)
    path = tmp_path / "t.csv"
    path.write_text(table(20), "utf-8")
    rows = read_table(path, "data.train").map(lambda row: {"twice": 2 * row["number"]})
    assert rows.cache_files
    assert rows[19]["twice"] == 38


def test_a_full_temporary_disk_is_a_message(tmp_path, monkeypatch):
    def full(path, parts):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(csv_files, "LARGE", 1)
    monkeypatch.setattr(csv_files, "_write", full)
    (tmp_path / "t.csv").write_text("text,label\na,b\n", "utf-8")
    with pytest.raises(DataError, match=r"t\.csv.*TMPDIR"):
        read_table(tmp_path / "t.csv", "data.train")
