"""The express link engine: NNG's own wire (SP PUSH/PULL over TLS 1.3) spoken by Python's ``ssl``.

A peer can't tell it from libnng: inside TLS each side sends ``00 'S' 'P' 00 <protocol:u16> 00 00``, then messages as
``<length:u64><payload>``. What differs is the way to the wire: a frame goes out on the thread that sends it, and comes
in on the one thread that waits for all connections, so that a reading takes fewer thread switches each way.

Invariants:
- one I/O thread owns the selector and every inbound connection; it alone gives notices and hands over frames;
- a lane's TLS object is used under its lock: OpenSSL allows one thread at a time;
- a frame that was taken goes out whole before the next is taken; what of it the kernel did not take is sent by the I/O
  thread;
- nothing is allocated for a peer beyond one frame of ``MAX_FRAME_BYTES``; handshakes are bounded in number and time.
"""

import contextlib
import errno
import itertools
import logging
import os
import select
import socket
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from heapq import heappop, heappush
from typing import Any

from meshnode.net._peer import identify, plain_host, read_credentials
from meshnode.net.transport import Address, Credentials, OutgoingLane, TransportObserver
from protocols.errors import BoundExceeded, TransportError
from protocols.ids import SERVER_NAME, MeshName, PeerIdentity
from protocols.limits import DIAL_TIMEOUT_NS, MAX_FRAME_BYTES, MAX_NEIGHBOURS, SECOND

_log = logging.getLogger(__name__)

_PUSH0, _PULL0 = 0x0050, 0x0051
_LENGTH = struct.Struct(">Q")
_MAX_INBOUND = 4 * MAX_NEIGHBOURS
"""Two lanes for each neighbour, and as many again while those of restarted neighbours drain."""
_MAX_HANDSHAKES = 64
"""Inbound handshakes under way; the oldest makes room, so that half-open connections can't keep neighbours out."""
_BUFFER_BYTES = 256 * 1024
_TURN_BYTES = 1024 * 1024
"""Read from one connection before the others get their turn."""
_RECORD_BYTES = 16_384
"""Payload of one TLS record."""
_BACKLOG = 128
_LINGER_NS = SECOND // 5
"""A closed lane has this long to hand its last bytes to the kernel."""
_WANT = (ssl.SSLWantReadError, ssl.SSLWantWriteError)


def _sp_header(protocol: int) -> bytes:
    return struct.pack(">4sHH", b"\0SP\0", protocol, 0)


class _Closed(Exception):
    """The connection is over; the text says why."""


class _Connection:
    """One TCP connection: handshake, SP headers, then frames."""

    def __init__(self, links: "ExpressLinks", sock: socket.socket, tls: ssl.SSLSocket, mine: int, theirs: int) -> None:
        self.links, self.tls = links, tls
        self.descriptor = sock.fileno()
        self.lock = threading.Lock()
        self.mine, self.theirs = _sp_header(mine), _sp_header(theirs)
        self.peer_header = b""
        self.secured = False
        self.open = False
        self.finished = False
        self.identity: PeerIdentity | None = None
        self.host = ""
        self.mask = 0

    def step(self) -> None:
        """Go on with the handshake as far as it goes. :raises _Closed: when it failed."""
        try:
            if not self.secured:
                self.tls.do_handshake()
                self.secured = True
                self.judge()
                if self.tls.send(self.mine) != len(self.mine):
                    raise _Closed("it takes no bytes")
            while len(self.peer_header) < len(self.theirs):
                got = self.tls.recv(len(self.theirs) - len(self.peer_header))
                if not got:
                    raise _Closed("it hung up during the handshake")
                self.peer_header += got
        except ssl.SSLWantReadError:
            self.links.watch(self, select.EPOLLIN)
            return
        except ssl.SSLWantWriteError:
            self.links.watch(self, select.EPOLLOUT)
            return
        except ssl.SSLError as error:
            raise _Closed(_tls_reason(error)) from error
        except OSError as error:
            raise _Closed(f"the connection failed ({error.strerror or error})") from error
        if self.peer_header != self.theirs:
            raise _Closed("it does not speak this protocol")
        self.links.watch(self, select.EPOLLIN)
        self.open = True
        self.opened()

    def judge(self) -> None:
        """Called when TLS has proved the peer. :raises _Closed: to refuse it."""
        raise NotImplementedError

    def opened(self) -> None:
        """Headers are exchanged."""
        raise NotImplementedError

    def names(self) -> list[str]:
        """The URI names of the peer's certificate."""
        names: Any = (self.tls.getpeercert() or {}).get("subjectAltName", ())
        return [str(value) for kind, value in names if kind == "URI"]


class _Inbound(_Connection):
    """A pipe into our inbox."""

    def __init__(self, links: "ExpressLinks", sock: socket.socket, tls: ssl.SSLSocket, pipe: int, host: str) -> None:
        super().__init__(links, sock, tls, _PULL0, _PUSH0)
        self.pipe, self.host = pipe, host
        self.rest = b""
        """Bytes of a frame that has not come whole yet, unless it is large."""
        self.large: bytearray | None = None
        self.filled = 0

    def judge(self) -> None:
        """Whether this peer may have a link. :raises _Closed: when not."""
        identity, detail = identify(self.names(), self.links.mesh)
        reason = self.links.observer.admit(identity, detail, None, self.host)
        if identity is None or reason is not None:
            self.links.refused += 1
            raise _Closed(f"refused: {reason or detail}")
        self.identity = identity

    def opened(self) -> None:
        """Announce the pipe."""
        assert self.identity is not None
        self.links.observer.inbound_opened(self.pipe, self.identity, self.host)

    def receive(self, buffer: memoryview) -> bool:
        """Hand over what has come. True: there may be more. :raises _Closed: at the end."""
        taken = 0
        try:
            while taken < _TURN_BYTES and not self.finished:
                if self.large is not None:
                    got = self.tls.recv_into(memoryview(self.large)[self.filled :])
                    self.filled += got
                    if self.filled == len(self.large):
                        frame, self.large = self.large, None
                        self.links.received(self.pipe, frame)
                else:
                    held = len(self.rest)
                    got = self.tls.recv_into(buffer[held:])
                    if got:
                        buffer[:held] = self.rest
                        self.rest = b""
                        self._frames(buffer, held + got)
                if not got:
                    raise _Closed("it closed the connection")
                taken += got
        except _WANT:
            return False
        except ssl.SSLError as error:
            raise _Closed(_tls_reason(error)) from error
        except OSError as error:
            raise _Closed(f"the connection failed ({error.strerror or error})") from error
        return not self.finished

    def _frames(self, buffer: memoryview, end: int) -> None:
        at = 0
        while end - at >= 8 and not self.finished:
            (size,) = _LENGTH.unpack_from(buffer, at)
            if size > MAX_FRAME_BYTES:
                self.links.oversize += 1
                raise _Closed(f"it sent a frame of {size} bytes, more than {MAX_FRAME_BYTES}")
            if end - at - 8 >= size:
                self.links.received(self.pipe, bytes(buffer[at + 8 : at + 8 + size]))
                at += 8 + size
            elif size > _RECORD_BYTES * 4:
                self.large, self.filled = bytearray(size), end - at - 8
                self.large[: self.filled] = buffer[at + 8 : end]
                return
            else:
                break
        self.rest = bytes(buffer[at:end])


class ExpressLane(_Connection):
    """See ``OutgoingLane``."""

    def __init__(
        self, links: "ExpressLinks", sock: socket.socket, tls: ssl.SSLSocket, address: Address,
        greeting: Callable[[], bytes],
    ) -> None:  # fmt: skip
        super().__init__(links, sock, tls, _PUSH0, _PULL0)
        self.address, self.greeting = address, greeting
        self.connected = False
        self.rest: memoryview | None = None
        self.refused_a_frame = False
        self.started = False
        self.failure = ""

    def step(self) -> None:
        """As :meth:`_Connection.step`, once TCP is connected."""
        if not self.connected:
            error = self.tls.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise _Closed(f"{os.strerror(error).lower()}")
            self.connected = True
            self.host = self.address.host
        super().step()

    def judge(self) -> None:
        """Whether this peer may have a link. :raises _Closed: when not."""
        identity, detail = identify(self.names(), self.links.mesh)
        reason = self.links.observer.admit(identity, detail, self, self.host)
        if identity is None or reason is not None:
            self.links.refused += 1
            raise _Closed(f"refused: {reason or detail}")
        self.identity = identity

    def opened(self) -> None:
        """Greet, then let others send."""
        assert self.identity is not None
        with self.lock:
            taken = self._send(self.greeting())
            self.started = taken
        if not taken:
            raise _Closed("it takes no bytes")
        self.links.observer.lane_opened(self, self.identity)

    def try_send(self, frame: bytes) -> bool:
        """See ``OutgoingLane``."""
        if len(frame) > MAX_FRAME_BYTES:
            raise BoundExceeded(f"a frame of {len(frame)} bytes is larger than {MAX_FRAME_BYTES}: split it")
        with self.lock:
            if not self.started or self.finished:
                return False
            if self.rest is not None:
                self.refused_a_frame = True
                return False
            return self._send(frame)

    def _send(self, frame: bytes) -> bool:
        """Send, or send a part and keep the rest for the I/O thread. Under the lock."""
        size = len(frame)
        try:
            if size <= _RECORD_BYTES - 8:
                data = _LENGTH.pack(size) + frame
                sent = self.tls.send(data)
                if sent < len(data):
                    self.rest = memoryview(data)[sent:]
            else:  # the head with the first bytes fills one record; the rest is not copied
                data = _LENGTH.pack(size) + frame[: _RECORD_BYTES - 8]
                sent = self.tls.send(data)
                if sent < len(data):
                    self.rest = memoryview(data[sent:] + frame[_RECORD_BYTES - 8 :])
                else:
                    self.rest = memoryview(frame)[_RECORD_BYTES - 8 :]
                    self._drain()
        except _WANT:
            if self.rest is None:
                self.rest = memoryview(_LENGTH.pack(size) + frame)
        except OSError as error:
            self.failure = _tls_reason(error) if isinstance(error, ssl.SSLError) else str(error.strerror or error)
            self.links.post(partial(self.links.lost, self))
            return False
        self.links.frames_sent += 1
        self.links.bytes_sent += size
        if self.rest is not None:
            self.links.watch(self, select.EPOLLIN | select.EPOLLOUT)
        return True

    def _drain(self) -> None:
        rest = self.rest
        while rest is not None:
            sent = self.tls.send(rest)
            rest = rest[sent:] if sent < len(rest) else None
            self.rest = rest

    def writable(self) -> bool:
        """Send what is left of a frame. True: a frame was refused meanwhile, so that its sender waits for notice."""
        with self.lock:
            try:
                self._drain()
            except _WANT:
                return False
            except OSError as error:
                raise _Closed(f"the connection failed ({error.strerror or error})") from error
            self.links.watch(self, select.EPOLLIN)
            waits, self.refused_a_frame = self.refused_a_frame, False
            return waits

    def readable(self) -> None:
        """Nothing may come back but the end. :raises _Closed: at the end, or when something did."""
        with self.lock:
            try:
                got = self.tls.recv(1)
            except _WANT:
                return
            except ssl.SSLError as error:
                raise _Closed(_tls_reason(error)) from error
            except OSError as error:
                raise _Closed(f"the connection failed ({error.strerror or error})") from error
        raise _Closed("it sent bytes where none belong" if got else f"{self.address} closed the connection")

    def notify(self) -> None:
        """See ``OutgoingLane``."""
        self.links.post(partial(self.links.notified, self))

    def close(self) -> None:
        """See ``OutgoingLane``."""
        self.links.post(partial(self.links.release, self))


class ExpressLinks:
    """See ``Transport``."""

    def __init__(self, credentials: Credentials, observer: TransportObserver, mesh: MeshName) -> None:
        """:raises IdentityError: when the credentials can't be used."""
        read_credentials(credentials)
        self.observer, self.mesh = observer, mesh
        self._server = _context(credentials, server=True)
        self._client = _context(credentials, server=False)
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._tasks: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._connections: dict[int, _Connection] = {}
        self._pipes: dict[int, _Inbound] = {}
        self._handshaking: dict[int, _Inbound] = {}
        self._unread: dict[int, _Inbound] = {}
        self._next_pipe = itertools.count(1)
        self._listener: socket.socket | None = None
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._receiving_since_ns: int | None = None
        self._closing = False
        self._silent = False
        self._changing = threading.Lock()
        self.refused = self.failed = self.timed_out = self.oversize = 0
        self.frames_received = self.bytes_received = self.frames_sent = self.bytes_sent = 0
        self._io = threading.Thread(target=self._run, name="mesh-io", daemon=True)
        self._io.start()

    # --- Transport, any thread -------------------------------------------------------------------------------------
    def listen(self, host: str, port: int) -> int:
        """See ``Transport``."""
        address = Address(host, port)
        with self._changing:
            if self._listener is not None or self._closing:
                raise TransportError(
                    f"can't listen on {address}: this transport is closed or has an inbox: open another"
                )
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            try:
                listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise TransportError(
                        f"{address} is in use by another program: stop it or configure another port"
                    ) from error
                raise TransportError(
                    f"can't listen on {address} ({error.strerror}): configure an address of this computer"
                ) from error
            listener.setblocking(False)
            self._listener = listener
        self.post(partial(self._epoll.register, listener.fileno(), select.EPOLLIN))
        return int(listener.getsockname()[1])

    def dial(self, address: Address, greeting: Callable[[], bytes], timeout_s: float) -> OutgoingLane:
        """See ``Transport``."""
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tls = self._client.wrap_socket(
            sock, server_hostname=SERVER_NAME, do_handshake_on_connect=False, suppress_ragged_eofs=True
        )
        lane = ExpressLane(self, tls, tls, address, greeting)
        self.post(partial(self._start_dial, lane, timeout_s))
        return lane

    def close_pipe(self, pipe: int) -> None:
        """See ``Transport``."""
        self.post(partial(self._close_pipe, pipe))

    def receiving_since_ns(self) -> int | None:
        """See ``Transport``."""
        return self._receiving_since_ns

    def statistics(self) -> dict[str, int]:
        """See ``Transport``."""
        return {
            "handshakes_refused": self.refused,
            "handshakes_failed": self.failed,
            "mute_connections_closed": self.timed_out,
            "oversize_frames": self.oversize,
            "frames_received": self.frames_received,
            "bytes_received": self.bytes_received,
            "frames_sent": self.frames_sent,
            "bytes_sent": self.bytes_sent,
            "lanes": sum(isinstance(connection, ExpressLane) for connection in list(self._connections.values())),
        }

    def close(self) -> None:
        """See ``Transport``."""
        with self._changing:
            first, self._closing = not self._closing, True
        self._silent = True
        if first:
            self.post(self._stop)
        if self._io is not threading.current_thread():
            self._io.join()

    def post(self, task: Callable[[], None]) -> None:
        """Have the I/O thread run ``task``, in order."""
        self._tasks.append(task)
        with contextlib.suppress(OSError):  # closed: nobody is left to run it
            os.eventfd_write(self._wake, 1)

    def watch(self, connection: _Connection, mask: int) -> None:
        """Wait for these events of a connection."""
        if connection.mask != mask and not connection.finished:
            connection.mask = mask
            with contextlib.suppress(OSError, ValueError):  # closed meanwhile
                self._epoll.modify(connection.descriptor, mask)

    # --- the I/O thread --------------------------------------------------------------------------------------------
    def _run(self) -> None:
        poll, tasks, timers = self._epoll.poll, self._tasks, self._timers
        while not self._closing or self._connections or tasks:
            timeout_s = -1.0
            if self._unread or tasks:
                timeout_s = 0.0
            elif timers:
                timeout_s = max(0.0, (timers[0][0] - time.monotonic_ns()) / SECOND)
            for descriptor, events in poll(timeout_s):
                connection = self._connections.get(descriptor)
                if connection is not None:
                    self._guarded(partial(self._turn, connection, events))
                elif descriptor == self._wake:
                    os.eventfd_read(self._wake)
                else:
                    self._guarded(self._accept)
            for inbound in list(self._unread.values()):
                self._guarded(partial(self._turn, inbound, select.EPOLLIN))
            while tasks:
                self._guarded(tasks.popleft())
            while timers and timers[0][0] <= time.monotonic_ns():
                self._guarded(heappop(timers)[2])
        self._epoll.close()
        os.close(self._wake)

    def _guarded(self, task: Callable[[], None]) -> None:
        try:
            task()
        except Exception:  # noqa: BLE001 - an observer's bug must not end the links
            _log.exception("a notice of the links failed in its observer")

    def _turn(self, connection: _Connection, events: int) -> None:
        try:
            if not connection.open:
                connection.step()
                if connection.open and isinstance(connection, _Inbound):
                    self._handshaking.pop(connection.descriptor, None)
                    self._pipes[connection.pipe] = connection
                    self._receive(connection)
            elif isinstance(connection, _Inbound):
                self._receive(connection)
            elif isinstance(connection, ExpressLane):
                if events & select.EPOLLOUT and connection.writable() and not self._silent:
                    self.observer.lane_writable(connection)
                if events & ~select.EPOLLOUT:
                    connection.readable()
        except _Closed as end:
            self._finish(connection, str(end))

    def _receive(self, inbound: _Inbound) -> None:
        if inbound.receive(self._buffer):
            self._unread[inbound.descriptor] = inbound
        else:
            self._unread.pop(inbound.descriptor, None)

    def received(self, pipe: int, frame: bytes | bytearray) -> None:
        """Hand one frame over."""
        self.frames_received += 1
        self.bytes_received += len(frame)
        if self._silent:
            return
        self._receiving_since_ns = time.monotonic_ns()
        try:
            self.observer.frame_received(pipe, frame)
        except Exception:  # noqa: BLE001 - an application's bug must not end receiving
            _log.exception("a frame failed in its observer")
        self._receiving_since_ns = None

    def _accept(self) -> None:
        listener = self._listener
        while listener is not None:
            try:
                sock, peer = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                _log.warning("a connection could not be accepted: %s", error)
                return
            if self._closing or len(self._pipes) >= _MAX_INBOUND:
                sock.close()
                continue
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            tls = self._server.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            inbound = _Inbound(self, tls, tls, next(self._next_pipe), plain_host(peer[0].partition("%")[0]))
            if len(self._handshaking) >= _MAX_HANDSHAKES:
                oldest = next(iter(self._handshaking.values()))
                self._finish(oldest, "others want to shake hands")
            self._handshaking[inbound.descriptor] = inbound
            self._adopt(inbound, select.EPOLLIN)
            self._later(DIAL_TIMEOUT_NS, partial(self._expire, inbound, "it did not finish the handshake in time"))

    def _adopt(self, connection: _Connection, mask: int) -> None:
        connection.mask = mask
        self._connections[connection.descriptor] = connection
        self._epoll.register(connection.descriptor, mask)

    def _start_dial(self, lane: ExpressLane, timeout_s: float) -> None:
        if lane.finished:
            return
        if self._closing:
            lane.finished = True
            lane.tls.close()
            return
        self._adopt(lane, select.EPOLLOUT)
        try:
            lane.tls.connect_ex((lane.address.host, lane.address.port))
        except (OSError, ValueError, OverflowError) as error:
            self._finish(lane, f"can't dial {lane.address} ({error}): use an IP address and a port")
            return
        no_answer = f"no connection to {lane.address} within {timeout_s:g} s: unreachable or mute"
        self._later(int(timeout_s * SECOND), partial(self._expire, lane, no_answer))

    def _expire(self, connection: _Connection, reason: str) -> None:
        if not connection.open and not connection.finished:
            self.timed_out += 1
            self._finish(connection, reason)

    def _close_pipe(self, pipe: int) -> None:
        inbound = self._pipes.get(pipe)
        if inbound is not None:
            self._finish(inbound, "closed here")

    def lost(self, lane: ExpressLane) -> None:
        """A send failed."""
        self._finish(lane, lane.failure)

    def notified(self, lane: ExpressLane) -> None:
        """Its owner wants to send from this thread."""
        if not lane.finished and not self._silent:
            self.observer.lane_writable(lane)

    def release(self, lane: ExpressLane) -> None:
        """A lane is closed by its owner: no notice; what is left of its last frame has a moment."""
        if lane.rest is not None and not lane.finished and lane.started:
            lane.started = False
            self._later(_LINGER_NS, partial(self._finish, lane, ""))
        else:
            self._finish(lane, "")

    def _finish(self, connection: _Connection, reason: str) -> None:
        """Close it; an empty ``reason`` tells nobody."""
        if connection.finished:
            return
        with connection.lock:
            connection.finished = True
        known = self._connections.pop(connection.descriptor, None) is not None
        self._handshaking.pop(connection.descriptor, None)
        self._unread.pop(connection.descriptor, None)
        if known:
            with contextlib.suppress(OSError):
                self._epoll.unregister(connection.descriptor)
        with contextlib.suppress(OSError):
            connection.tls.close()
        if not connection.secured and reason:
            self.failed += 1
            _log.info("no handshake with %s: %s", connection.host or getattr(connection, "address", "?"), reason)
        if isinstance(connection, _Inbound):
            if self._pipes.pop(connection.pipe, None) is not None and not self._silent:
                self.observer.inbound_closed(connection.pipe)
        elif isinstance(connection, ExpressLane) and reason and not self._silent:
            self.observer.lane_closed(connection, reason)

    def _later(self, delay_ns: int, task: Callable[[], None]) -> None:
        heappush(self._timers, (time.monotonic_ns() + delay_ns, next(self._order), task))

    def _stop(self) -> None:
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(self._listener.fileno())
            self._listener.close()
        for connection in list(self._connections.values()):
            if isinstance(connection, ExpressLane):
                self.release(connection)
            else:
                self._finish(connection, "")


def _context(credentials: Credentials, *, server: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(credentials.certificate, credentials.key)
    context.load_verify_locations(credentials.authority)
    context.verify_mode = ssl.CERT_REQUIRED
    if server:
        context.num_tickets = 0  # sessions are not resumed: each handshake proves the certificate anew
    return context


def _tls_reason(error: OSError) -> str:
    reason = getattr(error, "reason", None) or error.strerror or str(error)
    detail = getattr(error, "verify_message", "")
    return f"TLS: {reason.replace('_', ' ').lower()}{f' ({detail})' if detail else ''}"


def open_express(credentials: Credentials, observer: TransportObserver, mesh: MeshName) -> ExpressLinks:
    """A transport that speaks NNG's wire by OpenSSL. :raises IdentityError: when the credentials can't be used."""
    return ExpressLinks(credentials, observer, mesh)
