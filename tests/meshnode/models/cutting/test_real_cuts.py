"""Real networks: how many cuts they have, and that their stages compute what the whole computes.

``python -m benchmarks.cuts`` tries every cut of every model; here are samples of them.
"""

from pathlib import Path

import numpy as np
import pytest

from meshnode.models import ModelSpec, load_model
from meshnode.models.cutting import StageFolder
from tests.tools.cutting_fixture import assert_same_bits, case_spec, given_stages, noise

pytestmark = pytest.mark.processes
__all__ = ["given_stages"]


def test_plate_detector_is_described_in_full(stages: StageFolder, tmp_path: Path) -> None:
    """A plan adds up what is between two cuts: a share that falls would give a stage of negative time."""
    spec = case_spec("plate detection", tmp_path)
    description = stages.describe(spec)
    assert description.digest == load_model(spec).digest
    single = [cut for cut in description.cuts if len(cut.tensors) == 1]
    assert [cut.at for cut in single] == list(range(1, 23))
    assert str(single[0].tensors[0]).endswith("f4[1, 8, 160, 160]")
    assert single[0].size_bytes == 8 * 160 * 160 * 4
    assert [str(each) for each in description.inputs] == ["image: f4[1, 3, 320, 320]"]
    assert str(description.outputs[0]) == "loc: f4[1, 4200, 4]"
    shares, weights = ([getattr(cut, what) for cut in description.cuts] for what in ("share", "weight_bytes"))
    assert shares == sorted(shares)
    assert weights == sorted(weights)
    assert 0 < shares[0] < shares[-1] <= 1
    assert 0 < weights[0] < weights[-1] <= description.weight_bytes < spec.path.stat().st_size
    assert description.run_us > 100


@pytest.mark.parametrize(
    ("name", "single", "cuts"),
    [
        ("text detection", 48, (19, 145)),
        ("text recognition", 209, (32, 194)),
        ("ResNet-50", 38, (2, 60, 118)),
        ("speech, 16 kHz", 9, (4, 20)),
        ("signal heads", 6, (3, 7)),
    ],
)
def test_network_has_the_cuts_that_are_known_of_it_and_its_stages_give_its_bits(
    stages: StageFolder, tmp_path: Path, name: str, single: int, cuts: tuple[int, ...]
) -> None:
    """A pass that counts too many live tensors finds fewer, and pipelines lose their best places."""
    spec = case_spec(name, tmp_path)
    description = stages.describe(spec)
    assert sum(len(cut.tensors) == 1 for cut in description.cuts) == single
    assert_same_bits(spec, stages.stages(spec, cuts), noise(spec, 3))


@pytest.mark.parametrize("cuts", [(14, 40), (5, 30, 56)])
def test_stages_of_the_plate_detector_give_the_bits_of_the_whole(
    stages: StageFolder, tmp_path: Path, cuts: tuple[int, ...]
) -> None:
    """Who computes what must never be visible in an answer."""
    spec = case_spec("plate detection", tmp_path)
    made = stages.stages(spec, cuts)
    assert len(made) == len(cuts) + 1
    assert_same_bits(spec, made, noise(spec, 1))


def test_stages_pass_on_what_is_not_a_number(stages: StageFolder, tmp_path: Path) -> None:
    """NaN equals nothing, itself included: a comparison of values would refuse such stages, or take any."""
    spec = case_spec("plate detection", tmp_path)
    image = noise(spec, 2)["image"]
    image[0, :, ::7, ::5] = np.nan
    image[0, 0, 3, 3] = np.inf
    assert_same_bits(spec, stages.stages(spec, [14]), {"image": image})


@pytest.mark.parametrize("level", ["basic", "all"])
def test_quantised_network_is_cut_where_its_bytes_are_small(stages: StageFolder, tmp_path: Path, level: str) -> None:
    """A boundary of one byte for each value is a quarter of the other, and the only one that the highest level of
    optimisation leaves alone."""
    spec = case_spec("plate detection, QDQ", tmp_path, level)
    single = [(at, cut) for at, cut in enumerate(stages.describe(spec).cuts) if len(cut.tensors) == 1]
    assert len(single) == 24
    assert {cut.tensors[0].dtype for _, cut in single} == {"u1"}
    assert_same_bits(spec, stages.stages(spec, [single[4][0], single[20][0]]), noise(spec, 1))


def test_types_that_only_a_run_tells_reach_the_stages(stages: StageFolder, tmp_path: Path) -> None:
    """ONNX knows nothing of ONNX Runtime's own operators for whole numbers; their stages could not be loaded."""
    spec = case_spec("plate detection, QOperator", tmp_path)
    first, second = stages.stages(spec, [10])
    assert [str(each) for each in second.inputs] == ["315_quantized: u1[1, 32, 40, 40]"]
    assert_same_bits(spec, [first, second], noise(spec, 1))


def test_model_with_if_keeps_what_only_a_branch_uses(stages: StageFolder, tmp_path: Path) -> None:
    """The state of a recogniser of speech goes into both branches of an If, and nowhere else."""
    spec = case_spec("speech, with If", tmp_path)
    description = stages.describe(spec)
    (cut,) = description.cuts
    assert cut.inputs == ("input", "state")
    assert {"input", "state"} < {each.name for each in stages.stage(spec, 0, None).inputs}
    assert_same_bits(spec, stages.stages(spec, [0]), noise(spec, 1))


def test_network_that_fixed_sizes_would_change_is_cut_with_open_ones(stages: StageFolder, tmp_path: Path) -> None:
    """With sizes known, ONNX Runtime computes layers of a transformer by another operator, and rounds differently."""
    spec = case_spec("text recognition", tmp_path)
    first, second = stages.stages(spec, [100])
    assert [str(each) for each in first.inputs] == ["x: f4[?, 3, ?, ?]"]
    assert None in second.inputs[0].shape
    assert (first.manifest, second.manifest) == ("", "")
    assert_same_bits(spec, [first, second], noise(spec, 1))


def test_trees_say_that_they_run_whole(stages: StageFolder, tmp_path: Path) -> None:
    """An empty table would look like a mistake."""
    spec = case_spec("trees", tmp_path)
    description = stages.describe(spec)
    assert description.cuts == ()
    assert description.notes[-1] == "It has no cuts and runs whole: it is a single TreeEnsemble node."
    (whole,) = stages.stages(spec, [])
    assert_same_bits(spec, [whole], noise(spec, 1))


def test_same_model_gives_the_same_stages_in_another_folder(stages: StageFolder, tmp_path: Path) -> None:
    """Nodes find a stage by its digest: two that cut the same model must make the same file."""
    spec = case_spec("plate detection", tmp_path)
    copied = tmp_path / "elsewhere.onnx"
    copied.write_bytes(spec.path.read_bytes())
    again = ModelSpec("other name", copied, warm_up=spec.warm_up)
    other = StageFolder(tmp_path / "other")
    made, once_more = stages.stages(spec, [5, 30]), other.stages(again, [5, 30])
    assert [each.digest for each in made] == [each.digest for each in once_more]
