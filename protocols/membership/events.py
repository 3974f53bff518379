"""The effects of membership on links, and the events that it reports about neighbours."""

from typing import ClassVar

from protocols.base.effects import Effect, Event
from protocols.base.ids import Incarnation, NodeId, Role
from protocols.events import DuplicateIdentity


class Dial(Effect, frozen=True):
    """Open a lane to an inbox. The driver answers with ``lane_opened`` or ``lane_closed`` of the same ``dial``."""

    dial: int
    host: str
    port: int
    timeout_ns: int


class HangUp(Effect, frozen=True):
    """Close a dialled lane. The driver does not answer."""

    dial: int
    lost: bool = False
    """Whether the neighbour does not hear it. What the lane has taken and the neighbour has not is to be counted."""


class ClosePipe(Effect, frozen=True):
    """Close a pipe into our inbox. The driver answers with ``inbound_closed``."""

    pipe: int


class NeighbourMet(Event, frozen=True):
    """Both directions of a link are authenticated and open."""

    for_applications: ClassVar[bool] = True

    node: NodeId
    role: Role
    incarnation: Incarnation
    took_ns: int
    """Time since the first sign of it, which is its advert or its Hello."""


class NeighbourSuspected(Event, frozen=True):
    """A neighbour is silent, or its pipes are gone."""

    for_applications: ClassVar[bool] = True

    node: NodeId
    because: str


class NeighbourRefuted(Event, frozen=True):
    """A suspected neighbour proved that it lives."""

    for_applications: ClassVar[bool] = True

    node: NodeId


class NeighbourDead(Event, frozen=True):
    """A suspected neighbour was silent for too long: ``silent_ns`` since its last frame."""

    for_applications: ClassVar[bool] = True

    node: NodeId
    silent_ns: int


class NeighbourLeft(Event, frozen=True):
    """A neighbour said goodbye."""

    for_applications: ClassVar[bool] = True

    node: NodeId
    reason: str


class PeerRefused(Event, frozen=True):
    """A peer was refused, or refused this node."""

    for_applications: ClassVar[bool] = True

    who: str
    code: str
    detail: str


MembershipEffect = Dial | HangUp | ClosePipe
MembershipEvent = (
    NeighbourMet
    | NeighbourSuspected
    | NeighbourRefuted
    | NeighbourDead
    | NeighbourLeft
    | PeerRefused
    | DuplicateIdentity
)
