"""What a node carries for its neighbours: which batch it takes, which one goes to the relay next, and what comes back.

    taken ──► uploaded ──► replied ──► gone      the node that made it has the reply
      │                        │
      └────────────────────────┴──► dropped      too old, the relay can't open it, or others need the room

The bytes are on the disk of the driver; here are only their sizes. Each node pays for what it gives: it may hold a
quarter of the room, and when the room is full, the newest batch of whoever holds most gives way. Uploads take nodes by
turns. So a node that gives much, or garbage, delays the batch of another one by at most one of its own.

A batch that the relay can't open costs its maker the right to be carried for a while, and the carrier nothing.
"""

from collections.abc import Callable, Iterable
from typing import Final

from msgspec import Struct

from protocols.access import AccessTable
from protocols.base.ids import NodeId, Role
from protocols.base.limits import SEALED_ID_BYTES, SECOND
from protocols.base.shares import Shares
from protocols.base.time import NEVER
from protocols.records.carrying.events import (
    CarriedBatchRefused,
    CarryingDecisions,
    ForgetSealed,
    KeepReply,
    KeepSealed,
    UploadSealed,
)
from protocols.records.carrying.settings import CarryingSettings
from protocols.wire.carrying.frames import CarrierOffer, RelayReply, SealedBatch, SealedState

MAX_CARRIED: Final = 4_096
"""Batches and replies that are carried: each is a file."""
OVERHEAD_BYTES: Final = 4_096
"""What a file takes beside its content, and so what small ones count for."""
SHARE: Final = 4
"""One node holds at most this part of the room."""
MAX_AT_ONCE: Final = 8
"""Replies that wait for a node to say that it has them."""
MAX_BLAMED: Final = 256
BLAMED_NS: Final = 600 * SECOND
RETRY_MIN_NS: Final = 1 * SECOND
RETRY_MAX_NS: Final = 60 * SECOND
_MAX_DOUBLINGS: Final = 8
_GARBAGE: Final = frozenset({"sealed", "malformed"})


class _Carried(Struct):
    """A batch, or the reply to it."""

    node: NodeId
    key: bytes
    size_bytes: int
    since_ns: int
    reply: bytes = b""
    is_told: bool = False
    """Whether the reply was sent to its node, in this contact."""


class CarriedItem(Struct, frozen=True):
    """What was kept over a restart."""

    sealed: bytes
    node: NodeId
    key: bytes
    size_bytes: int
    age_ns: int
    reply: bytes = b""


class Holding:
    """See the module. Instants are monotonic nanoseconds."""

    def __init__(
        self,
        settings: CarryingSettings,
        access: AccessTable,
        hash_bytes: Callable[[bytes], bytes],
        decided: CarryingDecisions,
    ) -> None:
        self._settings, self._access, self._hash, self._decided = settings, access, hash_bytes, decided
        self._items: dict[bytes, _Carried] = {}
        self._shares: Shares[NodeId] = Shares()
        self._present: set[NodeId] = set()
        self._blamed: dict[NodeId, int] = {}
        self._key = b""
        """That of the relay that this node reaches; empty: none."""
        self._reached_ns = -NEVER
        self._uploading: bytes | None = None
        self._last: NodeId = NodeId("")
        """Whose batch was uploaded last."""
        self._next_upload_ns = -NEVER
        self._failures = 0
        self.counts = {
            "taken": 0, "forbidden": 0, "full": 0, "unable": 0, "blamed": 0, "gave_way": 0, "uploaded": 0,
            "upload_failures": 0, "garbage": 0, "aged": 0, "lost": 0, "brought_back": 0,
        }  # fmt: skip

    @property
    def held(self) -> int:
        """Batches and replies that are carried."""
        return len(self._items)

    @property
    def held_bytes(self) -> int:
        """The room that they take."""
        return self._shares.total

    def offer(self) -> CarrierOffer:
        """What this node says of itself."""
        if self._key and self._settings.carries:
            return CarrierOffer(self._key, self._share_bytes)
        return CarrierOffer(b"", 0)

    @property
    def _share_bytes(self) -> int:
        return self._settings.max_bytes // SHARE

    def _is_willing(self, now: int) -> bool:
        return bool(self._settings.carries and self._key and now < self._reached_ns + self._settings.reach_ns)

    # --- the relay ---------------------------------------------------------------------------------------------------
    def relay_answered(self, key: bytes, now: int) -> None:
        """The relay answers, and this is the id of its key."""
        was_willing, before = self._is_willing(now), self._key
        self._key, self._reached_ns = key, now
        if before and before != key:  # what is sealed to the other key does not open any more
            for sealed in [sealed for sealed, item in self._items.items() if item.key != key and not item.reply]:
                self._drop(sealed, "unable", "lost")
        if self._settings.carries and (not was_willing or before != key):
            self._decided.messages.append((None, self.offer()))
        if not was_willing:
            self._next_upload_ns = now
        self._upload(now)

    def uploaded(self, sealed: bytes, reply: bytes, code: str, now: int) -> None:
        """The relay was brought a batch. ``reply``: what it signed; empty: it did not, and ``code`` is its refusal, or
        empty when it did not answer."""
        self._uploading = None
        item = self._items.get(sealed)
        if reply or code in _GARBAGE or code == "key":
            self._failures, self._next_upload_ns, self._reached_ns = 0, now, now
        else:
            self.counts["upload_failures"] += 1
            self._next_upload_ns = now + min(RETRY_MIN_NS << self._failures, RETRY_MAX_NS)
            self._failures = min(self._failures + 1, _MAX_DOUBLINGS)
        if item is not None and reply:
            self._replied(sealed, item, reply)
        elif item is not None and (code in _GARBAGE or code == "key"):
            self.counts["garbage"] += code in _GARBAGE
            self._decided.events.append(CarriedBatchRefused(item.node, code))
            if code in _GARBAGE:
                if item.node not in self._blamed and len(self._blamed) >= MAX_BLAMED:
                    del self._blamed[next(iter(self._blamed))]
                self._blamed[item.node] = now + BLAMED_NS
            self._drop(sealed, "unable", "")
        self._upload(now)

    def _replied(self, sealed: bytes, item: _Carried, reply: bytes) -> None:
        self.counts["uploaded"] += 1
        self._shares.remove(item.node, item.size_bytes)
        item.size_bytes, item.reply = len(reply) + OVERHEAD_BYTES, reply
        self._shares.add(item.node, item.size_bytes)
        self._decided.effects.append(KeepReply(sealed, item.node, item.key, reply))
        self._bring_back(item.node)

    def _upload(self, now: int) -> None:
        """Bring the next batch to the relay, by turns of the nodes that made them."""
        if self._uploading is not None or now < self._next_upload_ns or not self._key:
            return
        first: dict[NodeId, bytes] = {}
        for sealed, item in self._items.items():
            if not item.reply:
                first.setdefault(item.node, sealed)
        if not first:
            return
        node = min((node for node in first if node > self._last), default=min(first))
        self._last, self._uploading = node, first[node]
        self._decided.effects.append(UploadSealed(first[node], node, self._items[first[node]].key))

    # --- neighbours --------------------------------------------------------------------------------------------------
    def met(self, node: NodeId) -> None:
        """A neighbour is there: bring it what the relay said."""
        self._present.add(node)
        self._bring_back(node)

    def gone(self, node: NodeId) -> None:
        """A neighbour is out of reach."""
        self._present.discard(node)
        for item in self._items.values():
            if item.node == node:
                item.is_told = False

    def undeliverable(self, node: NodeId, frame: RelayReply) -> None:
        """A reply could not be queued; it is brought again when more is known of the node."""
        if (item := self._items.get(frame.sealed)) is not None and item.node == node:
            item.is_told = False

    def given(self, frame: SealedBatch, source: NodeId, role: Role, now: int) -> None:
        """A neighbour gives a batch."""
        sealed = self._hash(frame.sealed)[:SEALED_ID_BYTES]
        item = self._items.get(sealed)
        if item is not None and item.node == source:
            item.is_told = False
            self._decided.messages.append((source, SealedState(sealed, "taken")))
            self._bring_back(source)
            return
        why = self._objection(frame, source, role, now)
        if not why and item is None and self._make_room(source, len(frame.sealed) + OVERHEAD_BYTES):
            self.counts["taken"] += 1
            self._items[sealed] = _Carried(source, frame.key, len(frame.sealed) + OVERHEAD_BYTES, now)
            self._shares.add(source, len(frame.sealed) + OVERHEAD_BYTES)
            self._decided.effects.append(KeepSealed(sealed, source, frame.key, frame.sealed))
            self._decided.messages.append((source, SealedState(sealed, "taken")))
            self._upload(now)
            return
        why = why or "full"
        self.counts[why] += 1
        self._decided.messages.append((source, SealedState(sealed, "unable" if why == "blamed" else why)))

    def _objection(self, frame: SealedBatch, source: NodeId, role: Role, now: int) -> str:
        if not self._settings.carries or not self._access.permits_carry(role, source):
            return "forbidden"
        if not self._is_willing(now) or frame.key != self._key:
            return "unable"
        if self._blamed.get(source, -NEVER) > now:
            return "blamed"
        return ""

    def _make_room(self, node: NodeId, size_bytes: int) -> bool:
        """Whether there is room for so much of a node; others may give way for it."""
        if self._shares.held(node) + size_bytes > self._share_bytes:
            return False
        while self._shares.total + size_bytes > self._settings.max_bytes or len(self._items) >= MAX_CARRIED:
            largest = self._shares.largest()
            if self._shares.held(largest) <= self._shares.held(node) + size_bytes:
                return False
            newest = next(
                (sealed for sealed, item in reversed(self._items.items())
                 if item.node == largest and sealed != self._uploading), None,
            )  # fmt: skip
            if newest is None:
                return False
            self._drop(newest, "dropped", "gave_way")
        return True

    def known(self, sealed: bytes, source: NodeId) -> None:
        """The node that made a batch has the reply."""
        item = self._items.get(sealed)
        if item is not None and item.node == source and item.reply:
            self.counts["brought_back"] += 1
            self._forget(sealed)
            self._bring_back(source)

    def _bring_back(self, node: NodeId) -> None:
        if node not in self._present:
            return
        under_way = 0
        for sealed, item in self._items.items():
            if item.node == node and item.reply:
                under_way += 1
                if under_way > MAX_AT_ONCE:
                    return
                if not item.is_told:
                    item.is_told = True
                    self._decided.messages.append((node, RelayReply(sealed, item.reply)))

    # --- the disk ----------------------------------------------------------------------------------------------------
    def restored(self, items: Iterable[CarriedItem], now: int) -> None:
        """What was carried when the last life of this node ended."""
        for kept in items:
            if self._shares.total + kept.size_bytes > self._settings.max_bytes or len(self._items) >= MAX_CARRIED:
                self.counts["gave_way"] += 1
                self._decided.effects.append(ForgetSealed(kept.sealed))
                continue
            self._items[kept.sealed] = _Carried(
                kept.node, kept.key, kept.size_bytes + OVERHEAD_BYTES, now - kept.age_ns, kept.reply
            )  # fmt: skip
            self._shares.add(kept.node, kept.size_bytes + OVERHEAD_BYTES)
        self.handle_timer(now)

    def lost(self, sealed: bytes) -> None:
        """A batch is not on the disk: it is full, or somebody has removed the file."""
        if self._uploading == sealed:
            self._uploading = None
        if sealed in self._items:
            self._drop(sealed, "dropped", "lost")

    def _drop(self, sealed: bytes, told: str, counted: str) -> None:
        """Give up a batch, and tell its node if it is there: it can give the batch to somebody else."""
        item = self._items[sealed]
        if counted:
            self.counts[counted] += 1
        if item.node in self._present and not item.reply:
            self._decided.messages.append((item.node, SealedState(sealed, told)))
        self._forget(sealed)

    def _forget(self, sealed: bytes) -> None:
        item = self._items.pop(sealed)
        self._shares.remove(item.node, item.size_bytes)
        self._decided.effects.append(ForgetSealed(sealed))

    # --- time --------------------------------------------------------------------------------------------------------
    def handle_timer(self, now: int) -> None:
        """Do what is due."""
        for sealed in [s for s, item in self._items.items() if now >= item.since_ns + self._settings.max_age_ns]:
            if sealed != self._uploading:
                self._drop(sealed, "dropped", "aged")
        if self._key and now >= self._reached_ns + self._settings.reach_ns:
            self._key = b""
            if self._settings.carries:
                self._decided.messages.append((None, self.offer()))
        self._upload(now)

    def next_timer_at(self) -> int:
        """When :meth:`handle_timer` has to be called."""
        dues = [item.since_ns + self._settings.max_age_ns for s, item in self._items.items() if s != self._uploading]
        if self._key:
            dues.append(self._reached_ns + self._settings.reach_ns)
            if self._uploading is None and any(not item.reply for item in self._items.values()):
                dues.append(self._next_upload_ns)
        return min(dues, default=NEVER)
