"""The settings of carrying, of one node."""

from typing import Final

from msgspec import Struct

from protocols.base.ids import NodeId
from protocols.base.limits import SECOND

HOUR_NS: Final = 3_600 * SECOND


class CarryingSettings(Struct, frozen=True, kw_only=True):
    """See the module."""

    hands_over: bool = True
    """Whether records of this node may be carried by neighbours."""
    carries: bool = True
    """Whether this node carries records of neighbours, once it reaches a relay."""
    relay: NodeId | None = None
    """The only relay that records are sealed to; None: any of the mesh."""
    after_ns: int = 60 * SECOND
    """How long the relay must be out of reach before records are handed over."""
    patience_ns: int = HOUR_NS
    """How long a carrier has for a batch before another one is given it too."""
    max_bytes: int = 64 * 1024 * 1024
    """How much is carried for others."""
    max_age_ns: int = 24 * HOUR_NS
    """How long a batch is carried, and the reply to it."""
    reach_ns: int = HOUR_NS
    """How long after the relay answered last this node says that it reaches it."""
