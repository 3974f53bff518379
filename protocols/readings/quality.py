"""Quality of service of a subscription."""

from msgspec import Struct

from protocols.base.errors import LocalProtocolError


class Quality(Struct, frozen=True):
    """Quality of service of a subscription."""

    deadline_ns: int = 0
    """A stream that is silent for longer is reported; 0: never."""
    min_interval_ns: int = 0
    """At most one reading of a stream is delivered in this time; 0: all are."""
    conflate: bool = False
    """Whether only the newest reading of a key waits for a slow link or reader."""
    history: bool = True
    """Whether the subscription starts with the last known values."""
    hops: int = 0
    """How many nodes may pass a reading on between its origin and this node; 0: only neighbours are asked."""
    own: bool = True
    """Whether readings of this node are delivered too."""
    every: bool = False
    """Whether a link that carries less than is published carries all it can, and not only the newest of a key."""

    def __post_init__(self) -> None:
        """:raises LocalProtocolError: when both all readings and only the newest are asked for."""
        if self.conflate and self.every:
            raise LocalProtocolError(
                "conflate asks for only the newest reading of a key, and every for all of them: use one of both"
            )
