"""The list of the records of a version: one line of JSON for each, compressed with gzip.

A line is ``[time of sensing, origin, sequence, whether it had a receipt, the beginning of its row's digest]``. Lines
are in the order of time, origin and sequence, which is that of a walk through the store, so either side is read once
and nothing is held. The list takes about 20 bytes for each record.
"""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Self

import msgspec
from msgspec import Struct

from cloud_relay.datasets.digest import SHORT_HEX
from cloud_relay.query.searching import StoredRecord
from cloud_relay.query.selection import Place
from meshnode.identity.private_files import create_private
from protocols.base.errors import StorageError

_LEVEL: Final = 3
"""Of gzip: half the time of its default, for a tenth more bytes."""
_MAX_LINE_BYTES: Final = 512
"""A line has at most two numbers of 19 digits, a name of 63 characters, and a few more."""


class Member(Struct, frozen=True, array_like=True, gc=False):
    """One record of a version."""

    event_utc_ns: int
    origin: str
    sequence: int
    has_receipt: bool
    """When the version was made."""
    digest: str
    """The beginning of its row's digest, in hexadecimal."""

    @property
    def place(self) -> Place:
        """See :data:`~cloud_relay.query.selection.Place`."""
        return self.event_utc_ns, self.origin, self.sequence


def member_of(record: StoredRecord, row: bytes) -> Member:
    """The line of a record, whose row has this digest."""
    fields = record.fields
    return Member(
        fields["event_utc_ns"], fields["origin"], fields["sequence"], fields["has_receipt"], row.hex()[:SHORT_HEX]
    )


class MemberList:
    """Writes a list. ``with MemberList(path) as members:``"""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._closing = ExitStack()

    def __enter__(self) -> Self:
        create_private(self._path)
        raw = self._closing.enter_context(self._path.open("wb"))
        self._out = self._closing.enter_context(gzip.GzipFile("", "wb", _LEVEL, raw, mtime=0))
        self._encoder = msgspec.json.Encoder()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def add(self, member: Member) -> None:
        """Add the next one."""
        self._out.write(self._encoder.encode(member) + b"\n")


def members_in(path: Path) -> Iterator[Member]:
    """The members in a list, in order. :raises StorageError: it can't be read, or is damaged."""
    decoder = msgspec.json.Decoder(Member)
    try:
        with gzip.open(path, "rb") as lines:
            while line := lines.readline(_MAX_LINE_BYTES):
                yield decoder.decode(line)
    except (OSError, EOFError, zlib.error, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StorageError(
            f"the list {path} is damaged or can't be read ({error}): restore a copy, or remove this version"
        ) from error
