"""What a recorder is made of, out of the configuration of its node."""

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from meshnode.config.sections import NodeConfig
from meshnode.identity.signatures import SigningKey, sha256
from meshnode.links.nng.library import open_requester
from meshnode.records.egress.section import policy_of
from meshnode.records.outbox import Outbox
from meshnode.records.section import CurationRulesSection, RelaySection
from meshnode.records.uplink import UplinkDriver
from meshnode.records.way import Way
from protocols.base import limits
from protocols.base.ids import Incarnation, MeshName, NodeId, Role
from protocols.records.receipts.sealing import BatchSealer
from protocols.records.rules import CurationRule

if TYPE_CHECKING:
    from meshnode.records.egress.door import EgressDoor


def rules_of(config: NodeConfig) -> tuple[CurationRule, ...]:
    """The curation rules of a configuration, as the curator takes them."""
    return tuple(
        CurationRule(
            name=rule.name, keys=rule.keys, min_interval_ns=rule.min_interval_ms * limits.MS, source=rule.source,
            lifespan_ms=rule.lifespan_s * 1_000, priority=rule.priority,
        )
        for rule in config.of(CurationRulesSection).rules
    )  # fmt: skip


def door_of(config: NodeConfig) -> "EgressDoor | None":
    """The door of a node with an egress policy."""
    policy = policy_of(config)
    if policy is None:
        return None
    from meshnode.records.egress.door import EgressDoor  # what reads pictures, which only such a node pays for

    return EgressDoor(policy, config.node.id, config.node.state_dir)


def uplink_maker(
    config: NodeConfig, mesh: MeshName, incarnation: Incarnation, signing_key: Callable[[], SigningKey]
) -> Callable[[Outbox], UplinkDriver] | None:  # fmt: skip
    """A function that makes the uplink of an outbox; None: the node has no relay. ``signing_key`` is asked for each
    batch."""
    relay, credentials, node = config.given(RelaySection), config.identity.credentials, NodeId(config.node.id)
    if relay is None:
        return None

    def made(outbox: Outbox) -> UplinkDriver:
        return UplinkDriver(
            outbox, lambda: open_requester(credentials, relay.address, mesh, Role.RELAY, relay.id), node, incarnation,
            Random(), BatchSealer(mesh, node, incarnation, signing_key, sha256),
            Way(relay.address, relay.interfaces, relay.urgent_priority) if relay.interfaces else None,
            relay.bytes_per_s,
        )  # fmt: skip

    return made
