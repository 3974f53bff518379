"""What a store can be asked, whatever it is made of. Commands, HTTP and exports ask through this and nothing else.

Every store gives equal answers to equal questions about equal records; the numbers of arrivals are its own.
"""

from contextlib import AbstractContextManager
from typing import Any, Protocol

from cloud_relay.metrics.stored import StoreFigures
from cloud_relay.query.aggregating import AggregateQuery
from cloud_relay.query.arrivals import RecordArrivals
from cloud_relay.query.audit import OriginAccount
from cloud_relay.query.kept import GroupSource
from cloud_relay.query.searching import PATIENCE_S, RecordPage
from cloud_relay.query.selection import Query


class StoreReader(Protocol):
    """Answers questions, one at a time. Each raises StorageError when the store can't be read."""

    def page(self, query: Query, patience_s: float = PATIENCE_S) -> RecordPage:
        """One page, bounded in records, bytes and time, see :func:`cloud_relay.query.searching.find_page`."""
        ...

    def newest(self, query: Query, after_key: str | None = None, patience_s: float = PATIENCE_S) -> RecordPage:
        """The newest record of each key, see :func:`cloud_relay.query.newest.newest_page`."""
        ...

    def aggregates(self, query: AggregateQuery) -> list[dict[str, Any]]:
        """Numbers about many records, see :func:`cloud_relay.query.aggregating.aggregates`."""
        ...

    def newest_number(self) -> int:
        """A number that all records which are stored from now on are above. 0: there is no record."""
        ...

    def arrivals(self, query: Query, number: int) -> RecordArrivals:
        """What was stored after a number, see :func:`cloud_relay.query.arrivals.arrivals_after`."""
        ...

    def state(self) -> str:
        """A text that changes whenever an answer could."""
        ...

    def figures(self) -> StoreFigures:
        """How large the store is."""
        ...

    def kept(self) -> GroupSource:
        """The aggregates that are kept beside the records."""
        ...

    def audit(self) -> list[OriginAccount]:
        """The accounts of all origins at one moment, ordered by name."""
        ...

    def proof(self, origin: str, sequence: int) -> bytes:
        """The proof of a stored record, see :func:`cloud_relay.query.proofs.proof_of`."""
        ...


class StoreReaders(Protocol):
    """Gives readers to threads. A bounded number of readers may be in use at once."""

    def reader(self) -> AbstractContextManager[StoreReader]:
        """A reader for one thread.

        :raises StorageError: the store can't be read.
        """
        ...

    def close(self) -> None:
        """Wait until no reader is in use, and close what is open. Not on the thread of an event loop. Idempotent."""
        ...
