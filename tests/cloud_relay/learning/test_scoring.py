"""Metrics against scikit-learn's own, and a comparison that noise does not win."""

from typing import Any

import numpy as np
import pytest
from sklearn import metrics as judged

from cloud_relay.learning.recipe import RecipeEvaluation
from cloud_relay.learning.rows import LearningRows
from cloud_relay.learning.scoring import compared, measured, without_model
from protocols.base.errors import LocalProtocolError, ModelInvalid
from protocols.base.limits import SECOND


def rows_of(count: int, classes: int, seed: int = 1, span_s: int = 60) -> LearningRows:
    random = np.random.default_rng(seed)
    labels = tuple(map(str, range(classes)))
    target = random.integers(0, classes, count) if classes else random.random(count)
    return LearningRows(
        np.zeros((count, 1), np.float32), target, np.arange(count) * span_s * SECOND,
        np.full(count, "v", np.str_), np.arange(count), labels,
    )  # fmt: skip


def answers(rows: LearningRows, right: float, seed: int) -> dict[str, Any]:
    """Those of a model that is right so often."""
    random = np.random.default_rng(seed)
    if not rows.labels:
        return {"value": (rows.target + (1 - right) * random.standard_normal(len(rows)))[:, None].astype(np.float32)}
    told = np.where(random.random(len(rows)) < right, rows.target, random.integers(0, len(rows.labels), len(rows)))
    probability = np.full((len(rows), len(rows.labels)), 0.3 / (len(rows.labels) - 1), np.float32)
    probability[np.arange(len(rows)), told] = 0.7
    return {"label": told, "probability": probability}


def test_metrics_are_those_of_scikit_learn() -> None:
    """An independent judge."""
    rows = rows_of(500, 2)
    given = answers(rows, 0.7, 2)
    found = measured(given, rows)
    assert found["accuracy"] == pytest.approx(judged.accuracy_score(rows.target, given["label"]), abs=1e-6)
    assert found["balanced_accuracy"] == pytest.approx(
        judged.balanced_accuracy_score(rows.target, given["label"]), abs=1e-6
    )
    assert found["f1"] == pytest.approx(judged.f1_score(rows.target, given["label"]), abs=1e-6)
    assert found["log_loss"] == pytest.approx(judged.log_loss(rows.target, given["probability"]), abs=1e-5)
    rows = rows_of(500, 0)
    given = answers(rows, 0.7, 2)
    found = measured(given, rows)
    assert found["mae"] == pytest.approx(judged.mean_absolute_error(rows.target, given["value"][:, 0]), abs=1e-6)
    assert found["rmse"] == pytest.approx(judged.root_mean_squared_error(rows.target, given["value"][:, 0]), abs=1e-6)


@pytest.mark.parametrize(("classes", "metric"), [(2, "balanced_accuracy"), (3, "log_loss"), (0, "mae")])
def test_noise_is_no_improvement_and_a_gain_is_one(classes: int, metric: str) -> None:
    """At a confidence of 95 %, of fifty models that are equally good two or three pass; far better ones always do."""
    rows, wanted, lucky = rows_of(300, classes), RecipeEvaluation(block_s=0), 0
    for seed in range(50):
        first, second = answers(rows, 0.7, seed), answers(rows, 0.7, 1_000 + seed)
        lucky += compared(first, second, rows, metric, wanted, seed).is_better
    assert lucky <= 8  # more than that happens once in a thousand
    good, bad = answers(rows, 0.9, 1), answers(rows, 0.5, 2)
    found = compared(good, bad, rows, metric, wanted, 0)
    assert found.is_better
    assert 0 < found.low <= found.gain <= found.high
    assert not compared(bad, good, rows, metric, wanted, 0).is_better
    same = compared(good, good, rows, metric, wanted, 0)
    assert (same.gain, same.low, same.high, same.is_better) == (0, 0, 0, False)
    assert compared(good, bad, rows, metric, wanted, 0) == found


def test_rows_of_one_situation_count_once() -> None:
    """Ten readings of the same second are not ten pieces of evidence."""
    rows, few = rows_of(200, 2), RecipeEvaluation(block_s=1_200)
    good, bad = answers(rows, 0.75, 1), answers(rows, 0.6, 2)
    each = compared(good, bad, rows, "accuracy", RecipeEvaluation(block_s=0), 0)
    together = compared(good, bad, rows, "accuracy", few, 0)
    assert (each.blocks, together.blocks) == (200, 10)
    with pytest.raises(LocalProtocolError, match="come from 1 situations"):
        compared(good, bad, rows, "accuracy", RecipeEvaluation(block_s=1e7), 0)


def test_answers_of_another_form_are_named() -> None:
    rows = rows_of(50, 2)
    for change, said in (
        ({"label": np.zeros(50, np.int32)}, r"'label' is i4\[50\]"),
        ({"probability": np.zeros((50, 3), np.float32)}, r"'probability' is f4\[50, 3\] and not f4\[50, 2\]"),
        ({"probability": np.full((50, 2), np.nan, np.float32)}, "not finite"),
    ):
        with pytest.raises(ModelInvalid, match=said):
            measured(answers(rows, 1, 1) | change, rows)
    with pytest.raises(ModelInvalid, match="no output 'label'"):
        measured({}, rows)


def test_answers_without_a_model_are_the_usual_ones() -> None:
    rows = rows_of(90, 3)
    assert measured(without_model(rows, rows), rows)["balanced_accuracy"] == pytest.approx(1 / 3, abs=1e-6)
    number = rows_of(90, 0)
    assert measured(without_model(number, number), number)["mae"] == pytest.approx(
        float(np.abs(number.target - np.median(number.target)).mean()), abs=1e-6
    )
