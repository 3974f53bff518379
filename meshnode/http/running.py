"""The HTTP server as a part of a node."""

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from meshnode.backoff import listen_now_or_later
from meshnode.http.section import HttpSection
from meshnode.running import Host, RunningPart

if TYPE_CHECKING:
    from meshnode.http.server import HttpServer


class RunningHttp(RunningPart):
    """See the module."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.port: int | None = None
        """Where it listens; None when it is off, or does not listen yet."""
        self._server: HttpServer | None = None
        self._waiting: asyncio.Task[None] | None = None

    async def serve(self, closing: AsyncExitStack) -> None:
        """Listen, now or once the address can be had."""
        if not self.host.config.of(HttpSection).enabled:
            return
        closing.push_async_callback(self._close)
        self._waiting = await listen_now_or_later(self._listen, "http", self.host.troubles)

    async def _listen(self) -> None:
        from meshnode.http.api import Api  # its libraries take 10 MB, which only a node with HTTP pays
        from meshnode.http.app import build_app
        from meshnode.http.server import HttpServer

        section, api = self.host.config.of(HttpSection), Api(self.host, lambda: self.port)
        server = HttpServer(build_app(api), api.leave)
        self.port = await server.start(section.host, section.port)
        self._server = server

    async def _close(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            await asyncio.gather(self._waiting, return_exceptions=True)
        if self._server is not None:
            await self._server.close()
