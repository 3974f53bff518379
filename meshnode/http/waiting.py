"""What a node answers over HTTP while it waits and takes no part in the mesh: that it lives, and what it waits for."""

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from meshnode.http.api import software_version, troubles_form
from meshnode.http.guard import Guard, error_response, json_response
from meshnode.http.metrics import page_of, trouble_metrics
from meshnode.http.server import HttpServer
from meshnode.troubles import Troubles

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]


class WaitingHttp:
    """The server of a node that waits. ``/healthz``, ``/readyz``, ``/metrics`` and ``/v1/node`` are a part of what a
    running node answers; everything else is answered with 503 and the reason."""

    def __init__(self, node: str, troubles: Troubles) -> None:
        """``troubles``: what it waits for."""
        self._node, self._troubles = node, troubles
        self._started_s = time.monotonic()
        self._port: int | None = None
        routes = [
            Route("/healthz", self._healthz),
            Route("/metrics", self._metrics),
            Route("/v1/node", self._view),
            Route("/{path:path}", self._not_yet, methods=_METHODS),
        ]
        self._server = HttpServer(Starlette(routes=routes, middleware=[Middleware(Guard)]), lambda _: None)

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port. :raises TransportError: the address can't be used."""
        self._port = await self._server.start(host, port)
        return self._port

    async def close(self) -> None:
        """Free the port for the node. Idempotent."""
        await self._server.close()

    def collect(self) -> "Iterable[Metric]":
        """Called by the registry of metrics."""
        return trouble_metrics(self._troubles)

    async def _healthz(self, _: Request) -> Response:
        return json_response({"alive": True})

    async def _not_yet(self, _: Request) -> Response:
        reasons = [f"{trouble.part}: {trouble.why}" for trouble in self._troubles.current()]
        return error_response(503, "; ".join(reasons), {"retry-after": "1"})

    async def _metrics(self, _: Request) -> Response:
        content, media_type = page_of(self)
        return Response(content, media_type=media_type)

    async def _view(self, _: Request) -> Response:
        return json_response({
            "id": self._node,
            "waiting": True,
            "version": software_version(),
            "incarnation": None,
            "port": None,
            "http_port": self._port,
            "uptime_s": round(time.monotonic() - self._started_s, 3),
            "link_failures": [],
            "troubles": troubles_form(self._troubles.current()),
        })  # fmt: skip
