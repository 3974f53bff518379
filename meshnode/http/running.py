"""The HTTP server as a part of a node."""

from contextlib import AsyncExitStack

from meshnode.http.section import HttpSection
from meshnode.running import Host, RunningPart


class RunningHttp(RunningPart):
    """See the module."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.port: int | None = None
        """Where it listens; None when it is off."""

    async def serve(self, closing: AsyncExitStack) -> None:
        """Listen. :raises TransportError: the address can't be used."""
        section = self.host.config.of(HttpSection)
        if section.enabled:
            from meshnode.http.api import Api  # its libraries take 10 MB, which only a node with HTTP pays
            from meshnode.http.app import build_app
            from meshnode.http.server import HttpServer

            api = Api(self.host, lambda: self.port)
            server = HttpServer(build_app(api), api.leave)
            self.port = await server.start(section.host, section.port)
            closing.push_async_callback(server.close)
