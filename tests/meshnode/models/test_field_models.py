"""Models as people export them: weights in files of their own, shapes that are not told, outputs that can't travel."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from meshnode.models import LoadedModel, ModelSpec, Runner, load_model
from meshnode.models.weights import weight_files
from protocols.base.errors import InputInvalid, ModelInvalid
from tests.tools.tiny_onnx import write_model

FIELD = Path(__file__).parent / "field"


def loaded(name: str, folder: Path = FIELD) -> LoadedModel:
    """A model of that folder."""
    return load_model(ModelSpec("field", folder / f"{name}.onnx"))


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """A folder with a model and its weights."""
    for name in ("m1_external.onnx", "m1_external.onnx.data"):
        shutil.copy(FIELD / name, tmp_path / name)
        (tmp_path / name).chmod(0o600)
    return tmp_path


def test_weights_come_from_the_folder_of_the_model(external: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They were looked for in the working directory, where another model's may lie."""
    elsewhere = external / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "m1_external.onnx.data").write_bytes(bytes(16_384))
    monkeypatch.chdir(elsewhere)
    ((_, product),) = loaded("m1_external", external).run({"x": np.eye(64, dtype="f4")})
    weights = np.frombuffer((external / "m1_external.onnx.data").read_bytes(), "f4").reshape(64, 64)
    assert np.array_equal(product, weights)


def test_digest_covers_the_weights(external: Path, tmp_path: Path) -> None:
    """Two nodes with different weights would give different answers to one question."""
    before = loaded("m1_external", external).digest
    weights = external / "m1_external.onnx.data"
    parts = [hashlib.sha256((external / name).read_bytes()).digest() for name in ("m1_external.onnx", weights.name)]
    assert before == hashlib.sha256(b"".join(parts)).hexdigest()
    weights.write_bytes(bytes(16_384))
    assert loaded("m1_external", external).digest != before
    whole = write_model(tmp_path / "whole.onnx", (4,))
    assert load_model(ModelSpec("whole", whole)).digest == hashlib.sha256(whole.read_bytes()).hexdigest()


def test_weights_that_are_missing_or_cut_off_are_named(external: Path) -> None:
    """Half of a copy is the usual accident."""
    weights = external / "m1_external.onnx.data"
    weights.write_bytes(weights.read_bytes()[:1_000])
    with pytest.raises(ModelInvalid, match="can't be loaded"):
        loaded("m1_external", external)
    weights.unlink()
    with pytest.raises(ModelInvalid, match=r"'m1_external\.onnx\.data', which is not beside .* copy it there"):
        loaded("m1_external", external)


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret", "a/../../secret"])
def test_weights_outside_of_the_folder_are_refused(name: str) -> None:
    """A model from somebody else must not read the key of this node."""
    content = b"\x0a\x08location\x12" + bytes([len(name)]) + name.encode()
    with pytest.raises(ModelInvalid, match="outside of its folder"):
        weight_files(b"before" + content + b"behind")


def test_names_of_weights_are_found_at_any_place_and_hostile_bytes_name_none() -> None:
    """The model is read before anything has checked that it is one."""
    entry = b"\x0a\x08location\x12"
    assert weight_files(b"x" + entry + b"\x01a" + b"y" * 9 + entry + b"\x03b/c" + entry + b"\x01a") == ["a", "b/c"]
    for hostile in (entry, entry + b"\x00", entry + b"\xff\xff\xff", b"", entry[:-1]):
        assert weight_files(hostile) == []
    assert weight_files(entry + b"\xc8\x01" + b"n" * 200) == ["n" * 200]
    with pytest.raises(ModelInvalid, match="has 256 bytes: use at most 255"):
        weight_files(entry + b"\x80\x02" + b"n" * 256)


def test_what_onnx_runtime_says_last_is_kept() -> None:
    """Three hundred characters of its source's paths come before it."""
    with pytest.raises(ModelInvalid, match="Unsupported model IR version: 99, max supported IR version"):
        loaded("m2_ir_too_new")


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (1, 2, 3, 4)])
def test_input_whose_shape_is_not_told_takes_any(shape: tuple[int, ...]) -> None:
    """It was taken for a single number."""
    model = loaded("m13_no_shape")
    ((_, given),) = model.run({"x": np.ones(shape, "f4")})
    assert given.shape == shape
    assert "any shape" in repr(model)
    with pytest.raises(InputInvalid, match="expected f4 of any shape, given i8"):
        model.run({"x": np.ones(shape, "i8")})


def test_model_that_does_not_take_a_number_is_measured_by_its_first_caller(tmp_path: Path) -> None:
    """A shape that is not told may be that of a picture."""
    runner = Runner()
    try:
        assert runner.warm_up(loaded("m13_no_shape")) is not None, "this one takes numbers too"
        squared = load_model(ModelSpec("m", write_model(tmp_path / "m.onnx", None, "MatMul")))
        assert runner.warm_up(squared) is None
        ((_, product),) = squared.run({"x": 2 * np.eye(3, dtype="f4")})
        assert np.array_equal(product, 4 * np.eye(3))
    finally:
        runner.close()


@pytest.mark.parametrize(
    ("name", "left", "out", "way_out"),
    [
        ("s1_zipmap", "output_label", "output_probability", "options={'zipmap': False}"),
        ("s3_string_labels", "probabilities", "label", "numbers as labels"),
    ],
)
def test_outputs_that_cant_travel_are_left_out_and_named(name: str, left: str, out: str, way_out: str) -> None:
    """The rest of a classifier is worth having, and its owner must learn how to get all of it."""
    model = loaded(name)
    assert list(model.left_out) == [out]
    assert way_out in model.left_out[out]
    assert [given for given, _ in model.run({"X": np.zeros((2, 4), "f4")})] == [left]
    with pytest.raises(InputInvalid, match="is left out") as refused:
        model.run({"X": np.zeros((2, 4), "f4")}, [out])
    assert way_out in str(refused.value)
