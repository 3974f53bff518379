"""The gRPC server of a node: grpcio with its threads, beside the node's own event loop.

Invariants: everything that a client can make grow is bounded, connections and calls by the options below, messages by
``arrivals``, what takes long by ``patience``; while the node closes, streams end, requests get ``DRAIN_S`` to finish,
and only then are connections cut. No request of a web page gets in: browsers speak HTTP/2 only over TLS, and what does
not begin as HTTP/2 is hung up on. See docs/adr/0031.
"""

import asyncio
import concurrent.futures
from typing import Any, Final

import grpc

from meshnode.grpc.arrivals import MAX_MESSAGE_BYTES
from meshnode.grpc.methods import GrpcMethods
from meshnode.grpc.wire.messages import SERVICE
from meshnode.http.listening import listening_socket
from meshnode.http.server import DRAIN_S
from protocols.base.errors import TransportError

MAX_CALLS: Final = 128
"""At once; further ones are refused. Each has a thread."""
MAX_CONNECTIONS: Final = 128
"""As over HTTP; further ones are hung up on."""
IDLE_MS: Final = 60_000
"""Connections without a call for so long are closed, because they are few. Clients open them again unasked."""
HANDSHAKE_MS: Final = 5_000
"""A connection that has not begun to speak by then is closed."""
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
    ("grpc.max_concurrent_streams", 2 * MAX_CALLS),  # of one connection; a call beyond it gets no reason
    ("grpc.max_connection_idle_ms", IDLE_MS),
    ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
    ("grpc.so_reuseport", 0),  # or a second node would share the port, and get half of the calls
    ("grpc.http2.bdp_probe", 0),  # it lets megabytes of a message in before anybody takes it
)


class GrpcServer:
    """Serves the methods of one node on a loopback address."""

    def __init__(self, methods: GrpcMethods) -> None:
        self._methods = methods
        self._threads = concurrent.futures.ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="grpc")
        self._server: Any = None

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port (``port`` 0: any free one).

        :raises TransportError: the address can't be used; names it, the key, and what to do.
        """
        listener = listening_socket(host, port, "gRPC", "[grpc]")  # its errors say why, and the library's do not
        address, port = listener.getsockname()[:2]
        listener.close()
        where = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        server = grpc.server(self._threads, options=_OPTIONS, maximum_concurrent_rpcs=MAX_CALLS)
        handlers = grpc.method_handlers_generic_handler(SERVICE, self._methods.handlers())
        server.add_generic_rpc_handlers((handlers,))
        try:
            server.add_insecure_port(where)
        except RuntimeError as error:
            raise TransportError(
                f"gRPC can't listen on {where} ({error}): set [grpc] host to '127.0.0.1' and [grpc] port to a free one"
            ) from error
        server.start()
        self._server = server
        return int(port)

    async def close(self) -> None:
        """End streams, let requests finish, stop. Idempotent."""
        server, self._server = self._server, None
        if server is None:
            return
        stopped = server.stop(DRAIN_S + 1.0)
        self._methods.calls.leave()
        if not await asyncio.to_thread(stopped.wait, DRAIN_S):
            self._methods.calls.give_up()
            await asyncio.to_thread(stopped.wait)
        await asyncio.to_thread(self._threads.shutdown)
