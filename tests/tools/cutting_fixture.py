"""Folders of stages for tests, chains of stages, and the real models that are cut."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.cut_models import PackageMissing, cut_spec
from meshnode.models import ModelSpec, load_model
from meshnode.models.cutting import StageFile, StageFolder


@pytest.fixture(name="stages", scope="module")
def given_stages(tmp_path_factory: pytest.TempPathFactory) -> StageFolder:
    return StageFolder(tmp_path_factory.mktemp("stages") / "below")


def case_spec(name: str, folder: Path, optimisation: str = "basic") -> ModelSpec:
    """A real model. Without its package the test is skipped, with what installs it."""
    try:
        return cut_spec(name, folder, optimisation)
    except PackageMissing as error:
        pytest.skip(str(error))


def run_chain(
    stages: Iterable[StageFile], inputs: Mapping[str, Any], optimisation: str = "basic"
) -> dict[str, np.ndarray]:
    """Run stages as the holder of all tensors does. Returns all of them, by name."""
    held = dict(inputs)
    for stage in stages:
        spec = ModelSpec("stage", Path(stage.path), digest=stage.digest, optimisation=optimisation)  # type: ignore[arg-type]
        model = load_model(spec)
        assert (model.inputs, model.outputs) == (stage.inputs, stage.outputs)
        held |= dict(model.run({each.name: held[each.name] for each in stage.inputs}))
    return held


def assert_same_bits(spec: ModelSpec, stages: Iterable[StageFile], inputs: Mapping[str, Any]) -> None:
    """The chain gives what the whole gives, and NaN in the same places."""
    given = run_chain(stages, inputs, spec.optimisation)
    for name, array in load_model(spec).run(inputs):
        assert (given[name].dtype, given[name].shape) == (array.dtype, array.shape)
        assert given[name].tobytes() == array.tobytes()


def noise(spec: ModelSpec, seed: int) -> dict[str, np.ndarray]:
    """Inputs in the shapes of ``warm_up``, and of an open first size as 1."""
    random, arrays = np.random.default_rng(seed), {}
    for each in load_model(spec).inputs:
        shape = spec.warm_up.get(each.name) or tuple(1 if size is None else size for size in each.shape)
        arrays[each.name] = np.asarray(random.standard_normal(shape) * 2, each.dtype)
    return arrays
