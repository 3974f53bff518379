"""Preprocessing: from the bytes of a picture to a tensor, within bounds, and the same everywhere."""

import io
import resource
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from meshnode.models.pictures import MAX_SCANS, MAX_SECTIONS, decoded_untrusted
from meshnode.models.preprocessing import Preprocessing, example, prepared, value_table
from protocols.base.errors import ConfigError, InputInvalid, ModelInvalid

PICTURES = Path(__file__).parents[1] / "sensors" / "field" / "images"
RED, BLACK = (250, 10, 20), (0, 0, 0)


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def plain(width: int, height: int, colour: tuple[int, ...] = RED) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_that_claims(width: int, height: int, between: bytes = b"") -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + between + chunk(b"IDAT", zlib.compress(bytes(1_000))) + chunk(b"IEND")


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8))


# --- values ----------------------------------------------------------------------------------------------------------
def test_tensor_has_the_channels_in_the_declared_order_and_layout() -> None:
    """Red taken for blue is the mistake that no signature shows."""
    content = encoded(plain(4, 3))
    by_plane = prepared(content, Preprocessing(width=4, height=3), "f4")
    assert (by_plane.shape, by_plane.dtype) == ((1, 3, 3, 4), np.float32)
    assert by_plane[0, :, 0, 0].tolist() == list(RED)
    turned = prepared(content, Preprocessing(width=4, height=3, colours="bgr", layout="nhwc"), "f4")
    assert turned.shape == (1, 3, 4, 3)
    assert turned[0, 2, 3].tolist() == list(reversed(RED))
    grey = prepared(content, Preprocessing(width=4, height=3, colours="grey"), "u1")
    assert (grey.shape, grey.dtype, grey[0, 0, 0, 0]) == ((1, 1, 3, 4), np.uint8, 83)  # 0.299 R + 0.587 G + 0.114 B
    assert prepared(content, Preprocessing(width=4, height=3, colours="grey", layout="nhwc"), "u1").shape == (
        1,
        3,
        4,
        1,
    )


@pytest.mark.parametrize("colours", ["rgb", "bgr"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_tensor_is_what_the_usual_formula_gives(colours: Any, layout: Any) -> None:
    """Whoever moves a model here compares with what the training code computed."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    steps = Preprocessing(width=8, height=6, colours=colours, scale=1 / 255, mean=mean, std=std, layout=layout)
    picture = noise(8, 6)
    pixels = np.asarray(picture, dtype="f8")[:, :, :: 1 if colours == "rgb" else -1]
    expected = ((pixels / 255 - mean) / std)[None]
    expected = expected.transpose(0, 3, 1, 2) if layout == "nchw" else expected
    assert np.allclose(prepared(encoded(picture), steps, "f4"), expected, rtol=1e-6, atol=1e-6)
    assert np.allclose(prepared(encoded(picture), steps, "f2"), expected, rtol=1e-3, atol=1e-3)


def test_values_that_the_type_of_the_model_can_not_hold_are_named() -> None:
    """A mean that is subtracted from unsigned bytes would wrap round and still look like a picture."""
    with pytest.raises(ModelInvalid, match="0 of channel 0 becomes -104, which u1 can't hold"):
        value_table(Preprocessing(width=1, height=1, mean=(104, 117, 123)), "u1")
    with pytest.raises(ModelInvalid, match=r"1 of channel 0 becomes 0\.5, which i8 can't hold"):
        value_table(Preprocessing(width=1, height=1, scale=0.5), "i8")
    with pytest.raises(ModelInvalid, match="f2 can't hold"):
        value_table(Preprocessing(width=1, height=1, scale=1e6), "f2")
    assert value_table(Preprocessing(width=1, height=1), "i2")[0].tolist() == list(range(256))


# --- sizes -----------------------------------------------------------------------------------------------------------
def test_letterbox_keeps_the_shape_and_fills_the_rest() -> None:
    """A stretched pedestrian is another one than the model was trained on."""
    steps = Preprocessing(width=8, height=8, fit="letterbox", fill=(1, 2, 3), colours="bgr")
    tensor = prepared(encoded(plain(40, 20)), steps, "u1")[0]
    assert tensor[:, [0, 1, 6, 7], :].reshape(3, -1).T.tolist() == [[1, 2, 3]] * 32
    assert tensor[:, 2:6, :].reshape(3, -1).T.tolist() == [list(reversed(RED))] * 32
    tall = prepared(encoded(plain(1, 1_000)), Preprocessing(width=8, height=8, fit="letterbox"), "u1")[0]
    assert (tall[0] == RED[0]).sum() == 8  # a line of one pixel does not vanish
    grey = Preprocessing(width=8, height=4, fit="letterbox", fill=(7,), colours="grey")
    assert prepared(encoded(plain(4, 4)), grey, "u1")[0, 0, 0].tolist() == [7, 7, 83, 83, 83, 83, 7, 7]


def test_centre_crop_shows_the_middle() -> None:
    """The sides go, and what is in the middle keeps its shape."""
    picture = plain(40, 20, BLACK)
    picture.paste(RED, (10, 0, 30, 20))
    content = encoded(picture)
    steps = Preprocessing(width=10, height=10, fit="centre-crop", resampling="box")
    assert set(np.unique(prepared(content, steps, "u1")[0, 0])) == {RED[0]}
    closer = Preprocessing(width=10, height=10, fit="centre-crop", resampling="box", shorter_side=20)
    picture.paste(BLACK, (10, 0, 30, 5))
    picture.paste(BLACK, (10, 15, 30, 20))  # an inch around the middle half of the height
    assert set(np.unique(prepared(encoded(picture), closer, "u1")[0, 0])) == {RED[0]}
    assert 0 in np.unique(prepared(encoded(picture), steps, "u1")[0, 0])


@pytest.mark.parametrize("resampling", ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"])
def test_stretch_uses_the_filter_that_is_named(resampling: Any) -> None:
    """Each gives other pixels, and a model is trained with one of them."""
    picture = noise(31, 17)
    steps = Preprocessing(width=8, height=8, resampling=resampling, layout="nhwc")
    expected = np.asarray(picture.resize((8, 8), Image.Resampling[resampling.upper()]))
    assert np.array_equal(prepared(encoded(picture), steps, "u1")[0], expected)


# --- pictures as they come -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["exif_orientation_6.jpg", "grey_16_bit.png"])
def test_picture_of_a_camera_shows_what_the_camera_saw(name: str) -> None:
    """A model that is given a picture on its side, or one that is white all over, finds nothing and says nothing."""
    picture = decoded_untrusted((PICTURES / name).read_bytes())
    assert picture.size == (518, 331)
    original = np.asarray(Image.open(PICTURES / "grey_16_bit.png")).astype(float) / 257
    assert np.abs(np.asarray(picture.convert("L"), dtype=float) - original).mean() < 2


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_picture_of_any_orientation_is_upright(kind: str, orientation: int) -> None:
    """All eight exist: a camera that hangs upside down, one behind a mirror."""
    upright = np.zeros((40, 80, 3), np.uint8)
    upright[:20, :40], upright[:20, 40:], upright[20:, :40] = (200, 0, 0), (0, 200, 0), (0, 0, 200)
    # What a camera writes for the orientation, after the table in EXIF 2.32, section 4.6.4.
    turns = {1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
             4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90,
             7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270}  # fmt: skip
    turn, exif = turns[orientation], Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(upright)
    content = encoded(picture if turn is None else picture.transpose(turn), kind, exif=exif)
    tensor = prepared(content, Preprocessing(width=80, height=40, layout="nhwc"), "u1")[0]
    corners = tensor[[4, 4, -5, -5], [4, -5, 4, -5]]
    assert [int(np.argmax(corner)) if corner.max() > 100 else None for corner in corners] == [0, 1, 2, None]


def test_pictures_of_all_modes_become_three_colours_or_grey() -> None:
    """Palettes come from tools, CMYK from scans, transparency from people."""
    base = plain(4, 4)
    see_through = base.quantize(8)
    see_through.info["transparency"] = bytes([0, 128])
    many = {
        "palette": encoded(base.quantize(8)), "see-through palette": encoded(see_through),
        "alpha": encoded(base.convert("RGBA")), "grey": encoded(base.convert("L")),
        "grey and alpha": encoded(base.convert("LA")), "bits": encoded(base.convert("1")),
        "cmyk": encoded(base.convert("CMYK"), "JPEG", quality=100),
        "progressive": encoded(base, "JPEG", progressive=True),
    }  # fmt: skip
    for name, content in many.items():
        picture = decoded_untrusted(content)
        assert picture.mode in ("RGB", "L"), name
        pixel = picture.convert("RGB").getpixel((1, 1))
        assert isinstance(pixel, tuple)
        if picture.mode == "RGB":
            assert max(abs(have - want) for have, want in zip(pixel, RED, strict=True)) <= 8, name
    levels = np.array([[0, 128, 257, 32_896, 65_535]], np.uint16)
    assert np.asarray(decoded_untrusted(encoded(Image.fromarray(levels))))[0].tolist() == [0, 0, 1, 128, 255]


def test_picture_of_another_kind_or_a_damaged_one_is_refused() -> None:
    """A sender has to know whether to send again or to convert."""
    for content in (b"", b"hello", encoded(plain(4, 4), "GIF"), encoded(plain(4, 4), "BMP"), b"\xff\xd8", b"\x89PNG"):
        with pytest.raises(InputInvalid, match="not a picture that can be read: send a JPEG or PNG"):
            decoded_untrusted(content)
    for content in ((PICTURES / "truncated.jpg").read_bytes(), encoded(noise(64, 64))[:-4_000]):
        with pytest.raises(InputInvalid, match="it may be cut off"):
            decoded_untrusted(content)


# --- bounds ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "size", [(4_001, 4_000), (13_000, 13_000), (30_000, 30_000), (2**31 - 1, 2**31 - 1), (70_000, 2)]
)
def test_picture_that_claims_too_many_pixels_is_refused_before_it_takes_memory(size: tuple[int, int]) -> None:
    """A file of 74 bytes could claim gigabytes, and a line of 16 million pixels makes the filters take as much."""
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputInvalid, match=r"pixels, and 16000000 are decoded|can't be decoded"):
        decoded_untrusted(png_that_claims(*size))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 8 * 1024


def test_picture_of_many_sections_or_scans_is_refused() -> None:
    """Each empty section costs microseconds in Python and each scan goes over all pixels: a megabyte took a second."""
    with pytest.raises(InputInvalid, match=f"more than {MAX_SECTIONS} sections"):
        decoded_untrusted(png_that_claims(10, 10, chunk(b"abCd") * MAX_SECTIONS))
    assert decoded_untrusted(png_that_claims(10, 10, chunk(b"abCd") * (MAX_SECTIONS - 100))).size == (10, 10)
    jpeg = encoded(plain(64, 64), "JPEG", progressive=True)
    with pytest.raises(InputInvalid, match=f"more than {MAX_SECTIONS} sections"):
        decoded_untrusted(jpeg[:2] + b"\xff\xfe\x00\x02" * MAX_SECTIONS + jpeg[2:])
    last = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    assert decoded_untrusted(jpeg[:-2] + last * 10 + jpeg[-2:]).size == (64, 64)
    with pytest.raises(InputInvalid, match=f"or {MAX_SCANS} scans"):
        decoded_untrusted(jpeg[:-2] + last * MAX_SCANS + jpeg[-2:])


def test_jpeg_with_a_long_tail_is_read_up_to_its_end() -> None:
    """Phones put a film behind a picture; what looks like sections in there is none."""
    assert decoded_untrusted(encoded(plain(64, 64), "JPEG") + b"\xff\xda\x00\x02" * 5_000).size == (64, 64)


SEEDS = (
    encoded(noise(24, 16)), encoded(noise(24, 16), "JPEG"), encoded(noise(24, 16), "JPEG", progressive=True),
    encoded(noise(24, 16).convert("CMYK"), "JPEG"), encoded(noise(24, 16).quantize(16)),
)  # fmt: skip
STEPS = st.sampled_from(
    [
        Preprocessing(width=8, height=8, max_pixels=1_000),
        Preprocessing(width=5, height=9, fit="letterbox", colours="bgr", resampling="lanczos", max_pixels=1_000),
        Preprocessing(width=9, height=5, fit="centre-crop", colours="grey", layout="nhwc", max_pixels=1_000),
    ]
)


def judged(content: bytes, steps: Preprocessing) -> None:
    try:
        tensor = prepared(content, steps, "f4")
    except InputInvalid:
        return
    assert (tensor.shape, tensor.dtype) == (steps.shape, np.float32)
    assert np.isfinite(tensor).all()


@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda b: b"\xff\xd8\xff" + b)
       | st.binary(max_size=300).map(lambda b: b"\x89PNG\r\n\x1a\n" + b), STEPS)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_any_bytes_give_a_tensor_or_are_refused(content: bytes, steps: Preprocessing) -> None:
    """A neighbour may send anything, and an unforeseen exception would be taken for a fault of the model."""
    judged(content, steps)


@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=8),
       st.integers(0, 3_000), STEPS)  # fmt: skip
@settings(max_examples=400, deadline=None)
def test_damaged_picture_gives_a_tensor_or_is_refused(
    content: bytes, wounds: list[tuple[int, int]], length: int, steps: Preprocessing
) -> None:
    """A radio damages nothing, but disks and insiders do."""
    damaged = bytearray(content)
    for at, value in wounds:
        damaged[at % len(damaged)] = value
    judged(bytes(damaged[: length or None]), steps)


@given(st.integers(1, 60), st.integers(1, 60), STEPS)
@settings(max_examples=100, deadline=None)
def test_picture_of_any_shape_gives_the_tensor_of_the_model(width: int, height: int, steps: Preprocessing) -> None:
    """Lines, columns and single pixels come from crops."""
    tensor = prepared(encoded(plain(width, height) if width * height > 1_000 else noise(width, height)),
                      Preprocessing(**{**_fields(steps), "max_pixels": 4_000}), "f4")  # fmt: skip
    assert tensor.shape == steps.shape


def _fields(steps: Preprocessing) -> dict[str, Any]:
    return {name: getattr(steps, name) for name in steps.__struct_fields__}


def test_example_is_a_picture_for_the_steps() -> None:
    """A model is timed with it, decoding included."""
    steps = Preprocessing(width=30, height=20)
    assert prepared(example(steps), steps, "f4").shape == (1, 3, 20, 30)


# --- declaration -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mean": (1.0, 2.0)}, "mean = [1.0, 2.0]: has 2 numbers: give 3, one for each channel of 'rgb'"),
        ({"colours": "grey", "std": (1.0, 1.0, 1.0)}, "std = [1.0, 1.0, 1.0]: has 3 numbers: give 1"),
        ({"std": (1.0, 0.0, 1.0)}, "has a zero, which nothing can be divided by"),
        ({"fill": (0, 0, 0)}, "is only for fit = 'letterbox'"),
        ({"fit": "letterbox", "fill": (0, 0, 256)}, "out of range: use 0 to 255"),
        ({"shorter_side": 256}, "is only for fit = 'centre-crop'"),
        ({"fit": "centre-crop", "shorter_side": 200}, "is less than what is cut out: use at least 224"),
        ({"width": 5_000}, "out of range: use 1 to 4_096"),
    ],
)
def test_steps_that_contradict_themselves_are_refused(wrong: dict[str, Any], message: str) -> None:
    """Half-applied, they would give a picture that looks right to nobody but the node."""
    with pytest.raises(ConfigError) as caught:
        Preprocessing(**{"width": 224, "height": 224, **wrong})
    assert message in str(caught.value)
