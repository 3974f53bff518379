"""A recipe: one TOML file that says how a model comes from records. ``docs/reference/recipes.md`` lists its keys.

Invariants:

- A recipe that exists is valid by itself. Whether it fits the data shows when these are read.
- No feature has the path of the target, so a model can't learn from the answer itself.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from meshnode.config.parsing import Problem, Section, TableReader, problem_report, shown
from meshnode.config.toml import read_toml
from protocols.base.errors import ConfigError, InvalidKey
from protocols.base.keys import checked_expression

MAX_FEATURES: Final = 256
"""Columns of a table of rows. It is more than a person names, and keeps a million rows in 1 GiB."""
MAX_ROWS: Final = 5_000_000
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_FEATURE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


def _check_name(value: str) -> str | None:
    return None if _NAME.fullmatch(value) else "can't be the name of a model: use letters, digits, '.', '_' and '-'"


def _check_feature(value: str) -> str | None:
    return None if _FEATURE.fullmatch(value) else "can't be the name of a feature: use letters, digits and '_'"


def _check_keys(value: str) -> str | None:
    try:
        checked_expression(value)
    except InvalidKey as error:
        return str(error)
    return None


_Text = Annotated[str, Meta(max_length=10_000)]
_Path = Annotated[str, Meta(min_length=1, max_length=200)]
_Feature = Annotated[str, Meta(extra={"check": _check_feature})]


class RecipeData(Section, frozen=True, kw_only=True):
    """Where the rows come from, and which of them are used."""

    file: Annotated[str | None, Meta(description="A Parquet file of `cloud-relay export`, beside the recipe.")] = None
    dataset: Annotated[str | None, Meta(description="A dataset, `NAME` or `NAME@VERSION`.")] = None
    keys: Annotated[str | None, Meta(description="Only records whose key matches.", extra={"check": _check_keys})] = (
        None
    )
    rule: Annotated[str | None, Meta(description="Only records that this rule chose.")] = None
    missing: Annotated[
        Literal["drop", "refuse"],
        Meta(description="What becomes of rows that lack a feature or the target, or have there what is of no use."),
    ] = "drop"
    max_missing_share: Annotated[
        float,
        Meta(
            ge=0, le=1, description="If more is left out of the rows of a node, on the average, the rest would mislead."
        ),
    ] = 0.5
    max_rows: Annotated[
        int, Meta(ge=1, le=MAX_ROWS, description="More rows are refused: select fewer, or raise it with the memory.")
    ] = 1_000_000

    def conflicts(self) -> Iterator[Problem]:
        """Two sources."""
        if self.file is not None and self.dataset is not None:
            yield Problem("dataset", shown(self.dataset), "stands beside 'file': keep one of them")


class RecipeTarget(Section, frozen=True, kw_only=True):
    """What the model has to tell."""

    path: Annotated[_Path, Meta(description="A column or a field of the value, as of a feature.")]
    kind: Annotated[
        Literal["classes", "number"],
        Meta(description="Whether it is one of a few values (truth values, texts, whole numbers) or a quantity."),
    ] = "classes"
    above: Annotated[
        float | None, Meta(description="Makes two classes of a number: `true` if it is larger than this.")
    ] = None
    classes: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=100)], ...] | None,
        Meta(
            min_length=2,
            max_length=1_000,
            description="The names of the classes. Rows of others are left out; without it, whatever comes is one.",
        ),
    ] = None
    leaks: Annotated[
        Literal["refuse", "allow"],
        Meta(description="What to do when one feature alone tells the target: it usually has been computed from it."),
    ] = "refuse"

    def conflicts(self) -> Iterator[Problem]:
        """A threshold for a quantity."""
        if self.above is not None and self.kind == "number":
            yield Problem("above", shown(self.above), "makes classes, and kind is 'number': remove one of them")
        if self.classes is not None and (self.above is not None or self.kind == "number"):
            yield Problem("classes", None, "stands beside 'above' or kind = 'number': remove one of them")


class RecipeSplit(Section, frozen=True, kw_only=True):
    """Which rows are held out to measure the model. It never sees them."""

    by: Annotated[
        Literal["time", "origin"],
        Meta(
            description="`time`: the latest rows are held out. `origin`: all rows of some nodes are, always the same "
            "ones for a seed, also when more data come."
        ),
    ] = "time"
    test_share: Annotated[float, Meta(ge=0.01, le=0.9, description="How many are held out, about.")] = 0.25
    gap_s: Annotated[
        float, Meta(ge=0, le=1e8, description="By time: rows of this long before those held out are used for nothing.")
    ] = 0.0

    def conflicts(self) -> Iterator[Problem]:
        """A gap between nodes."""
        if self.gap_s and self.by == "origin":
            yield Problem("gap_s", shown(self.gap_s), "is about time: remove it, or set by = 'time'")


class RecipeModel(Section, frozen=True, kw_only=True):
    """An estimator of scikit-learn."""

    estimator: Annotated[str, Meta(description="One of the table below.")]
    scale: Annotated[bool, Meta(description="Whether each feature is brought to mean 0 and deviation 1 first.")] = False
    parameters: Annotated[
        Mapping[str, Any], Meta(description="Those of the estimator, by the names that scikit-learn gives them.")
    ] = {}


class RecipeCommand(Section, frozen=True, kw_only=True):
    """A program that makes the model instead."""

    run: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=4_000)], ...],
        Meta(min_length=1, max_length=100, description="The program and its arguments. It is run beside the recipe."),
    ]


class RecipeLimits(Section, frozen=True, kw_only=True):
    """What a run may take. Beyond it is ended, and says so."""

    timeout_s: Annotated[float, Meta(ge=1, le=604_800, description="From its start to its end.")] = 3_600.0
    memory_mib: Annotated[
        int, Meta(ge=64, le=1_048_576, description="Memory beside that of the libraries themselves.")
    ] = 2_048


Metric = Literal["accuracy", "balanced_accuracy", "f1", "log_loss", "mae", "rmse"]
CLASS_METRICS: Final = ("accuracy", "balanced_accuracy", "f1", "log_loss")
NUMBER_METRICS: Final = ("mae", "rmse")


class RecipeEvaluation(Section, frozen=True, kw_only=True):
    """When a model is better than the one that serves."""

    metric: Annotated[
        Metric | None,
        Meta(
            description="What is compared; of `f1`, the last class counts.",
            extra={"default": "`balanced_accuracy` for classes, `mae` for a number"},
        ),
    ] = None
    confidence: Annotated[
        float, Meta(ge=0.5, le=0.9999, description="How sure the comparison has to be that it is better.")
    ] = 0.95
    min_gain: Annotated[float, Meta(ge=0, description="By how much it has to be better, at that confidence.")] = 0.0
    block_s: Annotated[
        float,
        Meta(
            ge=0,
            le=1e7,
            description="Rows of one node within such a time resemble one another, and count as one draw.",
        ),
    ] = 600.0
    golden: Annotated[int, Meta(ge=1, le=100, description="Rows that become golden vectors of the released model.")] = 8


class Recipe(Section, frozen=True, kw_only=True):
    """How a model comes from records."""

    name: Annotated[str, Meta(description="The name of the model and of its releases.", extra={"check": _check_name})]
    description: Annotated[_Text, Meta(description="What it is for.")] = ""
    licence: Annotated[str, Meta(max_length=100, description="Of the model, SPDX.")] = ""
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1, description="All randomness comes from it.")] = 0
    data: Annotated[RecipeData, Meta(description="See below.")] = RecipeData()
    features: Annotated[
        Mapping[_Feature, _Path],
        Meta(
            min_length=1,
            max_length=MAX_FEATURES,
            description="Path by name, in the order in which the model takes them.",
        ),
    ]
    target: Annotated[RecipeTarget, Meta(description="See below.")]
    split: Annotated[RecipeSplit, Meta(description="See below.")] = RecipeSplit()
    model: Annotated[RecipeModel | None, Meta(description="See below. Either this or `[command]`.")] = None
    command: Annotated[RecipeCommand | None, Meta(description="See below.")] = None
    limits: Annotated[RecipeLimits, Meta(description="See below.")] = RecipeLimits()
    evaluation: Annotated[RecipeEvaluation, Meta(description="See below.")] = RecipeEvaluation()

    def conflicts(self) -> Iterator[Problem]:
        """What trains it twice or not at all, a feature that is the target, and a metric of the other kind."""
        if (self.model is None) == (self.command is None):
            yield Problem("model", None, "is needed once: write either [model] or [command]")
        for name, path in self.features.items():
            if path == self.target.path:
                yield Problem(f"features.{name}", shown(path), "is the target itself: a model would learn nothing else")
        metric, fitting = self.evaluation.metric, self.metrics
        if metric is not None and metric not in fitting:
            text = f"does not measure {self.target.kind}: use one of {', '.join(fitting)}"
            yield Problem("evaluation.metric", shown(metric), text)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Those that fit its target."""
        return CLASS_METRICS if self.target.kind == "classes" else NUMBER_METRICS

    @property
    def metric(self) -> str:
        """The one that models are compared by."""
        usual = "balanced_accuracy" if self.target.kind == "classes" else "mae"
        return self.evaluation.metric or usual

    def digest(self) -> str:
        """SHA-256 of all that it says, however the file is written. The order of features counts."""
        told = msgspec.to_builtins(self) | {"features": list(self.features.items())}
        return hashlib.sha256(msgspec.json.encode(told, order="deterministic")).hexdigest()


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe. :raises ConfigError: names file, and every mistake with key, value and what to do."""
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such recipe: name a TOML file")
    reader = TableReader()
    recipe = reader.read_table(Recipe, read_toml(path), "")
    if reader.problems or not isinstance(recipe, Recipe):
        raise ConfigError(problem_report(str(path), tuple(reader.problems)))
    return recipe
