"""What one node casts: its keys, who holds them, who listens, and what may have to be sent again.

A *holder* was handed the key that is in use. A *listener* is a holder that said it hears the datagrams. A frame is
*guarded* when it is urgent, or the first of a stream after a pause; every other frame is soon replaced by the next one
of its stream, so nobody asks for it again. When a stream stops, its last frame is cast once more and guarded, so that
nobody keeps an older value for good.

A key is used for ``_ROTATE_NS``. The next one is handed out before it is used, so that it is there when the first
datagram comes. A node that is no neighbour any more gets no further key.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

from protocols.base import limits
from protocols.base.allowance import Allowance
from protocols.base.errors import RemoteProtocolError
from protocols.base.ids import NodeId, Role
from protocols.base.time import NEVER
from protocols.links.queues import URGENT
from protocols.multicast.seal import DatagramSeal, OwnKey
from protocols.wire.codec import decode_untrusted_node_frame
from protocols.wire.multicast.datagrams import MAX_COUNTER, datagram_statement, encode_body, encode_head, nonce_of
from protocols.wire.multicast.frames import Heard, SenderKey
from protocols.wire.parcels import decode_untrusted_parcel
from protocols.wire.readings import Reading, Readings, SignedReadings, expiry_utc_ns

_ROTATE_NS: Final = 600 * limits.SECOND
_HANDED_NS: Final = 10 * limits.SECOND
"""On a full channel it takes so long until all neighbours have a key."""
_MOST_HOLDERS: Final = 4 * limits.MAX_NEIGHBOURS
"""Everybody who has ever held a key counts, whoever has left meanwhile. With more, there is another key sooner."""
_MOST_DATAGRAMS: Final = MAX_COUNTER // 2
_PAUSE_NS: Final = limits.SECOND
"""A stream that was silent for so long may be silent for longer: its next frame is guarded, and its last one cast
again."""
_KEPT: Final = 64
"""Guarded frames that can be sent again …"""
_KEPT_NS: Final = 2 * limits.SECOND
"""… for so long."""
_HANDED_SOON_NS: Final = 150 * limits.MS
"""So long after a key was handed over it is most often there, and a beacon shows whether its holder hears."""
_MOST_STREAMS: Final = 256
"""Streams whose last frame is kept. With more, the one that is silent for longest gives way."""
_LEASE_NS: Final = 60 * limits.SECOND
"""A listener says so again in a third of this time, unless there are so many that each takes a second."""
_LEASE_EACH_NS: Final = 3 * limits.SECOND
_SOON_NS: Final = 30 * limits.MS
_SOON_TIMES: Final = 2
"""So long after a guarded frame a beacon tells of it, and once more, unless other datagrams have. Without them, the
loss of a last hazard would show after a quarter of a second."""


class CastFrame(NamedTuple):
    """A frame that was cast, and what a queue has to know of it."""

    keys: tuple[str, ...]
    """Of the readings in it."""
    frame: bytes
    priority: int
    expires_ns: int
    readings: int
    cast_ns: int
    is_guarded: bool


def key_statement(node: NodeId, secret: bytes, public: bytes) -> bytes:
    """What the id of a key is a hash of. The node is in it, so nobody can hand out a key under another's id."""
    return b"\0".join((node.encode(), secret, public))


class _Key:
    """A key, and the counter of its next datagram."""

    def __init__(self, node: NodeId, seal: DatagramSeal, now: int) -> None:
        self.own: OwnKey = seal.new_key()
        statement = key_statement(node, self.own.secret, self.own.public)
        self.id = seal.digest(statement)[: limits.DATAGRAM_KEY_ID_BYTES]
        self.made_ns = now
        self.counter = 0
        self.holders: dict[NodeId, Role] = {}


class _Repaired:
    """What was sent to a neighbour again, and may be."""

    def __init__(self, now: int) -> None:
        rate, burst = limits.DATAGRAM_REPAIRS_PER_S, limits.MAX_DATAGRAM_REPAIRS_BURST
        self.allowance = Allowance(rate, burst, now)
        self.numbers: set[int] = set()


class DatagramSender:
    """The casting half of one node. All instants are monotonic nanoseconds."""

    def __init__(self, node: NodeId, seal: DatagramSeal) -> None:
        self._node, self._seal = node, seal
        self._key: _Key | None = None
        self._next: _Key | None = None
        """A key that is handed out and not in use yet."""
        self.met: dict[NodeId, Role] = {}
        """The neighbours to whom both directions are open."""
        self._leases: dict[NodeId, int] = {}
        self._repaired: dict[NodeId, _Repaired] = {}
        self._guarded = 0
        self._kept: dict[int, CastFrame] = {}
        self._latest: dict[str, CastFrame] = {}
        self.cast_ns = -NEVER
        """When something was cast last."""
        self._soon = 0  # how many datagrams have to follow soon
        self.soon_ns = NEVER
        """When a beacon has to tell of a guarded frame."""
        self.is_changed = False
        """Whether there are other holders or listeners than when the caller last looked."""
        self.handed: list[tuple[NodeId, SenderKey]] = []
        self.repairs: list[tuple[NodeId, CastFrame]] = []
        self.cast = self.cast_bytes = self.beacons = self.repaired = self.over_rate = 0

    @property
    def listeners(self) -> frozenset[NodeId]:
        """Who hears the datagrams."""
        return frozenset(self._leases)

    @property
    def holders(self) -> dict[NodeId, Role]:
        """Who can open what is cast from now on, with the role that each had then."""
        return {} if self._key is None else self._key.holders

    def is_own(self, datagram: bytes) -> bool:
        """Whether a datagram names a key of this node."""
        return self._key is not None and datagram[1 : 1 + limits.DATAGRAM_KEY_ID_BYTES] == self._key.id

    def forget_frames(self) -> None:
        """Cast and send nothing again that was cast so far, except what a neighbour that wants it has missed."""
        self._latest.clear()

    # --- neighbours ------------------------------------------------------------------------------------------------
    def neighbour_met(self, node: NodeId, role: Role, now: int) -> None:
        """Hand out the keys to a neighbour."""
        self.met[node] = role
        if self._key is None:
            self._key = _Key(self._node, self._seal, now)
        for key in (self._key, self._next):
            if key is not None:
                self._hand(key, node, role)
        self.is_changed = True
        self._soon, self.soon_ns = max(1, self._soon), min(self.soon_ns, now + _HANDED_SOON_NS)

    def neighbour_gone(self, node: NodeId) -> None:
        """Forget a neighbour. It still holds the key, until there is another one."""
        self.met.pop(node, None)
        self._repaired.pop(node, None)
        self._release(node)

    def _hand(self, key: _Key, node: NodeId, role: Role) -> None:
        key.holders[node] = role
        own = key.own
        self.handed.append((node, SenderKey(key.id, own.secret, own.public, key.counter, self._guarded)))

    def _release(self, node: NodeId) -> None:
        if self._leases.pop(node, 0):
            self.is_changed = True

    def heard(self, frame: Heard, node: NodeId, now: int) -> None:
        """Take in what a neighbour says it hears."""
        known = [key.id for key in (self._key, self._next) if key is not None]
        if frame.key not in known or node not in self.met:
            return
        if frame.hears:
            self.is_changed = self.is_changed or node not in self._leases
            self._leases[node] = now + max(_LEASE_NS, _LEASE_EACH_NS * len(self.met))
            self._repair(node, frame.missing, (), now)
        elif node in self._leases:
            self._release(node)
            missed = [number for number in self._kept if number > frame.guarded]
            self._repair(node, missed, self._latest.values(), now)

    def _repair(self, node: NodeId, numbers: Iterable[int], others: Iterable[CastFrame], now: int) -> None:
        """Have guarded frames, by number, and others sent again on the link. A number is sent again once."""
        repaired = self._repaired.get(node)
        if repaired is None:
            repaired = self._repaired[node] = _Repaired(now)
        new = [number for number in numbers if number in self._kept and number not in repaired.numbers]
        repaired.numbers = {number for number in repaired.numbers if number in self._kept}.union(new)
        sent: set[bytes] = set()
        for kept in (*[self._kept[number] for number in new], *others):
            if kept.expires_ns <= now or kept.frame in sent:
                continue
            sent.add(kept.frame)
            if not repaired.allowance.take(now):
                self.over_rate += 1
                continue
            self.repaired += 1
            self.repairs.append((node, kept))

    # --- datagrams -------------------------------------------------------------------------------------------------
    def datagram(self, frame: bytes, now: int, utc_now: int) -> bytes | None:
        """The datagram that carries a frame; empty: a beacon. None: there is nobody who could open it."""
        key = self._key
        if key is None:
            return None
        is_guarded = bool(frame) and self._note(frame, now, utc_now)
        head = encode_head(key.id, key.counter)
        signature = key.own.sign(datagram_statement(head, self._guarded, is_guarded, frame))
        body = encode_body(self._guarded, is_guarded, signature, frame)
        datagram = head + self._seal.close(key.own.secret, nonce_of(key.counter), head, body)
        key.counter += 1
        self._soon = _SOON_TIMES if is_guarded else max(0, self._soon - 1)
        self.cast_ns, self.soon_ns = now, now + _SOON_NS if self._soon else NEVER
        self.cast += bool(frame)
        self.beacons += not frame
        self.cast_bytes += len(datagram)
        return datagram

    def _note(self, frame: bytes, now: int, utc_now: int) -> bool:
        """Keep what may have to be sent again. Returns whether the frame is guarded."""
        readings = self._readings_in(frame)
        newest: dict[str, Reading] = {reading.key: reading for reading in readings}
        is_guarded = False
        for key, reading in newest.items():
            before = self._latest.pop(key, None)
            rests = before is None or now - before.cast_ns >= _PAUSE_NS
            is_guarded = is_guarded or reading.priority >= URGENT or rests
        for key, reading in newest.items():
            expires_ns = now + expiry_utc_ns(reading) - utc_now if reading.lifespan_ms else NEVER
            kept = CastFrame(tuple(newest), frame, reading.priority, expires_ns, len(readings), now, is_guarded)
            self._latest[key] = kept
            if is_guarded:
                self._kept[self._guarded + 1] = kept  # of several keys in one frame the last one names it
        if is_guarded:
            self._guarded += 1
            while len(self._kept) > _KEPT:
                del self._kept[next(iter(self._kept))]
        while len(self._latest) > _MOST_STREAMS:
            del self._latest[next(iter(self._latest))]
        return is_guarded

    def _readings_in(self, frame: bytes) -> tuple[Reading, ...]:
        """The readings in a frame of this node."""
        try:
            decoded = decode_untrusted_node_frame(frame)
            if type(decoded) is SignedReadings:
                return decode_untrusted_parcel(decoded)
        except RemoteProtocolError:  # it is our own, so it never is
            return ()
        return decoded.readings if type(decoded) is Readings else ()

    # --- time ------------------------------------------------------------------------------------------------------
    def look(self, now: int) -> list[bytes]:
        """Look what is over. Returns frames to cast again, because their streams have stopped."""
        for node, until_ns in list(self._leases.items()):
            if until_ns <= now:
                self._release(node)
        for number in [number for number, kept in self._kept.items() if now - kept.cast_ns > _KEPT_NS]:
            del self._kept[number]
        self._rotate(now)
        again = []
        for key, kept in list(self._latest.items()):  # the oldest first
            if now - kept.cast_ns < _PAUSE_NS:
                break
            del self._latest[key]
            if not kept.is_guarded and kept.expires_ns > now and len(self._leases) > 1:
                again.append(kept.frame)
        return list(dict.fromkeys(again))

    def _rotate(self, now: int) -> None:
        key = self._key
        if key is None or not self.met:
            return
        if self._next is not None:
            if now - self._next.made_ns >= _HANDED_NS:
                self._key, self._next, self.is_changed = self._next, None, True
        elif now - key.made_ns >= _ROTATE_NS or key.counter > _MOST_DATAGRAMS or len(key.holders) > _MOST_HOLDERS:
            self._next = _Key(self._node, self._seal, now)
            for node, role in self.met.items():
                self._hand(self._next, node, role)
