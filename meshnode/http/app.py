"""Which path leads where. ``docs/reference/http.md`` describes each of them."""

from http import HTTPStatus

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from meshnode.http.api import Api
from meshnode.http.guard import Guard, error_response, status_of
from meshnode.http.open_inference import OpenInference
from protocols.base.errors import MeshError


def build_app(api: Api) -> Starlette:
    """The whole API of one node as an ASGI application."""
    inference = OpenInference(api)
    routes = [
        Route("/healthz", api.healthz),
        Route("/readyz", api.readyz),
        Route("/metrics", api.metrics),
        Route("/v1/node", api.node_view),
        Route("/v1/peers", api.peers),
        Route("/v1/drops", api.drops),
        Route("/v1/gossip", api.gossip),
        Route("/v1/models", inference.models),
        Route("/v1/readings", api.stream_readings, methods=["GET"]),
        Route("/v1/readings", api.publish, methods=["POST"]),
        Route("/v2", inference.server),
        Route("/v2/", inference.server),
        Route("/v2/health/live", inference.live),
        Route("/v2/health/ready", inference.ready),
    ]
    for model in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        routes += [
            Route(model, inference.model),
            Route(f"{model}/ready", inference.model_ready),
            Route(f"{model}/infer", inference.infer, methods=["POST"]),
        ]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(Guard)],
        exception_handlers={MeshError: _mesh_error, HTTPException: _http_error, Exception: _our_bug},
    )
    app.router.redirect_slashes = False
    return app


async def _mesh_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, MeshError)
    status = status_of(error)
    # What is left of the body would be read as the next request.
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
