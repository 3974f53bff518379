"""Carries entries between gossip and the machines that author and hear them, which never call each other."""

from collections.abc import Iterable

from protocols.base.errors import BoundExceeded, MeshError, ValueUnsupported
from protocols.gossip.machine import Gossip
from protocols.machine import Machine


def kinds_heard(machines: Iterable[Machine]) -> frozenset[str]:
    """The kinds of entries that any of these machines is told of."""
    return frozenset[str]().union(*(machine.entry_kinds for machine in machines))


def carry_entries(gossip: Gossip, machines: Iterable[Machine], now: int) -> None:
    """Sign what machines wish to say, and tell them what was heard. A wish that can't be signed is counted as a failed
    entry of this node. Machines wish for nothing twice, so one that has no place, or is too large beside the
    certificate, is tried again later. A node without a certificate says nothing."""
    for machine in machines:
        for kind, body, lifetime_s in machine.wishes():
            try:
                gossip.put(kind, body, lifetime_s, now)
            except (BoundExceeded, ValueUnsupported):
                gossip.own.try_later(kind, body, lifetime_s, now)
            except MeshError:
                gossip.own.failed += 1
    told, gossip.to_tell = gossip.to_tell, []
    for entry in told:
        for machine in machines:
            if entry.kind in machine.entry_kinds:
                machine.heard(entry, now)
