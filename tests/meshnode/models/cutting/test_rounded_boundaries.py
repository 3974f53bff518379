"""Boundaries between stages in half precision or in bytes: allowed by the manifest, and their error is measured."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from meshnode.inference.section import ModelSection
from meshnode.inference.splitting.description import split_model
from meshnode.models import ModelSpec, load_model
from meshnode.models.cutting import StageFolder
from meshnode.models.manifest import read_manifest
from protocols.base.errors import ModelInvalid
from tests.tools import onnx_graphs
from tests.tools.cutting_fixture import case_spec, given_stages, noise, run_chain
from tests.tools.onnx_graphs import write_text

pytestmark = pytest.mark.processes
__all__ = ["given_stages"]
CUTS = (14, 40)


def plate(folder: Path, rules: str) -> ModelSpec:
    """The plate detector with these rules in its manifest."""
    spec = case_spec("plate detection", folder)
    path = folder / "rounded.onnx"
    shutil.copyfile(spec.path, path)
    path.with_suffix(".toml").write_text(f"[split]\n{rules}\n")
    return replace(spec, path=path)


@pytest.mark.parametrize(("form", "dtype", "part", "error"), [("f16", "f2", 2, 0.01), ("u8", "u1", 4, 0.2)])
def test_boundary_travels_in_fewer_bytes_and_its_error_is_measured(
    stages: StageFolder, tmp_path: Path, form: str, dtype: str, part: int, error: float
) -> None:
    """Half or a quarter of the bytes: on a slow radio that decides whether a plan is in time."""
    spec = plate(tmp_path, f'boundary = "{form}"\nboundary_error = {error}')
    description = stages.describe(spec)
    made = stages.stages(spec, CUTS)
    boundary = description.cuts[CUTS[0]].tensors
    first = {each.name: each for each in made[0].outputs}
    assert [first[each.name].dtype for each in boundary] == [dtype] * len(boundary)
    assert [first[each.name].shape for each in boundary] == [each.shape for each in boundary]
    assert 0 < made[0].error == made[1].error <= error
    inputs = noise(spec, 5)
    held = run_chain(made, inputs)
    for name, expected in load_model(spec).run(inputs):
        assert held[name].dtype == expected.dtype
        assert np.abs(held[name] - expected).max() <= error * np.abs(expected).max()
    model, usable = split_model(spec, ModelSection(path=spec.path, split="latency"), description, 1.0)
    raw_bytes = [description.cuts[cut].size_bytes for cut in usable]
    assert [point.size_bytes for point in model.profile.cuts] == [size // part for size in raw_bytes]


def test_error_above_what_the_manifest_allows_refuses_the_stages(stages: StageFolder, tmp_path: Path) -> None:
    """Nobody gets answers that are worse than their author allows."""
    spec = plate(tmp_path, 'boundary = "u8"\nboundary_error = 1e-9')
    with pytest.raises(ModelInvalid, match=r"rounded boundaries change output .* its manifest allows 1e-09"):
        stages.stages(spec, CUTS)


def test_raw_boundary_has_no_error_and_other_rules_make_other_stages(stages: StageFolder, tmp_path: Path) -> None:
    """The folder keeps stages by model; a manifest that was changed must not get those of before."""
    spec = plate(tmp_path, 'boundary = "f16"\nboundary_error = 0.01')
    rounded = stages.stages(spec, CUTS)
    raw = stages.stages(plate(tmp_path, "first_cut_at_home = true"), CUTS)
    assert {stage.error for stage in raw} == {0.0}
    assert {stage.digest for stage in raw}.isdisjoint({stage.digest for stage in rounded})


def test_what_bodies_capture_is_widened_for_them(stages: StageFolder, tmp_path: Path) -> None:
    """A branch that took the rounded tensor would not be valid."""
    spec = ModelSpec("m", write_text(tmp_path / "m.onnx", onnx_graphs.CAPTURED))
    spec.path.with_suffix(".toml").write_text('[split]\nboundary = "f16"\nboundary_error = 0.01\n')
    inputs = {"x": np.array([1.5, -2.0, 0.25, 3.0], "f4"), "c": np.array(True)}
    for cuts in ([0], [1], [0, 1, 2]):
        made = stages.stages(spec, cuts)
        held = run_chain(made, inputs)
        for name, expected in load_model(spec).run(inputs):
            np.testing.assert_allclose(held[name], expected, rtol=0.01)


@pytest.mark.parametrize(
    ("rules", "match"),
    [
        ('boundary = "f16"', "forbids all rounding"),
        ("boundary_error = 0.1", "'raw' causes none"),
        ('boundary = "f8"\nboundary_error = 0.1', "f8"),
        ('boundary = "f16"\nboundary_error = 2', "boundary_error"),
    ],
)
def test_rules_that_contradict_each_other_are_named(tmp_path: Path, rules: str, match: str) -> None:
    """Found when the model is loaded, with the way out."""
    path = tmp_path / "m.onnx"
    path.with_suffix(".toml").write_text(f"[split]\n{rules}\n")
    with pytest.raises(ModelInvalid, match=match):
        read_manifest(path)
