"""Pictures leave without what was beside their pixels, and without what was under a box."""

import io
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from meshnode.records.egress import pictures
from meshnode.records.egress.pictures import redrawn_picture
from protocols.base.errors import InputInvalid

PLATE = b"IN AB 123"
SIZE = (64, 32)


def picture(form: str, mode: str = "RGB", **more: Any) -> bytes:
    """A white picture with a plate in everything that can hold text."""
    exif = Image.Exif()
    exif[0x010E] = PLATE.decode()
    options: dict[str, Any] = {"exif": exif, "icc_profile": b"profile " + PLATE, **more}
    if form == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_text("Comment", PLATE.decode())
        options["pnginfo"] = text
    else:
        options["comment"] = PLATE
    out = io.BytesIO()
    Image.new(mode, SIZE, 255 if mode in ("L", "1") else "white").save(out, form, **options)
    return out.getvalue() + PLATE


def decoded(content: bytes) -> Image.Image:
    with Image.open(io.BytesIO(content)) as opened:
        opened.load()
        return opened


@pytest.mark.parametrize(("form", "mode"), [("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGB"), ("PNG", "1"), ("PNG", "P")])
def test_redrawn_picture_has_no_metadata(form: str, mode: str) -> None:
    """A camera writes its serial number and the place into each picture."""
    original = picture(form, mode)
    assert PLATE in original
    drawn = redrawn_picture(original, ())
    assert PLATE not in drawn
    opened = decoded(drawn)
    assert (opened.format, opened.size) == (form, SIZE)
    assert not opened.getexif()
    assert set(opened.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}


@pytest.mark.parametrize(("form", "mode"), [("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGB"), ("PNG", "P")])
def test_covered_box_is_black_and_nothing_else(form: str, mode: str) -> None:
    """At least the whole box is covered, whatever share of a pixel it begins at."""
    drawn = decoded(redrawn_picture(picture(form, mode), [(0.26, 0.5, 0.49, 1.0)])).convert("L")
    for x in range(SIZE[0]):
        for y in range(SIZE[1]):
            is_covered = 16 <= x < 32 and y >= 16
            level = drawn.getpixel((x, y))
            assert isinstance(level, int)
            assert level < 20 if is_covered else level > 235, (x, y, level)


def test_found_box_is_covered_with_some_more_around_it() -> None:
    """A detector is a few pixels off; what lies outside of the picture is no mistake."""
    drawn = decoded(
        redrawn_picture(picture("PNG"), (), [(20.0, 8.0, 40.0, 16.0), (60.0, -9.0, 99.0, 2.0), (70, 1, 80, 2)])
    )
    black = {(x, y) for x in range(SIZE[0]) for y in range(SIZE[1]) if drawn.convert("L").getpixel((x, y)) == 0}
    assert black == {(x, y) for x in range(15, 45) for y in range(6, 18)} | {
        (x, y) for x in range(50, 64) for y in range(5)
    }


def test_box_lies_on_the_upright_picture() -> None:
    """A camera that is mounted on its side says so in the metadata that are removed."""
    exif = Image.Exif()
    exif[0x0112] = 6
    drawn = decoded(redrawn_picture(picture("PNG", exif=exif), [(0.0, 0.0, 1.0, 0.5)])).convert("L")
    assert drawn.size == (32, 64)
    assert (drawn.getpixel((16, 31)), drawn.getpixel((16, 32))) == (0, 255)


@pytest.mark.parametrize("content", [b"", PLATE, b"RIFF\x10\0\0\0WEBPVP8 ", picture("JPEG")[:200], picture("PNG")[:60]])
def test_what_can_not_be_decoded_is_refused(content: bytes) -> None:
    """It may be a picture in a form that nobody looked at."""
    with pytest.raises(InputInvalid):
        redrawn_picture(content, ())


def test_picture_with_too_many_pixels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred bytes may claim a billion of them."""
    monkeypatch.setattr(pictures, "MAX_PIXELS", SIZE[0] * SIZE[1] - 1)
    with pytest.raises(InputInvalid, match="64 × 32"):
        redrawn_picture(picture("PNG"), ())
