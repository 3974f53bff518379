"""A model of a command that can't compute some rows: those of one node stop neither a training, nor an inference over
many records, nor the look for drift, and are told; those of several nodes are the model's fault."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from cloud_relay.cli import main
from cloud_relay.learning.candidate import outputs_where_possible
from cloud_relay.learning.recipe import Recipe, read_recipe
from cloud_relay.learning.retraining.drift import DriftWatch
from cloud_relay.learning.retraining.triggers import TrainingTrigger
from meshnode.models import ModelSpec, load_model
from tests.tools.exported_fixture import passage, write_export
from tests.tools.onnx_graphs import write_text
from tests.tools.trained_fixture import Trainer, given_trainer

__all__ = ["given_trainer"]

CHOOSY = """
choosy (float[n, 1] features) => (float[n, 1] value) <float[10] table = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}> {
    index = Cast <to = 7> (features)
    value = Gather (table, index)
}
"""
"""It fails for what is not from -10 to 9."""
RECIPE = """
name = "choosy"
[features]
x = "value.x"
[target]
path = "value.y"
kind = "number"
[command]
run = ["cp", "choosy.onnx", "{out}/model.onnx"]
"""


@pytest.fixture(name="recipe")
def given_recipe(tmp_path: Path) -> Recipe:
    write_text(tmp_path / "choosy.onnx", CHOOSY)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return read_recipe(tmp_path / "recipe.toml")


def passages_with(*bad: str) -> list[dict[str, Any]]:
    """Records of five nodes, and after each twentieth one of each of the others that the model can't compute."""
    told: list[dict[str, Any]] = []
    for n in range(1, 201):
        told.append(passage(n, f"v-{n % 5}", n, {"x": n % 10, "y": n % 10 + 0.5 * (n % 3)}))
        if n % 20 == 0:
            told += [passage(n, origin, n, {"x": 1e6, "y": 1}) for origin in bad]
    return told


def test_rows_that_a_model_can_not_compute_are_found_among_many(recipe: Recipe, tmp_path: Path) -> None:
    model = load_model(ModelSpec("choosy", tmp_path / "choosy.onnx"))
    features = np.arange(10_000, dtype=np.float32)[:, None] % 10
    features[[0, 17, 4_095, 9_999]] = 1e6
    outputs, can = outputs_where_possible(model, features)
    assert np.flatnonzero(~can).tolist() == [0, 17, 4_095, 9_999]
    assert np.array_equal(outputs["value"], features[can])


@pytest.mark.processes
def test_rows_of_one_node_that_a_model_can_not_compute_do_not_stop_a_training(recipe: Recipe, trainer: Trainer) -> None:
    """They are told in the run and on its card."""
    data = write_export(trainer.folder / "a.parquet", passages_with("v-bad"))
    run = trainer.run(trainer.folder / "recipe.toml", data)
    assert run.data is not None
    assert dict(run.data.dropped_origins) == {"v-bad": 3}, "a quarter is held out"
    assert dict(run.data.dropped_reasons) == {"features that the model can't compute": 3}
    assert "They are 3 of v-bad." in (trainer.runs / "choosy" / run.id / "card.md").read_text()


@pytest.mark.processes
def test_model_that_fails_on_rows_of_several_nodes_is_refused(recipe: Recipe, trainer: Trainer) -> None:
    """Nodes would get no answers from it."""
    data = write_export(trainer.folder / "a.parquet", passages_with("v-bad", "v-worse"))
    run = trainer.run(trainer.folder / "recipe.toml", data, status=1)
    assert "the model can't compute 6 of 55 rows that were held out, of 2 nodes" in run.error


@pytest.mark.processes
def test_inference_over_many_records_leaves_out_what_the_model_can_not_compute(recipe: Recipe, tmp_path: Path) -> None:
    """Also records of another type. All others get their predictions."""
    told = [*passages_with("v-bad"), passage(300, "v-odd", 300, {"x": "one"})]
    data, out = write_export(tmp_path / "a.parquet", told), tmp_path / "p.parquet"
    words = ("infer", "--model", tmp_path / "choosy.onnx", "--recipe", tmp_path / "recipe.toml", "--data", data)
    result = CliRunner().invoke(main, [*map(str, words), "--out", str(out), "--jobs", "1"])
    assert result.exit_code == 0, result.output
    reasons = "10 because of features that the model can't compute, 1 because of value.x that is no number"
    assert f"11 left out: {reasons}; 10 of v-bad, 1 of v-odd" in result.output
    assert pq.read_table(out).num_rows == 200


def test_drift_is_found_beside_records_that_the_model_can_not_compute(
    recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The look would fail at them again and again, and nobody would be told that the model errs."""
    watch = DriftWatch(TrainingTrigger(recipe="x", drift="error"), recipe, tmp_path / "choosy.onnx")
    for n in range(1_200):
        watch.take(passage(n, "v", n, {"x": n % 10, "y": n % 10 + (0 if n < 600 else 3)}))
        watch.take(passage(n, "v-bad", n, {"x": 1e6, "y": 1}))
    watch.finish()
    assert watch.has_drifted
    assert "can't compute 256 of 512 new records" in caplog.text
