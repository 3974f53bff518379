"""The settings of gossip."""

from msgspec import Struct

from protocols.base import limits


class GossipSettings(Struct, frozen=True):
    """The settings of gossip. Times are in nanoseconds; ``limits`` gives the reasons for the defaults."""

    trickle_min_ns: int = limits.TRICKLE_MIN_NS
    trickle_max_ns: int = limits.TRICKLE_MAX_NS
    gather_ns: int = limits.NEWS_GATHER_NS
    checks_at_once: int = 1
    """Signatures checked before readings get their turn: 80 µs, or 240 with the certificate of a new author. A
    simulator, where they cost nothing, checks all of a frame."""
    check_pause_ns: int = limits.MS
    max_entries: int = limits.MAX_ENTRIES
