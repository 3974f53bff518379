"""What gossip knows of one neighbour."""

from protocols.base import limits
from protocols.base.allowance import Allowance
from protocols.base.ids import NodeId, Role
from protocols.base.time import NEVER


class GossipPeer:
    """A neighbour as gossip sees it: what is exchanged with it, and what it may still cost."""

    __slots__ = (
        "agreed", "asked", "beacon_ns", "checks", "compared_ns", "consistent", "covered", "covered_ns", "frames",
        "interval", "listed_ns", "news", "node", "offers", "role", "served", "told_of_ns",
    )  # fmt: skip

    def __init__(self, node: NodeId, role: Role, now: int) -> None:
        self.node, self.role = node, role
        self.agreed = False
        """Whether its store was equal to ours when it was compared last."""
        self.interval = self.consistent = 0
        """How many consistent beacons it sent in that interval of our Trickle timer."""
        self.beacon_ns = self.compared_ns = self.listed_ns = -NEVER
        """When it was last sent a beacon, our buckets, and a list of fingerprints in some of them."""
        self.covered, self.covered_ns = 0, -NEVER
        """The buckets that it listed in full since that instant."""
        self.told_of_ns = -NEVER
        """When an event last reported a refused entry from it."""
        self.news: dict[int, None] = {}
        """Fingerprints to tell it of, in order."""
        self.offers: dict[int, None] = {}
        """Fingerprints to ask it for, in order."""
        self.asked: dict[int, int] = {}
        """Fingerprints that it was asked for, each with the instant at which the time for an answer is over."""
        self.frames = Allowance(limits.GOSSIP_FRAMES_PER_S, limits.MAX_GOSSIP_FRAME_BURST, now)
        self.checks = Allowance(limits.ENTRIES_PER_S, limits.MAX_ENTRY_BURST, now)
        self.served = Allowance(limits.SERVED_ENTRIES_PER_S, limits.MAX_SERVED_BURST, now)

    def newly_covered(self, covered: int, now: int) -> int:
        """The buckets among ``covered`` that it has not listed since ``EXCHANGE_PAUSE_NS`` ago, as bits."""
        if now - self.covered_ns >= limits.EXCHANGE_PAUSE_NS:
            self.covered, self.covered_ns = 0, now
        new = covered & ~self.covered
        self.covered |= covered
        return new

    def heard_consistent(self, interval: int) -> None:
        """It sent a beacon with our root in that interval."""
        if self.interval != interval:
            self.interval, self.consistent = interval, 0
        self.consistent += 1

    def heard_enough(self, interval: int) -> bool:
        """Whether it needs no beacon in that interval: its own have shown that it holds the same."""
        return self.interval == interval and self.consistent >= limits.TRICKLE_REDUNDANCY
