"""The events of gossip: entries that were accepted or refused."""

from typing import Literal

from protocols.base.effects import Event
from protocols.base.ids import NodeId


class EntryAccepted(Event, frozen=True):
    """A signed entry, new or newer than what was held, is held now."""

    author: NodeId
    kind: str
    version: int
    source: NodeId
    """The neighbour it came from; this node for its own."""
    age_ns: int
    """Time since it was signed."""


class EntryRefused(Event, frozen=True):
    """A neighbour sent an entry that is forged or malformed, or whose author made two of one version or signs too many.
    The author is to blame for the last two. It is reported at most once a minute for each neighbour."""

    source: NodeId
    author: str
    kind: str
    version: int
    because: Literal["forged", "malformed", "equivocation", "over_rate"]
