"""Ingest: takes the bytes of a node's batch and gives the bytes of the relay's answer.

It checks the role of the sender, the major version, the form of the batch, the node that it names and its receipt, in
this order, and hands the batch to the store. A wrong receipt is noted there, and nothing of its batch is taken. A
record whose key its origin may not publish is refused, see :mod:`cloud_relay.ingest.access`. A node never learns
anything about another one. Nothing is acknowledged before it is on disk. Each reading is decoded once, and stored in
the bytes in which it came.
"""

import logging
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import replace
from typing import Final

from cloud_relay.ingest.access import PublishAccess
from cloud_relay.ingest.receipts import CertificateMissing, ReceiptCheck
from cloud_relay.store.contract import RecordStore, StorableBatch, StorableRecord
from cloud_relay.store.receipts import StorableReceipt
from cloud_relay.store.rows import MAX_INTEGER, Cost, RecordUnsuitable, row_of
from meshnode.identity.packing import unpacked_untrusted
from protocols.access import AccessTable
from protocols.base.errors import ReceiptWrong, RemoteProtocolError, StorageError
from protocols.base.ids import PeerIdentity
from protocols.base.limits import MAX_TEXT_CHARS
from protocols.base.sequences import MAX_INCARNATION
from protocols.records.receipts.checking import SENDERS
from protocols.wire.codec import decode_untrusted_relay_frame, encode_frame
from protocols.wire.encoding.messagepack import untrusted_frame_number
from protocols.wire.frame import number_of
from protocols.wire.membership import MAJOR
from protocols.wire.parcels import decode_untrusted_record
from protocols.wire.records import Acknowledgement, Batch, PackedBatch, RefusedRecord, RelayRefusal

COMMIT_TIMEOUT_S = 8.0
"""A disk that is slower than this is as good as full. The bound is below the node's own time-out, so that the node
learns why."""
MAX_BATCH_CONTAINERS = 32_768
"""Lists and dicts in the values of one batch. A batch of 1 MiB could have a million, which took 0.9 s."""
_PACKED: Final = number_of(PackedBatch)
_REQUIRED = (
    'records without a receipt are refused here ([ingest] receipts = "required"): update the node to a version that '
    "makes receipts"
)

_log = logging.getLogger(__name__)


class Ingest:
    """Answers batches. ``answer`` is a handler for ``meshnode.links.transport.Responder`` and may run on any thread."""

    def __init__(self, store: RecordStore, access: AccessTable, receipts: ReceiptCheck) -> None:
        self._store, self._access, self._receipts = store, PublishAccess(access), receipts
        self._refusals: dict[str, int] = {}

    def statistics(self) -> dict[str, int]:
        """Refused batches, counted by the code of the refusal."""
        return dict(self._refusals)

    def answer(self, peer: PeerIdentity, data: bytes) -> bytes:
        """The answer to one request of ``peer``. Never raises."""
        return encode_frame(self.taken(peer, data))

    def taken(self, peer: PeerIdentity, data: bytes, *, carried: bool = False) -> Acknowledgement | RelayRefusal:
        """As :meth:`answer`, before it is encoded. ``carried``: another node brought what ``peer`` made."""
        try:
            answer = self._answer(peer, data, carried=carried)
        except RemoteProtocolError as error:
            answer = RelayRefusal("malformed", str(error)[:MAX_TEXT_CHARS])
        except (StorageError, FutureTimeoutError) as error:
            _log.error("a batch of %s was not stored: %s", peer.node, str(error) or "the disk took too long")
            answer = RelayRefusal("storage", "the relay's disk does not take records now")
        except Exception:  # noqa: BLE001 - a handler must not raise; the node keeps the batch
            _log.exception("a batch of %s was not handled: this is a bug of the relay", peer.node)
            answer = RelayRefusal("storage", "the relay failed")
        if isinstance(answer, RelayRefusal):
            self._refusals[answer.code] = self._refusals.get(answer.code, 0) + 1
        return answer

    def _answer(self, peer: PeerIdentity, data: bytes, *, carried: bool) -> Acknowledgement | RelayRefusal:
        if peer.role not in SENDERS:
            return RelayRefusal("identity", f"a {peer.role} sends no records: use a certificate of a vehicle or rsu")
        if untrusted_frame_number(data) == _PACKED:
            data = _unpacked_untrusted(data)
        major = _untrusted_major(data)
        if major is not None and major != MAJOR:
            return RelayRefusal("version", f"this relay speaks version {MAJOR}, the node {major}: update the older one")
        batch = decode_untrusted_batch(data)
        if batch.node != peer.node:
            return RelayRefusal("identity", f"a batch of {batch.node} came with the certificate of {peer.node}")
        if batch.incarnation > MAX_INCARNATION:
            return RelayRefusal(
                "incarnation", f"incarnation out of range: {batch.incarnation} is above {MAX_INCARNATION}"
            )  # fmt: skip
        try:
            receipt = self._receipts.checked(batch, peer)
        except CertificateMissing:
            return RelayRefusal("certificate", "send the certificate that the receipt names along")
        except ReceiptWrong as error:
            taken = _without_anything(batch, f"wrong receipt, {error.step}: {error}"[:MAX_TEXT_CHARS])
        else:
            if receipt is None and batch.records and self._receipts.required:
                return RelayRefusal("receipt", _REQUIRED)
            taken = storable(batch, peer, self._access, receipt)
        return self._store.submit(replace(taken, carried=carried)).result(COMMIT_TIMEOUT_S)


def _unpacked_untrusted(data: bytes) -> bytes:
    frame = decode_untrusted_relay_frame(data)
    assert isinstance(frame, PackedBatch), "its number says so"
    return unpacked_untrusted(frame.data)


def decode_untrusted_batch(data: bytes) -> Batch:
    """A batch, whose readings are not decoded yet.

    :raises RemoteProtocolError: for anything that is not a batch, or contradicts itself.
    """
    batch = decode_untrusted_relay_frame(data)
    if not isinstance(batch, Batch):
        raise RemoteProtocolError("a relay takes batches only")
    if batch.next_sequence > MAX_INTEGER:
        raise RemoteProtocolError("a sequence has more than 63 bits")
    if batch.fates and batch.fates[-1].last >= batch.next_sequence:
        raise RemoteProtocolError("a fate is about records that were not issued yet")
    if batch.records and batch.records[-1].sequence >= batch.next_sequence:
        raise RemoteProtocolError("a record's sequence is not below next_sequence")
    return batch


def storable(
    batch: Batch, peer: PeerIdentity, access: PublishAccess, receipt: StorableReceipt | None = None
) -> StorableBatch:
    """A batch of ``peer`` as the store takes it, with the records that don't fit the store, or that nobody may send,
    apart.

    Readings are decoded one after the other, because objects take up to a hundred times the memory of their bytes.
    After ``MAX_BATCH_CONTAINERS`` the rest of the records is left out. Its node sends what the acknowledgement does not
    name again.

    :raises RemoteProtocolError: when a record holds no reading.
    """
    records: list[StorableRecord] = []
    refused: list[RefusedRecord] = []
    cost, node, role, objection = Cost(), peer.node, peer.role, access.objection
    for record in batch.records:
        reading = decode_untrusted_record(record)
        origin, encoded = reading.origin, bytes(record.reading)
        if reason := objection(origin, reading.key, role if origin == node else None):
            refused.append(RefusedRecord(record.sequence, reason[:MAX_TEXT_CHARS]))
            continue
        try:
            row = row_of(reading, encoded, cost)
        except RecordUnsuitable as error:
            refused.append(RefusedRecord(record.sequence, str(error)[:MAX_TEXT_CHARS]))
            continue
        if cost.containers > MAX_BATCH_CONTAINERS and (records or refused):
            break
        records.append(StorableRecord(record.sequence, record.rule, row, encoded))
    return StorableBatch(
        batch.node, batch.incarnation, batch.next_sequence, tuple(records), tuple(refused), batch.fates, receipt
    )  # fmt: skip


def _without_anything(batch: Batch, wrong_receipt: str) -> StorableBatch:
    """What is left of a batch with a wrong receipt."""
    return StorableBatch(
        batch.node, batch.incarnation, batch.next_sequence, (), (), (), wrong_receipt=wrong_receipt
    )  # fmt: skip


def _untrusted_major(data: bytes) -> int | None:
    """The major version at the head of a batch. It is read by itself, because the rest of another version may not parse
    at all."""
    if len(data) > 3 and 0x91 <= data[0] <= 0x9F and data[1] == 64 and data[2] < 0x80:
        return data[2]
    return None
