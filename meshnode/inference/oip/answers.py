"""Answers to requests to compute: JSON, and binary data behind it as the request wants it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshnode.http.bodies import LEAST_PACKED_BYTES, coding_for, packed
from meshnode.http.guard import BadRequest
from meshnode.inference.oip.requests import JSON_LENGTH_HEADER, HttpInferenceCall
from meshnode.inference.oip.service import Computed
from meshnode.models import element_of_short

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_JSON_ELEMENTS: Final = 4 * 1024 * 1024
"""Of one answer. Each takes about 20 bytes."""
_PIECE_ELEMENTS: Final = 16 * 1024
"""What is encoded at a time takes a few milliseconds, after which another thread can run."""


def encode_answer(
    call: HttpInferenceCall, computed: Computed, accept_encoding: str = ""
) -> tuple[bytes, dict[str, str]]:
    """Body and headers of an answer, packed if ``accept_encoding``, the header of the request, asks for it.

    In JSON, numbers that are not finite become null. The parameter ``not_finite`` of their output says how many.

    :raises BadRequest: there are too many elements for JSON.
    """
    in_json = json_elements(call, computed.outputs)
    if in_json > MAX_JSON_ELEMENTS:
        raise BadRequest(
            f"the outputs have {in_json} elements, at most {MAX_JSON_ELEMENTS} are sent as JSON: ask for binary "
            "data, with the parameter binary_data_output"
        )
    forms: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for name, array in computed.outputs.items():
        form, part = _output(name, array, call.wants_binary(name))
        forms.append(form)
        parts += () if part is None else (part,)
    answer: dict[str, Any] = {"model_name": computed.model, "model_version": computed.version}
    if call.id:
        answer["id"] = call.id
    head = msgspec.json.encode({**answer, "parameters": computed.parameters, "outputs": forms})
    headers = {"content-type": "application/json"}
    if parts:
        headers = {"content-type": "application/octet-stream", JSON_LENGTH_HEADER: str(len(head))}
    body = b"".join((head, *parts))
    coding = coding_for(accept_encoding, bool(parts))
    if coding is None or len(body) < LEAST_PACKED_BYTES:
        return body, headers
    return packed(body, coding), {**headers, "content-encoding": coding}


def json_elements(call: HttpInferenceCall, outputs: "Mapping[str, NDArray[Any]]") -> int:
    """How many elements go into the JSON part of an answer."""
    return sum(array.size for name, array in outputs.items() if not call.wants_binary(name))


def _output(name: str, given: "NDArray[Any]", binary: bool) -> tuple[dict[str, Any], bytes | None]:
    """One entry of ``outputs``, and the bytes that belong to it behind the JSON part."""
    import numpy as np

    array = np.ascontiguousarray(given)
    kind = element_of_short(array.dtype.str[1:])
    form: dict[str, Any] = {"name": name, "datatype": kind.open_inference, "shape": list(given.shape)}
    if binary:
        part = array.tobytes()
        return {**form, "parameters": {"binary_data_size": len(part)}}, part
    if kind.short[0] == "f" and (not_finite := int(np.count_nonzero(~np.isfinite(array)))):
        form["parameters"] = {"not_finite": not_finite}
    return {**form, "data": _json_of(array.ravel())}, None


def _json_of(flat: "NDArray[Any]") -> msgspec.Raw:
    """The list of its elements in JSON, of which only some are objects at a time."""
    pieces = (
        msgspec.json.encode(flat[at : at + _PIECE_ELEMENTS].tolist())[1:-1]
        for at in range(0, flat.size, _PIECE_ELEMENTS)
    )
    return msgspec.Raw(b"[" + b",".join(pieces) + b"]")
