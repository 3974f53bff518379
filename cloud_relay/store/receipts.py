"""The tables of receipts: what nodes signed, and which records it covers.

A receipt is kept in the bytes that were signed, with the hashes of all of its leaves, 32 bytes a record. So a record
can be proved when others of its batch were never taken or are gone. It is kept once it covers a record that no other
one covers: a batch that comes again adds nothing, and a record has the first receipt that came with it.
"""

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from protocols.base.limits import MAX_BATCH_RECORDS

_MAX_RANGE: Final = 4 * MAX_BATCH_RECORDS


@dataclass(frozen=True, slots=True)
class StorableReceipt:
    """A receipt that was checked."""

    receipt: bytes
    """See :func:`protocols.wire.receipts.encode_receipt`."""
    leaves: bytes
    """The hashes of the leaves, one after the other."""
    places: Mapping[int, int]
    """Of each record that it is about, by sequence."""
    certificate_id: bytes
    certificate: bytes
    """In DER."""


class ReceiptTable:
    """Belongs to the thread that writes the store. Each call is part of the caller's transaction."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def keep(self, origin: str, receipt: StorableReceipt, sequences: Sequence[int], now_utc_ns: int) -> None:
        """Keep what covers these records, which are in the store."""
        covered = self._covered(origin, sequences)
        new = [sequence for sequence in sequences if sequence not in covered]
        if not new:
            return
        self._db.execute(
            "INSERT OR IGNORE INTO certificates VALUES (?, ?, ?)",
            (origin, receipt.certificate_id, receipt.certificate),
        )
        number = self._db.execute(
            "INSERT INTO receipts (origin, receipt, leaves, received_utc_ns) VALUES (?, ?, ?, ?)",
            (origin, receipt.receipt, receipt.leaves, now_utc_ns),
        ).lastrowid
        self._db.executemany(
            "INSERT INTO receipted VALUES (?, ?, ?, ?)",
            [(origin, sequence, number, receipt.places[sequence]) for sequence in new],
        )

    def _covered(self, origin: str, sequences: Sequence[int]) -> set[int]:
        """Those of some sequences, in order, that a receipt covers already. One look at a range is cheaper than one at
        each, unless somebody sends sequences that lie far apart."""
        if not sequences:
            return set()
        if sequences[-1] - sequences[0] < _MAX_RANGE:
            rows = self._db.execute(
                "SELECT sequence FROM receipted WHERE origin = ? AND sequence BETWEEN ? AND ?",
                (origin, sequences[0], sequences[-1]),
            )
            return {sequence for (sequence,) in rows}
        return {
            sequence
            for sequence in sequences
            if self._db.execute(
                "SELECT 1 FROM receipted WHERE origin = ? AND sequence = ?", (origin, sequence)
            ).fetchone()
        }

    def note_wrong(self, origin: str, why: str, now_utc_ns: int) -> None:
        """Count a batch that was refused because of its receipt."""
        self._db.execute(
            "INSERT INTO wrong_receipts VALUES (?, 1, ?, ?) ON CONFLICT DO UPDATE SET times = times + 1,"
            " last_utc_ns = excluded.last_utc_ns, why = excluded.why",
            (origin, now_utc_ns, why),
        )
