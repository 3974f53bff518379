"""The HTTP server of a node: uvicorn inside the node's own event loop.

Invariants: no signal handler is touched; an idle server has no timer (uvicorn alone wakes up ten times a second); while
the node closes, streams end, inferences get ``DRAIN_S`` to finish, and only then are connections cut; a connection
without a request gives way when another needs its place.
"""

import asyncio
import contextlib
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from meshnode.http.listening import listening_socket
from protocols.base.errors import TransportError

DRAIN_S: Final = 1.0
"""How long a closing node lets inferences finish; a longer one is answered with 503."""
MAX_CONNECTIONS: Final = 128
"""Further ones are told to come back later. Each may hold a body or a stream."""
SILENT_S: Final = 1.0
"""When all places are taken, connections that made no request for so long are closed, the longest silent first. Younger
ones are spared, because of many that come at once all would be closed before they could ask."""
MAX_HEADER_BYTES: Final = 32 * 1024


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """What the handshake of a connection has proved of its client."""

    names: tuple[str, ...]
    """The URI names in it."""
    ends_utc_ns: int
    proved_s: float
    """On the monotonic clock."""


CLIENT_CERTIFICATE: Final = "client_certificate"
"""The name of a ``ClientCertificate`` in the state of a request's scope."""


class HttpServer:
    """Serves one application."""

    def __init__(
        self, app: Starlette, leave: Callable[[float], object], tls: tuple[Path, Path] | None = None,
        clients: Path | None = None,
    ) -> None:  # fmt: skip
        """``leave`` is called with ``DRAIN_S`` when the server begins to close. ``tls``: the files of the certificate
        and of its key, which can be used; None: plain HTTP. ``clients``: the file of the authority whose certificates
        clients may show; one of another authority, or one that has ended, ends the handshake."""
        self._app, self._leave, self._tls, self._clients = app, leave, tls, clients
        self._server: _Embedded | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port (``port`` 0: any free one).

        :raises TransportError: the address can't be used; names it, the key, and what to do.
        """
        listener = listening_socket(host, port, "HTTP", "[http]")
        certificate, key = (None, None) if self._tls is None else self._tls
        config = uvicorn.Config(
            self._app, ssl_certfile=certificate, ssl_keyfile=key,
            loop="none", http=_Connection, ws="none", lifespan="off", interface="asgi3",
            log_config=None, log_level="warning", access_log=False, proxy_headers=False, server_header=False,
            date_header=False, limit_concurrency=MAX_CONNECTIONS, timeout_keep_alive=30,
            timeout_graceful_shutdown=int(DRAIN_S) + 1, h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        )  # fmt: skip
        if self._clients is not None:
            _ask_for_certificates(config, self._clients)
        server = self._server = _Embedded(config)
        self._task = asyncio.create_task(server.serve(sockets=[listener]), name="http")
        listening = asyncio.create_task(server.listening.wait())
        await asyncio.wait((self._task, listening), return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()
        if self._task.done():
            listener.close()
            self._task.result()
            raise TransportError(f"the HTTP server on {host}:{port} ended before it listened")
        bound: int = listener.getsockname()[1]
        return bound

    def cut(self, client: tuple[str, int]) -> None:
        """Abort the connection of a client at this address, whatever waits to be sent to it."""
        if self._server is not None:
            for connection in list(self._server.server_state.connections):
                if isinstance(connection, _Connection) and connection.client == client:
                    # Without it the system would go on for minutes to offer the rest to a client that takes nothing.
                    connection.transport.get_extra_info("socket").setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                    )
                    connection.transport.abort()

    async def close(self) -> None:
        """End streams, let requests finish, stop. Idempotent."""
        task, self._task = self._task, None
        if task is None or self._server is None:
            return
        self._leave(DRAIN_S)
        self._server.stopping.set()
        await task


def _ask_for_certificates(config: uvicorn.Config, authority: Path) -> None:
    """Have clients asked for a certificate. No session is resumed, so each connection proves it anew."""
    config.load()
    assert config.ssl is not None, "only a server with TLS asks for certificates"
    config.ssl.load_verify_locations(authority)
    config.ssl.verify_mode = ssl.CERT_OPTIONAL
    config.ssl.verify_flags |= ssl.VERIFY_X509_STRICT
    config.ssl.options |= ssl.OP_NO_TICKET
    config.ssl.num_tickets = 0


def _shown_certificate(transport: asyncio.Transport) -> ClientCertificate | None:
    tls = transport.get_extra_info("ssl_object")
    if tls is None or not tls.getpeercert():
        return None
    from meshnode.links.tls import proved  # a server without certificates of clients does without it

    names, ends_utc_ns = proved(tls)
    return ClientCertificate(tuple(names), ends_utc_ns, time.monotonic())


class _Embedded(uvicorn.Server):
    """A uvicorn that leaves signals and the event loop to its host."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening, self.stopping = asyncio.Event(), asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Let :meth:`HttpServer.start` know that it listens."""
        await super().startup(sockets)
        self.listening.set()

    async def main_loop(self) -> None:
        """Sleep until told to stop: dates are written by the guard, limits checked by the protocol."""
        await self.stopping.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the process."""
        yield


class _Connection(H11Protocol):
    """A connection that makes silent ones give way: uvicorn bounds neither the time before a first request nor the time
    that its head takes."""

    asked_s = 0.0
    """When it was opened or its last request was answered, on the event loop's clock."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Close the longest silent ones, if there are too many."""
        super().connection_made(transport)
        self.asked_s = self.loop.time()
        shown = _shown_certificate(transport)
        if shown is not None:
            self.app_state = {**self.app_state, CLIENT_CERTIFICATE: shown}
        over = len(self.connections) - MAX_CONNECTIONS + 1  # the last place is for those that are told to come back
        if over <= 0:
            return
        others = (connection for connection in self.connections if isinstance(connection, _Connection))
        silent = [connection for connection in others if connection.is_silent(self.asked_s)]
        for connection in sorted(silent, key=lambda connection: connection.asked_s)[:over]:
            self.connections.discard(connection)
            connection.transport.abort()

    def on_response_complete(self) -> None:
        """Count its silence from now on."""
        self.asked_s = self.loop.time()
        super().on_response_complete()

    def is_silent(self, now_s: float) -> bool:
        """Whether it has made no request for ``SILENT_S``."""
        waits = getattr(self.cycle, "response_complete", True)  # there is no cycle before the first request
        return bool(waits) and now_s - self.asked_s >= SILENT_S
