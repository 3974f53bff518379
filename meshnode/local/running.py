"""Local applications as a part of a node: other programs on this computer that connect by its socket."""

import asyncio
import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack

from meshnode.backoff import listen_now_or_later
from meshnode.local.section import LocalSection, socket_of
from meshnode.local.server import LocalServer
from meshnode.running import DropCount, Host, RunningPart
from protocols.base import limits

_log = logging.getLogger(__name__)


class RunningLocal(RunningPart):
    """See the module."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._server: LocalServer | None = None
        self._waiting: asyncio.Task[None] | None = None

    async def serve(self, closing: AsyncExitStack) -> None:
        """Listen on the socket, now or once its path can be had."""
        section, path = self.host.config.of(LocalSection), socket_of(self.host.config)
        if not section.enabled:
            return
        if len(os.fsencode(path)) > limits.MAX_SOCKET_PATH_BYTES:
            _log.warning(
                "%s is too long a path for a socket: local applications can't connect; set [local] socket to a shorter "
                "one, as in '/run/mesh/node.sock'", path,
            )  # fmt: skip
            return
        closing.push_async_callback(self._close)
        self._waiting = await listen_now_or_later(self._listen, "local", self.host.troubles)

    async def _listen(self) -> None:
        section, server = self.host.config.of(LocalSection), LocalServer(self.host)
        server.start(socket_of(self.host.config), int(section.mode, 8))
        self._server = server

    async def _close(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            await asyncio.gather(self._waiting, return_exceptions=True)
        if self._server is not None:
            await asyncio.to_thread(self._server.close)

    def statistics(self) -> Mapping[str, int]:
        """Counters of the server."""
        server = self._server
        return {} if server is None else {f"local_{name}": value for name, value in server.statistics().items()}

    def drops(self) -> Iterable[DropCount]:
        """Readings that applications were too slow for."""
        return () if self._server is None else self._server.drops()
