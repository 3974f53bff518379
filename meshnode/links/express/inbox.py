"""The inbox of the express links. It listens, and holds newcomers until they have proved who they are or must go.

Invariants:
- newcomers are bounded in number and in time, and the host with the most of them makes room first;
- between two looks at open links it accepts at most ``_ACCEPTS`` connections;
- it rests when descriptors or memory have run out.

Everything but ``listen`` runs on the I/O thread.
"""

import errno
import itertools
import os
import select
import socket
import time
from collections import Counter

from meshnode.links.express.connection import Closed, HandshakeFailed, Hub, Inbound, Turn
from meshnode.links.express.expedited import expedite
from meshnode.links.peer import payer_of, plain_host
from meshnode.links.tls import FailureKind, Failures
from meshnode.links.transport import Address
from protocols.base.errors import TransportError
from protocols.base.ids import NodeId
from protocols.base.limits import DIAL_TIMEOUT_NS, MAX_NEIGHBOURS, MS
from protocols.base.time import NEVER

_MAX_INBOUND = 4 * MAX_NEIGHBOURS
"""The most open pipes: two for each neighbour, and as many again while those of restarted neighbours drain."""
_MAX_NEWCOMERS = 128
"""The most inbound connections that have not proved anything yet. Each has 5 s, so a flood must be answered by making
room."""
_HANDSHAKE_NS = DIAL_TIMEOUT_NS
_REST_NS = 200 * MS
"""The time without accepting after descriptors or memory ran out. The listener stays readable: to try at once would
spin."""
_ACCEPTS = 2
"""Connections accepted between two looks at open links. One takes up to 0.15 ms when another has to make room for
it. Those beyond wait in the backlog for the next look, which follows at once."""
_BACKLOG = 512
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Inbox:
    """The listener of one node, and the connections that came in."""

    def __init__(self, epoll: select.epoll, failures: Failures) -> None:
        self.descriptor = -1
        """The listener's descriptor; -1: it does not listen."""
        self.pipes: dict[int, Inbound] = {}
        """The open pipes by number."""
        self._turns: dict[NodeId, Turn] = {}
        self._epoll, self._failures = epoll, failures
        self._listener: socket.socket | None = None
        self._resting_until_ns = 0
        self._newcomers: dict[int, Inbound] = {}  # by descriptor
        self._next_pipe = itertools.count(1)

    def listen(self, address: Address) -> int:
        """Open the listener and return its port. :raises TransportError: names the address and the way out."""
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        both = address.host == "::" and socket.has_dualstack_ipv6()
        where = address.host, address.port
        try:
            listener = socket.create_server(where, family=family, backlog=_BACKLOG, dualstack_ipv6=both)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise TransportError(
                    f"{address} is in use by another program: stop it or configure another port"
                ) from error
            raise TransportError(
                f"can't listen on {address} ({os.strerror(error.errno or 0).lower()}): configure an address of this "
                "computer"
            ) from error
        listener.setblocking(False)
        self._listener, self.descriptor = listener, listener.fileno()
        self._epoll.register(listener.fileno(), select.EPOLLIN)
        return int(listener.getsockname()[1])

    def accept(self, hub: Hub) -> None:
        """Accept connections; they belong to ``hub``."""
        assert self._listener is not None, "it is readable"
        for _ in range(_ACCEPTS):
            try:
                sock, peer = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._rest(hub, error)
                    return
                continue  # the peer hung up before it was accepted
            if len(self.pipes) >= _MAX_INBOUND:
                sock.close()
                continue
            sock.setblocking(False)
            expedite(sock)  # it sends nothing but what confirms frames
            inbound = Inbound(hub, next(self._next_pipe), plain_host(peer[0].partition("%")[0]))
            try:
                inbound.attach(sock)
            except OSError:
                sock.close()
                continue
            if len(self._newcomers) >= _MAX_NEWCOMERS:
                self._make_room()
            self._newcomers[inbound.descriptor] = inbound
            inbound.deadline_ns = time.monotonic_ns() + _HANDSHAKE_NS
            hub.adopt(inbound, select.EPOLLIN)

    def opened(self, inbound: Inbound) -> None:
        """Note that a newcomer has proved who it is. :raises Closed: there are too many pipes."""
        self._newcomers.pop(inbound.descriptor, None)
        inbound.deadline_ns = 0
        if len(self.pipes) >= _MAX_INBOUND:
            raise Closed(f"there are {_MAX_INBOUND} inbound links already")
        self.pipes[inbound.pipe] = inbound
        assert inbound.identity is not None, "judged"
        inbound.shared = self._turns.setdefault(inbound.identity.node, Turn())
        inbound.shared.pipes += 1

    def left(self, inbound: Inbound) -> bool:
        """Note that a connection has ended. Returns whether it was an open pipe."""
        self._newcomers.pop(inbound.descriptor, None)
        if self.pipes.pop(inbound.pipe, None) is None:
            return False
        turn, identity = inbound.shared, inbound.identity
        assert turn is not None, "it was open"
        assert identity is not None, "it was open"
        turn.pipes -= 1
        if not turn.pipes:
            del self._turns[identity.node]
        return True

    def end_rest(self, now_ns: int) -> int:
        """Accept again once the rest is over. Returns when to call this next."""
        if not self._resting_until_ns:
            return NEVER
        if now_ns < self._resting_until_ns:
            return self._resting_until_ns
        self._resting_until_ns = 0
        self._epoll.register(self.descriptor, select.EPOLLIN)
        return NEVER

    def close(self) -> None:
        """Stop listening."""
        if self._listener is None:
            return
        if not self._resting_until_ns:
            self._epoll.unregister(self.descriptor)
        self._resting_until_ns = 0
        self.descriptor = -1
        self._listener.close()

    def _rest(self, hub: Hub, error: OSError) -> None:
        self._epoll.unregister(self.descriptor)
        self._resting_until_ns = time.monotonic_ns() + _REST_NS
        hub.sweep_by(self._resting_until_ns)
        way_out = "raise the limit of open files"
        self._failures.tell("accept", "newcomers", f"they can't be accepted ({error.strerror}): {way_out}")
        if self._newcomers:
            self._make_room()

    def _make_room(self) -> None:
        """End a newcomer of the host that has the most: the oldest that has sent nothing, or else the oldest."""
        busiest = Counter(payer_of(newcomer.host) for newcomer in self._newcomers.values()).most_common(1)[0][0]
        theirs = [newcomer for newcomer in self._newcomers.values() if payer_of(newcomer.host) == busiest]
        out = next((newcomer for newcomer in theirs if newcomer.mute), theirs[0])
        out.hub.finish(out, HandshakeFailed(FailureKind.CROWDED, "too many connections come in at once"))
