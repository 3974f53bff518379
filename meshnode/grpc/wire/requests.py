"""Requests to compute, as messages: typed contents, or raw little-endian bytes for all inputs.

What enters is untrusted: only :class:`InputInvalid` and :class:`BadRequest` leave, and sizes are compared before memory
is taken.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.message import DecodeError

from meshnode.grpc.wire.contents import tensor_of_contents
from meshnode.grpc.wire.messages import ModelInferRequest
from meshnode.grpc.wire.parts import RequestParts, untrusted_parts
from meshnode.http.guard import BadRequest
from meshnode.inference.oip.calls import (
    InferenceCall,
    Parameters,
    check_input_is_new,
    check_input_is_sent,
    check_output,
    deadline_of,
    shard_of,
)
from meshnode.inference.oip.catalogue import VERSION
from meshnode.inference.oip.forms import InputForm
from meshnode.inference.oip.tensors import tensor_of_bytes
from protocols.base import limits
from protocols.base.errors import InputInvalid

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_ID_CHARS: Final = 1_000
_LONG_BYTES: Final = 64 * 1024
_long: Final = threading.Lock()
"""Long typed contents are read one after the other, because they take several times their memory meanwhile."""


@dataclass(frozen=True, slots=True)
class GrpcInferenceCall(InferenceCall):
    """A parsed request, which names its model itself."""

    model: str
    version: str


def parse_untrusted_message(data: bytes) -> GrpcInferenceCall:
    """Parse a ``ModelInferRequest``. May be called from any thread.

    :raises BadRequest: it is not a request. :raises InputInvalid: one of its tensors contradicts itself.
    """
    parts = untrusted_parts(data)
    if parts.typed_bytes > _LONG_BYTES:
        with _long:
            return _parsed(parts)
    return _parsed(parts)


def _parsed(parts: RequestParts) -> GrpcInferenceCall:
    try:
        message = ModelInferRequest.FromString(parts.head)
    except DecodeError as error:
        raise BadRequest(f"the message is not a ModelInferRequest: {str(error)[:200]}") from error
    for what, given in (("inputs", message.inputs), ("outputs", message.outputs)):
        if len(given) > limits.MAX_TENSORS:
            raise BadRequest(f"the request has {len(given)} {what}: give at most {limits.MAX_TENSORS}")
    if len(message.id) > MAX_ID_CHARS:
        raise BadRequest(f"id has {len(message.id)} characters: give at most {MAX_ID_CHARS}")
    outputs: dict[str, None] = {}
    for output in message.outputs:
        _check_name("output", output.name)
        check_output(output.name, _parameters(output.parameters), outputs)
        outputs[output.name] = None
    parameters = _parameters(message.parameters)
    return GrpcInferenceCall(
        message.id,
        _tensors(message.inputs, parts.raw),
        tuple(outputs),
        deadline_of(parameters),
        message.model_name,
        message.model_version or VERSION,
        shard=shard_of(parameters),
    )


def _tensors(inputs: Sequence[Any], raw: Sequence[memoryview]) -> "dict[str, NDArray[Any]]":
    forms: dict[str, InputForm] = {}
    for given in inputs:
        _check_name("input", given.name)
        check_input_is_new(given.name, forms)
        check_input_is_sent(given.name, _parameters(given.parameters))
        forms[given.name] = InputForm(given.name, given.datatype, _shape(given))
    if not raw:
        return {
            name: tensor_of_contents(form, given.contents)
            for (name, form), given in zip(forms.items(), inputs, strict=True)
        }
    if len(raw) != len(inputs):
        raise InputInvalid(
            f"raw_input_contents has {len(raw)} entries for {len(inputs)} inputs: give one for each, in their order"
        )
    tensors: dict[str, NDArray[Any]] = {}
    for (name, form), given, content in zip(forms.items(), inputs, raw, strict=True):
        if given.HasField("contents"):
            raise InputInvalid(f"input {name!r} has both 'contents' and raw_input_contents: give one of them")
        tensors[name] = tensor_of_bytes(form, content)
    return tensors


def _shape(given: Any) -> tuple[int, ...]:
    if len(given.shape) > limits.MAX_TENSOR_DIMENSIONS:
        raise InputInvalid(
            f"input {given.name!r} has {len(given.shape)} dimensions: give at most {limits.MAX_TENSOR_DIMENSIONS}"
        )
    shape = tuple(given.shape)
    if any(size < 0 for size in shape):
        raise InputInvalid(f"input {given.name!r} has the shape {list(shape)}: give sizes of 0 or more")
    return shape


def _check_name(what: str, name: str) -> None:
    if len(name) > limits.MAX_TEXT_CHARS:
        raise BadRequest(f"{what} {name[:40]!r}… has {len(name)} characters: give at most {limits.MAX_TEXT_CHARS}")


def _parameters(given: Mapping[str, Any]) -> Parameters:
    """As plain data; those without a value are left out."""
    chosen = {name: each.WhichOneof("parameter_choice") for name, each in given.items()}
    return {name: getattr(given[name], field) for name, field in chosen.items() if field is not None}
