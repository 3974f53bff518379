"""What a node without a way to the relay gives to its neighbours: which batch to whom, and until when.

    waiting ──► given ──► taken ──► gone     the relay's reply came and holds, or all of its records have ended
       ▲          │         │
       └──────────┴─────────┘                the carrier refused, left before it said anything, or took too long

A batch is sealed once and given in the same bytes to every carrier, so a relay that gets it twice knows it. While it is
on its way, its records stay in the outbox, and the node may also deliver them itself.

Batches are handed over only while the relay is out of reach for some time. Nobody is believed in what he says of a
batch but the relay: a carrier that says ``taken`` and throws it away costs the time until another one is given it.

The memory of what is on its way ends with the life of the node. Its records are then sealed anew. A reply to the older
batch is still good, because what a relay says of a sequence stays true.
"""

from collections.abc import Callable, Iterable
from typing import Final

from msgspec import Struct, field

from protocols.base.errors import RemoteProtocolError
from protocols.base.ids import NodeId
from protocols.base.limits import SEALING_KEY_ID_BYTES, SECOND
from protocols.base.time import NEVER
from protocols.machine import HeardEntry
from protocols.records.carrying.events import (
    BatchHandedOver,
    CarryingDecisions,
    CheckReply,
    ReplyBrought,
    SealBatch,
)
from protocols.records.carrying.sealed import decode_untrusted_relay_key
from protocols.records.carrying.settings import CarryingSettings
from protocols.records.ledger import BatchPlan
from protocols.wire.carrying.contents import SUITE, RelayKey
from protocols.wire.carrying.frames import CarrierOffer, RelayReply, SealedBatch, SealedState

MAX_ON_THEIR_WAY: Final = 64
MAX_ON_THEIR_WAY_BYTES: Final = 16 * 1024 * 1024
"""Sealed batches in memory until the relay has replied."""
MAX_KEYS: Final = 16
"""Relays of one mesh whose key is known."""
MAX_CHECKS: Final = 16
"""Replies that are being checked: each costs 0.3 ms and a look at the outbox."""
ANSWER_NS: Final = 60 * SECOND
"""Time in which a carrier says whether it takes a batch: it comes behind everything else on its lane."""
PAUSE_NS: Final = 60 * SECOND
"""A carrier that took nothing is left alone for so long."""
FORBIDDEN_NS: Final = 3_600 * SECOND
"""One that forbids it, for longer: a person would have to change that."""
MAX_LATE: Final = 256
"""Carriers that are remembered as late."""
REFUSED_NS: Final = 600 * SECOND
"""After the relay has refused a batch, nothing is sealed for so long."""


class _Batch(Struct):
    """A sealed batch on its way."""

    plan: BatchPlan
    key: bytes
    data: bytes
    carrier: NodeId | None = None
    """Who was given it last; None: nobody has it now."""
    since_ns: int = 0
    is_taken: bool = False
    failed: set[NodeId] = field(default_factory=set)
    """Carriers that did not take it, or did not bring a reply in time. They get it again only when there is nobody
    else."""

    @property
    def bounds(self) -> tuple[int, int]:
        """Its first and its last sequence."""
        return self.plan.sequences[0], self.plan.sequences[-1]


class Handing:
    """See the module. Instants are monotonic nanoseconds."""

    def __init__(
        self, settings: CarryingSettings, is_relay: Callable[[bytes, NodeId], bool],
        hash_bytes: Callable[[bytes], bytes], decided: CarryingDecisions,
    ) -> None:  # fmt: skip
        """``is_relay(certificate, author)``: whether the authority says that the author is a relay of this mesh."""
        self._settings, self._is_relay, self._hash, self._decided = settings, is_relay, hash_bytes, decided
        self._keys: dict[NodeId, tuple[int, bytes, RelayKey]] = {}
        """By relay: the version of its entry, the id of the key and the key."""
        self._offers: dict[NodeId, CarrierOffer] = {}
        self._paused_until: dict[NodeId, int] = {}
        self._late: dict[NodeId, int] = {}
        """How often each carrier has brought no reply in time. Who did so least gets new batches first."""
        self._batches: dict[bytes, _Batch] = {}
        self._bytes = 0
        self._lost_ns: int | None = None
        """Since when the relay is out of reach; None: it is in reach."""
        self._issued = self._dry_at = -1
        """Records issued, now and when there was nothing to seal."""
        self._is_sealing = False
        self._checking: set[bytes] = set()
        self._resting_until = 0
        self.counts = {
            "keys_refused": 0, "sealed": 0, "handed_over": 0, "handed_over_records": 0, "not_taken": 0, "late": 0,
            "replies": 0, "replies_refused": 0, "replies_over_bound": 0,
        }  # fmt: skip

    @property
    def on_their_way(self) -> int:
        """Batches that are sealed and have no reply."""
        return len(self._batches)

    @property
    def carriers(self) -> list[NodeId]:
        """The neighbours that carry to a relay whose key is known."""
        keys = {known[1] for known in self._keys.values()}
        return sorted(node for node, offer in self._offers.items() if offer.key in keys)

    # --- what it learns ----------------------------------------------------------------------------------------------
    def heard(self, entry: HeardEntry, now: int) -> None:
        """An entry of gossip publishes a key. It counts when its author is a relay of this mesh."""
        relay = self._settings.relay
        if relay is not None and entry.author != relay:
            return
        try:
            key = decode_untrusted_relay_key(entry.body)
        except RemoteProtocolError:
            self.counts["keys_refused"] += 1
            return
        known = self._keys.get(entry.author)
        if key.suite != SUITE or (known is not None and known[0] >= entry.version):
            return
        if not self._is_relay(entry.credential, entry.author) or (known is None and len(self._keys) >= MAX_KEYS):
            self.counts["keys_refused"] += 1
            return
        key_id = self._hash(key.key)[:SEALING_KEY_ID_BYTES]
        self._keys[entry.author] = (entry.version, key_id, key)
        if known is not None and known[1] != key_id:
            self._forget(sealed for sealed, batch in self._batches.items() if batch.key == known[1])
        self._go_on(now)

    def look(self, is_reached: bool, is_introduced: bool, first: int, issued: int, now: int) -> None:
        """How this node stands: whether the relay is in reach and knows the ledger, the first sequence that waits, and
        the one that is issued next."""
        self._issued = issued
        if is_reached:
            self._lost_ns = None
        elif self._lost_ns is None:
            self._lost_ns = now
        done = [
            sealed for sealed, batch in self._batches.items()
            if (batch.bounds[1] < first if batch.plan.sequences else is_introduced)
            or (is_reached and batch.carrier is None)
        ]  # fmt: skip
        self._forget(done)
        self._go_on(now)

    def offered(self, offer: CarrierOffer, source: NodeId, now: int) -> None:
        """A neighbour says whether it carries."""
        if offer.key:
            self._offers[source] = offer
        else:
            self._offers.pop(source, None)
        self._go_on(now)

    def gone(self, node: NodeId, now: int) -> None:
        """A neighbour is out of reach. What it has taken is on its way."""
        self._offers.pop(node, None)
        self._paused_until.pop(node, None)
        for batch in self._batches.values():
            if batch.carrier == node and not batch.is_taken:
                batch.carrier = None
        self._go_on(now)

    def undeliverable(self, node: NodeId, frame: SealedBatch, now: int) -> None:
        """A batch could not be queued for a neighbour."""
        for batch in self._batches.values():
            if batch.data is frame.sealed and batch.carrier == node:
                self._not_taken(batch, node, PAUSE_NS, now)

    def state(self, frame: SealedState, source: NodeId, now: int) -> None:
        """A carrier says what becomes of a batch."""
        batch = self._batches.get(frame.sealed)
        if batch is None or batch.carrier != source:
            return
        if frame.state == "taken":
            if not batch.is_taken:
                batch.is_taken, batch.since_ns = True, now
                self.counts["handed_over"] += 1
                self.counts["handed_over_records"] += len(batch.plan.sequences)
                self._decided.events.append(BatchHandedOver(source, len(batch.plan.sequences)))
        else:
            self._not_taken(batch, source, FORBIDDEN_NS if frame.state == "forbidden" else PAUSE_NS, now)
        self._go_on(now)

    def _not_taken(self, batch: _Batch, carrier: NodeId, pause_ns: int, now: int) -> None:
        self.counts["not_taken"] += 1
        batch.carrier, batch.is_taken = None, False
        batch.failed.add(carrier)
        self._paused_until[carrier] = now + pause_ns

    # --- what the driver did -----------------------------------------------------------------------------------------
    def sealed(self, sealed: bytes, plan: BatchPlan, key: bytes, data: bytes, now: int) -> None:
        """A batch was sealed. ``sealed`` is its id."""
        self._is_sealing = False
        if any(key == known[1] for known in self._keys.values()):
            self.counts["sealed"] += 1
            self._batches[sealed] = _Batch(plan, key, data)
            self._bytes += len(data)
        self._go_on(now)

    def nothing_sealed(self, now: int, pause_ns: int = 0) -> None:
        """All records have been handed over. ``pause_ns``: or they could not be read or sealed, so try again later."""
        self._is_sealing = False
        if pause_ns:
            self._resting_until = now + pause_ns
        else:
            self._dry_at = self._issued
        self._go_on(now)

    def replied(self, frame: RelayReply, source: NodeId) -> None:
        """A carrier brings a reply."""
        if len(self._checking) >= MAX_CHECKS or frame.sealed in self._checking:
            self.counts["replies_over_bound"] += 1
            return
        self._checking.add(frame.sealed)
        batch = self._batches.get(frame.sealed)
        plan = None if batch is None else batch.plan
        self._decided.effects.append(CheckReply(source, frame.sealed, frame.reply, plan))

    def reply_checked(
        self, carrier: NodeId, sealed: bytes, now: int, *, is_believed: bool, is_refusal: bool = False, detail: str = ""
    ) -> None:  # fmt: skip
        """A reply was checked. ``is_refusal``: the relay does not take the batch as it is."""
        self._checking.discard(sealed)
        self.counts["replies" if is_believed else "replies_refused"] += 1
        self._decided.events.append(ReplyBrought(carrier, is_believed, detail))
        if is_believed:
            self._late.pop(carrier, None)
            self._decided.messages.append((carrier, SealedState(sealed, "known")))
            if is_refusal and sealed in self._batches:
                self._resting_until = now + REFUSED_NS
            self._forget((sealed,))
            self._dry_at = -1  # it need not have named all records
        self._go_on(now)

    def _forget(self, which: Iterable[bytes]) -> None:
        for sealed in list(which):
            if (batch := self._batches.pop(sealed, None)) is not None:
                self._bytes -= len(batch.data)
                self._dry_at = -1

    # --- deciding ----------------------------------------------------------------------------------------------------
    def _is_uncovered(self, now: int) -> bool:
        return (
            self._settings.hands_over and self._lost_ns is not None and now >= self._lost_ns + self._settings.after_ns
        )

    def handle_timer(self, now: int) -> None:
        """Do what is due."""
        self._go_on(now)

    def next_timer_at(self) -> int:
        """When :meth:`handle_timer` has to be called."""
        dues = [self._ends_ns(batch) for batch in self._batches.values() if batch.carrier is not None]
        if self._settings.hands_over and self._lost_ns is not None and self._offers:
            dues.append(self._lost_ns + self._settings.after_ns)
            dues.extend(self._paused_until.values())
            dues.append(self._resting_until)
        return min((due for due in dues if due > self._seen_ns), default=NEVER)

    _seen_ns = -NEVER
    """When it was last decided: what was due then was looked at."""

    def _ends_ns(self, batch: _Batch) -> int:
        return batch.since_ns + (self._settings.patience_ns if batch.is_taken else ANSWER_NS)

    def _go_on(self, now: int) -> None:
        self._seen_ns = max(self._seen_ns, now)
        for batch in self._batches.values():
            if batch.carrier is not None and now >= self._ends_ns(batch):
                if batch.is_taken:
                    self._was_late(batch, batch.carrier)
                else:
                    self._not_taken(batch, batch.carrier, PAUSE_NS, now)
        if not self._is_uncovered(now):
            return
        for carrier in self._free_carriers(now):
            offer = self._offers[carrier]
            chosen = self._next_for(carrier, offer)
            if chosen is not None:
                chosen.carrier, chosen.since_ns = carrier, now
                self._decided.messages.append((carrier, SealedBatch(chosen.key, chosen.data)))
            else:
                self._seal_for(offer, now)

    def _free_carriers(self, now: int) -> list[NodeId]:
        busy = {batch.carrier for batch in self._batches.values() if not batch.is_taken}
        free = [node for node in self._offers if node not in busy and self._paused_until.get(node, 0) <= now]
        return sorted(free, key=lambda node: self._late.get(node, 0))

    def _next_for(self, carrier: NodeId, offer: CarrierOffer) -> _Batch | None:
        for batch in self._batches.values():
            if batch.carrier is None and batch.key == offer.key and len(batch.data) <= offer.room_bytes:
                if batch.failed and all(node in batch.failed for node in self._offers):
                    batch.failed.clear()
                if carrier not in batch.failed:
                    return batch
        return None

    def _was_late(self, batch: _Batch, carrier: NodeId) -> None:
        """A carrier has brought no reply in time. It may have thrown the batch away, or be far from coverage."""
        batch.carrier, batch.is_taken = None, False
        batch.failed.add(carrier)
        if carrier not in self._late and len(self._late) >= MAX_LATE:
            del self._late[next(iter(self._late))]
        self._late[carrier] = self._late.get(carrier, 0) + 1
        self.counts["late"] += 1

    def _seal_for(self, offer: CarrierOffer, now: int) -> None:
        key = next((known[2] for known in self._keys.values() if known[1] == offer.key), None)
        if (
            key is None or self._is_sealing or self._dry_at == self._issued or now < self._resting_until
            or len(self._batches) >= MAX_ON_THEIR_WAY or self._bytes >= MAX_ON_THEIR_WAY_BYTES
            or any(batch.carrier is None and batch.key == offer.key for batch in self._batches.values())
        ):  # fmt: skip
            return
        self._is_sealing = True
        handed = sorted(batch.bounds for batch in self._batches.values() if batch.plan.sequences)
        is_introducing = any(not batch.plan.sequences for batch in self._batches.values())
        self._decided.effects.append(SealBatch(key, offer.key, tuple(handed), is_introducing))
