"""What membership knows of one neighbour; see :mod:`protocols.membership.machine` for its life."""

from enum import StrEnum
from typing import Final

from protocols.base.ids import Incarnation, Lane, NodeId, Role
from protocols.base.time import NEVER
from protocols.links.queues import LaneQueue
from protocols.membership.crowd import most_patience_ns
from protocols.membership.suspicion import Suspicion

_USUAL_SILENCES: Final = 3
"""A neighbour is suspected after so many times the silence that is usual for it; with two, one lost frame would do."""
_FADING: Final = 16
"""With each silence that ends, this part of the usual one is forgotten."""
_CROWD_GAPS: Final = 4
"""A neighbour in the same crowd sends to us about as often as we send to it, and sometimes two or three are late."""


class State(StrEnum):
    """The state of a neighbour."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"
    LEFT = "left"


class Neighbour:
    """A node whose certificate and Hello were checked, or to whose inbox we have a lane."""

    __slots__ = (
        "answered_ns", "beat_ns", "beats", "bulk", "doubt", "doubt_ends_ns", "echo_came_ns", "echo_sent_ns", "echoed",
        "first_seen_ns", "heard_by_peer", "heard_ns", "heartbeat_received", "heartbeat_sent", "in_debt", "inbound",
        "inbox", "incarnation", "last_heard_ns", "met", "node", "patience_ns", "queue", "realtime", "role",
        "round_trip_ns", "silence_ns", "silent_ns", "since_ns", "state", "suspicion",
    )  # fmt: skip

    def __init__(self, node: NodeId, role: Role, first_seen_ns: int, now: int) -> None:
        self.node, self.role, self.first_seen_ns = node, role, first_seen_ns
        self.incarnation = Incarnation(0)
        self.state = State.ALIVE
        self.since_ns = now
        self.met = False
        self.inbound: set[int] = set()
        self.inbox: tuple[tuple[str, int], ...] = ()
        """Where its inbox is, by its newest Hello: where that came from first, then the addresses in it."""
        self.realtime = self.bulk = 0
        """The dial ids of the open lanes to it; 0: the lane is not open."""
        self.queue: LaneQueue | None = None
        """The queue of its realtime lane; None before the engine has made it."""
        self.last_heard_ns = now
        self.in_debt = True
        """Whether its readings may have had too many elements; its account knows. It outlives its links."""
        self.heartbeat_sent = 0
        self.heartbeat_received = 0
        self.beats = 0
        """Heartbeats that came since our last round of them."""
        self.answered_ns = -NEVER
        """When it was last sent a heartbeat because it asked for one."""
        self.echo_sent_ns, self.echo_came_ns = 0, now  # the peer's clock in its newest heartbeat, and when it came
        self.heard_by_peer = False
        self.echoed = 0
        """The newest of our heartbeats that it has heard."""
        self.heard_ns = now
        """When it last said that it had heard another heartbeat of ours; our lane opening counts as well."""
        self.doubt, self.doubt_ends_ns = 0, now
        """Our heartbeat that it has to hear by then, or else the lane to it is lost; 0: there is no doubt."""
        self.round_trip_ns = 0
        self.suspicion: Suspicion | None = None
        self.beat_ns = -NEVER
        """When it was sent a heartbeat last."""
        self.silent_ns = 0
        """How long it had been silent at the last look."""
        self.silence_ns = self.patience_ns = 0
        """How long it usually is silent: the longest of its recent silences, where older ones count less. And how long
        it may be silent before it is suspected, because of that."""

    def is_new(self, now: int, gap_ns: int) -> bool:
        """Whether it may have waited for a turn to send to us ever since it met us, in a crowd with such a gap."""
        return now - self.first_seen_ns < most_patience_ns(gap_ns)

    def reckon_patience(self, silent_ns: int, gap_ns: int) -> int:
        """Reckon how long this neighbour may be silent, by what is usual: a channel that is full lets frames through
        rarely and unevenly. ``silent_ns``: how long it has been silent. ``gap_ns``: how far apart our own frames to one
        neighbour are because of a full channel. Call it regularly."""
        if silent_ns < self.silent_ns:  # it has spoken since the last look
            self.silence_ns = max(self.silent_ns, self.silence_ns - self.silence_ns // _FADING)
        self.silent_ns = silent_ns
        wanted_ns = max(_USUAL_SILENCES * self.silence_ns, _CROWD_GAPS * gap_ns)
        self.patience_ns = min(wanted_ns, most_patience_ns(gap_ns))
        return self.patience_ns

    def lasts_ns(self, now: int, suspect_after_ns: int) -> int:
        """How long it will probably stay in reach. A contact is expected to last as long as it has lasted, since those
        of vehicles have heavy tails; 0 when it is silent for half of the time after which it is suspected."""
        if 2 * (now - self.last_heard_ns) >= max(suspect_after_ns, self.patience_ns):
            return 0
        return now - self.since_ns

    def wait_for_hello(self, patience_ns: int) -> int:
        """Note how long a neighbour that accepted our lane may take to say Hello itself. Returns that time."""
        self.patience_ns = patience_ns
        return patience_ns

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """The lanes to it that are open."""
        open_dials = ((Lane.REALTIME, self.realtime), (Lane.BULK, self.bulk))
        return tuple(lane for lane, dial in open_dials if dial)

    def dial_of(self, lane: Lane) -> int:
        """The dial id of a lane; 0: it is not open."""
        return self.realtime if lane is Lane.REALTIME else self.bulk

    def set_dial(self, lane: Lane, dial: int) -> None:
        """Note that a lane is open, or with 0 that it is not open any more."""
        if lane is Lane.REALTIME:
            self.realtime = dial
        else:
            self.bulk = dial
