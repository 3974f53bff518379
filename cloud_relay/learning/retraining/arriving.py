"""New records of the store, as a trigger looks at them. Only this module of the room knows what the store is."""

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from cloud_relay.export.columns import row_of_record
from cloud_relay.query.arrivals import arrivals_after
from cloud_relay.query.selection import Query, untrusted_query
from cloud_relay.store.schema import open_for_reading, storage_error
from protocols.base.ids import UtcNs

MAX_LOOK_RECORDS: Final = 20_000
"""That one look goes through, so that a full store holds up no other trigger."""


def new_records(
    store: Path, after: int, keys: str | None, rule: str | None
) -> Iterator[tuple[int, Mapping[str, Any] | None]]:
    """The records that were stored after a number, at most ``MAX_LOOK_RECORDS``, with their numbers and as rows of an
    export. A number without a row says only how far all were looked at.

    :raises StorageError: the store can't be read.
    """
    filters = {name: text for name, text in (("key", keys), ("rule", rule)) if text is not None}
    query: Query = untrusted_query(filters, UtcNs(0))
    found = 0
    with closing(open_for_reading(store)) as db:
        try:
            while found < MAX_LOOK_RECORDS:
                arrived = arrivals_after(db, query, after)
                for number, record in arrived.records:
                    found += 1
                    yield number, row_of_record(record)
                yield arrived.reached, None
                if arrived.reached >= arrived.newest or arrived.reached == after:
                    return
                after = arrived.reached
        except sqlite3.DatabaseError as error:
            raise storage_error(store, error) from error
