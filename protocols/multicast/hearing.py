"""What one node hears of its neighbours' datagrams: what is checked, in which order, and what is reported to whom.

The order of the checks is that of their cost, and each has an allowance, so a datagram costs its receiver little
whoever made it:

1. A head of a key that a neighbour handed out on its own link, 1 µs. Strangers get no further, unless they copy one.
2. The counter was not heard before (a window of 64), and the key's owner has not sent too many: ``DATAGRAMS_PER_S``.
3. The seal, 2 µs. Only holders of the key pass. An address that sends what fails is not opened for some time.
4. The signature, 62 µs. Only the owner of the key passes, since holders can close datagrams, but not sign them. For a
   key with too many bad signatures no more are checked for some time; its owner is heard on the link meanwhile.

A sender is told, on the link: that it is heard, once and then rarely; that it is not heard any more, because nothing
came for ``_DEAF_NS`` or more than half was lost; and which guarded frames are missing, at once. What it says of its
guarded frames is signed, so nobody else makes this node ask for anything.
"""

from typing import Final

from protocols.base import limits
from protocols.base.allowance import Allowance
from protocols.base.ids import NodeId
from protocols.base.time import NEVER
from protocols.multicast.seal import DatagramSeal
from protocols.multicast.sending import key_statement
from protocols.multicast.window import Window
from protocols.wire.multicast.datagrams import HEAD_BYTES as _HEAD_BYTES
from protocols.wire.multicast.datagrams import Body, datagram_statement, nonce_of, untrusted_head
from protocols.wire.multicast.frames import Heard, SenderKey

_DEAF_NS: Final = limits.SECOND
"""Four beacons, and less than the silence that makes a neighbour suspect."""
_POOR: Final = 0.5
"""A position that comes every second time is better than one that waits for a turn on a full channel …"""
_REST_NS: Final = 3 * limits.SECOND
"""… and a neighbour that is heard no better than that is not believed to be heard well again before this has passed."""
_RENEW_NS: Final = 20 * limits.SECOND
_RENEW_EACH_NS: Final = limits.SECOND
_ASK_NS: Final = 20 * limits.MS
"""The pause between two reports of missing frames to one sender …"""
_TOLD_NS: Final = limits.SECOND
"""… which name each frame for so long, because a report takes the place of one that still waits. Nothing is reported
again for its own sake: what is asked for on the link comes on the link."""


class _Key:
    """A key of a neighbour."""

    __slots__ = ("forged", "id", "public", "secret", "window")

    def __init__(self, handed: SenderKey, now: int) -> None:
        self.id, self.secret, self.public = handed.key, handed.secret, handed.public
        self.window = Window(handed.counter)
        self.forged = Allowance(limits.FORGED_DATAGRAMS_PER_S, limits.MAX_FORGED_DATAGRAMS_BURST, now)


class _Source:
    """A neighbour that casts."""

    __slots__ = ("asked_ns", "datagrams", "guarded", "heard_ns", "hears", "keys", "missing", "node", "told_ns")

    def __init__(self, node: NodeId, now: int) -> None:
        self.node = node
        self.keys: list[_Key] = []
        self.datagrams = Allowance(limits.DATAGRAMS_PER_S, limits.MAX_DATAGRAMS_BURST, now)
        self.heard_ns = -NEVER
        self.hears = False
        """What it was told last."""
        self.told_ns = self.asked_ns = -NEVER
        self.guarded = 0
        self.missing: dict[int, int] = {}
        """Since when guarded frames were missing lately, by number."""


class DatagramReceiver:
    """The hearing half of one node. All instants are monotonic nanoseconds."""

    def __init__(self, seal: DatagramSeal) -> None:
        self._seal = seal
        self._sources: dict[NodeId, _Source] = {}
        self._by_id: dict[bytes, tuple[_Source, _Key]] = {}
        self._broken: dict[str, Allowance] = {}
        self.reports: list[tuple[NodeId, Heard]] = []
        self.ask_ns = NEVER
        """When more missing frames have to be reported."""
        self.heard = self.strangers = self.replayed = self.broken = self.forged = self.over_rate = self.missed = 0
        self.deafened = 0

    @property
    def sources(self) -> int:
        """How many neighbours this node hears."""
        return sum(source.hears for source in self._sources.values())

    # --- keys ------------------------------------------------------------------------------------------------------
    def key_handed(self, handed: SenderKey, node: NodeId, now: int) -> None:
        """Take a key that a neighbour has handed over. Its last two are kept."""
        statement = key_statement(node, handed.secret, handed.public)
        if self._seal.digest(statement)[: limits.DATAGRAM_KEY_ID_BYTES] != handed.key or handed.key in self._by_id:
            return
        source = self._sources.get(node)
        if source is None:
            source = self._sources[node] = _Source(node, now)
        source.guarded = max(source.guarded, handed.guarded)
        key = _Key(handed, now)
        if source.keys:  # or each new key would buy its owner as many checks again
            key.forged.fine(limits.MAX_FORGED_DATAGRAMS_BURST - source.keys[-1].forged.left(now))
        source.keys.append(key)
        self._by_id[key.id] = source, key
        if len(source.keys) > 2:
            del self._by_id[source.keys.pop(0).id]

    def forget(self, node: NodeId) -> None:
        """Forget the keys of a neighbour that is gone."""
        source = self._sources.pop(node, None)
        for key in () if source is None else source.keys:
            del self._by_id[key.id]

    # --- datagrams -------------------------------------------------------------------------------------------------
    def untrusted(self, datagram: bytes, host: str, now: int) -> tuple[NodeId, bytes, bool] | None:
        """The neighbour that made a datagram, the frame in it (empty: a beacon), and whether it is newer than all
        before. None: it is dropped, which is counted. ``host``: where it seems to come from."""
        head = untrusted_head(datagram)
        known = self._by_id.get(head.key) if head is not None else None
        if head is None or known is None:
            self.strangers += 1
            return None
        source, key = known
        if not key.window.may_take(head.counter):
            self.replayed += 1
            return None
        if self._is_over_rate(source, key, host, now):
            self.over_rate += 1
            return None
        body = self._seal.open(key.secret, nonce_of(head.counter), datagram)
        if body is None:
            self._break(host, now)
            return None
        statement = datagram_statement(datagram[:_HEAD_BYTES], body.guarded, body.is_guarded, body.frame)
        if not self._seal.has_signed(key.public, statement, body.signature):
            self.forged += 1
            key.forged.fine(1)
            return None
        source.datagrams.fine(1)
        self.heard += 1
        is_new = key.window.take(head.counter)
        if is_new:
            source.heard_ns = now
        self._follow(source, key, body, now)
        return source.node, body.frame, is_new

    def _is_over_rate(self, source: _Source, key: _Key, host: str, now: int) -> bool:
        broken = self._broken.get(host)
        return source.datagrams.left(now) < 1 or key.forged.left(now) < 1 or (
            broken is not None and broken.left(now) < 1
        )  # fmt: skip

    def _break(self, host: str, now: int) -> None:
        self.broken += 1
        broken = self._broken.get(host)
        if broken is None:
            if len(self._broken) >= limits.MAX_DATAGRAM_HOSTS:
                del self._broken[next(iter(self._broken))]
            rate, burst = limits.BROKEN_DATAGRAMS_PER_S, limits.MAX_BROKEN_DATAGRAMS_BURST
            broken = self._broken[host] = Allowance(rate, burst, now)
        broken.fine(1)

    def _follow(self, source: _Source, key: _Key, body: Body, now: int) -> None:
        """Take in which guarded frames there are."""
        if not source.hears:  # it sends to us on the link until we say that we hear it
            source.guarded = max(source.guarded, body.guarded)
            if now - source.told_ns >= _REST_NS:
                key.window.start_again()
                self._tell(source, True, now)
            return
        newest = source.guarded
        if body.guarded > newest:
            first = max(newest + 1, body.guarded - limits.MAX_DATAGRAMS_MISSING + 1)
            for number in range(first, body.guarded + 1):
                if number != body.guarded or not body.is_guarded:
                    source.missing[number] = now
                    self.missed += 1
            source.guarded = body.guarded
        if body.is_guarded:
            source.missing.pop(body.guarded, None)
        if source.missing:
            self._ask(source, now)

    # --- reports ---------------------------------------------------------------------------------------------------
    def _tell(self, source: _Source, hears: bool, now: int) -> None:
        missing = tuple(sorted(source.missing)[-limits.MAX_DATAGRAMS_MISSING :])
        source.hears, source.told_ns = hears, now
        self.reports.append((source.node, Heard(source.keys[-1].id, hears, source.guarded, missing)))
        if not hears:
            source.missing.clear()
            self.deafened += 1

    def _ask(self, source: _Source, now: int) -> None:
        """Report what is missing, now or in a while, unless all of it has been reported."""
        for number in [number for number, since_ns in source.missing.items() if now - since_ns > _TOLD_NS]:
            del source.missing[number]
        if not source.missing or max(source.missing.values()) <= source.asked_ns:
            return
        due_ns = source.asked_ns + _ASK_NS
        if due_ns > now:
            self.ask_ns = min(self.ask_ns, due_ns)
        else:
            source.asked_ns = now
            self._tell(source, True, now)

    def look(self, now: int) -> None:
        """Look who is not heard any more, and what is still missing. Call it regularly."""
        self.ask_ns = NEVER
        renew_ns = max(_RENEW_NS, _RENEW_EACH_NS * len(self._sources))
        for source in self._sources.values():
            if not source.hears:
                continue
            share = source.keys[-1].window.heard_share()
            if now - source.heard_ns > _DEAF_NS or (share is not None and share < _POOR):
                self._tell(source, False, now)
                continue
            self._ask(source, now)
            if now - source.told_ns >= renew_ns:
                self._tell(source, True, now)

    def forgive(self, now: int) -> None:
        """Note that this node did not run, so that nothing could be heard."""
        for source in self._sources.values():
            source.heard_ns = max(source.heard_ns, now)
