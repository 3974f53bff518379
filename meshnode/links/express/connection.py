"""Connections of the express links: TLS on bytes in memory, SP headers, then frames, one way only.

Inside TLS each side sends ``00 'S' 'P' 00 <protocol:u16> 00 00``, then a PUSH side sends
``<length:u64><payload>`` and a PULL side nothing: that is all of NNG's wire.

Why TLS works on memory and not on the socket: one ``recv`` feeds many records (OpenSSL would take two system calls for
each, and a third to learn that there is no more; measured, 3.5 of 19 µs one way); it never wants to write before it can
read; and a peer that floods us with key updates or empty records, which OpenSSL swallows in a loop of its own, gets no
further than the bytes of one turn.

Invariants:
- a connection belongs to the I/O thread; only an open lane is used by others too, under its lock;
- nothing is held of a peer beyond the bytes that came from it, whatever a length claims.
"""

import logging
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from typing import Any, Protocol

from meshnode.links.peer import identify
from meshnode.links.tls import Contexts, FailureKind, explain, proved
from meshnode.links.transport import OutgoingLane, TransportObserver
from protocols.base.ids import MeshName, PeerIdentity
from protocols.base.limits import MAX_FRAME_BYTES

_log = logging.getLogger(__name__)

PUSH0, PULL0 = 0x0050, 0x0051
LENGTH = struct.Struct(">Q")
NET_BYTES = 64 * 1024
"""Taken from the kernel at once; OpenSSL's memory buffer of a connection grows to about this and stays."""
PLAIN_BYTES = 32 * 1024
"""Room for one TLS record (16 KiB) and a rest."""
_TURN_READS = 4
"""Receives of one connection before the others get their turn."""
_ALL = 1 << 30


class Closed(Exception):
    """The connection is over; the text says why."""


class HandshakeFailed(Closed):
    """It is over before it began."""

    def __init__(self, kind: FailureKind, why: str) -> None:
        super().__init__(why)
        self.kind = kind


class PeerTurnedAway(Closed):
    """The peer proved who it is, and may not have a link."""


class Hub(Protocol):
    """What connections, the inbox and dials ask of the links they belong to."""

    observer: TransportObserver
    mesh: MeshName
    contexts: Contexts
    net: memoryview
    plain: memoryview
    silent: bool
    oversize: int

    def post(self, task: Callable[[], None]) -> None:
        """Have the I/O thread run ``task``, in order."""

    def watch(self, connection: "Connection", mask: int) -> None:
        """Wait for these events of a connection. Under its lock once it is open."""

    def received(self, pipe: int, frame: bytes | bytearray) -> None:
        """Hand one frame over."""

    def guarded(self, task: Callable[[], None]) -> None:
        """Give a notice; what the observer raises is logged."""

    def pipe_opened(self, inbound: "Inbound") -> None:
        """Note and announce it. :raises Closed: there are too many."""

    def finish(self, connection: "Connection", end: Closed | None) -> None:
        """Close it; without an ``end`` nobody is told. I/O thread."""

    def linger(self, connection: "Connection") -> None:
        """Give what is left of its last frame a moment. I/O thread."""

    def adopt(self, connection: "Connection", mask: int) -> None:
        """Wait for these events of a new connection, until its deadline. I/O thread."""

    def sweep_by(self, at_ns: int) -> None:
        """Look at deadlines no later than then. I/O thread."""


class Connection:
    """One TCP connection: handshake, SP headers, then frames."""

    def __init__(self, hub: Hub, mine: int, theirs: int) -> None:
        self.hub = hub
        self.lock = threading.Lock()
        self.descriptor = -1
        self.mask = 0
        self.host = ""
        self.identity: PeerIdentity | None = None
        self.secured = self.open = self.finished = False
        self.deadline_ns = 0
        """Monotonic; 0: none."""
        self._mine, self._theirs = _sp_header(mine), _sp_header(theirs)
        self._header = b""
        self._refusal: PeerTurnedAway | None = None
        self._sock: socket.socket
        self._tls: ssl.SSLObject | None = None
        self._read: Any

    @property
    def label(self) -> str:
        """Where the peer is, and who, once that is proved."""
        return f"{self.identity.role.value} {self.identity.node} at {self._place}" if self.identity else self._place

    @property
    def _place(self) -> str:
        return self.host

    def _outgoing_lane(self) -> OutgoingLane | None:
        return None

    def overdue(self) -> Closed:
        """What to say when the deadline has passed."""
        raise NotImplementedError

    def turn(self, events: int) -> None:
        """Go on with what ``events`` allow. :raises Closed: at the end."""
        raise NotImplementedError

    def attach(self, sock: socket.socket) -> None:
        """Use this non-blocking socket."""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # heartbeats see a vanished neighbour first; this frees the descriptor when nobody listens to them
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        self._sock, self.descriptor = sock, sock.fileno()
        self._recv_into = sock.recv_into

    def close_socket(self) -> None:
        """Give the descriptor back."""
        if self.descriptor >= 0:
            self._sock.close()

    def _begin(self, context: ssl.SSLContext, server_name: str | None) -> ssl.SSLObject:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = tls = context.wrap_bio(incoming, outgoing, server_name is None, server_name)
        self._incoming, self._outgoing = incoming, outgoing
        self._feed, self._encrypted = incoming.write, outgoing.read
        self._read, self._encrypt = tls.read, tls.write
        return tls

    def _fetch(self) -> int:
        """Give TLS what has come; 0: nothing. :raises Closed: the connection is over."""
        net = self.hub.net
        try:
            got = self._recv_into(net)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._ended(f"the connection failed ({error.strerror or error})") from error
        if not got:
            raise self._ended(f"{self._place} closed the connection")
        self._feed(net[:got])
        return got

    def _ended(self, why: str) -> Closed:
        if self.open:
            return Closed(why)
        return HandshakeFailed(FailureKind.HUNG_UP, f"it hung up during the handshake ({why})")

    def _shake_hands(self, tls: ssl.SSLObject) -> bool:
        """Go on as far as what has come allows. True: done. :raises Closed: when it failed."""
        try:
            if not self.secured:
                tls.do_handshake()
                self.secured = True
                self._judge(tls)
                if self._refusal is not None and self._outgoing_lane() is not None:
                    raise self._refusal
                tls.write(self._mine)
            while len(self._header) < len(self._theirs):
                piece = tls.read(len(self._theirs) - len(self._header))
                if not piece:
                    raise HandshakeFailed(FailureKind.HUNG_UP, "it hung up during the handshake")
                self._header += piece
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            kind, why = explain(error)
            raise HandshakeFailed(kind, f"the TLS handshake failed: {why}") from error
        finally:
            # Our part of the handshake, or the alert that tells the peer why not: at most 3 kB into an empty socket
            # buffer. If it is not taken whole, the deadline ends the handshake.
            self._hand_over()
        if self._header != self._theirs:
            raise HandshakeFailed(FailureKind.NOT_OURS, "it does not speak this protocol")
        return True

    def _hand_over(self) -> bool:
        """Send what TLS has to say. False: it was not taken whole, and the connection is of no more use."""
        flight = self._encrypted()
        try:
            return not flight or self._sock.send(flight) == len(flight)
        except OSError:
            return False  # what the peer sent before it went says why, and is read next

    def _judge(self, tls: ssl.SSLObject) -> None:
        names, not_after_utc_ns = proved(tls)
        self.identity, detail = identify(names, self.hub.mesh, not_after_utc_ns)
        try:
            reason = self.hub.observer.admit(self.identity, detail, self._outgoing_lane(), self.host)
        except Exception:  # noqa: BLE001 - a bug in the judge must not be an open door
            _log.exception("a handshake could not be judged: the peer is refused")
            reason = "internal error while its identity was checked"
        if self.identity is None or reason is not None:
            self._refusal = PeerTurnedAway(f"refused: {reason or detail}")


class Inbound(Connection):
    """A pipe into our inbox."""

    def __init__(self, hub: Hub, pipe: int, host: str) -> None:
        super().__init__(hub, PULL0, PUSH0)
        self.pipe, self.host = pipe, host
        self.leaving = False
        """It is about to be closed here: no more of it is handed over."""
        self._rest = b""
        """The first bytes of a length, up to seven."""
        self._partial: bytearray | None = None
        """What came of a frame. It grows by what comes and never by what a length claims."""
        self._missing = 0

    @property
    def mute(self) -> bool:
        """It has sent nothing; only then TLS costs memory."""
        return self._tls is None

    def overdue(self) -> Closed:
        """What to say when the deadline has passed."""
        return self._refusal or HandshakeFailed(FailureKind.MUTE, "it did not finish the handshake in time")

    def turn(self, events: int) -> None:
        """Hand over what has come. :raises Closed: at the end."""
        if self._refusal is not None:
            raise self._refusal
        tls = self._tls or self._begin(self.hub.contexts.server, None)
        for _ in range(_TURN_READS):
            got = self._fetch()
            if not got:
                return
            if not self.open:
                if not self._shake_hands(tls):
                    return
                if self._refusal is not None:
                    # libnng takes an end at this point for a failed dial and repeats it ten times a second: wait a bit
                    self.hub.watch(self, 0)
                    self.hub.linger(self)
                    return
                self.open = True
                self.hub.pipe_opened(self)
            self._receive()
            if self._outgoing.pending and not self._hand_over():
                raise Closed("it asks for key updates and does not read the answers")
            if got < NET_BYTES:
                return  # the kernel has no more: asking again would cost a system call for each message

    def _receive(self) -> None:
        read, plain, incoming = self._read, self.hub.plain, self._incoming
        try:
            while True:
                held = len(self._rest)
                got = read(_ALL, plain[held:]) if held else read(_ALL, plain)
                if not got:
                    raise Closed(f"{self.host} closed the connection")
                if held:
                    plain[:held] = self._rest
                    self._rest = b""
                self._frames(plain, held + got)
                if not incoming.pending:
                    return
        except ssl.SSLWantReadError:
            return
        except ssl.SSLError as error:
            raise Closed(f"TLS failed: {explain(error)[1]}") from error

    def _frames(self, plain: memoryview, end: int) -> None:
        at = 0
        partial = self._partial
        if partial is not None:
            at = min(self._missing, end)
            partial += plain[:at]
            self._missing -= at
            if self._missing:
                return
            self._partial = None
            self.hub.received(self.pipe, partial)
        while end - at >= 8 and not self.leaving:
            (size,) = LENGTH.unpack_from(plain, at)
            if size > MAX_FRAME_BYTES:
                self.hub.oversize += 1
                raise Closed(f"it announced a frame of {size} bytes, more than {MAX_FRAME_BYTES}")
            start, at = at + 8, at + 8 + size
            if at > end:
                self._partial, self._missing = bytearray(plain[start:end]), at - end
                return
            self.hub.received(self.pipe, bytes(plain[start:at]))
        if at < end:
            self._rest = bytes(plain[at:end])


def _sp_header(protocol: int) -> bytes:
    return struct.pack(">4sHH", b"\0SP\0", protocol, 0)
