"""The gRPC endpoint as a part of a node.

Its libraries are loaded only when it is configured: they take 24 MB and 0.1 s, and start threads.
"""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from meshnode.backoff import listen_now_or_later
from meshnode.grpc.libraries import why_not_there
from meshnode.grpc.section import GrpcSection
from meshnode.inference.running import RunningInference
from meshnode.running import Host, RunningPart

if TYPE_CHECKING:
    from meshnode.grpc.server import GrpcServer

_log = logging.getLogger(__name__)


class RunningGrpc(RunningPart):
    """See the module."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.port: int | None = None
        """Where it listens; None when it is off, or does not listen yet."""
        self._server: GrpcServer | None = None
        self._waiting: asyncio.Task[None] | None = None

    async def serve(self, closing: AsyncExitStack) -> None:
        """Listen, now or once the address can be had."""
        section = self.host.config.given(GrpcSection)
        if section is None:
            return
        why = await asyncio.to_thread(why_not_there)
        if why is not None:
            self.host.troubles.begin("grpc", "", why)
            return
        closing.push_async_callback(self._close)
        self._waiting = await listen_now_or_later(partial(self._listen, section), "grpc", self.host.troubles)

    async def _listen(self, section: GrpcSection) -> None:
        from meshnode.grpc.methods import GrpcMethods
        from meshnode.grpc.server import GrpcServer

        server = GrpcServer(GrpcMethods(self.host, self.host.part(RunningInference)))
        self.port = await server.start(section.host, section.port)
        self._server = server
        _log.info("the Open Inference Protocol is served at gRPC port %d", self.port)

    async def _close(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            await asyncio.gather(self._waiting, return_exceptions=True)
        if self._server is not None:
            await self._server.close()

    def node_view(self) -> Mapping[str, Any]:
        """``grpc_port``."""
        return {"grpc_port": self.port}
