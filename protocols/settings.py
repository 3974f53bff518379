"""The settings of one engine."""

from msgspec import Struct

from protocols.access import DEFAULT_RULES, AccessRule
from protocols.base import limits
from protocols.base.ids import Incarnation, MeshName, NodeId, Role
from protocols.base.sequences import first_sequence
from protocols.gossip.entries import Seal
from protocols.gossip.settings import GossipSettings
from protocols.membership.settings import MembershipSettings
from protocols.multicast.seal import DatagramSeal
from protocols.readings.signing.seal import ReadingSeal


class NodeSettings(Struct, frozen=True):
    """The settings in which one engine differs from another."""

    mesh: MeshName
    node: NodeId
    role: Role
    incarnation: Incarnation
    """It grows with every start."""
    inbox_port: int
    clock_uncertainty_ns: int = 10 * limits.MS
    access: tuple[AccessRule, ...] = DEFAULT_RULES
    membership: MembershipSettings = MembershipSettings()
    max_queue_readings: int = limits.MAX_QUEUE_READINGS
    gossip: GossipSettings = GossipSettings()
    seal: Seal | None = None
    """How entries of gossip are signed and checked. None: this node takes no part in gossip."""
    reading_seal: ReadingSeal | None = None
    """How readings that may be passed on are signed and checked. None: nobody passes this node's readings on, and it
    passes on none."""
    datagram_seal: DatagramSeal | None = None
    """How datagrams to all neighbours are sealed and checked. None: each neighbour gets its own frames."""

    @property
    def first_sequence(self) -> int:
        """The sequence of the first reading of this life."""
        return first_sequence(self.incarnation)
