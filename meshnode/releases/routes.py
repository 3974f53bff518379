"""Releases over HTTP: ``GET /v1/releases``, and what the operator of this node orders."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Protocol

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from meshnode.http.guard import BadRequest, json_response

_MAX_BODY_BYTES: Final = 4_096
Body = Callable[[Request, int], AbstractAsyncContextManager[bytes]]


class PinOrder(Struct, forbid_unknown_fields=True):
    """The body of ``POST /v1/releases/pin``."""

    path: str
    counter: int | None
    """None: follow orders again."""


_PINS: Final = msgspec.json.Decoder(PinOrder)


class ReleasesShown(Protocol):
    """What the routes need of the part. Its methods block for milliseconds."""

    def view(self) -> dict[str, Any]:
        """What this node knows of releases."""

    def pin(self, path: str, counter: int | None) -> None:
        """Serve one release of a path whatever orders say."""

    def imported(self) -> None:
        """Take in what was put on the disk for this node."""


def release_routes(releases: ReleasesShown, body: Body) -> list[Route]:
    """The routes. ``body``: see :class:`meshnode.running.HttpService`."""

    async def show(_: Request) -> Response:
        return json_response(await asyncio.to_thread(releases.view))

    async def pin(request: Request) -> Response:
        async with body(request, _MAX_BODY_BYTES) as content:
            try:
                order = _PINS.decode(content)
            except msgspec.DecodeError as error:
                raise BadRequest(f"the body is no order to pin a release: {error}") from error
        await asyncio.to_thread(releases.pin, order.path, order.counter)
        return json_response({"path": order.path, "pinned": order.counter})

    async def imported(_: Request) -> Response:
        await asyncio.to_thread(releases.imported)
        return json_response({"imported": True})

    return [
        Route("/v1/releases", show),
        Route("/v1/releases/pin", pin, methods=["POST"]),
        Route("/v1/releases/imported", imported, methods=["POST"]),
    ]
