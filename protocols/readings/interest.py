"""Who wants what: interests of neighbours, own subscriptions, and which of both a stream goes to."""

from collections.abc import Iterable

import msgspec

from protocols.access import AccessTable
from protocols.base import limits
from protocols.base.errors import InvalidKey
from protocols.base.ids import NodeId, Role
from protocols.base.keys import checked_expression, matches
from protocols.base.time import NEVER
from protocols.links.queues import Drops
from protocols.readings.streams import LocalSubscription, Peer, Route, Stream
from protocols.wire.readings import Interest, Want


def wants_to_ask_for(subscriptions: Iterable[LocalSubscription], others: Iterable[Want]) -> tuple[Want, ...]:
    """What to ask of a neighbour: own subscriptions, and what ``others`` asked this node to ask for. Wants that differ
    only in their hops are merged into one."""
    hops: dict[Want, int] = {}
    for subscription in subscriptions:
        quality = subscription.quality
        want = Want(subscription.expression, quality.min_interval_ns // 1_000, quality.conflate, quality.history)
        hops[want] = max(hops.get(want, 0), quality.hops)
    for asked in others:
        if asked.hops:
            want = msgspec.structs.replace(asked, hops=0)
            hops[want] = max(hops.get(want, 0), asked.hops - 1)
    wants = [msgspec.structs.replace(want, hops=further) for want, further in hops.items()]
    return tuple(wants[: limits.MAX_SUBSCRIPTIONS])


def permitted_wants(
    interest: Interest, node: NodeId, role: Role, access: AccessTable, drops: Drops
) -> tuple[Want, ...]:  # fmt: skip
    """The wants of a neighbour that the access table permits; the others are counted."""
    wants = []
    for want in interest.wants:
        try:
            checked_expression(want.expression)
        except InvalidKey:
            drops.count(node, want.expression, "invalid_key")
            continue
        if access.permits_subscribe(role, node, want.expression):
            wants.append(want)
        else:
            drops.count(node, want.expression, "denied")
    return tuple(wants)


def decide_subscribers(stream: Stream, subscriptions: Iterable[LocalSubscription], own: bool) -> None:
    """Decide anew which of ``subscriptions`` get a stream. ``own``: whether this node is its origin."""
    matching = [s for s in subscriptions if (s.quality.own or not own) and matches(s.expression, stream.key)]
    stream.numbers = tuple(s.number for s in matching if not s.quality.min_interval_ns)
    stream.limited = tuple(s for s in matching if s.quality.min_interval_ns)
    known = stream.limited_last
    stream.limited_last = {s.number: known[s.number] for s in stream.limited if s.number in known}


def decide_routes(stream: Stream, peers: Iterable[Peer], version: int, own: bool) -> None:
    """Decide anew which neighbours get a stream. ``own``: whether this node is its origin; what it passes on is only
    for neighbours that asked for it, with hops. Most streams of other nodes are not passed on and never need this."""
    last_ns = {known.peer.node: known.last_ns for known in stream.routes}
    routes = []
    for peer in peers:
        wants = [want for want in peer.wants if (own or want.hops) and matches(want.expression, stream.key)]
        if wants:
            new = Route(peer, wants)
            new.last_ns = last_ns.get(peer.node, -NEVER)
            routes.append(new)
    stream.routes = tuple(routes)
    stream.routes_version = version
