"""What ``--input`` names becomes arrays, and files that are damaged or malicious become one clear error."""

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from PIL import Image

from meshnode.inference.console import arrays, inputs, pictures
from meshnode.inference.console.inputs import array_of, given_inputs, requests_of
from protocols.base.errors import InputInvalid

NOISE = np.random.default_rng(1).integers(0, 255, (64, 64, 3), "u1")


def takes(shape: list[int], datatype: str = "FP32") -> list[dict[str, Any]]:
    """A model with the input ``x``, as the node describes it."""
    return [{"name": "x", "datatype": datatype, "shape": shape}]


def read(value: Path | str, shape: list[int], datatype: str = "FP32") -> Any:
    """The array of the only value, given to a model with one input."""
    (given,) = given_inputs("m", [f"x={value}"], takes(shape, datatype))
    return array_of(given, given.values[0])[0]


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def header(text: str) -> bytes:
    """A ``.npy`` file whose header says ``text``, with a few bytes of data."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text.encode() + b"\n" + bytes(16)


def png(pixels: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png", **options)
    return file.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


# --- arrays ----------------------------------------------------------------------------------------------------------
def test_arrays_of_every_kind_of_file_are_read_as_they_are(tmp_path: Path) -> None:
    """The type is the file's: whoever computes says so when it is not the model's."""
    values = np.arange(4, dtype="f4").reshape(1, 4)
    np.save(tmp_path / "a.npy", values)
    np.savez_compressed(tmp_path / "b.npz", x=values, y=values + 1)
    np.savez(tmp_path / "c.npz", other=values)
    (tmp_path / "d.json").write_text("\ufeff[0, 1, 2, 3]", "utf-8")
    for name in ("a.npy", "b.npz", "c.npz", "d.json"):
        array = read(tmp_path / name, [1, 4])
        assert (array.dtype, array.tolist()) == (np.dtype("<f4"), values.tolist()), name
    np.save(tmp_path / "big.npy", values.astype(">f8"))
    assert read(tmp_path / "big.npy", [1, 4]).dtype == np.dtype("<f8")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.npy", b"", "save it again"),
        ("a.npy", npy(np.zeros(4))[:-8], "save it again"),
        ("a.npy", npy(np.array([None, {}])), "pickle"),
        ("a.npy", npy(np.array(["text"])), "convert them to numbers"),
        ("a.npy", npy(np.array([1j])), "convert them to numbers"),
        ("a.npy", npy(np.zeros(2, np.longdouble)), "convert them to numbers"),
        ("a.npy", npy(np.zeros(2, [("a", "f4")])), "convert them to numbers"),
        ("a.npy", pickle.dumps([1]), "save it again"),
        ("a.npy", zipped({"x.npy": npy(np.zeros(4))}), "save it again"),
        ("a.npy", header("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"), "save it again"),
        ("a.npy", header("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }"), "save it again"),
        ("a.npy", header("{'descr': '|O', 'fortran_order': False, 'shape': (2,), }"), "save it again"),
        ("a.npy", header("__import__('os')"), "save it again"),
        ("a.npz", b"PK\x03\x04 cut off", "not a .npz file"),
        ("a.npz", npy(np.zeros(4)), "not a .npz file"),
        ("a.npz", zipped({}), "only none"),
        ("a.npz", zipped({"y.npy": npy(np.zeros(1)), "z.npy": npy(np.zeros(1))}), "only 'y', 'z'"),
        ("a.npz", zipped({"x.npy": npy(np.array([None]))}), "pickle"),
        ("a.npz", zipped({"x.npy": bytes(arrays.MAX_FILE_BYTES + 1)}), "unpacks to more than"),
        ("a.json", b"[NaN]", "NaN is not a number"),
        ("a.json", b"[1, -Infinity]", "Infinity is not a number"),
        ("a.json", b"[1e400]", "can't hold"),
        ("a.json", b"[1e39]", "can't hold"),
        ("a.json", b"[null]", "not numbers"),
        ("a.json", b'{"x": 1}', "not numbers"),
        ("a.json", b"[[1], [2, 3]]", "JSON of an array"),
        ("a.json", b"[" * 100_000, "JSON of an array"),
        ("a.json", b"\xff\xfe", "JSON of an array"),
        ("a.json", b"", "JSON of an array"),
        ("a.raw", b"1", "--input x:bytes="),
    ],
)
def test_file_that_is_no_array_of_numbers_is_refused(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    """Files come from anywhere: nothing in them is executed, and no size in them is believed."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputInvalid, match=says) as caught:
        read(tmp_path / name, [1, 4])
    assert str(caught.value).startswith("input 'x': ")


@pytest.mark.parametrize(
    ("text", "datatype"), [("[300]", "UINT8"), ("[1.5]", "INT32"), ("[-1]", "UINT64"), ("[2]", "BOOL")]
)
def test_json_with_numbers_that_are_not_of_the_type_is_refused(text: str, datatype: str) -> None:
    """They were cut to the type without a word, and the model computed something else."""
    with pytest.raises(InputInvalid, match=f"{datatype} can't hold"):
        read(text, [1], datatype)


def test_json_takes_type_and_shape_of_the_model() -> None:
    """The user writes numbers, and the model knows the rest."""
    assert read("[1, 2, 3, 4]", [1, 4]).shape == (1, 4)
    assert read("[1, 2, 3, 4]", [-1, 2]).shape == (2, 2)
    assert read("[[1, 2]]", [1, 4]).shape == (1, 2), "the node says what is wrong with it"
    assert read("true", [], "BOOL").dtype == bool
    (given,) = given_inputs("m", ["x:u2=[1, 2]"], [])
    assert array_of(given, given.values[0])[0].dtype == np.dtype("u2")


# --- images ----------------------------------------------------------------------------------------------------------
def test_image_for_a_model_of_encoded_images_is_sent_as_it_is(tmp_path: Path) -> None:
    """An encoded image is a tenth of its pixels, and whoever computes knows how the model wants them."""
    content = png(np.zeros((2, 2, 3), "u1"))
    (tmp_path / "a.png").write_bytes(content)
    array = read(tmp_path / "a.png", [-1], "UINT8")
    assert (array.dtype, array.tobytes()) == (np.dtype("u1"), content)
    (given,) = given_inputs("m", [f"x:bytes={tmp_path / 'a.png'}"], [])
    assert array_of(given, given.values[0])[0].tobytes() == content


@pytest.mark.parametrize(
    ("shape", "datatype", "expected"),
    [
        ([1, 3, 2, 4], "FP32", (1, 3, 2, 4)),
        ([-1, 3, -1, -1], "UINT8", (1, 3, 4, 8)),
        ([2, 4, 3], "UINT8", (2, 4, 3)),
        ([1, 1, 2, 4], "FP32", (1, 1, 2, 4)),
        ([1, 2, 4, 1], "UINT8", (1, 2, 4, 1)),
    ],
)
def test_image_is_decoded_for_models_of_pixels_and_what_was_done_is_told(
    tmp_path: Path, shape: list[int], datatype: str, expected: tuple[int, ...]
) -> None:
    """A model computes nonsense from pixels that were prepared in another way, so the user has to know it."""
    pixels = np.zeros((4, 8, 3), "u1")
    pixels[..., 0] = 255
    (tmp_path / "red.png").write_bytes(png(pixels))
    (given,) = given_inputs("m", [f"x={tmp_path / 'red.png'}"], takes(shape, datatype))
    array, done = array_of(given, given.values[0])
    assert (array.shape, array.dtype) == (expected, np.dtype("f4" if datatype == "FP32" else "u1"))
    if 3 in shape:
        planes = array.reshape(-1, 3) if shape[-1] == 3 else np.moveaxis(array, -3, -1).reshape(-1, 3)
        assert planes.tolist() == [[1 if datatype == "FP32" else 255, 0, 0]] * len(planes)
    for word in ("8 x 4 pixels", "decoded to RGB" if 3 in shape else "decoded to L", datatype, str([*expected])):
        assert word in done
    assert ("resized to 4 x 2" in done) == (2 in shape)


def test_image_of_a_camera_that_was_held_upright_is_turned(tmp_path: Path) -> None:
    """Telephones store pictures as the chip saw them, and a tag."""
    picture = Image.fromarray(np.zeros((2, 6, 3), "u1"))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.png", exif=exif)
    (given,) = given_inputs("m", [f"x={tmp_path / 'a.png'}"], takes([-1, -1, 3], "UINT8"))
    array, done = array_of(given, given.values[0])
    assert array.shape == (6, 2, 3)
    assert "turned upright" in done


def test_image_of_sixteen_bits_keeps_its_greys(tmp_path: Path) -> None:
    """Pillow's own conversion makes everything above 255 white."""
    (tmp_path / "a.png").write_bytes(png(np.array([[0, 32_896, 65_535]], "u2")))
    assert read(tmp_path / "a.png", [-1, -1, 1], "UINT8").ravel().tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("content", "shape", "says"),
    [
        (b"", [1, 3, 2, 4], "not an image that can be read"),
        (b"\x89PNG\r\n\x1a\n nothing", [1, 3, 2, 4], "image"),
        (png(NOISE)[:-4_000], [1, 3, 2, 4], "can't be read as an image"),
        (png(np.zeros((2, 2, 3), "u1")), [1, 4, 2, 2], "prepare it yourself"),
        (png(np.zeros((2, 2, 3), "u1")), [2, 3, 2, 2], "prepare it yourself"),
        (png(np.zeros((2, 2, 3), "u1")), [4], "prepare it yourself"),
        (png(np.zeros((6_400, 6_400), "u1")), [1, 3, 2, 4], "scale it down"),
        (b"", [-1], "is empty"),
    ],
)  # fmt: skip
def test_image_that_can_not_be_used_is_refused(tmp_path: Path, content: bytes, shape: list[int], says: str) -> None:
    """A picture that was cut off while it was copied must not be computed with grey in its lower half."""
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InputInvalid, match=says):
        read(tmp_path / "a.png", shape, "UINT8")
    assert pictures.MAX_PIXELS < 6_400 * 6_400


# --- several values --------------------------------------------------------------------------------------------------
def test_folder_and_pattern_give_a_request_for_each_file(tmp_path: Path) -> None:
    """The order is that of the names, whatever the file system says."""
    for name in ("b.npy", "a.npy", "c.json", "notes.txt", ".hidden.npy"):
        (tmp_path / name).write_bytes(b"")
    for value, names in (
        (tmp_path, ["a", "b", "c"]),
        (tmp_path / "*.npy", ["a", "b"]),
        (tmp_path / "[ab].npy", ["a", "b"]),
    ):
        requests = requests_of(given_inputs("m", [f"x={value}"], takes([1])))
        assert [request.name for request in requests] == names
    (given,) = given_inputs("m", [f"x:bytes={tmp_path}"], [])
    assert [Path(value).name for value in given.values] == ["a.npy", "b.npy", "c.json", "notes.txt"]


def test_inputs_with_several_values_go_together_and_one_value_goes_with_all(tmp_path: Path) -> None:
    """A model may take a picture and the time since the last one."""
    for name in ("a.npy", "b.npy"):
        (tmp_path / name).write_bytes(b"")
    given = given_inputs("m", [f"x={tmp_path}", "y=[1]", "z=[3]", "z=[4]"], [])
    requests = requests_of(given)
    values = [[value.name if isinstance(value, Path) else value for _, value in each.values] for each in requests]
    assert values == [["a.npy", "[1]", "[3]"], ["b.npy", "[1]", "[4]"]]
    with pytest.raises(InputInvalid, match="'x' has 2, 'z' has 3"):
        requests_of(given_inputs("m", [f"x={tmp_path}", "z=[1]", "z=[2]", "z=[3]"], []))


def test_requests_have_names_of_their_own(tmp_path: Path) -> None:
    """The results of one must not replace those of another."""
    for name in ("a.png", "a.jpg", "b.png"):
        (tmp_path / name).write_bytes(b"")
    names = [
        request.name
        for request in requests_of(
            given_inputs(
                "m",
                [
                    f"x={tmp_path}",
                ],
                takes([-1], "UINT8"),
            )
        )
    ]
    assert names == ["000001-a", "000002-a", "b"]
    assert [each.name for each in requests_of(given_inputs("m", ["x=[1]", "x=[2]"], []))] == ["000001", "000002"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x=EMPTY", "has no files that can be read"),
        ("x:bytes=EMPTY", "has no files"),
        ("x=EMPTY/*.png", "no file matches"),
        ("q=[1]", "no input 'q': it takes 'x'"),
    ],
)
def test_input_that_names_nothing_is_refused(tmp_path: Path, text: str, says: str) -> None:
    """A mistyped path must not look like a run that found nothing to do."""
    with pytest.raises(InputInvalid, match=says):
        given_inputs("m", [text.replace("EMPTY", str(tmp_path))], takes([1]))


@pytest.mark.parametrize("texts", [["x"], ["=1"], ["x="], ["x:f4=[1]", "x:u1=[2]"]])
def test_input_of_another_form_is_a_mistake_of_usage(texts: list[str]) -> None:
    """The way to write it is told."""
    with pytest.raises(click.UsageError):
        given_inputs("m", texts, [])


def test_folder_with_too_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their paths and reports are kept."""
    monkeypatch.setattr(inputs, "MAX_FILES", 2)
    for number in range(3):
        (tmp_path / f"{number}.npy").write_bytes(b"")
    with pytest.raises(InputInvalid, match="has more than 2 files: give fewer"):
        given_inputs("m", [f"x={tmp_path}"], [])


def test_value_that_is_too_long_for_a_path_is_taken_for_json() -> None:
    """The system refuses to look for such a file, which is no reason to fail."""
    text = json.dumps("1" * 5_000)
    with pytest.raises(InputInvalid, match="JSON"):
        read(text, [1])
