"""Connections of the express links: TLS on bytes in memory, SP headers, then frames in one direction.

Inside TLS each side sends ``00 'S' 'P' 00 <protocol:u16> 00 00``, then a PUSH side sends
``<length:u64><payload>`` and a PULL side sends nothing. That is all of NNG's wire.

TLS works on memory and not on the socket for three reasons. One ``recv`` feeds many records; OpenSSL would need two
system calls for each, and a third to learn that there is no more, which was measured as 3.5 of 19 µs one way. TLS never
wants to write before it can read. And OpenSSL swallows key updates and empty records in a loop of its own; a peer that
floods us with them gets no further than the bytes of one turn.

Invariants:
- a connection belongs to the I/O thread; only an open lane is used by other threads too, under its lock;
- a peer makes us hold no more than the bytes that came from it, whatever a length claims.
"""

import logging
import socket
import ssl
import struct
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from meshnode.links.peer import identify
from meshnode.links.tls import Contexts, FailureKind, explain, proved
from meshnode.links.transport import OutgoingLane, TransportObserver
from protocols.base.ids import MeshName, PeerIdentity
from protocols.base.limits import MAX_FRAME_BYTES, MS

_log = logging.getLogger(__name__)

PUSH0, PULL0 = 0x0050, 0x0051
LENGTH = struct.Struct(">Q")
NET_BYTES = 64 * 1024
"""The most bytes taken from the kernel at once. OpenSSL's memory buffer of a connection grows to about this and
stays."""
PLAIN_BYTES = 32 * 1024
"""Room for one TLS record (16 KiB) and the rest of the one before."""
TURN_READS = 4
"""How often the pipes of one identity receive before the others get their turn …"""
TURN_FRAMES = 64
"""… how many frames of them are handed over, because a frame of two bytes costs as much as one of a kilobyte …"""
TURN_NS = MS // 2
"""… and for how long. A frame that has begun is finished."""
_ALL = 1 << 30


class Closed(Exception):
    """The connection is over; the text says why."""


class HandshakeFailed(Closed):
    """The connection is over before its first frame."""

    def __init__(self, kind: FailureKind, why: str) -> None:
        super().__init__(why)
        self.kind = kind


class PeerTurnedAway(Closed):
    """The peer proved who it is, but may not have a link."""


class Turn:
    """What is left of the turn of one identity. All its pipes share it, so that more pipes don't get more."""

    __slots__ = ("ends_ns", "frames_left", "pipes", "reads_left", "round", "waiting")

    def __init__(self) -> None:
        self.pipes = 0
        """How many open pipes the identity has."""
        self.waiting: deque[Connection] = deque()
        """Those that hold frames of an earlier round, or have their turn after such a one."""
        self.round = 0
        self.frames_left = self.reads_left = 0
        self.ends_ns = 0
        """0: no frame was handed over in this round."""

    def begin(self, number: int) -> None:
        """Begin the turn of a round, if it has not begun."""
        if self.round != number:
            self.round, self.frames_left, self.reads_left, self.ends_ns = number, TURN_FRAMES, TURN_READS, 0

    def is_over(self, began_ns: int) -> bool:
        """Note that a frame was handed over, which began at ``began_ns``. Returns whether it was the last one."""
        if not self.ends_ns:
            self.ends_ns = began_ns + TURN_NS
        self.frames_left -= 1
        return self.frames_left <= 0 or began_ns > self.ends_ns


class Hub(Protocol):
    """What connections, the inbox and dials ask of the links they belong to."""

    observer: TransportObserver
    mesh: MeshName
    contexts: Contexts
    net: memoryview
    plain: memoryview
    silent: bool
    oversize: int
    round: int
    """The number of the current look at all connections."""
    began_ns: int
    """When the last frame was handed over."""

    def post(self, task: Callable[[], None]) -> None:
        """Have the I/O thread run ``task``. Tasks keep their order. Any thread may call it."""

    def watch(self, connection: "Connection", mask: int) -> None:
        """Wait for these events of a connection. Once it is open, call this under its lock."""

    def received(self, pipe: int, frame: bytes | bytearray) -> None:
        """Hand one frame over to the observer."""

    def guarded(self, task: Callable[[], None]) -> None:
        """Give a notice. An error of the observer is logged."""

    def pipe_opened(self, inbound: "Inbound") -> None:
        """Note and announce an open pipe. :raises Closed: there are too many."""

    def postpone(self, inbound: "Inbound") -> None:
        """Give a pipe that holds frames another turn in the next round, without waiting for an event."""

    def finish(self, connection: "Connection", end: Closed | None) -> None:
        """Close a connection. Without an ``end`` nobody is told. I/O thread only."""

    def linger(self, connection: "Connection") -> None:
        """Give a connection a moment to send the rest of its last frame. I/O thread only."""

    def shake(self, connection: "Connection") -> None:
        """Have the thread for handshakes take a step, then call :meth:`Connection.advanced`. I/O thread only."""

    def adopt(self, connection: "Connection", mask: int) -> None:
        """Wait for these events of a new connection, until its deadline. I/O thread only."""

    def look_after(self, lane: Any) -> None:
        """Look at a lane every few milliseconds until there is news of it. I/O thread only."""

    def sweep_by(self, at_ns: int) -> None:
        """Check all deadlines at that instant or earlier. I/O thread only."""


class Connection:
    """One TCP connection with its handshake, its SP headers and its frames."""

    def __init__(self, hub: Hub, mine: int, theirs: int) -> None:
        self.hub = hub
        self.lock = threading.Lock()
        self.descriptor = -1
        self.mask = 0
        self.host = ""
        self.identity: PeerIdentity | None = None
        self.secured = self.open = self.finished = False
        self.away = False
        """The thread for handshakes has it, so that no event of it is waited for."""
        self.owes = False
        """Nobody has paid for its handshake yet."""
        self._obstacle: Exception | None = None
        """Why the last step did not end the TLS handshake."""
        self.shared: Turn | None = None
        """The turn of its identity; only open pipes into our inbox have one."""
        self.deadline_ns = 0
        """A monotonic instant at which it has to have ended; 0: there is none."""
        self._mine, self._theirs = _sp_header(mine), _sp_header(theirs)
        self._header = b""
        self._refusal: PeerTurnedAway | None = None
        self._sock: socket.socket
        self._tls: ssl.SSLObject | None = None
        self._read: Any

    @property
    def label(self) -> str:
        """The place of the peer, and its identity once that is proved."""
        return f"{self.identity.role.value} {self.identity.node} at {self._place}" if self.identity else self._place

    @property
    def _place(self) -> str:
        return self.host

    def is_vouched_for(self, contexts: Contexts) -> bool:
        """Whether the authority of ``contexts`` signed the certificate of the peer."""
        with self.lock:
            certificate = None if self._tls is None or not self.open else self._tls.getpeercert(True)
        return certificate is not None and contexts.vouch_for(certificate)

    def _outgoing_lane(self) -> OutgoingLane | None:
        return None

    def overdue(self) -> Closed:
        """The end of a connection whose deadline has passed."""
        raise NotImplementedError

    def turn(self, events: int) -> None:
        """Do what ``events`` allow. :raises Closed: the connection is over."""
        raise NotImplementedError

    def advance(self) -> None:
        """Go on with the TLS handshake as far as the bytes allow. It takes up to 1.5 ms. Handshake thread only."""
        assert self._tls is not None, "TLS has begun"
        try:
            self._tls.do_handshake()
        except Exception as error:  # noqa: BLE001 - the I/O thread raises it again, where all errors of a link end
            self._obstacle = error

    def advanced(self) -> None:
        """Use what the last step came to. :raises Closed: the handshake failed."""
        raise NotImplementedError

    def attach(self, sock: socket.socket) -> None:
        """Take over this non-blocking socket."""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # heartbeats notice a vanished neighbour earlier; this frees the descriptor when nobody listens to them
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        self._sock, self.descriptor = sock, sock.fileno()
        self._recv_into = sock.recv_into

    def close_socket(self) -> None:
        """Close the socket, and so free its descriptor."""
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
        """Give TLS the bytes that have come, and return how many. :raises Closed: the connection is over."""
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
        """Judge the peer once TLS has proved it, and exchange headers. True: it is done. :raises Closed: it failed."""
        try:
            if not self.secured:
                obstacle, self._obstacle = self._obstacle, None
                if obstacle is not None:
                    raise obstacle
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
        """Send the bytes that TLS has made. False: the kernel did not take all, and the connection can't be used any
        more."""
        flight = self._encrypted()
        try:
            return not flight or self._sock.send(flight) == len(flight)
        except OSError:
            return False  # what the peer sent before it went is read next, and says why

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
        self.owes = True
        self.leaving = False
        """It will be closed here, and none of its frames is handed over any more."""
        self._rest = b""
        """The first bytes of a length, up to seven, or what was left when its turn was over."""
        self._held_up = False
        """Its turn was over before all that had come was handed over."""
        self._partial: bytearray | None = None
        """The bytes of a frame that have come. It grows by the bytes that come and never by what a length claims."""
        self._missing = 0

    @property
    def mute(self) -> bool:
        """Whether it has sent nothing yet. TLS costs memory only after that."""
        return self._tls is None

    def overdue(self) -> Closed:
        """The end of a connection whose deadline has passed."""
        if self.owes and self.away:
            return HandshakeFailed(FailureKind.CROWDED, "too many connections come in from its host")
        return self._refusal or HandshakeFailed(FailureKind.MUTE, "it did not finish the handshake in time")

    def turn(self, events: int) -> None:
        """Hand over the frames that have come. :raises Closed: the connection is over."""
        if self._refusal is not None:
            raise self._refusal
        tls = self._tls or self._begin(self.hub.contexts.server, None)
        shared = self.shared
        if shared is not None:
            shared.begin(self.hub.round)
            if self._held_up:
                self._go_on()
        while not self._held_up:
            if shared is not None:
                if not shared.reads_left:
                    return
                shared.reads_left -= 1
            got = self._fetch()
            if not got:
                return
            if not self.secured:
                self.hub.shake(self)
                return
            if not self.open and not self._enter(tls):
                return
            self._receive()
            if self._outgoing.pending:
                self._answer_key_updates()
            if got < NET_BYTES:
                break  # the kernel has no more: asking again would cost a system call for each message
        if self._held_up:
            self.hub.postpone(self)

    def advanced(self) -> None:
        """Use what the last step came to. :raises Closed: the handshake failed."""
        assert self._tls is not None, "it has taken a step"
        if self._enter(self._tls):
            self._receive()
            if self._outgoing.pending:
                self._answer_key_updates()
            if self._held_up:
                self.hub.postpone(self)

    def _enter(self, tls: ssl.SSLObject) -> bool:
        """Go on with the handshake. True: the pipe is open. :raises Closed: the handshake failed."""
        if not self._shake_hands(tls):
            return False
        if self._refusal is not None:
            # if it were closed now, libnng would take that for a failed dial and repeat it ten times a second: wait
            self.hub.watch(self, 0)
            self.hub.linger(self)
            return False
        self.open = True
        self.hub.pipe_opened(self)
        assert self.shared is not None, "an open pipe has one"
        self.shared.begin(self.hub.round)
        return True

    def _answer_key_updates(self) -> None:
        if not self._hand_over():
            raise Closed("it asks for key updates and does not read the answers")

    def _go_on(self) -> None:
        """Hand over what was left when the turn before was over."""
        self._held_up = False
        rest, self._rest = self._rest, b""
        self._frames(memoryview(rest), len(rest))
        if not self._held_up and self._incoming.pending:
            self._receive()

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
                if self._held_up or not incoming.pending:
                    return
        except ssl.SSLWantReadError:
            return
        except ssl.SSLError as error:
            raise Closed(f"TLS failed: {explain(error)[1]}") from error

    def _frames(self, plain: memoryview, end: int) -> None:
        """Hand over the frames in ``plain`` up to ``end``, until the turn is over."""
        at, shared = 0, self.shared
        assert shared is not None, "an open pipe has one"
        partial = self._partial
        if partial is not None:
            at = min(self._missing, end)
            partial += plain[:at]
            self._missing -= at
            if self._missing:
                return
            self._partial = None
            self._hand_in(partial, shared)
        while end - at >= 8 and not self.leaving and not self._held_up:
            (size,) = LENGTH.unpack_from(plain, at)
            if size > MAX_FRAME_BYTES:
                self.hub.oversize += 1
                raise Closed(f"it announced a frame of {size} bytes, more than {MAX_FRAME_BYTES}")
            start, at = at + 8, at + 8 + size
            if at > end:
                self._partial, self._missing = bytearray(plain[start:end]), at - end
                return
            self._hand_in(bytes(plain[start:at]), shared)
        if at < end:
            self._rest = bytes(plain[at:end])

    def _hand_in(self, frame: bytes | bytearray, shared: Turn) -> None:
        hub = self.hub
        hub.received(self.pipe, frame)
        self._held_up = shared.is_over(hub.began_ns)


def _sp_header(protocol: int) -> bytes:
    return struct.pack(">4sHH", b"\0SP\0", protocol, 0)
