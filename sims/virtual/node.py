"""A node in virtual time: its engine, its clocks, its processor and what it saw.

*Clocks*: the engine sees a monotonic clock that began at some other instant and runs a little fast or slow, and a UTC
clock that is wrong by some skew and may jump. Only the driver knows the true time.

*Processor*: two servers. One does the work of the protocol: receiving, sending, handshakes. While it is busy, or gets
no CPU at all, timers and frames to the node wait in line. Models run beside it (see :mod:`sims.world.compute`), as they
do in a real node, which runs them on threads of their own outside the interpreter's lock.

*Inbox*: a node looks at its frames when something depends on them (see :mod:`sims.virtual.pipes`).
"""

from array import array
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from protocols.base import limits
from protocols.base.effects import Event
from protocols.base.ids import MeshName, NodeId, PeerIdentity
from protocols.engine import Engine
from protocols.links.flow import Flow
from protocols.wire.readings import Reading
from sims.media.radio import Way
from sims.virtual.arrivals import Arrival
from sims.virtual.frames import SimFrame

MESH: Final = MeshName("sim")
"""The mesh that all simulated nodes belong to."""
EPOCH_UTC_NS: Final = 1_700_000_000 * limits.SECOND
"""The time in UTC at virtual time 0."""
SENT_KEPT: Final = 4_096
"""The number of readings of a node whose time of publishing is remembered."""
_BILLION: Final = 1_000_000_000


class Pipe:
    """One direction of one link: a lane of ``sender`` into the inbox of ``receiver``, a TCP stream with TLS on it.

    ``held`` are frames that the sender's kernel took and that get nowhere, since the receiver is out of reach.
    """

    __slots__ = (
        "aside", "cost_ns", "dial", "flow", "from_name", "from_number", "full", "greeted", "heard_ns", "hears", "held",
        "identity", "inbox", "last_ns", "looks", "number", "receiver", "replaceable", "sender", "sends", "stalled_ns",
        "to_number", "unconfirmed", "unconfirmed_bytes", "under_way", "used", "verified", "wait_ns", "way",
    )  # fmt: skip

    def __init__(
        self, number: int, sender: "SimNode", dial: int, receiver: "SimNode", identity: PeerIdentity | None = None
    ) -> None:
        """``identity``: the identity that TLS proved to the receiver; None means the sender's own. A pipe
        of dial 0 is not a lane, but belongs to a stranger on the sender's host."""
        # What each frame needs comes first, so that it lies together in memory.
        self.aside = False
        """Whether frames put on it wait, because the pipe stands still or its far end is closed."""
        self.full = False
        """Whether the sender had to wait until a frame arrived, and the pipe has not been empty since."""
        self.hears = True
        """Whether the receiver's end is open."""
        self.greeted = False
        """Whether its first frame came …"""
        self.verified = False
        """… and was a Hello of the identity, which is of the receiver's mesh."""
        self.used = False
        """Whether readings came through it."""
        self.sends = True
        """Whether the sender's end is open."""
        self.way: Way | None = None
        """The radio's path between both nodes, once it was looked up."""
        self.cost_ns = sender.frame_ns + receiver.frame_ns
        """CPU time that each frame takes at both ends."""
        self.last_ns = 0
        self.under_way = 0
        """Frames in the inbox of the receiver, where they will arrive in order."""
        self.unconfirmed: deque[tuple[int, int]] = deque()
        """The frames that the receiver's computer has not confirmed: when it will have, and their bytes."""
        self.unconfirmed_bytes = 0
        self.flow = Flow()
        self.replaceable = False
        """Whether it is a realtime lane, on which as little as possible should be under way."""
        self.looks = False
        """Whether the sender waits for a confirmation before it sends more."""
        self.inbox, self.receiver = receiver.inbox, receiver
        self.number = number
        self.heard_ns = -1
        """When the last frame came in; -1 when none did."""
        self.sender, self.dial, self.to_number = sender, dial, receiver.number
        self.identity = identity or sender.identity
        self.from_name, self.from_number = self.identity.node, sender.number
        self.stalled_ns = 0
        self.wait_ns = 0
        self.held: list[SimFrame] = []


class Coming:
    """A frame that comes in, the pipe it is on, and when it comes."""

    __slots__ = ("frame", "pipe", "tick_ns")

    def __init__(self, tick_ns: int, pipe: Pipe, frame: SimFrame) -> None:
        self.tick_ns, self.pipe, self.frame = tick_ns, pipe, frame


class Attempt:
    """A dial that has not been answered."""

    __slots__ = ("deadline_ns", "dial", "host", "node")

    def __init__(self, node: "SimNode", dial: int, host: str, deadline_ns: int) -> None:
        self.node, self.dial, self.host, self.deadline_ns = node, dial, host, deadline_ns


class SimNode:
    """One node over all its lives."""

    __slots__ = (
        "arrived", "attempts", "attentive", "backlog", "compute", "compute_ns", "crowd", "device_frame_ns",
        "device_handshake_ns", "dialled", "drift_ppb", "engine", "events", "_first_sent", "followed", "frame_ns",
        "handshake_ns", "_heard_ns", "identity", "inbound", "inbox", "joined", "lives", "mark", "name", "number",
        "offset_ns", "on_reading", "prompt", "received", "role", "running", "runs", "_sent_ns", "stalled_until_ns",
        "started_ns", "suspects", "suspects_any", "timer_ns", "utc_less_mono_ns",
    )  # fmt: skip

    def __init__(self, number: int, identity: PeerIdentity, engine: Engine) -> None:
        # What each frame needs comes first, so that it lies together in memory.
        self.engine = engine
        self.inbox: list[Coming] = []
        """Frames on their way, in the order in which they were sent. It is always the same list, as is ``arrived``."""
        self.crowd: list[tuple[int, int, Coming]] = []
        """The heap of the frames that were in the inbox when it was too long: their ticks, and numbers that order those
        of one tick. See :mod:`sims.virtual.inbox`."""
        self.joined = 0
        """How many times a frame was put into the crowd."""
        self.arrived: list[Arrival] = []
        """Readings that reached its subscriptions and have not been reported to the observer yet."""
        self.mark = 0
        """A hash of the arrivals that were reported, in their order. It becomes part of the digest."""
        self.stalled_until_ns = 0
        """The instant until which the process does nothing, because it is busy or gets no CPU."""
        self.frame_ns = 0
        """CPU time to receive a frame, and to send one."""
        self.offset_ns = 0
        self.drift_ppb = 0
        self.utc_less_mono_ns = EPOCH_UTC_NS
        self.attentive = True
        """Whether one of its subscriptions may have a deadline. If none has, a reading that arrives causes nothing."""
        self.prompt = False
        """Whether the observer is told at once of what arrived, because something follows from it. Such a node has to
        be attentive."""
        self.suspects_any = False
        self.running = True
        self.number = number
        self.suspects: set[NodeId] = set()
        """Neighbours whose next frame would refute a suspicion."""
        self.backlog: deque[tuple[int, Callable[[Any], None] | None, Any]] = deque()
        """What waits for the CPU: since when it waits, a handler, and the argument of the handler. None in place of a
        handler stands for the frames in the inbox."""
        self.timer_ns: int | None = None
        """When the engine's timer is due, in virtual time."""
        self.lives = 1
        self.name: NodeId = identity.node
        self.followed = False
        """Whether each delivery of its readings is recorded."""
        self._sent_ns = array("q")
        """When this life published the sequences from ``_first_sent`` on; -1 for those that it did not publish."""
        self._first_sent = 0
        self.identity, self.role = identity, identity.role
        self.started_ns = 0
        self.attempts: dict[int, Attempt] = {}
        self.dialled: dict[int, Pipe] = {}
        self.inbound: dict[int, Pipe] = {}
        self._heard_ns: dict[NodeId, int] = {}
        """By neighbour: when the last datagram, or the last frame on pipes that are gone by now, came in."""
        self.events: list[tuple[int, Event]] = []
        self.received: list[tuple[int, Reading]] = []
        self.on_reading: Callable[[Reading], None] | None = None
        """Takes readings instead of ``received``, which would keep all readings of a long run."""
        self.compute: Callable[[Any], None] | None = None
        """Takes the engine's Compute and CancelCompute. None: every run takes ``compute_ns``, all of them at once."""
        self.compute_ns = 50 * limits.MS
        self.runs: set[int] = set()
        self.handshake_ns = 0
        """CPU time of the node's part in a mutual TLS handshake."""
        self.device_frame_ns = self.device_handshake_ns = 0
        """The same costs when nothing slows the node down."""

    def set_clocks(self, offset_ns: int, skew_ns: int, drift_ppb: int) -> None:
        """At virtual time 0 the monotonic clock shows ``offset_ns``, and UTC is wrong by ``skew_ns``. Both gain
        ``drift_ppb`` nanoseconds in each true second."""
        self.offset_ns, self.drift_ppb = offset_ns, drift_ppb
        self.utc_less_mono_ns = EPOCH_UTC_NS + skew_ns - offset_ns

    def slow(self, factor: float) -> None:
        """From now on everything takes ``factor`` times as long as the device needs."""
        self.frame_ns = int(self.device_frame_ns * factor)
        self.handshake_ns = int(self.device_handshake_ns * factor)
        for pipe in (*self.dialled.values(), *self.inbound.values()):
            pipe.cost_ns = pipe.sender.frame_ns + pipe.receiver.frame_ns

    def drop_inbound(self, number: int) -> Pipe | None:
        """A pipe into its inbox is gone; returns that pipe, or None when there is none of that number."""
        pipe = self.inbound.pop(number, None)
        if pipe is not None and pipe.heard_ns > self._heard_ns.get(pipe.from_name, -1):
            self._heard_ns[pipe.from_name] = pipe.heard_ns
        return pipe

    def note_heard(self, name: NodeId, now: int) -> None:
        """Note that a datagram of another node came in."""
        self._heard_ns[name] = now

    def heard_ns(self, name: NodeId) -> int:
        """When the last frame of another node came in, in virtual time; -1 when none came in this life."""
        open_ns = max((pipe.heard_ns for pipe in self.inbound.values() if pipe.from_name == name), default=-1)
        return max(open_ns, self._heard_ns.get(name, -1))

    def forget(self) -> None:
        """Forget everything of its former life."""
        self._heard_ns.clear()
        del self._sent_ns[:]

    def note_sent(self, sequence: int, now: int) -> None:
        """Note that it published that sequence. The sequences of one life grow."""
        sent_ns = self._sent_ns
        left_out = sequence - self._first_sent - len(sent_ns)
        if not 0 <= left_out <= SENT_KEPT:  # the first sequence of this life
            del sent_ns[:]
            self._first_sent, left_out = sequence, 0
        for _ in range(left_out):
            sent_ns.append(-1)
        sent_ns.append(now)
        if len(sent_ns) > SENT_KEPT:
            del sent_ns[: SENT_KEPT // 2]
            self._first_sent += SENT_KEPT // 2

    def sent_at(self, sequence: int) -> int:
        """When it published that sequence, in virtual time; -1 when it did not, or too long ago."""
        index = sequence - self._first_sent
        return self._sent_ns[index] if 0 <= index < len(self._sent_ns) else -1

    def local(self, now: int) -> int:
        """Its monotonic clock at virtual ``now``."""
        if self.drift_ppb:
            return now + self.offset_ns + now * self.drift_ppb // _BILLION
        return now + self.offset_ns

    def virtual(self, local: int) -> int:
        """The first virtual instant at which its monotonic clock shows ``local``."""
        since = local - self.offset_ns
        if self.drift_ppb:
            return -(-since * _BILLION // (_BILLION + self.drift_ppb))
        return since
