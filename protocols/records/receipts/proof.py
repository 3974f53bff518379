"""The proof of one record: what somebody needs who has nothing else but the certificate of the mesh's authority.

A proof is a JSON object, so that a person can look at it. Its bytes are in Base64.
"""

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from protocols.base.errors import ReceiptWrong, RemoteProtocolError
from protocols.base.limits import MAX_CERTIFICATE_BYTES, MAX_RECORD_BYTES
from protocols.records.receipts.tree import HASH_BYTES, MAX_PATH, Hash, leaf_hash, untrusted_root
from protocols.wire.parcels import decode_untrusted_record
from protocols.wire.readings import Reading
from protocols.wire.receipts import MAX_RECEIPT_BYTES, decode_untrusted_leaf, decode_untrusted_receipt
from protocols.wire.records import Receipt, Record

_MAX_LEAF_BYTES: Final = MAX_RECORD_BYTES + 1_024
"""A record with its sequence and rule."""
MAX_PROOF_BYTES: Final = (
    _MAX_LEAF_BYTES + MAX_PATH * HASH_BYTES + MAX_RECEIPT_BYTES + MAX_CERTIFICATE_BYTES
) * 4 // 3 + 1_024
"""The largest proof, with what stands around the bytes."""


class RecordProof(Struct, frozen=True, forbid_unknown_fields=True):
    """See the module."""

    form: Literal["meshnode proof 1"]
    record: Annotated[bytes, Meta(max_length=_MAX_LEAF_BYTES)]
    """The content of its leaf, see :func:`protocols.wire.receipts.record_leaf`."""
    index: Annotated[int, Meta(ge=0)]
    """Its place among the records of the receipt, from 0."""
    path: Annotated[tuple[Annotated[bytes, Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)], ...],
                    Meta(max_length=MAX_PATH)]  # fmt: skip
    receipt: Annotated[bytes, Meta(max_length=MAX_RECEIPT_BYTES)]
    """See :func:`protocols.wire.receipts.encode_receipt`."""
    certificate: Annotated[bytes, Meta(max_length=MAX_CERTIFICATE_BYTES)]
    """In DER."""


_decoder = msgspec.json.Decoder(RecordProof)


def encode_proof(record: bytes, index: int, path: tuple[bytes, ...], receipt: bytes, certificate: bytes) -> bytes:
    """A proof as a file holds it."""
    proof = RecordProof("meshnode proof 1", record, index, path, receipt, certificate)
    return msgspec.json.format(msgspec.json.encode(proof)) + b"\n"


def decode_untrusted_proof(data: bytes) -> tuple[RecordProof, Receipt]:
    """Parse a proof and its receipt; nothing is checked yet. :raises ReceiptWrong: it is none."""
    if len(data) > MAX_PROOF_BYTES:
        raise ReceiptWrong("form", f"{len(data)} bytes or more are no proof: it has at most {MAX_PROOF_BYTES}")
    try:
        proof = _decoder.decode(data)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise ReceiptWrong("form", f"this is no proof: {str(error)[:200]}") from error
    try:
        return proof, decode_untrusted_receipt(proof.receipt)
    except RemoteProtocolError as error:
        raise ReceiptWrong("receipt", f"the receipt can't be read: {error}") from error


def untrusted_record(proof: RecordProof, receipt: Receipt, hash_bytes: Hash) -> tuple[Record, Reading]:
    """The record that a proof is about, and its reading, once its path leads to the root of the receipt. The signature
    of the receipt is for the caller to check, before. :raises ReceiptWrong: the record is not proven."""
    root = untrusted_root(
        leaf_hash(proof.record, hash_bytes), proof.index, receipt.records, proof.path, hash_bytes
    )  # fmt: skip
    if root is None:
        raise ReceiptWrong(
            "path",
            f"{len(proof.path)} hashes are no path from record {proof.index + 1} of {receipt.records}",
        )
    if root != receipt.root:
        raise ReceiptWrong("path", "the record and its path do not lead to the root that was signed")
    try:
        record = decode_untrusted_leaf(proof.record)
        reading = decode_untrusted_record(record)
    except RemoteProtocolError as error:
        raise ReceiptWrong("record", f"the record can't be read: {error}") from error
    if not receipt.first <= record.sequence <= receipt.last:
        raise ReceiptWrong(
            "record", f"record {record.sequence} is not among those from {receipt.first} to {receipt.last}"
        )
    return record, reading
