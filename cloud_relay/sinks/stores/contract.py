"""What a sink needs of the store: its records in the order in which they were stored, and a place for its progress.

A sink has no queue: what comes next is read from the store, so one that was away for a week takes as much memory as one
that is abreast. Of several relays with the same sink on one store, one delivers.
"""

from typing import Final, NamedTuple, Protocol

from cloud_relay.query.arrivals import RecordArrivals
from cloud_relay.query.searching import StoredRecord
from cloud_relay.sinks.contract import Portion
from cloud_relay.sinks.progress import SinkProgress

MAX_PORTION_BYTES: Final = 16 * 1024 * 1024
"""Of the records of one portion as the store has them. In Python's memory they take about four times as much."""


class Extended(NamedTuple):
    """A portion after a look."""

    portion: Portion
    whole: bool
    """It takes no more: it has as many records or bytes as it may, or it reached its limit."""
    newest: int
    """The highest number that there is."""
    is_thinned: bool
    """Retention has deleted records since, among those that this look went through."""


def extended(
    portion: Portion, found: RecordArrivals, most_records: int, limit: int | None, is_thinned: bool
) -> Extended:
    """A portion with what a look after it has found."""
    records = portion.records + found.records
    is_whole = (
        len(records) >= most_records or room_bytes(records) <= 0 or (limit is not None and found.reached >= limit)
    )
    longer = Portion(portion.first, found.reached, records, portion.deleted + found.deleted)
    return Extended(longer, is_whole, found.newest, is_thinned)


def room_bytes(records: list[tuple[int, StoredRecord]]) -> int:
    """How many bytes a portion of these records still takes."""
    return MAX_PORTION_BYTES - sum(record.size_bytes for _, record in records)


class Skip(NamedTuple):
    """What a sink that is too far behind leaves out."""

    number: int
    """The last number that is left out."""
    records: int
    """How many records that are, with those that retention had deleted."""


class SinkStore(Protocol):
    """The store for one sink. All methods belong to one thread, and raise StorageError when the store can't be used."""

    @property
    def is_held(self) -> bool:
        """Whether this sink is ours to deliver, as far as is known."""
        ...

    def take(self) -> bool:
        """Become the one who delivers, if nobody else is. What is known of the progress has to be loaded again then."""
        ...

    def give_way(self) -> None:
        """Let another relay take the sink, if there is one that has it."""
        ...

    def load(self) -> SinkProgress | None:
        """The progress that was saved last, by whichever relay; None: none was."""
        ...

    def save(self, progress: SinkProgress) -> None:
        """Have it on disk. :raises StorageError: it can't be written, or the sink is not ours any more."""
        ...

    def newest(self) -> int:
        """The number of the record that was stored last; 0: there is none."""
        ...

    def extend(self, portion: Portion, most_records: int, limit: int | None) -> Extended:
        """The portion with the records that one look finds after it, up to the number ``limit``, if there is one."""
        ...

    def behind(self, position: int) -> int:
        """About how many records were stored after a number."""
        ...

    def between(self, position: int, up_to: int) -> int:
        """How many records there are after a number and up to another one, with those that retention deleted; in SQLite
        how many numbers. The sink has to be ours."""
        ...

    def skip(self, position: int, most_behind: int) -> Skip | None:
        """What has to be left out so that a sink at a number is at most so far behind; None: nothing."""
        ...

    def close(self) -> None:
        """Let go of the store, and of the sink. Idempotent."""
        ...
