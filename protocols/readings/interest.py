"""Who wants what: Interests of neighbours, own subscriptions, which of both a stream goes to, and who was told.

Interests are taken up in slices, and neighbours are told in slices. To check a want and take its expression apart takes
about 15 µs, and an Interest has up to 256 of them. So one call looks at ``NEW_WANTS_AT_ONCE`` that the neighbour did
not have. An Interest with no more than that counts at once; of a larger one nothing counts before all of it does.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

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

_WANT_STEPS: Final = 64
"""What it costs to take up a new want, in steps of matching."""


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
        wants = [want for pattern, want, _ in peer.held if (own or want.hops) and pattern.matches(key, chunks)]
        if wants:
            new = Route(peer, wants)
            new.last_ns = last_ns.get(peer.node, -NEVER)
            routes.append(new)
    stream.routes = tuple(routes)
    stream.routes_version = version


class Interests:
    """Who was told what by one router.

    Neighbours are told a few at a time, because one frame of one neighbour can change what this node asks all others
    for.
    """

    __slots__ = ("_changes", "_told", "due_ns", "version")

    def __init__(self) -> None:
        self.version = 0
        """The version of the last Interest."""
        self.due_ns = NEVER
        """When the next neighbours have to be told."""
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

    def untold(self, reached: list[NodeId], wants: int, now: int) -> list[NodeId]:
        """Those of ``reached`` to tell now; the others follow at :attr:`due_ns`. ``wants``: how many wants have to be
        looked at for each."""
        untold = [node for node in reached if self._told.get(node, 0) != self._changes]
        at_once = max(1, min(limits.INTERESTS_AT_ONCE, limits.WANTS_TOLD_AT_ONCE // max(1, wants)))
        self.due_ns = NEVER if len(untold) <= at_once else now + limits.INTEREST_PAUSE_NS
        return untold[:at_once]


class TakenUp(NamedTuple):
    """An Interest that counts from now on."""

    peer: Peer
    asked: tuple[Asked, ...]
    """The wants that the access table permits."""
    utc_now: int
    at_once: bool
    """Whether one call was enough."""


class _Begun:
    """How far an Interest has been taken up."""

    __slots__ = ("asked", "at", "known", "peer", "wants")

    def __init__(self, peer: Peer, wants: tuple[Want, ...], known: dict[Want, Asked]) -> None:
        self.peer, self.wants, self.known = peer, wants, known
        self.at = 0
        self.asked: list[Asked] = []


class Uptake:
    """The Interests that one router has not taken up yet.

    Neighbours take turns, and each pays for its own: one for each Interest, and steps of matching for each slice that
    follows the first. The newest Interest of a neighbour takes the place of an older one that is half taken up, or that
    waits for the neighbour's allowance.
    """

    __slots__ = ("_access", "_begun", "_drops", "_put_off_due_ns", "_slice_due_ns", "_utc_less_now")

    def __init__(self, access: AccessTable, drops: Drops) -> None:
        self._access, self._drops = access, drops
        self._begun: dict[NodeId, _Begun] = {}  # who waits longest comes first
        self._slice_due_ns = self._put_off_due_ns = NEVER
        self._utc_less_now = 0

    def __len__(self) -> int:
        return len(self._begun)

    @property
    def due_ns(self) -> int:
        """When :meth:`go_on` has to be called next."""
        return min(self._slice_due_ns, self._put_off_due_ns)

    def receive(self, interest: Interest, peer: Peer, now: int, utc_now: int) -> TakenUp | None:
        """Begin with an Interest of a neighbour. Returns it when it counts at once."""
        if interest.version <= peer.interest_version:  # a large one was overtaken
            return None
        peer.interest_version = interest.version
        if interest.wants == peer.said and peer.put_off is None:
            return None
        self._utc_less_now = utc_now - now
        if not peer.interests.take(now):
            if peer.put_off is None:
                self._drops.count(peer.node, "*", "interest_put_off")
            peer.put_off = interest
            self._put_off_due_ns = min(self._put_off_due_ns, now + limits.SECOND // limits.INTERESTS_PER_S)
            return None
        return self._begin(peer, interest, now)

    def go_on(self, peers: Mapping[NodeId, Peer], now: int) -> TakenUp | None:
        """Take up one slice that is due. Returns the Interest that counts from now on."""
        if self._put_off_due_ns <= now:
            waiting = [peer for peer in peers.values() if peer.put_off is not None]
            for peer in waiting:
                interest = peer.put_off
                if interest is not None and peer.interests.take(now):
                    self._put_off_due_ns = now + limits.INTEREST_PAUSE_NS if len(waiting) > 1 else NEVER
                    return self._begin(peer, interest, now)
            self._put_off_due_ns = now + limits.SECOND // limits.INTERESTS_PER_S if waiting else NEVER
        if self._slice_due_ns <= now:
            return self._next_slice(now)
        return None

    def forget(self, node: NodeId) -> None:
        """Forget what a neighbour that is gone wanted."""
        self._begun.pop(node, None)

    def _begin(self, peer: Peer, interest: Interest, now: int) -> TakenUp | None:
        peer.put_off, peer.said = None, interest.wants
        known = {asked.want: asked for asked in peer.asked}
        before = self._begun.pop(peer.node, None)
        if before is not None:
            known.update((asked.want, asked) for asked in before.asked)
        begun = _Begun(peer, interest.wants, known)
        if self._take(begun):
            return TakenUp(peer, tuple(begun.asked), now + self._utc_less_now, at_once=True)
        self._begun[peer.node] = begun
        self._slice_due_ns = min(self._slice_due_ns, now + limits.INTEREST_PAUSE_NS)
        return None

    def _next_slice(self, now: int) -> TakenUp | None:
        """Take up a slice of the Interest that waits longest among those whose neighbours can pay."""
        taken = None
        for node, begun in list(self._begun.items()):
            if begun.peer.work.left(now) > 0:
                del self._begun[node]
                before = begun.at
                if self._take(begun):
                    taken = TakenUp(begun.peer, tuple(begun.asked), now + self._utc_less_now, at_once=False)
                else:
                    self._begun[node] = begun
                begun.peer.work.fine((begun.at - before) * _WANT_STEPS)
                break
        self._slice_due_ns = now + limits.INTEREST_PAUSE_NS if self._begun else NEVER
        return taken

    def _take(self, begun: _Begun) -> bool:
        """Take up a slice. Returns whether that was all. The wants that the access table denies are counted."""
        peer, wants, known, asked = begun.peer, begun.wants, begun.known, begun.asked
        left, at = limits.NEW_WANTS_AT_ONCE, begun.at
        while at < len(wants):
            want = wants[at]
            one = known.get(want)
            if one is None:
                if not left:
                    break
                left -= 1
                one = self._permitted(want, peer)
            if one is not None:
                asked.append(one)
            at += 1
        begun.at = at
        return at == len(wants)

    def _permitted(self, want: Want, peer: Peer) -> Asked | None:
        """A want, if the access table permits it; otherwise it is counted."""
        try:
            checked_expression(want.expression)
        except InvalidKey:
            self._drops.count(peer.node, "*", "invalid_key")
            return None
        if not self._access.permits_subscribe(peer.role, peer.node, want.expression):
            self._drops.count(peer.node, want.expression, "denied")
            return None
        further = (msgspec.structs.replace(want, hops=0), want.hops - 1) if want.hops else None
        return Asked(KeyPattern(want.expression), want, further)
