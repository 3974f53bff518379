"""The cuts of the plate detector, a real network: how many, what they carry, and stages that compute the same."""

from pathlib import Path

import numpy as np
import pytest

from meshnode.models import ModelSpec, load_model, plate
from meshnode.models.cutting import CutDescription, StageFile, StageFolder

pytestmark = pytest.mark.processes
SIDE = 160


@pytest.fixture(name="spec", scope="module")
def given_spec() -> ModelSpec:
    return ModelSpec("plate", plate.find_detector(), warm_up={plate.INPUT: (1, 3, SIDE, SIDE)})


@pytest.fixture(name="folder", scope="module")
def given_folder(tmp_path_factory: pytest.TempPathFactory) -> StageFolder:
    return StageFolder(tmp_path_factory.mktemp("stages") / "below")


@pytest.fixture(name="description", scope="module")
def given_description(folder: StageFolder, spec: ModelSpec) -> CutDescription:
    return folder.describe(spec)


def test_plate_detector_has_the_cuts_that_are_known_of_it(description: CutDescription, spec: ModelSpec) -> None:
    """A pass that counts too many live tensors finds fewer, and pipelines lose their best places."""
    assert description.digest == load_model(spec).digest
    single = [cut for cut in description.cuts if len(cut.tensors) == 1]
    assert len(single) == 22
    assert [cut.at for cut in single] == list(range(1, 23))
    first = single[0]
    assert str(first.tensors[0]).endswith(f"f4[1, 8, {SIDE // 2}, {SIDE // 2}]")
    assert first.size_bytes == 8 * (SIDE // 2) ** 2 * 4
    assert {len(cut.tensors) for cut in description.cuts} == {1, 2, 3}
    assert [str(each) for each in description.inputs] == [f"image: f4[1, 3, {SIDE}, {SIDE}]"]


def test_plate_detector_shares_and_weights_grow_along_its_nodes(description: CutDescription) -> None:
    """A plan adds up what is between two cuts: a share that falls would give a stage of negative time."""
    shares = [cut.share for cut in description.cuts]
    weights = [cut.weight_bytes for cut in description.cuts]
    assert shares == sorted(shares)
    assert weights == sorted(weights)
    assert 0 < shares[0] < shares[-1] <= 1
    assert 0 < weights[0] < weights[-1] <= description.weight_bytes < spec_bytes()
    assert description.run_us > 0


def spec_bytes() -> int:
    return plate.find_detector().stat().st_size


@pytest.mark.parametrize("cuts", [[0], [21], [14, 40], [5, 30, 56]])
def test_stages_in_a_chain_give_the_bits_of_the_whole(folder: StageFolder, spec: ModelSpec, cuts: list[int]) -> None:
    """Who computes what must never be visible in an answer."""
    image = np.random.default_rng(1).standard_normal((1, 3, SIDE, SIDE)).astype("f4")
    expected = dict(load_model(spec).run({plate.INPUT: image}))
    stages = folder.stages(spec, cuts)
    assert len(stages) == len(cuts) + 1
    held = run_chain(stages, {plate.INPUT: image})
    for name, array in expected.items():
        assert held[name].tobytes() == array.tobytes()


def run_chain(stages: tuple[StageFile, ...], held: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    for stage in stages:
        model = load_model(ModelSpec("stage", Path(stage.path), digest=stage.digest))
        assert (model.inputs, model.outputs) == (stage.inputs, stage.outputs)
        held = {**held, **dict(model.run({each.name: held[each.name] for each in stage.inputs}))}
    return held


def test_stage_that_was_made_is_read_from_disk(folder: StageFolder, spec: ModelSpec) -> None:
    """Making a stage takes a second of a process; a plan asks for it again and again."""
    made = folder.stage(spec, 3, 9)
    inode = Path(made.path).stat().st_ino
    assert folder.stage(spec, 3, 9) == made
    assert folder.find(made.digest) == Path(made.path)
    assert Path(made.path).stat().st_ino == inode
