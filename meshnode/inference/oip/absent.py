"""Calls of the protocol's extensions that a node does not have: each is answered with what to do instead.

Without these answers a client would be told that the path is wrong, and look for its mistake in the address.
"""

from collections.abc import Awaitable, Callable, Iterator
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from meshnode.http.guard import error_response

STATUS: Final = 501


def absence(what: str, way_out: str) -> str:
    """What is said about something that a node does not have."""
    return f"a node has no {what}: {way_out}"


LOADING: Final = absence(
    "loading and unloading of models",
    "a node loads the models of its configuration: edit [models.<name>] and start it again",
)
TRACES: Final = absence("trace settings", "the parameters of each answer say who computed and for how long")
LOGS: Final = absence("log settings", "a node logs to standard error; its configuration says how much")
_MODEL: Final = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
_ABSENT: Final = {
    LOADING: ("/v2/repository/models/{name}/load", "/v2/repository/models/{name}/unload"),
    absence("shared memory", "send tensors as binary data behind the JSON part"): (
        "/v2/systemsharedmemory/{rest:path}", "/v2/cudasharedmemory/{rest:path}",
    ),
    TRACES: ("/v2/trace/setting", "/v2/models/{name}/trace/setting"),
    LOGS: ("/v2/logging",),
    absence("streams of answers", "ask 'infer' for one answer to each request"): tuple(
        f"{model}/{call}" for model in _MODEL for call in ("generate", "generate_stream", "infer_stream")
    ),
}  # fmt: skip
"""What is said, and the paths that say it."""


def routes() -> Iterator[Route]:
    """A route for each path that is not there, whatever the method."""
    for message, paths in _ABSENT.items():
        for path in paths:
            yield Route(path, _refusing(message), methods=["GET", "POST", "PUT", "DELETE"])


def _refusing(message: str) -> Callable[[Request], Awaitable[Response]]:
    async def refuse(_: Request) -> Response:
        return error_response(STATUS, message)

    return refuse
