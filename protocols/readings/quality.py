"""Quality of service of a subscription."""

from msgspec import Struct


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
