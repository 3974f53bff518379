"""Drift: the detectors find a change, and are silent without one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloud_relay.learning.candidate import write_candidate
from cloud_relay.learning.estimators import as_onnx, fitted
from cloud_relay.learning.recipe import read_recipe
from cloud_relay.learning.retraining.drift import DriftWatch
from cloud_relay.learning.retraining.triggers import TrainingTrigger
from cloud_relay.learning.rows import read_rows
from tests.tools.exported_fixture import RECIPE, passage, passages, write_export, write_recipe


@pytest.mark.parametrize("detector", ["adwin", "kswin", "page_hinkley"])
def test_change_of_a_feature_is_found_and_its_noise_is_not(tmp_path: Path, detector: str) -> None:
    """Vehicles that drive twice as fast are another town."""
    recipe, random = read_recipe(write_recipe(tmp_path)), np.random.default_rng(1)
    trigger = TrainingTrigger(recipe="x", drift="value.speed_mps", detector=detector)  # type: ignore[arg-type]
    watch = DriftWatch(trigger, recipe, None)
    for number in range(600):
        watch.take(passage(number, "v", number, {"speed_mps": float(1 + 0.1 * random.standard_normal())}))
    watch.take(passage(1, "v", 1, {"speed_mps": None}))
    watch.finish()
    assert not watch.has_drifted
    for number in range(600):
        watch.take(passage(number, "v", number, {"speed_mps": float(2 + 0.1 * random.standard_normal())}))
    assert watch.has_drifted


def test_errors_of_the_model_that_serves_drift_when_a_hotspot_appears(tmp_path: Path) -> None:
    """It was trained when only one of the two was there."""
    recipe, early = read_recipe(write_recipe(tmp_path)), passages(600, hotspots=1)
    assert recipe.model is not None
    rows = read_rows(write_export(tmp_path / "a.parquet", early), recipe)
    content = as_onnx(fitted(recipe, recipe.model, rows)[0], recipe)
    write_candidate(tmp_path / "release", content, recipe, rows)
    watch = DriftWatch(TrainingTrigger(recipe="x", drift="error"), recipe, tmp_path / "release" / "hotspot.onnx")
    for row in passages(800, hotspots=1, seed=2):
        watch.take(row)
    watch.finish()
    assert not watch.has_drifted
    for row in passages(800, hotspots=2, seed=3):
        watch.take(row)
    watch.finish()
    assert watch.has_drifted


def test_record_of_another_form_is_passed_over(tmp_path: Path) -> None:
    """One node may send anything; the look would fail at its record again and again, and no other trigger would be
    looked at."""
    recipe = read_recipe(write_recipe(tmp_path))
    watch = DriftWatch(TrainingTrigger(recipe="x", drift="value.speed_mps"), recipe, None)
    for value in ({"speed_mps": "fast"}, {"speed_mps": [1]}, "none at all", {"speed_mps": 2**2000}):
        watch.take(passage(1, "v", 1, value))
    for number in range(1_200):
        watch.take(passage(number, "v", number, {"speed_mps": 1.0 if number < 600 else 2.0}))
    assert watch.has_drifted


def test_answer_that_is_not_finite_does_not_blind_the_detector(tmp_path: Path) -> None:
    """A node may send the largest number of 32 bits, and the model overflows. ADWIN never fires again after that."""
    text = RECIPE.replace("random_forest_classifier", "linear_regression").replace("above = 3.0", 'kind = "number"')
    recipe = read_recipe(write_recipe(tmp_path, text[: text.index("parameters")]))
    assert recipe.model is not None

    def row(number: int, speed_mps: float, factor: float) -> dict[str, Any]:
        value = {"speed_mps": speed_mps, "deceleration_mps2": factor * speed_mps}
        return passage(number, "v", number, value)

    early = [row(number, number % 20, 1_000.0) for number in range(600)]
    rows = read_rows(write_export(tmp_path / "a.parquet", early), recipe)
    write_candidate(tmp_path / "release", as_onnx(fitted(recipe, recipe.model, rows)[0], recipe), recipe, rows)
    watch = DriftWatch(TrainingTrigger(recipe="x", drift="error"), recipe, tmp_path / "release" / "hotspot.onnx")
    for each in (*early, row(601, 3e38, 1.0)):
        watch.take(each)
    watch.finish()
    assert not watch.has_drifted
    for number in range(600):
        watch.take(row(number, number % 20, 1_300.0))
    watch.finish()
    assert watch.has_drifted


def test_without_a_model_nothing_errs(tmp_path: Path) -> None:
    recipe = read_recipe(write_recipe(tmp_path))
    watch = DriftWatch(TrainingTrigger(recipe="x", drift="error"), recipe, None)
    for row in passages(100):
        watch.take(row)
    watch.finish()
    assert not watch.has_drifted
