"""Requests and answers of the Open Inference Protocol v2 over HTTP: JSON, and its binary tensor data extension.

Binary data stands behind the JSON part, whose length is in ``Inference-Header-Content-Length``: raw little-endian
elements in C order, one tensor after the other in the order of the JSON part. Left out: shared memory, classification,
``BYTES`` tensors.

What enters is untrusted: only :class:`InputInvalid` and :class:`BadRequest` leave, and sizes are compared before memory
is taken.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from meshnode.http.guard import BadRequest
from meshnode.models import Element, element_of_open_inference, element_of_short
from protocols.base import limits
from protocols.base.errors import InputInvalid
from protocols.wire.fields import Text

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_REQUEST_BYTES: Final = 64 * 1024 * 1024
MAX_JSON_BYTES: Final = 32 * 1024 * 1024
"""A JSON number costs a Python object while it is read; larger inputs belong behind the JSON part."""
JSON_LENGTH_HEADER: Final = "inference-header-content-length"

Parameters = dict[str, Any]


class InputForm(Struct, frozen=True):
    """One entry of ``inputs``."""

    name: Text
    datatype: str
    shape: Annotated[tuple[Annotated[int, Meta(ge=0)], ...], Meta(max_length=limits.MAX_TENSOR_DIMENSIONS)]
    parameters: Parameters = {}
    data: msgspec.Raw = msgspec.Raw()


class OutputForm(Struct, frozen=True):
    """One entry of ``outputs``."""

    name: Text
    parameters: Parameters = {}


class RequestForm(Struct, frozen=True):
    """The JSON part of a request. Unknown keys are skipped: extensions may add some."""

    inputs: Annotated[tuple[InputForm, ...], Meta(max_length=limits.MAX_TENSORS)]
    id: Annotated[str, Meta(max_length=1_000)] = ""
    parameters: Parameters = {}
    outputs: Annotated[tuple[OutputForm, ...], Meta(max_length=limits.MAX_TENSORS)] = ()


@dataclass(frozen=True, slots=True)
class InferenceCall:
    """A parsed request."""

    id: str
    inputs: "dict[str, NDArray[Any]]"
    outputs: tuple[str, ...]
    """The names of the wanted outputs; empty: all."""
    binary: frozenset[str]
    """Outputs wanted as binary data."""
    binary_by_default: bool
    """Whether outputs that were not named come as binary data."""
    deadline_ms: int | None
    """None: the deadline in the node's configuration."""

    def wants_binary(self, output: str) -> bool:
        """Whether that output goes behind the JSON part."""
        return output in self.binary or (not self.outputs and self.binary_by_default)


_request_decoder = msgspec.json.Decoder(RequestForm)


def parse_untrusted_request(body: bytes, json_length: str | None) -> InferenceCall:
    """Parse a request; ``json_length`` is the header ``Inference-Header-Content-Length``, None when there is none.

    :raises BadRequest: it is not a request. :raises InputInvalid: one of its tensors contradicts itself.
    """
    split = len(body)
    if json_length is not None:
        is_number = json_length.isascii() and json_length.isdigit() and len(json_length) <= 18
        if not is_number or not 0 < int(json_length) <= len(body):
            raise BadRequest(
                f"Inference-Header-Content-Length is {json_length[:40]!r} and the body has {len(body)} bytes: give the "
                "length of its JSON part"
            )
        split = int(json_length)
    if split > MAX_JSON_BYTES:
        raise BadRequest(
            f"the JSON part has {split} bytes, at most {MAX_JSON_BYTES} are read: send tensors as binary data", 413
        )
    view = memoryview(body)
    try:
        form = _request_decoder.decode(view[:split])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the JSON part is not an inference request: {str(error)[:200]}") from error
    inputs = _tensors(form.inputs, view[split:])
    binary_by_default = _flag(form.parameters, "binary_data_output", False, "the request")
    return InferenceCall(
        form.id,
        inputs,
        tuple(output.name for output in form.outputs),
        frozenset(output.name for output in form.outputs if _binary_wanted(output, binary_by_default)),
        binary_by_default,
        _deadline_ms(form.parameters),
    )


def _tensors(forms: Sequence[InputForm], binary: memoryview) -> "dict[str, NDArray[Any]]":
    tensors: dict[str, NDArray[Any]] = {}
    offset = 0
    for form in forms:
        if form.name in tensors:
            raise InputInvalid(f"input {form.name!r} is given twice")
        element = element_of_open_inference(form.datatype)
        if "shared_memory_region" in form.parameters:
            raise InputInvalid(f"input {form.name!r} lies in shared memory, which is not supported: send its data")
        size_bytes = form.parameters.get("binary_data_size")
        if size_bytes is None:
            tensors[form.name] = _from_json(form, element)
            continue
        if type(size_bytes) is not int or not 0 <= size_bytes <= len(binary) - offset:
            raise InputInvalid(
                f"input {form.name!r}: binary_data_size is {size_bytes!r} and {len(binary) - offset} bytes are left"
            )
        tensors[form.name] = _from_bytes(form, element, binary[offset : offset + size_bytes])
        offset += size_bytes
    if offset != len(binary):
        raise InputInvalid(f"{len(binary) - offset} bytes behind the last tensor belong to no input")
    return tensors


def _from_bytes(form: InputForm, element: Element, data: memoryview) -> "NDArray[Any]":
    import numpy as np

    expected = prod(form.shape) * element.size_bytes
    if len(data) != expected:
        raise InputInvalid(
            f"input {form.name!r} of {form.datatype} {list(form.shape)} has {expected} bytes, {len(data)} are given"
        )
    if element.short == "b1":  # a byte other than 0 or 1 is not a bool to compiled code
        return _shaped(np.frombuffer(data, np.uint8).astype(np.bool_), form)
    return _shaped(np.frombuffer(data, element.short), form)


def _shaped(flat: "NDArray[Any]", form: InputForm) -> "NDArray[Any]":
    try:
        return flat.reshape(form.shape)
    except (ValueError, OverflowError) as error:  # [0, 2^40, 2^40] has no elements, but is not a valid shape
        raise InputInvalid(f"input {form.name!r} has the shape {list(form.shape)}: {error}") from error


def _from_json(form: InputForm, element: Element) -> "NDArray[Any]":
    import numpy as np

    raw = bytes(form.data)
    if not raw:
        raise InputInvalid(f"input {form.name!r} has neither 'data' nor 'binary_data_size'")
    try:
        values = np.array(msgspec.json.decode(raw))
    except (msgspec.DecodeError, ValueError, OverflowError, RecursionError) as error:
        raise InputInvalid(f"the data of input {form.name!r} is not an array of numbers: {str(error)[:120]}") from error
    if values.size != prod(form.shape) or (values.ndim > 1 and values.shape != form.shape):
        raise InputInvalid(
            f"input {form.name!r} of shape {list(form.shape)} has {prod(form.shape)} elements, its data is of shape "
            f"{list(values.shape)}"
        )
    if values.dtype.kind not in "biuf" and values.size:
        raise InputInvalid(f"the data of input {form.name!r} has elements that are not numbers")
    with np.errstate(all="ignore"):
        tensor = _shaped(values.astype(element.short), form)
        if element.short[0] != "f" and not np.array_equal(tensor.reshape(values.shape), values):
            raise InputInvalid(f"the data of input {form.name!r} has values that are not of type {form.datatype}")
    return tensor


def _flag(parameters: Mapping[str, Any], name: str, default: bool, where: str) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise BadRequest(f"parameter {name!r} of {where} is {str(value)[:40]!r}: use true or false")
    return value


def _binary_wanted(output: OutputForm, default: bool) -> bool:
    if "classification" in output.parameters or "shared_memory_region" in output.parameters:
        raise BadRequest(f"output {output.name!r} asks for classification or shared memory: neither is supported")
    return _flag(output.parameters, "binary_data", default, f"output {output.name!r}")


def _deadline_ms(parameters: Mapping[str, Any]) -> int | None:
    timeout_us = parameters.get("timeout")
    if timeout_us is None or timeout_us == 0:
        return None
    most_us = limits.MAX_BUDGET_MS * 1_000
    if type(timeout_us) is not int or not 0 < timeout_us <= most_us:
        raise BadRequest(f"parameter 'timeout' is {str(timeout_us)[:40]!r}: use microseconds from 1 to {most_us}")
    return -(-timeout_us // 1_000)


def encode_answer(
    call: InferenceCall, model: str, version: str, outputs: "Mapping[str, NDArray[Any]]", parameters: Parameters
) -> tuple[bytes, dict[str, str]]:
    """Body and headers of an answer. In JSON, numbers that are not finite become null."""
    import numpy as np

    forms: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for name in call.outputs or tuple(outputs):
        array = np.ascontiguousarray(outputs[name])
        kind = element_of_short(array.dtype.str[1:])
        form: dict[str, Any] = {"name": name, "datatype": kind.open_inference, "shape": list(outputs[name].shape)}
        if call.wants_binary(name):
            parts.append(array.tobytes())
            form["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            form["data"] = array.ravel().tolist()
        forms.append(form)
    answer: dict[str, Any] = {"model_name": model, "model_version": version}
    if call.id:
        answer["id"] = call.id
    head = msgspec.json.encode({**answer, "parameters": parameters, "outputs": forms})
    if not parts:
        return head, {"content-type": "application/json"}
    headers = {"content-type": "application/octet-stream", JSON_LENGTH_HEADER: str(len(head))}
    return b"".join((head, *parts)), headers
