"""Gossip over HTTP: every entry that the node holds."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from meshnode.http.guard import json_response
from protocols.base import limits
from protocols.base.errors import RemoteProtocolError
from protocols.gossip.certificates import ADDRESS
from protocols.gossip.entries import EntryView
from protocols.wire.entries import decode_untrusted_address


def gossip_routes(entries: Callable[[], list[EntryView]]) -> list[Route]:
    """``GET /v1/gossip``."""

    async def gossip(_: Request) -> Response:
        return await asyncio.to_thread(lambda: json_response([entry_form(view) for view in entries()]))

    return [Route("/v1/gossip", gossip)]


def entry_form(view: EntryView) -> dict[str, Any]:
    """An entry as the HTTP API gives it; ``address`` is null for other kinds, and for a malformed body."""
    address: dict[str, Any] | None = None
    if view.kind == ADDRESS:
        try:
            address = msgspec.structs.asdict(decode_untrusted_address(view.body))
        except RemoteProtocolError:
            address = None
    return {
        "author": view.author,
        "kind": view.kind,
        "version": view.version,
        "age_s": round(view.age_ns / limits.SECOND, 3),
        "lifetime_s": view.lifetime_s,
        "from": view.source,
        "size_bytes": view.size_bytes,
        "address": address,
    }
