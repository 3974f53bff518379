"""What makes one engine, or one of its machines, different from another."""

from msgspec import Struct

from protocols.access import DEFAULT_RULES, AccessRule
from protocols.base import limits
from protocols.base.ids import Incarnation, MeshName, NodeId, Role
from protocols.gossip.entries import Seal


class MembershipSettings(Struct, frozen=True):
    """Times in nanoseconds; the reasons stand in ``limits``.

    A crash is noticed within ``lost_link_suspicion_ns``; a radio shadow is forgiven for
    ``suspect_after_silence_ns + suspicion_max_ns``. Lower both for faster fail-over, at the price of false alarms
    when computers are busy.
    """

    heartbeat_interval_ns: int = limits.HEARTBEAT_INTERVAL_NS
    suspect_after_silence_ns: int = limits.SUSPECT_AFTER_SILENCE_NS
    suspicion_min_ns: int = limits.SUSPICION_MIN_NS
    suspicion_max_ns: int = limits.SUSPICION_MAX_NS
    lost_link_suspicion_ns: int = limits.LOST_LINK_SUSPICION_NS
    local_stall_ns: int = limits.LOCAL_STALL_NS
    dial_timeout_ns: int = limits.DIAL_TIMEOUT_NS
    max_neighbours: int = limits.MAX_NEIGHBOURS


class GossipSettings(Struct, frozen=True):
    """Times in nanoseconds; the reasons stand in ``limits``."""

    trickle_min_ns: int = limits.TRICKLE_MIN_NS
    trickle_max_ns: int = limits.TRICKLE_MAX_NS
    gather_ns: int = limits.NEWS_GATHER_NS
    checks_at_once: int = 1
    """Signatures checked before readings get their turn: 80 µs, or 240 with the certificate of a new author. A
    simulator, where they cost nothing, checks all of a frame."""
    check_pause_ns: int = limits.MS
    max_entries: int = limits.MAX_ENTRIES


class NodeSettings(Struct, frozen=True):
    """What makes one engine different from another."""

    mesh: MeshName
    node: NodeId
    role: Role
    incarnation: Incarnation
    """Grows with every start."""
    inbox_port: int
    clock_uncertainty_ns: int = 10 * limits.MS
    access: tuple[AccessRule, ...] = DEFAULT_RULES
    membership: MembershipSettings = MembershipSettings()
    max_queue_readings: int = limits.MAX_QUEUE_READINGS
    gossip: GossipSettings = GossipSettings()
    seal: Seal | None = None
    """How entries are signed and checked; None: this node takes no part in gossip."""


class Quality(Struct, frozen=True):
    """Quality of service of a subscription."""

    deadline_ns: int = 0
    """Report a stream that was silent for longer; 0: never."""
    min_interval_ns: int = 0
    """At most one reading of a stream in this time; 0: all."""
    conflate: bool = False
    """Of readings that wait for a slow link or reader, only the newest of a key."""
    history: bool = True
    """Start with the last known values."""
    hops: int = 0
    """Ask neighbours to ask theirs: how many nodes may stand between."""
    own: bool = True
    """Readings of this node too."""
