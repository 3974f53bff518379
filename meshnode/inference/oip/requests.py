"""Requests to compute, as the Open Inference Protocol v2 has them: JSON, and its binary tensor data extension.

Binary data stands behind the JSON part, whose length is in ``Inference-Header-Content-Length``: raw little-endian
elements in C order, one tensor after the other in the order of the JSON part. Left out: shared memory, classification,
``BYTES`` tensors.

What enters is untrusted: only :class:`InputInvalid` and :class:`BadRequest` leave, and sizes are compared before memory
is taken.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

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
from meshnode.inference.oip.forms import InputForm, OutputForm, parameters_of, request_form
from meshnode.inference.oip.tensors import tensor_of_bytes, tensor_of_json
from protocols.base.errors import InputInvalid

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_REQUEST_BYTES: Final = 64 * 1024 * 1024
MAX_JSON_BYTES: Final = 32 * 1024 * 1024
"""A JSON number costs a Python object while it is read; larger inputs belong behind the JSON part."""
JSON_LENGTH_HEADER: Final = "inference-header-content-length"


@dataclass(frozen=True, slots=True)
class HttpInferenceCall(InferenceCall):
    """A parsed request, and in which form it wants its answer."""

    binary: frozenset[str]
    """Outputs wanted as binary data."""
    binary_by_default: bool
    """Whether outputs that were not named come as binary data."""

    def wants_binary(self, output: str) -> bool:
        """Whether that output goes behind the JSON part."""
        return output in self.binary or (not self.outputs and self.binary_by_default)


def parse_untrusted_request(body: bytes, json_length: str | None) -> HttpInferenceCall:
    """Parse a request; ``json_length`` is the header ``Inference-Header-Content-Length``, None when there is none.

    :raises BadRequest: it is not a request. :raises InputInvalid: one of its tensors contradicts itself.
    """
    view, split = memoryview(body), json_bytes(body, json_length)
    form = request_form(view[:split])
    parameters = parameters_of(form.parameters, "the request")
    binary_by_default = _flag(parameters, "binary_data_output", False, "the request")
    outputs, shard = _outputs(form.outputs or (), binary_by_default), shard_of(parameters)
    return HttpInferenceCall(
        form.id or "",
        _inputs(form.inputs, view[split:], shard is not None),
        tuple(outputs),
        deadline_of(parameters),
        frozenset(name for name, binary in outputs.items() if binary),
        binary_by_default,
        shard=shard,
    )


def json_bytes(body: bytes, json_length: str | None) -> int:
    """The length of the JSON part. :raises BadRequest: the header is wrong, or the part is too long."""
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
    return split


def _inputs(
    forms: Sequence[InputForm], binary: memoryview, is_batch: bool
) -> "dict[str, NDArray[Any] | list[memoryview]]":  # fmt: skip
    """The tensors by name. Of a batch, encoded pictures may be given one by one, under the same name."""
    tensors: dict[str, list[NDArray[Any]]] = {}
    for name, tensor in _tensors(forms, binary):
        same = tensors.setdefault(name, [])
        same.append(tensor)
        if len(same) > 1 and not (is_batch and all(each.dtype.str[1:] == "u1" and each.ndim == 1 for each in same)):
            check_input_is_new(name, tensors)
    return {name: each[0] if len(each) == 1 else [part.data for part in each] for name, each in tensors.items()}


def _tensors(forms: Sequence[InputForm], binary: memoryview) -> "Iterator[tuple[str, NDArray[Any]]]":
    offset = 0
    for form in forms:
        parameters = parameters_of(form.parameters, f"input {form.name!r}")
        check_input_is_sent(form.name, parameters)
        size_bytes, has_data = parameters.get("binary_data_size"), bytes(form.data).strip() != b"null"
        if size_bytes is None:
            if not has_data:
                raise InputInvalid(f"input {form.name!r} has neither 'data' nor 'binary_data_size': give one of them")
            yield form.name, tensor_of_json(form)
            continue
        if has_data:
            raise InputInvalid(f"input {form.name!r} has both 'data' and 'binary_data_size': give one of them")
        left = len(binary) - offset
        if type(size_bytes) is not int or not 0 <= size_bytes <= left:
            raise InputInvalid(
                f"input {form.name!r}: binary_data_size is {str(size_bytes)[:40]!r} and {left} bytes are left: send as "
                "many behind the JSON part, whose length is in Inference-Header-Content-Length"
            )
        yield form.name, tensor_of_bytes(form, binary[offset : offset + size_bytes])
        offset += size_bytes
    if offset != len(binary):
        raise InputInvalid(f"{len(binary) - offset} bytes behind the last tensor belong to no input: leave them out")


def _outputs(forms: Sequence[OutputForm], binary_by_default: bool) -> dict[str, bool]:
    """The wanted outputs, and whether each is wanted as binary data."""
    outputs: dict[str, bool] = {}
    for form in forms:
        where = f"output {form.name!r}"
        parameters = parameters_of(form.parameters, where)
        check_output(form.name, parameters, outputs)
        outputs[form.name] = _flag(parameters, "binary_data", binary_by_default, where)
    return outputs


def _flag(parameters: Parameters, name: str, default: bool, where: str) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise BadRequest(f"parameter {name!r} of {where} is {str(value)[:40]!r}: use true or false")
    return value
