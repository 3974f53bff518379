"""Values on which a model is tried, and runs of a graph on them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from meshnode.models.declared.accepted import AcceptedInput
from meshnode.models.declared.golden import read_array
from meshnode.models.manifest import manifest_path
from meshnode.models.model import LoadedModel
from protocols.base.errors import InferenceError, ModelInvalid

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[Any]]
else:
    Arrays = dict

_GOLDEN: Final = 2
"""Golden vectors that are used."""


def samples(model: LoadedModel, shapes: Mapping[str, tuple[int, ...]]) -> list[Arrays]:
    """Inputs on which the whole model computes: the first golden vectors of its manifest, noise, and zeros (grey
    pictures for inputs that take pictures).

    The noise is the same each time. ``shapes``: of the inputs, as :func:`~.graphs.bound_shapes` gives them.

    :raises ModelInvalid: the model fails on all of them.
    """
    found, why = [], ""
    for arrays in _tried(model, shapes):
        try:
            model.run(arrays)
        except InferenceError as error:
            why = str(error)
        else:
            found.append(arrays)
    if not found:
        raise ModelInvalid(
            f"model {model.name!r} can't be tried, neither on zeros nor on noise, so that nothing would show whether "
            f"its stages compute the same: give other shapes, or golden vectors in its manifest ({why})"
        )
    return found


def _tried(model: LoadedModel, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Arrays]:
    import numpy as np

    at = manifest_path(model.spec.path)
    for vector in model.manifest.golden[:_GOLDEN]:
        arrays = {name: read_array(at.parent / file, f"{at}: golden") for name, file in vector.inputs.items()}
        if all(_fits(each, arrays.get(each.tensor.name), shapes) for each in model.accepted):
            yield arrays
    random = np.random.default_rng(29)
    noise = {}
    for accepted in model.accepted:
        dtype, shape = np.dtype(accepted.tensor.dtype), shapes.get(accepted.tensor.name, ())
        if dtype.kind == "f":
            noise[accepted.tensor.name] = np.asarray(random.standard_normal(shape), dtype)
        else:  # small numbers: they may be indices
            noise[accepted.tensor.name] = np.asarray(random.integers(0, 2, shape), dtype)
    yield noise
    if (zeros := model.zeros()) is not None:
        yield zeros


def _fits(accepted: AcceptedInput, array: "NDArray[Any] | None", shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether an array is a picture or has the shape for which the model is cut."""
    if array is None:
        return False
    is_picture = accepted.is_picture(array.dtype.str[1:], array.shape)
    return is_picture or array.shape == shapes.get(accepted.tensor.name, array.shape)


def as_tensors(model: LoadedModel, arrays: Arrays) -> Arrays:
    """Inputs as the file of the model takes them, pictures decoded."""
    return {each.tensor.name: each.fed(model.name, arrays[each.tensor.name]) for each in model.accepted}


def run_for(
    content: bytes, arrays: Arrays, outputs: Sequence[str]
) -> dict[str, "tuple[NDArray[Any], tuple[int, ...] | None]"]:
    """Compute some tensors of a graph, all at once. Returns them with the shape that they always have; None: values
    decide on it. ``content``: the graph, with these tensors among its outputs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    always = {each.name: tuple(each.shape) for each in session.get_outputs()}
    return {
        name: (array, always[name] if always[name] == array.shape else None)
        for name, array in zip(outputs, session.run(list(outputs), arrays), strict=True)
    }
