"""What each identity may still cost this node: connections, unknown and control frames, and elements of values.

An account outlives pipes and neighbours, so a node that comes again does not get a new allowance.
"""

from typing import Final

from protocols.base import limits
from protocols.base.allowance import Allowance
from protocols.base.ids import NodeId

MAX_ACCOUNTS: Final = 1_024
"""Accounts held; the oldest is forgotten first. Each needs a certificate of its own."""


class Account:
    """What one identity may still cost."""

    __slots__ = ("control", "elements", "pipes", "unknown")

    def __init__(self, now: int) -> None:
        self.pipes = Allowance(limits.PIPES_PER_S, limits.MAX_PIPE_BURST, now)
        """Connections into our inbox."""
        self.unknown = Allowance(limits.UNKNOWN_FRAMES_PER_S, limits.MAX_UNKNOWN_FRAME_BURST, now)
        """Frames of types that this version does not know."""
        self.control = Allowance(limits.CONTROL_FRAMES_PER_S, limits.MAX_CONTROL_FRAME_BURST, now)
        """Frames of all known types but readings and heartbeats."""
        self.elements = Allowance(limits.ELEMENTS_PER_S, limits.MAX_ELEMENTS_BURST, now)
        """Elements of lists and dicts in readings. It may be overdrawn by one frame."""


class Accounts:
    """The accounts of all identities that came lately."""

    def __init__(self) -> None:
        self._accounts: dict[NodeId, Account] = {}

    def __len__(self) -> int:
        return len(self._accounts)

    def of(self, node: NodeId, now: int) -> Account:
        """The account of an identity; a new one when none is held."""
        account = self._accounts.get(node)
        if account is None:
            if len(self._accounts) >= MAX_ACCOUNTS:
                del self._accounts[next(iter(self._accounts))]
            account = self._accounts[node] = Account(now)
        return account
