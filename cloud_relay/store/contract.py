"""What ingest hands to a store, and what every store promises, whatever it is made of.

A store keeps each record once, by origin and sequence, and answers a batch when what it says is on disk. A batch may
come any number of times. The same name with other bytes is a conflict: the first record is kept, and the second is
refused and counted. What a store is asked stands in :mod:`cloud_relay.query.readers.contract`.
"""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from cloud_relay.store.receipts import StorableReceipt
from cloud_relay.store.rows import Row
from protocols.wire.records import Acknowledgement, Fate, RefusedRecord, RelayRefusal


class StorableRecord(NamedTuple):
    """A record that fits the store."""

    sequence: int
    rule: str
    row: Row
    encoded: bytes


@dataclass(frozen=True, slots=True)
class StorableBatch:
    """A batch that was checked, from a node that TLS proved."""

    origin: str
    incarnation: int
    next_sequence: int
    records: tuple[StorableRecord, ...]
    refused: tuple[RefusedRecord, ...]
    """Records that don't fit the store. They are noted as refused."""
    fates: tuple[Fate, ...]
    receipt: StorableReceipt | None = None
    """None: it came without one."""
    wrong_receipt: str = ""
    """Why its receipt is wrong. It is noted then, and nothing of the batch is stored."""
    carried: bool = False
    """Another node brought it, perhaps later than what its own node sent since."""

    @property
    def is_empty(self) -> bool:
        """Whether it tells of no record."""
        return not (self.records or self.refused or self.fates)


class RecordStore(Protocol):
    """Takes batches, from any thread."""

    at_commit: Callable[[], None]
    """Called on a thread of the store when records were stored, by whomever."""

    at_end: Callable[[float, bool], None]
    """Called at the end of each transaction with the seconds that it took, and with whether it is on disk."""

    def submit(self, batch: StorableBatch) -> "Future[Acknowledgement | RelayRefusal]":
        """Queue a batch. The result comes when it is on disk. It is a StorageError when it could not be stored, or when
        the queue is full and the batch gave way; the node keeps it then.

        :raises StorageError: the store is closed.
        """
        ...

    def statistics(self) -> dict[str, int]:
        """Counts since the start, by name."""
        ...

    def close(self) -> None:
        """Finish what is queued, and close. Idempotent."""
        ...
