"""Held-out rows: nothing of them is learned from, and a feature that is the answer is found."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from cloud_relay.learning.recipe import Recipe, RecipeModel, RecipeSplit, RecipeTarget
from cloud_relay.learning.rows import LearningRows
from cloud_relay.learning.splitting import split, without_rare_classes
from protocols.base.errors import LocalProtocolError
from protocols.base.limits import SECOND


def recipe_by(by: str, kind: str = "classes", **more: Any) -> Recipe:
    return Recipe(
        name="x", features={"a": "quality", "b": "value.b"},
        target=RecipeTarget(path="value.y", kind=kind),  # type: ignore[arg-type]
        split=RecipeSplit(by=by, **more), model=RecipeModel(estimator="ridge"),  # type: ignore[arg-type]
    )  # fmt: skip


def rows_of(count: int, seed: int = 1, span_s: int = 1_000, nodes: int = 12) -> LearningRows:
    random = np.random.default_rng(seed)
    return LearningRows(
        random.random((count, 2), np.float32), random.integers(0, 2, count),
        np.sort(random.integers(0, span_s, count)) * SECOND,
        np.asarray([f"v{random.integers(nodes)}" for _ in range(count)], np.str_), np.arange(count), ("no", "yes"),
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), gap_s=st.integers(0, 100), span_s=st.integers(50, 5_000))
def test_split_by_time_holds_out_only_what_comes_later(seed: int, gap_s: int, span_s: int) -> None:
    """Rows of one instant are never on both sides, and the gap is empty."""
    rows = rows_of(400, seed, span_s)
    try:
        training, test = split(rows, recipe_by("time", gap_s=gap_s))
    except LocalProtocolError:
        return  # a half became too small
    assert training.time_ns.max() < test.time_ns.min() - gap_s * SECOND
    assert len(training) + len(test) <= len(rows)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), more=st.integers(1, 40))
def test_split_by_origin_keeps_nodes_apart_also_when_more_come(seed: int, more: int) -> None:
    """The model that serves was trained on what there was then: its nodes must not be held out later."""
    recipe = replace(recipe_by("origin"), seed=seed)
    try:
        training, test = split(rows_of(400, seed), recipe)
        later, held = split(rows_of(900, seed + 1, nodes=12 + more), recipe)
    except LocalProtocolError:
        return
    assert not {*training.origin.tolist()} & {*test.origin.tolist()}
    assert not {*training.origin.tolist()} & {*held.origin.tolist()}
    assert not {*test.origin.tolist()} & {*later.origin.tolist()}


def test_split_with_too_little_says_what_is_missing() -> None:
    with pytest.raises(LocalProtocolError, match="10 rows to measure it by, and 20 are needed"):
        split(rows_of(40, span_s=10**6), recipe_by("time"))
    one_sided = rows_of(400)
    one_sided.target[one_sided.time_ns > 600 * SECOND] = 0
    with pytest.raises(LocalProtocolError, match="none has the class 'yes'"):
        split(one_sided, recipe_by("time"))


@pytest.mark.parametrize("kind", ["classes", "number"])
def test_feature_that_tells_the_target_alone_is_refused_unless_it_is_allowed(kind: str) -> None:
    """The usual mistake: a field that was computed after the fact."""
    rows = rows_of(400)
    if kind == "classes":
        rows.features[:, 1] = rows.target + 0.1 * rows.features[:, 0]
    else:
        rows = LearningRows(
            rows.features, 3.0 * rows.features[:, 1].astype(float) + 1, rows.time_ns, rows.origin, rows.sequence
        )  # fmt: skip
    recipe = recipe_by("time", kind)
    with pytest.raises(LocalProtocolError, match=r"the feature b \(value\.b\) alone tells the target value\.y"):
        split(rows, recipe)
    split(rows, replace(recipe, target=replace(recipe.target, leaks="allow")))


def test_features_that_help_without_being_the_answer_pass() -> None:
    rows = rows_of(2_000)
    noise = np.random.default_rng(5).random(2_000)
    rows.features[:, 1] = np.where(noise < 0.97, rows.target, 1 - rows.target)
    split(rows, recipe_by("time"))


@pytest.mark.parametrize("by", ["time", "origin"])
def test_class_that_one_half_lacks_is_left_out_and_told(by: str) -> None:
    """One record with a label of its own must not keep everybody from learning."""
    rows = rows_of(600)
    rows.target[[5, 300]] = 2, 3
    labels = ("no", "yes", "made up", "also")
    rows = LearningRows(rows.features, rows.target, rows.time_ns, rows.origin, rows.sequence, labels)
    with pytest.raises(LocalProtocolError, match="none has the class"):
        split(rows, recipe_by(by))
    left = without_rare_classes(rows, recipe_by(by))
    training, test = split(left, recipe_by(by))
    assert left.labels == ("no", "yes")
    assert {*training.target.tolist(), *test.target.tolist()} == {0, 1}
    assert left.left_out.reasons == {f"the class {label!r}, which one half lacks": 1 for label in labels[2:]}
    assert sorted(left.left_out.origins.elements()) == sorted(rows.origin[[5, 300]].tolist())


def test_rows_are_kept_if_less_than_two_classes_would_be_left() -> None:
    """What is lacking has to be said then."""
    rows = rows_of(400)
    rows.target[rows.time_ns > 600 * SECOND] = 0
    assert without_rare_classes(rows, recipe_by("time")) is rows
