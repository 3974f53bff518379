"""The link engine ``express``: NNG's own wire (SP PUSH/PULL over TLS 1.3) spoken by Python's ``ssl``.

A peer can't tell it from libnng. But a frame goes out on the thread that sends it and comes in on the one thread that
waits for all connections, so a reading needs fewer thread switches each way.

Invariants:
- one I/O thread owns the selector and every inbound connection; it alone gives notices and hands over frames;
- a descriptor is closed only after all events of a poll were handled, so that no event is taken for one of its
  successor;
- frames of open links are received before handshakes go on, and the arithmetic of handshakes has a thread of its own;
- in each round every identity has one turn, which is bounded in bytes, frames and time, and which all its pipes share.
  What is left waits for the next round, and comes after the frames of those that have sent less;
- a connection is closed within a minute of the end of its peer's certificate.
"""

import atexit
import contextlib
import logging
import os
import select
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial

from meshnode.links.express.connection import (
    NET_BYTES,
    PLAIN_BYTES,
    Closed,
    Connection,
    HandshakeFailed,
    Inbound,
    PeerTurnedAway,
    Turn,
)
from meshnode.links.express.dialling import Dialler
from meshnode.links.express.handshakes import Handshakes
from meshnode.links.express.inbox import Inbox
from meshnode.links.express.lane import LOOK_NS, ExpressLane
from meshnode.links.express.lookout import Lookout
from meshnode.links.peer import url_of
from meshnode.links.priority import Priority, raise_priority
from meshnode.links.tls import REFUSED, UNREACHABLE, Contexts, FailureKind, Failures, contexts
from meshnode.links.transport import Address, CredentialFiles, FailedLink, OutgoingLane, TransportObserver
from protocols.base.errors import TransportError
from protocols.base.ids import MeshName
from protocols.base.limits import MS, SECOND

_log = logging.getLogger(__name__)

_LINGER_NS = 200 * MS
"""The time that a closed lane has to hand its last bytes to the kernel, and a refused peer to go by itself."""
_EXPIRY_CHECK_NS = 60 * SECOND
_SWEEP_GAP_NS = 20 * MS
"""The time between two looks at all deadlines: a flood of newcomers must not cause one look for each of them."""
_HANDSHAKES = 1
"""Newcomers that are looked at between two looks at open links. To judge one takes up to 0.2 ms."""
_EVENTS = 128
_BRISK = 4
"""This many short waits in a row mean that frames come in quick succession."""

_open: "weakref.WeakSet[ExpressLinks]" = weakref.WeakSet()


def open_express(
    credentials: CredentialFiles,
    observer: TransportObserver,
    mesh: MeshName,
    spin_ns: int = 0,
    priority: Priority = "normal",
) -> "ExpressLinks":
    """A transport that speaks NNG's wire by OpenSSL; ``spin_ns`` and ``priority`` as of :class:`ExpressLinks`.

    :raises IdentityError: the credentials can't be used.
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
        """``spin_ns`` is how long the I/O thread stays awake for the next frame while frames come in quick succession.
        To wake a thread takes 25 µs on a virtual machine, half of the time that a reading takes. ``priority`` is that
        of the I/O thread; it is logged when the system does not allow it.

        :raises IdentityError: the credentials can't be used.
        """
        self.observer, self.mesh = observer, mesh
        self.contexts: Contexts = contexts(credentials)
        self.net, self.plain = memoryview(bytearray(NET_BYTES)), memoryview(bytearray(PLAIN_BYTES))
        self.silent = False
        self.oversize = self.round = self.began_ns = 0
        self._behind: dict[Turn, None] = {}  # the turns of identities whose pipes hold frames
        self._utc_now_ns = utc_now_ns
        self._failures = Failures(time.monotonic_ns)
        self._priority = priority
        self._spin_ns = spin_ns if len(os.sched_getaffinity(0)) > 1 else 0  # it would keep others waiting
        self._awaited_awake = self._brisk = 0
        self._refused = self._mute_closed = self._expired = self._unvouched = 0
        self._frames_received = self._bytes_received = self._frames_sent = self._bytes_sent = 0
        self._receiving_since_ns: int | None = None
        self._connections: dict[int, Connection] = {}
        self._lanes: set[ExpressLane] = set()
        self._lookout = Lookout()
        self._buried: list[Connection] = []
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
        self._inbox = Inbox(self._epoll, self._failures)
        self._dialling = Dialler()
        self._handshakes = Handshakes(self.post, self._came_back)
        self._io = threading.Thread(target=self._run, name="mesh-io", daemon=True)
        self._io.start()

    # --- Transport, any thread -------------------------------------------------------------------------------------
    def listen(self, host: str, port: int) -> int:
        """See ``Transport``."""
        address = Address(host, port)
        url_of(address)
        with self._changing:
            if self._inbox.descriptor >= 0 or self._closing:
                raise TransportError(
                    f"can't listen on {address}: this transport is closed or has an inbox: open another"
                )
            return self._inbox.listen(address)

    def dial(self, address: Address, greeting: Callable[[], bytes], timeout_s: float) -> OutgoingLane:
        """See ``Transport``."""
        lane = ExpressLane(self, address, greeting, timeout_s)
        lane.deadline_ns = time.monotonic_ns() + int(timeout_s * SECOND)
        self.post(lambda: self._start_dial(lane))
        return lane

    def close_pipe(self, pipe: int) -> None:
        """See ``Transport``."""
        inbound = self._inbox.pipes.get(pipe)
        if inbound is not None:
            inbound.leaving = True
            self.post(lambda: self.finish(inbound, Closed("closed here")))

    def renew(self, credentials: CredentialFiles) -> None:
        """See ``Transport``."""
        before, self.contexts = self.contexts, contexts(credentials)
        if self.contexts.authority != before.authority:
            self.post(lambda: self._prove_again(list(self._connections.values()), self.contexts))

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
            "unvouched_connections_closed": self._unvouched,
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
            self._handshakes.close()

    # --- Hub -------------------------------------------------------------------------------------------------------
    def post(self, task: Callable[[], None]) -> None:
        """Have the I/O thread run ``task``. Tasks keep their order. Any thread may call it."""
        self._tasks.append(task)
        if not self._woken:
            self._woken = True
            os.eventfd_write(self._wake, 1)

    def watch(self, connection: Connection, mask: int) -> None:
        """Wait for these events of a connection. Once it is open, call this under its lock."""
        if connection.mask != mask and not connection.finished:
            connection.mask = mask
            self._epoll.modify(connection.descriptor, mask)

    def received(self, pipe: int, frame: bytes | bytearray) -> None:
        """Hand one frame over to the observer."""
        self._frames_received += 1
        self._bytes_received += len(frame)
        if self.silent:
            return
        self._receiving_since_ns = self.began_ns = time.monotonic_ns()
        try:
            self.observer.frame_received(pipe, frame)
        except BaseException:  # noqa: BLE001 - an application's bug, or its sys.exit(), must not end receiving
            _log.exception("a frame failed in its observer")
        self._receiving_since_ns = None

    def guarded(self, task: Callable[[], None]) -> None:
        """Give a notice. An error of the observer is logged."""
        try:
            task()
        except BaseException:  # noqa: BLE001 - an observer's bug, or its sys.exit(), must not end the links
            _log.exception("a notice of the links failed in its observer")

    def pipe_opened(self, inbound: Inbound) -> None:
        """Note and announce an open pipe. :raises Closed: there are too many."""
        self._inbox.opened(inbound)
        assert inbound.identity is not None, "judged"
        if not self.silent:
            self.guarded(lambda: self.observer.inbound_opened(inbound.pipe, inbound.identity, inbound.host))  # type: ignore[arg-type]

    def postpone(self, inbound: Inbound) -> None:
        """Give a pipe that holds frames another turn in the next round, without waiting for an event."""
        assert inbound.shared is not None, "it is open"
        inbound.shared.waiting.append(inbound)
        self._behind[inbound.shared] = None

    def finish(self, connection: Connection, end: Closed | None) -> None:
        """Close a connection. Without an ``end`` nobody is told. I/O thread only."""
        if connection.finished:
            return
        with connection.lock:
            connection.finished = True
        if self._connections.pop(connection.descriptor, None) is not None:
            if not connection.away:
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
            if self._inbox.left(connection) and not self.silent:
                self.guarded(lambda: self.observer.inbound_closed(connection.pipe))
        elif isinstance(connection, ExpressLane):
            self._lanes.discard(connection)
            self._frames_sent += connection.frames_sent
            self._bytes_sent += connection.bytes_sent
            if end is not None and not connection.closed and not self.silent:
                prefix = f"no connection to {connection.address}: " if isinstance(end, HandshakeFailed) else ""
                self.guarded(lambda: self.observer.lane_closed(connection, f"{prefix}{end}"))

    def linger(self, connection: Connection) -> None:
        """Give a connection a moment to send the rest of its last frame. I/O thread only."""
        if not connection.finished:
            connection.deadline_ns = time.monotonic_ns() + _LINGER_NS
            self.sweep_by(connection.deadline_ns)

    def adopt(self, connection: Connection, mask: int) -> None:
        """Wait for these events of a new connection, until its deadline. I/O thread only."""
        connection.mask = mask
        self._connections[connection.descriptor] = connection
        self._epoll.register(connection.descriptor, mask)
        self.sweep_by(connection.deadline_ns)

    def shake(self, connection: Connection) -> None:
        """Have the thread for handshakes take a step, then call :meth:`Connection.advanced`. I/O thread only."""
        connection.away = True
        self._epoll.unregister(connection.descriptor)
        self._handshakes.take_step(connection)
        self.sweep_by(self._handshakes.due_ns)

    def look_after(self, lane: ExpressLane) -> None:
        """Look at a lane every few milliseconds until there is news of it. I/O thread only."""
        self._lookout.add(lane)

    def sweep_by(self, at_ns: int) -> None:
        """Check all deadlines at that instant or earlier. I/O thread only."""
        self._due_ns = min(self._due_ns, at_ns)

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
            self.round += 1
            behind = list(self._behind) if self._behind else ()
            newcomers = False
            for descriptor, events in self._epoll.poll(0, _EVENTS) if behind else self._wait(left_ns):
                connection = connections.get(descriptor)
                if connection is not None:
                    if connection.open:
                        self._turn(connection, events)
                    elif len(shaking) < _HANDSHAKES:
                        shaking.append((connection, events))
                elif descriptor == self._wake:
                    os.eventfd_read(descriptor)
                    self._woken = False  # before the tasks: who posts from now on wakes us again
                elif descriptor == self._inbox.descriptor:
                    newcomers = True
            for turn in behind:
                self._catch_up(turn)
            if shaking:  # after the frames that have come: a handshake takes as long as a hundred of them
                self._shake(shaking)
            if newcomers:
                self.guarded(lambda: self._inbox.accept(self))
            for _ in range(len(tasks)):  # what these tasks post has the next turn, so that events don't wait for ever
                self.guarded(tasks.popleft())
            if self._lookout.lanes or self._buried:
                self._end_round()
        self._bury()
        self._epoll.close()

    def _end_round(self) -> None:
        for lane in self._lookout.news(time.monotonic_ns()):
            if not self.silent:
                self.guarded(partial(self.observer.lane_writable, lane))
        self._bury()

    def _wait(self, left_ns: int) -> list[tuple[int, int]]:
        """The descriptors with their events. After ``_BRISK`` waits shorter than ``spin_ns`` it polls again and again
        before it sleeps: a peer that answers an answer does not wait, and ten readings a second never make it spin."""
        poll, spin_ns = self._epoll.poll, self._spin_ns
        if self._lookout.lanes:
            left_ns = min(left_ns, LOOK_NS)
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
        shared = connection.shared
        if shared is not None and shared.waiting:  # it comes after the other pipes of its identity, which hold frames
            if connection not in shared.waiting:
                shared.waiting.append(connection)
            return
        self._take_turn(connection, events)

    def _take_turn(self, connection: Connection, events: int) -> None:
        try:
            connection.turn(events)
        except BaseException as error:  # noqa: BLE001 - one broken connection must not end the others
            self._end(connection, error)

    def _end(self, connection: Connection, error: BaseException) -> None:
        if isinstance(error, Closed):
            self.finish(connection, error)
        else:
            _log.error("a link failed inside: it is closed", exc_info=error)
            self.finish(connection, Closed("internal error"))

    def _came_back(self, connection: Connection) -> None:
        """The thread for handshakes has taken a step of this connection."""
        if not connection.finished:
            connection.away = False
            self._epoll.register(connection.descriptor, connection.mask)
            try:
                connection.advanced()
            except BaseException as error:  # noqa: BLE001 - one broken connection must not end the others
                self._end(connection, error)

    def _catch_up(self, turn: Turn) -> None:
        """Give an identity whose pipes hold frames its turn: one pipe in each round."""
        inbound = turn.waiting.popleft()
        if not inbound.finished:
            self._take_turn(inbound, select.EPOLLIN)
        if not turn.waiting:
            del self._behind[turn]

    def _shake(self, shaking: list[tuple[Connection, int]]) -> None:
        """Go on with these handshakes."""
        for connection, events in shaking:
            if not connection.finished:
                self._take_turn(connection, events)
        shaking.clear()

    def _bury(self) -> None:
        for connection in self._buried:
            with contextlib.suppress(OSError):
                connection.close_socket()
        self._buried.clear()

    def _sweep(self) -> None:
        """End the connections that are overdue, and find out when to look again."""
        now_ns = time.monotonic_ns()
        due_ns = self._expiry_due_ns
        if now_ns >= due_ns:
            self._end_expired()
            due_ns = self._expiry_due_ns = now_ns + _EXPIRY_CHECK_NS
        due_ns = min(due_ns, self._inbox.end_rest(now_ns), self._handshakes.go_on(now_ns))
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

    def _prove_again(self, connections: list[Connection], trusted: Contexts) -> None:
        """Close the first of ``connections`` that the new authority does not vouch for, or that is still in its
        handshake with the old one. The others have their turn after the frames that have come."""
        while connections and connections[-1].finished:
            connections.pop()
        if not connections:
            return
        connection = connections.pop()
        if not connection.is_vouched_for(trusted):
            self._unvouched += 1
            why = "this node has a new authority, which did not sign its certificate"
            if connection.open:
                self._failures.tell(FailureKind.AUTHORITY, connection.label, why, isinstance(connection, ExpressLane))
            self.finish(connection, Closed(why))
        self.post(lambda: self._prove_again(connections, trusted))

    def _start_dial(self, lane: ExpressLane) -> None:
        if lane.closed or self._stopping:
            lane.finished = True
            return
        self._lanes.add(lane)
        self.sweep_by(lane.deadline_ns)
        self._dialling.start(lane)

    def _stop(self) -> None:
        self._stopping = True
        self._inbox.close()
        for connection in [*self._connections.values(), *self._lanes]:
            if isinstance(connection, ExpressLane):
                connection.end_quietly()
            else:
                self.finish(connection, None)
