"""The links of one node on NNG sockets: an inbox, the lanes it dials, and the two threads that serve them.

Invariants:
- the library's callbacks decide and enqueue; the I/O thread opens and closes sockets and gives notice;
- a lane has at most one pipe in its life: the library's redial serves only until the first;
- ``try_send`` never takes a second frame while one is under way. That is what batches readings: whoever has more waits
  for ``lane_writable`` and sends it in one frame;
- strangers can't make anything grow: pipes are bounded, and mute connections are closed;
- no pipe outlives its certificate for long: NNG does not show when that ends, so each pipe ends after about an hour,
  and the next handshake proves the certificate again. The dialler ends it first, after its last frame.
"""

import heapq
import itertools
import logging
import os
import random
import select
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial

from meshnode.links.names import STAGGER_S, NoConnection, is_name
from meshnode.links.nng.connections import Connections
from meshnode.links.nng.contract import (
    Handshake,
    PullSocket,
    SocketLibrary,
    Watch,
    addresses_of,
    failed_attempts,
    lasting_failure,
    no_connection,
)
from meshnode.links.nng.gate import Gate
from meshnode.links.nng.inbound import InboundPipe, InboundPipes
from meshnode.links.nng.lane import LaneState, NngLane
from meshnode.links.peer import identify, url_of
from meshnode.links.tls import REFUSED, UNREACHABLE, FailureKind, Failures
from meshnode.links.transport import Address, CredentialFiles, FailedLink, OutgoingLane, TransportObserver
from protocols.base.errors import TransportError
from protocols.base.ids import MeshName
from protocols.base.limits import DIAL_TIMEOUT_NS, MAX_NEIGHBOURS, MS, SECOND

_log = logging.getLogger(__name__)

_MAX_INBOUND_PIPES = 4 * MAX_NEIGHBOURS
"""Two lanes for each neighbour, and as many again while the pipes of restarted neighbours drain."""
_INBOUND_GRACE_NS = 10 * MS
"""The time between the library's notice that a pipe is gone and ours: the receiving thread may still hold a last
frame."""
_DIAL_CHECK_NS = 400 * MS
"""How often a dial in progress is checked for a failure that repeating can't mend."""
_SWEEP_NS = SECOND
"""How often pipes are compared with the kernel's connections, which takes 0.3 ms for a hundred of them, and hosts that
were shut out are let in again."""
_HANDSHAKE_NS = DIAL_TIMEOUT_NS
_SETTLE_NS = 5 * MS
"""The time from taking the next frame until the kernel has the last one: one more step on the library's threads."""
_LINGER_NS = 200 * MS
"""A frame is handed over in steps on the library's threads: a lane closed at once would often lose its last one."""
_LANE_AGE_NS = 3_600 * SECOND
_PIPE_AGE_NS = 5_400 * SECOND
"""The age of a pipe into the inbox. It is longer, so that the pipe ends here only when its dialler (another link
engine, or a program of somebody else) does not end it."""
_SPREAD = 0.75
"""Each lane and pipe lives for at least this share of its age, so that links opened together don't end together."""
_MAX_NAMES = 32
"""The most host names that are looked up at once, each on a thread of its own."""
_STAGGER_NS = int(STAGGER_S * SECOND)
_ONE_SHOT = select.EPOLLIN | select.EPOLLONESHOT


def _life_ends_ns(age_ns: int) -> int:
    return time.monotonic_ns() + int(age_ns * random.uniform(_SPREAD, 1.0))


class NngLinks:
    """See ``Transport``."""

    def __init__(self, library: SocketLibrary, observer: TransportObserver, mesh: MeshName) -> None:
        self._library = library
        self._observer = observer
        self._mesh = mesh
        self._inbox: PullSocket | None = None
        self._inbound = InboundPipes(observer, _MAX_INBOUND_PIPES)
        self._receiver: threading.Thread | None = None
        self._receiving_since_ns: int | None = None
        self._frames_received = self._bytes_received = self._frames_dropped = 0
        self._refused_inbound = self._refused_outbound = self._mute_closed = self._outlived = 0
        self._frames_sent = self._bytes_sent = self._names = 0
        self._failures = Failures(time.monotonic_ns)
        self._lanes: dict[int, NngLane] = {}
        self._connections: Connections | None = None
        self._gate: Gate | None = None
        self._changing = threading.Lock()
        self._closing = self._stopping = self._stopped = False
        self._tasks: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        # not at close: a late close() of a lane may still write to it, and the number may then be another file's
        weakref.finalize(self, os.close, self._wake).atexit = False
        self._epoll.register(self._wake, select.EPOLLIN)
        self._io = threading.Thread(target=self._run_io, name="mesh-io", daemon=True)
        self._io.start()

    def listen(self, host: str, port: int) -> int:
        """See ``Transport.listen``."""
        with self._changing:
            if self._inbox is not None or self._closing:
                raise TransportError(
                    f"can't listen on {Address(host, port)}: this transport is closed or has an inbox: open another"
                )
            inbox = self._library.pull(host, port, Watch(self._judge_inbound, lambda pipe: None, self._inbound_removed))
            self._inbox = inbox
            self._receiver = threading.Thread(
                target=self._run_receiver, args=(inbox,), name="mesh-receive", daemon=True
            )
            self._receiver.start()
        self._connections = Connections(inbox.port, _HANDSHAKE_NS)
        self._gate = Gate(inbox.port)
        self.post(lambda: self._later(_SWEEP_NS, self._sweep))
        return inbox.port

    def dial(self, address: Address, greeting: Callable[[], bytes], timeout_s: float) -> OutgoingLane:
        """See ``Transport.dial``."""
        lane = NngLane(self, address, greeting, _life_ends_ns(_LANE_AGE_NS))
        self.post(partial(self._start_dial, lane, timeout_s))
        return lane

    def close_pipe(self, pipe: int) -> None:
        """See ``Transport.close_pipe``."""
        if self._inbox is not None and self._inbound.get(pipe) is not None:
            self._inbox.close_pipe(pipe)

    def renew(self, credentials: CredentialFiles) -> None:
        """See ``Transport.renew``."""
        raise TransportError(
            f"certificate {credentials.certificate} can't be taken into use while the node runs on link engine 'nng': "
            "start the node anew, or configure link engine 'express'"
        )

    def receiving_since_ns(self) -> int | None:
        """See ``Transport.receiving_since_ns``."""
        return self._receiving_since_ns

    def failures(self) -> list[FailedLink]:
        """See ``Transport.failures``."""
        return self._failures.recent()

    def statistics(self) -> dict[str, int]:
        """See ``Transport.statistics``."""
        lanes = list(self._lanes.values())
        with self._changing:
            failed = self._inbox.counters() if self._inbox is not None and not self._closing else {}
        return {
            "handshakes_refused": self._refused_inbound + self._refused_outbound,
            "handshakes_failed": failed.get("auth", 0) + failed.get("proto", 0),
            "mute_connections_closed": self._mute_closed,
            "outlived_connections_closed": self._outlived,
            "hosts_held_back": self._gate.times_shut if self._gate is not None else 0,
            "frames_received": self._frames_received,
            "bytes_received": self._bytes_received,
            "frames_dropped": self._frames_dropped,
            "frames_sent": self._frames_sent + sum(lane.frames_sent for lane in lanes),
            "bytes_sent": self._bytes_sent + sum(lane.bytes_sent for lane in lanes),
            "lanes": len(lanes),
        }

    def close(self) -> None:
        """See ``Transport.close``."""
        with self._changing:
            first, self._closing = not self._closing, True
        self._inbound.silence()
        if first:
            if self._inbox is not None:
                self._inbox.close()
            self.post(self._stop)
        for thread in (self._receiver, self._io):
            if thread is not None and thread is not threading.current_thread():
                thread.join()

    # --- for lanes, any thread -------------------------------------------------------------------------------------

    def post(self, task: Callable[[], None]) -> None:
        """Have the I/O thread run ``task``, in order."""
        self._tasks.append(task)
        os.eventfd_write(self._wake, 1)

    def arm(self, descriptor: int) -> None:
        """Have ``lane_writable`` called once when the socket of that descriptor takes a frame. Under the lock of an
        open lane."""
        self._epoll.modify(descriptor, _ONE_SHOT)

    def linger(self, lane: NngLane) -> None:
        """Release a finished lane once its last frame is on its way, on the I/O thread."""
        if lane.pipe == 0 or lane.push is None:
            self._release(lane)
        else:
            self.arm(lane.push.descriptor)
            self._later(_LINGER_NS, partial(self._release, lane))

    def _release(self, lane: NngLane) -> None:
        push, lane.push = lane.push, None
        if push is not None:
            del self._lanes[push.descriptor]
            self._epoll.unregister(push.descriptor)
            push.close()
            self._frames_sent += lane.frames_sent
            self._bytes_sent += lane.bytes_sent
        if self._stopping and not self._lanes:
            self._stopped = True

    # --- the library's threads -------------------------------------------------------------------------------------

    def _judge_inbound(self, handshake: Handshake) -> bool:
        self.post(partial(self._pay_handshake, handshake.host))
        identity, detail = identify(handshake.names, self._mesh)
        reason = self._observer.admit(identity, detail, None, handshake.host)
        if identity is not None and reason is None and not self._closing:
            ends_ns = _life_ends_ns(_PIPE_AGE_NS)
            known = InboundPipe(handshake.pipe, identity, handshake.host, handshake.port, ends_ns)
            if self._inbound.admit(known):
                self.post(partial(self._inbound.announce, known))
                return True
        self._refused_inbound += 1
        who = f"{identity.role.value} {identity.node} at {handshake.host}" if identity is not None else handshake.host
        why = f"refused: {reason or detail or 'too many links come in'}"
        self.post(partial(self._failures.remember, REFUSED, who, why))
        return False

    def _inbound_removed(self, pipe: int) -> None:
        known = self._inbound.get(pipe)
        if known is not None:
            self.post(lambda: self._later(_INBOUND_GRACE_NS, partial(self._inbound.close, known)))

    def _judge_lane(self, lane: NngLane, handshake: Handshake) -> bool:
        if lane.judged or lane.state is not LaneState.DIALLING:
            return False
        lane.judged = True
        reason: str | None = "internal error while its identity was checked"
        try:
            identity, detail = identify(handshake.names, self._mesh)
            reason = self._observer.admit(identity, detail, lane, handshake.host)
            if identity is not None and reason is None:
                lane.identity, lane.pipe = identity, handshake.pipe
                if handshake.own_port:
                    lane.ends = (handshake.host, handshake.port), handshake.own_port
                return True
            reason = reason or detail
        finally:
            if lane.identity is None:
                self._refused_outbound += 1
                self.post(partial(self._lane_finished, lane, f"refused: {reason}", REFUSED))
        return False

    def _lane_connected(self, lane: NngLane, pipe: int) -> None:
        if pipe == lane.pipe:
            self.post(partial(self._lane_opened, lane))

    def _lane_removed(self, lane: NngLane, pipe: int) -> None:
        if pipe == lane.pipe:
            self.post(partial(self._lane_finished, lane, f"{lane.address} closed the connection"))
            # when a process dies, its pipe into our inbox ends too: don't wait for the next sweep to see that
            self.post(lambda: self._later(_INBOUND_GRACE_NS, self._compare_connections))

    # --- the receiving thread --------------------------------------------------------------------------------------

    def _run_receiver(self, inbox: PullSocket) -> None:
        while (received := inbox.receive()) is not None:
            pipe, frame = received
            self._receiving_since_ns = time.monotonic_ns()
            try:
                if self._inbound.receive(pipe, frame):
                    self._frames_received += 1
                    self._bytes_received += len(frame)
                else:
                    self._frames_dropped += 1
            except BaseException:  # noqa: BLE001 -- a subscriber's bug, or its sys.exit(), must not end receiving
                _log.exception("a frame failed in its observer")
            self._receiving_since_ns = None

    # --- the I/O thread --------------------------------------------------------------------------------------------

    def _run_io(self) -> None:
        while not self._stopped:
            timeout_s = -1.0
            if self._timers:
                timeout_s = max(0.0, (self._timers[0][0] - time.monotonic_ns()) / SECOND)
            for descriptor, _ in self._epoll.poll(timeout_s):
                if descriptor == self._wake:
                    os.eventfd_read(self._wake)
                elif (lane := self._lanes.get(descriptor)) is not None:
                    self._guarded(partial(self._lane_writable, lane))
            while self._tasks and not self._stopped:
                self._guarded(self._tasks.popleft())
            now = time.monotonic_ns()
            while self._timers and self._timers[0][0] <= now and not self._stopped:
                self._guarded(heapq.heappop(self._timers)[2])
        self._tasks.clear()
        self._timers.clear()
        self._epoll.close()

    def _guarded(self, task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException:  # noqa: BLE001 -- an observer's bug, or its sys.exit(), must not end the links
            _log.exception("a notice of the links failed in its observer")

    def _later(self, delay_ns: int, task: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time.monotonic_ns() + delay_ns, next(self._order), task))

    def _start_dial(self, lane: NngLane, timeout_s: float) -> None:
        if lane.state is not LaneState.DIALLING or self._closing:
            return
        deadline_ns = time.monotonic_ns() + int(timeout_s * SECOND)
        if not is_name(lane.address.host):
            self._dial([lane.address], lane, deadline_ns, timeout_s)
        elif self._names >= _MAX_NAMES:
            self._lane_finished(lane, f"{self._names} host names are being looked up: use IP addresses")
        else:
            self._names += 1
            look_up = partial(self._look_up, lane, deadline_ns, timeout_s)
            threading.Thread(target=look_up, name="mesh-look-up", daemon=True).start()

    def _look_up(self, lane: NngLane, deadline_ns: int, timeout_s: float) -> None:
        """Look a host name up, on a thread of its own: NNG has one such thread, and every dial needs it."""
        try:
            url_of(lane.address)
            addresses = addresses_of(lane.address)
        except (NoConnection, TransportError) as error:
            self.post(partial(self._looked_up, lane, f"no connection to {lane.address} ({error})"))
        else:
            self.post(partial(self._looked_up, lane, ""))
            self.post(partial(self._dial, addresses, lane, deadline_ns, timeout_s))

    def _looked_up(self, lane: NngLane, failure: str) -> None:
        self._names -= 1
        if failure:
            self._lane_finished(lane, failure)

    def _dial(self, addresses: list[Address], lane: NngLane, deadline_ns: int, timeout_s: float) -> None:
        """Dial the first of ``addresses``, and the others by and by while nobody has answered."""
        if lane.state is not LaneState.DIALLING or self._closing:
            return
        watch = Watch(
            partial(self._judge_lane, lane), partial(self._lane_connected, lane), partial(self._lane_removed, lane)
        )
        try:
            push = self._library.push(addresses[0], watch)
        except TransportError as error:
            self._lane_finished(lane, str(error))
            return
        lane.push, lane.ways = push, len(addresses)
        self._lanes[push.descriptor] = lane
        self._epoll.register(push.descriptor, select.EPOLLONESHOT)
        self._check_dial_later(lane, deadline_ns, timeout_s)
        for number, address in enumerate(addresses[1:], 1):
            self._later(number * _STAGGER_NS, partial(self._dial_also, lane, address))

    def _dial_also(self, lane: NngLane, address: Address) -> None:
        if lane.state is LaneState.DIALLING and not lane.judged and lane.push is not None:
            lane.push.dial_also(address)

    def _check_dial_later(self, lane: NngLane, deadline_ns: int, timeout_s: float) -> None:
        wait_ns = min(_DIAL_CHECK_NS, deadline_ns - time.monotonic_ns())
        self._later(wait_ns, partial(self._check_dial, lane, deadline_ns, timeout_s))

    def _check_dial(self, lane: NngLane, deadline_ns: int, timeout_s: float) -> None:
        if lane.state is not LaneState.DIALLING or lane.push is None:
            return
        if lane.judged:  # NNG reports neither the beginning nor the end of a pipe that its peer closes at once
            if lane.overdue:
                self._lane_finished(lane, f"{lane.address} closed the connection")
            else:
                lane.overdue = True
                self._check_dial_later(lane, deadline_ns + _DIAL_CHECK_NS, timeout_s)
            return
        counters = lane.push.counters()
        if (failure := lasting_failure(counters)) is not None:
            kind = FailureKind.OTHER if counters.get("auth") else FailureKind.NOT_OURS
            self._failures.tell(kind, str(lane.address), failure, dialled=True)
            self._lane_finished(lane, f"no connection to {lane.address}: {failure}", None)
        elif lane.ways == 1 and failed_attempts(counters):  # NNG would go on, and membership tries no other place
            self._lane_finished(lane, no_connection(lane.address, None, counters))
        elif time.monotonic_ns() >= deadline_ns:
            self._lane_finished(lane, no_connection(lane.address, timeout_s, counters))
        else:
            self._check_dial_later(lane, deadline_ns, timeout_s)

    def _lane_opened(self, lane: NngLane) -> None:
        identity = lane.identity
        if lane.push is not None:
            lane.push.keep_only(lane.pipe)
        if identity is None or self._closing or lane.state is not LaneState.DIALLING:
            return
        if lane.greet(lane.greeting()):
            self._observer.lane_opened(lane, identity)

    def _lane_writable(self, lane: NngLane) -> None:
        with lane.lock:
            finished, told = lane.state is LaneState.FINISHED, lane.armed and lane.state is LaneState.OPEN
            lane.armed = False
        if finished:
            self._later(_SETTLE_NS, partial(self._release, lane))
        elif told and not self._closing:
            self._observer.lane_writable(lane)

    def _lane_finished(self, lane: NngLane, reason: str, kind: str | None = UNREACHABLE) -> None:
        """``kind`` of the failure to remember if the lane never opened. None: the failure is remembered already."""
        if kind is not None and lane.state is LaneState.DIALLING:
            self._failures.remember(kind, str(lane.address), reason, dialled=True)
        if lane.finish():
            self._release(lane)
            if not self._closing:
                self._observer.lane_closed(lane, reason)

    def _sweep(self) -> None:
        self._later(_SWEEP_NS, self._sweep)  # first, because an observer that fails must not end the sweeps
        if self._gate is not None and not self._closing:
            self._gate.go_on(time.monotonic_ns())
        self._compare_connections()
        self._end_outlived(time.monotonic_ns())

    def _pay_handshake(self, host: str) -> None:
        if self._gate is not None and not self._closing:
            self._gate.pay(host, time.monotonic_ns())

    def _end_outlived(self, now_ns: int) -> None:
        for pipe in self._inbound.outlived(now_ns):
            self._outlived += 1
            self.close_pipe(pipe)
        for lane in [lane for lane in self._lanes.values() if lane.ends_ns <= now_ns and lane.state is LaneState.OPEN]:
            if lane.finish():
                self._outlived += 1
                self.linger(lane)
                self._observer.lane_closed(lane, "closed after its hour: the next one proves the certificate again")

    def _compare_connections(self) -> None:
        if self._connections is None:
            return
        pipes = self._inbound.remotes()
        lanes = {lane.ends: lane for lane in self._lanes.values() if lane.ends and lane.state is LaneState.OPEN}
        found = self._connections.look(pipes, time.monotonic_ns(), lanes.keys())
        self._mute_closed += found.mute_closed
        for remote in found.vanished:
            self.close_pipe(pipes[remote])
        for ends in found.lanes_ended:
            self._lane_finished(lanes[ends], f"{lanes[ends].address} closed the connection")

    def _stop(self) -> None:
        self._stopping = True
        self._stopped = not self._lanes
        for lane in list(self._lanes.values()):
            lane.finish()
            self.linger(lane)
