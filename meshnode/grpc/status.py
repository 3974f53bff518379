"""The gRPC status that tells a program what kind of error it was.

It follows from the HTTP status of the same error, so that both doors judge alike. One thing is told apart that HTTP
does not: a bound that was reached (``RESOURCE_EXHAUSTED``) and a node or model that is not there now (``UNAVAILABLE``).
"""

from typing import Final

from grpc import StatusCode

from meshnode.http.guard import status_of
from protocols.base.errors import BoundExceeded, MeshError

MAX_DETAILS_BYTES: Final = 1_500
"""Clients refuse a head of more than 8 KiB, in which each byte of a text that is not ASCII takes three."""
_CODES: Final = {
    400: StatusCode.INVALID_ARGUMENT,
    403: StatusCode.PERMISSION_DENIED,
    404: StatusCode.NOT_FOUND,
    413: StatusCode.RESOURCE_EXHAUSTED,
    501: StatusCode.UNIMPLEMENTED,
    502: StatusCode.UNAVAILABLE,
    503: StatusCode.UNAVAILABLE,
    504: StatusCode.DEADLINE_EXCEEDED,
    507: StatusCode.RESOURCE_EXHAUSTED,
}


def code_of(error: MeshError) -> StatusCode:
    """The status of an error."""
    if isinstance(error, BoundExceeded):
        return StatusCode.RESOURCE_EXHAUSTED
    return _CODES.get(status_of(error), StatusCode.INTERNAL)


def details_of(error: MeshError) -> str:
    """Its text, cut to what a status can carry."""
    return str(error).encode("utf-8", "replace")[:MAX_DETAILS_BYTES].decode("utf-8", "ignore")
