"""What every kind of sink has to do: open, take a portion of records and confirm it, close.

A *portion* is a run of the store's numbers with the records in it that the sink's query selects. ``send`` returns only
when the receiver has confirmed all of them for good. Whatever else happens is one of two errors: the receiver may take
the same portion later (:class:`DeliveryFailed`), or it never will because of a record in it
(:class:`DeliveryRefused`). A target that is not sure raises the first one, because nothing is given up then.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

from cloud_relay.query.forms import record_form
from cloud_relay.query.searching import StoredRecord
from protocols.base.errors import TransportError


class DeliveryFailed(TransportError):
    """The receiver did not confirm. It is tried again, with the same records, over a new connection."""

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        """``retry_after_s``: the receiver asked not to be tried earlier."""
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeliveryRefused(TransportError):
    """The receiver will never take the portion as it is. If it has several records, its halves are tried."""


class Portion(NamedTuple):
    """Records with numbers from ``first`` to ``last``, in their order."""

    first: int
    last: int
    records: list[tuple[int, StoredRecord]]
    """With their numbers. Records of the store that are not in here are not for this sink."""
    deleted: int = 0
    """Numbers in it whose records retention deleted before the sink came to them, for this sink or not."""

    def halves(self) -> "tuple[Portion, Portion]":
        """The same records in two portions. There have to be at least two."""
        middle = len(self.records) // 2
        left, right = self.records[:middle], self.records[middle:]
        return Portion(self.first, left[-1][0], left), Portion(left[-1][0] + 1, self.last, right, self.deleted)


class SinkTarget(ABC):
    """One connection to a receiver. All its methods are called on one event loop, which has nothing else to do, so they
    may block it."""

    most_records: int
    """Records in one portion. It has fewer when their bytes reach ``reading.MAX_PORTION_BYTES``."""
    longest_wait_s: float = 0.0
    """How long a portion that is not full waits for more records."""
    repeats_portions: ClassVar[bool] = False
    """Whether a portion has to be the same when it is sent again after a crash, because it has a name."""

    @abstractmethod
    async def open(self) -> None:
        """Connect. :raises DeliveryFailed: it can't be done now."""

    @abstractmethod
    async def send(self, portion: Portion) -> None:
        """Hand over all records of a portion.

        :raises DeliveryFailed: some were not confirmed.
        :raises DeliveryRefused: one of them never will be.
        """

    @abstractmethod
    async def close(self) -> None:
        """End the connection, whatever state it is in. Raises nothing."""


def identity_of(record: StoredRecord) -> str:
    """What tells a record from all others of a mesh, for receivers that have to know it again."""
    return f"{record.fields['origin']}/{record.fields['sequence']}"


def sent_form(record: StoredRecord) -> dict[str, Any]:
    """The record as a JSON object, as HTTP gives it, with its identity as ``id``."""
    return {"id": identity_of(record)} | record_form(record)
