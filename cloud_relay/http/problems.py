"""What goes wrong with a request, as problem details (RFC 9457)."""

from http import HTTPStatus
from typing import Final

import msgspec
from starlette.responses import Response

from cloud_relay.query.kept import UnknownAggregate
from protocols.base.errors import LocalProtocolError, MeshError, StorageError

MEDIA_TYPE: Final = "application/problem+json"


class HttpProblem(MeshError):
    """A request that is not answered as it wished. ``headers`` go along with the answer."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.headers = status, headers


def problem_response(status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    """The answer. Its type is ``about:blank``: the status says it all, and the detail is for people."""
    content = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    return Response(msgspec.json.encode(content), status, headers, MEDIA_TYPE)


def response_to(error: MeshError) -> Response:
    """The answer to a request that ended with an error of ours."""
    match error:
        case HttpProblem():
            return problem_response(error.status, str(error), error.headers)
        case UnknownAggregate():
            return problem_response(404, str(error))
        case LocalProtocolError():
            return problem_response(400, str(error))
        case StorageError():
            # The message names files of this host, which is for the log.
            return problem_response(503, "the store can't be read now: the relay's log says more", {"retry-after": "5"})
        case _:
            return problem_response(500, f"internal error, {type(error).__name__}: the relay's log says more")
