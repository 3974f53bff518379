"""What a node knows about one stream of readings.

A stream is all readings of one (origin, key). Permissions and routes are decided once and kept here until a change of
interests makes them stale; see :mod:`protocols.readings.machine` for the rules.
"""

from typing import Final, NamedTuple

import msgspec

from protocols.base import limits
from protocols.base.allowance import Allowance
from protocols.base.errors import ValueUnsupported
from protocols.base.ids import NodeId, Role
from protocols.base.time import NEVER
from protocols.links.drops import Drops
from protocols.links.queues import LaneQueue
from protocols.readings.matching import KeyPattern
from protocols.readings.quality import Quality
from protocols.wire.readings import EventTime, Interest, Provenance, Reading, Want

IMMUTABLE: Final = frozenset((type(None), bool, int, float, str, bytes))
"""Types of values that can't be changed after they were published."""


class LocalSubscription:
    """A subscription of a program on this node."""

    __slots__ = ("expression", "number", "pattern", "quality")

    def __init__(self, number: int, expression: str, quality: Quality) -> None:
        self.number, self.expression, self.quality = number, expression, quality
        self.pattern = KeyPattern(expression)


class Asked(NamedTuple):
    """A want of a neighbour."""

    pattern: KeyPattern
    want: Want
    further: tuple[Want, int] | None = None
    """What this node asks others for on behalf of the neighbour: the want without hops, and over how many hops."""


class Route:
    """A neighbour that wants a key, with all its matching wants taken together. Where they differ, it gets more."""

    __slots__ = ("conflate", "count", "every", "hops", "last_ns", "min_interval_ns", "peer", "realtime", "wants")

    def __init__(self, peer: "Peer", wants: list[Want]) -> None:
        self.peer, self.realtime = peer, peer.realtime
        self.min_interval_ns, self.hops = wants[0].min_interval_us * 1_000, 0
        self.every = any(want.every for want in wants)
        self.conflate = not self.every
        for want in wants:
            self.hops = max(self.hops, want.hops)
            self.min_interval_ns = min(self.min_interval_ns, want.min_interval_us * 1_000)
            self.conflate = self.conflate and want.conflate
        self.last_ns = -NEVER
        self.wants, self.count = wants, 1
        """The wants, and how many neighbours have them."""


class Stream:
    """Everything that is known about one (origin, key)."""

    __slots__ = (
        "held_bytes", "how", "is_decided", "is_hearsay", "key", "kind", "last", "last_ns", "limited", "limited_last",
        "missed", "newest", "numbers", "origin", "payer", "permitted", "role", "routes", "routes_version", "shared",
        "size", "version",
    )  # fmt: skip

    def __init__(self, origin: str, key: str, payer: NodeId, is_hearsay: bool = False) -> None:
        """``payer``: this node, or the neighbour that the stream came from. ``is_hearsay``: whether others pass it on,
        and its origin does not send it itself."""
        # Fields that each reading needs come first: compiled code keeps them together in memory.
        self.origin, self.key = origin, key
        self.version = -1
        self.newest = -1
        self.size = -1
        """A reading of the same size and provenance as the last one holds as much memory; -1: none does."""
        self.kind: type = type(None)
        """The type of the value for which ``size`` was noted."""
        self.how: Provenance | None = None
        self.missed: tuple[int, ...] = ()  # subscriptions that were told that it is silent
        self.last: Reading | None = None
        self.last_ns = 0
        self.limited: tuple[LocalSubscription, ...] = ()
        self.numbers: tuple[int, ...] = ()  # subscriptions without a rate limit of their own
        self.role: Role | None = None  # the role for which permission was decided
        self.permitted = False
        self.is_decided = False  # whether all subscriptions that it goes to are in `numbers` and `limited`
        self.limited_last: dict[int, int] = {}
        self.routes: tuple[Route, ...] = ()
        self.routes_version = -1
        self.shared: tuple[Route, ...] = ()
        """Its routes for what fits a datagram, one of which leads to all who listen; empty: they are the same."""
        self.held_bytes = 0
        self.payer, self.is_hearsay = payer, is_hearsay


class Peer:
    """A neighbour as this machine sees it."""

    __slots__ = (
        "asked", "bulk", "held", "interest_version", "interests", "node", "passed_on", "put_off", "realtime", "recent",
        "role", "said", "since_ns", "steps", "without_place", "work",
    )  # fmt: skip

    def __init__(self, node: NodeId, role: Role, realtime: LaneQueue, bulk: LaneQueue, since_ns: int = 0) -> None:
        """``since_ns``: when it became a neighbour."""
        self.node, self.role, self.realtime, self.bulk, self.since_ns = node, role, realtime, bulk, since_ns
        self.interest_version = -1
        self.recent: Stream | None = None
        """The stream of its last reading."""
        self.said: tuple[Want, ...] = ()
        """The wants of its last Interest …"""
        self.asked: tuple[Asked, ...] = ()
        """… those that the access table permits …"""
        self.held: tuple[Asked, ...] = ()
        """… and those that its share has room for."""
        self.passed_on: tuple[tuple[Want, int], ...] = ()
        """What this node asks others for on its behalf; see :attr:`Asked.further`."""
        self.steps = 0
        """What matching a key with all of :attr:`held` costs."""
        self.without_place = 0
        """How many of its wants had no place in an Interest to others."""
        self.interests = Allowance(limits.INTERESTS_PER_S, limits.MAX_INTEREST_BURST, since_ns)
        self.put_off: Interest | None = None
        """An Interest that came when the allowance was used up."""
        self.work = Allowance(limits.MATCHING_STEPS_PER_S, limits.MAX_MATCHING_BURST, since_ns)
        """What it may cost, in steps of matching."""

    def hold(self, asked: tuple[Asked, ...]) -> None:
        """Hold these wants, and no others."""
        self.held = asked
        self.steps = sum([one.pattern.steps for one in asked])
        self.passed_on = tuple([one.further for one in asked if one.further is not None])


def check_time(when: EventTime) -> None:
    """Check a time. :raises ValueUnsupported: when it is out of range."""
    if type(when.utc_ns) is not int or when.utc_ns < 0 or when.uncertainty_ns < 0:
        raise ValueUnsupported(f"{when} is not a time: use whole nanoseconds since 1970, 0 or more")


def due_now(stream: Stream, now: int, drops: Drops) -> list[int]:
    """The subscriptions with a rate limit that get a reading of a stream now. For the others it is counted."""
    due = []
    for subscription in stream.limited:
        last_ns = stream.limited_last.get(subscription.number, -NEVER)
        if now - last_ns >= subscription.quality.min_interval_ns:
            stream.limited_last[subscription.number] = now
            due.append(subscription.number)
        else:
            drops.count("", stream.key, "rate_limited")
    return due


def one_hop_less(reading: Reading) -> Reading:
    """The reading as it is passed on, with one hop less."""
    return msgspec.structs.replace(reading, hops=reading.hops - 1)
