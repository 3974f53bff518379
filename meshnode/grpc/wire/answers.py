"""Answers to requests to compute: raw little-endian bytes, as Triton's server gives them, whatever the request has.

Tensors are put behind what protobuf has written, which is a message like any other: a field may stand anywhere. So they
are copied once and not three times.
"""

from typing import Any, Final

from meshnode.grpc.wire.fields import field_head
from meshnode.grpc.wire.messages import ModelInferResponse, ModelStreamInferResponse
from meshnode.inference.oip.service import Computed
from meshnode.models import element_of_short

_RAW: Final = ModelInferResponse.DESCRIPTOR.fields_by_name["raw_output_contents"].number
_ANSWER: Final = ModelStreamInferResponse.DESCRIPTOR.fields_by_name["infer_response"].number


def encoded_answer(request_id: str, computed: Computed) -> bytes:
    """A ``ModelInferResponse``. May be called from any thread."""
    return b"".join(_parts(request_id, computed))


def streamed_answer(request_id: str, computed: Computed) -> bytes:
    """The same in a ``ModelStreamInferResponse``."""
    parts = _parts(request_id, computed)
    return b"".join((field_head(_ANSWER, sum(map(len, parts))), *parts))


def streamed_error(text: str, request_id: str = "") -> bytes:
    """A ``ModelStreamInferResponse`` that says why there is no answer."""
    response = ModelStreamInferResponse(error_message=text)
    if request_id:
        response.infer_response.id = request_id
    written: bytes = response.SerializeToString()
    return written


def _parts(request_id: str, computed: Computed) -> list[bytes | memoryview]:
    import numpy as np

    answer = ModelInferResponse(model_name=computed.model, model_version=computed.version, id=request_id)
    for name, value in computed.parameters.items():
        _set(answer.parameters[name], value)
    raw: list[bytes | memoryview] = []
    for name, array in computed.outputs.items():
        kind = element_of_short(array.dtype.str[1:])
        answer.outputs.add(name=name, datatype=kind.open_inference, shape=array.shape)
        tensor = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        raw += (field_head(_RAW, len(tensor)), tensor)
    return [answer.SerializeToString(), *raw]


def _set(parameter: Any, value: str | float) -> None:
    match value:
        case bool():
            parameter.bool_param = value
        case int():
            parameter.int64_param = value
        case float():
            parameter.double_param = value
        case _:
            parameter.string_param = value
