"""A version as a file, with its card beside it.

The same version gives the same rows each time, and the same bytes from the same version of the library that writes
them, because nothing in a file says when or where it was made.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from cloud_relay.datasets.card import DatasetFile, card_of, package_of
from cloud_relay.datasets.digest import DatasetDigest
from cloud_relay.datasets.members import Member
from cloud_relay.datasets.names import VersionName
from cloud_relay.datasets.versions import DatasetVersion
from cloud_relay.datasets.walking import records_of_version
from cloud_relay.export.columns import EXPORTED, READING, row_of_record
from cloud_relay.export.opening import RecordExport, closed_when_whole, opener
from cloud_relay.export.whole_file import whole_file
from cloud_relay.query.readers.contract import StoreReader
from protocols.base.errors import StorageError

CARDS: Final = (".card.json", ".card.md")
"""What the names of the cards end with, after that of the file."""


def export_version(
    store: StoreReader,
    name: VersionName,
    version: DatasetVersion,
    members: Iterator[Member],
    file: Path,
    told: Callable[[int], None],
    *,
    form: str,
    span_ns: int,
    overwrite: bool,
) -> DatasetFile:
    """Write a version into ``file``. It appears after its cards, when all is whole. ``told`` gets the number of records
    so far, each time. ``span_ns``: the span of time of a row group of Parquet.

    :raises LocalProtocolError: the file is there and may not be overwritten.
    :raises StorageError: the store does not have all records any more, or something can't be read or written.
    """
    opens = opener(form, span_ns, _about(name, version), (*EXPORTED, READING))
    with whole_file(file, overwrite=overwrite) as out:
        _write_rows(opens(out), store, name, version, members, told)
        size_bytes = out.tell()
        out.seek(0)
        written = DatasetFile(file.name, form, size_bytes, hashlib.file_digest(out, "sha256").hexdigest())
        package = msgspec.json.format(msgspec.json.encode(package_of(name, version, written)))
        for ending, content in zip(CARDS, (package + b"\n", card_of(name, version, written).encode()), strict=True):
            with whole_file(file.with_name(file.name + ending), overwrite=True) as card:
                card.write(content)
    return written


def _about(name: VersionName, version: DatasetVersion) -> dict[str, Any]:
    return {
        "form": 1, "dataset": name.name, "version": name.number, "digest": version.digest, "records": version.records,
        "query": version.question, "licence": version.licence,
    }  # fmt: skip


def _write_rows(
    out: RecordExport,
    store: StoreReader,
    name: VersionName,
    version: DatasetVersion,
    members: Iterator[Member],
    told: Callable[[int], None],
) -> None:
    digest = DatasetDigest()
    with closed_when_whole(out):
        for member, record, is_same in records_of_version(store, version, members, digest):
            if record is None or not is_same:
                what = "does not have" if record is None else "has another"
                raise StorageError(
                    f"the store {what} record {member.sequence} of {member.origin}, which belongs to {name}: "
                    f"'cloud-relay dataset verify {name}' says what else is missing"
                )
            out.add(row_of_record(record))
            told(digest.records)
        if digest.text() != version.digest:
            raise StorageError(
                f"the list of {name} is damaged, it leads to {digest.text()} and not to {version.digest}: restore a "
                "copy, or remove this version"
            )
