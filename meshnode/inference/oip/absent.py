"""Calls of the protocol's extensions that a node does not have: each is answered with what to do instead.

Without these routes a client would be told that the path is wrong, and look for its mistake in the address.
"""

from collections.abc import Awaitable, Callable, Iterator
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from meshnode.http.guard import error_response

STATUS: Final = 501
_MODEL: Final = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
_ABSENT: Final = {
    "loading and unloading of models": (
        "a node loads the models of its configuration: edit [models.<name>] and start it again",
        ("/v2/repository/models/{name}/load", "/v2/repository/models/{name}/unload"),
    ),
    "shared memory": (
        "send tensors as binary data behind the JSON part",
        ("/v2/systemsharedmemory/{rest:path}", "/v2/cudasharedmemory/{rest:path}"),
    ),
    "trace settings": (
        "the parameters of each answer say who computed and for how long",
        ("/v2/trace/setting", "/v2/models/{name}/trace/setting"),
    ),
    "log settings": ("a node logs to standard error; its configuration says how much", ("/v2/logging",)),
    "streams of answers": (
        "ask 'infer' for one answer to each request",
        tuple(f"{model}/{call}" for model in _MODEL for call in ("generate", "generate_stream", "infer_stream")),
    ),
}
"""What is not there: the way out, and its paths."""


def routes() -> Iterator[Route]:
    """A route for each path that is not there, whatever the method."""
    for what, (way_out, paths) in _ABSENT.items():
        handler = _refusing(f"a node has no {what}: {way_out}")
        for path in paths:
            yield Route(path, handler, methods=["GET", "POST", "PUT", "DELETE"])


def _refusing(message: str) -> Callable[[Request], Awaitable[Response]]:
    async def refuse(_: Request) -> Response:
        return error_response(STATUS, message)

    return refuse
