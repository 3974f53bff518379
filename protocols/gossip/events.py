"""What gossip tells of the entries that it takes and refuses."""

from typing import Literal

from protocols.base.ids import NodeId
from protocols.machine import Event


class EntryAccepted(Event, frozen=True):
    """A signed entry, new or newer than what was held, is held now."""

    author: NodeId
    kind: str
    version: int
    source: NodeId
    """The neighbour it came from; this node for its own."""
    age_ns: int
    """Since it was signed."""


class EntryRefused(Event, frozen=True):
    """A neighbour handed over an entry that is forged or malformed, or its author made two of one version. Told once
    a minute and neighbour."""

    source: NodeId
    author: str
    kind: str
    version: int
    because: Literal["forged", "malformed", "equivocation"]
