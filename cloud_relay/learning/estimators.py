"""Estimators of scikit-learn: which may be named, how one is fitted, and how it becomes a model that nodes run.

The model takes ``features``, f4[rows, features], and gives ``label``, i8[rows], and ``probability``, f4[rows, classes],
or of a number ``value``, f4[rows, 1]. It is released only if ONNX Runtime gives what the estimator gives on the rows
that were held out (:func:`check_same`).
"""

import importlib
import inspect
import json
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from cloud_relay.learning.recipe import Recipe, RecipeModel
from cloud_relay.learning.rows import LearningRows
from protocols.base.errors import ConfigError, LocalProtocolError, ModelInvalid

if TYPE_CHECKING:
    from numpy.typing import NDArray

INPUT: Final = "features"
LABEL: Final = "label"
PROBABILITY: Final = "probability"
VALUE: Final = "value"
FEATURES_KEY: Final = "meshnode.features"
"""What the metadata of a model say of its features: their names and paths, as JSON."""
OPSET: Final = {"": 17, "ai.onnx.ml": 3}
"""Operators that ONNX Runtime has from 1.13 on."""
# Not in the tables: histogram gradient boosting, which skl2onnx 1.20 can't convert with current releases of onnx, and
# nearest neighbours, whose models hold all rows and differ from conversion to conversion.
CLASSIFIERS: Final = {
    "decision_tree_classifier": "sklearn.tree:DecisionTreeClassifier",
    "extra_trees_classifier": "sklearn.ensemble:ExtraTreesClassifier",
    "gradient_boosting_classifier": "sklearn.ensemble:GradientBoostingClassifier",
    "logistic_regression": "sklearn.linear_model:LogisticRegression",
    "mlp_classifier": "sklearn.neural_network:MLPClassifier",
    "gaussian_nb": "sklearn.naive_bayes:GaussianNB",
    "random_forest_classifier": "sklearn.ensemble:RandomForestClassifier",
}
REGRESSORS: Final = {
    "decision_tree_regressor": "sklearn.tree:DecisionTreeRegressor",
    "extra_trees_regressor": "sklearn.ensemble:ExtraTreesRegressor",
    "gradient_boosting_regressor": "sklearn.ensemble:GradientBoostingRegressor",
    "linear_regression": "sklearn.linear_model:LinearRegression",
    "mlp_regressor": "sklearn.neural_network:MLPRegressor",
    "random_forest_regressor": "sklearn.ensemble:RandomForestRegressor",
    "ridge": "sklearn.linear_model:Ridge",
}
_SET_HERE: Final = ("n_jobs", "random_state", "verbose", "warm_start", "callback", "callbacks")
_SAME_SHARE: Final = 0.999
"""Trees compare features with thresholds in 32 bits, and in 64 where they were fitted: a value just beside one may fall
to the other side. So many rows have to agree."""
_SAME_WITHIN: Final = 1e-3
"""Of a probability, and of a value as a part of the largest one."""


def estimator_of(recipe: Recipe, model: RecipeModel) -> Any:
    """The estimator that a recipe names, with its seed, and one thread: results must not depend on how many there are.

    :raises ConfigError: it or a parameter is not known, or scikit-learn is missing.
    """
    known = CLASSIFIERS if recipe.target.kind == "classes" else REGRESSORS
    if model.estimator not in known:
        raise ConfigError(
            f"model.estimator {model.estimator[:60]!r} can't tell {recipe.target.kind}: use one of {', '.join(known)}"
        )
    module, _, name = known[model.estimator].partition(":")
    try:
        kind = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise ConfigError(
            f"training needs scikit-learn, which can't be imported ({error}): run pip install 'meshnode[learning]'"
        ) from error
    takes = inspect.signature(kind).parameters
    free = [each for each in takes if each not in _SET_HERE]
    for parameter in model.parameters:
        if parameter not in free:
            raise ConfigError(
                f"model.parameters.{parameter} is none of {model.estimator}: use one of {', '.join(free)}"
            )
    parameters = {key: tuple(each) if isinstance(each, list) else each for key, each in model.parameters.items()}
    if "random_state" in takes:
        parameters["random_state"] = recipe.seed
    estimator = kind(**parameters)
    if not model.scale:
        return estimator
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), estimator)


def fitted(recipe: Recipe, model: RecipeModel, training: LearningRows) -> tuple[Any, list[str]]:
    """The estimator after it has learned from the rows, and what it warned of.

    :raises ConfigError: a parameter has a value that it refuses. :raises LocalProtocolError: it can't learn from them.
    """
    estimator = estimator_of(recipe, model)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            estimator.fit(training.features, training.target)
    except (ValueError, TypeError, ArithmeticError) as error:
        if type(error).__name__ == "InvalidParameterError":  # scikit-learn has it in a private module
            raise ConfigError(f"model.parameters: {' '.join(str(error).split())[:300]}") from error
        raise LocalProtocolError(
            f"{model.estimator} can't learn from these {len(training)} rows: {' '.join(str(error).split())[:300]}"
        ) from error
    return estimator, list(dict.fromkeys(" ".join(str(each.message).split())[:300] for each in warned))[:20]


def as_onnx(estimator: Any, recipe: Recipe) -> bytes:
    """The estimator as a model. :raises ModelInvalid: ONNX can't express it."""
    try:
        from skl2onnx import to_onnx
        from skl2onnx.common.data_types import FloatTensorType
    except ImportError as error:
        raise ConfigError(
            f"training needs skl2onnx, which can't be imported ({error}): run pip install 'meshnode[learning]'"
        ) from error
    is_classes = recipe.target.kind == "classes"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = to_onnx(
                estimator, initial_types=[(INPUT, FloatTensorType([None, len(recipe.features)]))], target_opset=OPSET,
                options={"zipmap": False} if is_classes else None, name=recipe.name,
            )  # fmt: skip
    except Exception as error:  # skl2onnx raises many kinds
        raise ModelInvalid(
            f"{type(estimator).__name__} with these parameters can't be expressed in ONNX "
            f"({' '.join(str(error).split())[:300]}): choose another estimator"
        ) from error
    names = (LABEL, PROBABILITY) if is_classes else (VALUE,)
    _rename_outputs(model, names)
    told = model.metadata_props.add()
    told.key, told.value = FEATURES_KEY, json.dumps(dict(recipe.features))
    return bytes(model.SerializeToString(deterministic=True))


def _rename_outputs(model: Any, names: tuple[str, ...]) -> None:
    old = {output.name: name for output, name in zip(model.graph.output, names, strict=True)}
    for output in model.graph.output:
        output.name = old[output.name]
    for node in model.graph.node:
        node.input[:] = [old.get(name, name) for name in node.input]
        node.output[:] = [old.get(name, name) for name in node.output]


def features_of(content: bytes) -> Mapping[str, str] | None:
    """The paths of the features of a model, by name and in order; None: its metadata don't say."""
    import onnx

    for prop in onnx.load_model_from_string(content).metadata_props:
        if prop.key == FEATURES_KEY:
            try:
                told = json.loads(prop.value)
            except ValueError:
                return None
            return told if isinstance(told, dict) and all(isinstance(path, str) for path in told.values()) else None
    return None


def check_same(estimator: Any, given: "Mapping[str, NDArray[Any]]", rows: LearningRows) -> None:
    """Whether ONNX Runtime gave what the estimator gives. ``given``: its outputs for the rows.

    :raises ModelInvalid: it did not; says how many rows differ.
    """
    import numpy as np

    if rows.labels:
        wanted = estimator.predict_proba(rows.features)
        close = np.abs(given[PROBABILITY] - wanted).max(axis=1) <= _SAME_WITHIN
    else:
        wanted = estimator.predict(rows.features)
        room = _SAME_WITHIN * max(float(np.abs(wanted).max()), 1e-30)
        close = np.abs(given[VALUE][:, 0] - wanted) <= room
    differ = len(close) - int(np.count_nonzero(close))
    if differ > (1 - _SAME_SHARE) * len(close):
        raise ModelInvalid(
            f"the model in ONNX gives something else than {type(estimator).__name__} for {differ} of {len(close)} "
            "rows: it would serve what was not measured; choose another estimator, or set model.scale = true"
        )


def library_versions() -> dict[str, str]:
    """The versions of what results depend on."""
    import importlib.metadata as installed
    import platform

    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in ("numpy", "scipy", "scikit-learn", "skl2onnx", "onnx", "onnxruntime", "pyarrow", "meshnode"):
        try:
            found[name] = installed.version(name)
        except installed.PackageNotFoundError:
            continue
    return found


def check_rows(rows: LearningRows) -> None:
    """A last look before a fit. :raises LocalProtocolError: a feature is the same in all rows and so tells nothing."""
    import numpy as np

    if len(rows) and not np.any(rows.features.std(axis=0, dtype=np.float64)):
        raise LocalProtocolError("all features are the same in all rows: name features that differ")
