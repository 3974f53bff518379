"""Manifests: what a file beside a model declares is checked, shown, part of the digest, and held at every run."""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from meshnode.cli.reference import manifest_page
from meshnode.models import LoadedModel, Manifest, ModelSpec, load_model, read_manifest
from protocols.base.errors import InputInvalid, ModelInvalid
from protocols.inference.signature import TensorSignature
from protocols.wire.tensors import Tensor, tensor_of
from tests.tools.tiny_onnx import write_model

PICTURE = "[preprocessing.x]\nwidth = 8\nheight = 6\n"


def loaded(folder: Path, manifest: str | None, shape: Any = ("n", 3, 6, 8), **how: Any) -> LoadedModel:
    """A model that returns its input, with that manifest."""
    path = write_model(folder / "m.onnx", shape, **how)
    if manifest is not None:
        (folder / "m.toml").write_text(manifest)
    return load_model(ModelSpec("m", path))


def jpeg(width: int = 16, height: int = 12, colour: tuple[int, int, int] = (200, 100, 50)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, "JPEG", quality=100)
    return file.getvalue()


def as_input(content: bytes) -> "np.ndarray[Any, Any]":
    return np.frombuffer(content, np.uint8)


# --- reading ---------------------------------------------------------------------------------------------------------
def test_model_without_manifest_is_as_before(tmp_path: Path) -> None:
    """Nodes in the field have none, and their digests are pinned in configurations."""
    model = loaded(tmp_path, None)
    assert model.manifest == Manifest()
    assert model.digest == hashlib.sha256((tmp_path / "m.onnx").read_bytes()).hexdigest()
    assert model.inputs == (TensorSignature("x", "f4", (None, 3, 6, 8), ("n", "", "", "")),)


def test_manifest_tells_what_is_known_of_the_model(tmp_path: Path) -> None:
    """Other parts of a node read the memory limit and the fallback from it."""
    model = loaded(tmp_path, 'description = "It echoes."\nlicence = "Apache-2.0"\nlabels = ["cat", "dog"]\n'
                   'memory_mib = 512\n[fallback]\nmodel = "m-small"\n')  # fmt: skip
    manifest = model.manifest
    assert (manifest.description, manifest.licence, manifest.labels) == ("It echoes.", "Apache-2.0", ("cat", "dog"))
    assert manifest.memory_mib == read_manifest(tmp_path / "m.onnx").memory_mib == 512
    assert manifest.fallback is not None
    assert manifest.fallback.model == "m-small"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("licens = 'MIT'", "m.toml: licens = 'MIT': is not a key of this table: did you mean 'licence'?"),
        ("memory_mib = '512'", "memory_mib = '512': is text: write a whole number, without quotes"),
        ("memory_mib = 1", "memory_mib = 1: is out of range: use 16 to 1_048_576"),
        ("[[inputs]]\nname = 'x'\ndtype = 'float32'", "inputs[0].dtype = 'float32': is not known: use one of 'b1'"),
        ("[[inputs]]\nshape = [1]", "inputs[0].name: is missing: add it"),
        ("[[inputs]]\nname = 'x'\n[[inputs]]\nname = 'x'", "inputs[1].name = 'x': is declared twice: keep one"),
        ("[[inputs]]\nname = 'x'\nmax = [8]", "inputs[0].max = [8]: has no size in 'shape' for each of its own"),
        ("[[inputs]]\nname = 'x'\ndtype = 'u1'\nnan = 'forbid'", "inputs[0].nan = 'forbid': is of no use"),
        ("[preprocessing.x]\nwidth = 8", "preprocessing.x.height: is missing: add it"),
        (PICTURE + "fit = 'letter-box'", "preprocessing.x.fit = 'letter-box': is not known: did you mean 'letterbox'?"),
        (PICTURE + "mean = [1, 2]", "preprocessing.x.mean = [1.0, 2.0]: has 2 numbers: give 3"),
        ("[[golden]]\ninputs = {}\noutputs = {}", "golden[0].inputs = {…}: is empty: write something"),
        ("[[golden]]\ninputs = {x = '../x.npy'}\noutputs = {y = '/y.npy'}", "inputs.x = '../x.npy': is not below"),
        ("[[golden]]\ninputs = {x = 'x.npy'}\noutputs = {y = '/y.npy'}", "outputs.y = '/y.npy': is not below"),
        ("[fallback]", "fallback.model: is missing: add it"),
        ("a = \n", "m.toml is not valid TOML: Invalid value (at line 1, column 5)"),
    ],
)  # fmt: skip
def test_manifest_with_a_mistake_names_file_key_and_value(tmp_path: Path, text: str, expected: str) -> None:
    """Whoever wrote it must find the place without reading the code."""
    with pytest.raises(ModelInvalid) as caught:
        loaded(tmp_path, text)
    message = str(caught.value)
    assert message.startswith(f"model 'm': {tmp_path / 'm.toml'}")
    assert expected in message


def test_manifest_that_is_a_folder_or_not_text_keeps_the_model_out(tmp_path: Path) -> None:
    """A model that loads without its manifest would take tensors for pictures."""
    write_model(tmp_path / "m.onnx", (1,))
    (tmp_path / "m.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelInvalid, match="line 1 is not UTF-8"):
        load_model(ModelSpec("m", tmp_path / "m.onnx"))
    (tmp_path / "m.toml").unlink()
    (tmp_path / "m.toml").mkdir()
    with pytest.raises(ModelInvalid, match="is not a file"):
        load_model(ModelSpec("m", tmp_path / "m.onnx"))


@given(st.text(max_size=200) | st.lists(st.sampled_from([
    "[[inputs]]\n", "[[outputs]]\n", "[preprocessing.x]\n", "[[golden]]\n", "[fallback]\n", "name = 'x'\n",
    "name = 1\n", "width = 8\n", "height = 8\n", "shape = [1, -1]\n", "max = [1]\n", "nan = 'forbid'\n",
    "labels = ['a']\n", "std = [0]\n", "inputs = {x = 'a.npy'}\n", "outputs = {y = 'b'}\n", "model = 'm'\n",
    "scale = nan\n",
]), max_size=8).map("".join))  # fmt: skip
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_a_manifest_or_is_refused(tmp_path: Path, text: str) -> None:
    """One bad file costs its model and nothing else."""
    (tmp_path / "m.toml").write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        manifest = read_manifest(tmp_path / "m.onnx")
    except ModelInvalid:
        return
    manifest.results()


def test_reference_page_of_manifests_is_what_the_declarations_make() -> None:
    """A page that differs from what is checked sends its readers wrong."""
    page = Path(__file__).parents[3] / "docs" / "reference" / "manifest.md"
    assert page.read_text("utf-8") == manifest_page(), "run: python -m meshnode.cli.reference manifest > …/manifest.md"


# --- signature -------------------------------------------------------------------------------------------------------
def test_declared_signature_that_fits_is_taken_and_narrows_what_is_open(tmp_path: Path) -> None:
    """A detector takes any multiple of 32, and was tried with one."""
    text = ("[[inputs]]\nname = 'x'\ndtype = 'f4'\nshape = [-1, 3, 6, 8]\nmax = [4, -1, -1, -1]\n"
            "[[outputs]]\nname = 'y'\nshape = [-1, 3, 6, 8]\n")  # fmt: skip
    model = loaded(tmp_path, text, ("n", 3, "h", "w"))
    assert model.inputs == (TensorSignature("x", "f4", (None, 3, 6, 8), ("n", "", "h", "w")),)
    assert str(model.outputs[0]) == "y: f4[?, 3, 6, 8]"
    model.check({"x": np.zeros((4, 3, 6, 8), "f4")})
    with pytest.raises(
        InputInvalid, match=r"expected f4\[\?, 3, 6, 8\], at most \[4, -1, -1, -1\], given f4\[5, 3, 6, 8\]"
    ):
        model.check({"x": np.zeros((5, 3, 6, 8), "f4")})
    with pytest.raises(InputInvalid, match=r"given f4\[1, 3, 8, 8\]"):
        model.check({"x": np.zeros((1, 3, 8, 8), "f4")})


def test_input_whose_shape_the_file_does_not_tell_takes_the_declared_one(tmp_path: Path) -> None:
    """Exporters lose shapes; the author knows them."""
    model = loaded(tmp_path, "[[inputs]]\nname = 'x'\nshape = [-1, 4]\n", None)
    assert model.inputs[0].shape == (None, 4)
    assert model.zeros() is not None
    with pytest.raises(InputInvalid, match=r"expected f4\[\?, 4\], given f4\[3\]"):
        model.check({"x": np.zeros(3, "f4")})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[[inputs]]\nname = 'X'", "inputs[0].name = 'X': is not in the model: it has 'x'"),
        ("[[inputs]]\nname = 'x'\ndtype = 'f2'", "inputs[0].dtype = 'f2': is not what the model has, f4[?, 3, 6, 8]"),
        ("[[inputs]]\nname = 'x'\nshape = [1, 3, 6]", "inputs[0].shape = [1, 3, 6]: is not what the model has"),
        ("[[outputs]]\nname = 'y'\nshape = [1, 1, 6, 8]", "outputs[0].shape = [1, 1, 6, 8]: is not what the model has"),
        ("[[inputs]]\nname = 'x'\nshape = [-1, 3, 6, 8]\nmax = [-1, 2, -1, -1]", "max = [-1, 2, -1, -1]: is less"),
        ("[preprocessing.z]\nwidth = 8\nheight = 6", "preprocessing.z: is not in the model: it has 'x'"),
        ("[preprocessing.x]\nwidth = 6\nheight = 8", "x: makes f4[1, 3, 8, 6], and the model takes f4[?, 3, 6, 8]"),
        (PICTURE + "layout = 'nhwc'", "makes f4[1, 6, 8, 3]"),
        (PICTURE + "colours = 'grey'", "makes f4[1, 1, 6, 8]"),
        (PICTURE + "scale = 1e38", "of channel 0 becomes 4e+38, which f4 can't hold"),
    ],
)  # fmt: skip
def test_manifest_of_another_model_is_refused_with_the_key(tmp_path: Path, text: str, expected: str) -> None:
    """The usual accident is a new model beside an old manifest."""
    with pytest.raises(ModelInvalid) as caught:
        loaded(tmp_path, text)
    assert expected in str(caught.value)
    assert str(tmp_path / "m.toml") in str(caught.value)


def test_value_that_is_not_finite_is_refused_where_the_manifest_forbids_it(tmp_path: Path) -> None:
    """A NaN goes through a network and comes out as a decision."""
    model = loaded(tmp_path, "[[inputs]]\nname = 'x'\nnan = 'forbid'\n", (2, 3))
    for value, shown in ((np.nan, "nan"), (-np.inf, "-inf")):
        wrong = np.zeros((2, 3), "f4")
        wrong[1, 1] = wrong[1, 2] = value
        for given_as in (wrong, tensor_of(wrong)):
            with pytest.raises(InputInvalid, match=rf"input 'x' of model 'm' is {shown} at \[1, 1\]"):
                model.run({"x": given_as})
    model.run({"x": np.zeros((2, 3), "f4")})
    allowed = loaded(tmp_path, "", (2, 3))
    assert np.isnan(allowed.run({"x": np.full((2, 3), np.nan, "f4")})[0][1]).all()


# --- pictures --------------------------------------------------------------------------------------------------------
def test_input_with_preprocessing_takes_the_encoded_picture(tmp_path: Path) -> None:
    """The picture travels in a fortieth of the bytes of its tensor, and is prepared where it is computed."""
    model = loaded(tmp_path, PICTURE + "colours = 'bgr'\nmean = [1, 2, 3]\n")
    assert model.signature.inputs == (TensorSignature("x", "u1", (None,)),)
    assert "x: u1[?]" in repr(model)
    content = jpeg(colour=(200, 100, 50))
    for value in (as_input(content), Tensor("u1", (len(content),), memoryview(content))):
        ((_, tensor),) = model.run({"x": value})
        assert tensor.shape == (1, 3, 6, 8)
        assert np.abs(tensor[0, :, 3, 4] - [49, 98, 197]).max() <= 2
    zeros = model.zeros()
    assert zeros is not None
    assert model.run(zeros)[0][1].shape == (1, 3, 6, 8)


def test_input_with_preprocessing_takes_the_tensor_of_the_model_too(tmp_path: Path) -> None:
    """A program that prepares its tensors goes on working, and may send several at once."""
    model = loaded(tmp_path, PICTURE)
    tensor = np.arange(2 * 3 * 6 * 8, dtype="f4").reshape(2, 3, 6, 8)
    assert np.array_equal(model.run({"x": tensor})[0][1], tensor)
    with pytest.raises(
        InputInvalid, match=r"expected u1\[\?\] \(a JPEG or PNG\) or f4\[\?, 3, 6, 8\], given u1\[1, 9\]"
    ):
        model.check({"x": np.zeros((1, 9), "u1")})


def test_picture_that_can_not_be_used_is_refused_by_name(tmp_path: Path) -> None:
    """The sender is told by its neighbour, and has to know which of its inputs is meant."""
    model = loaded(tmp_path, PICTURE + "max_pixels = 100\n")
    with pytest.raises(InputInvalid, match="input 'x' of model 'm': 5 bytes are not a picture"):
        model.run({"x": as_input(b"hello")})
    with pytest.raises(
        InputInvalid, match=r"input 'x' of model 'm': the picture has 16 × 12 pixels, and 100 are decoded"
    ):
        model.run({"x": as_input(jpeg())})


def test_model_of_unknown_shape_with_preprocessing_gets_the_shape_of_the_picture(tmp_path: Path) -> None:
    """Otherwise a single dimension of bytes could be meant as a tensor."""
    model = loaded(tmp_path, PICTURE, None, dtype="u1")
    assert model.run({"x": as_input(jpeg())})[0][1].shape == (1, 3, 6, 8)
    with pytest.raises(InputInvalid, match="not a picture"):
        model.run({"x": as_input(bytes(100))})


# --- digest ----------------------------------------------------------------------------------------------------------
def test_digest_covers_what_changes_results_and_nothing_else(tmp_path: Path) -> None:
    """Neighbours that share a digest compute the same; a better description must not split a mesh."""
    bare = loaded(tmp_path, None).digest
    same = ("", "description = 'x'\nlicence = 'MIT'\nlabels = ['a']\nmemory_mib = 99\n[fallback]\nmodel = 'n'\n",
            "[[inputs]]\nname = 'x'\n")  # fmt: skip
    assert {loaded(tmp_path, text).digest for text in same} == {bare}
    others = [PICTURE, PICTURE + "mean = [1, 1, 1]", PICTURE + "resampling = 'nearest'", PICTURE + "max_pixels = 99",
              "[[inputs]]\nname = 'x'\nshape = [1, 3, 6, 8]", "[[inputs]]\nname = 'x'\nnan = 'forbid'",
              "[[outputs]]\nname = 'y'\nshape = [1, 3, 6, 8]"]  # fmt: skip
    digests = [loaded(tmp_path, text).digest for text in others]
    assert len({bare, *digests}) == len(others) + 1


def test_digest_does_not_depend_on_how_the_manifest_is_written(tmp_path: Path) -> None:
    """Comments, order, and defaults that are spelled out change nothing that is computed."""
    one = loaded(tmp_path, PICTURE + "scale = 2\nmean = [1, 2, 3]\n").digest
    two = loaded(tmp_path, "# so\n[preprocessing.x]\nmean = [1.0, 2.0, 3.0]\nheight = 6\nwidth = 8\nscale = 2.0\n"
                 "fit = 'stretch'\n").digest  # fmt: skip
    assert one == two
    text = b'{"preprocessing":{"x":{"height":6,"mean":[1.0,2.0,3.0],"scale":2.0,"width":8}}}'
    file = hashlib.sha256((tmp_path / "m.onnx").read_bytes()).digest()
    assert one == hashlib.sha256(file + text).hexdigest()


def test_pinned_digest_is_compared_with_the_manifest_included(tmp_path: Path) -> None:
    """Whoever pins a model pins how its pictures are prepared."""
    digest = loaded(tmp_path, PICTURE).digest
    load_model(ModelSpec("m", tmp_path / "m.onnx", digest=digest))
    (tmp_path / "m.toml").unlink()
    with pytest.raises(ModelInvalid, match="with its manifest, or correct 'digest'"):
        load_model(ModelSpec("m", tmp_path / "m.onnx", digest=digest))


# --- golden vectors --------------------------------------------------------------------------------------------------
GOLDEN = "[[golden]]\ninputs = { x = 'in.npy' }\noutputs = { y = 'out.npy' }\n"


def test_golden_vector_that_holds_lets_the_model_in(tmp_path: Path) -> None:
    """With the tolerance that its author gave."""
    np.save(tmp_path / "in.npy", np.array([1, 2], "f4"))
    np.save(tmp_path / "out.npy", np.array([2.0, 4.002], "f4"))
    assert loaded(tmp_path, GOLDEN, (2,), op="Add").name == "m"
    with pytest.raises(
        ModelInvalid, match=r"golden\[0\]: output 'y' is 4\.0 at \[1\] and not 4\.00\d+ \(1 of 2 values"
    ):
        loaded(tmp_path, GOLDEN + "atol = 0\nrtol = 1e-6\n", (2,), op="Add")


def test_golden_vector_of_a_picture_finds_another_preprocessing(tmp_path: Path) -> None:
    """Colours in the wrong order pass every check of a signature."""
    (tmp_path / "street.jpg").write_bytes(jpeg())
    right = loaded(tmp_path, PICTURE).run({"x": as_input(jpeg())})[0][1]
    np.save(tmp_path / "out.npy", right)
    golden = GOLDEN.replace("in.npy", "street.jpg")
    loaded(tmp_path, PICTURE + golden)
    with pytest.raises(ModelInvalid, match=r"m\.toml: golden\[0\]: output 'y' is .* \(\d+ of 144 values differ\)"):
        loaded(tmp_path, PICTURE + "colours = 'bgr'\n" + golden)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"golden\[0\]\.inputs\.x: .*in\.npy can't be read \(No such file"),
        (b"\x93NUMPY\x01\x00", "is not a .npy file of numbers"),
        (b"", "is not a .npy file of numbers"),
        (np.zeros(3, "f4"), r"golden\[0\] can't be computed: input 'x' of model 'm': expected f4\[2\], given f4\[3\]"),
        (np.array(["a"], object), "is not a .npy file of numbers"),
    ],
)
def test_golden_vector_that_can_not_be_used_keeps_the_model_out(tmp_path: Path, content: Any, message: str) -> None:
    """A test that silently does not run is worse than none."""
    np.save(tmp_path / "out.npy", np.zeros(2, "f4"))
    if isinstance(content, bytes):
        (tmp_path / "in.npy").write_bytes(content)
    elif content is not None:
        np.save(tmp_path / "in.npy", content, allow_pickle=True)
    with pytest.raises(ModelInvalid, match=message):
        loaded(tmp_path, GOLDEN, (2,))


def test_golden_vector_of_another_type_or_unknown_output_keeps_the_model_out(tmp_path: Path) -> None:
    """Numbers that are equal in another type are the answers of another model."""
    np.save(tmp_path / "in.npy", np.zeros(2, "f4"))
    np.save(tmp_path / "out.npy", np.zeros(2, "f8"))
    with pytest.raises(ModelInvalid, match=r"is float32\[2\] and not float64\[2\]"):
        loaded(tmp_path, GOLDEN, (2,))
    with pytest.raises(ModelInvalid, match="model 'm' has no output 'z'"):
        loaded(tmp_path, GOLDEN.replace("y =", "z ="), (2,))
