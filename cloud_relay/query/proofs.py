"""Proofs of single records: made from the store, and checked by somebody who has no store.

Steps of a check, in their order: ``form`` and ``receipt`` (it can be read), ``certificate`` (the authority issued it,
and it is that of the receipt and its node), ``signature`` (its key signed the receipt), ``path`` (the record leads to
the root that was signed), ``record`` (it can be read). The period in which the certificate is valid is shown and not
checked, because nothing in a proof says when it was signed but the word of the node.
"""

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from cryptography import x509
from msgspec import Raw

from cloud_relay.query.packed import one_moment
from cloud_relay.store.packs.reading import PackReader
from meshnode.identity.signatures import CertifiedKey, sha256, untrusted_certified_key
from protocols.base.errors import IdentityError, LocalProtocolError, ReceiptWrong, StorageError
from protocols.records.receipts.checking import check_untrusted_author
from protocols.records.receipts.proof import decode_untrusted_proof, encode_proof, untrusted_record
from protocols.records.receipts.tree import HASH_BYTES, leaf_hash, path_of
from protocols.wire.readings import Reading
from protocols.wire.receipts import decode_untrusted_receipt, record_leaf
from protocols.wire.records import Receipt, Record


@dataclass(frozen=True, slots=True)
class ProvenRecord:
    """What a proof says, once it was checked."""

    author: CertifiedKey
    receipt: Receipt
    record: Record
    reading: Reading


def proof_of(db: sqlite3.Connection, origin: str, sequence: int) -> bytes:
    """The proof of a stored record, as a file holds it.

    :raises LocalProtocolError: the store does not have it, or it came without a receipt.
    :raises StorageError: the store is damaged.
    """
    with one_moment(db) as packed:
        return _proof(db, packed, origin, sequence)


def _proof(db: sqlite3.Connection, packed: PackReader, origin: str, sequence: int) -> bytes:
    row = db.execute(
        "SELECT rule, encoded FROM records WHERE origin = ? AND sequence = ?", (origin, sequence)
    ).fetchone()
    old = packed.named(origin, sequence) if row is None else None
    if old is not None:
        row = old.rule, old.encoded
    held = db.execute(
        "SELECT receipts.receipt, leaves, place FROM receipted JOIN receipts ON number = receipted.receipt"
        " WHERE receipted.origin = ? AND sequence = ?",
        (origin, sequence),
    ).fetchone()
    if held is None and old is not None:
        held = db.execute(
            "SELECT receipt, leaves, ? FROM receipts WHERE number = ?", (old.receipt_place, old.receipt)
        ).fetchone()

    def certificate(named: bytes) -> bytes | None:
        found = db.execute("SELECT certificate FROM certificates WHERE origin = ? AND id = ?", (origin, named))
        return next((bytes(one) for (one,) in found), None)

    return made_proof(origin, sequence, row, held, certificate)


def made_proof(
    origin: str,
    sequence: int,
    row: tuple[str, bytes] | None,
    held: tuple[bytes, bytes, int] | None,
    certificate: Callable[[bytes], bytes | None],
) -> bytes:
    """The proof of a record, of its rule and bytes (``row``), of its receipt, the leaves of that and the record's place
    (``held``). ``certificate`` finds that of an id. Raises what :func:`proof_of` does."""
    if row is None:
        raise LocalProtocolError(
            f"the store has no record {sequence} of {origin!r}: find it with 'cloud-relay query --origin'"
        )
    if held is None:
        raise LocalProtocolError(f"record {sequence} of {origin!r} came without a receipt, so nothing proves it")
    encoded_receipt, joined, place = held
    content = record_leaf(Record(sequence, row[0], Raw(row[1])))
    leaves = [joined[at : at + HASH_BYTES] for at in range(0, len(joined), HASH_BYTES)]
    if place >= len(leaves) or leaves[place] != leaf_hash(content, sha256):
        raise StorageError(f"record {sequence} of {origin!r} is not what its receipt is about: the store was changed")
    found = certificate(decode_untrusted_receipt(encoded_receipt).certificate)
    if found is None:
        raise StorageError(f"the certificate of record {sequence} of {origin!r} is missing: the store was changed")
    return encode_proof(content, place, path_of(leaves, place, sha256), encoded_receipt, found)


def proven(data: bytes, authority: x509.Certificate) -> ProvenRecord:
    """Check a proof, with nothing but the certificate of the mesh's authority. :raises ReceiptWrong: it proves nothing;
    says which step failed."""
    proof, receipt = decode_untrusted_proof(data)
    try:
        author = untrusted_certified_key(proof.certificate, authority)
    except IdentityError as error:
        raise ReceiptWrong("certificate", str(error)) from error
    check_untrusted_author(receipt, author)
    record, reading = untrusted_record(proof, receipt, sha256)
    return ProvenRecord(author, receipt, record, reading)
