"""The digest of a dataset version: SHA-256 over its records, each in a form that no library, machine or format of file
has a part in.

A record's *row* is the MessagePack array, in its shortest form, of its origin, sequence, rule, the time at which the
relay stored it, whether it had a receipt when the version was made, and the reading in the bytes of its node. These
bytes hold the value with its whole context. The digest is the SHA-256 of ``meshnode dataset 1`` with a line feed,
followed by the SHA-256 of each row, in the order of time of sensing, origin and sequence. So whoever has the rows, from
a store, from Parquet or from CSV, comes to the same digest.
"""

from hashlib import sha256
from typing import Final

import msgspec

from cloud_relay.query.searching import StoredRecord

_OPENING: Final = b"meshnode dataset 1\n"
SHORT_HEX: Final = 16
"""Characters of a row's digest that the list of members keeps: it has to find accidents, the digest finds the rest."""


def row_digest(record: StoredRecord, has_receipt: bool) -> bytes:
    """The SHA-256 of a record's row. ``has_receipt``: when the version was made; receipts may come later."""
    fields = record.fields
    named = (fields["origin"], fields["sequence"], fields["rule"], fields["received_utc_ns"], has_receipt)
    return sha256(msgspec.msgpack.encode((*named, record.encoded))).digest()


class DatasetDigest:
    """Takes the digests of rows in their order."""

    def __init__(self) -> None:
        self._hash = sha256(_OPENING)
        self.records = 0

    def add(self, row: bytes) -> None:
        """Add what :func:`row_digest` gave for the next record."""
        self._hash.update(row)
        self.records += 1

    def text(self) -> str:
        """As people see it: ``sha256:`` and 64 characters."""
        return f"sha256:{self._hash.hexdigest()}"
