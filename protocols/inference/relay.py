"""The relay as one more candidate: what it offers, how far away it is, and which requests may go there.

    away ──it told what it offers──▶ in reach ──no answer──▶ away: its runs are repeated elsewhere

Rules:

1. A request goes to the relay only if the configuration names its model, and the model that the caller has asked for.
   Nothing else of a node leaves the neighbourhood by inference. Inputs that must not leave the node never do.
2. The relay is predicted, hedged, checked and distrusted as a neighbour is. It gets whole requests, and no stages.
3. It is called ``relay/<id>`` among those that compute, which is the id of no node: a neighbour can't speak for it.
4. A request is at most ``MAX_RELAYED_BYTES`` large, because an exchange with the relay has that bound.
"""

from collections.abc import Callable
from typing import Final, Literal

from protocols.base import limits
from protocols.base.ids import NodeId
from protocols.base.keys import matches
from protocols.base.reach import Reach

MAX_AT_RELAY: Final = 2
"""Requests of one node that are at the relay at the same time. Each takes a connection, and a thread of the relay."""
MAX_RELAYED_BYTES: Final = limits.MAX_EXCHANGE_BYTES - 32 * 1024
"""Inputs of one request; names, types and shapes of 32 tensors take less than 32 KiB."""
_PREFIX: Final = "relay/"


def where_ran(node: str, here: str) -> Literal["here", "neighbour", "relay"]:
    """Where the node that computed something is, as seen from ``here``."""
    return "here" if node == here else "relay" if node.startswith(_PREFIX) else "neighbour"


class RelayReach:
    """Whether the relay can be asked now, and what for."""

    def __init__(self, neighbours: Callable[[int], list[Reach]]) -> None:
        """``neighbours(now)`` lists the neighbours that can be asked now."""
        self._neighbours = neighbours
        self.models: tuple[str, ...] = ()
        """Key expressions of the models whose requests may go to the relay."""
        self.node: NodeId | None = None
        """What it is called among those that compute; None: it is away."""
        self._round_trip_ns = 0

    def come(self, relay: str, round_trip_ns: int) -> NodeId:
        """The relay has told its offers. Returns what it is called."""
        self.node, self._round_trip_ns = NodeId(_PREFIX + relay), round_trip_ns
        return self.node

    def everybody(self, now: int) -> list[Reach]:
        """The neighbours that can be asked now, and the relay if it can."""
        near = self._neighbours(now)
        return near if self.node is None else [*near, Reach(self.node, self._round_trip_ns)]

    def may_have(self, model: str) -> bool:
        """Whether requests for a model may go to the relay."""
        return any(matches(expression, model) for expression in self.models)

    def lack(self, model: str) -> str:
        """What to say of the relay beside that nobody has a model; empty: its requests may not go there."""
        if not self.may_have(model):
            return ""
        return f". The relay may compute it, and {'is away' if self.node is None else 'does not offer it'}"

    def takes(self, asked_model: str, size_bytes: int) -> bool:
        """Whether a request for what the caller asked for may go there, whichever model runs in its place."""
        return size_bytes <= MAX_RELAYED_BYTES and self.may_have(asked_model)
