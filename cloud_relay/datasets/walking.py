"""The store as datasets see it: which records it has of a question, and of a version.

All that datasets ask of the store is here. A version's list and the store are both in the order of time, origin and
sequence, so they are compared side by side, and memory holds a page of records whatever their number.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from cloud_relay.datasets.digest import SHORT_HEX, DatasetDigest, row_digest
from cloud_relay.datasets.members import Member
from cloud_relay.datasets.versions import DatasetVersion, narrowed
from cloud_relay.query.readers.contract import StoreReader
from cloud_relay.query.searching import StoredRecord, records_of_pages
from cloud_relay.query.selection import Query, place_of


class MemberRecord(NamedTuple):
    """A member of a version, and what the store has of it."""

    member: Member
    record: StoredRecord | None
    """As it was when the version was made; None: the store does not have it any more."""
    is_same: bool
    """Whether the record is what it was."""


def newest_utc_ns(store: StoreReader, query: Query) -> int | None:
    """The time of the newest record of a question; None: there is none."""
    asked, after = replace(query, limit=1, newest_first=True), query.after
    while True:
        page = store.page(replace(asked, after=after))
        if page.records:
            return int(page.records[0].fields["event_utc_ns"])
        if page.cursor is None:
            return None
        after = place_of(page.cursor)


def records_of_question(store: StoreReader, query: Query, until_utc_ns: int) -> Iterator[StoredRecord]:
    """All records of a question that were sensed before a time, oldest first."""
    return records_of_pages(store.page, narrowed(query, None, until_utc_ns))


def records_of_version(
    store: StoreReader, version: DatasetVersion, members: Iterator[Member], digest: DatasetDigest
) -> Iterator[MemberRecord]:
    """Each member with its record, in order. What the store has beside them came later and is passed over. ``digest``
    takes the records that are there."""
    found = records_of_pages(store.page, version.query())
    record = next(found, None)
    for member in members:
        while record is not None and _place_of(record) < member.place:
            record = next(found, None)
        if record is None or _place_of(record) != member.place:
            yield MemberRecord(member, None, False)
            continue
        row = row_digest(record, member.has_receipt)
        digest.add(row)
        held = StoredRecord(record.fields | {"has_receipt": member.has_receipt}, record.encoded)
        yield MemberRecord(member, held, row.hex()[:SHORT_HEX] == member.digest)
        record = next(found, None)


def _place_of(record: StoredRecord) -> tuple[int, str, int]:
    fields = record.fields
    return fields["event_utc_ns"], fields["origin"], fields["sequence"]
