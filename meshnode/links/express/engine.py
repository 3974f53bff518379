"""The express link engine: NNG's own wire (SP PUSH/PULL over TLS 1.3) spoken by Python's ``ssl``.

A peer can't tell it from libnng. What differs is the way to the wire: a frame goes out on the thread that sends it, and
comes in on the one thread that waits for all connections, so that a reading takes fewer thread switches each way.

Invariants:
- one I/O thread owns the selector and every inbound connection; it alone gives notices and hands over frames;
- a descriptor is given back only when all events of a poll are dealt with, so that none is taken for its successor's;
- strangers are bounded in number, in time and in memory, and whoever comes most often makes room first;
- a connection is closed within a minute of the end of its peer's certificate.
"""

import atexit
import contextlib
import errno
import ipaddress
import itertools
import logging
import os
import select
import socket
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable

from meshnode.links.express.connection import (
    NET_BYTES,
    PLAIN_BYTES,
    Closed,
    Connection,
    HandshakeFailed,
    Inbound,
    PeerTurnedAway,
)
from meshnode.links.express.lane import ExpressLane
from meshnode.links.peer import plain_host, url_of
from meshnode.links.priority import Priority, raise_priority
from meshnode.links.tls import REFUSED, UNREACHABLE, Contexts, FailureKind, Failures, contexts
from meshnode.links.transport import Address, CredentialFiles, FailedLink, OutgoingLane, TransportObserver
from protocols.base.errors import TransportError
from protocols.base.ids import MeshName
from protocols.base.limits import DIAL_TIMEOUT_NS, MAX_NEIGHBOURS, MS, SECOND

_log = logging.getLogger(__name__)

_MAX_INBOUND = 4 * MAX_NEIGHBOURS
"""Two lanes for each neighbour, and as many again while those of restarted neighbours drain."""
_MAX_NEWCOMERS = 128
"""Inbound connections that have not proved anything yet. 5 s each: a flood must be answered by making room."""
_MAX_LOOK_UPS = 8
"""Host names being resolved, each on a thread of its own: a resolver may take half a minute to give up."""
_HANDSHAKE_NS = DIAL_TIMEOUT_NS
_LINGER_NS = 200 * MS
"""A closed lane has this long to hand its last bytes to the kernel, a refused peer to go by itself."""
_EXPIRY_CHECK_NS = 60 * SECOND
_SWEEP_GAP_NS = 20 * MS
"""Deadlines are met this late at most; a flood of newcomers must not buy a sweep for each of them."""
_REST_NS = 200 * MS
"""Without accepting when descriptors or memory have run out: the listener stays readable, trying at once would spin."""
_ACCEPTS = 8
"""Accepted between two looks at open links: one takes up to 0.15 ms when another has to make room for it."""
_HANDSHAKES = 1
"""Steps of handshakes between two looks at open links: the one that proves an identity takes up to 1.5 ms."""
_EVENTS = 128
_BACKLOG = 512
_BRISK = 4
"""Short waits in a row after which frames are taken to come in quick succession."""
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_open: "weakref.WeakSet[ExpressLinks]" = weakref.WeakSet()


def open_express(
    credentials: CredentialFiles,
    observer: TransportObserver,
    mesh: MeshName,
    spin_ns: int = 0,
    priority: Priority = "normal",
) -> "ExpressLinks":
    """A transport that speaks NNG's wire by OpenSSL; ``spin_ns`` and ``priority`` as of :class:`ExpressLinks`.

    :raises IdentityError: when the credentials can't be used.
    """
    links = ExpressLinks(credentials, observer, mesh, spin_ns, priority)
    _open.add(links)
    return links


@atexit.register
def _close_all() -> None:
    for links in list(_open):
        links.close()


class ExpressLinks:
    """See ``Transport``."""

    def __init__(
        self,
        credentials: CredentialFiles,
        observer: TransportObserver,
        mesh: MeshName,
        spin_ns: int = 0,
        priority: Priority = "normal",
        utc_now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """``spin_ns``: how long the I/O thread stays awake for the next frame while frames come in quick succession.
        To wake a thread takes 25 µs on a virtual machine, half of the way of a reading. ``priority``: of that thread;
        one that the system does not allow is logged.

        :raises IdentityError: when the credentials can't be used.
        """
        self.observer, self.mesh = observer, mesh
        self.contexts: Contexts = contexts(credentials)
        self.net, self.plain = memoryview(bytearray(NET_BYTES)), memoryview(bytearray(PLAIN_BYTES))
        self.silent = False
        self.oversize = 0
        self._utc_now_ns = utc_now_ns
        self._failures = Failures(time.monotonic_ns)
        self._priority = priority
        self._spin_ns = spin_ns if len(os.sched_getaffinity(0)) > 1 else 0  # alone, it would only be in the way
        self._awaited_awake = self._brisk = 0
        self._refused = self._mute_closed = self._expired = 0
        self._frames_received = self._bytes_received = self._frames_sent = self._bytes_sent = 0
        self._receiving_since_ns: int | None = None
        self._connections: dict[int, Connection] = {}
        self._lanes: set[ExpressLane] = set()
        self._pipes: dict[int, Inbound] = {}
        self._newcomers: dict[int, Inbound] = {}
        self._buried: list[Connection] = []
        self._next_pipe = itertools.count(1)
        self._look_ups = 0
        self._listener: socket.socket | None = None
        self._listener_descriptor = -1
        self._resting_until_ns = 0
        self._due_ns = 0
        self._expiry_due_ns = time.monotonic_ns() + _EXPIRY_CHECK_NS
        self._changing = threading.Lock()
        self._closing = self._stopping = self._woken = False
        self._tasks: deque[Callable[[], None]] = deque()
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        # not at close: a late close() of a lane may still write to it, and the number may then be another file's
        weakref.finalize(self, os.close, self._wake).atexit = False
        self._epoll.register(self._wake, select.EPOLLIN)
        self._io = threading.Thread(target=self._run, name="mesh-io", daemon=True)
        self._io.start()

    # --- Transport, any thread -------------------------------------------------------------------------------------
    def listen(self, host: str, port: int) -> int:
        """See ``Transport``."""
        address = Address(host, port)
        url_of(address)
        with self._changing:
            if self._listener is not None or self._closing:
                raise TransportError(
                    f"can't listen on {address}: this transport is closed or has an inbox: open another"
                )
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            both = host == "::" and socket.has_dualstack_ipv6()
            try:
                listener = socket.create_server((host, port), family=family, backlog=_BACKLOG, dualstack_ipv6=both)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise TransportError(
                        f"{address} is in use by another program: stop it or configure another port"
                    ) from error
                raise TransportError(
                    f"can't listen on {address} ({error.strerror}): configure an address of this computer"
                ) from error
            listener.setblocking(False)
            self._listener, self._listener_descriptor = listener, listener.fileno()
            self._epoll.register(listener.fileno(), select.EPOLLIN)
        return int(listener.getsockname()[1])

    def dial(self, address: Address, greeting: Callable[[], bytes], timeout_s: float) -> OutgoingLane:
        """See ``Transport``."""
        lane = ExpressLane(self, address, greeting, timeout_s)
        lane.deadline_ns = time.monotonic_ns() + int(timeout_s * SECOND)
        self.post(lambda: self._start_dial(lane))
        return lane

    def close_pipe(self, pipe: int) -> None:
        """See ``Transport``."""
        inbound = self._pipes.get(pipe)
        if inbound is not None:
            inbound.leaving = True
            self.post(lambda: self.finish(inbound, Closed("closed here")))

    def renew(self, credentials: CredentialFiles) -> None:
        """See ``Transport``."""
        self.contexts = contexts(credentials)

    def receiving_since_ns(self) -> int | None:
        """See ``Transport``."""
        return self._receiving_since_ns

    def failures(self) -> list[FailedLink]:
        """See ``Transport``."""
        return self._failures.recent()

    def statistics(self) -> dict[str, int]:
        """See ``Transport``."""
        lanes = list(self._lanes)
        return {
            "handshakes_refused": self._refused,
            **self._failures.statistics(),
            "mute_connections_closed": self._mute_closed,
            "expired_connections_closed": self._expired,
            "oversize_frames": self.oversize,
            "frames_received": self._frames_received,
            "bytes_received": self._bytes_received,
            "frames_sent": self._frames_sent + sum(lane.frames_sent for lane in lanes),
            "bytes_sent": self._bytes_sent + sum(lane.bytes_sent for lane in lanes),
            "frames_awaited_awake": self._awaited_awake,
            "lanes": len(lanes),
        }

    def close(self) -> None:
        """See ``Transport``."""
        with self._changing:
            first, self._closing = not self._closing, True
        self.silent = True
        if first:
            self.post(self._stop)
        if self._io is not threading.current_thread():
            self._io.join()

    # --- Hub -------------------------------------------------------------------------------------------------------
    def post(self, task: Callable[[], None]) -> None:
        """Have the I/O thread run ``task``, in order."""
        self._tasks.append(task)
        if not self._woken:
            self._woken = True
            os.eventfd_write(self._wake, 1)

    def watch(self, connection: Connection, mask: int) -> None:
        """Wait for these events of a connection. Under its lock once it is open."""
        if connection.mask != mask and not connection.finished:
            connection.mask = mask
            self._epoll.modify(connection.descriptor, mask)

    def received(self, pipe: int, frame: bytes | bytearray) -> None:
        """Hand one frame over."""
        self._frames_received += 1
        self._bytes_received += len(frame)
        if self.silent:
            return
        self._receiving_since_ns = time.monotonic_ns()
        try:
            self.observer.frame_received(pipe, frame)
        except BaseException:  # noqa: BLE001 - an application's bug, or its sys.exit(), must not end receiving
            _log.exception("a frame failed in its observer")
        self._receiving_since_ns = None

    def guarded(self, task: Callable[[], None]) -> None:
        """Give a notice; what the observer raises is logged."""
        try:
            task()
        except BaseException:  # noqa: BLE001 - an observer's bug, or its sys.exit(), must not end the links
            _log.exception("a notice of the links failed in its observer")

    def pipe_opened(self, inbound: Inbound) -> None:
        """Note and announce it. :raises Closed: there are too many."""
        self._newcomers.pop(inbound.descriptor, None)
        inbound.deadline_ns = 0
        if len(self._pipes) >= _MAX_INBOUND:
            raise Closed(f"{_MAX_INBOUND} links come in already")
        assert inbound.identity is not None, "judged"
        self._pipes[inbound.pipe] = inbound
        if not self.silent:
            self.guarded(lambda: self.observer.inbound_opened(inbound.pipe, inbound.identity, inbound.host))  # type: ignore[arg-type]

    def finish(self, connection: Connection, end: Closed | None) -> None:
        """Close it; without an ``end`` nobody is told. I/O thread."""
        if connection.finished:
            return
        with connection.lock:
            connection.finished = True
        if self._connections.pop(connection.descriptor, None) is not None:
            self._epoll.unregister(connection.descriptor)
            self._buried.append(connection)
        dialled = isinstance(connection, ExpressLane)
        if isinstance(end, HandshakeFailed):
            self._failures.note(end.kind, connection.label, str(end), dialled)
        elif isinstance(end, PeerTurnedAway):
            self._refused += 1
            self._failures.tell(REFUSED, connection.label, str(end), dialled)
        elif dialled and end is not None and not connection.open:
            self._failures.remember(UNREACHABLE, connection.label, str(end), dialled)
        if isinstance(connection, Inbound):
            self._newcomers.pop(connection.descriptor, None)
            if self._pipes.pop(connection.pipe, None) is not None and not self.silent:
                self.guarded(lambda: self.observer.inbound_closed(connection.pipe))
        elif isinstance(connection, ExpressLane):
            self._lanes.discard(connection)
            self._frames_sent += connection.frames_sent
            self._bytes_sent += connection.bytes_sent
            if end is not None and not connection.closed and not self.silent:
                prefix = f"no connection to {connection.address}: " if isinstance(end, HandshakeFailed) else ""
                self.guarded(lambda: self.observer.lane_closed(connection, f"{prefix}{end}"))

    def linger(self, connection: Connection) -> None:
        """Give what is left of its last frame a moment. I/O thread."""
        if not connection.finished:
            self._expect(connection, time.monotonic_ns() + _LINGER_NS)

    # --- the I/O thread --------------------------------------------------------------------------------------------
    def _run(self) -> None:
        if refused := raise_priority(self._priority):
            _log.info("%s", refused)
        connections, tasks, now_ns = self._connections, self._tasks, time.monotonic_ns
        shaking: list[tuple[Connection, int]] = []
        while not self._stopping or connections:
            left_ns = self._due_ns - now_ns()
            if left_ns <= 0:
                self.guarded(self._sweep)
                left_ns = 0
            for descriptor, events in self._wait(left_ns):
                connection = connections.get(descriptor)
                if connection is not None:
                    if connection.open:
                        self._turn(connection, events)
                    elif len(shaking) < _HANDSHAKES:
                        shaking.append((connection, events))
                elif descriptor == self._wake:
                    os.eventfd_read(descriptor)
                    self._woken = False  # before the tasks: who posts from now on wakes us again
                elif descriptor == self._listener_descriptor:
                    self.guarded(self._accept)
            if shaking:  # after the frames that have come: a handshake takes as long as a hundred of them
                for connection, events in shaking:
                    if not connection.finished:
                        self._turn(connection, events)
                shaking.clear()
            for _ in range(len(tasks)):  # what these post has the next turn: events must not wait for ever
                self.guarded(tasks.popleft())
            if self._buried:
                self._bury()
        self._bury()
        self._epoll.close()

    def _wait(self, left_ns: int) -> list[tuple[int, int]]:
        """Descriptors with their events. After ``_BRISK`` waits shorter than ``spin_ns`` it looks again and again
        before it sleeps: who answers an answer is not kept waiting, and ten readings a second never make it spin."""
        poll, spin_ns = self._epoll.poll, self._spin_ns
        if not spin_ns:
            return poll(left_ns / SECOND, _EVENTS)
        ready = poll(0, _EVENTS)
        if ready:
            return ready
        began_ns = time.monotonic_ns()
        if self._brisk >= _BRISK:
            until_ns = began_ns + min(spin_ns, left_ns)
            while not (ready := poll(0, _EVENTS)) and time.monotonic_ns() < until_ns:
                pass
        if ready:
            self._awaited_awake += 1
            return ready
        ready = poll(left_ns / SECOND, _EVENTS)
        self._brisk = self._brisk + 1 if time.monotonic_ns() - began_ns < spin_ns else 0
        return ready

    def _turn(self, connection: Connection, events: int) -> None:
        try:
            connection.turn(events)
        except Closed as end:
            self.finish(connection, end)
        except BaseException:  # noqa: BLE001 - one broken connection must not end the others
            _log.exception("a link failed inside: it is closed")
            self.finish(connection, Closed("internal error"))

    def _bury(self) -> None:
        for connection in self._buried:
            with contextlib.suppress(OSError):
                connection.close_socket()
        self._buried.clear()

    def _expect(self, connection: Connection, deadline_ns: int) -> None:
        connection.deadline_ns = deadline_ns
        self._due_ns = min(self._due_ns, deadline_ns)

    def _sweep(self) -> None:
        """End what is overdue, and find out when to look again."""
        now_ns = time.monotonic_ns()
        due_ns = self._expiry_due_ns
        if now_ns >= due_ns:
            self._end_expired()
            due_ns = self._expiry_due_ns = now_ns + _EXPIRY_CHECK_NS
        if self._resting_until_ns and self._listener is not None:
            if now_ns >= self._resting_until_ns:
                self._resting_until_ns = 0
                self._epoll.register(self._listener_descriptor, select.EPOLLIN)
            else:
                due_ns = min(due_ns, self._resting_until_ns)
        for connection in [*self._connections.values(), *self._lanes]:
            deadline_ns = connection.deadline_ns
            if deadline_ns > now_ns:
                due_ns = min(due_ns, deadline_ns)
            elif deadline_ns and not connection.finished:
                end = connection.overdue()
                self._mute_closed += isinstance(end, HandshakeFailed) and isinstance(connection, Inbound)
                self.finish(connection, end)
        self._due_ns = max(due_ns, now_ns + _SWEEP_GAP_NS)

    def _end_expired(self) -> None:
        utc_now_ns = self._utc_now_ns()
        for connection in list(self._connections.values()):
            identity = connection.identity
            if identity is not None and 0 < identity.not_after_utc_ns < utc_now_ns:
                self._expired += 1
                why = "its certificate has expired: renew it there, or compare the clocks"
                self._failures.tell(FailureKind.EXPIRED, connection.label, why, isinstance(connection, ExpressLane))
                self.finish(connection, Closed(why))

    # --- inbound ---------------------------------------------------------------------------------------------------
    def _accept(self) -> None:
        assert self._listener is not None, "it is readable"
        for _ in range(_ACCEPTS):
            try:
                sock, peer = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._rest(error)
                    return
                continue  # the peer went before we came
            if self._stopping or len(self._pipes) >= _MAX_INBOUND:
                sock.close()
                continue
            sock.setblocking(False)
            inbound = Inbound(self, next(self._next_pipe), plain_host(peer[0].partition("%")[0]))
            try:
                inbound.attach(sock)
            except OSError:
                sock.close()
                continue
            if len(self._newcomers) >= _MAX_NEWCOMERS:
                self._make_room()
            self._newcomers[inbound.descriptor] = inbound
            self._adopt(inbound, select.EPOLLIN)
            self._expect(inbound, time.monotonic_ns() + _HANDSHAKE_NS)

    def _rest(self, error: OSError) -> None:
        self._epoll.unregister(self._listener_descriptor)
        self._resting_until_ns = time.monotonic_ns() + _REST_NS
        self._due_ns = min(self._due_ns, self._resting_until_ns)
        way_out = "raise the limit of open files"
        self._failures.tell("accept", "newcomers", f"they can't be accepted ({error.strerror}): {way_out}")
        if self._newcomers:
            self._make_room()

    def _make_room(self) -> None:
        """End a newcomer: of the host that has most of them the oldest, and rather one that has said nothing."""
        busiest = Counter(newcomer.host for newcomer in self._newcomers.values()).most_common(1)[0][0]
        theirs = [newcomer for newcomer in self._newcomers.values() if newcomer.host == busiest]
        out = next((newcomer for newcomer in theirs if newcomer.mute), theirs[0])
        self.finish(out, HandshakeFailed(FailureKind.CROWDED, "too many connections come in at once"))

    def _adopt(self, connection: Connection, mask: int) -> None:
        connection.mask = mask
        self._connections[connection.descriptor] = connection
        self._epoll.register(connection.descriptor, mask)

    # --- outgoing --------------------------------------------------------------------------------------------------
    def _start_dial(self, lane: ExpressLane) -> None:
        if lane.closed or self._stopping:
            lane.finished = True
            return
        self._lanes.add(lane)
        self._expect(lane, lane.deadline_ns)
        host, port = lane.address.host, lane.address.port
        try:
            url_of(lane.address)
            ip = ipaddress.ip_address(host)
        except TransportError as error:
            self.finish(lane, Closed(str(error)))
        except ValueError:  # a name: looking it up may take long, and must not hold up the links
            if self._look_ups >= _MAX_LOOK_UPS:
                self.finish(lane, Closed(f"{self._look_ups} host names are being looked up: use IP addresses"))
                return
            self._look_ups += 1
            threading.Thread(target=self._look_up, args=(lane,), name="mesh-look-up", daemon=True).start()
        else:
            family = socket.AF_INET6 if ip.version == 6 else socket.AF_INET
            self._connect(lane, family, (host, port))

    def _look_up(self, lane: ExpressLane) -> None:
        try:
            found = socket.getaddrinfo(lane.address.host, lane.address.port, type=socket.SOCK_STREAM)
            family, _, _, _, to = found[0]
        except (OSError, UnicodeError) as error:
            end = Closed(f"no connection to {lane.address} (unknown host: {error}): use an IP address")
            self.post(lambda: self._looked_up(lambda: self.finish(lane, end)))
        else:
            self.post(lambda: self._looked_up(lambda: self._connect(lane, family, to)))  # type: ignore[arg-type]

    def _looked_up(self, then: Callable[[], None]) -> None:
        self._look_ups -= 1
        then()

    def _connect(self, lane: ExpressLane, family: int, to: "tuple[str, int] | tuple[str, int, int, int]") -> None:
        if lane.finished:
            return
        try:
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            try:
                lane.connect(sock, to)
            except BaseException:
                sock.close()
                raise
        except Closed as end:
            lane.descriptor = -1
            self.finish(lane, end)
        except OSError as error:
            lane.descriptor = -1
            self.finish(lane, Closed(f"no connection to {lane.address} ({error.strerror or error})"))
        else:
            self._adopt(lane, select.EPOLLOUT)

    def _stop(self) -> None:
        self._stopping = True
        if self._listener is not None:
            if not self._resting_until_ns:
                self._epoll.unregister(self._listener_descriptor)
            self._listener_descriptor = -1
            self._listener.close()
        for connection in [*self._connections.values(), *self._lanes]:
            if isinstance(connection, ExpressLane):
                connection.end_quietly()
            else:
                self.finish(connection, None)
