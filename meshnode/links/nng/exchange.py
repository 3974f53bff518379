"""Exchanges with the relay: one request and one response on a connection that the node opened.

Invariants:
- a request is sent at most once for each call. When it fails, nobody knows whether it was handled, so requests have to
  be idempotent;
- a response is never taken for another request's;
- one identity can take neither all connections to a relay nor all of its threads;
- a relay that is not who it should be gets nothing, and is not dialled again for ``REFUSAL_MEMORY_NS``.
"""

import logging
import threading
import time

from meshnode.links.names import NoConnection, is_name
from meshnode.links.nng.connections import Connections
from meshnode.links.nng.contract import (
    Handshake,
    ReplyContext,
    RequestSocket,
    SocketLibrary,
    Watch,
    addresses_of,
    lasting_failure,
    no_connection,
)
from meshnode.links.nng.requesters import RequesterPipes
from meshnode.links.peer import identify, url_of
from meshnode.links.transport import Address, Handler
from protocols.base.errors import BoundExceeded, TransportError
from protocols.base.ids import MeshName, NodeId, PeerIdentity, Role
from protocols.base.limits import DIAL_TIMEOUT_NS, MAX_EXCHANGE_BYTES, REFUSAL_MEMORY_NS, SECOND

_log = logging.getLogger(__name__)

_CHECK_S = 0.4
"""How often a dial in progress is checked for a failure that repeating can't mend."""
_SWEEP_S = 2.0
"""How often pipes are compared with the kernel's connections."""
_MIN_REQUESTS = 2
"""Requests of one identity that are handled at a time, at least: a node that gave up waiting asks again while the relay
still handles its last request."""
_LINGER_S = 0.1
"""An answer is handed over in steps on the library's threads: a socket closed at once would often lose the last one."""


class RelayRequester:
    """See ``Requester``."""

    def __init__(
        self, library: SocketLibrary, address: Address, mesh: MeshName, role: Role, node: NodeId | None
    ) -> None:
        self._library = library
        self._address = address
        self._mesh = mesh
        self._role = role
        self._node = node
        self._one = threading.Lock()
        self._changed = threading.Condition()
        self._sock: RequestSocket | None = None
        self._pipe: int | None = None
        self._refused = ""
        self._refused_until = 0.0
        self._closed = False
        self._addresses: list[Address] = []  # those still to be tried, the current one first
        self._patience_s = 0.0
        self._good: Address | None = None
        url_of(address)
        if not is_name(address.host):  # a name is looked up by the first request, which may wait for it
            self._addresses = [address]
            self._dial()

    def request(self, frame: bytes, timeout_s: float) -> bytes:
        """Send one request and wait for its response; see ``Requester.request``."""
        if len(frame) > MAX_EXCHANGE_BYTES:
            raise BoundExceeded(f"a request of {len(frame)} bytes is larger than {MAX_EXCHANGE_BYTES}: split it")
        deadline = time.monotonic() + timeout_s
        if not self._one.acquire(timeout=timeout_s):
            raise TransportError(f"the request before this one to {self._address} is still waiting: ask one at a time")
        try:
            sock = self._connected(deadline, timeout_s)
            try:
                pipe = self._pipe
                return sock.ask(
                    frame, max(0.001, deadline - time.monotonic()), lambda: self._pipe != pipe or self._closed
                )
            except TransportError:
                self._drop()  # NNG may not know that the connection is dead: the next request dials again
                raise
        finally:
            self._one.release()

    def close(self) -> None:
        """Close the socket; see ``Requester.close``."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._drop()

    def _connected(self, deadline: float, timeout_s: float) -> RequestSocket:
        tried_s = time.monotonic()
        while True:
            with self._changed:
                if self._closed:
                    raise TransportError(f"the connection to {self._address} was closed here: open a new one")
                sock, refused, pipe = self._sock, self._refused, self._pipe
            if refused:
                self._drop()
                has_more = is_name(self._address.host) and bool(self._addresses)
                if not has_more and time.monotonic() < self._refused_until:
                    raise TransportError(f"relay {self._address} {refused}")
            if sock is None or refused:
                if not self._addresses:
                    self._look_up(deadline, timeout_s)
                self._dial()
                tried_s = time.monotonic()
                continue
            if pipe is not None:
                return sock
            with self._changed:
                left_s = deadline - time.monotonic()
                self._changed.wait_for(
                    lambda: self._pipe is not None or bool(self._refused) or self._closed,
                    min(max(0.0, left_s), _CHECK_S),
                )
                if self._pipe is not None or self._refused or self._closed:
                    continue
            counters = sock.counters()
            if len(self._addresses) > 1 and self._is_in_vain(counters, tried_s):
                self._drop()
                continue
            if (failure := lasting_failure(counters)) is not None:
                self._refuse(f"can't be used: {failure}")
            elif time.monotonic() >= deadline:
                raise TransportError(no_connection(self._address, timeout_s, counters))

    def _look_up(self, deadline: float, timeout_s: float) -> None:
        """Find the addresses of the relay anew; the one that was good last comes first."""
        left_s = max(0.0, deadline - time.monotonic())
        try:
            found = addresses_of(self._address, left_s, lambda: not self._closed)
        except NoConnection as error:
            raise TransportError(f"no connection to {self._address} within {timeout_s:g} s ({error})") from error
        self._addresses = sorted(found, key=lambda address: address != self._good)
        self._patience_s = max(_CHECK_S, left_s / (len(found) + 1))

    def _is_in_vain(self, counters: dict[str, int], tried_s: float) -> bool:
        """Whether to try the next address: nothing answers at this one, or somebody else does."""
        failed = any(counters.get(kind) for kind in ("refused", "disconnect", "other", "auth", "proto"))
        return failed or time.monotonic() - tried_s >= self._patience_s

    def _dial(self) -> None:
        with self._changed:
            self._refused, self._pipe = "", None
        address = self._addresses[0]
        sock = self._library.request(address, Watch(self._judge, self._connected_pipe, self._removed_pipe))
        with self._changed:
            if not self._closed:
                self._sock = sock
                return
        sock.close()

    def _drop(self) -> None:
        """Close the socket. The next one goes to the next address; after the last one, a name is looked up again."""
        with self._changed:
            sock, self._sock = self._sock, None
            if sock is not None and is_name(self._address.host):
                self._addresses = self._addresses[1:] if self._pipe is None else []
        if sock is not None:
            sock.close()

    def _refuse(self, reason: str) -> None:
        with self._changed:
            self._refused, self._refused_until = reason, time.monotonic() + REFUSAL_MEMORY_NS / SECOND
            self._changed.notify_all()

    def _judge(self, handshake: Handshake) -> bool:
        if self._refused:
            return False
        identity, reason = identify(handshake.names, self._mesh)
        if identity is not None and identity.role is not self._role:
            reason = (
                f"its certificate is of role {identity.role.value!r}, {self._role.value!r} is needed: check the address"
            )
        elif identity is not None and self._node is not None and identity.node != self._node:
            reason = f"it is {identity.node!r}, {self._node!r} is expected: check the address"
        if reason:
            self._refuse(f"is refused: {reason}")
        return not reason

    def _connected_pipe(self, pipe: int) -> None:
        with self._changed:
            self._pipe = pipe
            self._good = self._addresses[0] if self._addresses else None
            self._changed.notify_all()

    def _removed_pipe(self, pipe: int) -> None:
        with self._changed:
            if self._pipe == pipe:
                self._pipe = None


class RelayResponder:
    """See ``Responder``; ``port`` is where it listens."""

    def __init__(
        self, library: SocketLibrary, host: str, port: int, mesh: MeshName, handler: Handler, workers: int
    ) -> None:
        self._mesh = mesh
        self._handler = handler
        self._pipes = RequesterPipes(max(_MIN_REQUESTS, workers // 4))
        self._lock = threading.Lock()
        self._busy: set[ReplyContext] = set()
        self._answered_at = 0.0
        self._look = threading.Event()
        self._closing = threading.Event()
        self._closed = threading.Event()
        self._sock = library.reply(host, port, Watch(self._judge, lambda pipe: None, self._pipes.removed))
        self.port = self._sock.port
        self._contexts = [self._sock.context() for _ in range(workers)]
        self._threads = [
            threading.Thread(target=self._serve, args=(context,), name=f"relay-{number}", daemon=True)
            for number, context in enumerate(self._contexts)
        ]
        self._threads.append(threading.Thread(target=self._sweep, name="relay-sweep", daemon=True))
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Close the socket; see ``Responder.close``."""
        with self._lock:
            first = not self._closing.is_set()
            self._closing.set()
            self._look.set()
            idle = [context for context in self._contexts if context not in self._busy]
        if not first:
            self._closed.wait()
            return
        for context in idle:
            context.close()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        time.sleep(max(0.0, self._answered_at + _LINGER_S - time.monotonic()))
        self._sock.close()
        self._closed.set()

    def statistics(self) -> dict[str, int]:
        """See :meth:`RequesterPipes.statistics`."""
        return self._pipes.statistics()

    def _judge(self, handshake: Handshake) -> bool:
        identity, reason = identify(handshake.names, self._mesh)
        remote = handshake.host, handshake.port
        if identity is None or self._closing.is_set() or not self._admit(handshake.pipe, identity, remote):
            _log.info(
                "a requester at %s is refused: %s",
                handshake.host,
                reason or "too many connections, or it did not take its answers",
            )
            return False
        return True

    def _admit(self, pipe: int, identity: PeerIdentity, remote: tuple[str, int]) -> bool:
        admitted = self._pipes.admit(pipe, identity, remote, time.monotonic_ns())
        if self._pipes.has_given_way:
            self._look.set()  # callbacks of the library may not close pipes themselves
        return admitted

    def _serve(self, context: ReplyContext) -> None:
        while not self._closing.is_set() and (received := context.receive()) is not None:
            pipe, frame = received
            with self._lock:
                if self._closing.is_set():
                    return  # it was idle for close(), which closes the context: the requester asks again
                self._busy.add(context)
            peer = self._pipes.begin(pipe)
            try:
                if peer is not None:
                    answer = self._answer(peer, frame)
                    if answer is not None and context.reply(answer):
                        self._answered_at = time.monotonic()
                    elif answer is not None:
                        self._pipes.not_taken(pipe, time.monotonic_ns())
                        self._look.set()
                elif self._pipes.has_given_way:
                    self._look.set()
            finally:
                if peer is not None:
                    self._pipes.ended(pipe, peer)
                with self._lock:
                    self._busy.discard(context)

    def _answer(self, peer: PeerIdentity, frame: bytes) -> bytes | None:
        try:
            return self._handler(peer, frame)
        except Exception:  # noqa: BLE001 -- one bad request must not end the relay
            _log.exception("a request of %s failed in its handler: it gets no answer", peer)
            return None
        finally:
            self._pipes.handled(peer)

    def _sweep(self) -> None:
        connections = Connections(self.port, DIAL_TIMEOUT_NS)
        compared_at = time.monotonic()
        while not self._closing.is_set():
            self._look.wait(_SWEEP_S)
            self._look.clear()
            for pipe in self._pipes.to_close(time.monotonic_ns()):
                self._sock.close_pipe(pipe)
            if time.monotonic() - compared_at >= _SWEEP_S and not self._closing.is_set():
                compared_at = time.monotonic()
                pipes = self._pipes.remotes()
                for remote in connections.look(pipes, time.monotonic_ns()).vanished:
                    self._sock.close_pipe(pipes[remote])
