"""A lane of the express links: the dialled end of a connection. It sends a frame on the thread that hands it over.

Invariants:
- once it is open, its TLS object and the rest of a frame are used only under its lock, because OpenSSL allows one
  thread;
- a frame that was taken goes out whole before the next one is taken. The I/O thread sends the rest that the kernel did
  not take, and encrypts only as much of it as the kernel takes at once.
"""

import errno
import os
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable, Sequence

from meshnode.links.express.connection import LENGTH, PULL0, PUSH0, Closed, Connection, HandshakeFailed, Hub
from meshnode.links.express.expedited import expedite
from meshnode.links.tls import FailureKind, explain
from meshnode.links.transport import Address, OutgoingLane
from meshnode.links.unconfirmed import RECORD_BYTES, frames_in, unconfirmed_bytes
from protocols.base.errors import BoundExceeded
from protocols.base.ids import SERVER_NAME
from protocols.base.limits import MAX_FRAME_BYTES, MS
from protocols.links.flow import Flow, Sample

_CHUNK_BYTES = 64 * 1024
"""Bytes of a large frame that are encrypted and handed to the kernel at once."""
_HEAD_BYTES = 16_384 - LENGTH.size
"""Bytes of a large frame that share a TLS record with its length. No more of it is copied."""
_MAX_CONTROL_BYTES = 16 * 1024
"""The most bytes of answers to key updates that wait until the peer takes a frame."""
_RESET = struct.pack("ii", 1, 0)
"""The option by which closing a socket drops what it holds, and tells the peer so."""
LOOK_NS = 4 * MS
"""How often a lane is looked at that is full or measured. Each look is a system call of half a microsecond."""
_IN, _OUT = select.EPOLLIN, select.EPOLLOUT


class ExpressLane(Connection):
    """See ``OutgoingLane``. Fields below ``address`` belong to ``lock`` once it is open."""

    def __init__(self, hub: Hub, address: Address, greeting: Callable[[], bytes], timeout_s: float) -> None:
        super().__init__(hub, PUSH0, PULL0)
        self.address = address
        self.timeout_s = timeout_s
        self.closed = False
        self.frames_sent = self.bytes_sent = 0
        self._greeting = greeting
        self._connected = False
        self._unsent = memoryview(b"")
        """Bytes that are encrypted and that the kernel has not taken yet."""
        self._unencrypted = memoryview(b"")
        self._declined = self._notified = False
        self._failure = ""
        self.sample: Sample | None = None
        self.waits = self.watched = False
        self._flow = Flow()
        self._look_ns = self._look_bytes = 0
        """Before that instant, and before so many bytes were sent, nobody needs to look."""

    def _outgoing_lane(self) -> OutgoingLane | None:
        return self

    @property
    def _place(self) -> str:
        return str(self.address)

    def overdue(self) -> Closed:
        """The end of a lane whose deadline has passed."""
        if self.open:
            return Closed("closed here before it took all")
        if not self._connected:
            return Closed(f"no connection to {self.address} within {self.timeout_s:g} s (no answer: unreachable)")
        return HandshakeFailed(FailureKind.MUTE, f"no answer within {self.timeout_s:g} s: unreachable or mute")

    def take_over(self, sock: socket.socket, host: str) -> None:
        """Use this socket, which is connected to ``host`` or begins to. :raises OSError: it has ended already."""
        self.attach(sock)
        self.host = host

    def hurry(self) -> None:
        """See ``OutgoingLane``."""
        with self.lock:
            expedite(self._sock)

    def connect(self, sock: socket.socket, to: tuple[str, int]) -> None:
        """Begin to connect. Events tell how that went. :raises Closed: there is no route to the address."""
        self.take_over(sock, to[0])
        error = sock.connect_ex(to)
        if error not in (0, errno.EINPROGRESS):
            raise self._unreachable(error)

    def turn(self, events: int) -> None:
        """Go on with the handshake or with a frame. :raises Closed: the connection is over."""
        if not self.open:
            self._open()
            return
        if events & _OUT and self._writable() and not self.closed and not self.hub.silent:
            self.hub.guarded(lambda: self.hub.observer.lane_writable(self))
        if self.closed and not self._busy():
            raise Closed("closed here")
        if events & ~_OUT:
            self._readable()

    def try_send(self, frame: bytes, along: Sequence[bytes] = ()) -> bool:
        """See ``OutgoingLane``."""
        if len(frame) > MAX_FRAME_BYTES:
            raise BoundExceeded(f"a frame of {len(frame)} bytes is larger than {MAX_FRAME_BYTES}: split it")
        with self.lock:
            if not self.open or self.closed or self.finished or self._failure:
                return False
            if self._busy():
                self._declined = True
                return False
            return self._send(frame, along)

    def is_full(self, now: int) -> bool:
        """See ``OutgoingLane``. Most calls don't look."""
        if now < self._look_ns and self._flow.sent_bytes < self._look_bytes:
            return False
        with self.lock:
            if not self.open or self.finished or self._failure:
                return False
            flow = self._flow
            waiting = unconfirmed_bytes(self.descriptor) + len(self._unsent) + len(self._unencrypted)
            self.sample = flow.confirmed(waiting, now) or self.sample
            full = flow.is_full(waiting, now)
            self._look_ns = now + LOOK_NS
            self._look_bytes = flow.sent_bytes + (0 if full else flow.window_bytes - waiting)
            return full

    @property
    def measures(self) -> bool:
        """Whether a look may learn something soon."""
        return self._flow.marked_ns != 0

    def watch(self, waits: bool) -> None:
        """See ``OutgoingLane``."""
        self.waits = self.waits or waits
        if not self.watched and (waits or self.measures):
            self.watched = True
            self.hub.post(lambda: self.hub.look_after(self))

    def is_news(self, now: int) -> bool:
        """Look. Returns whether what :meth:`watch` waits for has come. I/O thread only."""
        full = self.is_full(now)
        return self.sample is not None or (self.waits and not full)

    def notify(self) -> None:
        """See ``OutgoingLane``."""
        if self.open and not self._notified:
            self._notified = True
            self.hub.post(self._tell_writable)

    def close(self) -> None:
        """See ``OutgoingLane``."""
        if not self.closed:
            self.closed = True
            self.hub.post(self._release)

    def abandon(self) -> int:
        """See ``OutgoingLane``."""
        frames = 0
        with self.lock:
            if self.open and not self.closed and not self.finished:
                waiting = unconfirmed_bytes(self.descriptor) + len(self._unsent) + len(self._unencrypted)
                frames = frames_in(waiting, self.frames_sent, self.bytes_sent)
                # the kernel would go on for minutes with what it has
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                self._failure = "closed here"
        self.close()
        return frames

    def end_quietly(self) -> None:
        """Close the lane without a notice. I/O thread only."""
        self.closed = True
        self._release()

    # --- I/O thread ------------------------------------------------------------------------------------------------
    def _open(self) -> None:
        if not self._connected:
            if error := self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise self._unreachable(error)
            self._connected = True
            self._begin(self.hub.contexts.client, SERVER_NAME)
            self.hub.watch(self, _IN)
            self.hub.shake(self)
        elif self._fetch():
            if self.secured:
                self.advanced()
            else:
                self.hub.shake(self)

    def advanced(self) -> None:
        """Use what the last step came to, or what came after it. :raises Closed: the handshake failed."""
        assert self._tls is not None, "TLS begins when TCP is connected"
        if not self._shake_hands(self._tls):
            return
        self._digest()
        greeting = self._greeting()
        with self.lock:
            if self.closed:
                return
            self.open, self.deadline_ns = True, 0
            if not self._send(greeting):
                raise Closed(self._failure)
        if not self.hub.silent:
            identity = self.identity
            assert identity is not None, "judged"
            self.hub.guarded(lambda: self.hub.observer.lane_opened(self, identity))

    def _unreachable(self, error: int) -> Closed:
        refused = "connection refused: is it running, and is the port right?"
        why = refused if error == errno.ECONNREFUSED else os.strerror(error).lower()
        return Closed(f"no connection to {self.address} ({why})")

    def _writable(self) -> bool:
        """Send the rest of a frame. True: another frame was declined meanwhile, and its sender waits for a notice."""
        with self.lock:
            try:
                if not self._push():
                    return False
            except OSError as error:
                raise Closed(f"the connection failed ({error.strerror or error})") from error
            self.hub.watch(self, _IN)
            declined, self._declined = self._declined, False
            return declined

    def _readable(self) -> None:
        """Read from a peer that may only close. :raises Closed: it closed the connection, or sent something."""
        with self.lock:
            if self._fetch():
                self._digest()

    def _digest(self) -> None:
        """Let TLS handle what came: a ticket or a key update. :raises Closed: it was something else."""
        try:
            got = self._read(1)
        except ssl.SSLWantReadError:
            if self._outgoing.pending > _MAX_CONTROL_BYTES:
                raise Closed("it asks for key updates and does not read the answers") from None
            try:
                if self._outgoing.pending and not self._push():
                    self.hub.watch(self, _IN | _OUT)
            except OSError as error:
                raise Closed(f"the connection failed ({error.strerror or error})") from error
            return
        except ssl.SSLError as error:
            raise Closed(f"TLS failed: {explain(error)[1]}") from error
        raise Closed("it sent data on a lane that only we send on" if got else f"{self.address} closed the connection")

    def _tell_writable(self) -> None:
        self._notified = False
        if self.open and not self.closed and not self.finished and not self.hub.silent:
            self.hub.observer.lane_writable(self)

    def _release(self) -> None:
        if self.open and self._busy() and not self._failure:
            self.hub.linger(self)
        else:
            self.hub.finish(self, None)

    def _lost(self) -> None:
        self.hub.finish(self, Closed(self._failure))

    def _busy(self) -> bool:
        return bool(self._unsent or self._unencrypted)

    # --- under the lock --------------------------------------------------------------------------------------------
    def _send(self, frame: bytes, along: Sequence[bytes] = ()) -> bool:
        """Send a frame and those along with it, and leave what the kernel does not take to the I/O thread. False: the
        connection has failed."""
        size = len(frame)
        try:
            if size <= _CHUNK_BYTES:
                data = LENGTH.pack(size) + frame
                if along:
                    data += b"".join(LENGTH.pack(len(other)) + other for other in along)
                    self._flow.sent_bytes += len(data) - LENGTH.size - size
                    self.frames_sent += len(along)
                    self.bytes_sent += sum(map(len, along))
                self._encrypt(data)
                data = self._encrypted()
                try:
                    sent = self._sock.send(data)
                except BlockingIOError:
                    sent = 0
                if sent < len(data):
                    self._unsent = memoryview(data)[sent:]
                    self.hub.watch(self, _IN | _OUT)
            else:
                assert not along, "they go with what leaves room in a segment"
                self._encrypt(LENGTH.pack(size) + frame[:_HEAD_BYTES])  # a whole record: nothing more is copied
                self._unencrypted = memoryview(frame)[_HEAD_BYTES:]
                if not self._push():
                    self.hub.watch(self, _IN | _OUT)
        except OSError as error:  # a TLS error is one too
            self._failure = f"the connection failed ({error.strerror or error})"
            self.hub.post(self._lost)
            return False
        self.frames_sent += 1
        self.bytes_sent += size
        flow = self._flow
        flow.sent_bytes += size + RECORD_BYTES
        if not flow.marked_ns:
            flow.measure(time.monotonic_ns())
        return True

    def _push(self) -> bool:
        """Hand the kernel as much as it takes. True: it took all."""
        while True:
            if not self._unsent:
                if self._unencrypted:
                    self._encrypt(self._unencrypted[:_CHUNK_BYTES])
                    self._unencrypted = self._unencrypted[_CHUNK_BYTES:]
                elif not self._outgoing.pending:
                    return True
                self._unsent = memoryview(self._encrypted())
            try:
                self._unsent = self._unsent[self._sock.send(self._unsent) :]
            except BlockingIOError:
                return False
