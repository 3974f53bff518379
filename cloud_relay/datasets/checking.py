"""Whether a store, or a file, has exactly the records of a version.

A file is checked by itself. The column ``reading`` has the bytes that a row's digest is about, and all other columns
have to be what these bytes say, so no store is needed and no column escapes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from cloud_relay.datasets.digest import SHORT_HEX, DatasetDigest, row_digest
from cloud_relay.datasets.members import Member
from cloud_relay.datasets.versions import DatasetVersion
from cloud_relay.datasets.walking import records_of_version
from cloud_relay.export.columns import EXPORTED, GEOMETRY, READING, point_of, row_of_record
from cloud_relay.query.readers.contract import StoreReader
from cloud_relay.query.searching import COLUMNS, StoredRecord
from cloud_relay.query.selection import Place
from cloud_relay.store.rows import Cost, row_of
from protocols.base.errors import LocalProtocolError, MeshError
from protocols.wire.parcels import decode_untrusted_reading

MAX_EXAMPLES: Final = 10
"""Records of each sort that are named; all are counted."""
_NAMES: Final = ("origin", "sequence", "rule", "received_utc_ns", "has_receipt")
_OF_READING: Final = COLUMNS[3:-2]
_TYPES: Final = {"origin": str, "sequence": int, "rule": str, "received_utc_ns": int, "has_receipt": bool,
                 "event_utc_ns": int, READING.name: bytes}  # fmt: skip


@dataclass(slots=True)
class Differences:
    """Records of one sort: how many, and the first of them."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, place: Place, why: str = "") -> None:
        """Count a record."""
        self.count += 1
        if len(self.examples) < MAX_EXAMPLES:
            event_utc_ns, origin, sequence = place
            self.examples.append(f"{origin} {sequence} of {event_utc_ns}{why}")


@dataclass(slots=True)
class Findings:
    """What differs from a version."""

    records: int = 0
    """Those that are there and belong to it."""
    missing: Differences = field(default_factory=Differences)
    changed: Differences = field(default_factory=Differences)
    foreign: Differences = field(default_factory=Differences)
    """Only a file can have any: the store may hold others, which are not looked at."""
    digest: str = ""
    """Of all that is there."""
    is_equal: bool = False


def check_store(
    store: StoreReader, version: DatasetVersion, members: Iterator[Member], told: Callable[[int], None]
) -> Findings:
    """Compare a store with a version. ``told`` gets the number of records so far, each time."""
    found, digest = Findings(), DatasetDigest()
    for number, (member, record, is_same) in enumerate(records_of_version(store, version, members, digest), 1):
        if record is None:
            found.missing.add(member.place)
        elif is_same:
            found.records += 1
        else:
            found.changed.add(member.place)
        told(number)
    return _judged(found, digest, version)


def check_rows(
    rows: Iterator[dict[str, Any]], version: DatasetVersion, members: Iterator[Member], told: Callable[[int], None]
) -> Findings:
    """Compare the rows of a file with a version.

    :raises LocalProtocolError: the file is none of a dataset.
    """
    found, digest = Findings(), DatasetDigest()
    member = next(members, None)
    for number, row in enumerate(rows, 1):
        row_hash, wrong = _checked(row)
        digest.add(row_hash)
        place = row["event_utc_ns"], row["origin"], row["sequence"]
        while member is not None and member.place < place:
            found.missing.add(member.place)
            member = next(members, None)
        if member is None or member.place != place:
            found.foreign.add(place)
        else:
            if not wrong and row_hash.hex()[:SHORT_HEX] == member.digest:
                found.records += 1
            else:
                found.changed.add(place, f" in column {wrong}" if wrong else "")
            member = next(members, None)
        told(number)
    while member is not None:
        found.missing.add(member.place)
        member = next(members, None)
    return _judged(found, digest, version)


def digest_of_rows(rows: Iterator[dict[str, Any]], told: Callable[[int], None]) -> DatasetDigest:
    """The digest of the rows of a file. :raises LocalProtocolError: a column contradicts its reading, or the rows are
    not in their order."""
    digest, before = DatasetDigest(), (-1, "", -1)
    for row in rows:
        row_hash, wrong = _checked(row)
        place = row["event_utc_ns"], row["origin"], row["sequence"]
        if wrong or place <= before:
            why = f"its column {wrong} is not what its reading says" if wrong else "it is not in the order of time"
            raise LocalProtocolError(f"row {digest.records + 1} was changed: {why}: take the file anew")
        digest.add(row_hash)
        before = place
        told(digest.records)
    return digest


def _judged(found: Findings, digest: DatasetDigest, version: DatasetVersion) -> Findings:
    found.digest = digest.text()
    differ = found.missing.count or found.changed.count or found.foreign.count
    found.is_equal = not differ and found.digest == version.digest
    return found


def _checked(row: dict[str, Any]) -> tuple[bytes, str]:
    """The digest of a row by its reading, and the first column that is not what the reading says.

    :raises LocalProtocolError: the row is none of a dataset.
    """
    for name, kind in _TYPES.items():
        if type(row.get(name)) is not kind:
            raise LocalProtocolError(
                f"the file has no column {name!r} of a dataset: check a file that 'cloud-relay dataset export' wrote"
            )
    named = {name: row[name] for name in _NAMES}
    encoded = row[READING.name]
    row_hash = row_digest(StoredRecord(named, encoded), row["has_receipt"])
    try:
        shown = row_of(decode_untrusted_reading(encoded), encoded, Cost())
        said = row_of_record(StoredRecord(named | dict(zip(_OF_READING, shown, strict=True)), encoded))
    except MeshError:
        return row_hash, READING.name
    said[GEOMETRY.name] = point_of(said)
    for name in (*(column.name for column in EXPORTED), GEOMETRY.name):
        if name in row and not _are_same(row[name], said[name]):
            return row_hash, name
    return row_hash, ""


def _are_same(one: Any, other: Any) -> bool:
    """Whether two cells are the same, −0.0 and NaN included."""
    return type(one) is type(other) and (repr(one) == repr(other) if type(one) is float else bool(one == other))
