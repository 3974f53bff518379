"""Estimators that may be named: each becomes a model that gives the same answers in ONNX Runtime."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloud_relay.learning.candidate import check_comparable, write_candidate
from cloud_relay.learning.estimators import (
    CLASSIFIERS,
    REGRESSORS,
    as_onnx,
    check_same,
    features_of,
    fitted,
)
from cloud_relay.learning.recipe import Recipe, RecipeModel, RecipeTarget
from cloud_relay.learning.rows import LearningRows
from meshnode.models import ModelSpec, load_model
from protocols.base.errors import ConfigError, LocalProtocolError, MeshError, ModelInvalid

SMALL = {
    "random_forest": {"n_estimators": 5}, "extra_trees": {"n_estimators": 5}, "gradient_boosting": {"n_estimators": 5},
    "mlp": {"hidden_layer_sizes": [4], "max_iter": 20},
}  # fmt: skip


def recipe_of(estimator: str, *, scale: bool = False, **parameters: Any) -> Recipe:
    return Recipe(
        name="x", features={"a": "quality", "b": "value.b"}, description='a "quoted"\ttext\x7f \U0001f697',
        target=RecipeTarget(path="value.y", kind="classes" if estimator in CLASSIFIERS else "number"),
        model=RecipeModel(estimator=estimator, parameters=parameters, scale=scale),
    )  # fmt: skip


def rows_for(recipe: Recipe, count: int = 200) -> LearningRows:
    random = np.random.default_rng(3)
    features = random.random((count, 2), np.float32) * 40
    y = features[:, 0] + random.standard_normal(count)
    labels = ("a", "b", "c") if recipe.target.kind == "classes" else ()
    target = np.digitize(y, [12, 28]) if labels else y.astype(np.float64)
    return LearningRows(features, target, np.arange(count), np.full(count, "v", np.str_), np.arange(count), labels)


@pytest.mark.parametrize("estimator", [*CLASSIFIERS, *REGRESSORS])
@pytest.mark.parametrize("scale", [False, True])
def test_each_estimator_becomes_a_model_with_its_answers(tmp_path: Path, estimator: str, scale: bool) -> None:
    """The table promises that each may be named. Loaded again, the golden vectors hold."""
    family = estimator.removesuffix("_classifier").removesuffix("_regressor")
    recipe = recipe_of(estimator, scale=scale, **SMALL.get(family, {}))
    rows = rows_for(recipe)
    made, _ = fitted(recipe, recipe.model, rows)  # type: ignore[arg-type]
    content = as_onnx(made, recipe)
    model, outputs, _ = write_candidate(tmp_path, content, recipe, rows)
    check_same(made, outputs, rows)
    assert features_of(content) == {"a": "quality", "b": "value.b"}
    assert as_onnx(made, recipe) == content
    assert model.manifest.description.startswith('a "quoted"\ttext\x7f \U0001f697')
    assert load_model(ModelSpec("x", tmp_path / "x.onnx")).digest == model.digest


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (recipe_of("random_forest"), "use one of decision_tree_regressor"),
        (recipe_of("random_forest_classifier", trees=3), r"model.parameters.trees is none of"),
        (recipe_of("random_forest_classifier", n_jobs=3), r"model.parameters.n_jobs is none of"),
        (recipe_of("random_forest_classifier", n_estimators=-3), "n_estimators"),
        (recipe_of("random_forest_classifier", n_estimators="many"), "n_estimators"),
        (recipe_of("mlp_classifier", hidden_layer_sizes=[-3]), "mlp_classifier can't learn from these 200 rows"),
    ],
)
def test_estimator_that_can_not_be_made_is_named(recipe: Recipe, said: str) -> None:
    rows = rows_for(recipe)
    with pytest.raises(MeshError, match=said) as raised:
        fitted(recipe, recipe.model, rows)[0].predict(rows.features)  # type: ignore[arg-type]
    assert isinstance(raised.value, ConfigError | LocalProtocolError)


def test_estimator_that_onnx_can_not_express_is_named() -> None:
    """skl2onnx has no converter for it, or not with these parameters."""
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Own(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
        pass

    with pytest.raises(ModelInvalid, match="Own with these parameters can't be expressed in ONNX"):
        as_onnx(Own(), recipe_of("gaussian_nb"))


def test_model_that_answers_something_else_than_its_estimator_is_refused() -> None:
    """What was measured would not be what serves."""
    recipe = recipe_of("ridge")
    rows = rows_for(recipe)
    made, _ = fitted(recipe, recipe.model, rows)  # type: ignore[arg-type]
    answers = made.predict(rows.features)[:, None].astype(np.float32)
    check_same(made, {"value": answers}, rows)
    answers[:3] += 1.0
    with pytest.raises(ModelInvalid, match="for 3 of 200 rows"):
        check_same(made, {"value": answers}, rows)


def test_model_that_nodes_would_feed_or_read_wrongly_is_not_comparable(tmp_path: Path) -> None:
    """The numbers of the old features are not those of the new ones, and its classes not the old classes."""
    recipe = recipe_of("decision_tree_classifier")
    rows = rows_for(recipe)
    content = as_onnx(fitted(recipe, recipe.model, rows)[0], recipe)  # type: ignore[arg-type]
    write_candidate(tmp_path, content, recipe, rows)
    serving = tmp_path / "x.onnx"
    check_comparable(serving, ("a", "b", "c"), recipe, features_of(content))
    check_comparable(serving, ("a", "b", "c"), recipe, None)
    with pytest.raises(ModelInvalid, match="its classes are a, b and those of the release that serves a, b, c"):
        check_comparable(serving, ("a", "b"), recipe, None)
    for other in ({"b": "value.b", "a": "quality"}, {"a": "quality", "b": "value.c"}, {"a": "quality"}):
        with pytest.raises(ModelInvalid, match="it takes other features than the release that serves"):
            check_comparable(serving, ("a", "b", "c"), recipe, other)


def test_model_with_other_tensors_is_refused_by_name(tmp_path: Path) -> None:
    """A command may write any model."""
    from tests.tools.publishable_fixture import write_model

    recipe = recipe_of("ridge")
    content = write_model(tmp_path / "other").read_bytes()
    with pytest.raises(ModelInvalid, match="this one takes x and gives y"):
        write_candidate(tmp_path / "candidate", content, recipe, rows_for(recipe))
