"""Files that would fill the memory, hang or run something: each is one message, none does it."""

import gzip
import io
import json
import pickle
import struct
import zlib
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from fuzz_seeds import SEEDS, idle_tiff, picture
from mutated import packed_zeros
from PIL import Image

from hf_sft import bounded, images, packed, table_files
from hf_sft.component import find
from hf_sft.errors import DataError, RecipeError
from hf_sft.images import BrokenImage
from hf_sft.loaders import Loader
from hf_sft.recipe_text import read
from hf_sft.resources import locator

ALIASES = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}]\n"
    for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


def load(folder, name, **changes):
    """The seed of a loader with other files (name -> bytes)."""
    _, block, files = SEEDS[name]
    for file, raw in {**files, **changes}.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(raw)
    return find(Loader, block["type"]).model_validate(block).load(locator(folder))


def refused(folder, name, **changes):
    with pytest.raises(DataError) as error:
        load(folder, name, **changes)
    return str(error.value)


@pytest.mark.parametrize(("name", "file"), [("csv.gz", "t.csv.gz"), ("parallel-text", "a.de.gz")])
def test_a_file_that_unpacks_without_end_is_refused_early(tmp_path, monkeypatch, name, file):
    monkeypatch.setattr(packed, "FREE", 1 << 20)
    message = refused(tmp_path, name, **{file: packed_zeros(1 << 26)})
    assert file in message
    assert "unpacks to more than" in message


def test_a_packed_file_of_several_members_is_read_whole(tmp_path):
    (tmp_path / "t.gz").write_bytes(gzip.compress(b"one ") + gzip.compress(b"two") + b"\0\0")
    assert packed.read_bytes(tmp_path / "t.gz") == b"one two"


TORN = {"short": gzip.compress(b"x" * 999, mtime=0)[:-9], "none": b"no gzip", "begun": b"\x1f\x8b"}


@pytest.mark.parametrize("raw", TORN.values(), ids=TORN)
def test_a_torn_packed_file_says_so(tmp_path, raw):
    assert "cannot be read: it" in refused(tmp_path, "csv.gz", **{"t.csv.gz": raw})


@pytest.mark.parametrize(
    ("limit", "column", "told"),
    [("FREE", ["x" * 999_983 + str(i) for i in range(20)], "unpacks to 38 MB"),
     ("ROWS", ["yes"] * 3_000_000, "no row is that small")],
)  # fmt: skip
def test_a_parquet_file_that_unpacks_without_end_is_refused_early(
    tmp_path, monkeypatch, limit, column, told
):
    table = pa.table({"text": column, "label": column})
    pq.write_table(
        table, tmp_path / "t.parquet", compression="zstd", use_dictionary=limit == "ROWS"
    )
    monkeypatch.setattr(packed, limit, 1000)
    monkeypatch.setattr(table_files, "load_dataset", None)
    with pytest.raises(DataError, match=told):
        table_files.read_table(tmp_path / "t.parquet", "data.train")


def test_packed_pixels_are_read_and_no_other_archive_is(tmp_path):
    (tmp_path / "d").mkdir()
    block = {"type": "pixel-table", "train": "p.csv.gz", "height": 2, "width": 2}
    raw = SEEDS["pixel-table"][2]["p.csv"]
    (tmp_path / "p.csv.gz").write_bytes(gzip.compress(raw))
    rows = find(Loader, "pixel-table").model_validate(block).load(locator(tmp_path))
    assert len(rows["train"]) == 6


def test_yaml_whose_aliases_unfold_without_end_is_refused(tmp_path):
    (tmp_path / "r.yaml").write_text(ALIASES)
    with pytest.raises(RecipeError, match="more than 100,000 values"):
        read(tmp_path / "r.yaml")
    data = ALIASES.encode() + b"names: *i\ntrain: images/train\n"
    assert "more than 100,000" in refused(tmp_path, "yolo", **{"d/data.yaml": data})
    talk = ALIASES.encode() + b"conversations:\n- *i\n"
    assert "more than 100,000" in refused(tmp_path, "chatterbot", **{"d/cat.yml": talk})


@pytest.mark.parametrize("text", ["a: &a [*a]", "a: &a {b: *a}"])
def test_a_value_that_holds_itself_is_refused(tmp_path, text):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(RecipeError, match="no YAML|holds itself"):
        read(tmp_path / "r.yaml")


def test_deep_yaml_is_refused_and_shared_values_are_not():
    shared = [1, 2]
    assert bounded.bounded({"a": shared, "b": [shared, shared]}) == {
        "a": [1, 2],
        "b": [[1, 2], [1, 2]],
    }
    value = 1
    for _ in range(bounded.DEEPEST + 1):
        value = [value]
    with pytest.raises(ValueError, match="deeper"):
        bounded.bounded(value)


@pytest.mark.parametrize("name", ["json", "jsonl", "coco", "clinc", "squad"])
@pytest.mark.parametrize("depth", [60, 200, 100_000])
def test_deep_json_is_a_message_or_data(tmp_path, name, depth):
    file = next(iter(SEEDS[name][2]))
    for opening, closing in ("[]", ('{"a":', "}")):
        text = f'[{{"text": {opening * depth}1{closing * depth}, "label": "a"}}]'
        try:
            load(tmp_path, name, **{file: text.encode()})
        except DataError as error:
            told = str(error)
            assert file in told  # noqa: PT017 (either may be)


def test_a_number_of_ten_thousand_digits_is_no_crash(tmp_path):
    text = b'[{"text": "a", "label": ' + b"9" * 10_000 + b"}]"
    assert "t.json" in refused(tmp_path, "json", **{"t.json": text})
    text = b'[{"text": "a", "label": ' + b"9" * 400 + b"}]"
    assert "t.json" in refused(tmp_path, "json", **{"t.json": text})


@pytest.mark.parametrize("name", ["json", "jsonl", "coco", "clinc", "squad"])
def test_half_a_character_in_json_is_named(tmp_path, name):
    file, raw = next(iter(SEEDS[name][2].items()))
    word = next(word for word in (b"cat", b"Paris") if word in raw)
    message = refused(tmp_path, name, **{file: raw.replace(word, b"\\ud800", 1)})
    assert file in message
    assert "half of a character" in message


def test_a_column_whose_name_has_a_nul_is_refused(tmp_path):
    text = json.dumps([{"text\0": "a", "label": "x"}]).encode()
    assert "NUL" in refused(tmp_path, "json", **{"t.json": text})


def test_names_too_long_for_a_file_are_told(tmp_path):
    long = b"x" * 5000
    assert "no file" in refused(tmp_path, "voc", **{"d/train.txt": long})
    yolo = b"names: [cat, dog]\ntrain: " + long
    assert "does not exist" in refused(tmp_path, "yolo", **{"d/data.yaml": yolo})
    coco = SEEDS["coco"][2]["c.json"].replace(b'"1.png"', b'"%s.png"' % long)
    assert "does not exist" in refused(tmp_path, "coco", **{"c.json": coco})
    with pytest.raises(DataError, match="does not exist"):
        find(Loader, "table")(train="x" * 5000).load(locator(tmp_path))


def test_questions_that_are_no_objects_and_names_that_are_no_text(tmp_path):
    assert "s.json" in refused(tmp_path, "squad", **{"s.json": b'{"data": [1.5]}'})
    assert "UTF-8" in refused(tmp_path, "mask-folder", **{"d/classes.txt": b"\xffcat\ndog"})


def test_a_metadata_file_that_is_torn_is_told(tmp_path):
    for raw in (b"", b"file_name\n", b"\0", b"file_name,label\n../../x.png,a\n"):
        assert "d" in refused(tmp_path, "metadata", **{"d/metadata.csv": raw})


# Images: what the header claims is looked at before anything is decoded.


def gif_header(width, height):
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\0\0\0;"


def webp_header(width, height):
    body = b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0"
    body += (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def png_header(width, height):
    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IEND", b"")


def bmp_header(width, height):
    return b"BM" + struct.pack(
        "<IIIIiiHHIIIIII", 54, 0, 54, 40, width, height, 1, 8, 0, 0, 0, 0, 0, 0
    )


HUGE = {
    "gif": gif_header(60_000, 60_000),
    "webp": webp_header(16_000, 16_000),
    "png": png_header(60_000, 60_000),
    "bmp": bmp_header(60_000, 60_000),
    "tiff": idle_tiff(),
}


@pytest.mark.parametrize("kind", HUGE)
def test_a_header_that_claims_gigapixels_is_not_decoded(tmp_path, kind):
    (tmp_path / f"x.{kind}").write_bytes(HUGE[kind])
    told = images.problem_of(tmp_path / f"x.{kind}")
    assert told is not None
    with pytest.raises(BrokenImage):
        images.size_of(tmp_path / f"x.{kind}")


@pytest.mark.parametrize("kind", ["png", "gif", "bmp", "tiff"])
def test_what_is_just_too_large_says_so(tmp_path, monkeypatch, kind):
    Image.new("L", (60, 50)).save(tmp_path / f"x.{kind}")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    assert "too large" in images.problem_of(tmp_path / f"x.{kind}")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    assert images.problem_of(tmp_path / f"x.{kind}") is None


def test_postscript_is_refused_under_any_name_and_no_program_is_started(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr("subprocess.check_call", lambda *a, **k: called.append(a))
    for name in ("x.png", "x.eps"):
        Image.new("RGB", (4, 4)).save(tmp_path / name, "EPS")
        assert "PostScript" in images.problem_of(tmp_path / name)
    with pytest.raises(OSError, match="Ghostscript"):
        Image.open(tmp_path / "x.png").load()
    assert not called
    assert ".eps" not in images.ENDINGS


def test_masks_are_looked_at_as_images_are(tmp_path):
    bad = {"d/masks/1.png": png_header(60_000, 60_000)}
    data = load(tmp_path, "mask-folder", **bad)
    from hf_sft.tasks import ImageSegmentation

    with pytest.raises(DataError, match=r"1\.png"):
        ImageSegmentation().check(data)
    _, block, _ = SEEDS["mask-folder"]
    palette = {"a": [0, 0, 0], "b": [1, 1, 1]}
    loader = find(Loader, "mask-folder").model_validate(block | {"palette": palette})
    with pytest.raises(DataError, match=r"1\.png"):
        loader.load(locator(tmp_path))


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("name", list(SEEDS))
def test_a_pickle_in_place_of_any_file_is_not_loaded(tmp_path, name):
    for file in SEEDS[name][2]:
        raw = pickle.dumps(Trap(str(tmp_path / "ran")))
        with suppress(DataError):
            load(tmp_path / file.replace("/", "_"), name, **{file: raw})
        assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system [x]", "!!python/name:os.system"])
def test_yaml_tags_make_nothing(tmp_path, tag):
    (tmp_path / "r.yaml").write_text(f"task: {tag}")
    with pytest.raises(RecipeError, match="no YAML"):
        read(tmp_path / "r.yaml")
    data = f"names: {tag}\ntrain: images/train\n".encode()
    assert "data.yaml" in refused(tmp_path, "yolo", **{"d/data.yaml": data})
    talk = f"conversations: {tag}\n".encode()
    assert "cat.yml" in refused(tmp_path, "chatterbot", **{"d/cat.yml": talk})


def test_what_a_good_image_is_stays_good():
    assert images.problem_of({"path": None, "bytes": picture()}) is None
    assert yaml.safe_load("a: &a 1\nb: *a") == {"a": 1, "b": 1}
    assert io.BytesIO(picture("GIF", mode="L")).read(3) == b"GIF"
