"""Events that several machines report."""

from typing import ClassVar

from protocols.base.effects import Event
from protocols.base.ids import NodeId


class DuplicateIdentity(Event, frozen=True):
    """Another node uses the id of this node (``ours``) or of a live neighbour."""

    for_applications: ClassVar[bool] = True

    node: NodeId
    ours: bool
    host: str
