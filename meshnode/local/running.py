"""Local applications as a part of a node: other programs on this computer that connect by its socket."""

import asyncio
import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack

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

    async def serve(self, closing: AsyncExitStack) -> None:
        """Listen on the socket. :raises TransportError: when that can't be had."""
        section, path = self.host.config.of(LocalSection), socket_of(self.host.config)
        if not section.enabled:
            return
        if len(os.fsencode(path)) > limits.MAX_SOCKET_PATH_BYTES:
            _log.warning(
                "%s is too long a path for a socket: local applications can't connect; set [local] socket to a shorter "
                "one, as in '/run/mesh/node.sock'", path,
            )  # fmt: skip
            return
        server = LocalServer(self.host)
        server.start(path, int(section.mode, 8))
        self._server = server
        closing.push_async_callback(asyncio.to_thread, server.close)

    def statistics(self) -> Mapping[str, int]:
        """Counters of the server."""
        server = self._server
        return {} if server is None else {f"local_{name}": value for name, value in server.statistics().items()}

    def drops(self) -> Iterable[DropCount]:
        """Readings that applications were too slow for."""
        return () if self._server is None else self._server.drops()
