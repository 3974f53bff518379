"""What people and programs are shown of a neighbour."""

from msgspec import Struct

from protocols.base.ids import Lane, NodeId, Role
from protocols.membership.machine import State
from protocols.wire.inference import Offer


class PeerView(Struct, frozen=True):
    """A neighbour, for people and programs."""

    node: NodeId
    role: Role
    state: State
    incarnation: int
    met: bool
    round_trip_ns: int
    """0: not measured yet."""
    silent_ns: int
    hears_us: bool
    lanes: tuple[Lane, ...]
    inbound_pipes: int
    waiting_readings: int
    waiting_bytes: int
    offers: tuple[Offer, ...]
    throughput_bytes_per_s: float = 0.0
    """Of the link to it; 0: not measured yet."""
