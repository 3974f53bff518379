"""The node's own part of the HTTP API: health, metrics, neighbours and drops."""

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from meshnode.http.bodies import Bodies
from meshnode.http.guard import error_response, json_response
from meshnode.http.metrics import Metrics
from meshnode.http.reading_json import position_form
from meshnode.running import Host
from meshnode.troubles import Trouble


def software_version() -> str:
    """The version of the installed package."""
    try:
        return version("meshnode")
    except PackageNotFoundError:
        return "0+unknown"


class Api:
    """Handlers of one node, and what all handlers share; it is the ``HttpService`` of the routes of parts."""

    def __init__(self, host: Host, bound_port: Callable[[], int | None]) -> None:
        """``bound_port`` returns the port of the server, or None before it listens."""
        self.host = host
        self.leaving = False
        self.given_up = asyncio.Event()
        self._bound_port = bound_port
        self._bodies = Bodies()
        self._metrics = Metrics(host)
        self._ends: list[Callable[[], None]] = []
        self._started_s = time.monotonic()
        self.version = software_version()

    def routes(self) -> list[Route]:
        """Paths of the handlers below."""
        return [
            Route("/healthz", self.healthz),
            Route("/readyz", self.readyz),
            Route("/metrics", self.metrics),
            Route("/v1/node", self.node_view),
            Route("/v1/peers", self.peers),
            Route("/v1/drops", self.drops),
        ]

    def body(self, request: Request, max_bytes: int) -> AbstractAsyncContextManager[bytes]:
        """See :meth:`meshnode.http.bodies.Bodies.read`."""
        return self._bodies.read(request, max_bytes)

    def at_leave(self, end: Callable[[], None]) -> None:
        """Call ``end`` when the node begins to close."""
        self._ends.append(end)

    def leave(self, drain_s: float) -> None:
        """The node closes: end streams now, and everything else after ``drain_s``."""
        self.leaving = True
        for end in self._ends:
            end()
        asyncio.get_running_loop().call_later(drain_s, self.given_up.set)

    # --- health ----------------------------------------------------------------------------------------------------
    async def healthz(self, _: Request) -> Response:
        """Answers when the event loop runs and the engine responds."""
        await asyncio.to_thread(self.host.statistics)
        return json_response({"alive": True})

    async def readyz(self, _: Request) -> Response:
        """Answers 200 when the node takes part in the mesh, and names what does not work; 503 while an essential part
        does not, or the node leaves."""
        if self.leaving:
            return error_response(503, f"the node {self.host.id} is leaving", {"retry-after": "1"})
        troubles = self.host.troubles.current()
        essential = [f"{trouble.part}: {trouble.why}" for trouble in troubles if trouble.essential]
        if essential:
            return error_response(503, "; ".join(essential), {"retry-after": "1"})
        ready: dict[str, Any] = {"ready": True, "troubles": troubles_form(troubles)}
        for part in self.host.parts:
            ready.update(part.readiness())
        return json_response(ready)

    async def metrics(self, _: Request) -> Response:
        """All metrics, for Prometheus."""
        content, media_type = await asyncio.to_thread(self._metrics.exposition)
        return Response(content, media_type=media_type)

    # --- who and what ----------------------------------------------------------------------------------------------
    async def node_view(self, _: Request) -> Response:
        """The identity and the state of the node."""
        host = self.host
        position, ends = host.position, host.certificate_ends
        view = {
            "id": host.id,
            "role": host.role.value,
            "mesh": host.mesh,
            "version": self.version,
            "incarnation": host.incarnation,
            "port": host.port,
            "http_port": self._bound_port(),
            "uptime_s": round(time.monotonic() - self._started_s, 3),
            "certificate_ends": ends.isoformat(),
            "certificate_days_left": round((ends - datetime.now(UTC)).total_seconds() / 86_400, 2),
            "position": position_form(position) if position is not None else None,
            "link_failures": [
                {
                    "peer": failed.peer,
                    "kind": failed.kind,
                    "why": failed.why,
                    "count": failed.count,
                    "last_s": round(max(0.0, (time.time_ns() - failed.last_utc_ns) / 1e9), 1),
                }
                for failed in host.link_failures()
            ],
            "troubles": troubles_form(host.troubles.current()),
            "statistics": host.statistics(),
        }
        for part in host.parts:
            view.update(part.node_view())
        return json_response(view)

    async def peers(self, _: Request) -> Response:
        """Every neighbour known."""
        return json_response([
            {
                **msgspec.to_builtins(msgspec.structs.replace(peer, offers=())),
                "offers": [
                    {field: getattr(offer, field) for field in offer.__struct_fields__} for offer in peer.offers
                ],
            }
            for peer in self.host.peers()
        ])  # fmt: skip

    async def drops(self, _: Request) -> Response:
        """Every drop counter."""
        return json_response([
            {"peer": peer, "key": key, "reason": reason, "count": count}
            for (peer, key, reason), count in self.host.drops()
        ])  # fmt: skip


def troubles_form(troubles: list[Trouble]) -> list[dict[str, Any]]:
    """What does not work, as JSON tells it."""
    return [
        {
            "part": trouble.part,
            "name": trouble.name,
            "why": trouble.why,
            "essential": trouble.essential,
            "since_s": round((time.monotonic_ns() - trouble.since_ns) / 1e9, 1),
        }
        for trouble in troubles
    ]
