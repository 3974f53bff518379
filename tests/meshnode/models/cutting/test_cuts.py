"""Cuts of small models: bodies that capture tensors, open sizes, weights in files, pictures, and what is refused."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from meshnode.models import ModelSpec, load_model, plate
from meshnode.models.cutting import CutDescription, StageFolder
from protocols.base.errors import InputInvalid, ModelInvalid
from tests.tools import onnx_graphs
from tests.tools.cutting_fixture import assert_same_bits, case_spec, given_stages, run_chain
from tests.tools.onnx_graphs import write_external, write_text

pytestmark = pytest.mark.processes
__all__ = ["given_stages"]
X = np.array([1.5, -2.0, 0.25, 3.0], "f4")


def carried(description: CutDescription) -> list[set[str]]:
    return [{each.name for each in cut.tensors} for cut in description.cuts]


@pytest.mark.parametrize(
    ("text", "expected", "inputs"),
    [
        (onnx_graphs.CAPTURED, [{"a"}, {"a", "b"}, {"a", "d"}], {"c": np.array(True)}),
        (onnx_graphs.CAPTURED, [{"a"}, {"a", "b"}, {"a", "d"}], {"c": np.array(False)}),
        (onnx_graphs.NESTED, [{"a"}, {"a", "b"}, {"a", "b", "d"}, {"a", "b", "e"}], {"c": np.array(True)}),
        (onnx_graphs.LOOP, [{"a"}, {"a", "b"}], {}),
    ],
)
def test_what_bodies_capture_is_carried_over_a_cut(
    stages: StageFolder, tmp_path: Path, text: str, expected: list[set[str]], inputs: dict[str, np.ndarray]
) -> None:
    """A stage that lacks a tensor which only a branch uses can't be loaded."""
    spec = ModelSpec("m", write_text(tmp_path / "m.onnx", text))
    description = stages.describe(spec)
    assert carried(description) == expected
    for cuts in ([1], range(len(expected))):
        assert_same_bits(spec, stages.stages(spec, cuts), {"x": X, **inputs})


def test_inputs_that_later_nodes_use_are_told_apart(stages: StageFolder, tmp_path: Path) -> None:
    """Whoever asks for the result has them already, and must keep them for the later stages."""
    spec = ModelSpec("m", write_text(tmp_path / "m.onnx", onnx_graphs.NESTED))
    assert [cut.inputs for cut in stages.describe(spec).cuts] == [("x", "c")] * 4
    assert {each.name for each in stages.stage(spec, 3, None).inputs} == {"x", "c", "a", "b", "e"}


def test_size_that_values_decide_stays_open_in_stages(stages: StageFolder, tmp_path: Path) -> None:
    """A stage that were made for the size of a sample would refuse all other inputs."""
    spec = ModelSpec("m", write_text(tmp_path / "m.onnx", onnx_graphs.VALUES_DECIDE))
    description = stages.describe(spec)
    assert description.cuts[1].tensors[0].dtype == "i8"
    made = stages.stages(spec, [1])
    assert [str(each) for each in made[1].inputs] == ["found: i8[2, ?]"]
    for seed in range(3):
        assert_same_bits(spec, made, {"x": np.random.default_rng(seed).standard_normal((2, 8)).astype("f4")})


def test_operators_of_onnx_runtime_alone_can_be_cut_between(stages: StageFolder, tmp_path: Path) -> None:
    """ONNX does not tell what they give; a run does."""
    spec = ModelSpec("m", write_text(tmp_path / "m.onnx", onnx_graphs.FOREIGN))
    made = stages.stages(spec, [1, 2])
    assert [str(each) for each in made[1].inputs] == ["b: f4[1, 8]"]
    assert_same_bits(spec, made, {"x": np.arange(8, dtype="f4").reshape(1, 8) - 4})


def test_outputs_that_no_node_computes_come_from_the_last_stage(stages: StageFolder, tmp_path: Path) -> None:
    """A constant and an input that is handed through are outputs like others to whoever asks for them."""
    spec = ModelSpec("m", write_text(tmp_path / "m.onnx", onnx_graphs.CONSTANT_OUTPUT))
    made = stages.stages(spec, [0])
    assert [each.name for each in made[1].outputs] == ["y", "always", "same"]
    assert_same_bits(spec, made, {"x": np.array([[1, -1]], "f4")})


def test_open_first_size_is_one_and_others_are_asked_for(stages: StageFolder, tmp_path: Path) -> None:
    """What a model computes of open sizes reaches over every cut; a guess would make stages that nobody can use."""
    spec = ModelSpec("m", write_text(tmp_path / "m.onnx", onnx_graphs.CHAIN))
    description = stages.describe(spec)
    assert [str(each) for each in description.inputs] == ["x: f4[1, 4]"]
    assert description.notes == ("Its input x: f4[?, 4] is taken as x: f4[1, 4]: stages take this shape only.",)
    three = ModelSpec("m", spec.path, warm_up={"x": (3, 4)})
    assert [str(each) for each in stages.stage(three, None, 0).inputs] == ["x: f4[3, 4]"]
    open_sizes = ModelSpec("plate", plate.find_detector())
    with pytest.raises(ModelInvalid, match=r"leaves sizes of its input image: f4\[\?, 3, \?, \?\] open.*1,3,\?,\?"):
        stages.describe(open_sizes)
    with pytest.raises(ModelInvalid, match="'warm_up' of model 'm' doesn't fit it"):
        stages.describe(ModelSpec("m", spec.path, warm_up={"x": (3, 5)}))


def test_weights_in_other_files_are_inside_the_stages(stages: StageFolder, tmp_path: Path) -> None:
    """A stage travels as one file."""
    spec = ModelSpec("m", write_external(tmp_path / "m.onnx", "m.weights"))
    description = stages.describe(spec)
    assert [cut.weight_bytes for cut in description.cuts] == [16_384, 16_384]
    made = stages.stages(spec, [0, 1])
    assert [each.size_bytes > 16_384 for each in made] == [True, False, True]
    x = np.random.default_rng(5).standard_normal((1, 64)).astype("f4")
    assert_same_bits(spec, made, {"x": x})
    (tmp_path / "m.weights").unlink()
    with pytest.raises(ModelInvalid, match=r"its weights are in 'm\.weights', which is not beside"):
        stages.describe(spec)


def test_weights_of_more_than_two_gigabytes_are_refused_before_they_are_read(
    stages: StageFolder, tmp_path: Path
) -> None:
    """One ONNX file can't hold them, and reading them would take the memory of a small computer."""
    path = write_external(tmp_path / "m.onnx", "m.weights")
    with (tmp_path / "m.weights").open("r+b") as file:
        file.truncate(2 << 30)
    with pytest.raises(ModelInvalid, match=r"has 2147\d{6} bytes with its weights: models of at most 2147483647"):
        stages.describe(ModelSpec("m", path))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (onnx_graphs.UNKNOWN, "uses operators that this ONNX Runtime doesn't have"),
        ("no model at all", "is not an ONNX file, or it is cut off"),
    ],
)
def test_file_that_can_not_be_loaded_says_why(stages: StageFolder, tmp_path: Path, text: str, why: str) -> None:
    """The message names the file, as it does when a node loads it."""
    path = tmp_path / "m.onnx"
    if text.startswith("\n"):
        write_text(path, text)
    else:
        path.write_text(text)
    with pytest.raises(ModelInvalid, match=why):
        stages.describe(ModelSpec("m", path))


def test_model_that_draws_random_numbers_is_not_cut(stages: StageFolder, tmp_path: Path) -> None:
    """Nothing could show that its stages compute the same."""
    spec = ModelSpec("m", write_text(tmp_path / "m.onnx", onnx_graphs.RANDOM))
    description = stages.describe(spec)
    assert description.cuts == ()
    assert description.notes[-1].endswith("runs whole: its answers to the same inputs differ each time.")


def test_model_without_cuts_says_so(stages: StageFolder, tmp_path: Path) -> None:
    """Somebody who plans a pipeline has to know that there is none, and why."""
    spec = ModelSpec("m", write_text(tmp_path / "m.onnx", onnx_graphs.WIDE))
    description = stages.describe(spec)
    assert description.cuts == ()
    assert "It has no cuts and runs whole: wherever its 2 nodes are parted" in description.notes[-1]
    with pytest.raises(InputInvalid, match="model 'm' has no cut 0: it has none and runs whole"):
        stages.stage(spec, 0, None)


@pytest.mark.parametrize(("cuts", "why"), [([2], "has no cut 2: it has the cuts 0 to 1"), ([1, 0], "not in order")])
def test_cuts_that_do_not_exist_are_refused(stages: StageFolder, tmp_path: Path, cuts: list[int], why: str) -> None:
    """A plan for another description must not become a wrong pipeline."""
    spec = ModelSpec("m", write_text(tmp_path / "m.onnx", onnx_graphs.CHAIN))
    with pytest.raises(InputInvalid, match=why):
        stages.stages(spec, cuts)


def test_first_stage_takes_pictures_as_the_whole_does(stages: StageFolder, tmp_path: Path) -> None:
    """A JPEG is smaller than any boundary, so it is what goes to whoever computes the first stage."""
    path = tmp_path / "plate.onnx"
    shutil.copyfile(plate.find_detector(), path)
    path.with_suffix(".toml").write_text(plate.manifest(320))
    spec = ModelSpec("plate", path)
    description = stages.describe(spec)
    assert [str(each) for each in description.inputs] == ["image: f4[1, 3, 320, 320]"]
    first, second = made = stages.stages(spec, [14])
    assert [str(each) for each in first.inputs] == ["image: u1[?]"]
    assert "[preprocessing.image]" in first.manifest
    assert Path(first.path).with_suffix(".toml").read_text() == first.manifest
    assert second.manifest == ""
    file = io.BytesIO()
    Image.effect_noise((400, 300), 80).convert("RGB").save(file, "JPEG")
    picture = np.frombuffer(file.getvalue(), "u1")
    assert_same_bits(spec, made, {"image": picture})
    assert description.digest != stages.describe(case_spec("plate detection", tmp_path)).digest


def test_stage_with_a_manifest_has_another_digest_and_needs_it(stages: StageFolder, tmp_path: Path) -> None:
    """Two nodes that prepare pictures in different ways must not offer the same model."""
    path = tmp_path / "plate.onnx"
    shutil.copyfile(plate.find_detector(), path)
    path.with_suffix(".toml").write_text(plate.manifest(320))
    first = stages.stage(ModelSpec("plate", path), None, 14)
    plain = stages.stage(case_spec("plate detection", tmp_path), None, 14)
    content = Path(first.path).read_bytes()
    assert content == Path(plain.path).read_bytes()
    assert first.digest != plain.digest
    other = StageFolder(tmp_path / "other")
    with pytest.raises(ModelInvalid, match=f"a stage has the digest {plain.digest}, not {first.digest}"):
        other.add(content, first.digest)
    assert other.add(content, first.digest, first.manifest) == other.find(first.digest)


def test_stages_that_differ_from_the_whole_are_refused(tmp_path: Path) -> None:
    """A pipeline that gives other answers than the model is worse than none."""
    from meshnode.models.cutting.inside.equality import check_chain

    whole = load_model(ModelSpec("whole", write_text(tmp_path / "m.onnx", onnx_graphs.CHAIN)))
    other = onnx_graphs.CHAIN.replace("Sigmoid", "Softsign")
    stage = load_model(ModelSpec("stage", write_text(tmp_path / "s.onnx", other)))
    with pytest.raises(ModelInvalid, match="stages of model 'whole' were refused: output 'y' differs"):
        check_chain(whole, [stage], [{"x": X.reshape(1, 4)}])
    check_chain(whole, [whole], [{"x": X.reshape(1, 4)}])


def test_chain_can_be_checked_again(stages: StageFolder, tmp_path: Path) -> None:
    """After an update of ONNX Runtime somebody wants to know, without waiting for a wrong answer."""
    spec = ModelSpec("m", write_text(tmp_path / "m.onnx", onnx_graphs.CHAIN))
    stages.check(spec, [0, 1])
    made = stages.stages(spec, [0, 1])
    assert set(run_chain(made, {"x": X.reshape(1, 4)})) == {"x", "a", "b", "y"}
