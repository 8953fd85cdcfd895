"""Image files are looked at without being decoded more than is needed."""

import io
import warnings

import pytest
from PIL import Image as Picture

from hf_sft import images
from hf_sft.images import BrokenImage, each, problem_of, size_of, size_or_problem


def encoded(form, size=(40, 24), **settings):
    """Noise: what can be squeezed to nothing can also be cut without a trace."""
    picture = Picture.effect_noise(size, 90).convert("RGB")
    picture.save(buffer := io.BytesIO(), form, **settings)
    return buffer.getvalue()


def held(raw, path=None):
    return {"path": path, "bytes": raw}


FORMS = ["BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP"]


@pytest.mark.parametrize("form", FORMS)
def test_a_good_image_has_a_size_and_no_problem(form):
    assert size_of(held(encoded(form))) == (40, 24)
    assert problem_of(held(encoded(form))) is None


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_cut_file_is_found_and_named(form, share):
    raw = encoded(form)
    found = problem_of(held(raw[: int(share * len(raw))], "cat/one.img"))
    assert "'cat/one.img' cannot be decoded" in found
    assert "Replace or remove it." in found


def test_a_changed_byte_of_a_png_is_found():
    raw = bytearray(encoded("PNG"))
    raw[len(raw) // 2] ^= 1
    assert "cannot be decoded" in problem_of(held(bytes(raw)))


def test_what_is_no_image_is_named(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    assert "a.png' cannot be decoded" in problem_of(tmp_path / "a.png")
    assert "b.png' does not exist" in problem_of(str(tmp_path / "b.png"))
    assert problem_of(None) == "there is no image."
    assert "(bytes in the data)" in problem_of(held(b""))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_the_size_is_that_of_the_turned_photo(form):
    exif = Picture.Exif()
    exif[0x0112] = 6  # a quarter turn
    assert size_of(held(encoded(form, exif=exif))) == (24, 40)
    exif[0x0112] = 3  # upside down
    assert size_of(held(encoded(form, exif=exif))) == (40, 24)


@pytest.mark.parametrize("form", FORMS)
def test_the_size_is_read_without_decoding(form):
    if form != "WEBP":  # its reader wants all of the file
        assert size_of(held(encoded(form)[:-40])) == (40, 24)


@pytest.mark.parametrize("most", [900, 300])  # Pillow warns, then refuses at twice as much
def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch, most):
    monkeypatch.setattr(Picture, "MAX_IMAGE_PIXELS", most)
    monkeypatch.setattr(images, "_read_through", None)  # is not called
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (found,) = each(problem_of, [held(encoded("PNG"), "huge.png")])
    assert "'huge.png' is too large" in found
    assert str(most) in found or "960" in found


def test_no_limit_where_pillow_has_none(monkeypatch):
    monkeypatch.setattr(Picture, "MAX_IMAGE_PIXELS", None)
    assert problem_of(held(encoded("PNG"))) is None


def test_each_keeps_the_order_and_few_in_memory(monkeypatch):
    monkeypatch.setattr(images, "AT_ONCE", 4)
    taken = []
    rows = (taken.append(i) or i for i in range(10))
    found = each(lambda number: number * 2, rows)
    assert next(found) == 0
    assert taken == [0, 1, 2, 3]
    assert list(found) == [2 * i for i in range(1, 10)]


def test_a_size_or_what_is_wrong():
    assert size_or_problem(held(encoded("PNG"))) == (40, 24)
    assert "cannot be decoded" in size_or_problem(held(b"x"))
    with pytest.raises(BrokenImage, match="cannot be decoded"):
        size_of(held(b"x"))
