"""What membership decides: effects on links, and what it tells of neighbours."""

from typing import ClassVar

from protocols.base.ids import Incarnation, NodeId, Role
from protocols.machine import Effect, Event


class Dial(Effect, frozen=True):
    """Open a lane to an inbox; answer with ``lane_opened`` or ``lane_closed`` of the same ``dial``."""

    dial: int
    host: str
    port: int
    timeout_ns: int


class HangUp(Effect, frozen=True):
    """Close a dialled lane; no answer expected."""

    dial: int


class ClosePipe(Effect, frozen=True):
    """Close a pipe into our inbox; ``inbound_closed`` follows."""

    pipe: int


class NeighbourMet(Event, frozen=True):
    """Both directions of a link are authenticated and open."""

    for_applications: ClassVar[bool] = True

    node: NodeId
    role: Role
    incarnation: Incarnation
    took_ns: int
    """Since the first sign of it: its advert, or its Hello."""


class NeighbourSuspected(Event, frozen=True):
    """Silent, or its pipes are gone."""

    for_applications: ClassVar[bool] = True

    node: NodeId
    because: str


class NeighbourRefuted(Event, frozen=True):
    """A suspected neighbour proved that it lives."""

    for_applications: ClassVar[bool] = True

    node: NodeId


class NeighbourDead(Event, frozen=True):
    """Silent for too long. ``silent_ns`` since its last frame."""

    for_applications: ClassVar[bool] = True

    node: NodeId
    silent_ns: int


class NeighbourLeft(Event, frozen=True):
    """Said goodbye."""

    for_applications: ClassVar[bool] = True

    node: NodeId
    reason: str


class PeerRefused(Event, frozen=True):
    """Somebody was turned away, or turned us away."""

    for_applications: ClassVar[bool] = True

    who: str
    code: str
    detail: str
