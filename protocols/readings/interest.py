"""Who wants what: interests of neighbours, own subscriptions, and which of both a stream goes to."""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from protocols.access import AccessTable
from protocols.base import limits
from protocols.base.errors import InvalidKey
from protocols.base.ids import NodeId
from protocols.base.keys import checked_expression
from protocols.base.time import NEVER
from protocols.links.drops import Drops
from protocols.readings.matching import KeyPattern
from protocols.readings.streams import Asked, LocalSubscription, Peer, Route, Stream
from protocols.wire.readings import Interest, Want


def equal_share(amounts: Sequence[int], bound: int) -> int:
    """The largest share such that, if nobody takes more than the share nor more than its own amount, all together stay
    within ``bound``."""
    left, share = bound, 0
    for number, amount in enumerate(sorted(amounts)):
        share = left // (len(amounts) - number)
        if amount > share:
            return share
        left -= amount
    return max(amounts, default=share)


def share_wants(peers: Iterable[Peer], drops: Drops) -> bool:
    """Let each neighbour have as many wants as its share of ``MAX_WANTS`` allows, and count the others. Returns whether
    that changed the wants of any."""
    peers = list(peers)
    share = equal_share([len(peer.asked) for peer in peers], limits.MAX_WANTS)
    is_changed = False
    for peer in peers:
        held = peer.asked[:share]
        if held != peer.held:
            beyond = len(peer.asked) - len(held)
            if beyond:
                drops.count(peer.node, "*", "interest_full", beyond)
            peer.hold(held)
            is_changed = True
    return is_changed


def wants_to_ask_for(
    subscriptions: Iterable[LocalSubscription], others: Mapping[NodeId, Sequence[tuple[Want, int]]]
) -> tuple[tuple[Want, ...], dict[NodeId, int]]:
    """What to ask of a neighbour: own subscriptions, and what ``others`` asked this node to ask for: wants without
    hops, and over how many hops. Wants that differ only in their hops are merged into one. The others take turns, one
    want each, until the Interest is full. Also returns how many wants of each had no place."""
    hops: dict[Want, int] = {}
    for subscription in subscriptions:
        quality = subscription.quality
        want = Want(
            subscription.expression, quality.min_interval_ns // 1_000, quality.conflate, quality.history,
            every=quality.every,
        )  # fmt: skip
        hops[want] = max(hops.get(want, 0), quality.hops)
    without_place: dict[NodeId, int] = {}
    turn = 0
    left = [(node, wants) for node, wants in others.items() if wants]
    while left:
        for node, wants in left:
            want, further = wants[turn]
            known = hops.get(want)
            if known is None and len(hops) >= limits.MAX_SUBSCRIPTIONS:
                without_place[node] = without_place.get(node, 0) + 1
            elif known is None or further > known:
                hops[want] = further
        turn += 1
        left = [(node, wants) for node, wants in left if turn < len(wants)]
    asked = (msgspec.structs.replace(want, hops=further) if further else want for want, further in hops.items())
    return tuple(asked), without_place


def permitted_wants(interest: Interest, peer: Peer, access: AccessTable, drops: Drops) -> tuple[Asked, ...]:
    """The wants of a neighbour that the access table permits; the others are counted."""
    known = {asked.want: asked for asked in peer.asked}
    node = peer.node
    permitted = []
    for want in interest.wants:
        asked = known.get(want)
        if asked is not None:
            permitted.append(asked)
            continue
        try:
            checked_expression(want.expression)
        except InvalidKey:
            drops.count(node, "*", "invalid_key")
            continue
        if access.permits_subscribe(peer.role, node, want.expression):
            permitted.append(Asked(KeyPattern(want.expression), want))
        else:
            drops.count(node, want.expression, "denied")
    return tuple(permitted)


def decide_subscribers(stream: Stream, subscriptions: Iterable[LocalSubscription], own: bool) -> None:
    """Decide which of ``subscriptions`` get a stream. ``own``: whether this node is its origin."""
    key, chunks = stream.key, stream.key.split("/")
    matching = [s for s in subscriptions if (s.quality.own or not own) and s.pattern.matches(key, chunks)]
    stream.numbers = tuple(s.number for s in matching if not s.quality.min_interval_ns)
    stream.limited = tuple(s for s in matching if s.quality.min_interval_ns)
    known = stream.limited_last
    stream.limited_last = {s.number: known[s.number] for s in stream.limited if s.number in known}


def add_subscriber(stream: Stream, subscription: LocalSubscription) -> None:
    """Let a new subscription get a stream that it matches."""
    if subscription.quality.min_interval_ns:
        stream.limited = (*stream.limited, subscription)
    else:
        stream.numbers = (*stream.numbers, subscription.number)


def remove_subscriber(stream: Stream, subscription: LocalSubscription) -> None:
    """Let a subscription that ended get a stream no more."""
    if subscription.quality.min_interval_ns:
        if subscription in stream.limited:
            stream.limited = tuple(one for one in stream.limited if one is not subscription)
            stream.limited_last.pop(subscription.number, None)
    elif subscription.number in stream.numbers:
        stream.numbers = tuple(number for number in stream.numbers if number != subscription.number)


def decide_routes(stream: Stream, peers: Iterable[Peer], version: int, own: bool) -> None:
    """Decide anew which neighbours get a stream. ``own``: whether this node is its origin; what it passes on is only
    for neighbours that asked for it, with hops. Most streams of other nodes are not passed on and never need this."""
    last_ns = {known.peer.node: known.last_ns for known in stream.routes}
    key, chunks = stream.key, stream.key.split("/")
    routes = []
    for peer in peers:
        wants = [want for pattern, want in peer.held if (own or want.hops) and pattern.matches(key, chunks)]
        if wants:
            new = Route(peer, wants)
            new.last_ns = last_ns.get(peer.node, -NEVER)
            routes.append(new)
    stream.routes = tuple(routes)
    stream.routes_version = version


class Interests:
    """Who was told what by one router, and whose Interests were put off.

    Neighbours are told a few at a time, because one frame of one neighbour can change what this node asks all others
    for.
    """

    __slots__ = ("_changes", "_told", "_utc_less_now", "due_ns", "put_off_due_ns", "version")

    def __init__(self) -> None:
        self.version = 0
        """The version of the last Interest."""
        self.due_ns = NEVER
        """When the next neighbours have to be told."""
        self.put_off_due_ns = NEVER
        """When :meth:`next_put_off` may have an Interest."""
        self._utc_less_now = 0
        self._changes = 0
        self._told: dict[NodeId, int] = {}  # the change that a neighbour was told last

    def change(self) -> None:
        """Note that the interest has changed."""
        self._changes += 1

    def tell(self, node: NodeId) -> int:
        """Note that a neighbour is told the interest as it is now. Returns the version of the Interest."""
        self._told[node] = self._changes
        self.version += 1
        return self.version

    def forget(self, node: NodeId) -> None:
        """Forget a neighbour that is gone."""
        self._told.pop(node, None)

    def untold(self, reached: list[NodeId], now: int) -> list[NodeId]:
        """Those of ``reached`` to tell now; the others follow at :attr:`due_ns`."""
        untold = [node for node in reached if self._told.get(node, 0) != self._changes]
        self.due_ns = NEVER if len(untold) <= limits.INTERESTS_AT_ONCE else now + limits.INTEREST_PAUSE_NS
        return untold[: limits.INTERESTS_AT_ONCE]

    def put_off(self, peer: Peer, interest: Interest, now: int, utc_now: int) -> None:
        """Take an Interest later, in place of an older one of that neighbour."""
        peer.put_off, self._utc_less_now = interest, utc_now - now
        self.put_off_due_ns = min(self.put_off_due_ns, now + limits.SECOND // limits.INTERESTS_PER_S)

    def next_put_off(self, peers: Iterable[Peer], now: int) -> tuple[Peer, Interest, int] | None:
        """An Interest that may be taken now, with its neighbour and the UTC time."""
        waiting = [(peer, peer.put_off) for peer in peers if peer.put_off is not None]
        for peer, interest in waiting:
            if peer.interests.take(now):
                self.put_off_due_ns = now + limits.INTEREST_PAUSE_NS if len(waiting) > 1 else NEVER
                return peer, interest, now + self._utc_less_now
        self.put_off_due_ns = now + limits.SECOND // limits.INTERESTS_PER_S if waiting else NEVER
        return None
