"""Recipes: what is wrong in one is named, and what they say is all that counts."""

from pathlib import Path

import pytest

from cloud_relay.learning.estimators import CLASSIFIERS, REGRESSORS
from cloud_relay.learning.recipe import (
    CLASS_METRICS,
    NUMBER_METRICS,
    Recipe,
    RecipeCommand,
    RecipeData,
    RecipeEvaluation,
    RecipeLimits,
    RecipeModel,
    RecipeSplit,
    RecipeTarget,
    read_recipe,
)
from cloud_relay.learning.retraining.triggers import TrainingTrigger
from protocols.base.errors import ConfigError
from tests.tools.exported_fixture import RECIPE, write_recipe


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('name = "hotspot"', 'name = "../x"', "name = '../x': can't be the name of a model"),
        ("[features]", "[featuers]", "did you mean 'features'"),
        ('speed_mps = "value.speed_mps"', 'speed_mps = "value.deceleration_mps2"', "is the target itself"),
        ('"latitude_deg"', "3", "features.latitude_deg"),
        ("seed = 7", "seed = -1", "seed = -1"),
        ("[model]", "[commands]", "did you mean 'command'"),
        ("above = 3.0", 'above = 3.0\nkind = "number"', "target.above"),
        ('keys = "veh/*/passage"', 'keys = "veh//passage"', "data.keys"),
        ('by = "origin"', 'by = "origin"\ngap_s = 3', "split.gap_s"),
        ("seed = 7", "seed = 7\n[evaluation]\nmetric = 'mae'", "evaluation.metric"),
        ("seed = 7", "seed = 7\n[command]\nrun = ['true']", "either [model] or [command]"),
        ("seed = 7", "seed = 7\n[command]\nrun = []", "command.run"),
        ('keys = "veh/*/passage"', 'file = "a"\ndataset = "b"', "data.dataset"),
        ("above = 3.0", "above = nan", "target.above"),
        ("[target]", "[target", "not valid TOML"),
    ],
)
def test_recipe_with_a_mistake_is_refused_by_name(tmp_path: Path, old: str, new: str, said: str) -> None:
    """Its author sees the key, the value and the way out."""
    assert old in RECIPE
    with pytest.raises(ConfigError) as raised:
        read_recipe(write_recipe(tmp_path, RECIPE.replace(old, new)))
    assert said in str(raised.value)


def test_digest_of_a_recipe_is_that_of_what_it_says(tmp_path: Path) -> None:
    """A comment changes nothing; the order of features does, because the model takes them in it."""
    first = read_recipe(write_recipe(tmp_path)).digest()
    assert read_recipe(write_recipe(tmp_path, f"# a comment\n{RECIPE}")).digest() == first
    swapped = RECIPE.replace('latitude_deg = "latitude_deg"\n', "").replace(
        'speed_mps = "value', 'latitude_deg = "latitude_deg"\nspeed_mps = "value'
    )
    assert read_recipe(write_recipe(tmp_path, swapped)).digest() != first


def test_recipe_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such recipe"):
        read_recipe(tmp_path / "none.toml")


def test_reference_has_each_key_and_each_estimator() -> None:
    """A key that is not in the page is found by nobody."""
    page = (Path(__file__).resolve().parents[3] / "docs" / "reference" / "recipes.md").read_text()
    sections = (
        Recipe, RecipeData, RecipeTarget, RecipeSplit, RecipeModel, RecipeCommand, RecipeLimits, RecipeEvaluation,
    )  # fmt: skip
    keys = [name for section in sections for name in section.__struct_fields__]
    keys += TrainingTrigger.__struct_fields__
    wanted = [*keys, *CLASSIFIERS, *REGRESSORS, *CLASS_METRICS, *NUMBER_METRICS]
    assert [name for name in wanted if name not in page] == []
