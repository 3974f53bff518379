"""A model as it will be released: beside the ONNX file its manifest, with signature and golden vectors from rows that
were held out. Here it is loaded and run as a node does."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cloud_relay.learning.estimators import INPUT, LABEL, PROBABILITY, VALUE, features_of
from cloud_relay.learning.recipe import Recipe
from cloud_relay.learning.rows import LearningRows, LeftOut
from meshnode.models import LoadedModel, ModelSpec, load_model
from protocols.base.errors import ModelInvalid, StorageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROWS_AT_ONCE: Final = 4_096
"""In one run of a model. It bounds memory, and is more than batching gains anything from."""


def write_candidate(
    folder: Path, content: bytes, recipe: Recipe, test: LearningRows, left_out: LeftOut | None = None
) -> tuple[LoadedModel, dict[str, Any], LearningRows]:
    """Write the files of a release, and return the model, loaded, with its outputs for the rows that were held out, and
    these rows. Those of one node that it can't compute are added to ``left_out``.

    :raises ModelInvalid: it can't be loaded, does not take and give what models of recipes do, or fails on rows.
    """
    import numpy as np

    path = folder / f"{recipe.name}.onnx"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        path.write_bytes(content)
        path.with_suffix(".toml").unlink(missing_ok=True)
        outputs, can = outputs_where_possible(load_model(ModelSpec(recipe.name, path)), test.features)
        test = without_incomputable(can, test, "the model", LeftOut() if left_out is None else left_out)
        chosen = np.unique(np.linspace(0, len(test) - 1, recipe.evaluation.golden).astype(int))
        np.save(folder / "golden.features.npy", test.features[chosen])
        for name in outputs:
            np.save(folder / f"golden.{name}.npy", outputs[name][chosen])
        path.with_suffix(".toml").write_text(manifest_of(recipe, test.labels), "utf-8")
    except OSError as error:
        raise StorageError(f"{folder} can't be written ({error.strerror}): free space on that disk") from error
    return load_model(ModelSpec(recipe.name, path)), outputs, test


def manifest_of(recipe: Recipe, labels: tuple[str, ...]) -> str:
    """The manifest of a model of a recipe, in TOML."""
    about = recipe.description or f"Tells {recipe.target.path}."
    features = ", ".join(f"{name} ({path})" for name, path in recipe.features.items())
    above = "" if recipe.target.above is None else f" above {recipe.target.above:g}"
    text = f"{about}\n\nTarget: {recipe.target.path}{above}. Features, in this order: {features}."
    width = len(recipe.features)
    lines = [f"description = {_text(text[:10_000])}"]
    if recipe.licence:
        lines.append(f"licence = {_text(recipe.licence)}")
    if labels:
        lines.append(f"labels = [{', '.join(map(_text, labels))}]")
    lines += ["", "[[inputs]]", f'name = "{INPUT}"', 'dtype = "f4"', f"shape = [-1, {width}]", 'nan = "forbid"']
    outputs = (
        [(LABEL, "i8", "[-1]"), (PROBABILITY, "f4", f"[-1, {len(labels)}]")] if labels else [(VALUE, "f4", "[-1, 1]")]
    )
    for name, dtype, shape in outputs:
        lines += ["", "[[outputs]]", f'name = "{name}"', f'dtype = "{dtype}"', f"shape = {shape}"]
    files = ", ".join(f'{name} = "golden.{name}.npy"' for name, _, _ in outputs)
    lines += ["", "[[golden]]", f'inputs = {{ {INPUT} = "golden.{INPUT}.npy" }}', f"outputs = {{ {files} }}", ""]
    return "\n".join(lines)


def outputs_of(model: LoadedModel, features: "NDArray[Any]") -> dict[str, Any]:
    """What a model gives for rows. :raises ModelInvalid: it takes something else, or fails on them."""
    import numpy as np

    from protocols.base.errors import InferenceError

    parts: dict[str, list[Any]] = {}
    wanted = check_form(model)
    try:
        for begin in range(0, len(features), ROWS_AT_ONCE):
            for name, array in model.run({INPUT: features[begin : begin + ROWS_AT_ONCE]}, wanted):
                parts.setdefault(name, []).append(array)
    except ModelInvalid:
        raise
    except InferenceError as error:
        raise ModelInvalid(f"the model can't compute rows that were held out: {error}") from error
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def outputs_where_possible(model: LoadedModel, features: "NDArray[Any]") -> "tuple[dict[str, Any], NDArray[Any]]":
    """What a model gives for the rows that it can compute, and which ones these are, a truth value for each row.

    A row that it can't is found by halving, so a few cost little. :raises ModelInvalid: it takes something else.
    """
    import numpy as np

    can = np.ones(len(features), bool)
    parts: list[dict[str, Any]] = []
    check_form(model)
    waiting = [(begin, min(begin + ROWS_AT_ONCE, len(features))) for begin in range(0, len(features), ROWS_AT_ONCE)]
    waiting.reverse()
    while waiting:
        begin, end = waiting.pop()
        try:
            parts.append(outputs_of(model, features[begin:end]))
        except ModelInvalid:
            if end - begin == 1:
                can[begin] = False
            else:
                middle = (begin + end) // 2
                waiting += [(middle, end), (begin, middle)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}, can


def without_incomputable(
    can: "NDArray[Any]", test: LearningRows, whose: str, left_out: LeftOut
) -> LearningRows:  # fmt: skip
    """The rows that were held out and that a model can compute. Those of one node that it can't are counted.

    :raises ModelInvalid: it can't compute those of several nodes, or of the only one: then the model is at fault.
    """
    bad = test.origin[~can].tolist()
    if len(set(bad)) > 1 or (bad and len(set(test.origin.tolist())) == 1):
        raise ModelInvalid(
            f"{whose} can't compute {len(bad)} of {len(test)} rows that were held out, of {len(set(bad))} nodes"
        )
    for origin in bad:
        left_out.add(f"features that {whose} can't compute", origin)
    return test.take(can) if bad else test


def check_form(model: LoadedModel, features: int | None = None) -> list[str]:
    """The outputs of a model that a recipe's has. ``features``: how many it has to take; None: any.

    :raises ModelInvalid: it takes or gives something else.
    """
    names: tuple[str, ...] = (LABEL, PROBABILITY, VALUE)
    wanted = [name for name in names if name in {output.name for output in model.outputs}]
    if not wanted or [each.name for each in model.inputs] != [INPUT]:
        takes = ", ".join(each.name for each in model.inputs)
        gives = ", ".join(each.name for each in model.outputs)
        raise ModelInvalid(
            f"a model of a recipe takes {INPUT!r} and gives {LABEL!r} and {PROBABILITY!r}, or {VALUE!r}; this one "
            f"takes {takes} and gives {gives}: name its tensors so"
        )
    width = model.inputs[0].shape[-1:] if model.inputs[0].shape else ()
    if features is not None and width and width[0] not in (None, features):
        raise ModelInvalid(f"the model takes {width[0]} features, and {features} are named")
    return wanted


def check_comparable(serving: Path, labels: tuple[str, ...], recipe: Recipe, given: Mapping[str, str] | None) -> None:
    """Whether the model that serves takes the same features for the same classes. ``given``: the features that the
    candidate names itself, if any.

    :raises ModelInvalid: it does not; says what differs.
    """
    from meshnode.models import read_manifest

    content = serving.read_bytes()
    before, now = features_of(content), given if given is not None else dict(recipe.features)
    if before is not None and list(before.items()) != list(now.items()):
        differ = sorted({*before.items()} ^ {*now.items()}) or "their order"
        raise ModelInvalid(
            f"it takes other features than the release that serves ({differ}), so nodes would feed it wrongly: give "
            "the recipe another name"
        )
    old = read_manifest(serving).labels
    if old and old != labels:
        raise ModelInvalid(
            f"its classes are {', '.join(labels)} and those of the release that serves {', '.join(old)}: give the "
            "recipe another name"
        )


def _text(text: str) -> str:
    """A basic string of TOML."""
    escaped = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    return '"' + "".join(
        escaped.get(each, each if each >= " " and each != "\x7f" else f"\\u{ord(each):04x}") for each in text
    ) + '"'  # fmt: skip
