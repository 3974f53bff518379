"""New records of the store, as a trigger looks at them."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from cloud_relay.export.columns import row_of_record
from cloud_relay.query.readers.opening import open_reader
from cloud_relay.query.selection import Query, untrusted_query
from cloud_relay.store.places import StorePlace
from protocols.base.ids import UtcNs

MAX_LOOK_RECORDS: Final = 20_000
"""That one look goes through, so that a full store holds up no other trigger."""


def newest_number(store: StorePlace) -> int:
    """The highest number of a record; 0: there is none. :raises StorageError: the store can't be read."""
    with open_reader(store) as reader:
        return reader.newest_number()


def new_records(
    store: StorePlace, after: int, keys: str | None, rule: str | None
) -> Iterator[tuple[int, Mapping[str, Any] | None]]:
    """The records that were stored after a number, at most ``MAX_LOOK_RECORDS``, with their numbers and as rows of an
    export. A number without a row says only how far all were looked at.

    :raises StorageError: the store can't be read.
    """
    filters = {name: text for name, text in (("key", keys), ("rule", rule)) if text is not None}
    query: Query = untrusted_query(filters, UtcNs(0))
    found = 0
    with open_reader(store) as reader:
        while found < MAX_LOOK_RECORDS:
            arrived = reader.arrivals(query, after)
            for number, record in arrived.records:
                found += 1
                yield number, row_of_record(record)
            yield arrived.reached, None
            if arrived.reached >= arrived.newest or arrived.reached == after:
                return
            after = arrived.reached
