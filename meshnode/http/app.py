"""Puts the routes of a node and its parts together. ``docs/reference/http.md`` describes each of them."""

from http import HTTPStatus

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from meshnode.http.api import Api
from meshnode.http.guard import Guard, error_response, status_of
from meshnode.http.readings import ReadingsApi
from protocols.base.errors import MeshError


def build_app(api: Api) -> Starlette:
    """The whole API of one node as an ASGI application. No part can take a path of the node's own."""
    readings = ReadingsApi(api.host, api)
    api.at_leave(readings.end_streams)
    app = Starlette(
        routes=[*api.routes(), *readings.routes(), *(route for part in api.host.parts for route in part.routes(api))],
        middleware=[Middleware(Guard)],
        exception_handlers={MeshError: _mesh_error, HTTPException: _http_error, Exception: _our_bug},
    )
    app.router.redirect_slashes = False
    return app


async def _mesh_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, MeshError)
    status = status_of(error)
    # The rest of the body would otherwise be read as the next request.
    headers = {"connection": "close"} if status in (408, 413, 415) else {"retry-after": "1"} if status == 503 else {}
    return error_response(status, str(error), headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path, method = request.url.path[:200], request.method
    if error.status_code == HTTPStatus.NOT_FOUND:
        return error_response(404, f"there is no {path!r}: see docs/reference/http.md")
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return error_response(405, f"{path!r} does not take {method}", dict(error.headers or {}))
    return error_response(error.status_code, error.detail, dict(error.headers or {}))


async def _our_bug(_: Request, error: Exception) -> Response:
    return error_response(500, f"internal error, {type(error).__name__}: the node's log says more")
