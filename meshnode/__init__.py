"""A node of the mesh: discovery, links, readings and inference between machines on the road.

``async with meshnode.open("vehicle.toml") as node: …`` is where to start; see :class:`meshnode.node.Node`.
``meshnode.connect("vehicle.toml")`` gives the same of a node that runs in another process of this computer.

Names are imported when they are used, because the relay and the ``mesh`` commands need some of this package but not the
node itself.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meshnode.config.sections import NodeConfig
    from meshnode.history.query import HistoryPage
    from meshnode.inference.result import InferenceResult
    from meshnode.inference.streams import InferenceStream, StreamItem
    from meshnode.local.client import ConnectedNode, connect
    from meshnode.node import Node
    from meshnode.opening import ConfiguredNode, open  # noqa: A004 - reads as ``meshnode.open``
    from meshnode.readings.publisher import Publisher
    from meshnode.readings.subscriptions import Subscription
    from protocols.base.errors import MeshError
    from protocols.readings.events import Put, PutMany
    from protocols.releases.events import ReleaseState, RolloutState
    from protocols.wire.readings import EventTime, Position, Provenance, Reading
    from protocols.wire.tensors import Tensor

_HOMES = {
    "NodeConfig": "meshnode.config.sections",
    "ConfiguredNode": "meshnode.opening",
    "ConnectedNode": "meshnode.local.client",
    "HistoryPage": "meshnode.history.query",
    "InferenceResult": "meshnode.inference.result",
    "InferenceStream": "meshnode.inference.streams",
    "StreamItem": "meshnode.inference.streams",
    "Node": "meshnode.node",
    "Publisher": "meshnode.readings.publisher",
    "connect": "meshnode.local.client",
    "open": "meshnode.opening",
    "Subscription": "meshnode.readings.subscriptions",
    "MeshError": "protocols.base.errors",
    "EventTime": "protocols.wire.readings",
    "Position": "protocols.wire.readings",
    "Provenance": "protocols.wire.readings",
    "Reading": "protocols.wire.readings",
    "Tensor": "protocols.wire.tensors",
    "Put": "protocols.readings.events",
    "PutMany": "protocols.readings.events",
    "ReleaseState": "protocols.releases.events",
    "RolloutState": "protocols.releases.events",
}

__all__ = [
    "ConfiguredNode",
    "ConnectedNode",
    "EventTime",
    "HistoryPage",
    "InferenceResult",
    "InferenceStream",
    "MeshError",
    "Node",
    "NodeConfig",
    "Position",
    "Provenance",
    "Publisher",
    "Put",
    "PutMany",
    "Reading",
    "ReleaseState",
    "RolloutState",
    "StreamItem",
    "Subscription",
    "Tensor",
    "connect",
    "open",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'meshnode' has no attribute {name!r}")
    return getattr(import_module(home), name)
