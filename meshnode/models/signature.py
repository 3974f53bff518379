"""The check of inputs against the signature of a model.

The check needs neither NumPy nor ONNX Runtime: it reads ``dtype`` and ``shape`` of wire tensors and of arrays alike.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from math import prod
from typing import Any

from meshnode.models.declared.accepted import AcceptedInput
from meshnode.models.elements import element_of_short
from protocols.base.errors import InputInvalid
from protocols.base.limits import MAX_TENSORS
from protocols.inference.signature import TensorSignature, described
from protocols.wire.tensors import Tensor


def as_arrays(signatures: Sequence[TensorSignature], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays or wire tensors of whatever was given as ``inputs``. Plain numbers and lists get the type that the model
    takes, so that nobody has to spell it out; arrays keep theirs. ``bytes`` are an array of them, such as a picture.

    :raises InputInvalid: numbers that are no array, or that the type can't hold; the message names the input.
    """
    import numpy as np

    types = {signature.name: signature.dtype for signature in signatures}
    arrays: dict[str, Any] = {}
    for name, value in inputs.items():
        if isinstance(value, (bytes, bytearray)):
            value = np.frombuffer(value, np.uint8)  # noqa: PLW2901 - the same value, with a type
        plain = not isinstance(value, Tensor) and not hasattr(value, "dtype")
        try:
            arrays[name] = np.asarray(value, types.get(name)) if plain else _as_array(value)
        except (ValueError, TypeError, OverflowError) as error:
            wanted = f" of {types[name]}" if name in types else ""
            raise InputInvalid(f"input {str(name)[:80]!r} can't be taken as an array{wanted}: {error}") from error
    return arrays


def _as_array(value: Any) -> Any:
    import numpy as np

    return value if isinstance(value, Tensor) else np.asarray(value)


def check_inputs(model: str, signatures: Sequence[TensorSignature], inputs: Mapping[str, Any]) -> None:
    """As :func:`check_accepted`, for a model of which only the signature is known."""
    check_accepted(model, [AcceptedInput(signature) for signature in signatures], inputs)


def check_accepted(model: str, accepted: Sequence[AcceptedInput], inputs: Mapping[str, Any]) -> None:
    """Compare ``inputs`` (wire tensors or NumPy arrays by name) with what the model takes.

    :raises InputInvalid: there is an input too many or too few, or one of the wrong type or shape; the message names
        it, what is expected and what was given.
    """
    names = [each.tensor.name for each in accepted]
    for name in inputs:
        if name not in names:
            near = get_close_matches(str(name), names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(map(repr, names)) or 'none'}"
            raise InputInvalid(f"model {model!r} has no input {str(name)[:80]!r}: {hint}")
    for each in accepted:
        name = each.tensor.name
        if name not in inputs:
            raise InputInvalid(f"model {model!r} needs the input {name}: {each.kind}, which is missing")
        _check_input(model, each, inputs[name])


def check_outputs(
    model: str, signatures: Sequence[TensorSignature], wanted: Sequence[str], left_out: Mapping[str, str]
) -> None:
    """Check that the model has the wanted outputs. ``left_out``: those that can't travel, and why.

    :raises InputInvalid: it lacks one of them.
    """
    names = [signature.name for signature in signatures]
    if len(wanted) > MAX_TENSORS:
        raise InputInvalid(f"{len(wanted)} outputs are wanted of model {model!r}: ask for at most {MAX_TENSORS}")
    for name in wanted:
        if name in left_out:
            raise InputInvalid(f"output {name[:80]!r} of model {model!r} is left out: {left_out[name]}")
        if name not in names:
            raise InputInvalid(f"model {model!r} has no output {name[:80]!r}: it gives {', '.join(map(repr, names))}")


def _check_input(model: str, accepted: AcceptedInput, given: Any) -> None:
    dtype, shape = _type_of(accepted, given)
    if not accepted.takes(dtype, shape):
        raise InputInvalid(
            f"input {accepted.tensor.name!r} of model {model!r}: expected {accepted.kind}, given "
            f"{described(dtype, shape)}"
        )


def _type_of(accepted: AcceptedInput, given: Any) -> tuple[str, tuple[int, ...]]:
    name = accepted.tensor.name
    if isinstance(given, Tensor):
        # NumPy takes a tensor's word for its size and would read beyond the end of its data.
        if prod(given.shape) * element_of_short(given.dtype).size_bytes != memoryview(given.data).nbytes:
            raise InputInvalid(
                f"input {name!r} says {described(given.dtype, given.shape)} but holds "
                f"{memoryview(given.data).nbytes} bytes: send as many as its shape needs"
            )
        return given.dtype, given.shape
    try:
        order_and_kind, shape = str(given.dtype.str), tuple(given.shape)
    except AttributeError:
        raise InputInvalid(
            f"input {name!r} is a {type(given).__name__}: give a NumPy array or a Tensor of {accepted.kind}"
        ) from None
    if order_and_kind.startswith(">"):
        raise InputInvalid(f"input {name!r} is big-endian: give it in this machine's byte order")
    return order_and_kind[1:], shape
