"""A neighbour that frames can be sent to now, as membership tells other machines."""

from typing import NamedTuple

from protocols.base.ids import NodeId
from protocols.base.time import NEVER


class Reach(NamedTuple):
    """A neighbour in reach."""

    node: NodeId
    round_trip_ns: int
    lasts_ns: int = NEVER
    """How long it will probably stay in reach."""
