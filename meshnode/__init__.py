"""A node of the mesh: discovery, links, readings and inference between machines on the road.

``async with meshnode.open("vehicle.toml") as node: …`` is where to start; see :class:`meshnode.node.Node`.
"""

from meshnode.config import NodeConfig
from meshnode.node import InferenceResult, Node, Publisher, open
from meshnode.subscriptions import Subscription
from protocols.errors import MeshError
from protocols.messages import EventTime, Position, Provenance, Reading, Tensor
from protocols.readings import Put

__all__ = [
    "EventTime",
    "InferenceResult",
    "MeshError",
    "Node",
    "NodeConfig",
    "Position",
    "Provenance",
    "Publisher",
    "Put",
    "Reading",
    "Subscription",
    "Tensor",
    "open",
]
