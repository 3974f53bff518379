"""The bytes of receipts: what is signed, what a leaf of the hash tree is, and what is kept."""

from typing import Final

import msgspec

from protocols.base.errors import RemoteProtocolError
from protocols.wire.codec import decode_untrusted, encode
from protocols.wire.fields import check_untrusted_id
from protocols.wire.records import Receipt, Record

_RECEIPT_DOMAIN: Final = b"meshnode receipt 1\0"
MAX_RECEIPT_BYTES: Final = 512
"""The longest takes 313 bytes."""
_receipt_decoder = msgspec.msgpack.Decoder(Receipt)
_record_decoder = msgspec.msgpack.Decoder(Record)


def receipt_statement(receipt: Receipt) -> bytes:
    """The bytes that the signature of a receipt covers: all of its other fields. Their prefix makes sure that no
    signature made for anything else, such as a gossip entry, a reading or a TLS handshake, can pass for one."""
    return _RECEIPT_DOMAIN + encode((
        receipt.mesh, receipt.node, receipt.incarnation, receipt.policy, receipt.root, receipt.first, receipt.last,
        receipt.records, receipt.certificate,
    ))  # fmt: skip


def encode_receipt(receipt: Receipt) -> bytes:
    """Encode a receipt as it is kept: the statement's fields and the signature."""
    return encode(receipt)


def decode_untrusted_receipt(data: bytes) -> Receipt:
    """Parse a receipt. Its signature is not checked here.

    :raises RemoteProtocolError: for anything that is not one, or is not encoded as :func:`encode_receipt` does it.
    """
    receipt = decode_untrusted(_receipt_decoder, data, MAX_RECEIPT_BYTES)
    check_untrusted_id(receipt.node)
    if encode(receipt) != data:
        raise RemoteProtocolError("a receipt is not in its shortest form, or has more than its fields")
    return receipt


def record_leaf(record: Record) -> bytes:
    """The content of the leaf of a record: its sequence, its rule, and its reading in the bytes in which it came."""
    return encode(record)


def decode_untrusted_leaf(data: bytes) -> Record:
    """Parse what :func:`record_leaf` made; the reading is not looked into. :raises RemoteProtocolError: for anything
    else."""
    record = decode_untrusted(_record_decoder, data)
    if encode(record) != data:
        raise RemoteProtocolError("a record is not in its shortest form, or has more than its fields")
    return record
